//! Servers, a directory of files with known content, and a client that sees every byte.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::serve::IncomingStream;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sendfile2::Engine;
use sendfile2_axum::{Io, Listener, MappedBody, ServeDir, ZeroCopy, ZeroCopyLayer};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower_layer::Layer;
use tower_service::Service;

/// Bytes that differ at each position of a page, and from page to page.
pub fn pattern(seed: u8, range: std::ops::Range<u64>) -> Vec<u8> {
    range
        .map(|i| {
            let [a, b, c, ..] = i.to_le_bytes();
            seed ^ a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ c.wrapping_mul(7)
        })
        .collect()
}

pub const SIZES: [u64; 9] =
    [0, 1, 4096, (16 << 10) - 1, 16 << 10, 65_536, (1 << 20) - 1, (1 << 20) + 1, (5 << 20) + 3];

/// A directory with a file of each size, by that name, on disk (not tmpfs).
pub fn files() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for size in SIZES {
        std::fs::write(dir.path().join(size.to_string()), pattern(1, 0..size)).unwrap();
    }
    dir
}

pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

/// What listens.
#[derive(Debug, Clone, Copy)]
pub enum By {
    /// axum's own listener, where nothing is mapped.
    Stock,
    /// Ours, without what [`sendfile2_axum::serve`] adds.
    Read(Engine),
    Ours(Engine),
}

impl By {
    /// The outcome of a body that nothing has changed.
    pub fn became(self) -> &'static str {
        if matches!(self, By::Ours(_)) { "mapped" } else { "" }
    }
}

/// Every listener and engine; `native` where the kernel has it.
pub fn all() -> Vec<By> {
    use sendfile2::probe::Availability::Available;
    let engines = sendfile2::probe::machine().engines;
    let native = engines.into_iter().find(|state| state.engine == Engine::Native).unwrap();
    let mut engines = vec![Engine::Copy, Engine::Zerocopy, Engine::Auto];
    match native.availability {
        Available(_) => engines.push(Engine::Native),
        why => println!("SKIP: the engine native: {why}"),
    }
    let read = [By::Stock, By::Read(Engine::Auto)];
    read.into_iter().chain(engines.into_iter().map(By::Ours)).collect()
}

/// Where `cargo xtask guest nic` lets the clients be: behind a network device that sends from the
/// file's pages, where zero copy is true. Written as ADDRESS@NAMESPACE.
fn peer() -> Option<(String, String)> {
    let peer = std::env::var("SENDFILE2_TEST_PEER").ok()?;
    let (address, namespace) = peer.split_once('@').unwrap();
    Some((address.to_owned(), namespace.to_owned()))
}

/// Listens where clients are to come from.
pub fn listen() -> TcpListener {
    let Some((peer, _)) = peer() else { return TcpListener::bind("127.0.0.1:0").unwrap() };
    let towards = UdpSocket::bind("0.0.0.0:0").unwrap();
    towards.connect((peer, 9)).unwrap();
    TcpListener::bind((towards.local_addr().unwrap().ip(), 0)).unwrap()
}

/// Connects as a client.
pub fn connect(address: SocketAddr) -> TcpStream {
    let Some((_, namespace)) = peer() else { return TcpStream::connect(address).unwrap() };
    // A socket stays in the namespace of the thread that made it.
    let connect = move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let namespace = std::fs::File::open(namespace).unwrap();
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind).unwrap();
        TcpStream::connect(address).unwrap()
    };
    std::thread::spawn(connect).join().unwrap()
}

/// Serves `app` in the background.
pub fn serve(by: By, app: Router) -> SocketAddr {
    let _entered = runtime().enter();
    let tcp = listen();
    tcp.set_nonblocking(true).unwrap();
    let address = tcp.local_addr().unwrap();
    let tcp = tokio::net::TcpListener::from_std(tcp).unwrap();
    match by {
        By::Stock => drop(tokio::spawn(async { axum::serve(tcp, app).await.unwrap() })),
        By::Read(engine) => {
            let listener = Listener::new(tcp).engine(engine);
            drop(tokio::spawn(async { axum::serve(listener, app).await.unwrap() }));
        }
        By::Ours(engine) => {
            let listener = Listener::new(tcp).engine(engine);
            // As `sendfile2_axum::serve` does, but for what it tells.
            let app = tower::service_fn(move |stream: IncomingStream<'_, Listener>| {
                std::future::ready(Ok(told(stream.io(), app.clone())))
            });
            drop(tokio::spawn(async { axum::serve(listener, app).await.unwrap() }));
        }
    }
    address
}

/// A directory.
pub fn directory(dir: &Path) -> Router {
    Router::new().fallback_service(ServeDir::new(dir).unwrap())
}

/// With the layer for this connection, and a header that says what it did.
pub fn told(io: &Io, app: Router) -> Told {
    Told(ZeroCopyLayer::of(io).layer(app))
}

#[derive(Clone)]
pub struct Told(ZeroCopy<Router>);

impl<B> Service<http::Request<B>> for Told
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let answer = self.0.call(request.map(Body::new));
        Box::pin(async {
            let mut response = answer.await?;
            if let Some(MappedBody(became)) = response.extensions().get().copied() {
                let became = became.map_or_else(|why| why, |()| "mapped");
                response.headers_mut().insert("x-became", became.parse().unwrap());
            }
            Ok(response)
        })
    }
}

/// One connection.
pub struct Client(pub BufReader<TcpStream>);

#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
    /// The stream ended before the body did.
    pub cut: bool,
}

impl Got {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value)
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Client::of(connect(address))
    }

    pub fn of(stream: TcpStream) -> Self {
        // An emulated machine behind a slow queue may take its time.
        let patience = Duration::from_secs(if peer().is_some() { 240 } else { 30 });
        stream.set_read_timeout(Some(patience)).unwrap();
        Client(BufReader::new(stream))
    }

    pub fn ask(&mut self, method: &str, path: &str, headers: &str) {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n{headers}\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
    }

    pub fn get(&mut self, path: &str) -> Got {
        self.with("GET", path, "")
    }

    pub fn with(&mut self, method: &str, path: &str, headers: &str) -> Got {
        self.ask(method, path, headers);
        self.answer(method)
    }

    /// The headers of an answer.
    pub fn head(&mut self) -> Got {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        Got { status, headers, body: Vec::new(), cut: false }
    }

    pub fn answer(&mut self, method: &str) -> Got {
        let mut got = self.head();
        if method == "HEAD" || got.status == 304 {
            return got;
        }
        if got.headers.contains_key("transfer-encoding") {
            self.chunks(&mut got);
        } else {
            let length: u64 = got.header("content-length").parse().unwrap();
            // A reset in place of the end cuts short, too.
            let _ = (&mut self.0).take(length).read_to_end(&mut got.body);
            got.cut = got.body.len() as u64 != length;
        }
        got
    }

    fn chunks(&mut self, got: &mut Got) {
        loop {
            let mut size = String::new();
            if self.0.read_line(&mut size).unwrap_or(0) == 0 {
                got.cut = true;
                return;
            }
            let size = u64::from_str_radix(size.trim(), 16).unwrap();
            let from = got.body.len();
            let _ = (&mut self.0).take(size + 2).read_to_end(&mut got.body);
            got.cut = got.body.len() - from != size as usize + 2;
            got.body.truncate(from + size as usize);
            if got.cut || size == 0 {
                return;
            }
        }
    }
}

/// A connection of HTTP/2.
pub async fn http2(address: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let stream = connect(address);
    stream.set_nonblocking(true).unwrap();
    let io = TokioIo::new(tokio::net::TcpStream::from_std(stream).unwrap());
    let (client, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A request of HTTP/2.
pub fn request(path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(format!("http://x/{path}")).body(Empty::new()).unwrap()
}

/// Fails without printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8], of: &str) {
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "(length, first wrong byte) of {of}");
}

/// Waits for what others do.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..if peer().is_some() { 24_000 } else { 3000 } {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
