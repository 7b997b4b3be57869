//! `sendfile2 bench latency`.

use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;

use super::process::Pair;
use super::result::{LatencyRow, Rows, Skipped};
use super::rounds::{self, Limits};
use super::test_bed::TestBed;
use crate::args::{self, Path};
use crate::method::Method;
use crate::units;

/// The longest that --quick may measure.
const QUICK: Duration = Duration::from_secs(15);

/// The sends of a method in one round.
const SENDS_A_ROUND: u32 = 20;

/// Percentiles of the curve.
const CURVE: [f64; 20] = [
    0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 97.0, 98.0,
    99.0, 99.5, 99.9, 100.0,
];

pub(super) fn run(args: &args::Latency) -> anyhow::Result<()> {
    let limits = Limits { width: 0.0, deadline: args.common.deadline(QUICK) };
    let mut bed = TestBed::new(&args.common, args.size.iter().copied().max().unwrap_or(0))?;
    let progress = rounds::progress(&limits)?;
    let methods: Vec<Method> = Method::releasing()
        .filter(|method| args.engine.is_empty() || args.engine.contains(method))
        .collect();
    let mut rows = Vec::new();
    let mut left = args.path.len() * args.size.len();
    for path in &args.path {
        let Some(mut pair) = bed.pair(*path)? else {
            left -= args.size.len();
            continue;
        };
        for &size in &args.size {
            progress.set_message(format!("{path}, {}", units::bytes(size)));
            let mut all: Vec<_> = methods.iter().map(|method| Times::new(*method)).collect();
            let setting = format!("{path}, {}", units::bytes(size));
            let refused =
                measure(&mut pair, &mut all, size, args.sends, &limits.share(left), || {
                    progress.set_position(progress.elapsed().as_secs());
                });
            let refused = refused.with_context(|| setting.clone())?;
            bed.skip(refused.into_iter().map(|(method, error)| Skipped {
                what: format!("{method}, {setting}"),
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
) -> anyhow::Result<Vec<(Method, anyhow::Error)>> {
    let mut refused = Vec::new();
    loop {
        let methods: Vec<Method> = all.iter().map(|times| times.method).collect();
        pair.connect(&methods, 1)?;
        let tried = methods.iter().find_map(|method| {
            let error = pair.delay(*method, size, SENDS_A_ROUND, limits.timeout()).err()?;
            Some((*method, error))
        });
        let Some((method, error)) = tried else { break };
        if method == Method::Sendfile {
            return Err(error.context(method.to_string()));
        }
        // The rest of its connections would be in the way of the others.
        all.retain(|times| times.method != method);
        refused.push((method, error));
    }
    let mut longest = Duration::ZERO;
    let mut done = 0;
    while done == 0 || (done < sends && Instant::now() + longest < limits.deadline) {
        let begin = Instant::now();
        let now = u32::try_from(sends - done).unwrap_or(SENDS_A_ROUND).min(SENDS_A_ROUND);
        let mut round: Vec<_> = all.iter_mut().collect();
        fastrand::shuffle(&mut round);
        for times in round {
            let delays = pair.delay(times.method, size, now, limits.timeout())?;
            for value in delays.released.iter().flatten() {
                times.released.saturating_record(*value);
            }
            for value in &delays.acknowledged {
                times.acknowledged.saturating_record(*value);
            }
        }
        longest = longest.max(begin.elapsed());
        done += u64::from(now);
        progress();
    }
    Ok(refused)
}

/// The times of the sends of one method, in nanoseconds.
#[derive(Debug)]
struct Times {
    method: Method,
    released: Histogram<u64>,
    acknowledged: Histogram<u64>,
}

impl Times {
    fn new(method: Method) -> Self {
        // Up to a minute, to three digits. These bounds are valid.
        let histogram = || {
            Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds of a histogram")
        };
        Times { method, released: histogram(), acknowledged: histogram() }
    }

    fn rows(&self, path: Path, size: u64) -> impl Iterator<Item = LatencyRow> {
        let both = [("released", &self.released), ("acknowledged", &self.acknowledged)];
        // Some methods do not report when what they sent is released.
        both.into_iter().filter(|(_, times)| !times.is_empty()).map(move |(until, times)| {
            #[expect(clippy::cast_precision_loss, reason = "up to a minute")]
            let at = |percentile| times.value_at_percentile(percentile) as f64 / 1e3;
            LatencyRow {
                path: path.name().into(),
                method: self.method.name(),
                safe: self.method.is_safe(),
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
