//! The arguments of `sendfile2 bench`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueHint};
use sendfile2::Engine;

use crate::method::Method;
use crate::netns::Place;
use crate::units;

/// Measure what each method of sending costs, and compare results
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  sendfile2 bench engines --quick    each engine against sendfile(2), in half a minute
  sendfile2 bench help engines       how it measures, and what can be chosen"
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// A command of `sendfile2 bench`.
#[derive(Debug, Subcommand)]
#[expect(missing_docs, reason = "the arguments say what each is")]
pub enum Command {
    Engines(Box<Engines>),
    Latency(Latency),
    Guard(Guard),
    Memory(Memory),
    Http(Http),
    Crowd(Crowd),
    Cache(Cache),
    Compare(Compare),
    Report(Report),
}

/// The arguments that all commands that measure have.
#[derive(Debug, clap::Args)]
pub struct Common {
    /// The longest to measure, such as 30s or 10m [default: 3m]
    #[arg(long, value_parser = units::duration)]
    pub time: Option<Duration>,
    /// Measure less, in less than 40 seconds
    #[arg(long, conflicts_with = "time")]
    pub quick: bool,
    /// Directory for the file, which is gone afterwards [default: a disk, the current directory
    /// first]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
    /// Write the results to a file, for compare and report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save: Option<PathBuf>,
    /// Print one JSON object in place of the table
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Returns the time to stop at, given how long --quick takes.
    pub fn deadline(&self, quick: Duration) -> Instant {
        let default = if self.quick { quick } else { Duration::from_secs(180) };
        Instant::now() + self.time.unwrap_or(default)
    }
}

/// Compare the engines with sendfile(2), splice(2) and read(2) + write(2)
///
/// A sender and a receiver, each a process on a processor of its own, send a file with each method in
/// turn, round after round, until the figures are certain or the time is up. Both figures are
/// shown: the sender's CPU, and that of sender and receiver together, because on one machine
/// zerocopy moves work to the receiver. Ratios are to sendfile(2) in the same round.
///
/// On loopback and on a veth pair nothing is zero copy, whatever the engine is called: the COPIED
/// column says how many sends the kernel copied.
///
/// The method: the sender serves all streams from one thread, non-blocking, with epoll, by the same
/// loop for each method; streams take turns, one call each, with the next chunk of the file, which is
/// sent again and again. Its clock stops when everything is received and released. read+write and
/// splice have buffers of a chunk, but of 1 MiB at most. The receiver reads into a buffer of 1 MiB.
/// CPU is that of the two processes (`CLOCK_PROCESS_CPUTIME_ID`), with the softirqs of the network
/// that ran in their time; on loopback delivery runs in the sender's. With --cold, each measurement
/// sends the whole file once, after it was dropped from the page cache, and opens and maps it anew.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench engines --quick                 in half a minute
  sendfile2 bench engines --save before.json      and later: sendfile2 bench compare before.json after.json
  sendfile2 bench engines --path lo --streams 1 --chunk 4K,64K,1M,16M --size 64K,64M,1G --time 10m
  sendfile2 bench engines --cold --size 256M --dir /srv/data
  sendfile2 bench engines --quick --peer-netns /run/netns/peer --connect 10.0.0.1
                                  over what leads to a namespace of yours
  sendfile2 bench engines --quick --json | jq '.rows[] | {path, streams, engine, chunk, total_cpu_ratio}'")]
pub struct Engines {
    /// Ways to compare; sendfile is always among them [default: all but auto+lease]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Method::parser(Method::named()))]
    pub engine: Vec<Method>,
    /// Place of the receiver: "lo", at the other end of loopback, or "veth", of a veth pair made
    /// for it
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "lo,veth",
        conflicts_with = "peer_netns"
    )]
    pub path: Vec<Path>,
    /// The place of the receiver.
    #[command(flatten)]
    pub place: Place,
    /// Connections at a time
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,32",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    pub streams: Vec<u32>,
    /// Bytes that each call is given (4K to 16M) [default: 16K,64K,256K,1M,4M; with --quick 64K,1M]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = chunk)]
    pub chunk: Vec<u64>,
    /// Sizes of the file (4K to 16G); a larger chunk is left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64M", value_parser = size)]
    pub size: Vec<u64>,
    /// Send from a file that is not in the page cache
    #[arg(long)]
    pub cold: bool,

    /// Announce with each call that more follows, as for a file that is sent in pieces: `MSG_MORE`,
    /// and for sendfile, splice and read+write `TCP_CORK`
    #[arg(long)]
    pub more: bool,
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
    /// Stop early when all 95 % confidence intervals are narrower than this, in percent of the median
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent)]
    pub ci: f64,
}

/// Measure how long after a send its bytes are released, and acknowledged
///
/// From when the last byte was handed over, on a connection that is otherwise idle and whose receiver
/// reads at once. The sender watches without a pause. The methods take turns.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench latency --quick
  sendfile2 bench latency --size 64K,1M,16M --sends 10000 --save latency.json
  sendfile2 bench latency --json | jq '.rows[] | {path, engine, size, until, p99}'")]
pub struct Latency {
    /// Ways to measure [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Method::parser(Method::releasing()))]
    pub engine: Vec<Method>,
    /// Place of the receiver: "lo", at the other end of loopback, or "veth", of a veth pair made
    /// for it
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "lo,veth")]
    pub path: Vec<Path>,
    /// Bytes of a send (4K to 1G)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64K,1M",
          value_parser = latency_size)]
    pub size: Vec<u64>,
    /// Sends of each method, if there is the time
    #[arg(long, value_name = "NUMBER", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..))]
    pub sends: u64,
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
}

/// Measure what a lease costs, and sends under leases
///
/// A lease taken and ended, alone and among ten thousand; and sends of 64 KiB over loopback, each
/// under a lease of its own, against the same sends without.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench guard --quick
  sendfile2 bench guard --json | jq '.rows[] | {what, nanoseconds, ratio}'")]
pub struct Guard {
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
    /// Stop early when all 95 % confidence intervals are narrower than this, in percent of the median
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = percent)]
    pub ci: f64,
}

/// Measure the memory that a connection takes, a send in flight, and a lease
///
/// The memory is that of the library, in this process: a process of its own makes many of them, and
/// its growth is divided by their number. The kernel's memory for sockets and for what is in flight
/// is not included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench memory
  sendfile2 bench memory --json | jq '.rows[] | {what, bytes}'")]
pub struct Memory {
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
}

/// Measure what serving files by HTTP costs, beside nginx and tower-http
///
/// Servers with one worker each on one processor, wrk on another one, and files that are in memory.
/// The servers take turns of a second in an order of chance; ratios are to nginx in the same round.
/// nginx is set to use sendfile, to push nothing early, and to keep files open.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs the programs wrk and nginx (Debian: apt-get install wrk nginx-light).

Examples:
  sendfile2 bench http --quick
  sendfile2 bench http --time 10m --save http.json
  sendfile2 bench http --json | jq '.rows[] | {server, size, server_cpu_s_per_gb}'")]
pub struct Http {
    /// Servers to measure
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = HttpServer::parser(),
          default_value = "sendfile2,nginx,ServeDir")]
    pub server: Vec<HttpServer>,
    /// Bytes of a file (1 to 1G)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4K,64K,1M,64M",
          value_parser = http_size)]
    pub size: Vec<u64>,
    /// Connections at a time, each with one request after the other [default: 32, and 4 for files of
    /// 16M and more]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: Option<u32>,
    /// Way in which sendfile2 sends: auto, copy or zerocopy
    #[arg(long, default_value_t)]
    pub engine: Engine,
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
}

/// Measure what answers from a cache cost, beside nginx and Varnish
///
/// Caches with one worker each on one processor, and on another one the clients and the origin. They
/// take turns of a second in an order of chance. First hits, by wrk, of each size; then three hits to a
/// miss, of bodies of 64 KiB, in a store that is smaller than what is asked for; then the time from a
/// start to the first hit, after many objects were stored and the server was killed.
///
/// nginx is there twice, with sendfile and without; ratios are to the better one in the same round. It
/// keeps files open, and does not wait to fill packets (`tcp_nopush` stalls for 40 ms on loopback).
/// Varnish keeps its bodies in memory, and nothing after it was killed: it has no third part. It is
/// one process with many threads.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Needs the programs wrk, nginx and varnishd (Debian: apt-get install wrk nginx-light varnish); a cache
that is not there is left out, which the result says.

Examples:
  sendfile2 bench cache --quick
  sendfile2 bench cache --time 10m --save cache.json
  sendfile2 bench cache --json | jq '.rows[] | {server, load, size, server_cpu_us_per_request}'")]
pub struct Cache {
    /// Caches to measure; nginx-copy is nginx without sendfile
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = CacheServer::parser(),
          default_value = "sendfile2,nginx,nginx-copy,varnish")]
    pub server: Vec<CacheServer>,
    /// Bytes of a body that is hit (1 to 4M)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4K,64K,1M",
          value_parser = cache_size)]
    pub size: Vec<u64>,
    /// Connections at a time, each with one request after the other
    #[arg(long, value_name = "NUMBER", default_value_t = 32,
          value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub connections: u32,
    /// Objects of 1 KiB that are stored before the restart, which is not part of the time; 0 leaves it
    /// out [default: 1000000; with --quick 10000]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(..=10_000_000))]
    pub objects: Option<u32>,
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
}

/// Serve many slow clients at once: what they get, and what they cost
///
/// Clients connect to "sendfile2 serve" with one worker, all of them, then ask for a file, and read
/// it at a steady rate. Fails if a client does not get all of it, or gets a wrong byte.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server needs a descriptor a client. Where the hard limit is lower, root may raise it, and this does.

Examples:
  sendfile2 bench crowd                   10,000 clients
  sendfile2 bench crowd --connections 1000 --engine zerocopy --json")]
pub struct Crowd {
    /// Clients
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=28_000))]
    pub connections: u32,
    /// Bytes of the file (4K to 64M)
    #[arg(long, default_value = "1M", value_parser = crowd_size)]
    pub size: u64,
    /// Bytes a second that each client reads
    #[arg(long, default_value = "50K", value_parser = units::rate)]
    pub rate: u64,
    /// Way in which files are sent: auto, copy or zerocopy
    #[arg(long, default_value_t)]
    pub engine: Engine,
    /// The arguments of all that measure.
    #[command(flatten)]
    pub common: Common,
}

/// Say what changed between two results, beyond noise
///
/// A figure has changed if the 95 % confidence intervals of its medians do not overlap. Results of
/// the benchmarks engines, guard, http and cache have such intervals.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench engines --save before.json
  sendfile2 bench engines --save after.json
  sendfile2 bench compare before.json after.json
  sendfile2 bench compare before.json after.json --json | jq '.changed[] | {what, figure, change}'")]
pub struct Compare {
    /// The older result
    #[arg(value_name = "A", value_hint = ValueHint::FilePath)]
    pub before: PathBuf,
    /// The newer one
    #[arg(value_name = "B", value_hint = ValueHint::FilePath)]
    pub after: PathBuf,
    /// Print one JSON object in place of the table
    #[arg(long)]
    pub json: bool,
}

/// Turn saved results into a page
///
/// OUT.html is one file with plots and tables, that needs nothing else, light or dark as the reader
/// has it; OUT.md has the tables.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench engines --save engines.json
  sendfile2 bench latency --save latency.json
  sendfile2 bench report engines.json latency.json -o report.html
  sendfile2 bench report engines.json -o report.md")]
pub struct Report {
    /// Results that --save has written
    #[arg(value_name = "RESULT", required = true, value_hint = ValueHint::FilePath)]
    pub results: Vec<PathBuf>,
    /// File to write: a name that ends in .html or .md
    #[arg(short, long, value_name = "OUT", value_parser = page, value_hint = ValueHint::FilePath)]
    pub output: Page,
}

/// The file that a report is written to, by its language.
#[derive(Debug, Clone)]
pub enum Page {
    /// A page for browsers.
    Html(PathBuf),
    /// Tables.
    Markdown(PathBuf),
}

/// The path between sender and receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// Loopback.
    Loopback,
    /// A veth pair.
    Veth,
    /// The path to the receiver in the namespace that `--peer-netns` names.
    Peer,
}

impl Path {
    /// The paths that there are without a namespace of the user's.
    pub const ALL: [Path; 2] = [Path::Loopback, Path::Veth];

    /// Returns the path's name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Path::Loopback => "lo",
            Path::Veth => "veth",
            Path::Peer => "peer",
        }
    }
}

impl FromStr for Path {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Path::ALL.into_iter().find(|path| path.name() == name);
        known.ok_or_else(|| "there are lo and veth".into())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An HTTP server that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpServer {
    /// `sendfile2 serve`.
    Ours,
    /// nginx.
    Nginx,
    /// The server of a directory of tower-http's.
    ServeDir,
}

impl HttpServer {
    const ALL: [HttpServer; 3] = [HttpServer::Ours, HttpServer::Nginx, HttpServer::ServeDir];

    fn name(self) -> &'static str {
        match self {
            HttpServer::Ours => "sendfile2",
            HttpServer::Nginx => "nginx",
            HttpServer::ServeDir => "ServeDir",
        }
    }

    /// Reads a server's name from the command line.
    pub fn parser() -> impl TypedValueParser<Value = HttpServer> {
        PossibleValuesParser::new(HttpServer::ALL.map(HttpServer::name)).try_map(|name| {
            HttpServer::ALL
                .into_iter()
                .find(|which| which.name() == name)
                .ok_or("there is no such server")
        })
    }
}

impl fmt::Display for HttpServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A cache that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheServer {
    /// `sendfile2 cache`.
    Ours,
    /// nginx, which sends by sendfile(2).
    Nginx,
    /// nginx, which reads and writes.
    NginxCopy,
    /// Varnish, with its bodies in memory.
    Varnish,
}

impl CacheServer {
    const ALL: [CacheServer; 4] =
        [CacheServer::Ours, CacheServer::Nginx, CacheServer::NginxCopy, CacheServer::Varnish];

    fn name(self) -> &'static str {
        match self {
            CacheServer::Ours => "sendfile2",
            CacheServer::Nginx => "nginx",
            CacheServer::NginxCopy => "nginx-copy",
            CacheServer::Varnish => "varnish",
        }
    }

    /// Reads a cache's name from the command line.
    pub fn parser() -> impl TypedValueParser<Value = CacheServer> {
        PossibleValuesParser::new(CacheServer::ALL.map(CacheServer::name)).try_map(|name| {
            CacheServer::ALL
                .into_iter()
                .find(|which| which.name() == name)
                .ok_or("there is no such cache")
        })
    }
}

impl fmt::Display for CacheServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn between(text: &str, low: u64, high: u64, words: &str) -> Result<u64, String> {
    let size = units::size(text)?;
    if (low..=high).contains(&size) { Ok(size) } else { Err(format!("must be between {words}")) }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("give a number of percent, more than 0 and at most 100".into()),
    }
}

fn chunk(text: &str) -> Result<u64, String> {
    between(text, 4 << 10, 16 << 20, "4K and 16M")
}

fn size(text: &str) -> Result<u64, String> {
    between(text, 4 << 10, 16 << 30, "4K and 16G")
}

fn latency_size(text: &str) -> Result<u64, String> {
    between(text, 4 << 10, 1 << 30, "4K and 1G")
}

fn http_size(text: &str) -> Result<u64, String> {
    between(text, 1, 1 << 30, "1 and 1G")
}

fn cache_size(text: &str) -> Result<u64, String> {
    between(text, 1, 4 << 20, "1 and 4M")
}

fn crowd_size(text: &str) -> Result<u64, String> {
    between(text, 4 << 10, 64 << 20, "4K and 64M")
}

fn page(name: &str) -> Result<Page, String> {
    let path = PathBuf::from(name);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "htm") => Ok(Page::Html(path)),
        Some("md" | "markdown") => Ok(Page::Markdown(path)),
        _ => Err("the name must end in .html or .md".into()),
    }
}
