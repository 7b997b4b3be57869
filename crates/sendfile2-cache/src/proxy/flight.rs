//! Requests that wait for the answer to another one of the same key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::sync::watch;

use super::answer::Content;
use super::origin::NoAnswer;
use super::rest::Rest;
use crate::policy::{Known, Stored, Vary};
use crate::store::Key;

/// The end of a flight, for those who waited for it.
#[derive(Debug, Clone)]
pub(super) enum Landed {
    /// A response for those whose request has the same values.
    Stored(Arc<Shared>),
    /// A stored response that stands for an error: for that of this status, or for no answer.
    InsteadOfError(Arc<Shared>, Option<StatusCode>),
    /// A response for nobody else.
    Alone,
    /// There is no answer.
    Failed(Arc<NoAnswer>),
}

/// An answer that several may have.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) stored: Stored,
    pub(super) known: Known,
    pub(super) content: Content,
    pub(super) vary: Vary,
    /// The values that the request had which it answers.
    pub(super) values: Vec<u8>,
    /// The rest that the store may not take, of what is being stored.
    pub(super) rest: Option<Arc<Rest>>,
}

type Waits = watch::Receiver<Option<Landed>>;

/// The requests that are on their way to an origin, by what they wait for; with the key of their
/// target.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<Key, (Key, Waits)>>);

/// A request's place.
pub(super) enum Place {
    /// The request that asks the origin.
    Leads(Flight),
    /// A request that waits for another.
    Waits(Waits),
}

/// A request on its way, for which others may wait until its answer is stored. When it is dropped
/// they wait no longer.
#[derive(Debug)]
pub(super) struct Flight {
    key: Key,
    flights: Arc<Flights>,
    landed: watch::Sender<Option<Landed>>,
}

impl Flights {
    fn all(&self) -> MutexGuard<'_, HashMap<Key, (Key, Waits)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the request of this key that is on its way, or begins one for this target.
    pub(super) fn join(self: &Arc<Self>, key: Key, target: Key) -> Place {
        let mut all = self.all();
        if let Some((_, waits)) = all.get(&key) {
            return Place::Waits(waits.clone());
        }
        let (landed, waits) = watch::channel(None);
        all.insert(key, (target, waits));
        Place::Leads(Flight { key, flights: Arc::clone(self), landed })
    }

    /// The request of this key that is on its way.
    pub(super) fn find(&self, key: Key) -> Option<Waits> {
        self.all().get(&key).map(|(_, waits)| waits.clone())
    }

    /// Lets nobody join any of the requests any more.
    pub(super) fn forget_all(&self) {
        self.all().clear();
    }

    /// Lets nobody join the requests for a target any more: what they bring has changed.
    pub(super) fn forget(&self, target: Key) {
        self.all().retain(|_, (of, _)| *of != target);
    }
}

impl Flight {
    /// Tells those who wait, and those who will.
    pub(super) fn land(&self, landed: Landed) {
        self.landed.send_replace(Some(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let own = self.landed.subscribe();
        let mut all = self.flights.all();
        if all.get(&self.key).is_some_and(|(_, waits)| waits.same_channel(&own)) {
            all.remove(&self.key);
        }
        drop(all);
        // Those who wait for one that panicked go alone.
        self.landed.send_if_modified(|landed| {
            let lost = landed.is_none();
            if lost {
                *landed = Some(Landed::Alone);
            }
            lost
        });
    }
}
