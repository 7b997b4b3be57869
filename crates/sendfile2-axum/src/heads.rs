//! Heads of responses that are given again.
//!
//! What tower-http answers to a plain GET depends on the path and on the file's metadata alone. So
//! it is asked once, and its answer stands for as long as a `stat` finds the file it was given for.
//! For answers that are given at once a look at the file may be valid for a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use quick_cache::sync::Cache;
use tokio::time::Instant;

use crate::cache::{Found, Open, Root};
use crate::conditions::decides;

/// A path has any number of spellings of any length: no file has a longer one (`PATH_MAX`).
const LONGEST: usize = 4096;

#[derive(Debug)]
pub(crate) struct Heads {
    root: Arc<Root>,
    /// The encodings that a client accepts, which decide, too.
    encodings: bool,
    /// For how long a look at a file is valid, for answers that are given at once.
    validity: Duration,
    began: Instant,
    /// The answers by the request's path, as it was written.
    kept: Cache<Box<str>, Arc<Head>>,
}

#[derive(Debug)]
struct Head {
    path: PathBuf,
    /// The file is not kept open by this.
    open: Weak<Open>,
    headers: HeaderMap,
    /// The file's length.
    len: u64,
    /// When the file was looked at last: milliseconds after the beginning, or `NEVER`.
    looked: AtomicU64,
}

const NEVER: u64 = u64::MAX;

impl Heads {
    pub(crate) fn new(root: Arc<Root>, encodings: bool, validity: Duration) -> Arc<Self> {
        let (began, kept) = (Instant::now(), Cache::new(root.capacity()));
        Arc::new(Heads { root, encodings, validity, began, kept })
    }

    /// Whether what a client accepts decides.
    pub(crate) fn encodings(&self) -> bool {
        self.encodings
    }

    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The time for which a look at a file is valid, for answers that are given at once.
    pub(crate) fn validity(&self) -> Duration {
        self.validity
    }

    /// None yet, of the same directory, for a service that answers differently.
    pub(crate) fn anew(&self, encodings: bool, validity: Duration) -> Arc<Self> {
        Heads::new(Arc::clone(&self.root), encodings, validity)
    }

    /// Whether nothing but the path and the file decides on the answer, which may then be kept.
    pub(crate) fn plain<B>(&self, request: &Request<B>) -> bool {
        let decides = |name: &header::HeaderName| {
            decides(name) || (self.encodings && *name == header::ACCEPT_ENCODING)
        };
        request.method() == Method::GET
            && request.uri().path().len() <= LONGEST
            && !request.headers().keys().any(decides)
    }

    /// The answer to a plain request for `path`, if its file is still the one that it was.
    pub(crate) fn find(&self, path: &str) -> Option<(HeaderMap, Arc<Open>)> {
        let head = self.kept.get(path)?;
        match self.root.look(&head.path) {
            Ok(Found::File(open)) if std::ptr::eq(head.open.as_ptr(), &raw const *open) => {
                Some((head.headers.clone(), open))
            }
            _ => {
                self.kept.remove(path);
                None
            }
        }
    }

    /// As [`find`](Self::find), for a file that is shorter than `len`, where the last look at it may
    /// still be valid. Whoever reads the file must see to it that it has the length that it had then.
    pub(crate) fn find_lately(&self, path: &str, len: u64) -> Option<(HeaderMap, Arc<Open>)> {
        let head = self.kept.get(path)?;
        if head.len >= len {
            return None;
        }
        if self.validity.is_zero() {
            return self.find(path);
        }
        // Before the look: it is rather older than it seems.
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(NEVER);
        let looked = head.looked.load(Ordering::Relaxed);
        let valid =
            looked != NEVER && u128::from(now - looked.min(now)) < self.validity.as_millis();
        if let (true, Some(open)) = (valid, head.open.upgrade()) {
            return Some((head.headers.clone(), open));
        }
        let found = self.find(path)?;
        head.looked.store(now, Ordering::Relaxed);
        Some(found)
    }

    /// Keeps the answer to a plain request for `path`, which was found as `file`.
    pub(crate) fn keep<B>(
        &self,
        path: Box<str>,
        file: PathBuf,
        open: &Arc<Open>,
        to: &Response<B>,
    ) {
        if to.status() == StatusCode::OK {
            let (open, len) = (Arc::downgrade(open), open.len());
            let headers = to.headers().clone();
            let looked = AtomicU64::new(NEVER);
            self.kept.insert(path, Arc::new(Head { path: file, open, headers, len, looked }));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn not_every_spelling_is_kept() {
        let heads =
            Heads::new(Arc::new(Root::new("/".as_ref(), true).unwrap()), false, Duration::ZERO);
        for (spelling, plain) in [("./".repeat(2000), true), ("./".repeat(2100), false)] {
            let request = Request::get(format!("/{spelling}file")).body(()).unwrap();
            assert_eq!(heads.plain(&request), plain, "of {} bytes", spelling.len());
        }
    }
}
