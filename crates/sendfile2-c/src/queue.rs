//! The account of one socket's notifications, for programs that have no error-queue code.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_int;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fs::FileType;
use rustix::io::Errno;
use sendfile2_sys::errqueue::{self, Entry};

use crate::request::Notifier;

/// Entries of others that a wait keeps for the program to reap, at most.
const KEPT: usize = 64;

/// One socket's error queue.
#[derive(Debug)]
pub(crate) struct Queue {
    /// The program's descriptor: a duplicate would withhold the end of the stream when it is
    /// closed.
    socket: RawFd,
    /// The instance that watches the socket, edge-triggered: a dead connection is ready for ever.
    epoll: OwnedFd,
    /// The eventfd that wakes a thread that sleeps; written by another thread that has read.
    bell: OwnedFd,
    /// The data of the socket's events in the epoll instance, which no other instance has; the
    /// bell's are one more.
    mark: u64,
    state: Mutex<State>,
    read: Condvar,
}

#[derive(Debug)]
struct State {
    released: Released,
    /// The entries that were read and not handed out yet.
    pending: VecDeque<Read>,
    /// Whether a thread sleeps in epoll; others wait for it.
    sleeping: bool,
}

/// An entry, its ids widened.
#[derive(Debug)]
pub(crate) enum Read {
    Completion { first: u64, last: u64, copied: bool },
    Foreign(errqueue::Foreign),
    Broken,
}

impl Queue {
    /// Opens the queue of a socket whose next zerocopy send will have the id `next`.
    pub(crate) fn new(socket: c_int, next: u64) -> Result<Self, Errno> {
        if socket < 0 {
            return Err(Errno::BADF);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Where the program closes descriptors that it did not open, the numbers become others'. The
        // upper half is that of no address and no descriptor's number.
        static NEXT: AtomicU64 = AtomicU64::new(0x5f2f << 48);
        let queue = Queue {
            socket,
            epoll,
            bell,
            mark: NEXT.fetch_add(2, Ordering::Relaxed),
            state: Mutex::new(State {
                released: Released { below: next, later: BTreeMap::new() },
                pending: VecDeque::new(),
                sleeping: false,
            }),
            read: Condvar::new(),
        };
        rustix::io::fcntl_getfd(queue.socket())?;
        // A unix socket would hand out what its peer has sent.
        Notifier::of(queue.socket()).ok_or(Errno::OPNOTSUPP)?;
        let [socket, bell] = [queue.mark, queue.mark + 1].map(epoll::EventData::new_u64);
        // Errors are always reported.
        epoll::add(&queue.epoll, queue.socket(), socket, epoll::EventFlags::ET)?;
        epoll::add(&queue.epoll, &queue.bell, bell, epoll::EventFlags::IN)?;
        Ok(queue)
    }

    fn socket(&self) -> BorrowedFd<'_> {
        // SAFETY: it is not -1, and the program keeps it open as long as the queue.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.socket)
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the entries that are there, `room` at most.
    pub(crate) fn reap(&self, room: usize) -> Result<Vec<Read>, Errno> {
        let mut state = self.lock();
        let mut failed = None;
        let mut read = false;
        while state.pending.len() < room {
            match self.read_some(&mut state, true) {
                Ok(true) => read = true,
                Ok(false) => break,
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        if read {
            self.tell(&state);
        }
        let count = state.pending.len().min(room);
        match failed {
            // Entries that were read are returned before the error is.
            Some(e) if count == 0 => Err(e),
            _ => Ok(state.pending.drain(..count).collect()),
        }
    }

    /// Waits until the send with this id is released.
    pub(crate) fn wait(&self, id: u64, deadline: Option<Instant>) -> Result<(), Errno> {
        let mut state = self.lock();
        loop {
            let mut read = false;
            while state.pending.len() < KEPT && self.read_some(&mut state, false)? {
                read = true;
            }
            if read {
                self.tell(&state);
            }
            if state.released.contains(id) {
                return Ok(());
            }
            if state.pending.len() >= KEPT {
                return Err(Errno::NOBUFS);
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Err(Errno::TIMEDOUT);
            }
            if state.sleeping {
                let left = left.unwrap_or(Duration::from_secs(3600));
                let woken = self.read.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            state.sleeping = true;
            drop(state);
            let slept = self.sleep(left);
            state = self.lock();
            state.sleeping = false;
            // Another one sleeps next.
            self.read.notify_all();
            slept?;
        }
    }

    fn sleep(&self, left: Option<Duration>) -> Result<(), Errno> {
        let left = left.map(Timespec::try_from).transpose().map_err(|_| Errno::INVAL)?;
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 2];
        let count = match epoll::wait(&self.epoll, &mut events[..], left.as_ref()) {
            Err(Errno::INTR) => 0,
            result => result?,
        };
        for event in &events[..count] {
            let told = event.data;
            if told.u64() == self.mark + 1 {
                let _ = rustix::io::read(&self.bell, &mut [0; 8]);
            } else if told.u64() != self.mark {
                // An event of an instance of the program's, which may report it for ever.
                return Err(Errno::BADF);
            }
        }
        Ok(())
    }

    /// Wakes the threads that wait for what was read.
    fn tell(&self, state: &State) {
        self.read.notify_all();
        // No byte is to go to what may have the bell's number; an eventfd is no kind of file.
        let kind = |stat: rustix::fs::Stat| FileType::from_raw_mode(stat.st_mode);
        if state.sleeping && rustix::fs::fstat(&self.bell).map(kind) == Ok(FileType::Unknown) {
            // It is full only if it was rung and not heard yet.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Reads one batch; `false` if there was none. Completions are kept for handing out only if
    /// `completions` is set.
    fn read_some(&self, state: &mut State, completions: bool) -> Result<bool, Errno> {
        let mut entries = Vec::new();
        errqueue::read(self.socket(), &mut entries)?;
        let some = !entries.is_empty();
        for entry in entries {
            match entry {
                Ok(Entry::Completion { lo, hi, copied }) => {
                    let (first, last) = state.released.add(lo, hi);
                    if completions {
                        state.pending.push_back(Read::Completion { first, last, copied });
                    }
                }
                Ok(Entry::Foreign(foreign)) => state.pending.push_back(Read::Foreign(foreign)),
                Err(_) => state.pending.push_back(Read::Broken),
            }
        }
        Ok(some)
    }
}

/// The ids that are released; ids count on where the kernel's wrap.
#[derive(Debug)]
struct Released {
    /// The id below which all are released.
    below: u64,
    /// Ranges further on, by their first id, with the id after their last.
    later: BTreeMap<u64, u64>,
}

impl Released {
    fn contains(&self, id: u64) -> bool {
        let range = self.later.range(..=id).next_back();
        id < self.below || range.is_some_and(|(_, end)| id < *end)
    }

    /// Adds a range of the kernel's ids, and returns it widened.
    fn add(&mut self, lo: u32, hi: u32) -> (u64, u64) {
        let first = self.widen(lo);
        let last = first + u64::from(hi.wrapping_sub(lo));
        let (mut start, mut end) = (first, last + 1);
        // Joined with what it touches: before it, and behind.
        if let Some((&before, &its_end)) = self.later.range(..=start).next_back() {
            if its_end >= start {
                start = before;
                end = end.max(its_end);
            }
        }
        while let Some((&next, &its_end)) = self.later.range(start..=end).next() {
            self.later.remove(&next);
            end = end.max(its_end);
        }
        if start <= self.below {
            self.below = self.below.max(end);
        } else {
            self.later.insert(start, end);
        }
        (first, last)
    }

    /// Returns the id whose lower half is `id`, out of these the one nearest to the ids that are
    /// awaited.
    fn widen(&self, id: u32) -> u64 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let ahead = id.wrapping_sub(self.below as u32);
        #[expect(clippy::cast_possible_wrap, reason = "the upper half of them is behind")]
        let ahead = i64::from(ahead as i32);
        // Behind the first one there was nothing.
        self.below.checked_add_signed(ahead).unwrap_or(u64::from(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_in_any_order_across_the_wrap() {
        let start = u64::from(u32::MAX) - 9; // ten ids before the wrap
        let mut released = Released { below: start, later: BTreeMap::new() };
        assert_eq!(released.add(2, 4), (start + 12, start + 14));
        assert!(released.contains(start + 13) && !released.contains(start + 11));
        assert_eq!(released.add(u32::MAX - 9, u32::MAX - 5), (start, start + 4));
        assert_eq!(released.below, start + 5);
        // Over the wrap, and joining all.
        assert_eq!(released.add(u32::MAX - 4, 1), (start + 5, start + 11));
        assert_eq!((released.below, released.later.len()), (start + 15, 0));
        // A range that was reported before is reported again.
        assert_eq!(released.add(u32::MAX, 0), (start + 9, start + 10));
        assert_eq!(released.below, start + 15);
    }

    #[test]
    fn the_ranges_are_those_of_a_set() {
        // A permutation of 0..97 in pieces.
        let mut released = Released { below: 0, later: BTreeMap::new() };
        let mut naive = std::collections::BTreeSet::new();
        for step in 0..97_u32 {
            let id = step * 31 % 97;
            let last = (id + step % 3).min(96);
            released.add(id, last);
            naive.extend(id..=last);
            for id in 0..100 {
                assert_eq!(released.contains(u64::from(id)), naive.contains(&id), "{step} {id}");
            }
        }
        assert_eq!((released.below, released.later.len()), (97, 0));
    }
}
