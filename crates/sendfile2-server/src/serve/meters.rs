//! The metrics of the server, which are there, with the value 0, from the start.

use metrics::{Counter, Histogram, counter, gauge, histogram};

/// The names that count by a label, the label, and its values that can be foreseen.
const LABELLED: &[(&str, &str, &[&str])] = &[
    ("sendfile2_sent_bytes_total", "engine", &["copy", "zerocopy"]),
    ("sendfile2_sends_total", "engine", &["copy", "zerocopy"]),
    ("sendfile2_releases_total", "copied", &["yes", "no"]),
    ("sendfile2_fallbacks_total", "why", &["limit", "fault", "refused"]),
    ("sendfile2_http_bodies_total", "became", &["mapped", "not HTTP/1", "read at once"]),
    (
        "sendfile2_http_requests_total",
        "status",
        &["200", "206", "304", "307", "308", "400", "404", "405", "412", "416", "429", "500"],
    ),
];

/// The metrics that each request changes, found once.
pub(super) struct Meters {
    pub(super) at_once: Counter,
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
        let refused = |what| counter!("sendfile2_http_refused_total", "what" => what);
        let reloads = |result| counter!("sendfile2_reloads_total", "result" => result);
        let meters = Meters {
            at_once: counter!("sendfile2_http_bodies_total", "became" => "read at once"),
            began: histogram!("sendfile2_http_first_byte_seconds"),
            ended: histogram!("sendfile2_http_request_seconds"),
            refused_connections: refused("connection"),
            refused_requests: refused("request"),
            reloads: reloads("done"),
            failed_reloads: reloads("failed"),
        };
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
}
