//! The proxy: a service that answers from the store, or asks an origin and stores what it may.

mod again;
mod answer;
mod at_once;
mod body;
mod changes;
mod connection;
mod fetch;
mod find;
mod flight;
mod get;
mod health;
mod incoming;
mod interim;
mod key;
mod origin;
mod pass;
mod rest;
mod upload;

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use quick_cache::sync::Cache as Remembered;
use tokio::sync::watch;
use tower_service::Service;

use answer::{Asked, answer, has_wanted};
use changes::{Asking, Changes};
use fetch::Ask;
use find::Found;
use flight::Flights;
use key::Target;
use origin::{NoAnswer, Outgoing};

use crate::policy::{CacheStatus, RequestControl, Reuse};
use crate::store::{Ban, Key, Store, StoreError};

pub use body::CacheBody;
pub use health::{HealthCheck, OriginState};
pub use interim::{Interim, WithInterim};
pub use origin::{Choice, OriginError, Origins, Timeouts};

/// The limits of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The seconds for which a stale answer may stand for one that an origin does not give, where
    /// nobody says how long, or that it must not.
    pub stale_if_error: u32,
    /// The time for which it is remembered that an answer is not stored: requests for it do not wait
    /// for one another.
    pub uncacheable: Duration,
    /// The longest body of a request, in bytes.
    pub request_body: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { stale_if_error: 60, uncacheable: Duration::from_secs(5), request_body: 1 << 30 }
    }
}

/// The targets whose answers are remembered as not stored.
const REMEMBERED: usize = 16 << 10;

/// A caching reverse proxy, as a service: for the command, or in somebody's own server. A shared
/// handle: clone it.
///
/// An [`Interim`] in a request's extensions is where interim answers (1xx) go. An [`http::uri::Scheme`]
/// there is the one that the client speaks, where the request's target names none: HTTPS with TLS.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

struct Inner {
    store: Store,
    origins: Origins,
    options: Limits,
    flights: Arc<Flights>,
    changes: Arc<Changes>,
    /// The requests whose answers were not stored.
    uncacheable: Remembered<Key, Uncacheable>,
    /// The answers that are on their way into the store.
    filling: Arc<watch::Sender<usize>>,
}

/// A request whose answer was not stored.
#[derive(Debug, Clone, Copy)]
struct Uncacheable {
    /// Until when it counts, in seconds since 1970.
    until: u64,
    /// Whether it was too large for the store, which nobody had said before.
    too_large: bool,
}

/// Now, in seconds since 1970.
fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Cache {
    /// A cache of what these origins answer, in this store.
    #[must_use]
    pub fn new(store: Store, origins: Origins, limits: Limits) -> Self {
        Cache(Arc::new(Inner {
            store,
            origins,
            options: limits,
            flights: Arc::default(),
            changes: Arc::default(),
            uncacheable: Remembered::new(REMEMBERED),
            filling: Arc::new(watch::Sender::new(0)),
        }))
    }

    /// A cache in the place of this one, in the same store: what is banned or changes by one of them
    /// is not stored by the other any more.
    #[must_use]
    pub fn renewed(&self, origins: Origins, limits: Limits) -> Self {
        Cache(Arc::new(Inner {
            store: self.0.store.clone(),
            origins,
            options: limits,
            flights: Arc::clone(&self.0.flights),
            changes: Arc::clone(&self.0.changes),
            uncacheable: Remembered::new(REMEMBERED),
            filling: Arc::clone(&self.0.filling),
        }))
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Bans what is stored, and what is being asked for; see [`Store::ban`]. Waits for the disk.
    ///
    /// # Errors
    /// As [`Store::ban`].
    pub fn ban(&self, ban: Ban) -> Result<(), StoreError> {
        self.0.changes.all_changed();
        self.0.flights.forget_all();
        self.0.store.ban(ban)
    }

    /// The ban of the answers to this URL, all variants of them; `None` if it is none of `http` or
    /// `https` with a host. The schemes differ only in the port that need not be named.
    #[must_use]
    pub fn ban_of_url(url: &http::Uri) -> Option<Ban> {
        Target::of_url(url).map(|target| Ban::Key(target.key()))
    }

    /// The ban of the answers to all URLs that begin with this one; as [`ban_of_url`](Self::ban_of_url).
    #[must_use]
    pub fn ban_of_prefix(url: &http::Uri) -> Option<Ban> {
        Target::of_url(url).map(|target| Ban::Prefix(target.id()))
    }

    /// The number of answers that are on their way into the store.
    #[must_use]
    pub fn filling(&self) -> usize {
        *self.0.filling.borrow()
    }

    /// Waits until no answer is on its way into the store.
    pub async fn filled(&self) {
        let mut filling = self.0.filling.subscribe();
        // Its sender is here.
        let _ = filling.wait_for(|filling| *filling == 0).await;
    }

    /// Answers a request.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<CacheBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut request = request;
        if let Some(response) = self.at_once(&mut request) {
            return response;
        }
        let (version, head) = (request.version(), *request.method() == Method::HEAD);
        let interim = request.extensions().get::<Interim>().cloned();
        let interim = interim.filter(|_| version == Version::HTTP_11);
        interim.iter().for_each(Interim::open);
        let response = self.0.answer(request, interim.clone()).await;
        if let Some(interim) = interim {
            interim.written().await;
        }
        // A server of HTTP/2 would send it.
        if head { response.map(|_| CacheBody::text("")) } else { response }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("origins", &self.0.origins).finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for Cache
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<CacheBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let cache = self.clone();
        Box::pin(async move { Ok(cache.answer(request).await) })
    }
}

/// An answer of this cache's own.
fn own(status: StatusCode, text: &'static str) -> Response<CacheBody> {
    let mut response = Response::new(CacheBody::text(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    if !text.is_empty() {
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    }
    response
}

fn failed(why: &NoAnswer) -> Response<CacheBody> {
    count("failed");
    match why {
        NoAnswer::Timeout { .. } => {
            own(StatusCode::GATEWAY_TIMEOUT, "the origin did not answer in time\n")
        }
        NoAnswer::TooLong => own(StatusCode::PAYLOAD_TOO_LARGE, ""),
        NoAnswer::SlowClient => own(StatusCode::REQUEST_TIMEOUT, ""),
        NoAnswer::BrokenClient => own(StatusCode::BAD_REQUEST, ""),
        NoAnswer::Unreachable { .. } => {
            own(StatusCode::BAD_GATEWAY, "the origin cannot be reached\n")
        }
    }
}

/// The answer to who is sent a part, or a 304, without having asked for it.
fn unasked() -> Response<CacheBody> {
    count("failed");
    own(StatusCode::BAD_GATEWAY, "the origin answered what was not asked for\n")
}

fn count(result: &'static str) {
    const NAME: &str = "sendfile2_cache_requests_total";
    match result {
        // The most frequent one is found without making a name for it each time.
        "hit" => metrics::counter!(NAME, "result" => "hit").increment(1),
        result => metrics::counter!(NAME, "result" => result).increment(1),
    }
}

/// Whether its conditions are for the origin (RFC 9111, 4.3.2).
fn is_for_origin(headers: &HeaderMap) -> bool {
    [header::IF_MATCH, header::IF_UNMODIFIED_SINCE].iter().any(|name| headers.contains_key(name))
}

/// Makes the answer of what was found, which may be sent without an origin.
fn sent(asked: Asked<'_>, found: Box<Found>, reuse: Reuse, now: u64) -> Response<CacheBody> {
    count(if reuse == Reuse::Fresh { "hit" } else { "stale" });
    let Found { hit, known, stored, .. } = *found;
    let ttl = Some(known.fresh_for(now));
    let status = CacheStatus { hit: true, ttl, ..CacheStatus::default() };
    answer(asked, stored, &known, &answer::Content::Hit(hit), (now, status), None)
}

/// A request to GET or HEAD that is answered from the store, or by an origin's answer to GET.
struct Wish {
    target: Target,
    method: Method,
    headers: HeaderMap,
    control: RequestControl,
    interim: Option<Interim>,
}

impl Wish {
    fn asked(&self) -> Asked<'_> {
        Asked { method: &self.method, headers: &self.headers }
    }

    /// Whether an answer of this status may be one to this request.
    fn has_asked_for(&self, status: StatusCode) -> bool {
        let has = |name| self.headers.contains_key(name);
        match status {
            StatusCode::PARTIAL_CONTENT => has(header::RANGE),
            StatusCode::NOT_MODIFIED => {
                has(header::IF_NONE_MATCH) || has(header::IF_MODIFIED_SINCE)
            }
            _ => true,
        }
    }

    fn ask(&self, outgoing: Outgoing, old: Option<Box<Found>>, asking: Asking, wanted: Key) -> Ask {
        let (target, asked) = (self.target.clone(), self.headers.clone());
        let (interim, too_large) = (self.interim.clone(), false);
        Ask { target, asked, outgoing, old, interim, asking, wanted, too_large }
    }
}

impl Inner {
    async fn answer<B>(
        self: &Arc<Self>,
        request: Request<B>,
        interim: Option<Interim>,
    ) -> Response<CacheBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let target = match Target::of(&request, self.origins.authority()) {
            Ok(target) => target,
            Err(status) => return own(status, ""),
        };
        // First: what the origin does not see must not decide which answer this is.
        let mut request = request;
        crate::policy::strip_hop_by_hop(request.headers_mut());
        crate::policy::join_cookies(request.headers_mut());
        let gets = matches!(*request.method(), Method::GET | Method::HEAD);
        if !gets || is_for_origin(request.headers()) || !request.body().is_end_stream() {
            return self.pass(target, request, interim).await;
        }
        let (head, _) = request.into_parts();
        let control = RequestControl::of(&head.headers);
        let (method, headers) = (head.method, head.headers);
        let wish = Wish { target, method, headers, control, interim };
        if wish.method == Method::HEAD { self.head(wish).await } else { self.get(wish).await }
    }

    /// Answers from the store, if that may be; or returns what there is, where it is for use after
    /// it was validated or completed, and why.
    async fn stored(
        self: &Arc<Self>,
        wish: &Wish,
    ) -> Result<Response<CacheBody>, (find::Place, &'static str)> {
        let place = find::find(&self.store, &wish.target, &wish.headers).await;
        let found = match place {
            find::Place::Found(found) => found,
            find::Place::Unknown => return Err((place, "uri-miss")),
            find::Place::Another(_) => return Err((place, "vary-miss")),
        };
        let now = seconds();
        let reuse = found.known.reuse(&wish.control, now);
        let why = match reuse {
            _ if !has_wanted(wish.asked(), &found.stored, &found.known) => "partial",
            Reuse::Validate => "stale",
            Reuse::Asked => "request",
            Reuse::Fresh | Reuse::Stale | Reuse::WhileRevalidating => {
                if reuse == Reuse::WhileRevalidating {
                    self.revalidate(wish, &found);
                }
                return Ok(sent(wish.asked(), found, reuse, now));
            }
        };
        Err((find::Place::Found(found), why))
    }

    /// Remembers for a while that an answer was not stored.
    fn remember(&self, wanted: Key, time: Duration, too_large: bool) {
        let until = seconds().saturating_add(time.as_secs().max(1));
        self.uncacheable.insert(wanted, Uncacheable { until, too_large });
    }

    fn remembers(&self, wanted: Key) -> Option<Uncacheable> {
        self.uncacheable.get(&wanted).filter(|it| it.until > seconds())
    }

    fn trouble(&self, target: &Target, why: &NoAnswer) {
        if let Some(origin) = why.origin() {
            tracing::warn!("no answer from the origin {origin} for {}: {why}", target.id());
        }
    }
}
