//! Connections: accepted within a limit, served, and ended.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use metrics::{counter, gauge};
use rustix::net::RecvFlags;
use sendfile2::Options;
use sendfile2_axum::{Io, ZeroCopyLayer};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower_layer::Layer;
use tower_service::Service;

use super::access::Line;
use super::body::Answer;
use super::limits::{Addresses, Counted};
use super::log::Log;
use super::meters::Meters;
use super::site::{Site, Terms};
use super::sockets::Listening;
use super::timeouts::{Queue, Timed};
use crate::output::Seldom;

pub(super) struct Server {
    /// What a reload replaces: a connection keeps the terms that it began with, and takes the newest
    /// site for each request.
    pub(super) site: ArcSwap<Site>,
    pub(super) log: Log,
    pub(super) meters: Meters,
    addresses: Arc<Addresses>,
    limit: Arc<Semaphore>,
    pub(super) connections: u32,
    graceful: std::sync::Mutex<Option<GracefulShutdown>>,
    /// The announcement of the end to connections that have not asked for anything yet.
    ending: watch::Sender<bool>,
    trouble: Seldom,
}

/// What is spoken on a listener.
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
    /// The port of HTTPS that requests are redirected to.
    redirect: bool,
    /// Plain TCP, or a unix socket.
    mapped: bool,
}

/// The first bytes of a connection of HTTP/2.
const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// An accepted connection, by the kind of its socket.
enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy)]
enum Http {
    One,
    Two,
}

impl Accepted {
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
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
        // An error in an `io::Error` is not among the sources of that.
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        let ours = inner.downcast_ref::<sendfile2::Error>()?;
        (!matches!(ours, sendfile2::Error::Aborted)).then_some(ours)
    })
}

fn timed<I: Queue + Unpin>(terms: &Terms, io: I) -> Timed<I> {
    Timed::new(io, terms.idle_timeout, terms.stall_timeout)
}

impl Server {
    pub(super) fn new(connections: u32, site: Site, log: Log, meters: Meters) -> Arc<Self> {
        Arc::new(Server {
            site: ArcSwap::from_pointee(site),
            log,
            meters,
            addresses: Arc::default(),
            // A u32 fits on every machine that this is for.
            limit: Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(usize::MAX))),
            connections,
            graceful: std::sync::Mutex::new(Some(GracefulShutdown::new())),
            ending: watch::Sender::new(false),
            trouble: Seldom::default(),
        })
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(self: Arc<Self>, speaks: Speaks, listener: Listening) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else { return };
            let accepted = match &listener {
                Listening::Tcp(tcp) => tcp
                    .accept()
                    .await
                    .map(|(s, peer)| (Accepted::Tcp(s), Some(peer.ip().to_canonical()))),
                Listening::Unix(unix, _) => {
                    unix.accept().await.map(|(s, _)| (Accepted::Unix(s), None))
                }
            };
            match accepted {
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
        gauge!("sendfile2_http_connections").increment(1);
        let options = Options::new().engine(terms.engine);
        let tls = terms.tls.as_ref().filter(|_| speaks == Speaks::Tls);
        let peer = Peer { address, redirect: speaks == Speaks::Plain, mapped: tls.is_none() };
        match (tls, stream) {
            (None, stream) => {
                if let Some(http) = self.early(&terms, stream.spoken()).await {
                    let io = match stream {
                        Accepted::Tcp(stream) => Io::new(stream, options),
                        Accepted::Unix(stream) => Io::from_unix(stream, options),
                    };
                    match io {
                        Ok(io) => self.http(&terms, http, timed(&terms, io), peer).await,
                        Err(e) => {
                            self.trouble.note(&format!("sendfile2: a connection is refused: {e}"));
                        }
                    }
                }
            }
            // In boxes, so that connections without TLS are smaller.
            (Some(tls), Accepted::Tcp(stream)) => {
                let _ = stream.set_nodelay(true);
                Box::pin(self.https(&terms, tls, stream, peer)).await;
            }
            (Some(tls), Accepted::Unix(stream)) => {
                Box::pin(self.https(&terms, tls, stream, peer)).await;
            }
        }
        gauge!("sendfile2_http_connections").decrement(1);
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
            done = tokio::time::timeout(terms.header_timeout, work) => done.ok()?.ok(),
            _ = ending.wait_for(|ending| *ending) => None,
        }
    }

    /// Serves a TLS connection, without mapped bytes: TLS reads them.
    async fn https<I>(self: &Arc<Self>, terms: &Terms, tls: &TlsAcceptor, stream: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Queue + Unpin + Send + 'static,
    {
        // Beneath TLS, which keeps what the peer does not take, and writes it when it is flushed.
        let stream = timed(terms, stream);
        if let Some(stream) = self.early(terms, tls.accept(stream)).await {
            let http = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Http::Two,
                _ => Http::One,
            };
            self.http(terms, http, stream, peer).await;
        }
    }

    async fn http<I>(self: &Arc<Self>, terms: &Terms, http: Http, io: I, peer: Peer)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        let peer = Arc::new(peer);
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            let (server, peer) = (Arc::clone(self), Arc::clone(&peer));
            async move { Ok::<_, Infallible>(server.answer(&peer, request).await) }
        });
        let http = match http {
            Http::One => &terms.http1,
            Http::Two => &terms.http2,
        };
        let connection = http.serve_connection(io, service);
        let watched = {
            let graceful = self.graceful.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            graceful.as_ref().map(GracefulShutdown::watcher)
        };
        let Some(watcher) = watched else { return };
        // A client that goes away, or is too slow, is its own affair.
        if let Some(e) =
            watcher.watch(connection).await.err().as_deref().and_then(|e| unsendable(e))
        {
            self.broke_off(e);
        }
    }

    /// Answers a request: counts it, logs it, and refuses what is too much.
    async fn answer(
        self: Arc<Self>,
        peer: &Peer,
        request: Request<hyper::body::Incoming>,
    ) -> Response<Answer> {
        let began = Instant::now();
        let site = self.site.load_full();
        let client = site.proxies.client(peer.address, request.headers());
        let line = site.log.map(|format| Line::begin(format, client, peer.address, &request));
        let asks = |rate, client| self.addresses.asks(client, rate);
        let too_much = |rate| client.is_some_and(|client| !asks(rate, client));
        let response = if site.requests_per_address.is_some_and(too_much) {
            self.meters.refused_requests.increment(1);
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            response
        } else if let Some(response) = peer.redirect.then(|| site.redirected(&request)).flatten() {
            response.map(Body::new)
        } else if peer.mapped {
            let files = tower::service_fn(|request| {
                let site = Arc::clone(&site);
                async move { Ok::<_, Infallible>(site.answer(request).await) }
            });
            let Ok(response) = ZeroCopyLayer::new().layer(files).call(request).await;
            response
        } else {
            site.answer(request).await.map(Body::new)
        };
        let status = response.status();
        let code = status.as_str().to_owned();
        counter!("sendfile2_http_requests_total", "status" => code).increment(1);
        self.meters.began.record(began.elapsed());
        response.map(|body| Answer { body, server: self, began, status, bytes: 0, line })
    }

    pub(super) fn broke_off(&self, why: &dyn std::error::Error) {
        counter!("sendfile2_http_broken_total").increment(1);
        self.trouble.note(&format!("sendfile2: an answer broke off: {why}"));
    }

    /// Ends all connections, when their requests are answered; those that are left after `grace`
    /// are counted.
    pub(super) async fn finish(&self, grace: Duration) -> usize {
        let graceful = {
            let mut slot = self.graceful.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            slot.take()
        };
        self.ending.send_replace(true);
        let all = async {
            if let Some(graceful) = graceful {
                graceful.shutdown().await;
            }
            // Those that had not asked yet, and those that were just being accepted.
            drop(self.limit.acquire_many(self.connections).await);
        };
        let _ = tokio::time::timeout(grace, all).await;
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
