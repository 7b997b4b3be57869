//! The means by which a thread waits: for sockets, and for whatever another thread may have done to
//! them.
//!
//! A notification that one thread reads from an error queue is gone for a thread that sleeps in
//! `poll` on the same socket. So every wait also listens to a bell, an eventfd that whoever reaps
//! rings (as a [`Waker`], so that futures wait in the same lists). Sockets are watched
//! edge-triggered: the POLLERR and POLLHUP of a dead socket never go away, and a level-triggered
//! wait on one would spin until the last notification.
//!
//! Sources: epoll(7), eventfd(2).

#[cfg(feature = "tokio")]
pub(crate) mod task;

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::fs::FileType;
use rustix::io::Errno;

use crate::error::Error;
use crate::sys::process::Process;

/// An eventfd that wakes one parked thread.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Where the program has closed it, no byte is to go to what has got its number. (An eventfd
        // is no kind of file.)
        let kind = rustix::fs::fstat(&self.0).map(|stat| FileType::from_raw_mode(stat.st_mode));
        if kind != Ok(FileType::Unknown) {
            return;
        }
        // EAGAIN: the counter is full, so the bell rings already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// A thread's place to wait: an epoll descriptor and a bell.
#[derive(Debug)]
pub(crate) struct Parker {
    /// Shared with a runtime that watches it.
    epoll: Arc<OwnedFd>,
    bell: Arc<Bell>,
    process: Process,
    mark: Mark,
    /// The program has closed a descriptor.
    lost: AtomicBool,
}

/// The mark that an epoll instance of this library puts on all it tells, and no other instance. A
/// program that closes descriptors it did not open may have made one of its own since, with the
/// number of ours, and so may this library.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark(u32);

const BELL: u64 = u32::MAX as u64;

impl Mark {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        // The upper half is neither that of a descriptor's number nor that of an address.
        Mark(0x5f2e_0000 | u32::from(NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// The data for the descriptor with this key, of which 32 bits count.
    pub(crate) fn with(self, key: u64) -> epoll::EventData {
        epoll::EventData::new_u64(u64::from(self.0) << 32 | key & BELL)
    }

    /// The key of what is told; `None` if another instance tells it.
    pub(crate) fn key_of(self, event: &epoll::Event) -> Option<u64> {
        let data = event.data;
        (data.u64() >> 32 == u64::from(self.0)).then_some(data.u64() & BELL)
    }
}

/// The condition that a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    /// For errors only: a notification on a socket's error queue counts as one.
    Errors,
    /// And for becoming writable.
    Writable,
    /// And for becoming readable.
    #[cfg_attr(not(feature = "uring"), expect(dead_code, reason = "only rings become readable"))]
    Readable,
}

/// An event on a watched descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Event {
    /// The key it was watched with.
    pub(crate) key: u64,
    /// EPOLLERR or EPOLLHUP: maybe a notification, maybe an error.
    pub(crate) error: bool,
}

impl Event {
    /// Whether it is no descriptor's: somebody woke the thread.
    pub(crate) fn is_bell(&self) -> bool {
        self.key == BELL
    }
}

/// No sleep is longer, which kernels before Linux 5.11 could not count (in milliseconds, 31 bits).
const LONGEST: Duration = Duration::from_secs(1 << 20);

thread_local! {
    static PARKER: RefCell<Option<Parker>> = const { RefCell::new(None) };
}

impl Parker {
    pub(crate) fn new() -> Result<Self, Error> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::wait("epoll_create1"))?;
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(Error::wait("eventfd"))?;
        let mark = Mark::new();
        epoll::add(&epoll, &bell, mark.with(BELL), epoll::EventFlags::IN)
            .map_err(Error::wait("epoll_ctl"))?;
        let (bell, process) = (Arc::new(Bell(bell)), Process::current());
        let (epoll, lost) = (Arc::new(epoll), AtomicBool::new(false));
        Ok(Parker { epoll, bell, process, mark, lost })
    }

    /// Runs `wait` with the calling thread's parker, which is kept for the next wait. A wait
    /// within a wait (from a hook) gets one of its own.
    pub(crate) fn with<T>(wait: impl FnOnce(&Parker) -> Result<T, Error>) -> Result<T, Error> {
        // While the thread ends, none is kept.
        let kept = PARKER.try_with(|place| place.borrow_mut().take()).ok().flatten();
        // After a fork the descriptors are shared with the parent, whose bell must not be ours.
        let parker = match kept.filter(|p| p.process.is_current()) {
            Some(parker) => parker,
            None => Parker::new()?,
        };
        let result = wait(&parker);
        if parker.lost.load(Ordering::Relaxed) {
            // The next wait makes another. These numbers are not this code's to close any more.
            std::mem::forget(parker);
        } else {
            let _ = PARKER.try_with(|place| place.replace(Some(parker)));
        }
        result
    }

    /// Wakes this thread, from anywhere.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.bell))
    }

    /// Watches `fd` until the result is dropped. What is already so is reported once.
    pub(crate) fn watch<'a>(
        &'a self,
        fd: BorrowedFd<'a>,
        key: u64,
        interest: Interest,
    ) -> Result<Watch<'a>, Error> {
        self.add(fd, key, interest)?;
        Ok(Watch { parker: self, fd })
    }

    /// As [`watch`](Self::watch), until `fd` is closed or [`remove`](Self::remove)d.
    pub(crate) fn add(
        &self,
        fd: BorrowedFd<'_>,
        key: u64,
        interest: Interest,
    ) -> Result<(), Error> {
        let flags = epoll::EventFlags::ET
            | epoll::EventFlags::ERR
            | match interest {
                Interest::Errors => epoll::EventFlags::empty(),
                Interest::Writable => epoll::EventFlags::OUT,
                Interest::Readable => epoll::EventFlags::IN,
            };
        let key = self.mark.with(key);
        match epoll::add(&self.epoll, fd, key, flags) {
            // A descriptor that was closed while a duplicate of it lived is watched still; this
            // one has got its number, and refers to the same socket.
            Err(Errno::EXIST) => epoll::modify(&self.epoll, fd, key, flags),
            added => added,
        }
        .map_err(|e| match e {
            // It is the other descriptor that is none.
            Errno::BADF if rustix::io::fcntl_getfd(&self.epoll).is_ok() => e,
            e => self.failed(e),
        })
        .map_err(Error::wait("epoll_ctl"))
    }

    /// Remembers whether it is of use still.
    fn failed(&self, errno: Errno) -> Errno {
        if matches!(errno, Errno::BADF | Errno::INVAL) {
            self.lost.store(true, Ordering::Relaxed);
        }
        errno
    }

    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // A fork has the same instance, and must leave it alone. It can only fail for a descriptor
        // that is not there.
        if self.process.is_current() {
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Sleeps until something watched happened, the bell rang, or the deadline passed. May
    /// return early for no reason.
    ///
    /// # Errors
    /// [`Error::Wait`] where the program has closed the descriptors.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> Result<Vec<Event>, Error> {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now()).min(LONGEST);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        let mut buffer = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 64];
        let got = match epoll::wait(&self.epoll, buffer.as_mut_slice(), timeout.as_ref()) {
            Ok(got) => got,
            Err(Errno::INTR) => 0,
            Err(e) => return Err(Error::wait("epoll_wait")(self.failed(e))),
        };
        let mut events = Vec::new();
        for event in &buffer[..got] {
            let Some(key) = self.mark.key_of(event) else {
                // Another instance, which may tell it for ever.
                return Err(Error::wait("epoll_wait")(self.failed(Errno::BADF)));
            };
            if key == BELL {
                let _ = rustix::io::read(&self.bell.0, &mut [0; 8]);
                events.push(Event { key: BELL, error: false });
            } else {
                let error = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
                let flags = event.flags;
                events.push(Event { key, error: flags.intersects(error) });
            }
        }
        Ok(events)
    }
}

impl AsFd for Parker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// A descriptor being watched; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    parker: &'a Parker,
    fd: BorrowedFd<'a>,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.parker.remove(self.fd.as_fd());
    }
}

/// The waiters to be woken when something changes.
#[derive(Debug, Default)]
pub(crate) struct Wakers {
    list: Vec<(u64, Waker)>,
    next: u64,
}

impl Wakers {
    /// Registers `waker` until [`remove`](Self::remove)d by the key returned.
    pub(crate) fn insert(&mut self, waker: Waker) -> u64 {
        self.next += 1;
        self.list.push((self.next, waker));
        self.next
    }

    pub(crate) fn remove(&mut self, key: u64) {
        self.list.retain(|(k, _)| *k != key);
    }

    /// All of them, to be woken after unlocking; but not the one of who asks, if that has the key
    /// `but`: it looks next at what has changed.
    pub(crate) fn all(&self, but: Option<u64>) -> Vec<Waker> {
        self.list.iter().filter(|(key, _)| Some(*key) != but).map(|(_, w)| w.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_is_rung_in_no_file() {
        let (mut parker, file) = (Parker::new().unwrap(), tempfile::tempfile().unwrap());
        // The program has closed it, and this has got its number.
        let bell = Arc::get_mut(&mut parker.bell).unwrap();
        rustix::io::dup2(&file, &mut bell.0).unwrap();
        parker.waker().wake();
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn who_asks_is_not_among_those_to_be_woken() {
        let mut wakers = Wakers::default();
        let (own, other) = (Parker::new().unwrap(), Parker::new().unwrap());
        let key = wakers.insert(own.waker());
        wakers.insert(other.waker());
        assert_eq!(wakers.all(None).len(), 2);
        let woken = wakers.all(Some(key));
        assert!(woken.len() == 1 && woken[0].will_wake(&other.waker()));
    }
}
