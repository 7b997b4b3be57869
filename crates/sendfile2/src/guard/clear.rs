//! How a writer gets a range that is still in flight: its pages are detached.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::detaching::Overwrite;
use super::file::GuardedFile;
use super::in_hand::bytes_in_file;
use super::lease::Inner;
use super::ranges::folios;
use crate::detach::{Detached, Detacher};
use crate::error::Error;
use crate::not_detached::NotDetached;
use crate::trace;

/// The memory, in bytes, that packets may keep of detached leases of one file before its writers
/// wait for releases again. A send of 4 KiB may keep a folio of 2 MiB.
const KEPT: u64 = 512 << 20;

/// The bytes that are detached before the time is looked at.
const STEP: u64 = 8 << 20;

/// The parts of a writer's range that must be detached before it may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Need {
    /// The range.
    All,
    /// Those folios of it that are not dropped as a whole.
    Parts(Vec<Range<u64>>),
}

impl GuardedFile {
    /// The detacher of the file, if it can be detached.
    pub(super) fn detacher(&self) -> Result<Option<&Arc<Detacher>>, NotDetached> {
        self.0.shared.detacher(&self.0.source)
    }

    /// Exposes what is in the file, if nobody has written to it yet.
    pub(super) fn exposes(&self) -> Result<(), Error> {
        match self.detacher() {
            Err(why) if self.0.shared.may_be_exposed => Err(Error::NotDetached(why.into())),
            _ => Ok(()),
        }
    }

    /// Whether a writer of `range` can have it by detaching, beside these leases: all that is in
    /// its way has been handed over to the kernel, or can be kept aside.
    pub(super) fn detaches(&self, range: &Range<u64>, leases: &[Arc<Inner>]) -> Detaches {
        if self.0.overwrite == Overwrite::Wait {
            return Detaches::No;
        }
        match self.detacher() {
            Ok(Some(detacher)) if detacher.allows(range) => {}
            _ => return Detaches::No,
        }
        // Each is asked, so that no ring goes on with any.
        let aside: Vec<_> = leases.iter().map(|lease| lease.to_keep_aside(range)).collect();
        let Some(aside) = aside.into_iter().collect::<Option<Vec<_>>>() else {
            return Detaches::No;
        };
        let detaching = &self.0.shared.detaching;
        let Ok(size) = self.0.source.size() else { return Detaches::No };
        let sum = |bytes: u64, more| bytes.saturating_add(more);
        let aside = aside.iter().map(|parts| bytes_in_file(parts, size)).fold(0, sum);
        // Behind the end of the file there are no folios.
        let there = range.start..range.end.min(size);
        let kept = leases.iter().map(|lease| lease.would_keep(&there)).fold(0, sum);
        let most = KEPT.saturating_sub(detaching.kept.load(Ordering::Relaxed));
        if detaching.may_keep_aside(aside) && kept <= most {
            return Detaches::Now;
        }
        trace::debug!(?range, aside, kept, "too much would be kept in memory: waiting");
        Detaches::WithRoom
    }
}

/// Whether a writer can have its range by detaching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detaches {
    Now,
    /// When others keep less in memory.
    WithRoom,
    No,
}

/// Detaches what a writer needs of its range, which is the first there. It waits for the disk, may
/// run anywhere, and does no harm where the writer has gone meanwhile.
pub(super) struct DetachJob {
    file: GuardedFile,
    key: u64,
    range: Range<u64>,
    need: Need,
    leases: Vec<Weak<Inner>>,
    deadline: Option<Instant>,
}

impl DetachJob {
    pub(super) fn new(
        file: &GuardedFile,
        key: u64,
        range: &Range<u64>,
        need: Need,
        leases: Vec<Weak<Inner>>,
        deadline: Option<Instant>,
    ) -> Self {
        DetachJob { file: file.clone(), key, range: range.clone(), need, leases, deadline }
    }

    /// Keeps aside what leases in hand need, detaches the range, and ends all that is in the table
    /// on it; with [`Need::Parts`] only what the writer then does to the rest makes an end of that.
    /// Returns the range, with what else was in the pages that were detached; `None` where a lease
    /// is to be waited for after all.
    pub(super) fn run(self) -> Result<Option<Range<u64>>, NotDetached> {
        let shared = &self.file.0.shared;
        let Some(detacher) = self.file.detacher()? else {
            return Err(NotDetached::NoProof);
        };
        // Before it is detached: from here on nothing under these leases brings pages back.
        for lease in self.leases.iter().filter_map(Weak::upgrade) {
            if !lease.keep_aside(&self.range)? {
                return Ok(None);
            }
        }
        let parts = match &self.need {
            Need::All => shared.table.in_flight(self.key),
            Need::Parts(parts) => parts.clone(),
        };
        let page = rustix::param::page_size() as u64;
        let end = self.range.end.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        shared.table.detaching(self.key, self.range.start / page * page..end);
        let mut pages = self.range.clone();
        for part in &parts {
            let began = Instant::now();
            let detached = self.detach(detacher, part);
            let elapsed = began.elapsed();
            shared.detaching.note(detached.is_ok(), elapsed);
            match &detached {
                Ok(pages) => trace::debug!(?pages, ?elapsed, "detached"),
                Err(why) => trace::debug!(?part, ?elapsed, %why, "not detached"),
            }
            let Range { start, end } = detached?;
            pages = pages.start.min(start)..pages.end.max(end);
        }
        if self.need == Need::All {
            // Also what is behind the end of the file.
            shared.table.detached(self.key, &pages).wake();
        }
        Ok(Some(pages))
    }

    /// Detaches a part, a few regions at a time, between which others come to their turn, and returns
    /// its pages. What is proved when the time is over, or something fails, is done with.
    fn detach(&self, detacher: &Detacher, part: &Range<u64>) -> Result<Range<u64>, NotDetached> {
        let shared = &self.file.0.shared;
        let mut pages = part.clone();
        let mut at = part.start;
        while at < part.end {
            let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
            // Always a first one, so that whoever tries again comes to an end.
            if late && at > part.start {
                return Err(NotDetached::Deadline { range: at..part.end });
            }
            let end = at.checked_next_multiple_of(STEP).filter(|end| *end > at);
            let step = at..end.unwrap_or(at.saturating_add(STEP)).min(part.end);
            at = step.end;
            let alone = shared.detaching.regions.enter(&folios(step.clone()), true);
            let detached = detacher.detach_untold(&step, Instant::now())?;
            drop(alone);
            let Range { start, end } = detached.range;
            pages = pages.start.min(start)..pages.end.max(end);
            if self.need == Need::All {
                self.done(&step, &detached);
            }
            if end < step.end {
                // The end of the file.
                break;
            }
        }
        Ok(pages)
    }

    /// Ends what is in the table on a part of the range that was detached.
    fn done(&self, step: &Range<u64>, detached: &Detached) {
        let shared = &self.file.0.shared;
        let pages = detached.range.start.min(step.start)..detached.range.end.max(step.end);
        // There are no folios behind the end of the file.
        let there = step.start..step.end.min(detached.range.end);
        for lease in self.leases.iter().filter_map(Weak::upgrade) {
            lease.keep(&there);
        }
        // Where no page was there, packets have kept it before.
        if detached.tries > 0 {
            shared.detaching.note_exposed(shared.table.exposed_folios(&there));
        }
        shared.table.detached(self.key, &pages).wake();
    }
}
