//! The costs of the library's bookkeeping: leases, the ledger, the decoder.
//! `cargo bench -p sendfile2-bench --features criterion`.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sendfile2::guard::GuardedFile;
use sendfile2_sys::errqueue;
use sendfile2_sys::ledger::Ledger;

fn guarded(bytes: u64) -> GuardedFile {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    GuardedFile::new(file).unwrap()
}

/// A lease granted and ended while 10,000 others are in flight.
fn leases(c: &mut Criterion) {
    const SLOT: u64 = 64 << 10;
    let mut group = c.benchmark_group("guard");
    group.throughput(Throughput::Elements(1));
    let guard = guarded(20_000 * SLOT);
    let held: Vec<_> =
        (0..10_000).map(|i| guard.try_lease(i * 2 * SLOT..(i * 2 + 1) * SLOT).unwrap()).collect();
    let mut slot = 0;
    group.bench_function("lease and release, 10000 in flight", |b| {
        b.iter(|| {
            slot = (slot + 7919) % 20_000;
            black_box(guard.try_lease(slot * SLOT..(slot + 1) * SLOT))
        });
    });
    group.bench_function("exclusive range, 10000 leases in flight", |b| {
        b.iter(|| {
            slot = (slot + 7919) % 10_000;
            // Between the leased slots.
            let at = (slot * 2 + 1) * SLOT;
            guard.write_with(at..at + SLOT, std::time::Instant::now(), |_| Ok(())).unwrap();
        });
    });
    drop(held);
}

fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    group.throughput(Throughput::Elements(1));
    let mut ledger = Ledger::new();
    let mut done = Vec::new();
    for _ in 0..1000 {
        ledger.issue(0_u64);
    }
    group.bench_function("issue and complete, 1000 in flight", |b| {
        b.iter(|| {
            let id = u32::try_from(ledger.issue(0_u64) & 0xffff_ffff).unwrap();
            let oldest = id.wrapping_sub(1000);
            ledger.complete(oldest, oldest, false, &mut done).unwrap();
            done.clear();
        });
    });
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("errqueue");
    group.throughput(Throughput::Elements(1));
    // cmsg_len 48, SOL_IP, IP_RECVERR; an extended error of origin 5, then the offender's address.
    let mut control = Vec::new();
    control.extend(48_usize.to_ne_bytes());
    control.extend([0_i32.to_ne_bytes(), 11_i32.to_ne_bytes()].concat());
    control.extend([0, 0, 0, 0, 5, 0, 1, 0]);
    control.extend([7_u32.to_ne_bytes(), 9_u32.to_ne_bytes()].concat());
    control.extend([0; 16]);
    group.bench_function("decode a completion", |b| {
        b.iter(|| errqueue::decode(black_box(&control), &[], 0).unwrap());
    });
}

criterion_group!(benches, leases, ledger, decode);
criterion_main!(benches);
