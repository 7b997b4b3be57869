//! `sendfile2 bench engines`.

use std::time::Duration;

use anyhow::Context;

use super::bed::{Bed, Path};
use super::result::{Row, Rows, Skipped};
use super::rounds::{self, Limits, Setting};
use super::way::Way;
use crate::netns::Place;

/// How long --quick may measure.
const QUICK: Duration = Duration::from_secs(28);

/// Compare the engines with sendfile(2), splice(2) and read(2) + write(2)
///
/// A sender and a receiver, each a process on a processor of its own, send a file with each way in
/// turn, round after round, until the figures are certain or the time is up. Both figures are told:
/// the sender's CPU, and that of sender and receiver together, because on one machine zerocopy moves
/// work to the receiver. Ratios are to sendfile(2) in the same round.
///
/// On loopback and on a veth pair nothing is zero copy, whatever the engine is called: the COPIED
/// column says how many sends the kernel copied.
///
/// How it measures: the sender serves all streams from one thread, non-blocking, with epoll, by the
/// same loop for each way; streams take turns, one call each, with the next chunk of the file, which
/// is sent again and again. Its clock stops when everything is received and released. read+write and
/// splice have buffers of a chunk, but of 1 MiB at most. The receiver reads into a buffer of 1 MiB.
/// CPU is that of the two processes (`CLOCK_PROCESS_CPUTIME_ID`), with the softirqs of the network that
/// ran in their time; on loopback delivery runs in the sender's. With --cold, each measurement sends
/// the whole file once, after it was dropped from the page cache, and opens and maps it anew.
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
pub(super) struct Args {
    /// Ways to compare; sendfile is always among them [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Way::parser())]
    engine: Vec<Way>,
    /// Where the receiver is: "lo", at the other end of loopback, or "veth", of a veth pair made for it
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "lo,veth",
        conflicts_with = "peer_netns"
    )]
    path: Vec<Path>,
    #[command(flatten)]
    place: Place,
    /// Connections at a time
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "1,32",
          value_parser = clap::value_parser!(u32).range(1..=256))]
    streams: Vec<u32>,
    /// Bytes that each call is given (4K to 16M) [default: 16K,64K,256K,1M,4M; with --quick 64K,1M]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = chunk)]
    chunk: Vec<u64>,
    /// Sizes of the file (4K to 16G); a larger chunk is left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64M", value_parser = size)]
    size: Vec<u64>,
    /// From a file that is not in the page cache
    #[arg(long)]
    cold: bool,

    /// With calls that say that more follows, as for a file that is sent in pieces: `MSG_MORE`, and
    /// for sendfile, splice and read+write `TCP_CORK`
    #[arg(long)]
    more: bool,
    #[command(flatten)]
    common: super::Common,
    /// Stop early when all 95 % confidence intervals are narrower than this, in percent of the median
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = super::percent)]
    ci: f64,
}

fn chunk(text: &str) -> Result<u64, String> {
    super::between(text, 4 << 10, 16 << 20, "4K and 16M")
}

fn size(text: &str) -> Result<u64, String> {
    super::between(text, 4 << 10, 16 << 30, "4K and 16G")
}

impl Args {
    fn settings(&self, paths: &[Path]) -> Vec<Setting> {
        let chunks = match (&self.chunk[..], self.common.quick) {
            ([], true) => &[64 << 10, 1 << 20],
            ([], false) => &[16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20][..],
            (chosen, _) => chosen,
        };
        let mut settings = Vec::new();
        for path in paths {
            for &streams in &self.streams {
                for &size in &self.size {
                    for &chunk in chunks.iter().filter(|chunk| **chunk <= size) {
                        let path = path.name();
                        let (cold, more) = (self.cold, self.more);
                        settings.push(Setting { path, streams, chunk, size, cold, more });
                    }
                }
            }
        }
        settings
    }

    fn ways(&self) -> Vec<Way> {
        let chosen = |way: &Way| {
            self.engine.is_empty() || *way == Way::Sendfile || self.engine.contains(way)
        };
        Way::all().filter(chosen).collect()
    }
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let place = args.place.net()?;
    let paths = if place.is_some() { &[Path::Peer][..] } else { &args.path };
    let settings = args.settings(paths);
    anyhow::ensure!(!settings.is_empty(), "every --chunk is larger than every --size");
    let limits = Limits { width: args.ci / 100.0, deadline: args.common.deadline(QUICK) };
    let largest = args.size.iter().copied().max().unwrap_or(0);
    let mut bed = Bed::new(&args.common, largest)?;
    if let Some(place) = place {
        bed.set_place(place);
    }
    let progress = rounds::progress(&limits)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut left = settings.len();
    for path in paths {
        let here: Vec<_> = settings.iter().filter(|setting| setting.path == path.name()).collect();
        let Some(mut pair) = bed.pair(*path)? else {
            left -= here.len();
            continue;
        };
        for setting in here {
            progress.set_message(setting.to_string());
            let measured =
                rounds::measure(&mut pair, &args.ways(), *setting, &limits.share(left), &progress)
                    .with_context(|| setting.to_string())?;
            rows.extend(measured.rows(&bed.machine));
            bed.skip(Skipped::refused(&measured));
            left -= 1;
        }
    }
    progress.finish_and_clear();
    bed.finish(Rows::Engines(rows), &args.common)
}
