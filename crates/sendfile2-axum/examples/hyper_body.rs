//! Ranges of a file by hyper alone: `GET /START-END` sends these bytes, without a copy in user
//! space.
//!
//! ```sh
//! cargo run -p sendfile2-axum --example hyper_body -- 127.0.0.1:4000 FILE
//! ```
use std::error::Error;
use std::ops::Range;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use sendfile2::{Options, Source};
use sendfile2_axum::{FileBody, Io, ZeroCopyLayer};
use tokio::net::TcpListener;
use tower_layer::Layer;

type Body = Either<FileBody, Full<Bytes>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: hyper_body ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|e| format!("cannot listen at {address}: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    let handler = tower::service_fn(move |request| {
        let file = file.clone();
        async move { answer(&request, &file) }
    });
    loop {
        let (stream, peer) = listener.accept().await?;
        let handler = handler.clone();
        tokio::spawn(async move {
            // In place of the stream: it finds the mapped bytes among what hyper writes.
            let io = match Io::new(stream, Options::new()) {
                Ok(io) => io,
                Err(e) => return eprintln!("{peer}: {e}"),
            };
            // Around everything that might look at a body: it makes mapped ones for this very
            // connection, which only the kernel may read. Without it they are read, which is right,
            // too, and must be so beneath TLS.
            let service = TowerToHyperService::new(ZeroCopyLayer::of(&io).layer(handler));
            // With a timer, it waits for the headers of a request no longer than 30 seconds.
            let mut http = http1::Builder::new();
            if let Err(e) =
                http.timer(TokioTimer::new()).serve_connection(TokioIo::new(io), service).await
            {
                eprintln!("{peer}: {e}");
            }
        });
    }
}

fn answer(request: &Request<Incoming>, file: &Source) -> Result<Response<Body>, sendfile2::Error> {
    let size = file.size()?;
    Ok(match (request.method(), range(request.uri().path(), size)) {
        // By into_response the layer knows it.
        (&Method::GET | &Method::HEAD, Some(range)) => {
            FileBody::new(file.clone(), range)?.into_response().map(Either::Left)
        }
        (&Method::GET | &Method::HEAD, None) => {
            refuse(StatusCode::NOT_FOUND, format!("ask for /START-END, up to /0-{size}\n"))
        }
        _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "ask by GET\n".into()),
    })
}

fn refuse(status: StatusCode, why: String) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::from(why)));
    *response.status_mut() = status;
    response
}

/// The bytes that are asked for, if the file has them.
fn range(path: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = path.strip_prefix('/')?.split_once('-')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start <= range.end && range.end <= size).then_some(range)
}
