//! The epoll instance that the connections of a runtime share, and the task that reads it.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};

use ::tokio::io::unix::AsyncFd;
use ::tokio::runtime::{Handle, Id};
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;

use super::readiness::Readiness;
use crate::conn::Conn;
use crate::error::Error;
use crate::park::task::failed;
use crate::sys::tokio as sys;

/// Events that are read by one call.
const EVENTS: usize = 256;

/// The hubs of the runtimes that have had a connection.
static HUBS: LazyLock<Mutex<HashMap<Id, Weak<Hub>>>> = LazyLock::new(Mutex::default);

struct Hub {
    epoll: Arc<OwnedFd>,
    /// The connections by what epoll tells of them; a number is used once only.
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    last: u64,
    of: HashMap<u64, Arc<Readiness>>,
    /// The runtime is going away.
    gone: bool,
}

/// Nothing panics while holding one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hub {
    /// The hub of the runtime which this is called in.
    fn current() -> Result<Arc<Self>, Error> {
        let runtime = Handle::current();
        let mut hubs = lock(&HUBS);
        // An id may be that of a runtime which is no more.
        let known = hubs.get(&runtime.id()).and_then(Weak::upgrade);
        if let Some(hub) = known.filter(|hub| !lock(&hub.entries).gone) {
            return Ok(hub);
        }
        hubs.retain(|_, hub| hub.strong_count() > 0);
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::wait("epoll_create1"))?;
        let epoll = Arc::new(epoll);
        let watched = sys::register(Arc::clone(&epoll)).map_err(failed)?;
        let hub = Arc::new(Hub { epoll, entries: Mutex::default() });
        hubs.insert(runtime.id(), Arc::downgrade(&hub));
        drop(hubs);
        // The task ends with the runtime, even if it never began.
        let ending = Ending(Arc::clone(&hub));
        runtime.spawn(async move { ending.0.run(watched).await });
        Ok(hub)
    }

    /// Tells what happens, for as long as the runtime lives.
    async fn run(&self, epoll: AsyncFd<sys::Registered>) {
        let mut told = Vec::with_capacity(EVENTS);
        while let Ok(mut ready) = epoll.readable().await {
            match self.look(&mut told) {
                // What comes from here on makes it ready again.
                Ok(got) if got < EVENTS => ready.clear_ready(),
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            // Whoever is woken may drop entries, so that no lock is held.
            told.drain(..).for_each(|(shared, flags)| shared.tell(flags));
        }
    }

    /// Reads what happened, without waiting; says how many events there were.
    fn look(&self, told: &mut Vec<(Arc<Readiness>, EventFlags)>) -> Result<usize, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (events, _) = epoll::wait(&self.epoll, &mut buffer, Some(&now))?;
        let entries = lock(&self.entries);
        told.extend(events.iter().filter_map(|event| {
            let shared = entries.of.get(&event.data.u64())?;
            Some((Arc::clone(shared), event.flags))
        }));
        Ok(events.len())
    }
}

struct Ending(Arc<Hub>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut entries = lock(&self.0.entries);
        entries.gone = true;
        let left = std::mem::take(&mut entries.of);
        drop(entries);
        left.into_values().for_each(|entry| entry.gone());
    }
}

/// A connection's place in its runtime's epoll instance.
pub(super) struct Entry {
    hub: Arc<Hub>,
    conn: Arc<Conn>,
    key: u64,
}

impl Entry {
    /// Tells `shared` from here on what happens to the socket.
    pub(super) fn new(conn: Arc<Conn>, shared: Arc<Readiness>) -> Result<Self, Error> {
        let hub = Hub::current()?;
        let mut entries = lock(&hub.entries);
        entries.last += 1;
        let key = entries.last;
        if entries.gone {
            shared.gone();
        } else {
            entries.of.insert(key, shared);
        }
        drop(entries);
        let entry = Entry { hub, conn, key };
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let data = epoll::EventData::new_u64(key);
        epoll::add(&entry.hub.epoll, entry.conn.as_fd(), data, interest)
            .map_err(Error::wait("epoll_ctl"))?;
        Ok(entry)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // It is not there if adding it failed. A fork has the same instance, and must leave it
        // alone.
        if self.conn.endpoint().is_ours() {
            let _ = epoll::delete(&self.hub.epoll, self.conn.as_fd());
        }
        let told = lock(&self.hub.entries).of.remove(&self.key);
        drop(told);
    }
}
