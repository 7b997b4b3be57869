//! Whether a response may be stored (RFC 9111, 3).

use http::{HeaderMap, Method, StatusCode, header};

use super::control::{RequestControl, ResponseControl};
use super::freshness::{self, Times};
use super::known::{Kind, Known};
use super::partial::{Part, strong_etag};
use super::vary::Vary;

/// A request and the head of its response.
#[derive(Debug, Clone, Copy)]
pub struct Exchange<'a> {
    /// The request's method.
    pub method: &'a Method,
    /// The request's fields.
    pub request: &'a HeaderMap,
    /// The response's status.
    pub status: StatusCode,
    /// The response's fields.
    pub response: &'a HeaderMap,
    /// When they were sent and received.
    pub times: Times,
}

/// The reasons why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Only answers to GET are.
    Method,
    /// The request says `no-store`.
    Request,
    /// The response says `no-store`, or `must-understand` with a status that is not understood.
    NoStore,
    /// A response for one user.
    Private,
    /// The request had `Authorization`, and nothing says that others may have the answer.
    Authorization,
    /// A response that depends on more than the request's fields (`Vary: *`).
    Vary,
    /// A response that is not final, or says that something has not changed.
    Status,
    /// A part that is of no known whole, or whose lengths do not fit.
    Part,
    /// A stale response, and there is nothing to validate it by.
    Useless,
}

impl Refusal {
    /// The reason in a word, for [`CacheStatus`](super::CacheStatus).
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Refusal::Method => "method",
            Refusal::Request => "request-no-store",
            Refusal::NoStore => "no-store",
            Refusal::Private => "private",
            Refusal::Authorization => "authorization",
            Refusal::Vary => "vary",
            Refusal::Status => "status",
            Refusal::Part => "part",
            Refusal::Useless => "stale",
        }
    }
}

/// Whether this cache does what is specified for storing answers of this status.
fn is_understood(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 206 | 300 | 301 | 302 | 303 | 307 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// Whether an answer of this status is about the fields of its own request, or about who sent it: one
/// that was asked for other bytes, with other conditions, or by somebody else is not answered by it
/// (RFC 6585 forbids to store the last four).
fn is_of_one_request(status: StatusCode) -> bool {
    matches!(status.as_u16(), 304 | 412 | 416 | 417 | 428 | 429 | 431 | 511)
}

/// Whether an answer of this status may be taken for fresh though it does not say so.
fn is_heuristic(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 206 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

impl Exchange<'_> {
    /// Returns the facts of the response, if it may be stored, or else why not.
    ///
    /// # Errors
    /// The first reason that was found.
    pub fn judge(&self) -> Result<Known, Refusal> {
        if *self.method != Method::GET {
            return Err(Refusal::Method);
        }
        self.judge_for_get()
    }

    /// As [`judge`](Self::judge), for an answer that will be sent to those who GET, whatever the
    /// method of its request was: an answer to POST whose `Content-Location` is its own target, and
    /// that says how long it is fresh (RFC 9110, 9.3.3).
    ///
    /// # Errors
    /// The first reason that was found.
    pub fn judge_of_post(&self) -> Result<Known, Refusal> {
        let control = ResponseControl::of(self.response);
        let says = freshness::explicit(&control, self.response, self.times.answered);
        if self.status != StatusCode::OK || says.is_none() {
            return Err(Refusal::Method);
        }
        self.judge_for_get()
    }

    fn judge_for_get(&self) -> Result<Known, Refusal> {
        let control = ResponseControl::of(self.response);
        let authorized = self.request.contains_key(header::AUTHORIZATION);
        let shared = control.public || control.must_revalidate || control.s_maxage.is_some();
        let part = self.status == StatusCode::PARTIAL_CONTENT;
        if RequestControl::of(self.request).no_store {
            return Err(Refusal::Request);
        }
        if self.status.is_informational() || is_of_one_request(self.status) {
            return Err(Refusal::Status);
        }
        if control.must_understand {
            if !is_understood(self.status) {
                return Err(Refusal::NoStore);
            }
        } else if control.no_store {
            return Err(Refusal::NoStore);
        }
        if control.private {
            return Err(Refusal::Private);
        }
        if authorized && !shared {
            return Err(Refusal::Authorization);
        }
        if Vary::of(self.response).is_none() {
            return Err(Refusal::Vary);
        }
        if part && (strong_etag(self.response).is_none() || Part::of(self.response).is_none()) {
            return Err(Refusal::Part);
        }
        let known = self.known(&control);
        let usable = known.lifetime > known.age
            || known.while_revalidate > 0
            || known.if_error.is_some_and(|seconds| seconds > 0);
        if known.validator || (usable && !known.no_cache) {
            Ok(known)
        } else {
            Err(Refusal::Useless)
        }
    }

    fn known(&self, control: &ResponseControl) -> Known {
        let (headers, answered) = (self.response, self.times.answered);
        let lifetime = freshness::explicit(control, headers, answered).unwrap_or_else(|| {
            if is_heuristic(self.status) || control.public {
                freshness::heuristic(headers, answered)
            } else {
                0
            }
        });
        let part = self.status == StatusCode::PARTIAL_CONTENT;
        Known {
            kind: if part { Kind::Part } else { Kind::Whole },
            status: self.status.as_u16(),
            received: u32::try_from(answered).unwrap_or(u32::MAX),
            age: freshness::initial_age(headers, self.times),
            lifetime,
            while_revalidate: control.stale_while_revalidate.unwrap_or(0),
            if_error: control.stale_if_error,
            no_cache: control.no_cache,
            must_revalidate: control.must_revalidate || control.s_maxage.is_some(),
            immutable: control.immutable,
            validator: headers.contains_key(header::ETAG)
                || freshness::single_date(headers, &header::LAST_MODIFIED).is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
