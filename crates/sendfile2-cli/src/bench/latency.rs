//! `sendfile2 bench latency`.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::Common;
use super::bed::{Bed, Path};
use super::process::Pair;
use super::result::{LatencyRow, Rows, Skipped};
use super::rounds::{self, Limits};
use super::way::Way;
use crate::units;

/// How long --quick may measure.
const QUICK: Duration = Duration::from_secs(15);

/// Sends of a way before it is the next one's turn.
const TURN: u32 = 20;

/// Percentiles of the curve.
const CURVE: [f64; 20] = [
    0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.0, 98.0,
    99.0, 99.5, 99.9, 100.0,
];

/// Measure how long after a send its bytes are released, and acknowledged
///
/// From when the last byte was handed over, on a connection that is otherwise idle and whose receiver
/// reads at once. The sender watches without a pause. The ways take turns.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 bench latency --quick
  sendfile2 bench latency --size 64K,1M,16M --sends 10000 --save latency.json
  sendfile2 bench latency --json | jq '.rows[] | {path, engine, size, until, p99}'")]
pub(super) struct Args {
    /// Ways to measure [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = Way::parser())]
    engine: Vec<Way>,
    /// Where the receiver is: "lo", at the other end of loopback, or "veth", of a veth pair made for it
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "lo,veth")]
    path: Vec<Path>,
    /// Bytes of a send (4K to 1G)
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "64K,1M",
          value_parser = size)]
    size: Vec<u64>,
    /// Sends of each way, if there is the time
    #[arg(long, value_name = "NUMBER", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..))]
    sends: u64,
    #[command(flatten)]
    common: Common,
}

fn size(text: &str) -> Result<u64, String> {
    super::between(text, 4 << 10, 1 << 30, "4K and 1G")
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let limits = Limits { width: 0.0, deadline: args.common.deadline(QUICK) };
    let mut bed = Bed::new(&args.common, args.size.iter().copied().max().unwrap_or(0))?;
    let progress = rounds::progress(&limits)?;
    let ways: Vec<Way> =
        Way::all().filter(|way| args.engine.is_empty() || args.engine.contains(way)).collect();
    let mut rows = Vec::new();
    let mut left = args.path.len() * args.size.len();
    for path in &args.path {
        let Some(mut pair) = bed.pair(*path)? else {
            left -= args.size.len();
            continue;
        };
        for &size in &args.size {
            progress.set_message(format!("{path}, {}", units::bytes(size)));
            let mut all: Vec<_> = ways.iter().map(|way| Times::new(*way)).collect();
            let setting = format!("{path}, {}", units::bytes(size));
            let refused =
                measure(&mut pair, &mut all, size, args.sends, &limits.share(left), || {
                    progress.set_position(progress.elapsed().as_secs());
                });
            let refused = refused.with_context(|| setting.clone())?;
            bed.skip(refused.into_iter().map(|(way, error)| Skipped {
                what: format!("{way}, {setting}"),
                why: crate::output::whole(&error),
            }));
            rows.extend(all.iter().flat_map(|times| times.rows(*path, size)));
            left -= 1;
        }
    }
    progress.finish_and_clear();
    bed.finish(Rows::Latency(rows), &args.common)
}

/// Measures those of `all` that work, and takes the others out: these are returned, with the reason.
fn measure(
    pair: &mut Pair,
    all: &mut Vec<Times>,
    size: u64,
    sends: u64,
    limits: &Limits,
    progress: impl Fn(),
) -> anyhow::Result<Vec<(Way, anyhow::Error)>> {
    let mut refused = Vec::new();
    loop {
        let ways: Vec<Way> = all.iter().map(|times| times.way).collect();
        pair.connect(&ways, 1)?;
        let tried = ways.iter().find_map(|way| {
            let error = pair.delay(*way, size, TURN, limits.patience()).err()?;
            Some((*way, error))
        });
        let Some((way, error)) = tried else { break };
        if way == Way::Sendfile {
            return Err(error.context(way.to_string()));
        }
        // What is left of its connections is in the way of the others.
        all.retain(|times| times.way != way);
        refused.push((way, error));
    }
    let mut longest = Duration::ZERO;
    let mut done = 0;
    while done == 0 || (done < sends && Instant::now() + longest < limits.deadline) {
        let begin = Instant::now();
        let turn = u32::try_from(sends - done).unwrap_or(TURN).min(TURN);
        let mut round: Vec<_> = all.iter_mut().collect();
        fastrand::shuffle(&mut round);
        for times in round {
            let delays = pair.delay(times.way, size, turn, limits.patience())?;
            for value in delays.released.iter().flatten() {
                times.released.saturating_record(*value);
            }
            for value in &delays.acknowledged {
                times.acknowledged.saturating_record(*value);
            }
        }
        longest = longest.max(begin.elapsed());
        done += u64::from(turn);
        progress();
    }
    Ok(refused)
}

/// How long it took, in nanoseconds.
#[derive(Debug)]
struct Times {
    way: Way,
    released: Histogram<u64>,
    acknowledged: Histogram<u64>,
}

impl Times {
    fn new(way: Way) -> Self {
        // Up to a minute, to three digits. These bounds are valid.
        let histogram = || {
            Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds of a histogram")
        };
        Times { way, released: histogram(), acknowledged: histogram() }
    }

    fn rows(&self, path: Path, size: u64) -> impl Iterator<Item = LatencyRow> {
        let both = [("released", &self.released), ("acknowledged", &self.acknowledged)];
        // Of some ways nobody knows when what they sent is released.
        both.into_iter().filter(|(_, times)| !times.is_empty()).map(move |(until, times)| {
            #[expect(clippy::cast_precision_loss, reason = "up to a minute")]
            let at = |percentile| times.value_at_percentile(percentile) as f64 / 1e3;
            LatencyRow {
                path: path.name().into(),
                engine: self.way.name(),
                safe: self.way.is_safe(),
                size,
                until: until.into(),
                sends: times.len(),
                p50: at(50.0),
                p90: at(90.0),
                p99: at(99.0),
                p999: at(99.9),
                max: at(100.0),
                curve: CURVE.map(|percentile| [percentile, at(percentile)]).to_vec(),
            }
        })
    }
}
