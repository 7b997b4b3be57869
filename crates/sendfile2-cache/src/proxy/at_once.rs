//! Hits that take no waiting: for nothing of the disk's, and for no origin.

use http::{Method, Request, Response, Version};
use http_body::Body;

use super::answer::{Asked, has_wanted};
use super::find;
use super::key::Target;
use super::{Cache, CacheBody, is_for_origin, seconds, sent};
use crate::policy::{Known, RequestControl, Reuse};

impl Cache {
    /// Answers a GET over HTTP/1 from the store, as [`answer`](Self::answer) would, where that takes
    /// no waiting. `None` if `answer` is to be called; the request has then lost the fields that
    /// are of its connection only, as it would by that.
    ///
    /// Servers that are to be fast at hits call it first. Whoever puts layers around the service must
    /// do to this answer what they do.
    #[must_use]
    pub fn at_once<B: Body>(&self, request: &mut Request<B>) -> Option<Response<CacheBody>> {
        // With HTTP/2 there are many bodies at a time, of which none is to be in memory before it is
        // taken.
        if request.version() > Version::HTTP_11
            || *request.method() != Method::GET
            || !request.body().is_end_stream()
        {
            return None;
        }
        let target = Target::of(request, self.0.origins.authority()).ok()?;
        crate::policy::strip_hop_by_hop(request.headers_mut());
        let headers = request.headers();
        if is_for_origin(headers) {
            return None;
        }
        let (control, now) = (RequestControl::of(headers), seconds());
        let is_fresh = |known: &Known| known.reuse(&control, now) == Reuse::Fresh;
        let found = find::at_once(&self.0.store, &target, headers, is_fresh)?;
        let asked = Asked { method: request.method(), headers };
        let has_wanted = has_wanted(asked, &found.stored, &found.known);
        has_wanted.then(|| sent(asked, found, Reuse::Fresh, now))
    }
}
