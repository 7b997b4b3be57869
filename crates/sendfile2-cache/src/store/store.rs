//! The store, as its users have it.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use super::ban::Ban;
use super::banlog::BanLog;
use super::core::Core;
use super::disk::Disk;
use super::error::{MayWait, StoreError};
use super::fill::Fill;
use super::hit::Hit;
use super::index::Entry;
use super::key::{Key, State};
use super::options::{Admission, Counters, Dropped, Opened, Options, RegionState};
use super::{keeper, recover};

/// A store of responses. A shared handle: clone it. Its calls wait for the disk shortly, and for no
/// peer.
///
/// A thread of its own has a region ready before one is needed; it ends with the last handle.
#[derive(Debug, Clone)]
pub struct Store(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    keeper: Option<JoinHandle<()>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.state().stopped = true;
        self.core.changed.notify_all();
        if let Some(keeper) = self.keeper.take() {
            // It has told of its panic itself.
            let _ = keeper.join();
        }
    }
}

impl Store {
    /// Opens the store, or makes it where the file is empty or absent. What is in it is read from
    /// the tables of its regions; what was stored last is looked for.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`] and [`StoreError::InUse`], with nothing changed;
    /// [`StoreError::Sizes`]; [`StoreError::Io`]; [`StoreError::Guard`].
    pub fn open(options: &Options) -> Result<(Store, Opened), StoreError> {
        let (disk, made) = Disk::open(options)?;
        let (log, mut listed) = BanLog::read(&disk)?;
        let damaged = std::mem::take(&mut listed.damaged);
        let (state, mut opened) = recover::recover(&disk, listed);
        let core = Arc::new(Core {
            disk,
            admission: options.admission,
            state: Mutex::new(state),
            changed: Condvar::new(),
            log: Mutex::new(log),
        });
        opened.made = made;
        if damaged {
            // Nobody knows what was banned.
            core.ban(&Ban::All)?;
            opened.recovered = 0;
            if !made {
                let why = "the list of bans is damaged: all that was stored is dropped".into();
                opened.dropped.push(Dropped { region: None, why });
            }
        }
        let keeper = {
            let core = Arc::clone(&core);
            let keeper = std::thread::Builder::new().name("store".into());
            keeper.spawn(move || keeper::run(&core)).map_err(StoreError::io("clone"))?
        };
        Ok((Store(Arc::new(Handle { core, keeper: Some(keeper) })), opened))
    }

    /// Says whether a store could be opened with these options, as far as that is known without
    /// making or changing one, or being in the way of who has it open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn check(options: &Options) -> Result<(), StoreError> {
        Disk::check(options)
    }

    /// Finds a response, and counts that. What another process wrote is compared with its checksums
    /// before it is given out first.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Hit> {
        self.counted(self.core().find(key, true))
    }

    /// As [`get`](Self::get), if that takes no waiting for the disk: what it has to read is in the
    /// page cache, and was compared with its checksums, or written by this process.
    ///
    /// # Errors
    /// [`MayWait`] if it may take waiting; then nothing is counted.
    pub fn try_get(&self, key: &Key) -> Result<Option<Hit>, MayWait> {
        self.core().try_find(key, |_| true).map(|found| self.counted(found))
    }

    /// As [`try_get`](Self::try_get), of a response whose state fits; else nothing is counted. A small
    /// body is in memory, and has no leases.
    pub(crate) fn try_get_if(
        &self,
        key: &Key,
        fits: impl Fn(&State) -> bool,
    ) -> Result<Option<Hit>, MayWait> {
        self.core().try_find_small(key, fits)
    }

    /// Counts a miss; the core counts hits.
    fn counted(&self, found: Option<(Entry, Hit)>) -> Option<Hit> {
        if found.is_none() {
            self.core().state().counters.misses += 1;
        }
        found.map(|(_, hit)| hit)
    }

    /// Begins to store a response, of `length` bytes if that is known.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`]; [`StoreError::NotAdmitted`].
    pub fn begin(
        &self,
        key: Key,
        state: State,
        head: &[u8],
        length: Option<u64>,
    ) -> Result<Fill, StoreError> {
        self.takes(head.len() as u64 + length.unwrap_or(0))?;
        let most = u64::from(self.core().disk.sizes.part());
        if head.len() as u64 > most {
            return Err(StoreError::TooLarge { length: head.len() as u64, most });
        }
        if self.core().admission == Admission::SecondRequest {
            let mut state = self.core().state();
            if state.index.get(&key).is_none() && !state.filter.seen(&key) {
                return Err(StoreError::NotAdmitted);
            }
        }
        let running = self.core().begin(key, None);
        Ok(Fill::new(self.clone(), running, key, state, head, length))
    }

    /// Replaces the state and the head of a response, by a record of them; the body stays.
    ///
    /// # Errors
    /// [`StoreError::Absent`] if it is not there, or not any more; [`StoreError::Banned`];
    /// [`StoreError::TooLarge`]; [`StoreError::Full`]; [`StoreError::Guard`].
    pub fn refresh(&self, key: &Key, state: State, head: &[u8]) -> Result<(), StoreError> {
        self.core().refresh(key, state, head)
    }

    /// Forgets a response, until the store is opened again at least; [`ban`](Self::ban) is for ever.
    pub fn remove(&self, key: &Key) -> bool {
        self.core().state().remove(key).is_some()
    }

    /// Bans what is stored now, and what is being stored, and returns when that will last, whatever
    /// happens to this process or the machine.
    ///
    /// # Errors
    /// [`StoreError::TooManyBans`]; [`StoreError::Io`]; [`StoreError::Guard`]. This process does not
    /// serve what is banned in any case.
    #[expect(clippy::needless_pass_by_value, reason = "nobody needs it any more")]
    pub fn ban(&self, ban: Ban) -> Result<(), StoreError> {
        self.core().ban(&ban)
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let kept_aside = self.core().disk.kept_aside();
        let state = self.core().state();
        let (objects, bans) = (state.objects(), state.bans.len() as u64);
        Counters { objects, bans, kept_aside, ..state.counters }
    }

    /// The regions, in their order in the file.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionState> {
        self.core().state().describe()
    }

    pub(super) fn takes(&self, length: u64) -> Result<(), StoreError> {
        let most = self.core().disk.sizes.most();
        if length > most { Err(StoreError::TooLarge { length, most }) } else { Ok(()) }
    }

    pub(super) fn core(&self) -> &Core {
        &self.0.core
    }
}
