//! The store.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::ftruncate;
use sendfile2::guard::GuardedFile;

use super::ban::Ban;
use super::error::StoreError;
use super::fill::Fill;
use super::hit::Hit;
use super::key::{Key, State};
use super::options::{Counters, Opened, Options, RegionState};

const PATIENCE: Duration = Duration::from_secs(30);

/// A store of responses. A shared handle: clone it. Its calls wait for the disk, and for no peer.
#[derive(Debug, Clone)]
pub struct Store(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: GuardedFile,
    size: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    index: HashMap<Key, Entry>,
    next: u64,
    counters: Counters,
}

#[derive(Debug, Clone)]
struct Entry {
    state: State,
    head: Bytes,
    body: Range<u64>,
}

impl Store {
    /// Opens the store, or makes it where the file is empty or absent.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`] and [`StoreError::InUse`], with nothing changed;
    /// [`StoreError::Sizes`]; [`StoreError::Io`]; [`StoreError::Guard`].
    pub fn open(options: &Options) -> Result<(Store, Opened), StoreError> {
        let file = tempfile::tempfile().map_err(StoreError::io("open"))?;
        ftruncate(&file, options.size).map_err(StoreError::io("ftruncate"))?;
        let file = GuardedFile::new(file)?;
        let counters = Counters { capacity: options.size, ..Counters::default() };
        let inner = Mutex::new(Inner { counters, ..Inner::default() });
        let store = Store(Arc::new(Shared { file, size: options.size, inner }));
        Ok((store, Opened { made: true, ..Opened::default() }))
    }

    /// Finds a response, and counts that.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Hit> {
        let mut inner = self.inner();
        let hit = inner.index.get(key).and_then(|entry| self.hit(entry));
        let counters = &mut inner.counters;
        *(if hit.is_some() { &mut counters.hits } else { &mut counters.misses }) += 1;
        hit
    }

    /// Begins to store a response, of `length` bytes if that is known.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`]; [`StoreError::NotAdmitted`]; [`StoreError::Full`].
    pub fn begin(
        &self,
        key: Key,
        state: State,
        head: &[u8],
        length: Option<u64>,
    ) -> Result<Fill, StoreError> {
        self.takes(head.len() as u64 + length.unwrap_or(0))?;
        Ok(Fill::new(self.clone(), key, state, head, length))
    }

    /// Replaces the state and the head of a response; the body stays.
    ///
    /// # Errors
    /// [`StoreError::Absent`]; as [`begin`](Self::begin).
    pub fn refresh(&self, key: &Key, state: State, head: &[u8]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        let entry = inner.index.get_mut(key).ok_or(StoreError::Absent)?;
        entry.state = state;
        entry.head = Bytes::copy_from_slice(head);
        Ok(())
    }

    /// Forgets a response, until the store is opened again at least; [`ban`](Self::ban) is for ever.
    pub fn remove(&self, key: &Key) -> bool {
        self.inner().index.remove(key).is_some()
    }

    /// Bans what is stored now, and returns when that will last, whatever happens to this process
    /// or the machine.
    ///
    /// # Errors
    /// [`StoreError::TooManyBans`]; [`StoreError::Io`]; [`StoreError::Guard`]. What is banned is not
    /// served by this process in any case.
    #[expect(clippy::needless_pass_by_value, reason = "it is kept")]
    pub fn ban(&self, ban: Ban) -> Result<(), StoreError> {
        self.inner().index.retain(|key, entry| !ban.hits(key, &entry.head));
        Ok(())
    }

    /// The counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let inner = self.inner();
        let bytes = inner.index.values().map(|e| e.body.end - e.body.start).sum();
        Counters { objects: inner.index.len() as u64, bytes, ..inner.counters }
    }

    /// The regions, in their order in the file.
    #[must_use]
    pub fn regions(&self) -> Vec<RegionState> {
        vec![RegionState { used: self.inner().next, open: true, ..RegionState::default() }]
    }

    pub(super) fn takes(&self, length: u64) -> Result<(), StoreError> {
        let most = self.0.size / 16;
        if length > most { Err(StoreError::TooLarge { length, most }) } else { Ok(()) }
    }

    pub(super) fn put(
        &self,
        key: Key,
        state: State,
        head: &[u8],
        body: &[u8],
    ) -> Result<Hit, StoreError> {
        let mut inner = self.inner();
        let at = inner.next..inner.next + body.len() as u64;
        if at.end > self.0.size {
            return Err(StoreError::Full);
        }
        self.0.file.write_at(body, at.start, PATIENCE)?;
        inner.next = at.end;
        let entry = Entry { state, head: Bytes::copy_from_slice(head), body: at };
        inner.index.insert(key, entry.clone());
        inner.counters.stored += 1;
        self.hit(&entry).ok_or(StoreError::Full)
    }

    fn hit(&self, entry: &Entry) -> Option<Hit> {
        let Entry { state, head, body } = entry.clone();
        let lease = self.0.file.try_lease([body.clone()])?;
        Some(Hit { state, head, lease, body })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
