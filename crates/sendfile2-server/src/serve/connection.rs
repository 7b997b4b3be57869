//! Connections: accepted within a limit, served, and ended.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use metrics::{counter, gauge};
use rustix::net::RecvFlags;
use sendfile2::{Engine, Options};
use sendfile2_axum::{Io, ServeDir, ZeroCopyLayer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConnection;
use tower_http::catch_panic::CatchPanicLayer;
use tower_layer::Layer;
use tower_service::Service;

use super::Listening;
use super::log::{Asked, Log};
use super::request::{tells_its_host, throw_away};
use super::streams::{Streams, Telling};
use super::timeouts::Timed;
use crate::args::serve::Args;
use crate::output::Seldom;

pub(super) struct Server {
    dir: ServeDir,
    engine: Engine,
    tls: Option<TlsAcceptor>,
    log: Option<Log>,
    header_timeout: Duration,
    idle_timeout: Duration,
    stall_timeout: Duration,
    limit: Arc<Semaphore>,
    connections: u32,
    graceful: std::sync::Mutex<Option<GracefulShutdown>>,
    /// The announcement of the end to connections that have not asked for anything yet.
    ending: watch::Sender<bool>,
    trouble: Seldom,
    /// The builder for HTTP/1, chosen beforehand: hyper-util would find out the version by itself,
    /// but by reading, after which hyper's buffer is twice as large, and without a limit of time.
    http1: auto::Builder<TokioExecutor>,
}

/// The longest headers of a request with HTTP/1, and about what hyper keeps of an answer that is not
/// taken.
const HEADERS: usize = 32 << 10;

/// Streams at a time on a connection of HTTP/2: as few as its RFC recommends. Each may keep as much as
/// the client's window lets it, and this, until the client takes it.
const STREAMS: u32 = 100;
const OF_STREAM: usize = 32 << 10;

/// What TLS keeps of an answer: a record.
const OF_TLS: usize = 16 << 10;

/// Returns how HTTP/1 is spoken.
pub(super) fn http1(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut http = auto::Builder::new(TokioExecutor::new());
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(HEADERS)
        // A client may end its side when it has asked. And hyper then reads nothing while it
        // answers, for which it would keep 8 KiB more.
        .half_close(true);
    http.http1_only()
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
    /// Accepts a connection; returns also who it is of.
    pub(super) async fn accept(&self) -> io::Result<(Accepted, String)> {
        match self {
            Listening::Tcp(tcp) => {
                let (stream, peer) = tcp.accept().await?;
                Ok((Accepted::Tcp(stream), peer.ip().to_canonical().to_string()))
            }
            Listening::Unix(unix, _) => {
                let (stream, _) = unix.accept().await?;
                Ok((Accepted::Unix(stream), "unix".to_owned()))
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

impl Server {
    pub(super) fn new(
        args: &Args,
        connections: u32,
        dir: ServeDir,
        tls: Option<TlsAcceptor>,
        log: Option<Log>,
    ) -> Arc<Self> {
        Arc::new(Server {
            dir,
            engine: args.engine,
            tls,
            log,
            header_timeout: args.header_timeout,
            idle_timeout: args.idle_timeout,
            stall_timeout: args.stall_timeout,
            // A u32 fits on every machine that this is for.
            limit: Arc::new(Semaphore::new(usize::try_from(connections).unwrap_or(usize::MAX))),
            connections,
            graceful: std::sync::Mutex::new(Some(GracefulShutdown::new())),
            ending: watch::Sender::new(false),
            trouble: Seldom::default(),
            http1: http1(args.header_timeout),
        })
    }

    /// Accepts connections for ever.
    pub(super) async fn accept(self: Arc<Self>, listener: Listening) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.limit).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    tokio::spawn(Arc::clone(&self).connection(stream, peer, permit));
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

    async fn connection(
        self: Arc<Self>,
        stream: Accepted,
        peer: String,
        permit: OwnedSemaphorePermit,
    ) {
        let _open = Open::new();
        // TLS has no use for an engine.
        let engine = if self.tls.is_some() { Engine::Copy } else { self.engine };
        let options = Options::new().engine(engine);
        let spoken = match &self.tls {
            None => self.early(stream.spoken()).await,
            Some(_) => Some(Http::One),
        };
        if let Some(http) = spoken {
            match (stream.io(options), &self.tls) {
                (Ok(io), None) => {
                    let files = ZeroCopyLayer::of(&io).layer(self.dir.clone());
                    let mut io = self.timed(io);
                    let streams = self.streams(http, &mut io);
                    self.http(streams, io, &peer, files).await;
                }
                // In a box, so that connections without TLS are smaller.
                (Ok(io), Some(tls)) => Box::pin(self.https(tls, self.timed(io), &peer)).await,
                (Err(e), _) => {
                    self.trouble.note(&format!("sendfile2: a connection is refused: {e}"));
                }
            }
        }
        drop(permit);
    }

    /// Does the work before the first request, which has as long as a request's headers, and is not
    /// waited for in the end.
    async fn early<T>(&self, work: impl Future<Output = io::Result<T>>) -> Option<T> {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            done = tokio::time::timeout(self.header_timeout, work) => done.ok()?.ok(),
            _ = ending.wait_for(|ending| *ending) => None,
        }
    }

    fn timed(&self, io: Io) -> Timed {
        Timed::new(io, self.idle_timeout, self.stall_timeout)
    }

    /// Serves a TLS connection, without mapped bytes: TLS reads them. The timeouts are beneath it,
    /// since it keeps what the peer does not take, and writes it when it is flushed.
    async fn https(self: &Arc<Self>, tls: &TlsAcceptor, stream: Timed, peer: &str) {
        let small = |tls: &mut ServerConnection| tls.set_buffer_limit(Some(OF_TLS));
        if let Some(mut stream) = self.early(tls.accept_with(stream, small)).await {
            let http = match stream.get_ref().1.alpn_protocol() {
                Some(b"h2") => Http::Two,
                _ => Http::One,
            };
            let streams = self.streams(http, stream.get_mut().0);
            self.http(streams, stream, peer, self.dir.clone()).await;
        }
    }

    /// Returns what runs the streams of a connection of HTTP/2.
    fn streams(&self, http: Http, io: &mut Timed) -> Option<Streams> {
        let Http::Two = http else { return None };
        let streams = Streams::new(self.stall_timeout);
        io.has_streams(streams.open());
        Some(streams)
    }

    async fn http<I, S, R>(self: &Arc<Self>, streams: Option<Streams>, io: I, peer: &str, files: S)
    where
        I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Service<Request<()>, Response = Response<R>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
        R: HttpBody<Data = axum::body::Bytes> + Send + Unpin + 'static,
        R::Error: Into<axum::BoxError>,
    {
        let io = TokioIo::new(io);
        let server = Arc::clone(self);
        let panicked = move |panic: Box<dyn Any + Send>| server.panicked(&*panic);
        let files = CatchPanicLayer::custom(panicked).layer(files);
        let peer: Arc<str> = peer.into();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
            let asked = self.log.as_ref().map(|_| Asked {
                method: request.method().clone(),
                uri: request.uri().clone(),
                version: request.version(),
            });
            let (server, peer) = (Arc::clone(self), Arc::clone(&peer));
            let (mut head, unwanted) = request.into_parts();
            // Where a client would speak something else hyper would drop the connection in the end,
            // and not shut it down.
            if let Some(upgrade) = head.extensions.remove::<OnUpgrade>() {
                tokio::spawn(async {
                    if let Ok(io) = upgrade.await {
                        let _ = TokioIo::new(io).shutdown().await;
                    }
                });
            }
            // Over HTTP/1 the connection does so when it ends, as it will.
            let closes = head.version < Version::HTTP_2 && !unwanted.is_end_stream();
            if !closes && !unwanted.is_end_stream() {
                tokio::spawn(throw_away(unwanted));
            }
            let request = Request::from_parts(head, ());
            let answer = tells_its_host(&request).then(|| files.clone().call(request));
            async move {
                let mut response = match answer {
                    // With HTTP/2 an error ends a stream, and not the connection.
                    Some(answer) => answer.await?.map(|body| {
                        let server = Arc::clone(&server);
                        Body::new(Telling::new(body.map_err(move |error: axum::BoxError| {
                            server.broke_off(&*error);
                            error
                        })))
                    }),
                    None => {
                        let mut refusal = Response::new(Body::empty());
                        *refusal.status_mut() = StatusCode::BAD_REQUEST;
                        refusal
                    }
                };
                if closes {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                let status = response.status();
                let code = status.as_str().to_owned();
                counter!("sendfile2_http_requests_total", "status" => code).increment(1);
                if let (Some(log), Some(asked)) = (&server.log, &asked) {
                    log.write(&peer, asked, status, response.body().size_hint().exact());
                }
                Ok::<_, Infallible>(response)
            }
        });
        let watched = {
            let graceful = self.graceful.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            graceful.as_ref().map(GracefulShutdown::watcher)
        };
        let Some(watcher) = watched else { return };
        let ended = match streams {
            None => watcher.watch(self.http1.serve_connection_with_upgrades(io, service)).await,
            Some(streams) => {
                let http = http2(streams);
                // In a box, so that connections of HTTP/1 are smaller.
                Box::pin(watcher.watch(http.serve_connection(io, service))).await
            }
        };
        // A client that goes away, or is too slow, is its own affair.
        if let Some(e) = ended.err().as_deref().and_then(|e| unsendable(e)) {
            self.broke_off(e);
        }
    }

    /// Answers a request whose handler panicked.
    fn panicked(&self, panic: &(dyn Any + Send)) -> Response<Body> {
        counter!("sendfile2_http_panics_total").increment(1);
        let why = panic.downcast_ref::<String>().map(String::as_str);
        let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        self.trouble.note(&format!("sendfile2: a request's handler panicked: {why}"));
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    }

    fn broke_off(&self, why: &dyn std::error::Error) {
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
        match &self.log {
            Some(log) => log.finish().await,
            None => 0,
        }
    }

    /// Returns the number of connections, while none is accepted.
    pub(super) fn left(&self) -> usize {
        usize::try_from(self.connections).unwrap_or(usize::MAX) - self.limit.available_permits()
    }
}

#[cfg(test)]
mod tests;
