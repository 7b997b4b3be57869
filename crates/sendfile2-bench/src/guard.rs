//! `sendfile2 bench guard`.

use std::time::{Duration, Instant};

use anyhow::Context;
use sendfile2::Engine;
use sendfile2::guard::GuardedFile;

use super::clock;
use super::process::Sample;
use super::result::{GuardRow, Rows, Skipped};
use super::rounds::{self, Limits, Setting};
use super::stats::Median;
use super::test_bed::TestBed;
use super::waits;
use crate::args::{self, Path};
use crate::method::Method;

/// The longest that --quick may measure.
const QUICK: Duration = Duration::from_secs(15);

/// The size of the file, and of the calls.
const SIZE: u64 = 64 << 20;
const CHUNK: u64 = 64 << 10;

/// The numbers of other leases that are in flight.
const OTHERS: [u64; 2] = [0, 10_000];

pub(super) fn run(args: &args::Guard) -> anyhow::Result<()> {
    let limits = Limits { width: args.ci / 100.0, deadline: args.common.deadline(QUICK) };
    let mut bed = TestBed::new(&args.common, SIZE)?;
    let progress = rounds::progress(&limits)?;
    let mut rows = OTHERS.map(leases).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for engine in [Engine::Sendfile, Engine::Zerocopy] {
        match waits::rows(&bed.directory, engine) {
            Ok(measured) => rows.extend(measured),
            Err(error) => bed.skip([Skipped {
                what: format!("writers beside stalled clients, {engine}"),
                why: crate::output::whole(&error),
            }]),
        }
    }
    let methods: Vec<Method> = Engine::ALL
        .iter()
        .flat_map(|engine| [unguarded(*engine), Method::Leased(*engine)])
        .collect();
    let mut pair = bed.pair(Path::Loopback)?.context("no loopback")?;
    for (done, streams) in [1, 32].into_iter().enumerate() {
        let setting = Setting {
            path: Path::Loopback.name(),
            streams,
            chunk: CHUNK,
            size: SIZE,
            cold: false,
            more: false,
        };
        progress.set_message(setting.to_string());
        let measured =
            rounds::measure(&mut pair, &methods, setting, &limits.share(2 - done), &progress)?;
        for method in &methods {
            let unguarded = method.engine().map_or(*method, unguarded);
            let figure = measured.figure(*method, unguarded, Sample::sender_cpu_per_send);
            let Some((cost, ratio)) = figure else { continue };
            let ratio = (*method != unguarded).then_some(ratio);
            rows.push(GuardRow {
                what: format!("send by {method}, {setting}"),
                nanoseconds: cost.value,
                ci: cost.interval,
                ratio: ratio.map(|ratio| ratio.value),
                ratio_ci: ratio.and_then(|ratio| ratio.interval),
                rounds: measured.rounds(),
            });
        }
        bed.skip(Skipped::refused(&measured));
    }
    drop(pair);
    progress.finish_and_clear();
    bed.finish(Rows::Guard(rows), &args.common)
}

/// The same sends without a lease: `sendfile(2)` itself where the engine needs one.
fn unguarded(engine: Engine) -> Method {
    if engine == Engine::Sendfile { Method::Sendfile } else { Method::Library(engine) }
}

/// Measures a lease taken and ended, while `others` are in flight on other ranges.
fn leases(others: u64) -> anyhow::Result<GuardRow> {
    const SLOT: u64 = 4096;
    const LEASES: u64 = 20_000;
    let slots = 2 * others.max(1);
    let file = tempfile::tempfile().context("cannot make a file")?;
    file.set_len(slots * SLOT)?;
    let guard = GuardedFile::new(file)?;
    let held: Option<Vec<_>> =
        (0..others).map(|i| guard.try_lease(i * 2 * SLOT..(i * 2 + 1) * SLOT)).collect();
    let held = held.context("no lease")?;
    let mut times = Vec::new();
    let end = Instant::now() + Duration::from_millis(500);
    while times.len() < 12 && (times.is_empty() || Instant::now() < end) {
        let start = clock::cpu();
        for i in 0..LEASES {
            // Slots in an order that no cache foresees.
            let slot = i * 7919 % slots;
            guard.try_lease(slot * SLOT..(slot + 1) * SLOT).context("no lease")?;
        }
        #[expect(clippy::cast_precision_loss, reason = "less than a second")]
        times.push((clock::cpu() - start) as f64 / LEASES as f64);
    }
    drop(held);
    let (rounds, cost) = (times.len(), Median::of(times));
    Ok(GuardRow {
        what: format!("lease and release, {others} others in flight"),
        nanoseconds: cost.value,
        ci: cost.interval,
        ratio: None,
        ratio_ci: None,
        rounds,
    })
}
