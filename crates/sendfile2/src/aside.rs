//! The old bytes that are kept aside for a lease, so that its range can be overwritten before all
//! of it is sent.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// The bytes of one lease that are kept aside. What is sent or read under the lease comes from here
/// as soon as a byte of it is.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    kept: RwLock<Kept>,
    /// Whether there is any, or it was revoked: most sends ask no more.
    some: AtomicBool,
    /// Nothing is sent or read any more. It is set under the lock.
    revoked: AtomicBool,
    /// Operations that a ring was given and has not answered: it takes their pages when it pleases.
    submitted: AtomicUsize,
    /// A writer has met those: what a ring is given from here on is read before, so that they come
    /// to an end.
    read_for_rings: AtomicBool,
}

#[derive(Debug, Default)]
struct Kept {
    pieces: Pieces,
    /// Addresses of the file's mapping were given out, which show what is written.
    mapped: bool,
}

/// The proof that a range comes from the file's pages; while it lives no byte of that is kept
/// aside, and so none overwritten.
pub(crate) struct Pages<'a>(#[expect(dead_code, reason = "held")] RwLockReadGuard<'a, Kept>);

/// The outcome of keeping bytes aside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// So many bytes are kept; what had been kept before is as it was.
    Done(u64),
    /// Nobody needs them any more.
    Needless,
    /// Sends that have begun, or addresses that were given out, would not use them.
    Impossible,
}

impl Aside {
    fn look(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `range` be sent from the file's pages, until the result is dropped; `None` where a byte
    /// of it is kept aside.
    pub(crate) fn pages(&self, range: &Range<u64>) -> Option<Pages<'_>> {
        let kept = self.look();
        (!self.is_revoked() && !kept.pieces.overlaps(range)).then_some(Pages(kept))
    }

    /// Whether a byte of `range` is not to come from the file's pages now.
    pub(crate) fn has(&self, range: &Range<u64>) -> bool {
        self.some.load(Ordering::Acquire)
            && (self.is_revoked() || self.look().pieces.overlaps(range))
    }

    /// Ends all sends and reads, once those that have begun are done; `false`, and nothing, where
    /// they are not in our hands: addresses were given out, or a ring has not answered.
    pub(crate) fn revoke(&self) -> bool {
        let kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let possible = !kept.mapped && !self.is_with_a_ring();
        if possible {
            self.revoked.store(true, Ordering::SeqCst);
            self.some.store(true, Ordering::Release);
        }
        possible
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::SeqCst)
    }

    /// Reads at `offset`, from here or by `file`; 0 where the file ended when it was kept. `None`
    /// if it was revoked.
    pub(crate) fn read<E>(
        &self,
        buffer: &mut [u8],
        offset: u64,
        file: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        let len = buffer.len();
        let copy = |buffer: &mut [u8], bytes: &[u8]| buffer[..bytes.len()].copy_from_slice(bytes);
        self.read_to(buffer, len, offset, copy, |buffer, len| file(&mut buffer[..len]))
    }

    /// As [`read`](Self::read), up to `len` bytes to anything, by `copy` or by `file`.
    pub(crate) fn read_to<T, E>(
        &self,
        to: T,
        len: usize,
        offset: u64,
        copy: impl FnOnce(T, &[u8]),
        file: impl FnOnce(T, usize) -> Result<usize, E>,
    ) -> Option<Result<usize, E>> {
        let kept = self.look();
        if self.is_revoked() {
            return None;
        }
        Some(match kept.pieces.at(offset) {
            Ok(bytes) => {
                let len = bytes.len().min(len);
                copy(to, &bytes[..len]);
                Ok(len)
            }
            Err(next) => {
                let most = next.and_then(|next| usize::try_from(next - offset).ok());
                file(to, most.map_or(len, |most| most.min(len)))
            }
        })
    }

    /// Notes that addresses of the mapping of `range` are given out, unless bytes of it are kept
    /// aside.
    pub(crate) fn map(&self, range: &Range<u64>) -> bool {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let whole = !self.is_revoked() && !kept.pieces.overlaps(range);
        kept.mapped |= whole;
        whole
    }

    /// As [`pages`](Self::pages), for a ring; `None` also where a writer waits for its answers, or has.
    #[cfg(feature = "uring")]
    pub(crate) fn pages_for_a_ring(&self, range: &Range<u64>) -> Option<Pages<'_>> {
        let pages = self.pages(range)?;
        (!self.read_for_rings.load(Ordering::Acquire)).then_some(pages)
    }

    /// Whether bytes can be kept aside now for what follows under the lease. Where only a ring is in
    /// the way, it is given no more pages from here on, so that its answers come to an end.
    pub(crate) fn is_possible(&self) -> bool {
        if self.look().mapped {
            return false;
        }
        let with_a_ring = self.is_with_a_ring();
        if with_a_ring {
            self.read_for_rings.store(true, Ordering::Release);
        }
        !with_a_ring
    }

    /// Whether a ring has an answer to give, which it does without anybody's letting go.
    pub(crate) fn is_with_a_ring(&self) -> bool {
        self.submitted.load(Ordering::Acquire) > 0
    }

    /// The parts of `range` that are not kept yet.
    pub(crate) fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        self.look().pieces.missing(range)
    }

    /// Keeps `pieces`, each what a range had, but for what is kept already: a writer that has gone
    /// since may have read what the next one wrote. `needed` is asked last.
    pub(crate) fn keep(
        &self,
        pieces: Vec<(Range<u64>, Vec<u8>)>,
        needed: impl FnOnce() -> bool,
    ) -> Keeping {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        // A ring is given what comes from pages under the lock.
        if kept.mapped || self.is_with_a_ring() {
            return Keeping::Impossible;
        }
        if !needed() {
            return Keeping::Needless;
        }
        let before = kept.pieces.len();
        for (range, bytes) in pieces {
            kept.pieces.insert(range, bytes);
        }
        self.some.store(true, Ordering::Release);
        Keeping::Done(kept.pieces.len() - before)
    }

    /// Drops all of it, and returns how many bytes that was. From here on none is kept for whom the
    /// caller knows to have gone: a writer asks for that under the same lock.
    pub(crate) fn clear(&self) -> u64 {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let pieces = std::mem::take(&mut kept.pieces);
        drop(kept);
        pieces.len()
    }

    /// Notes that a ring was given an operation, whose pages it has not taken yet.
    #[cfg(feature = "uring")]
    pub(crate) fn submit(&self, _from: &Pages<'_>) {
        self.submitted.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes the answer; whether it was the last that was due.
    #[cfg(feature = "uring")]
    pub(crate) fn answered(&self) -> bool {
        self.submitted.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Bytes by their place in the file.
#[derive(Debug, Default)]
struct Pieces(BTreeMap<u64, Piece>);

#[derive(Debug)]
struct Piece {
    end: u64,
    /// Fewer than up to the end, where the file had no more.
    bytes: Vec<u8>,
}

impl Pieces {
    /// The piece that reaches furthest, of those that begin before `end`.
    fn before(&self, end: u64) -> Option<(u64, &Piece)> {
        self.0.range(..end).next_back().map(|(start, piece)| (*start, piece))
    }

    fn overlaps(&self, range: &Range<u64>) -> bool {
        !range.is_empty()
            && self.before(range.end).is_some_and(|(_, piece)| piece.end > range.start)
    }

    /// The bytes from `offset` on, as far as one piece has them; or where the next piece begins.
    fn at(&self, offset: u64) -> Result<&[u8], Option<u64>> {
        match self.before(offset.saturating_add(1)) {
            Some((start, piece)) if offset < piece.end => {
                let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
                Ok(piece.bytes.get(skip..).unwrap_or_default())
            }
            _ => Err(self.0.range(offset..).next().map(|(start, _)| *start)),
        }
    }

    fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let first = self.before(range.start.saturating_add(1)).map_or(range.start, |(s, _)| s);
        for (&start, piece) in self.0.range(first..range.end.max(first)) {
            if at < start {
                missing.push(at..start);
            }
            at = at.max(piece.end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Keeps the bytes of a range, but for what is there.
    fn insert(&mut self, range: Range<u64>, bytes: Vec<u8>) {
        let missing = self.missing(&range);
        if missing == [range.clone()] {
            self.0.insert(range.start, Piece { end: range.end, bytes });
            return;
        }
        let index = |at: u64| {
            usize::try_from(at - range.start).map_or(bytes.len(), |at| at.min(bytes.len()))
        };
        for Range { start, end } in missing {
            let bytes = bytes[index(start)..index(end)].to_vec();
            self.0.insert(start, Piece { end, bytes });
        }
    }

    /// The bytes in memory.
    fn len(&self) -> u64 {
        self.0.values().map(|piece| piece.bytes.len() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each byte is read as it was when its range was kept, and from the file where it was not.
        #[test]
        fn each_byte_is_read_as_it_was(
            kept in prop::collection::vec((0..60u64, 0..20u64), 0..20),
            size in 0..90u64,
            asked in prop::collection::vec((0..90u64, 1..30usize), 1..30),
        ) {
            // What a byte had is the number of the range that it was kept with; the file has 255.
            let aside = Aside::default();
            let mut model: [Option<u8>; 130] = [None; 130];
            for (i, (start, len)) in kept.into_iter().enumerate() {
                let number = u8::try_from(i).unwrap_or(0);
                let range = start..start + len;
                let pieces = aside.missing(&range);
                for at in range {
                    let at = usize::try_from(at).unwrap_or(0);
                    model[at] = model[at].or(Some(number));
                }
                let pieces = pieces.into_iter().map(|piece| {
                    let there = piece.end.min(size).saturating_sub(piece.start);
                    let bytes = vec![number; usize::try_from(there).unwrap_or(0)];
                    (piece, bytes)
                });
                let pieces: Vec<_> = pieces.collect();
                let bytes = pieces.iter().map(|(_, bytes)| bytes.len() as u64).sum();
                prop_assert_eq!(aside.keep(pieces, || true), Keeping::Done(bytes));
                // One that came too late, and has read what was written since.
                let late = vec![(start..start + len, vec![254; 20])];
                prop_assert_eq!(aside.keep(late, || true), Keeping::Done(0));
            }
            for (offset, len) in asked {
                let model = |at: u64| usize::try_from(at).ok().and_then(|at| model[at]);
                let mut buffer = vec![0; len];
                let mut from_file = 0;
                let read: Option<Result<usize, ()>> = aside.read(&mut buffer, offset, |buffer| {
                    buffer.fill(255);
                    from_file = buffer.len();
                    Ok(buffer.len())
                });
                let read = read.and_then(Result::ok).unwrap_or(0);
                prop_assert!(read > 0 || model(offset).is_some() && offset >= size);
                for (at, byte) in (offset..).zip(&buffer[..read]) {
                    prop_assert_eq!(*byte, model(at).unwrap_or(255));
                    prop_assert!(model(at).is_none() || at < size);
                }
                let range = offset..offset + len as u64;
                let any = range.clone().any(|at| model(at).is_some());
                prop_assert_eq!(aside.has(&range), any);
                prop_assert_eq!(aside.pages(&range).is_none(), any);
                let missing: Vec<u64> = aside.missing(&range).into_iter().flatten().collect();
                let expected: Vec<u64> = range.filter(|at| model(*at).is_none()).collect();
                prop_assert_eq!(missing, expected);
            }
            let all = (0..size).filter(|at| model[usize::try_from(*at).unwrap_or(0)].is_some());
            prop_assert_eq!(aside.clear(), all.count() as u64);
            prop_assert!(!aside.has(&(0..130)));
        }
    }

    #[test]
    fn what_is_revoked_is_neither_sent_nor_read_nor_kept() {
        let aside = Aside::default();
        assert_eq!(aside.keep(vec![(0..1, vec![1])], || true), Keeping::Done(1));
        let range = 5..6;
        assert!(!aside.has(&range) && aside.pages(&range).is_some());
        assert!(aside.revoke());
        assert!(aside.has(&range) && aside.pages(&range).is_none() && !aside.map(&range));
        for offset in [0, 5] {
            assert_eq!(aside.read(&mut [0], offset, |_| Ok::<_, ()>(1)), None);
        }
        // Addresses are in others' hands.
        let aside = Aside::default();
        assert!(aside.map(&range) && !aside.revoke() && !aside.is_revoked());
    }

    /// Whoever keeps bytes aside waits until what comes from the file's pages has come.
    #[test]
    fn nothing_is_kept_while_something_is_sent_or_read() {
        let aside = Aside::default();
        let pages = aside.pages(&(0..1));
        assert!(aside.kept.try_write().is_err());
        drop(pages);
        let read = |_: &mut [u8]| Ok::<_, ()>(usize::from(aside.kept.try_write().is_err()));
        assert_eq!(aside.read(&mut [0], 0, read), Some(Ok(1)));
        assert!(aside.kept.try_write().is_ok());
    }

    /// The last hand lets go while a writer keeps bytes aside: whoever comes later sees the other.
    #[test]
    fn nothing_stays_that_was_kept_while_the_last_hand_let_go() {
        for round in 0..20_000 {
            let (aside, gone, ready) =
                (Aside::default(), AtomicBool::new(false), AtomicUsize::new(0));
            let meet = || {
                ready.fetch_add(1, Ordering::AcqRel);
                while ready.load(Ordering::Acquire) < 2 {
                    std::thread::yield_now();
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    meet();
                    aside.keep(vec![(0..1, vec![1])], || !gone.load(Ordering::Acquire))
                });
                meet();
                gone.store(true, Ordering::Release);
                aside.clear();
            });
            assert_eq!(aside.clear(), 0, "round {round}");
        }
    }

    /// The same with the one order that matters: it lets go when it has been asked for.
    #[test]
    fn who_lets_go_waits_for_what_is_being_kept() {
        let aside = &Aside::default();
        std::thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let needed = || {
                scope.spawn(move || {
                    let cleared = aside.clear();
                    // Nobody waits for it any more, as it should be.
                    let _ = tell.send(());
                    assert_eq!(cleared, 1);
                });
                // It does not come to its end before this does.
                assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err());
                true
            };
            assert_eq!(aside.keep(vec![(0..1, vec![1])], needed), Keeping::Done(1));
        });
        assert_eq!(aside.clear(), 0);
    }

    #[test]
    fn nothing_is_kept_for_addresses_that_were_given_out_nor_for_what_a_ring_was_given() {
        let aside = Aside::default();
        assert!(aside.map(&(0..10)));
        assert!(!aside.is_possible());
        assert_eq!(aside.keep(vec![(0..1, vec![1])], || true), Keeping::Impossible);
        let aside = Aside::default();
        assert_eq!(aside.keep(vec![(0..1, vec![1])], || false), Keeping::Needless);
        assert_eq!(aside.keep(vec![(0..1, vec![1])], || true), Keeping::Done(1));
        assert!(!aside.map(&(0..10)));
        assert!(aside.map(&(1..10)));
        #[cfg(feature = "uring")]
        {
            let aside = Aside::default();
            aside.submit(&aside.pages(&(0..1)).unwrap());
            assert_eq!(aside.keep(vec![(5..6, vec![1])], || true), Keeping::Impossible);
            assert!(!aside.revoke() && !aside.is_revoked());
            assert!(aside.pages_for_a_ring(&(0..1)).is_some() && !aside.is_possible());
            assert!(aside.pages_for_a_ring(&(0..1)).is_none() && aside.pages(&(0..1)).is_some());
            assert!(aside.answered());
            assert!(aside.is_possible());
            assert_eq!(aside.keep(vec![(5..6, vec![1])], || true), Keeping::Done(1));
        }
    }
}
