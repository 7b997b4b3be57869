//! Targets that change while they are being asked for: an answer to a request that was sent before is not
//! stored, and a 304 changes only what it is about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::{Hit, Key, State, Store, StoreError};

/// The changes of targets that are being asked for.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The number of those who ask for a target, and of its changes since the first of them.
    asked: Mutex<HashMap<Key, (usize, u64)>>,
    /// The changes of all targets at once.
    of_all: AtomicU64,
    /// One of these is held while what is stored under a key is looked at and changed.
    commits: [Mutex<()>; 16],
}

/// A request that was sent, or is about to be.
#[derive(Debug)]
pub(super) struct Asking {
    changes: Arc<Changes>,
    target: Key,
    then: (u64, u64),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Changes {
    /// Begins to ask for a target.
    pub(super) fn asking(self: &Arc<Self>, target: Key) -> Asking {
        let mut asked = lock(&self.asked);
        let (count, changes) = asked.entry(target).or_default();
        *count += 1;
        let then = (*changes, self.of_all.load(SeqCst));
        drop(asked);
        Asking { changes: Arc::clone(self), target, then }
    }

    /// A target has changed: to be said before it is banned.
    pub(super) fn changed(&self, target: Key) {
        if let Some((_, changes)) = lock(&self.asked).get_mut(&target) {
            *changes += 1;
        }
    }

    /// Any target may have changed: to be said before they are banned.
    pub(super) fn all_changed(&self) {
        self.of_all.fetch_add(1, SeqCst);
    }

    /// Keeps others from changing what is stored under a key.
    pub(super) fn commit(&self, key: Key) -> MutexGuard<'_, ()> {
        lock(&self.commits[usize::from(key.as_bytes()[0]) % self.commits.len()])
    }

    /// Replaces the head of what is stored, if that is `old` still. What another answer has put there
    /// meanwhile, to a request that was on its way at the same time, stays.
    pub(super) fn refresh(
        &self,
        store: &Store,
        key: Key,
        old: &Hit,
        state: State,
        head: &[u8],
    ) -> Result<(), StoreError> {
        let _commit = self.commit(key);
        let same = |now: &Hit| {
            now.len() == old.len() && now.state() == old.state() && now.head() == old.head()
        };
        match store.get(&key) {
            None => Err(StoreError::Absent),
            Some(now) if same(&now) => store.refresh(&key, state, head),
            Some(_) => Ok(()),
        }
    }
}

impl Asking {
    fn now(&self) -> (u64, u64) {
        let changes = lock(&self.changes.asked).get(&self.target).map_or(0, |(_, n)| *n);
        (changes, self.changes.of_all.load(SeqCst))
    }

    /// Whether nothing has changed since: to be asked after it was begun to store the answer.
    pub(super) fn is_current(&self) -> bool {
        self.now() == self.then
    }

    /// One of the changes since was this request's own.
    pub(super) fn own_change(&mut self) {
        self.then.0 += 1;
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asked = lock(&self.changes.asked);
        if let Some((count, _)) = asked.get_mut(&self.target) {
            *count -= 1;
            if *count == 0 {
                asked.remove(&self.target);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_meanwhile_is_noticed() {
        let changes = Arc::new(Changes::default());
        let (a, b) = (Key::of(&[b"a"]), Key::of(&[b"b"]));
        changes.changed(a);
        let mut first = changes.asking(a);
        assert!(first.is_current());
        changes.changed(b);
        assert!(first.is_current());
        changes.changed(a);
        let second = changes.asking(a);
        assert!(!first.is_current() && second.is_current());
        first.own_change();
        assert!(first.is_current());
        changes.all_changed();
        assert!(!first.is_current() && !second.is_current());
        drop((first, second));
        assert!(lock(&changes.asked).is_empty());
    }
}
