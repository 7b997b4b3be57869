//! An origin that a test writes, and a cache before it.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{CacheBody, Choice, Limits, Origins, Timeouts};
use sendfile2_cache::store::{Options, Store};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

pub type Body = BoxBody<Bytes, std::io::Error>;

/// A request that the origin has seen, with the number of those before it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub number: usize,
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

pub struct Origin {
    pub url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Origin {
    /// Answers each request by this function.
    pub async fn new<F>(answer: impl Fn(Seen) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("it listens");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let all = Arc::clone(&seen);
        let answer: Arc<dyn Fn(Seen) -> Answering + Send + Sync> =
            Arc::new(move |seen| Box::pin(answer(seen)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let (all, answer) = (Arc::clone(&all), Arc::clone(&answer));
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.expect("a body").to_bytes();
                        let seen = {
                            let mut all = all.lock().expect("no panic");
                            let path = head.uri.path_and_query().map_or("", |p| p.as_str()).into();
                            let (method, headers) = (head.method, head.headers);
                            let seen = Seen { number: all.len(), method, path, headers, body };
                            all.push(seen.clone());
                            seen
                        };
                        Ok::<_, Infallible>(answer(seen).await)
                    }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        Origin { url, seen }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    pub fn count(&self) -> usize {
        self.seen().len()
    }
}

pub fn cache_of(urls: &[&str]) -> Cache {
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        head: Duration::from_secs(20),
        stall: Duration::from_secs(20),
    };
    cache_with(urls, timeouts, Limits::default())
}

pub fn origins(urls: &[&str], timeouts: Timeouts) -> Origins {
    let urls: Vec<_> = urls.iter().map(|url| url.parse().expect("a URL")).collect();
    Origins::new(&urls, Choice::RoundRobin, timeouts).expect("origins")
}

pub fn cache_with(urls: &[&str], timeouts: Timeouts, limits: Limits) -> Cache {
    let origins = origins(urls, timeouts);
    let options = Options { size: 64 << 20, region: 2 << 20, ..Options::default() };
    let (store, _) = Store::open(&options).expect("a store");
    Cache::new(store, origins, limits)
}

/// A response with these fields and this body.
pub fn response(status: u16, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for (name, value) in fields {
        response = response.header(*name, value.as_bytes());
    }
    let body = Full::new(body.into()).map_err(|never| match never {});
    response.body(body.boxed()).expect("a response")
}

/// A body whose pieces come when they are sent.
pub fn streaming(fields: &[(&str, &str)]) -> (mpsc::UnboundedSender<&'static str>, Response<Body>) {
    let (sender, mut pieces) = mpsc::unbounded_channel::<&'static str>();
    let stream = futures_like(move |cx| {
        pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    });
    let mut response = response(200, fields, "");
    *response.body_mut() = BodyExt::boxed(StreamBody::new(stream));
    (sender, response)
}

/// A body of unknown length, of these pieces, as fast as they are taken.
pub fn pieces(
    fields: &[(&str, &str)],
    mut piece: impl FnMut(usize) -> Option<Result<Bytes, std::io::Error>>
    + Unpin
    + Send
    + Sync
    + 'static,
) -> Response<Body> {
    let mut number = 0;
    let stream = futures_like(move |_| {
        number += 1;
        std::task::Poll::Ready(piece(number - 1).map(|piece| piece.map(Frame::data)))
    });
    let mut response = response(200, fields, "");
    *response.body_mut() = BodyExt::boxed(StreamBody::new(stream));
    response
}

type Piece = Option<Result<Frame<Bytes>, std::io::Error>>;

pub fn futures_like(
    poll: impl FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Piece> + Send + Sync + 'static,
) -> impl futures_core::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + Sync {
    struct Polled<F>(F);
    impl<F> futures_core::Stream for Polled<F>
    where
        F: FnMut(&mut std::task::Context<'_>) -> std::task::Poll<Piece> + Unpin,
    {
        type Item = Result<Frame<Bytes>, std::io::Error>;
        fn poll_next(
            mut self: Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Piece> {
            (self.0)(cx)
        }
    }
    Polled(Box::new(poll))
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// How it came about.
    pub fn how(&self) -> &str {
        self.header("cache-status").trim_start_matches("sendfile2; ")
    }

    pub fn is_hit(&self) -> bool {
        self.how().starts_with("hit")
    }
}

pub fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    if !fields.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", "h");
    }
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).expect("a request")
}

pub async fn ask(cache: &Cache, method: &str, uri: &str, fields: &[(&str, &str)]) -> Answer {
    let answer = read(cache.answer(request(method, uri, fields)).await).await;
    // Its last byte may be here before it is stored.
    until(|| cache.filling() == 0).await;
    answer
}

pub async fn get(cache: &Cache, uri: &str, fields: &[(&str, &str)]) -> Answer {
    ask(cache, "GET", uri, fields).await
}

pub async fn read(response: Response<CacheBody>) -> Answer {
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    let body = String::from_utf8(body.to_vec()).expect("text");
    Answer { status: head.status, headers: head.headers, body }
}

/// Waits for something that others do.
pub async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never");
}
