//! The writers: threads of the server that overwrite slots all the time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use sendfile2::Error;
use sendfile2::detach::NotDetached;
use sendfile2::guard::{TryWrite, folios};

use super::block::{BLOCK, fill_blocks};
use super::server::Shared;

/// The outcome of one overwrite.
enum Outcome {
    Written,
    InTheWay,
    Deadline,
}

/// Overwrites until the server stops.
pub(super) fn run(shared: &Shared, mut rng: Rng) {
    let mut buffer = vec![0; shared.slot_len()];
    while !shared.writers_stop.load(Ordering::Relaxed) {
        let slot = match rng.u32(0..10) {
            0 => rng.u32(0..shared.layout.slots),
            _ => rng.u32(shared.layout.busy()),
        };
        let began = Instant::now();
        match overwrite(shared, &mut rng, slot, &mut buffer) {
            Ok(Outcome::Written) => shared.overwritten(began.elapsed()),
            Ok(Outcome::InTheWay) => shared.tally().in_the_way += 1,
            Ok(Outcome::Deadline) => shared.tally().deadlines += 1,
            // Others bring its pages back: nothing is written, and nothing lost.
            Err(Error::NotDetached(why)) if matches!(*why, NotDetached::Cached { .. }) => {
                shared.tally().refused += 1;
            }
            Err(Error::Wait { .. } | Error::NotDetached(_)) if shared.is_exhausted() => {
                // No descriptor to wait or to detach with.
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => shared.unexpected(&format!("a writer of slot {slot}: {error}")),
        }
        if rng.bool() {
            std::thread::sleep(Duration::from_micros(rng.u64(0..2_000)));
        }
    }
}

fn overwrite(
    shared: &Shared,
    rng: &mut Rng,
    slot: u32,
    buffer: &mut [u8],
) -> Result<Outcome, Error> {
    let guard = &shared.guard;
    let generation = shared.next_generation();
    fill_blocks(buffer, slot.into(), generation, 0);
    let at = shared.layout.offset(slot, 0);
    // Mostly short, and up to a second.
    let soon = |rng: &mut Rng| Instant::now() + Duration::from_millis(1 << rng.u32(0..=10));
    let result = match rng.u32(0..100) {
        0..15 => {
            return Ok(match guard.try_write_at(buffer, at)? {
                TryWrite::Written => Outcome::Written,
                _ => Outcome::InTheWay,
            });
        }
        15..30 => fill_slowly(shared, rng, slot, buffer),
        30..60 if shared.sparse => fill_hole(shared, rng, slot, buffer),
        // Only the server's own threads can end the leases of the control: the kernel knows nothing
        // of them.
        30..40 if !shared.is_control() => {
            guard.write_at_abort(buffer, at, soon(rng)).map_err(stuck)
        }
        _ => match guard.write_at(buffer, at, soon(rng)) {
            Err(Error::Deadline(_)) if !shared.is_control() => {
                shared.tally().deadlines += 1;
                guard.write_at_abort(buffer, at, Instant::now()).map_err(stuck)
            }
            result => result,
        },
    };
    match result {
        Ok(()) => Ok(Outcome::Written),
        Err(Error::Deadline(what)) if what != STUCK => Ok(Outcome::Deadline),
        Err(Error::NotDetached(why)) if matches!(*why, NotDetached::Deadline { .. }) => {
            Ok(Outcome::Deadline)
        }
        Err(error) => Err(error),
    }
}

const STUCK: &str = "an aborted connection did not let go of the slot";

/// Marks a deadline that passed in an abort, which must not be: it is long enough for every
/// notification.
fn stuck(error: Error) -> Error {
    match error {
        Error::Deadline(_) => Error::Deadline(STUCK),
        Error::NotDetached(why) if matches!(*why, NotDetached::Deadline { .. }) => {
            Error::Deadline(STUCK)
        }
        error => error,
    }
}

/// Fills the slot by several writes in any order, so that no reader sees it half done.
fn fill_slowly(shared: &Shared, rng: &mut Rng, slot: u32, buffer: &[u8]) -> Result<(), Error> {
    let at = shared.layout.offset(slot, 0);
    let deadline = Instant::now() + Duration::from_millis(rng.u64(0..500));
    shared.guard.write_with(at..shared.layout.offset(slot + 1, 0), deadline, |slot| {
        let piece = BLOCK * rng.usize(8..128);
        let mut pieces: Vec<_> = (at..).step_by(piece).zip(buffer.chunks(piece)).collect();
        rng.shuffle(&mut pieces);
        for (at, piece) in pieces {
            slot.write_at(piece, at)?;
        }
        Ok(())
    })
}

/// Makes a hole of the slot and fills it, so that no reader sees it empty.
fn fill_hole(shared: &Shared, rng: &mut Rng, slot: u32, buffer: &[u8]) -> Result<(), Error> {
    let at = shared.layout.offset(slot, 0);
    let hole = at..shared.layout.offset(slot + 1, 0);
    let deadline = Instant::now() + Duration::from_millis(rng.u64(0..500));
    shared.guard.write_with(folios(hole.clone()), deadline, |range| {
        range.punch_hole(hole)?;
        range.write_at(buffer, at)
    })
}
