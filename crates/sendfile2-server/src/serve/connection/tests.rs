//! Panics of handlers and bodies: each is answered or ends its connection, and is counted.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::config::Config;
use axum::body::HttpBody;
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A body that panics when it is asked for its first byte.
struct Panics;

impl HttpBody for Panics {
    type Data = axum::body::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<io::Result<hyper::body::Frame<axum::body::Bytes>>>> {
        panic!("a body, on purpose")
    }
}

#[test]
fn a_panic_is_a_500_and_counted_and_the_gauge_goes_down() {
    let line = ["sendfile2-server", "serve", "/"].map(Into::into);
    let Ok(config) = Config::read(&line) else { panic!("it is right") };
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = async {
        let (site, log) = (Site::new(&config, None, None).unwrap(), Log::new(None).unwrap());
        let server = Server::new(1, site, log, Meters::new());
        let (mut client, stream) = tokio::io::duplex(4096);
        let served = tokio::spawn(async move {
            let _open = Open::new();
            let handler = |request: Request<hyper::body::Incoming>| async move {
                match request.uri().path() {
                    "/handler" => panic!("a handler, on purpose"),
                    "/body" => Ok::<_, Infallible>(Response::new(Body::new(Panics))),
                    _ => Ok(Response::new(Body::from("well"))),
                }
            };
            let caught = server.caught(tower::service_fn(handler));
            let http = http1();
            let service = TowerToHyperService::new(caught);
            http.serve_connection(TokioIo::new(stream), service).await.unwrap();
        });
        for path in ["/handler", "/well", "/body"] {
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
        }
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.unwrap();
        assert!(served.await.unwrap_err().is_panic());
        String::from_utf8(answers).unwrap()
    };
    let answers = metrics::with_local_recorder(&recorder, || runtime.block_on(served));
    let statuses: Vec<_> = answers.matches("HTTP/1.1 ").collect();
    assert!(answers.starts_with("HTTP/1.1 500 ") && answers.contains("well"), "{answers}");
    assert!(statuses.len() >= 2, "the connection went on after the first: {answers}");
    let metrics = metrics.render();
    for line in ["sendfile2_http_panics_total 2", "sendfile2_http_connections 0"] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

/// A counter that panics when it counts.
struct Counts;

impl metrics::CounterFn for Counts {
    fn increment(&self, _: u64) {
        panic!("an answer at once, on purpose");
    }

    fn absolute(&self, _: u64) {}
}

/// A panic before the handlers are called is answered, too.
#[test]
fn a_panic_of_what_is_answered_at_once_is_a_500() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("small"), "0123456789").unwrap();
    let line = ["sendfile2-server".into(), "serve".into(), dir.path().into()];
    let Ok(config) = Config::read(&line) else { panic!("it is right") };
    let recorder = PrometheusBuilder::new().build_recorder();
    let metrics = recorder.handle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let served = async {
        let (site, log) = (Site::new(&config, None, None).unwrap(), Log::new(None).unwrap());
        let read = metrics::Counter::from_arc(Arc::new(Counts));
        let mut meters = Meters::new();
        meters.read = read;
        let server = Server::new(1, site, log, meters);
        let (mut client, stream) = tokio::io::duplex(4096);
        let served = tokio::spawn(async move {
            let terms = Arc::clone(&server.site.load().terms);
            let pulse = Pulse::begin(&server.clock, terms.limits).await;
            let told = OnceLock::new();
            let peer =
                Peer { address: None, told, redirect: false, mapped: None, pulse, interim: None };
            server.http(&terms, None, stream, peer).await;
        });
        // The first makes it known.
        for close in ["", "", "connection: close\r\n"] {
            let request = format!("GET /small HTTP/1.1\r\nhost: x\r\n{close}\r\n");
            client.write_all(request.as_bytes()).await.unwrap();
        }
        let mut answers = Vec::new();
        client.read_to_end(&mut answers).await.unwrap();
        served.await.unwrap();
        String::from_utf8(answers).unwrap()
    };
    let answers = metrics::with_local_recorder(&recorder, || runtime.block_on(served));
    let statuses: Vec<_> =
        answers.split("HTTP/1.1 ").skip(1).filter_map(|answer| answer.get(..3)).collect();
    assert_eq!(statuses, ["200", "500", "500"], "{answers}");
    assert!(metrics.render().contains("sendfile2_http_panics_total 2"));
}
