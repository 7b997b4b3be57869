//! The findings of a benchmark, as they are printed and saved.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::message::Hello;
use super::rounds::Measured;
use super::stats::Median;

/// The format of saved results. Fields may be added to it.
const VERSION: u32 = 1;

/// A result that may be of any benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Saved {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) rows: Rows,
    pub(super) machine: Machine,
    pub(super) paths: Vec<PathRow>,
    /// The measurements that could not be made, and why.
    pub(super) skipped: Vec<Skipped>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "bench", content = "rows", rename_all = "lowercase")]
pub(super) enum Rows {
    Engines(Vec<Row>),
    Guard(Vec<GuardRow>),
    Latency(Vec<LatencyRow>),
    Memory(Vec<MemoryRow>),
    Http(Vec<HttpRow>),
    Crowd(Vec<CrowdRow>),
    Cache(Vec<CacheRow>),
}

/// A path that was measured, and what its network is set to.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PathRow {
    pub(super) path: String,
    pub(super) congestion_control: Option<String>,
    pub(super) tcp_wmem: Option<String>,
    pub(super) tcp_rmem: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Skipped {
    pub(super) what: String,
    pub(super) why: String,
}

/// One method in one setting: medians over the rounds. GB are 10⁹ bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) path: String,
    pub(super) streams: u32,
    #[serde(rename = "engine")]
    pub(super) method: String,
    /// Whether the sender knows when the file may be overwritten.
    pub(super) safe: bool,
    pub(super) chunk: u64,
    pub(super) size: u64,
    pub(super) cold: bool,
    /// Whether each call announced that more follows.
    pub(super) more: bool,
    pub(super) gb_per_s: f64,
    pub(super) sender_cpu_s_per_gb: f64,
    pub(super) receiver_cpu_s_per_gb: f64,
    pub(super) total_cpu_s_per_gb: f64,
    /// The ratio of the throughput to that of `reference` in the same round.
    pub(super) throughput_ratio: f64,
    pub(super) sender_cpu_ratio: f64,
    pub(super) total_cpu_ratio: f64,
    pub(super) reference: String,
    /// The share of the sends that succeeded whose bytes the kernel copied: plain copies, and
    /// zerocopy sends whose notification had COPIED. `None` where the kernel does not report that.
    pub(super) copied_share: Option<f64>,
    /// The share of the throughput in that of a copy loop in memory.
    pub(super) memory_copy_share: f64,
    pub(super) rounds: usize,
    /// 95 % confidence intervals of the medians.
    pub(super) ci: Intervals,
    pub(super) bytes_per_send: f64,
    /// The number of times that the sender slept, for each send, and below, that it was made to
    /// give up the processor.
    pub(super) switches_per_send: f64,
    pub(super) preemptions_per_send: f64,
    /// The instructions of a send outside the kernel. `None` where the processor's counters are not
    /// to be had (`perf_event_open(2)`), as in most virtual machines; docs/costs.md has other ways
    /// to count them.
    pub(super) user_instructions_per_send: Option<f64>,
}

/// The 95 % confidence intervals; `None` if there were too few rounds for one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Intervals {
    pub(super) gb_per_s: Option<[f64; 2]>,
    pub(super) sender_cpu_s_per_gb: Option<[f64; 2]>,
    pub(super) total_cpu_s_per_gb: Option<[f64; 2]>,
    pub(super) throughput_ratio: Option<[f64; 2]>,
    pub(super) sender_cpu_ratio: Option<[f64; 2]>,
    pub(super) total_cpu_ratio: Option<[f64; 2]>,
}

/// The cost of an operation of the guard.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct GuardRow {
    pub(super) what: String,
    /// The CPU time in nanoseconds: for sends the sender's. For writes, the time that they took.
    pub(super) nanoseconds: f64,
    pub(super) ci: Option<[f64; 2]>,
    /// The ratio to the same without a lease, for sends; for a write, to one by direct I/O.
    pub(super) ratio: Option<f64>,
    pub(super) ratio_ci: Option<[f64; 2]>,
    pub(super) rounds: usize,
}

/// The time that a send took from when its last byte was handed over, in microseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LatencyRow {
    pub(super) path: String,
    #[serde(rename = "engine")]
    pub(super) method: String,
    pub(super) safe: bool,
    pub(super) size: u64,
    /// The end of the time: "released" or "acknowledged".
    pub(super) until: String,
    pub(super) sends: u64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    #[serde(rename = "p99.9")]
    pub(super) p999: f64,
    pub(super) max: f64,
    /// Percentiles and their times, as a curve.
    pub(super) curve: Vec<[f64; 2]>,
}

/// The memory that one of many things takes in this process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MemoryRow {
    pub(super) what: String,
    pub(super) bytes: f64,
    /// The number of things that there were at a time.
    pub(super) number: u64,
}

/// A median of the rounds, and that of its ratio to nginx in the same round, where that ran.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Figure {
    pub(super) value: f64,
    pub(super) ci: Option<[f64; 2]>,
    pub(super) ratio: Option<f64>,
    pub(super) ratio_ci: Option<[f64; 2]>,
}

/// The cost to a server of serving files of a size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HttpRow {
    pub(super) server: String,
    pub(super) size: u64,
    pub(super) connections: u32,
    pub(super) requests_per_s: Figure,
    pub(super) gb_per_s: Figure,
    pub(super) server_cpu_s_per_gb: Figure,
    /// The CPU time of the server and its client.
    pub(super) total_cpu_s_per_gb: Figure,
    pub(super) rounds: usize,
}

/// The figures of a cache under one load. Those that the load does not show are `None`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct CacheRow {
    pub(super) server: String,
    /// The load: "hits", "misses" (a quarter of the requests miss) or "restart".
    pub(super) load: String,
    pub(super) size: u64,
    pub(super) connections: u32,
    pub(super) requests_per_s: Option<Figure>,
    pub(super) server_cpu_us_per_request: Option<Figure>,
    /// The CPU time of the server and its client.
    pub(super) total_cpu_us_per_request: Option<Figure>,
    /// The time that 99 % of the hits took at most, in microseconds.
    pub(super) p99_us: Option<Figure>,
    /// The share of the requests that were hits.
    pub(super) hit_share: Option<f64>,
    pub(super) rounds: usize,
    /// The responses that were stored before the server was killed.
    pub(super) objects: Option<u64>,
    /// The time that storing them took.
    pub(super) fill_s: Option<f64>,
    /// The time from its start to its first hit.
    pub(super) first_hit_s: Option<f64>,
    /// The anonymous memory that the server then has beyond that of an empty one, for each of them.
    pub(super) bytes_per_object: Option<f64>,
}

/// The cost of many slow clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct CrowdRow {
    pub(super) engine: String,
    pub(super) connections: usize,
    pub(super) size: u64,
    pub(super) rate: u64,
    /// Clients that got the whole file.
    pub(super) complete: usize,
    pub(super) wrong_bytes: u64,
    pub(super) seconds: f64,
    /// The most memory that the server had beyond what it had before the clients came, for each
    /// client.
    pub(super) resident_bytes_per_connection: f64,
    /// The same memory for each client, when all were connected and had not asked yet.
    pub(super) resident_bytes_per_idle_connection: f64,
    /// The server's share of one processor, while the clients read.
    pub(super) server_cpu_share: f64,
}

impl Saved {
    pub(super) fn new(
        rows: Rows,
        machine: Machine,
        paths: Vec<PathRow>,
        skipped: Vec<Skipped>,
    ) -> Self {
        let warnings = machine.warnings();
        Saved { version: VERSION, rows, machine, paths, skipped, warnings }
    }

    /// The command that makes such results.
    pub(super) fn bench(&self) -> &'static str {
        match self.rows {
            Rows::Engines(_) => "engines",
            Rows::Guard(_) => "guard",
            Rows::Latency(_) => "latency",
            Rows::Memory(_) => "memory",
            Rows::Http(_) => "http",
            Rows::Crowd(_) => "crowd",
            Rows::Cache(_) => "cache",
        }
    }

    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let saved: Saved = serde_json::from_reader(BufReader::new(file)).with_context(|| {
            format!(
                "{} is not a result of sendfile2 bench (make one with --save FILE)",
                path.display()
            )
        })?;
        if saved.version != VERSION {
            bail!(
                "{} has format {}, this program reads format {VERSION}: measure again",
                path.display(),
                saved.version
            );
        }
        Ok(saved)
    }

    pub(super) fn save(&self, path: Option<&Path>) -> anyhow::Result<()> {
        let Some(path) = path else { return Ok(()) };
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Figure {
    /// Returns a figure of the samples, with its ratio to those of `reference`, round by round.
    pub(super) fn of<S>(samples: &[S], reference: Option<&[S]>, of: impl Fn(&S) -> f64) -> Self {
        let own = Median::of(samples.iter().map(&of));
        let ratio = reference
            .map(|reference| Median::of(samples.iter().zip(reference).map(|(a, b)| of(a) / of(b))));
        Figure {
            value: own.value,
            ci: own.interval,
            ratio: ratio.map(|ratio| ratio.value),
            ratio_ci: ratio.and_then(|ratio| ratio.interval),
        }
    }
}

impl Rows {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Rows::Engines(rows) => rows.is_empty(),
            Rows::Guard(rows) => rows.is_empty(),
            Rows::Latency(rows) => rows.is_empty(),
            Rows::Memory(rows) => rows.is_empty(),
            Rows::Http(rows) => rows.is_empty(),
            Rows::Crowd(rows) => rows.is_empty(),
            Rows::Cache(rows) => rows.is_empty(),
        }
    }
}

impl Skipped {
    /// Returns the methods that did not work in a setting.
    pub(super) fn refused(measured: &Measured) -> impl Iterator<Item = Skipped> + '_ {
        measured.refused.iter().map(|(method, why)| Skipped {
            what: format!("{method}, {}", measured.setting),
            why: why.clone(),
        })
    }
}

impl PathRow {
    pub(super) fn new(path: &str, hello: &Hello) -> Self {
        PathRow {
            path: path.into(),
            congestion_control: hello.congestion_control.clone(),
            tcp_wmem: hello.tcp_wmem.clone(),
            tcp_rmem: hello.tcp_rmem.clone(),
        }
    }
}
