//! A reader that others have gone on without: it asks the origin itself, and goes on where it was.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Response, header};

use super::body::Passing;
use super::flight::Shared;
use super::incoming::OriginBody;
use super::origin::{NoAnswer, Outgoing};
use super::{Inner, Wish};
use crate::policy::{self, Kind};

/// The fields that must be the same in another answer.
const SAME: [http::HeaderName; 4] =
    [header::ETAG, header::LAST_MODIFIED, header::CONTENT_TYPE, header::CONTENT_ENCODING];

/// The means to ask for a body again, and to know that it is the same.
pub(super) struct Again {
    inner: Arc<Inner>,
    outgoing: Outgoing,
    status: http::StatusCode,
    headers: HeaderMap,
    /// From where on it is read.
    from: u64,
    /// The hash of what was read, where no strong entity tag says that it is the same.
    read: Option<Box<blake3::Hasher>>,
}

impl std::fmt::Debug for Again {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Again").field("from", &self.from).finish_non_exhaustive()
    }
}

fn has_strong_tag(headers: &HeaderMap) -> bool {
    headers.get(header::ETAG).is_some_and(|tag| tag.as_bytes().starts_with(b"\""))
}

impl Inner {
    /// Returns the means for a reader of this answer. A body that has a length is left to the disk's
    /// own failures: that it could be asked for again is not worth a hash of each.
    pub(super) fn again(self: &Arc<Self>, wish: &Wish, shared: &Shared) -> Option<Box<Again>> {
        let strong = has_strong_tag(&shared.stored.headers);
        let worth = strong || shared.content.length().is_none();
        if !worth || shared.known.kind != Kind::Whole {
            return None;
        }
        let mut outgoing = self.outgoing(&wish.target, http::Method::GET, &wish.headers);
        policy::without_conditions(&mut outgoing.headers);
        let mut headers = HeaderMap::new();
        for name in SAME {
            if let Some(value) = shared.stored.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        Some(Box::new(Again {
            inner: Arc::clone(self),
            outgoing,
            status: shared.stored.status,
            headers,
            from: 0,
            read: (!strong).then(Box::default),
        }))
    }
}

impl Again {
    /// Sets from where on it is read.
    pub(super) fn seek(&mut self, from: u64) {
        self.from = from;
    }

    /// Notes what was read.
    pub(super) fn read(&mut self, bytes: &[u8]) {
        if let Some(read) = &mut self.read {
            read.update(bytes);
        }
    }

    /// Asks, and returns the body behind what was read, if it is the same up to there.
    pub(super) async fn body(self, at: u64) -> io::Result<Passing> {
        let Again { inner, outgoing, status, headers, from, read } = self;
        let stall = inner.origins.timeouts.stall;
        // A task of its own: what it sends is not for several threads.
        let target = format!("{}{}", outgoing.authority, outgoing.path);
        let asked = tokio::spawn(async move { inner.origins.ask(&outgoing, None).await });
        let response = asked.await.map_err(io::Error::other)?;
        let response = response.map_err(|e: NoAnswer| {
            let origin = e.origin().unwrap_or_default();
            io::Error::other(format!("no answer from the origin {origin} for {target}: {e}"))
        })?;
        let another = || io::Error::other(format!("{target}: the origin sends another answer now"));
        if response.status() != status || !is_same(&headers, &response) {
            return Err(another());
        }
        let mut body = Passing::new(response.into_body(), stall);
        let (mut done, mut now) = (0, blake3::Hasher::new());
        while done < at {
            let piece = body.next().await.ok_or_else(another)??;
            let before = from.saturating_sub(done).min(piece.len() as u64);
            let here = (at - done).min(piece.len() as u64);
            let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
            if read.is_some() && before < here {
                now.update(&piece[index(before)..index(here)]);
            }
            done += here;
            body.put_back(piece.slice(index(here)..));
        }
        if read.is_some_and(|read| read.finalize() != now.finalize()) {
            return Err(another());
        }
        Ok(body)
    }
}

fn is_same(headers: &HeaderMap, response: &Response<OriginBody>) -> bool {
    SAME.iter().all(|name| headers.get(name) == response.headers().get(name))
}

/// Returns the next bytes of a body, none at its end.
pub(super) async fn next(body: &mut Passing) -> io::Result<Bytes> {
    while let Some(piece) = body.next().await {
        let piece = piece?;
        if !piece.is_empty() {
            return Ok(piece);
        }
    }
    Ok(Bytes::new())
}
