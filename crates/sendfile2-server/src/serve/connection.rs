//! Connections: accepted within a limit, served, and ended.

use std::any::Any;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::{Body, HttpBody};
use axum::http::uri::Scheme;
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics::{counter, gauge};
use rustix::net::RecvFlags;
use sendfile2::{Engine, Options};
use sendfile2_axum::{Io, Unread, ZeroCopyLayer, make_room};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::Interim;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConnection;
use tower_http::catch_panic::{CatchPanic, CatchPanicLayer};
use tower_layer::Layer;
use tower_service::Service;

use super::access::Line;
use super::body::{Answer, Uncounted};
use super::cached;
use super::limits::{Addresses, Counted};
use super::log::Log;
use super::meters::Meters;
use super::request::tells_its_host;
use super::site::{Content, Files, Site, Terms};
use super::sockets::Listening;
use super::streams::{Streams, Telling};
use super::timeouts::{Clock, Pulse, Timed};
use crate::output::Seldom;

pub(super) struct Server {
    /// The part that a reload replaces: a connection keeps the terms that it began with, and takes the newest
    /// site for each request.
    pub(super) site: ArcSwap<Site>,
    pub(super) log: Log,
    pub(super) meters: Meters,
    clock: Arc<Clock>,
    addresses: Arc<Addresses>,
    limit: Arc<Semaphore>,
    pub(super) connections: u32,
    /// The announcement of the end to connections that have not asked for anything yet.
    ending: watch::Sender<bool>,
    trouble: Seldom,
}

/// The protocol of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// TLS, if there is a certificate.
    Tls,
    /// HTTP, beside listeners for TLS, to which its requests may be redirected.
    Plain,
}

/// A connection, as its requests know it.
struct Peer {
    address: Option<IpAddr>,
    /// The address as origins are told it, once they were.
    told: OnceLock<HeaderValue>,
    /// The port of HTTPS that requests are redirected to.
    redirect: bool,
    /// Makes mapped bodies, on plain TCP or a unix socket.
    mapped: Option<ZeroCopyLayer>,
    pulse: Arc<Pulse>,
    /// Where interim answers go, with HTTP/1.
    interim: Option<Interim>,
}

impl Peer {
    /// Returns its address as origins are told it.
    fn told(&self) -> Option<HeaderValue> {
        let address = self.address?;
        // Letters, digits and a few signs are a value.
        let text = || HeaderValue::try_from(address.to_string());
        Some(self.told.get_or_init(|| text().unwrap_or(HeaderValue::from_static(""))).clone())
    }
}

/// The longest headers of a request with HTTP/1, and about what hyper keeps of an answer that is not
/// taken.
const HEADERS: usize = 32 << 10;

/// Streams at a time on a connection of HTTP/2: as few as its RFC recommends. Each may keep as much as
/// the client's window lets it, and this, until the client takes it.
const STREAMS: u32 = 100;
const OF_STREAM: usize = 32 << 10;

/// The bytes that TLS keeps of an answer: a record.
const OF_TLS: usize = 16 << 10;

/// Returns how HTTP/1 is spoken. The time for headers is the clock's affair.
pub(super) fn http1() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.max_buf_size(HEADERS)
        // A client may end its side when it has asked. And hyper then reads nothing while it
        // answers, for which it would keep 8 KiB more.
        .half_close(true);
    http
}

fn http2(streams: Streams) -> auto::Builder<Streams> {
    let mut http = auto::Builder::new(streams);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(OF_STREAM);
    http.http2_only()
}

/// The first bytes of a connection of HTTP/2.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An accepted connection, by the kind of its socket.
pub(super) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy)]
enum Http {
    One,
    Two,
}

impl Listening {
    /// Accepts a connection; returns also the address that it is of.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, Option<IpAddr>)> {
        loop {
            match self.accept_once().await {
                // In the place of files that were only kept.
                Err(e) if make_room(&e) => {}
                accepted => return accepted,
            }
        }
    }

    async fn accept_once(&self) -> io::Result<(Accepted, Option<IpAddr>)> {
        match self {
            Listening::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().await?;
                Ok((Accepted::Tcp(stream), Some(peer.ip().to_canonical())))
            }
            Listening::Unix(unix, _) => {
                let (stream, _) = unix.accept().await?;
                Ok((Accepted::Unix(stream), None))
            }
        }
    }
}

impl Accepted {
    pub(super) fn io(self, options: Options) -> Result<Io, sendfile2::Error> {
        match self {
            Accepted::Tcp(stream) => Io::new(stream, options),
            Accepted::Unix(stream) => Io::from_unix(stream, options),
        }
    }

    /// Waits until the first bytes show which HTTP is spoken, and leaves them where they are.
    async fn spoken(&self) -> io::Result<Http> {
        loop {
            let ready = match self {
                Accepted::Tcp(stream) => stream.ready(Interest::READABLE).await?,
                Accepted::Unix(stream) => stream.ready(Interest::READABLE).await?,
            };
            let spoken = match self {
                Accepted::Tcp(stream) => stream.try_io(Interest::READABLE, || look(stream)),
                Accepted::Unix(stream) => stream.try_io(Interest::READABLE, || look(stream)),
            };
            match spoken {
                // Nothing comes after what is there.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !ready.is_read_closed() => {}
                spoken => return spoken,
            }
        }
    }
}

/// A connection, as the gauge counts it, however it ends.
struct Open;

impl Open {
    fn new() -> Self {
        gauge!("sendfile2_http_connections").increment(1);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        gauge!("sendfile2_http_connections").decrement(1);
        // Of a body, in the midst of its answer: the client sees that it is cut short.
        if std::thread::panicking() {
            counter!("sendfile2_http_panics_total").increment(1);
        }
    }
}

/// Looks at the first bytes; would-block until it is clear: tokio then waits for more.
fn look(socket: impl AsFd) -> io::Result<Http> {
    let mut first = [0; HTTP2.len()];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let (seen, _) = rustix::net::recv(socket, &mut first[..], flags)?;
    match &first[..seen] {
        [] => Err(io::ErrorKind::UnexpectedEof.into()),
        HTTP2 => Ok(Http::Two),
        seen if HTTP2.starts_with(seen) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(Http::One),
    }
}

/// Returns the error that was not the client's doing, where a connection ended because it could not
/// be written to.
fn unsendable<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a sendfile2::Error> {
    // A body's own error was told when it arose.
    if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_user) {
        return None;
    }
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        // An error in an `io::Error` is not among the sources of that.
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        let ours = inner.downcast_ref::<sendfile2::Error>()?;
        (!matches!(ours, sendfile2::Error::Aborted)).then_some(ours)
    })
}

/// Returns what runs the streams of a connection of HTTP/2.
fn streams(terms: &Terms, http: Http, pulse: &Pulse) -> Option<Streams> {
    let Http::Two = http else {
        pulse.awaits_headers();
        return None;
    };
    let streams = Streams::new(terms.limits.stall);
    pulse.has_streams(streams.open());
    Some(streams)
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

impl Server {
    pub(super) fn new(connections: u32, site: Site, log: Log, meters: Meters) -> Arc<Self> {
        Arc::new(Server {
            site: ArcSwap::from_pointee(site),
            log,
            meters,
            clock: Clock::start(),
            addresses: Arc::default(),
            // A u32 fits on every machine that this is for.
            limit: Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(usize::MAX))),
            connections,
            ending: watch::Sender::new(false),
            trouble: Seldom::default(),
        })
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(self: Arc<Self>, speaks: Speaks, listener: Listening) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let site = self.site.load();
                    let Some(counted) = self.counted(&site, peer) else { continue };
                    let terms = Arc::clone(&site.terms);
                    let connection = Arc::clone(&self).connection(terms, stream, speaks, peer);
                    tokio::spawn(async move {
                        connection.await;
                        drop((permit, counted));
                    });
                }
                // The client was faster; or there are no descriptors, and others must end first.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    self.trouble.note(&format!("sendfile2: cannot accept a connection: {e}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Counts a connection among those of its address; `None` where it has too many.
    fn counted(&self, site: &Site, peer: Option<IpAddr>) -> Option<Option<Counted>> {
        let (Some(limit), Some(address)) = (site.connections_per_address, peer) else {
            return Some(None);
        };
        // All clients of a proxy have its address.
        if site.proxies.trusts(peer) {
            return Some(None);
        }
        let counted = self.addresses.connect(address, limit);
        if counted.is_none() {
            self.meters.refused_connections.increment(1);
        }
        counted.map(Some)
    }

    async fn connection(
        self: Arc<Self>,
        terms: Arc<Terms>,
        stream: Accepted,
        speaks: Speaks,
        address: Option<IpAddr>,
    ) {
        let _open = Open::new();
        let tls = terms.tls.as_ref().filter(|_| speaks == Speaks::Tls);
        // TLS has no use for an engine.
        let options =
            Options::new().engine(if tls.is_some() { Engine::Copy } else { terms.engine });
        let spoken = match tls {
            None => self.early(&terms, stream.spoken()).await,
            Some(_) => Some(Http::One),
        };
        if let Some(http) = spoken {
            let pulse = Pulse::begin(&self.clock, terms.limits).await;
            let redirect = speaks == Speaks::Plain;
            match (stream.io(options), tls) {
                (Ok(io), None) => {
                    let mapped = Some(ZeroCopyLayer::of(&io));
                    let streams = streams(&terms, http, &pulse);
                    let io = Timed::new(io, Arc::clone(&pulse));
                    let told = OnceLock::new();
                    let peer = Peer { address, told, redirect, mapped, pulse, interim: None };
                    self.http(&terms, streams, io, peer).await;
                }
                // In a box, so that connections without TLS are smaller.
                (Ok(io), Some(tls)) => {
                    let io = Timed::new(io, Arc::clone(&pulse));
                    let (told, mapped) = (OnceLock::new(), None);
                    let peer = Peer { address, told, redirect, mapped, pulse, interim: None };
                    Box::pin(self.https(&terms, tls, io, peer)).await;
                }
                (Err(e), _) => {
                    self.trouble.note(&format!("sendfile2: a connection is refused: {e}"));
                }
            }
        }
    }

    /// Does the work before the first request, which has as long as a request's headers, and is not
    /// waited for in the end.
    async fn early<T>(
        &self,
        terms: &Terms,
        work: impl Future<Output = io::Result<T>>,
    ) -> Option<T> {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            done = tokio::time::timeout(terms.limits.header, work) => done.ok()?.ok(),
            _ = ending.wait_for(|ending| *ending) => None,
        }
    }

    /// Serves a TLS connection, without mapped bytes: TLS reads them. The timeouts are beneath it,
    /// since it keeps what the peer does not take, and writes it when it is flushed.
    async fn https(self: &Arc<Self>, terms: &Terms, tls: &TlsAcceptor, stream: Timed, peer: Peer) {
        let small = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(OF_TLS));
        if let Some(stream) = self.early(terms, tls.accept_with(stream, small)).await {
            let http = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Http::Two,
                _ => Http::One,
            };
            let streams = streams(terms, http, &peer.pulse);
            self.http(terms, streams, stream, peer).await;
        }
    }

    async fn http<I>(
        self: &Arc<Self>,
        terms: &Terms,
        streams: Option<Streams>,
        io: I,
        mut peer: Peer,
    ) where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let interim = (terms.interim && streams.is_none()).then(Interim::new);
        peer.interim.clone_from(&interim);
        let peer = Arc::new(peer);
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let (server, peer) = (Arc::clone(self), Arc::clone(&peer));
            async move { Ok::<_, Infallible>(server.answer(&peer, request).await.map(Telling::new)) }
        });
        if self.clock.ends() {
            return;
        }
        let ended = match streams {
            None => match interim {
                None => {
                    let served = terms.http1.serve_connection(TokioIo::new(io), service);
                    let end = http1::UpgradeableConnection::graceful_shutdown;
                    self.until_the_end(served.with_upgrades(), end).await.map_err(Into::into)
                }
                Some(interim) => {
                    let io = TokioIo::new(interim.on(io));
                    let served = terms.http1.serve_connection(io, service).with_upgrades();
                    let end = http1::UpgradeableConnection::graceful_shutdown;
                    Box::pin(self.until_the_end(served, end)).await.map_err(Into::into)
                }
            },
            Some(streams) => {
                let io = TokioIo::new(io);
                let http = http2(streams);
                let connection = http.serve_connection(io, service);
                // In a box, so that connections of HTTP/1 are smaller.
                Box::pin(self.until_the_end(connection, auto::Connection::graceful_shutdown)).await
            }
        };
        // A client that goes away, or is too slow, is its own affair.
        if let Some(e) = ended.err().as_deref().and_then(|e| unsendable(e)) {
            self.broke_off(e);
        }
    }

    /// Serves a connection, which is asked to end when the server does.
    async fn until_the_end<C: Future>(&self, connection: C, end: fn(Pin<&mut C>)) -> C::Output {
        let mut connection = pin!(connection);
        let mut asked = false;
        poll_fn(|cx| {
            if !asked && self.clock.ends() {
                asked = true;
                end(connection.as_mut());
            }
            connection.as_mut().poll(cx)
        })
        .await
    }

    /// Answers a request: counts it, logs it, and refuses what is too much.
    async fn answer(
        self: Arc<Self>,
        peer: &Peer,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let began = Instant::now();
        let answering =
            (request.version() < Version::HTTP_2).then(|| Arc::clone(&peer.pulse).answers());
        let site = self.site.load_full();
        let client = site.proxies.client(peer.address, request.headers());
        let line =
            site.log.map(|format| Line::begin(began, format, client, peer.address, &request));
        // No body, and no offer to speak something else: nothing of it can be left unread.
        let whole = request.body().is_end_stream() && request.extensions().is_empty();
        let at_once = AssertUnwindSafe(|| self.at_once(&site, peer, client, &mut request));
        let at_once = catch_unwind(at_once)
            .unwrap_or_else(|panic| Some(self.panicked(&*panic).map(Uncounted::Layered)));
        let response = match at_once {
            Some(response) if whole => response,
            // In a box, so that what is answered at once is smaller.
            at_once => Box::pin(self.heard(&site, peer, request, at_once)).await,
        };
        let status = response.status();
        self.meters.answered(status);
        self.meters.began.record(began.elapsed());
        response.map(|body| Answer {
            body,
            server: self,
            began,
            status,
            bytes: 0,
            line,
            _answering: answering,
        })
    }

    /// Answers a request, if it was not at once, and sees to what is left unread of it.
    async fn heard(
        self: &Arc<Self>,
        site: &Site,
        peer: &Peer,
        request: Request<Incoming>,
        at_once: Option<Response<Uncounted>>,
    ) -> Response<Uncounted> {
        let (request, unread) = Unread::of(request);
        let mut response = match (at_once, &site.content) {
            (Some(response), _) => {
                // Nobody wants its body.
                drop(request);
                response
            }
            (None, Content::Files(files)) => {
                let request = request.map(drop);
                self.files(files, peer, request).await.map(Uncounted::Layered)
            }
            (None, Content::Cache(cache)) => {
                self.cached(cache, peer, request).await.map(Uncounted::Layered)
            }
        };
        unread.tell(&mut response);
        response
    }

    /// Answers a request that is too much, or wrong, or for what is at hand.
    fn at_once<B: HttpBody>(
        &self,
        site: &Site,
        peer: &Peer,
        client: Option<IpAddr>,
        request: &mut Request<B>,
    ) -> Option<Response<Uncounted>> {
        let asks = |rate, client| self.addresses.asks(client, rate);
        let too_much = |rate| client.is_some_and(|client| !asks(rate, client));
        if site.requests_per_address.is_some_and(too_much) {
            self.meters.refused_requests.increment(1);
            let mut response = empty(StatusCode::TOO_MANY_REQUESTS).map(Uncounted::Layered);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            return Some(response);
        }
        if !tells_its_host(request) {
            return Some(empty(StatusCode::BAD_REQUEST).map(Uncounted::Layered));
        }
        if let Some(response) = peer.redirect.then(|| site.redirected(request)).flatten() {
            return Some(response.map(Uncounted::Files));
        }
        let files = match &site.content {
            Content::Files(files) => files,
            Content::Cache(cache) => {
                let trusted = site.proxies.trusts(peer.address);
                cached::forwarded(request, peer.told(), trusted);
                if peer.mapped.is_none() {
                    // TLS only has none.
                    request.extensions_mut().insert(Scheme::HTTPS);
                }
                let mut response = cache.at_once(request)?;
                let layer = peer.mapped.as_ref();
                let mapped = layer.and_then(|it| it.replacement(request.version(), &mut response));
                return Some(match mapped {
                    Some(mapped) => response.map(|_| Uncounted::Stored(mapped)),
                    None => response.map(Uncounted::Cached),
                });
            }
        };
        // With HTTP/2 a body waits until the client wants it, and would wait in memory.
        let http1 = request.version() < Version::HTTP_2;
        let response = http1.then(|| files.at_once(request, peer.mapped.as_ref())).flatten()?;
        self.meters.at_once(response.body());
        Some(response.map(Uncounted::Files))
    }

    /// Answers a request for a file; with a mapped body, where the connection sends those.
    async fn files(
        self: &Arc<Self>,
        files: &Arc<Files>,
        peer: &Peer,
        request: Request<()>,
    ) -> Response<Body> {
        let files = tower::service_fn(|request| {
            let files = Arc::clone(files);
            async move { Ok::<_, Infallible>(files.answer(request).await) }
        });
        match &peer.mapped {
            Some(layer) => {
                let Ok(response) = self.caught(layer.layer(files)).call(request).await;
                response.map(Body::new)
            }
            None => {
                let Ok(response) = self.caught(files).call(request).await;
                response.map(Body::new)
            }
        }
    }

    /// Answers a request from a cache; with a mapped body, where the connection sends those.
    async fn cached(
        self: &Arc<Self>,
        cache: &Cache,
        peer: &Peer,
        mut request: Request<Body>,
    ) -> Response<Body> {
        if let Some(interim) = peer.interim.clone() {
            request.extensions_mut().insert(interim);
        }
        match &peer.mapped {
            Some(layer) => {
                let Ok(response) = self.caught(layer.layer(cache.clone())).call(request).await;
                response.map(Body::new)
            }
            None => {
                let Ok(response) = self.caught(cache.clone()).call(request).await;
                response.map(Body::new)
            }
        }
    }

    /// The service, whose panics are answered.
    fn caught<S>(
        self: &Arc<Self>,
        service: S,
    ) -> CatchPanic<S, impl FnMut(Box<dyn Any + Send>) -> Response<Body> + Clone + use<S>> {
        let server = Arc::clone(self);
        CatchPanicLayer::custom(move |panic: Box<dyn Any + Send>| server.panicked(&*panic))
            .layer(service)
    }

    /// Answers a request whose handler panicked.
    fn panicked(&self, panic: &(dyn Any + Send)) -> Response<Body> {
        counter!("sendfile2_http_panics_total").increment(1);
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        self.trouble.note(&format!("sendfile2: a request's handler panicked: {why}"));
        empty(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(super) fn broke_off(&self, why: &dyn std::error::Error) {
        counter!("sendfile2_http_broken_total").increment(1);
        self.trouble.note(&format!("sendfile2: an answer broke off: {why}"));
    }

    /// Ends all connections, when their requests are answered; those that are left after `grace`
    /// are counted.
    pub(super) async fn finish(&self, grace: Duration) -> usize {
        self.ending.send_replace(true);
        self.clock.end();
        // Also of those that were just being accepted.
        let _ = tokio::time::timeout(grace, self.limit.acquire_many(self.connections)).await;
        self.left()
    }

    /// Writes the rest of the access log; returns how many lines it could not take.
    pub(super) async fn finish_log(&self) -> u64 {
        self.log.finish().await
    }

    /// Returns the number of connections, while none is accepted.
    pub(super) fn left(&self) -> usize {
        usize::try_from(self.connections).unwrap_or(usize::MAX) - self.limit.available_permits()
    }
}

#[cfg(test)]
mod tests;
