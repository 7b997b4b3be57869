//! Answers made of what is stored, or is being stored.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use sendfile2::Error;
use sendfile2_axum::{FileBody, Validators};

use super::body::{CacheBody, Filling, Sharing};
use super::own;
use crate::policy::{self, CacheStatus, Kind, Known, Part, Stored};
use crate::store::{FillReader, Hit};

/// The body of an answer.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Hit(Hit),
    /// A response that is being stored. The bytes before `from` are no part of it.
    Filling(FillReader),
}

impl Content {
    pub(super) fn length(&self) -> Option<u64> {
        match self {
            Content::Hit(hit) => Some(hit.len()),
            Content::Filling(reader) => reader.length(),
        }
    }
}

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The name that this cache has in `Via`.
pub(super) const VIA: HeaderValue = HeaderValue::from_static("1.1 sendfile2");

/// The name that it has in requests of its own.
pub(super) const AGENT: HeaderValue = HeaderValue::from_static("sendfile2");

/// A client's request, as far as the answer depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
}

/// The part of an answer that a request wants: the status, the fields that say so, and the bytes of
/// the whole; `None` is all of them.
struct Wanted {
    status: StatusCode,
    fields: HeaderMap,
    range: Option<Range<u64>>,
}

/// The validators of a stored answer. Where nothing says when it changed, its date counts, but not
/// for a part (RFC 9111, 4.3.2; RFC 9110, 13.1.5).
fn validators(headers: &HeaderMap, part: bool) -> Validators {
    let mut validators = Validators::new();
    if let Some(tag) =
        headers.get(header::ETAG).and_then(|tag| std::str::from_utf8(tag.as_bytes()).ok())
    {
        let inner = |tag: &str| Some(tag.strip_prefix('"')?.strip_suffix('"')?.to_owned());
        if let Some(tag) = tag.strip_prefix("W/").and_then(inner) {
            validators = validators.weak_etag(&tag);
        } else if let Some(tag) = inner(tag) {
            validators = validators.etag(&tag);
        }
    }
    let date = headers.get(header::DATE).filter(|_| !part);
    let modified = headers.get(header::LAST_MODIFIED).or(date).and_then(policy::parse_date);
    match modified.map(|at| std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(at))) {
        Some(Some(modified)) => validators.last_modified(modified),
        _ => validators,
    }
}

fn wanted(asked: Asked<'_>, stored: &Stored, whole: Option<u64>) -> Wanted {
    let all = Wanted { status: StatusCode::OK, fields: HeaderMap::new(), range: None };
    let asks = [header::RANGE, header::IF_NONE_MATCH, header::IF_MODIFIED_SINCE];
    if !asks.iter().any(|name| asked.headers.contains_key(name)) {
        return all;
    }
    // Without a length there are no parts, but conditions.
    let mut headers = asked.headers.clone();
    if whole.is_none() {
        headers.remove(header::RANGE);
    }
    let known = validators(&stored.headers, headers.contains_key(header::RANGE));
    let (status, fields, range) = known.answer(asked.method, &headers, whole.unwrap_or(0));
    match status {
        StatusCode::OK => all,
        status => Wanted { status, fields, range: Some(range) },
    }
}

/// Whether a part that is stored has all that a request wants.
pub(super) fn has_wanted(asked: Asked<'_>, stored: &Stored, known: &Known) -> bool {
    if known.kind != Kind::Part {
        return true;
    }
    let Some(part) = Part::of(&stored.headers) else { return false };
    let wanted = wanted(asked, stored, Some(part.whole));
    wanted.range.is_some_and(|range| range.is_empty() || part.covers(&range))
}

/// Makes the answer to a request of what is stored; [`has_wanted`] says whether that can be.
pub(super) fn answer(
    asked: Asked<'_>,
    stored: Stored,
    known: &Known,
    content: &Content,
    (now, status): (u64, CacheStatus),
    rest: Option<Sharing>,
) -> Response<CacheBody> {
    let part = (known.kind == Kind::Part).then(|| Part::of(&stored.headers)).flatten();
    let whole = part.as_ref().map(|part| part.whole).or(content.length());
    let begin = part.as_ref().map_or(0, |part| part.range.start);
    let is_asked = part.is_some() || stored.status == StatusCode::OK;
    let wanted = is_asked.then(|| wanted(asked, &stored, whole));
    let Stored { id, status: mut sent, mut headers } = stored;
    let mut range = None;
    if let Some(wanted) = wanted.filter(|wanted| wanted.status != StatusCode::OK) {
        sent = wanted.status;
        range = wanted.range;
        about(&mut headers, &wanted.fields, sent);
    }
    let validated = status.fwd_status == Some(StatusCode::NOT_MODIFIED);
    if status.hit || status.collapsed || validated {
        headers.insert(header::AGE, known.age_at(now).into());
    }
    headers.append(CACHE_STATUS, status.value());
    headers.append(header::VIA, VIA);
    let end = part.as_ref().map(|part| part.range.end).or(content.length());
    let range = range.map_or(begin..end.unwrap_or(u64::MAX), |range| range);
    let within = range.start.saturating_sub(begin)..range.end.saturating_sub(begin);
    let head = *asked.method == Method::HEAD;
    if head && end.is_some() && !bodiless(sent) {
        // Without a body only this tells how long it would be.
        headers.insert(header::CONTENT_LENGTH, (within.end - within.start).into());
    }
    let nothing = head || within.is_empty() || bodiless(sent);
    let mut response = match content {
        _ if nothing => Response::new(CacheBody::text("")),
        Content::Hit(hit) => {
            match of_hit(hit, &within, headers.get(header::CONTENT_ENCODING).cloned()) {
                Ok(response) => response,
                Err(e) => {
                    // What is said of the body must not be said of none.
                    tracing::error!("the stored body of {id} cannot be read: {e}");
                    return own(StatusCode::INTERNAL_SERVER_ERROR, "");
                }
            }
        }
        Content::Filling(reader) => {
            let end = end.is_some().then_some(within.end);
            Response::new(CacheBody::filling(Filling::new(reader.clone(), within.start, end, rest)))
        }
    };
    *response.status_mut() = sent;
    *response.headers_mut() = headers;
    response
}

fn bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// A body of what is stored, which may be sent from the store's own pages.
fn of_hit(
    hit: &Hit,
    within: &Range<u64>,
    encoding: Option<HeaderValue>,
) -> Result<Response<CacheBody>, Error> {
    if let Some(small) = &hit.small {
        // It fits: it is in memory.
        let at = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(small.len());
        return Ok(Response::new(CacheBody::text(small.slice(at(within.start)..at(within.end)))));
    }
    Ok(match file_body(hit, within)? {
        Some(body) => body.into_encoded_response(encoding).map(CacheBody::stored),
        None => Response::new(CacheBody::text("")),
    })
}

/// A body of these bytes of what is stored; `None` of none.
pub(super) fn file_body(hit: &Hit, within: &Range<u64>) -> Result<Option<FileBody>, Error> {
    let mut body: Option<FileBody> = None;
    for (lease, at) in hit.leases(within.clone()) {
        let part = FileBody::leased(lease, at)?;
        body = Some(match body {
            None => part,
            Some(body) => body.followed_by(&part),
        });
    }
    Ok(body)
}

/// Makes the fields those of a part, or of an answer without what was asked for.
fn about(headers: &mut HeaderMap, fields: &HeaderMap, status: StatusCode) {
    let of_content = |name: &HeaderName| {
        name.as_str().starts_with("content-")
            && *name != header::CONTENT_LOCATION
            && *name != header::CONTENT_SECURITY_POLICY
    };
    if status != StatusCode::PARTIAL_CONTENT {
        let names: Vec<_> = headers.keys().filter(|name| of_content(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
    for name in [header::CONTENT_RANGE, header::CONTENT_LENGTH, header::ACCEPT_RANGES] {
        if let Some(value) = fields.get(&name) {
            headers.insert(name, value.clone());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::store::{Key, Options, Store};

    /// A file that somebody has cut has no body to send, whatever was said of it.
    #[test]
    fn a_body_that_cannot_be_read_is_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let size = 64 << 20;
        let options = Options { path: Some(path.clone()), size, ..Options::default() };
        let (store, _) = Store::open(&options).unwrap();
        let mut fill = store.begin(Key::of(&[b"a"]), [0; 24], b"", None).unwrap();
        fill.write(&[7; 100_000]).unwrap();
        let content = Content::Hit(fill.finish().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        let stored = Stored { id: "h/a".into(), status: StatusCode::OK, headers };
        let sent = || {
            let asked = Asked { method: &Method::GET, headers: &HeaderMap::new() };
            let known = Known::other(Kind::Whole, 0);
            let now = (0, CacheStatus::default());
            answer(asked, stored.clone(), &known, &content, now, None)
        };
        assert_eq!(sent().status(), 200);
        // The region behind is made ready: that would make the file long again.
        while store.counters().recycled < 2 {
            std::thread::yield_now();
        }
        std::fs::File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let answer = sent();
        assert_eq!(answer.status(), 500);
        assert!(!answer.headers().contains_key(header::ETAG), "{answer:?}");
    }
}
