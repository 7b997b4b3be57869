//! `IORING_OP_SEND_ZC` on a private ring, one a thread. The ring reports the release, and the send
//! uses no notification id of the socket.
//!
//! The ring is used by an index that its thread knows it by, and not by its descriptor: programs
//! close descriptors that they did not open (`closefrom(3)`, `daemon(3)`), and another file, perhaps
//! a ring of theirs, has the number then.
//!
//! Sources: `io_uring_enter(2)`, `io_uring_register(2)`, `io_uring_prep_send_zc(3)`; Linux 6.0.

use std::cell::RefCell;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::Instant;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use sendfile2_sys::process::Process;

use crate::kernel::{self, Bytes};
use crate::request::Request;
use crate::sync::State;

/// Bytes asked for at once: several such requests fit the usual `RLIMIT_MEMLOCK`.
const CHUNK: usize = 1 << 20;

/// `IORING_SEND_ZC_REPORT_USAGE` of `linux/io_uring.h`, which the io-uring crate does not export:
/// the notification says whether the kernel copied.
const REPORT_USAGE: u16 = 1 << 3;

/// The number of requests whose completion is ignored: cancellations.
const NOBODY: u64 = 0;

thread_local! {
    static RING: RefCell<Slot> = const { RefCell::new(Slot::Untried) };
}

enum Slot {
    Untried,
    /// `io_uring_setup(2)` was refused: an old kernel, a sysctl, a filter.
    Refused,
    Open(Box<Ring>),
}

struct Ring {
    ring: ManuallyDrop<IoUring>,
    /// The index under which its thread has registered the ring.
    index: c_int,
    /// The device and inode of the ring's file.
    identity: (u64, u64),
    /// The process that made the ring: a child must not touch its parent's.
    owner: Process,
    next: u64,
}

impl Drop for Ring {
    fn drop(&mut self) {
        // In a child the mappings are not there. The number may mean another file by now, which is
        // not this code's to close; if not, the descriptor goes with exec.
        let ours = || kernel::identity(self.ring.as_raw_fd()) == Ok(self.identity);
        if self.owner.is_current() && ours() {
            // SAFETY: it is dropped once, and not used any more.
            #[allow(unsafe_code)]
            unsafe {
                ManuallyDrop::drop(&mut self.ring);
            }
        }
    }
}

/// The outcome of sending on the ring.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) bytes: usize,
    pub(crate) state: State,
    pub(crate) stop: Stop,
}

/// The reason why a sending ended.
#[derive(Debug)]
pub(crate) enum Stop {
    /// All was sent.
    Done,
    /// A plain send can go on, or fails in the manner of `sendfile(2)`.
    Plain,
    Failed(Errno),
    /// The ring was closed under the request: the kernel may read the memory for a while yet.
    Lost,
}

/// Sends `bytes`, and waits until the kernel has released them. `None` where there is no ring.
pub(crate) fn send(
    request: &Request<'_>,
    bytes: Bytes<'_>,
    deadline: Option<Instant>,
) -> Option<Sent> {
    // Neither in a signal handler that has interrupted this, nor while the thread ends.
    let mut sent = None;
    let _ = RING.try_with(|slot| {
        let Ok(mut slot) = slot.try_borrow_mut() else { return };
        if matches!(&*slot, Slot::Open(ring) if !ring.owner.is_current()) {
            *slot = Slot::Untried;
        }
        if matches!(&*slot, Slot::Untried) {
            *slot = Ring::open().map_or(Slot::Refused, |ring| Slot::Open(Box::new(ring)));
        }
        let Slot::Open(ring) = &mut *slot else { return };
        match ring.send(request, bytes, deadline) {
            Ok(done) => sent = Some(done),
            // The program has closed the descriptor, or the number is another file's by now: it is
            // not this code's to close.
            Err(lost) => {
                if let Slot::Open(ring) = std::mem::replace(&mut *slot, Slot::Refused) {
                    std::mem::forget(ring);
                }
                sent = lost.0;
            }
        }
    });
    sent
}

/// The ring can no longer be used: what is known of the sending, unless nothing was sent.
struct Lost(Option<Sent>);

/// The sends and notifications of one call that are in flight.
struct Tally {
    /// The number of the first request of the call.
    first: u64,
    /// Notifications that are outstanding. One may come before the result that announces it, and is
    /// then counted below 0.
    notifications: isize,
    copied: bool,
}

impl Tally {
    /// Takes in a completion; returns the result, if it is that of the request `id`.
    fn note(&mut self, number: u64, result: i32, flags: u32, id: u64) -> Option<i32> {
        if number < self.first {
            return None; // Of an earlier call that could not wait for it, or a cancellation.
        }
        if cqueue::notif(flags) {
            self.notifications -= 1;
            self.copied |= result != 0;
            return None;
        }
        // Failed requests may notify, too.
        self.notifications += isize::from(cqueue::more(flags));
        (number == id).then_some(result)
    }

    fn state(&self) -> State {
        match (self.notifications, self.copied) {
            (0, false) => State::Released,
            (0, true) => State::Copied,
            _ => State::Unknown,
        }
    }
}

impl Ring {
    fn open() -> Option<Self> {
        let ring = IoUring::builder()
            .dontfork()
            .setup_coop_taskrun()
            .setup_single_issuer()
            .setup_cqsize(128)
            .build(4)
            .ok()?;
        let identity = kernel::identity(ring.as_raw_fd()).ok()?;
        let index = kernel::register_ring(ring.as_raw_fd()).ok()?;
        let (ring, owner) = (ManuallyDrop::new(ring), Process::current());
        Some(Ring { ring, index, identity, owner, next: NOBODY + 1 })
    }

    fn send(
        &mut self,
        request: &Request<'_>,
        bytes: Bytes<'_>,
        deadline: Option<Instant>,
    ) -> Result<Sent, Lost> {
        let mut tally = Tally { first: self.next, notifications: 0, copied: false };
        let mut sent = 0;
        let mut stop = Stop::Done;
        while sent < bytes.len() {
            let part = bytes.after(sent).first(CHUNK);
            let before = tally.notifications;
            let id = self.next;
            self.next += 1;
            #[expect(clippy::cast_possible_truncation, reason = "a chunk is not that long")]
            let length = part.len() as u32;
            let socket = types::Fd(request.socket.as_raw_fd());
            let entry = opcode::SendZc::new(socket, part.start(), length)
                .flags(libc::MSG_NOSIGNAL)
                .zc_flags(REPORT_USAGE)
                .build()
                .user_data(id);
            // SAFETY: the bytes are mapped, and stay so until the request has completed, which is
            // waited for below, whatever happens; the pages are pinned by then.
            #[allow(unsafe_code)]
            if unsafe { self.submit(&entry) }.is_err() {
                let done = Sent { bytes: sent, state: tally.state(), stop: Stop::Plain };
                return Err(Lost((sent > 0).then_some(done)));
            }
            let mut cancelled = None;
            let result = loop {
                let limit = if cancelled.is_some() { None } else { Some(deadline) };
                match self.completion(limit) {
                    Ok(completion) => {
                        if let Some(result) = note(&mut tally, &completion, id) {
                            break result;
                        }
                    }
                    Err(e @ (Errno::TIME | Errno::INTR)) => {
                        cancelled = Some(if e == Errno::TIME { Errno::TIMEDOUT } else { e });
                        let entry = opcode::AsyncCancel::new(id).build().user_data(NOBODY);
                        // SAFETY: it refers to no memory.
                        #[allow(unsafe_code)]
                        let _ = unsafe { self.submit(&entry) };
                    }
                    Err(_) => {
                        // Somebody has closed the ring during the call: the kernel drops the
                        // request then, but when is not known.
                        let state = State::Unknown;
                        return Err(Lost(Some(Sent { bytes: sent, state, stop: Stop::Lost })));
                    }
                }
            };
            match usize::try_from(result) {
                Ok(some) => sent += some,
                Err(_) => match (Errno::from_raw_os_error(-result), cancelled) {
                    (Errno::CANCELED, Some(reason)) => {
                        stop = Stop::Failed(reason);
                        break;
                    }
                    // The notification of an earlier request frees memory for it; its own, which
                    // it may have though it failed, does not.
                    (Errno::NOMEM | Errno::NOBUFS, None) if before > 0 => {
                        if self.drain(&mut tally, before - 1, deadline)?.is_some() {
                            stop = Stop::Failed(Errno::TIMEDOUT);
                            break;
                        }
                        continue;
                    }
                    (
                        Errno::NOMEM
                        | Errno::NOBUFS
                        | Errno::PIPE
                        | Errno::FAULT
                        | Errno::INVAL
                        | Errno::OPNOTSUPP,
                        _,
                    ) => {
                        stop = Stop::Plain;
                        break;
                    }
                    (errno, _) => {
                        stop = Stop::Failed(errno);
                        break;
                    }
                },
            }
            if let Some(reason) = cancelled {
                // The request was done before it could be cancelled.
                stop = if sent < bytes.len() { Stop::Failed(reason) } else { Stop::Done };
                break;
            }
        }
        self.drain(&mut tally, 0, deadline)?;
        Ok(Sent { bytes: sent, state: tally.state(), stop })
    }

    /// Waits until no more than `down_to` notifications are outstanding. Signals do not end the
    /// wait: the range is not released by them. Returns [`TimeIsOver`] if the time was over first.
    fn drain(
        &mut self,
        tally: &mut Tally,
        down_to: isize,
        deadline: Option<Instant>,
    ) -> Result<Option<TimeIsOver>, Lost> {
        while tally.notifications > down_to {
            match self.completion(Some(deadline)) {
                Ok(completion) => {
                    note(tally, &completion, NOBODY);
                }
                Err(Errno::TIME) => return Ok(Some(TimeIsOver)),
                Err(Errno::INTR) => {}
                Err(_) => break, // They stay out: unknown.
            }
        }
        Ok(None)
    }

    /// # Safety
    /// The memory that the entry refers to must stay until its completion.
    #[allow(unsafe_code)]
    unsafe fn submit(&mut self, entry: &squeue::Entry) -> Result<(), Errno> {
        // SAFETY: as the caller's.
        unsafe { self.ring.submission().push(entry) }.map_err(|_| Errno::AGAIN)?;
        loop {
            // SAFETY: as the caller's.
            match unsafe { kernel::enter_ring(self.index, 1, 0, None) } {
                // Taken from this ring, or the program has given the index away.
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => return Err(Errno::BADF),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Returns the next completion. With a limit, ETIME when that is over, and EINTR for signals;
    /// without one, neither.
    fn completion(&mut self, limit: Option<Option<Instant>>) -> Result<cqueue::Entry, Errno> {
        loop {
            if let Some(completion) = self.ring.completion().next() {
                return Ok(completion);
            }
            let left = limit.flatten();
            let left = left.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // SAFETY: nothing is submitted.
            #[allow(unsafe_code)]
            let result = unsafe { kernel::enter_ring(self.index, 0, 1, left) };
            match result {
                Ok(_) | Err(Errno::AGAIN | Errno::BUSY) => {}
                Err(Errno::INTR) if limit.is_none() => {}
                Err(e) => return Err(e),
            }
        }
    }
}

struct TimeIsOver;

fn note(tally: &mut Tally, completion: &cqueue::Entry, id: u64) -> Option<i32> {
    tally.note(completion.user_data(), completion.result(), completion.flags(), id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MORE: u32 = 1 << 1;
    const NOTIFICATION: u32 = 1 << 3;

    #[test]
    fn a_notification_may_come_before_its_result() {
        let mut tally = Tally { first: 7, notifications: 0, copied: false };
        assert_eq!(tally.note(7, 0, NOTIFICATION, 7), None);
        assert_eq!(tally.state(), State::Unknown);
        assert_eq!(tally.note(7, 100, MORE, 7), Some(100));
        assert_eq!(tally.state(), State::Released);
    }

    #[test]
    fn completions_of_earlier_calls_count_for_nothing() {
        let mut tally = Tally { first: 7, notifications: 0, copied: false };
        assert_eq!(tally.note(6, i32::MIN, NOTIFICATION, 7), None);
        assert_eq!(tally.note(NOBODY, -libc::ENOENT, 0, 7), None);
        assert_eq!(tally.state(), State::Released);
        assert_eq!(tally.note(7, 100, MORE, 7), Some(100));
        assert_eq!(tally.state(), State::Unknown);
        assert_eq!(tally.note(7, i32::MIN, NOTIFICATION, 7), None);
        assert_eq!(tally.state(), State::Copied);
    }
}
