//! The origins: where requests are sent, how long is waited for them, and which are left alone for a
//! while.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::header::Entry;
use http::uri::{Authority, Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::body::{BoxError, RequestBody};
use super::connection::Connector;
use super::health::{Checked, HealthCheck};
use super::incoming::{OriginBody, whole};
use super::interim::Interim;
use super::upload::Progress;
use crate::store::Key;

/// The time for which an origin is left alone that could not be reached, if there are others.
const LEFT_ALONE: Duration = Duration::from_secs(10);

/// The longest headers of an answer, and the number of its fields.
const HEADERS: usize = 64 << 10;
const FIELDS: usize = 200;

/// How one of several origins is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The request's target decides: the same origin for the same target, as long as it is well.
    Hash,
}

/// The longest that is waited for an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection is there.
    pub connect: Duration,
    /// From a request, or what came last of its body, until its answer's head.
    pub head: Duration,
    /// Until more of a body comes.
    pub stall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Timeouts { connect: seconds(5), head: seconds(60), stall: seconds(30) }
    }
}

/// The origins of a cache, and the connections to them.
pub struct Origins {
    pub(super) all: Vec<Origin>,
    pub(super) check: Option<HealthCheck>,
    choice: Choice,
    next: AtomicUsize,
    began: Instant,
    pub(super) timeouts: Timeouts,
    client: Client<HttpsConnector<Connector>, RequestBody>,
}

pub(super) struct Origin {
    scheme: Scheme,
    pub(super) authority: Authority,
    /// Until when it is left alone, in milliseconds from the beginning.
    pub(super) alone_until: AtomicU64,
    pub(super) checked: Checked,
}

impl Origin {
    pub(super) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }
}

/// Why origins cannot be used as they are given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// There is none.
    #[error("an origin is needed, such as http://127.0.0.1:8080")]
    None,
    /// No address of an origin.
    #[error("{0:?} is no origin: give http://HOST:PORT or https://HOST, without a path")]
    NotOne(String),
    /// The system's certificates cannot be read, by which those of https are judged.
    #[error("cannot read the system's certificates: {0}")]
    Certificates(std::io::Error),
}

/// Why no answer came.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The origin cannot be reached, or ended the connection.
    Unreachable { origin: String, why: BoxError },
    /// A time limit that has passed.
    Timeout { origin: String },
    /// The body of the request is too long,
    TooLong,
    /// does not come,
    SlowClient,
    /// or broke off: no fault of the origin's.
    BrokenClient,
}

impl NoAnswer {
    /// The origin that gave none; `None` where that was the client's doing.
    pub(super) fn origin(&self) -> Option<&str> {
        match self {
            NoAnswer::Unreachable { origin, .. } | NoAnswer::Timeout { origin } => Some(origin),
            NoAnswer::TooLong | NoAnswer::SlowClient | NoAnswer::BrokenClient => None,
        }
    }

    /// The one where there is no origin to ask, which [`Origins::new`] does not let happen.
    fn of_nobody() -> Self {
        NoAnswer::Timeout { origin: String::new() }
    }
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoAnswer::Unreachable { why, .. } => f.write_str(&whole(&**why)),
            NoAnswer::Timeout { .. } => f.write_str("it did not answer in time"),
            NoAnswer::TooLong => f.write_str("the request's body is too long"),
            NoAnswer::SlowClient => f.write_str("the request's body does not come"),
            NoAnswer::BrokenClient => f.write_str("the request's body broke off"),
        }
    }
}

/// A request as it goes to an origin.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// The host that it names.
    pub(super) authority: String,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

impl Origins {
    /// Origins with these addresses, such as `http://127.0.0.1:8080`; https is verified by the
    /// system's certificates.
    ///
    /// # Errors
    /// If there is none, if one of them is none, or if the system's certificates cannot be read.
    pub fn new(urls: &[Uri], choice: Choice, timeouts: Timeouts) -> Result<Self, OriginError> {
        let origin = |uri: &Uri| {
            let bare = uri.path_and_query().is_none_or(|path| path.as_str() == "/");
            match (uri.scheme(), uri.authority()) {
                (Some(scheme), Some(authority))
                    if bare
                        && (*scheme == Scheme::HTTP || *scheme == Scheme::HTTPS)
                        && !authority.as_str().contains('@')
                        && has_right_port(authority) =>
                {
                    let (scheme, authority) = (scheme.clone(), authority.clone());
                    let (alone_until, checked) = (AtomicU64::new(0), Checked::default());
                    Ok(Origin { scheme, authority, alone_until, checked })
                }
                _ => Err(OriginError::NotOne(uri.to_string())),
            }
        };
        let all: Vec<_> = urls.iter().map(origin).collect::<Result<_, _>>()?;
        if all.is_empty() {
            return Err(OriginError::None);
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(timeouts.connect));
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if all.iter().any(|origin| origin.scheme == Scheme::HTTPS) {
            builder.with_provider_and_native_roots(provider).map_err(OriginError::Certificates)?
        } else {
            // Nothing is verified where nothing is encrypted, and no certificates are needed.
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(|e| OriginError::Certificates(std::io::Error::other(e)))?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config)
        };
        let connector = builder.https_or_http().enable_http1().wrap_connector(Connector(http));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http1_max_buf_size(HEADERS)
            .http1_max_headers(FIELDS)
            .build(connector);
        let (next, began) = (AtomicUsize::new(0), Instant::now());
        Ok(Origins { all, check: None, choice, next, began, timeouts, client })
    }

    /// The authority of the first, which requests have that name none.
    pub(super) fn authority(&self) -> &str {
        self.all.first().map_or("", |origin| origin.authority.as_str())
    }

    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The origins in the order in which they are tried: those that are left alone come last, and
    /// those that are down behind them.
    fn order(&self, request: &Outgoing) -> Vec<&Origin> {
        let mut order: Vec<_> = self.all.iter().collect();
        match self.choice {
            Choice::RoundRobin => {
                let first = self.next.fetch_add(1, Ordering::Relaxed) % order.len().max(1);
                order.rotate_left(first);
            }
            // The one whose hash with the target is the highest: without it the next, which is
            // another one for each target, and nothing changes for the targets of others.
            Choice::Hash if order.len() > 1 => order.sort_by_cached_key(|origin| {
                let (url, of) = (origin.url(), [&request.authority, &request.path]);
                let key = Key::of(&[url.as_bytes(), of[0].as_bytes(), of[1].as_bytes()]);
                std::cmp::Reverse(*key.as_bytes())
            }),
            Choice::Hash => {}
        }
        let now = self.now();
        order.sort_by_key(|origin| {
            (origin.checked.is_down(), origin.alone_until.load(Ordering::Relaxed) > now)
        });
        order
    }

    /// Sends a request without a body, to another origin where the first cannot be reached; once
    /// more where a connection ended without an answer, which a request that changes nothing may
    /// be.
    pub(super) async fn ask(
        &self,
        request: &Outgoing,
        interim: Option<&Interim>,
    ) -> Result<Response<OriginBody>, NoAnswer> {
        let order = self.order(request);
        let tries = order.len().max(2);
        let mut failed = None;
        for origin in order.iter().cycle().take(tries) {
            let body = RequestBody::new(Empty::new().map_err(|never| match never {}));
            match self.send(origin, request, body, interim).await {
                Ok(response) => return Ok(response),
                // It has had its time.
                Err(e @ NoAnswer::Timeout { .. }) => return Err(e),
                Err(e) => failed = Some(e),
            }
        }
        Err(failed.unwrap_or_else(NoAnswer::of_nobody))
    }

    /// Sends a request with a body, once.
    pub(super) async fn ask_with(
        &self,
        request: &Outgoing,
        body: RequestBody,
        interim: Option<&Interim>,
    ) -> Result<Response<OriginBody>, NoAnswer> {
        match self.order(request).first() {
            Some(origin) => self.send(origin, request, body, interim).await,
            None => Err(NoAnswer::of_nobody()),
        }
    }

    async fn send(
        &self,
        origin: &Origin,
        request: &Outgoing,
        body: RequestBody,
        interim: Option<&Interim>,
    ) -> Result<Response<OriginBody>, NoAnswer> {
        let result = self.sent(origin, request, body, interim).await;
        if result.as_ref().is_err_and(|e| e.origin().is_some()) {
            let until = self.now().saturating_add(LEFT_ALONE.as_millis().try_into().unwrap_or(0));
            origin.alone_until.store(until, Ordering::Relaxed);
            metrics::counter!("sendfile2_cache_origin_failures_total").increment(1);
        }
        result
    }

    pub(super) async fn sent(
        &self,
        origin: &Origin,
        request: &Outgoing,
        body: RequestBody,
        interim: Option<&Interim>,
    ) -> Result<Response<OriginBody>, NoAnswer> {
        let target = Uri::builder()
            .scheme(origin.scheme.clone())
            .authority(origin.authority.clone())
            .path_and_query(&*request.path)
            .build();
        let unreachable = |why: BoxError| NoAnswer::Unreachable { origin: origin.url(), why };
        let (progress, body) = Progress::of(body);
        let mut outgoing = Request::new(body);
        *outgoing.uri_mut() = target.map_err(|e| unreachable(e.into()))?;
        *outgoing.method_mut() = request.method.clone();
        *outgoing.version_mut() = Version::HTTP_11;
        *outgoing.headers_mut() = request.headers.clone();
        let host = HeaderValue::try_from(&request.authority).map_err(|e| unreachable(e.into()))?;
        outgoing.headers_mut().insert(header::HOST, host);
        if let Some(interim) = interim.cloned() {
            hyper::ext::on_informational(&mut outgoing, move |head| {
                interim.push(head.status(), head.headers());
            });
        }
        let mut asked = pin!(self.client.request(outgoing));
        // As long as a body moves, its answer is not late.
        let answer = loop {
            let latest = progress.moved() + self.timeouts.head;
            match tokio::time::timeout_at(latest, asked.as_mut()).await {
                Err(_) if progress.moved() + self.timeouts.head > latest => {}
                answer => break answer,
            }
        };
        if !matches!(answer, Ok(Ok(_))) {
            if let Some(of_client) = progress.of_client(answer.is_err()) {
                return Err(of_client);
            }
        }
        match answer {
            Ok(Ok(response)) if response.status().is_informational() => {
                Err(unreachable("it changes to a protocol that nobody asked for".into()))
            }
            Ok(Ok(response)) if is_coded(response.headers()) => {
                Err(unreachable("its answer has a coding that was not asked for".into()))
            }
            Ok(Ok(mut response)) => {
                of_one_length(&request.method, &mut response);
                let target = format!("{}{}", request.authority, request.path);
                let of = format!("{target} of the origin {}", origin.url());
                Ok(response.map(|body| OriginBody::new(body, of)))
            }
            Ok(Err(e)) => Err(unreachable(e.into())),
            Err(_) => Err(NoAnswer::Timeout { origin: origin.url() }),
        }
    }
}

/// Whether a body has a transfer coding that nobody here undoes: passed on without it, as it is of
/// one connection, the body would be taken for a plain one. Of a name that nobody knows it is said
/// for nothing.
fn is_coded(headers: &HeaderMap) -> bool {
    const KNOWN: [&str; 5] = ["compress", "deflate", "gzip", "x-compress", "x-gzip"];
    let names = || {
        let lines = headers.get_all(header::TRANSFER_ENCODING).iter();
        let all = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        all.map(<[u8]>::trim_ascii)
    };
    let is = |name: &[u8], known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    let chunked = names().filter(|name| is(name, "chunked")).count();
    chunked > 1 || names().any(|name| KNOWN.iter().any(|known| is(name, known)))
}

/// Whether the port is one, or none is named.
fn has_right_port(authority: &Authority) -> bool {
    authority.as_str() == authority.host() || authority.port_u16().is_some_and(|port| port > 0)
}

/// Makes `Content-Length` what the body is (RFC 9112, 6.3): it does not count beside
/// `Transfer-Encoding`, and may be there several times. Passed on as it came, a client would take
/// the rest of the body for another answer.
fn of_one_length(asked: &Method, response: &mut Response<Incoming>) {
    let chunked = response.headers().contains_key(header::TRANSFER_ENCODING);
    let has_body = *asked != Method::HEAD && response.status() != StatusCode::NOT_MODIFIED;
    let len = response.body().size_hint().exact().filter(|_| has_body);
    match response.headers_mut().entry(header::CONTENT_LENGTH) {
        Entry::Occupied(entry) if chunked => drop(entry.remove_entry_mult()),
        Entry::Occupied(mut entry) => {
            if let Some(len) = len {
                entry.insert(len.into());
            }
        }
        Entry::Vacant(_) => {}
    }
}

impl fmt::Debug for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.all.iter().map(Origin::url).collect();
        f.debug_struct("Origins")
            .field("all", &names)
            .field("choice", &self.choice)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn origins(urls: &[&str]) -> Origins {
        let urls: Vec<_> = urls.iter().map(|url| url.parse().unwrap()).collect();
        Origins::new(&urls, Choice::Hash, Timeouts::default()).unwrap()
    }

    fn first(origins: &Origins, target: usize) -> String {
        let (authority, path) = ("h".to_owned(), format!("/{target}"));
        let headers = HeaderMap::new();
        let request = Outgoing { method: Method::GET, authority, path, headers };
        origins.order(&request)[0].url()
    }

    #[test]
    fn without_an_origin_only_its_targets_move() {
        const TARGETS: usize = 2000;
        let all = ["http://a", "http://b", "http://c", "http://d"];
        let before = origins(&all);
        // It is left alone; and it is not one of them any more, in another order.
        let alone = origins(&all);
        alone.all[1].alone_until.store(u64::MAX, Ordering::Relaxed);
        let fewer = origins(&["http://d", "http://a", "http://c"]);
        for origins in [alone, fewer] {
            let mut moved = std::collections::HashMap::<_, usize>::new();
            for target in 0..TARGETS {
                let (then, now) = (first(&before, target), first(&origins, target));
                if then == "http://b" {
                    *moved.entry(now).or_default() += 1;
                } else {
                    assert_eq!(then, now);
                }
            }
            // About a quarter has moved, to all others alike.
            let third = TARGETS / 4 / 3;
            assert!(moved.len() == 3, "{moved:?}");
            assert!(moved.values().all(|n| (third / 2..third * 2).contains(n)), "{moved:?}");
        }
    }
}
