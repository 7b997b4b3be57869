//! The target of a request, by which its answer is found again: refused where it is not clear.

use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version, header};

use crate::store::Key;

/// The target of a request: the authority as it is forwarded, path and query.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) authority: String,
    pub(super) path: String,
}

impl Target {
    /// Reads it; the status is of the answer to a request that has none, or not only one. Where
    /// HTTP/1.0 names no host, it is `host`.
    pub(super) fn of<B>(request: &Request<B>, host: &str) -> Result<Self, StatusCode> {
        let (uri, headers) = (request.uri(), request.headers());
        if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
            return Err(StatusCode::METHOD_NOT_ALLOWED);
        }
        if headers.contains_key(header::TRANSFER_ENCODING)
            && headers.contains_key(header::CONTENT_LENGTH)
        {
            return Err(StatusCode::BAD_REQUEST);
        }
        if !is_plain(headers) {
            return Err(StatusCode::NOT_IMPLEMENTED);
        }
        let scheme = uri.scheme().or(request.extensions().get()).unwrap_or(&Scheme::HTTP);
        let default_port = match scheme.as_str() {
            "http" => ":80",
            "https" => ":443",
            _ => return Err(StatusCode::BAD_REQUEST),
        };
        let plain = |text: &str| plain(text, default_port);
        let mut lines = headers.get_all(header::HOST).iter();
        let line = match (lines.next(), lines.next()) {
            (_, Some(_)) => return Err(StatusCode::BAD_REQUEST),
            (line, None) => line.map(|line| line.to_str().map_err(|_| StatusCode::BAD_REQUEST)),
        };
        let line = line.transpose()?;
        let authority = match (uri.authority(), line) {
            (None, None) if request.version() < Version::HTTP_11 => host.to_owned(),
            (None, Some(line)) => plain(line)?,
            // HTTP/1.1 has a Host in any case, and the target's own counts.
            (Some(own), Some(_)) if request.version() <= Version::HTTP_11 => plain(own.as_str())?,
            (Some(own), None) if request.version() != Version::HTTP_11 => plain(own.as_str())?,
            (Some(own), Some(line)) if plain(line)? == plain(own.as_str())? => plain(line)?,
            _ => return Err(StatusCode::BAD_REQUEST),
        };
        let path = uri.path_and_query().map_or("/", |target| target.as_str());
        let of_all = path == "*" && *request.method() == Method::OPTIONS;
        if !path.starts_with('/') && !of_all {
            return Err(StatusCode::BAD_REQUEST);
        }
        Ok(Target { authority, path: path.to_owned() })
    }

    /// The target of a request for this URL.
    pub(super) fn of_url(url: &Uri) -> Option<Self> {
        let mut request = Request::new(());
        url.scheme()?;
        (*request.uri_mut(), *request.version_mut()) = (url.clone(), Version::HTTP_2);
        Target::of(&request, "").ok()
    }

    /// Another one at the same authority.
    pub(super) fn at(&self, path: &str) -> Self {
        Target { authority: self.authority.clone(), path: path.to_owned() }
    }

    /// Its text, for bans.
    pub(super) fn id(&self) -> String {
        format!("{}{}", self.authority, self.path)
    }

    pub(super) fn key(&self) -> Key {
        Key::of(&[self.authority.as_bytes(), self.path.as_bytes()])
    }

    /// The key of a variant, whose request has these values of the fields that decide.
    pub(super) fn variant(&self, generation: &[u8], values: &[u8]) -> Key {
        Key::of(&[self.authority.as_bytes(), self.path.as_bytes(), generation, values])
    }

    /// The key by which requests wait for one another: those that may have the same answer.
    pub(super) fn flight(&self, stored: Option<Key>, headers: &HeaderMap) -> Key {
        let stored = stored.unwrap_or_else(|| self.key());
        match headers.get(header::AUTHORIZATION) {
            Some(who) => Key::of(&[stored.as_bytes(), who.as_bytes()]),
            None => stored,
        }
    }
}

/// Whether a body has no transfer coding but chunks, which hyper undoes, and nobody anything else: it
/// would be passed on as what it is not (RFC 9112, 6.1).
fn is_plain(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let line = lines.next().map_or(&b"chunked"[..], |line| line.as_bytes().trim_ascii());
    lines.next().is_none() && line.eq_ignore_ascii_case(b"chunked")
}

/// An authority as it is forwarded: in lower case, without the port that its scheme has by itself, or
/// an empty one.
fn plain(text: &str, default_port: &str) -> Result<String, StatusCode> {
    if is_usual(text) {
        return Ok(text.strip_suffix(default_port).unwrap_or(text).to_owned());
    }
    parsed(text, default_port)
}

/// Whether it is an authority as most are, of which that is found out at once: a name in lower case,
/// and maybe a port.
fn is_usual(text: &str) -> bool {
    let of_name = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    let name = text.bytes().position(|byte| !of_name(&byte)).unwrap_or(text.len());
    let port_fits =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    match text.as_bytes().get(name) {
        None => name > 0,
        Some(b':') => name > 0 && port_fits(&text[name + 1..]),
        Some(_) => false,
    }
}

fn parsed(text: &str, default_port: &str) -> Result<String, StatusCode> {
    let authority: Authority = text.parse().map_err(|_| StatusCode::BAD_REQUEST)?;
    let named = !authority.host().is_empty() && !text.contains('@');
    let port = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let port_fits = port.is_none_or(|(_, port)| port.is_empty() || port.parse::<u16>().is_ok());
    if !named || !port_fits {
        return Err(StatusCode::BAD_REQUEST);
    }
    let bare = text.strip_suffix(default_port).or(text.strip_suffix(':'));
    Ok(bare.unwrap_or(text).to_ascii_lowercase())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(version: Version, uri: &str, headers: &[(&str, &str)]) -> Result<String, u16> {
        let mut request = Request::builder().method("GET").version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        Target::of(&request, "origin").map(|target| target.id()).map_err(|status| status.as_u16())
    }

    proptest::proptest! {
        #[test]
        fn what_is_usual_is_what_is_parsed(text in "[a-c0-9.:-]{0,8}(:(80|443|65535|65536))?") {
            if is_usual(&text) {
                for port in [":80", ":443"] {
                    proptest::prop_assert_eq!(plain(&text, port), parsed(&text, port));
                }
            }
        }
    }

    #[test]
    fn a_usual_authority_is_known() {
        for text in ["a", "example.org", "example.org:65535", "127.0.0.1:80"] {
            assert!(is_usual(text), "{text}");
        }
        for text in
            ["", ":80", "a:", "a:80000", "a:+80", "A", "a_b", "[::1]", "a@b", "a:x", "a:1:2", "a/"]
        {
            assert!(!is_usual(text), "{text}");
        }
    }

    #[test]
    fn only_the_own_default_port_of_a_scheme_is_dropped() {
        let of = |scheme: Option<Scheme>, version, uri: &str, host: &str| {
            let mut request = Request::builder().version(version).uri(uri).header("host", host);
            if let Some(scheme) = scheme {
                request = request.extension(scheme);
            }
            Target::of(&request.body(()).unwrap(), "origin").unwrap().id()
        };
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let (plain, tls) = (|| Some(Scheme::HTTP), || Some(Scheme::HTTPS));
        for (scheme, version, uri, host, expected) in [
            (None, one, "/a", "h:80", "h/a"),
            (None, one, "/a", "h:443", "h:443/a"),
            (plain(), one, "/a", "h:80", "h/a"),
            (plain(), one, "/a", "h:443", "h:443/a"),
            (tls(), one, "/a", "h:443", "h/a"),
            (tls(), one, "/a", "h:80", "h:80/a"),
            (tls(), one, "/a", "[::1]:80", "[::1]:80/a"),
            // What a target says itself counts.
            (tls(), one, "http://h:80/a", "h", "h/a"),
            (None, two, "https://h:443/a", "h", "h/a"),
            (None, two, "https://h:80/a", "h:80", "h:80/a"),
            (None, two, "http://h:443/a", "h:443", "h:443/a"),
        ] {
            assert_eq!(of(scheme, version, uri, host), expected, "{uri} {host}");
        }
    }

    #[test]
    fn a_target_is_clear_or_refused() {
        let host = |value| [("host", value)];
        for (version, uri, headers, expected) in [
            (Version::HTTP_11, "/a?b", &host("h")[..], Ok("h/a?b")),
            (Version::HTTP_11, "/a", &host("H:80"), Ok("h/a")),
            (Version::HTTP_11, "/a", &host("h:8080"), Ok("h:8080/a")),
            (Version::HTTP_11, "/a", &host("[::1]:8080"), Ok("[::1]:8080/a")),
            // A port that is not there is the scheme's (RFC 3986, 3.2.3).
            (Version::HTTP_11, "/a", &host("h:"), Ok("h/a")),
            (Version::HTTP_11, "/a", &host("[::1]:"), Ok("[::1]/a")),
            (Version::HTTP_11, "/a", &host(":"), Err(400)),
            (Version::HTTP_11, "/a", &host("h:80:"), Err(400)),
            (Version::HTTP_11, "//x/a", &host("h"), Ok("h//x/a")),
            // The target's own authority counts: the other names what it is not.
            (Version::HTTP_11, "http://good/a", &host("evil"), Ok("good/a")),
            (Version::HTTP_2, "https://h/a", &[], Ok("h/a")),
            (Version::HTTP_2, "https://h/a", &host("h"), Ok("h/a")),
            (Version::HTTP_10, "/a", &[], Ok("origin/a")),
            (Version::HTTP_2, "https://h/a", &host("evil"), Err(400)),
            (Version::HTTP_11, "/a", &[], Err(400)),
            (Version::HTTP_11, "http://h/a", &[], Err(400)),
            (Version::HTTP_11, "/a", &[("host", "h"), ("host", "h")], Err(400)),
            (Version::HTTP_11, "/a", &host(""), Err(400)),
            (Version::HTTP_11, "/a", &host("u@h"), Err(400)),
            (Version::HTTP_11, "/a", &host("h/x"), Err(400)),
            (Version::HTTP_11, "/a", &host("h:x"), Err(400)),
            (Version::HTTP_11, "/a", &host("h, i"), Err(400)),
            (Version::HTTP_11, "ftp://h/a", &host("h"), Err(400)),
            (
                Version::HTTP_11,
                "/a",
                &[("host", "h"), ("content-length", "1"), ("transfer-encoding", "chunked")],
                Err(400),
            ),
        ] {
            let got = of(version, uri, headers);
            assert_eq!(got.as_deref().map_err(|status| *status), expected, "{uri} {headers:?}");
        }
    }
}
