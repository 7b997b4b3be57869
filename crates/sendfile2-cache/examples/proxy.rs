//! A caching reverse proxy in front of an origin: `cargo run --example proxy -- http://127.0.0.1:8000`
//! listens on 127.0.0.1:8001, and keeps what it may in a temporary file.

use std::error::Error;

use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Choice, Interim, Limits, Origins, Timeouts};
use sendfile2_cache::store::{Options, Store};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let origin = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:8000".into());
    let origins = Origins::new(&[origin.parse()?], Choice::RoundRobin, Timeouts::default())?;
    let (store, _) = Store::open(&Options { size: 256 << 20, ..Options::default() })?;
    let cache = Cache::new(store, origins, Limits::default());
    let listener = TcpListener::bind("127.0.0.1:8001").await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let cache = cache.clone();
        tokio::spawn(async move {
            let interim = Interim::new();
            let io = TokioIo::new(interim.on(stream));
            let service = tower::service_fn(move |mut request: hyper::Request<_>| {
                request.extensions_mut().insert(interim.clone());
                tower::ServiceExt::oneshot(cache.clone(), request)
            });
            let http = hyper::server::conn::http1::Builder::new();
            // A client that goes away is its own affair.
            let _ = http.serve_connection(io, TowerToHyperService::new(service)).await;
        });
    }
}
