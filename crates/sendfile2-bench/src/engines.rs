//! `sendfile2 bench engines`.

use std::time::Duration;

use anyhow::Context;

use super::result::{Row, Rows, Skipped};
use super::rounds::{self, Limits, Setting};
use super::test_bed::TestBed;
use crate::args::{self, Path};
use crate::method::Method;

/// The longest that --quick may measure.
const QUICK: Duration = Duration::from_secs(28);

fn settings(args: &args::Engines, paths: &[Path]) -> Vec<Setting> {
    let chunks = match (&args.chunk[..], args.common.quick) {
        ([], true) => &[64 << 10, 1 << 20],
        ([], false) => &[16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20][..],
        (chosen, _) => chosen,
    };
    let mut settings = Vec::new();
    for path in paths {
        for &streams in &args.streams {
            for &size in &args.size {
                for &chunk in chunks.iter().filter(|chunk| **chunk <= size) {
                    let path = path.name();
                    let (cold, more) = (args.cold, args.more);
                    settings.push(Setting { path, streams, chunk, size, cold, more });
                }
            }
        }
    }
    settings
}

fn methods(args: &args::Engines) -> Vec<Method> {
    if args.engine.is_empty() {
        return Method::all().collect();
    }
    let chosen = |method: &Method| *method == Method::Sendfile || args.engine.contains(method);
    Method::named().filter(chosen).collect()
}
pub(super) fn run(args: &args::Engines) -> anyhow::Result<()> {
    let place = args.place.net()?;
    let paths = if place.is_some() { &[Path::Peer][..] } else { &args.path };
    let settings = settings(args, paths);
    anyhow::ensure!(!settings.is_empty(), "every --chunk is larger than every --size");
    let limits = Limits { width: args.ci / 100.0, deadline: args.common.deadline(QUICK) };
    let largest = args.size.iter().copied().max().unwrap_or(0);
    let mut bed = TestBed::new(&args.common, largest)?;
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
            let measured = rounds::measure(
                &mut pair,
                &methods(args),
                *setting,
                &limits.share(left),
                &progress,
            )
            .with_context(|| setting.to_string())?;
            rows.extend(measured.rows(&bed.machine));
            bed.skip(Skipped::refused(&measured));
            left -= 1;
        }
    }
    progress.finish_and_clear();
    bed.finish(Rows::Engines(rows), &args.common)
}
