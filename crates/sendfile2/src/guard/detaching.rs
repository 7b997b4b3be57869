//! The part of detaching that the handles of a file share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::ranges::folios;
use super::regions::Regions;
use crate::detach::Detacher;
use crate::not_detached::NotDetached;
use crate::source::Source;
use crate::sync::lock;
use crate::trace;

/// The way in which writers of a [`GuardedFile`](super::GuardedFile) deal with what is still in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Overwrite {
    /// [Detach](crate::detach) what has been handed over to the kernel, keep a copy of what leases
    /// in hand may still send, and write at once. Where that is not possible (a filesystem without
    /// direct I/O, a lease whose [mapping](crate::guard::Lease::mapped) was asked for, more than
    /// 64 MiB a file of copies, or 512 MiB of folios that packets keep), wait. Where the file can be
    /// detached, the death of the process resets no connection.
    #[default]
    Detach,
    /// Wait until the kernel has released it. The death of the process resets the connections on
    /// which it is in flight. What is exposed is detached all the same
    /// ([`GuardedFile::exposed`](super::GuardedFile::exposed)).
    Wait,
}

/// The part of detaching that the handles of a file share: the detacher, and the counters.
#[derive(Debug, Default)]
pub(super) struct Detaching {
    /// `None` where the file cannot be detached.
    detacher: OnceLock<Option<Arc<Detacher>>>,
    /// Held while the detacher is made.
    making: Mutex<()>,
    pub(super) regions: Regions,
    pub(super) done: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) nanoseconds: AtomicU64,
    /// Bytes that packets may keep, of leases that are detached and not released.
    pub(super) kept: AtomicU64,
    /// Bytes that are kept aside for leases in hand.
    pub(super) kept_aside: AtomicU64,
    /// The same of what was exposed, whose release is never reported: all that ever was.
    pub(super) detached_exposed: AtomicU64,
}

/// The bytes that are kept aside for one file at most; what is more is waited for.
const KEPT_ASIDE: u64 = 64 << 20;

impl Detaching {
    /// Counts a try, and the time that it took.
    pub(super) fn note(&self, done: bool, took: Duration) {
        let counter = if done { &self.done } else { &self.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(took, Ordering::Relaxed);
    }

    /// Counts bytes, in whole folios, that were detached while they were exposed.
    pub(super) fn note_exposed(&self, bytes: u64) {
        self.detached_exposed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes `bytes` more of what may be kept aside; `false`, and none, if that is too much.
    pub(super) fn reserve_aside(&self, bytes: u64) -> bool {
        let kept = &self.kept_aside;
        let more = |kept: u64| kept.checked_add(bytes).filter(|kept| *kept <= KEPT_ASIDE);
        kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Whether `bytes` more may be kept aside.
    pub(super) fn may_keep_aside(&self, bytes: u64) -> bool {
        bytes <= KEPT_ASIDE.saturating_sub(self.kept_aside.load(Ordering::Relaxed))
    }

    /// Times that pages stayed in the page cache, or came back, and were seen there.
    pub(super) fn stayed(&self) -> u64 {
        let detacher = self.detacher.get().and_then(Option::as_ref);
        detacher.map_or(0, |detacher| detacher.stayed.load(Ordering::Relaxed))
    }

    /// The detacher, if there is one; made and tried when it is first asked for. `made` is told of
    /// it before anybody else has it.
    ///
    /// # Errors
    /// A failure that may pass: until then nobody knows what is exposed.
    pub(super) fn detacher(
        &self,
        source: &Source,
        made: impl FnOnce(&Detacher) -> Result<(), NotDetached>,
    ) -> Result<Option<&Arc<Detacher>>, NotDetached> {
        if let Some(known) = self.detacher.get() {
            return Ok(known.as_ref());
        }
        let mut refused = None;
        let making = lock(&self.making);
        if self.detacher.get().is_none() {
            let detacher = match self.tried(source) {
                Ok(detacher) => {
                    made(&detacher)?;
                    Some(Arc::new(detacher))
                }
                // Nothing to try it with, and nothing that could be in flight.
                Err(NotDetached::End { .. }) => return Ok(None),
                Err(why) if why.is_passing() => return Err(why),
                Err(why) => {
                    refused = Some(why);
                    None
                }
            };
            // Nobody else has set it: they wait for the lock.
            let _ = self.detacher.set(detacher);
        }
        drop(making);
        if let Some(why) = refused {
            trace::debug!(%why, "writers wait for releases");
        }
        Ok(self.detacher.get().and_then(Option::as_ref))
    }

    /// A detacher that works: on filesystems that pass writes on to another one, or are not known,
    /// that shows itself only by trying. That is done on a file that nobody else stores to, where
    /// one can be made; else a program that does would speak for the filesystem.
    fn tried(&self, source: &Source) -> Result<Detacher, NotDetached> {
        let detacher = Detacher::new(source)?;
        if !source.is_on_disk() {
            let size = source.size()?;
            if size == 0 {
                return Err(NotDetached::End { bytes: 0, unit: 1 });
            }
            let Err(no_scratch) = detacher.works_on_scratch() else { return Ok(detacher) };
            let _alone = self.regions.enter(&folios(0..1), true);
            // Who listens may write to this very file, and the detacher is being made.
            let tried = detacher.detach_untold(&(0..1), Instant::now());
            if matches!(tried, Err(NotDetached::Cached { .. })) && no_scratch.is_passing() {
                return Err(no_scratch);
            }
            tried?;
        }
        Ok(detacher)
    }
}
