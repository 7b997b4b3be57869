//! The listener for those who run the server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::http::HeaderMap;
use axum::routing::{get, post};
use axum::{Extension, Router};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use metrics::{describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use sendfile2::{Engine, Options};
use sendfile2_cache::Cache;
use sendfile2_cache::store::Store;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::connection::{Server, http1};
use super::sockets::Listening;
use super::timeouts::{Clock, Limits, Pulse, Timed};
use super::{cached, picture, purge};
use crate::args::operation::Operation;

/// Seconds, from a release that comes with the send to one that comes with the peer's retreat.
const RELEASE: [f64; 9] = [0.000_01, 0.000_1, 0.001, 0.005, 0.02, 0.1, 0.5, 5.0, 60.0];

/// Connections at a time; more wait until they are accepted.
const CONNECTIONS: usize = 64;

/// Seconds, from an answer that is at hand to a large file for a slow client.
const REQUEST: [f64; 13] =
    [0.000_1, 0.000_25, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

/// Begins to record metrics, which must be before anything counts.
pub(super) fn record() -> anyhow::Result<PrometheusHandle> {
    let buckets = |name: &str| Matcher::Full(name.into());
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(buckets("sendfile2_release_seconds"), &RELEASE)
        .and_then(|it| {
            it.set_buckets_for_metric(buckets("sendfile2_http_request_seconds"), &REQUEST)
        })
        .and_then(|it| {
            it.set_buckets_for_metric(buckets("sendfile2_http_first_byte_seconds"), &REQUEST)
        })
        .context("the histogram's buckets")?
        .install_recorder()
        .context("cannot record metrics")?;
    describe();
    Ok(handle)
}

/// Serves metrics and health at a listener, until the task is aborted.
pub(super) fn start(
    listener: Listening,
    handle: PrometheusHandle,
    args: &Operation,
    (server, store): (Arc<Server>, Option<Store>),
) -> JoinHandle<()> {
    let upkeep = handle.clone();
    let shown = store.clone();
    let measured = Arc::clone(&server);
    tokio::spawn(async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            sendfile2_axum::outstanding();
            store.iter().for_each(cached::measure);
            measured.site.load().cache().into_iter().for_each(cached::measure_origins);
            // What histograms were told is kept until then, also where nobody asks for it.
            upkeep.run_upkeep();
        }
    });
    let process = Collector::default();
    process.describe();
    let app = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/metrics", get(move || async move { render(&process, &handle) }));
    let app = if let Some(store) = shown {
        let (of_page, of_json) =
            ((Arc::clone(&server), store.clone()), (Arc::clone(&server), store));
        let origins = |server: &Server| {
            let site = server.site.load();
            site.cache().map(Cache::origins).unwrap_or_default()
        };
        let page = move || async move { picture::page(&of_page.1, &origins(&of_page.0)) };
        let json = move || async move {
            let json = picture::json(&of_json.1, &origins(&of_json.0));
            ([("content-type", "application/json")], json)
        };
        let purge = |headers: HeaderMap, Extension(pulse): Extension<Arc<Pulse>>, body: Bytes| async move {
            // The disk may take its time.
            let _answering = pulse.answers();
            purge::answer(&server, &headers, &body).await
        };
        app.route("/purge", post(purge)).route("/cache", get(page)).route("/cache.json", get(json))
    } else {
        app
    };
    let (http, limits, clock) = (http1(), Limits::of(args), Clock::start());
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        // The semaphore is never closed.
        while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
            let io = match listener.accept().await {
                Ok((stream, _)) => stream.io(Options::new().engine(Engine::Copy)).ok(),
                Err(_) => None,
            };
            let Some(io) = io else {
                // There are no descriptors, and others must end first.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (http, app) = (http.clone(), app.clone());
            let clock = Arc::clone(&clock);
            tokio::spawn(async move {
                let pulse = Pulse::begin(&clock, limits).await;
                // Most answers are at hand: the next headers are awaited as soon as one is taken.
                pulse.awaits_headers();
                let app = TowerToHyperService::new(app.layer(Extension(Arc::clone(&pulse))));
                let io = TokioIo::new(Timed::new(io, pulse));
                // A client that goes away, or is too slow, is its own affair.
                let _ = http.serve_connection(io, app).await;
                drop(permit);
            });
        }
    })
}

fn render(process: &Collector, handle: &PrometheusHandle) -> String {
    process.collect();
    // Releases on connections that are gone are counted now.
    sendfile2_axum::outstanding();
    handle.run_upkeep();
    handle.render()
}

fn describe() {
    describe_counter!("sendfile2_sent_bytes_total", "Bytes of files sent, not read, by engine");
    describe_counter!("sendfile2_sends_total", "Sends of file ranges, by engine");
    describe_counter!("sendfile2_releases_total", "Zerocopy sends released, and whether COPIED");
    describe_counter!("sendfile2_fallbacks_total", "Sends that were copied for want of better");
    describe_counter!("sendfile2_http_bodies_total", "File bodies: mapped, or why they were read");
    describe_counter!("sendfile2_http_requests_total", "Requests answered, by status");
    describe_counter!("sendfile2_http_broken_total", "Answers that broke off, not by the client");
    describe_counter!("sendfile2_log_lines_dropped_total", "Lines of the access log that are lost");
    describe_counter!("sendfile2_http_refused_total", "More than an address may have, by what");
    describe_counter!("sendfile2_reloads_total", "Reloads, by their result");
    describe_gauge!("sendfile2_build_info", "1, with the version");
    describe_histogram!("sendfile2_http_first_byte_seconds", "From a request to its answer's head");
    describe_histogram!("sendfile2_http_request_seconds", "From a request to its answer's end");
    describe_counter!("sendfile2_http_panics_total", "Requests whose handler or body panicked");
    describe_gauge!("sendfile2_http_connections", "Connections");
    describe_gauge!("sendfile2_in_flight_sends", "Zerocopy sends that are not released");
    describe_gauge!("sendfile2_unknown_sends", "Of connections that are gone: not known released");
    describe_histogram!(
        "sendfile2_release_seconds",
        "From a zerocopy send to its release; up to 1 s too much for connections that are gone"
    );
}
