//! The metrics of the server, which are there, with the value 0, from the start.

use super::body::FilesBody;
use axum::http::StatusCode;
use metrics::{Counter, Histogram, counter, gauge, histogram};

/// The names that count by a label, the label, and its values that can be foreseen.
const LABELLED: &[(&str, &str, &[&str])] = &[
    ("sendfile2_sent_bytes_total", "engine", &["copy", "zerocopy"]),
    ("sendfile2_sends_total", "engine", &["copy", "zerocopy"]),
    ("sendfile2_releases_total", "copied", &["yes", "no"]),
    ("sendfile2_fallbacks_total", "why", &["limit", "fault", "refused"]),
    ("sendfile2_http_bodies_total", "became", &["mapped", "not HTTP/1", "read at once"]),
];

/// The statuses of answers that can be foreseen, the most frequent first.
const STATUSES: [u16; 12] = [200, 304, 206, 404, 307, 308, 400, 405, 412, 416, 429, 500];

fn requests(status: u16) -> Counter {
    counter!("sendfile2_http_requests_total", "status" => status.to_string())
}

/// The metrics that each request changes, found once.
pub(super) struct Meters {
    requests: [(u16, Counter); STATUSES.len()],
    pub(super) read: Counter,
    mapped: Counter,
    pub(super) began: Histogram,
    pub(super) ended: Histogram,
    pub(super) refused_connections: Counter,
    pub(super) refused_requests: Counter,
    pub(super) reloads: Counter,
    pub(super) failed_reloads: Counter,
}

impl Meters {
    /// Begins all metrics, of the recorder that there is by now.
    pub(super) fn new() -> Self {
        for (name, label, values) in LABELLED {
            for value in *values {
                counter!(*name, *label => *value).increment(0);
            }
        }
        for name in ["sendfile2_http_broken_total", "sendfile2_log_lines_dropped_total"] {
            counter!(name).increment(0);
        }
        for name in
            ["sendfile2_http_connections", "sendfile2_in_flight_sends", "sendfile2_unknown_sends"]
        {
            gauge!(name).increment(0);
        }
        let version = env!("CARGO_PKG_VERSION");
        gauge!("sendfile2_build_info", "version" => version, "arch" => std::env::consts::ARCH)
            .set(1);
        // Known to the recorder, so that it is there before anything is released.
        let _ = histogram!("sendfile2_release_seconds");
        let became = |what| counter!("sendfile2_http_bodies_total", "became" => what);
        let refused = |what| counter!("sendfile2_http_refused_total", "what" => what);
        let reloads = |result| counter!("sendfile2_reloads_total", "result" => result);
        let meters = Meters {
            requests: STATUSES.map(|status| (status, requests(status))),
            read: became("read at once"),
            mapped: became("mapped"),
            began: histogram!("sendfile2_http_first_byte_seconds"),
            ended: histogram!("sendfile2_http_request_seconds"),
            refused_connections: refused("connection"),
            refused_requests: refused("request"),
            reloads: reloads("done"),
            failed_reloads: reloads("failed"),
        };
        for (_, counter) in &meters.requests {
            counter.increment(0);
        }
        for counter in [
            &meters.refused_connections,
            &meters.refused_requests,
            &meters.reloads,
            &meters.failed_reloads,
        ] {
            counter.increment(0);
        }
        meters
    }

    /// A request was answered before the layers.
    pub(super) fn at_once(&self, body: &FilesBody) {
        match body {
            FilesBody::Dir(_) => self.mapped.increment(1),
            FilesBody::Text(_) => self.read.increment(1),
        }
    }

    /// A request was answered.
    pub(super) fn answered(&self, status: StatusCode) {
        let status = status.as_u16();
        match self.requests.iter().find(|(of, _)| *of == status) {
            Some((_, counter)) => counter.increment(1),
            None => requests(status).increment(1),
        }
    }
}
