//! How a writer gets a range that is still in flight: its pages are detached.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::detaching::Overwrite;
use super::file::GuardedFile;
use super::lease::Inner;
use super::ranges::folios;
use crate::detach::Detacher;
use crate::error::Error;
use crate::not_detached::NotDetached;
use crate::trace;

/// The memory, in bytes, that packets may keep of detached leases of one file before its writers
/// wait for releases again. A send of 4 KiB may keep a folio of 2 MiB.
const KEPT: u64 = 512 << 20;

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
    /// its way has been handed over to the kernel.
    pub(super) fn can_detach(&self, range: &Range<u64>, leases: &[Arc<Inner>]) -> bool {
        if self.0.overwrite == Overwrite::Wait || !leases.iter().all(|l| l.is_handed_over()) {
            return false;
        }
        let Ok(Some(detacher)) = self.detacher() else { return false };
        let kept: u64 = leases.iter().map(|lease| lease.would_keep(range)).sum();
        let most = KEPT.saturating_sub(self.0.shared.detaching.kept.load(Ordering::Relaxed));
        let fits = kept <= most;
        if !fits {
            trace::debug!(?range, "packets keep too much of what was detached: waiting");
        }
        fits && detacher.allows(range)
    }
}

/// Detaches what a writer needs of its range, which is the first there. It waits for the disk, may
/// run anywhere, and does no harm where the writer has gone meanwhile.
pub(super) struct DetachJob {
    file: GuardedFile,
    key: u64,
    range: Range<u64>,
    need: Need,
    leases: Vec<Weak<Inner>>,
}

impl DetachJob {
    pub(super) fn new(
        file: &GuardedFile,
        key: u64,
        range: &Range<u64>,
        need: Need,
        leases: Vec<Weak<Inner>>,
    ) -> Self {
        DetachJob { file: file.clone(), key, range: range.clone(), need, leases }
    }

    /// Detaches it, and ends all that is in the table on the range; with [`Need::Parts`] only what
    /// the writer then does to the rest makes an end of that. Returns its range, with what else was
    /// in the pages that were detached.
    pub(super) fn run(self) -> Result<Range<u64>, NotDetached> {
        let shared = &self.file.0.shared;
        let Some(detacher) = self.file.detacher()? else {
            return Err(NotDetached::NoProof);
        };
        let parts = match &self.need {
            Need::All => shared.table.in_flight(self.key),
            Need::Parts(parts) => parts.clone(),
        };
        let page = rustix::param::page_size() as u64;
        let end = self.range.end.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        shared.table.detaching(self.key, self.range.start / page * page..end);
        let mut pages = self.range.clone();
        for part in &parts {
            let _alone = shared.detaching.regions.enter(&folios(part.clone()), true);
            let began = Instant::now();
            let detached = detacher.detach(part);
            shared.detaching.note(detached.is_ok(), began.elapsed());
            let detached = detached?;
            let Range { start, end } = detached.range;
            pages = pages.start.min(start)..pages.end.max(end);
        }
        if self.need == Need::All {
            for lease in self.leases.iter().filter_map(Weak::upgrade) {
                lease.keep(&self.range);
            }
            shared.table.detached(self.key, &pages).wake();
        }
        Ok(pages)
    }
}
