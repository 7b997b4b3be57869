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
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::io::Errno;
use sendfile2_sys::process::Process;
use sendfile2_sys::recover::{self, Attempt, Next};

use crate::kernel::{self, Bytes};
use crate::sync::State;

/// The most bytes that one operation sends: several such operations fit the usual `RLIMIT_MEMLOCK`.
const PART: usize = 1 << 20;

/// `IORING_SEND_ZC_REPORT_USAGE` of `linux/io_uring.h`, which the io-uring crate does not export:
/// the notification says whether the kernel copied. Before Linux 6.2 the answer to it is EINVAL.
const REPORT_USAGE: u16 = 1 << 3;

/// The `user_data` of operations whose completions are ignored: cancellations.
const IGNORED: u64 = 0;

thread_local! {
    static RING: RefCell<Slot> = const { RefCell::new(Slot::Untried) };
}

/// The place for a thread's ring.
enum Slot {
    /// The thread has not asked for a ring yet.
    Untried,
    /// The thread gets no ring: `io_uring_setup(2)` was refused (an old kernel, a sysctl, a filter),
    /// or the program has closed the ring that there was.
    Unavailable,
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
    /// The `user_data` of the next operation.
    next_user_data: u64,
    /// [`REPORT_USAGE`], where the kernel knows it.
    zc_flags: u16,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All was sent.
    Done,
    /// The ring cannot send the rest: a plain send is to do it, or to fail as `sendfile(2)` does.
    Plain,
    /// The error is the answer, unless some bytes were sent.
    Failed(Errno),
    /// The ring was closed before the result of an operation: the kernel may read the memory, for
    /// nobody knows how long.
    Lost,
}

/// Sends `bytes`, and waits until the kernel has released them. `None` where the thread has no ring,
/// or is using it.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: Bytes<'_>,
    deadline: Option<Instant>,
) -> Option<Sent> {
    let mut sent = None;
    // A thread that ends has no slot any more.
    let _ = RING.try_with(|slot| {
        // A signal handler that has interrupted this function finds the slot borrowed.
        let Ok(mut slot) = slot.try_borrow_mut() else { return };
        if matches!(&*slot, Slot::Open(ring) if !ring.owner.is_current()) {
            *slot = Slot::Untried;
        }
        if matches!(&*slot, Slot::Untried) {
            *slot = Ring::open().map_or(Slot::Unavailable, |ring| Slot::Open(Box::new(ring)));
        }
        let Slot::Open(ring) = &mut *slot else { return };
        sent = Some(match ring.send(socket, bytes, deadline) {
            Ok(done) => done,
            Err(Lost(done)) => {
                // The program has closed the descriptor, or the number is another file's by now: it
                // is not this code's to close.
                if let Slot::Open(ring) = std::mem::replace(&mut *slot, Slot::Unavailable) {
                    std::mem::forget(ring);
                }
                done
            }
        });
    });
    sent
}

/// The error of a ring that can no longer be used, with what was sent on it before.
struct Lost(Sent);

/// The operations of one call whose notifications are outstanding.
struct InFlight {
    /// The `user_data` of the first operation of the call.
    first: u64,
    /// Notifications that are outstanding. One may come before the result that announces it, and is
    /// then counted below 0.
    notifications: isize,
    copied: bool,
}

impl InFlight {
    fn new(first: u64) -> Self {
        InFlight { first, notifications: 0, copied: false }
    }

    /// Counts a completion; returns the result that it has, if it is one of the operation `wanted`.
    fn count(&mut self, completion: Completion, wanted: u64) -> Option<i32> {
        let Completion { user_data, result, flags } = completion;
        if user_data < self.first {
            return None; // Of an earlier call that could not wait for it, or a cancellation.
        }
        if cqueue::notif(flags) {
            self.notifications -= 1;
            self.copied |= result != 0;
            return None;
        }
        // Operations that failed may notify, too.
        self.notifications += isize::from(cqueue::more(flags));
        (user_data == wanted).then_some(result)
    }

    fn state(&self) -> State {
        match (self.notifications, self.copied) {
            (0, false) => State::Released,
            (0, true) => State::Copied,
            _ => State::Unknown,
        }
    }
}

/// The fields of a completion; the io-uring crate's own cannot be made in tests.
#[derive(Debug, Clone, Copy)]
struct Completion {
    user_data: u64,
    result: i32,
    flags: u32,
}

impl From<cqueue::Entry> for Completion {
    fn from(entry: cqueue::Entry) -> Self {
        let (user_data, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        Completion { user_data, result, flags }
    }
}

/// The next step after an operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The same part without [`REPORT_USAGE`].
    WithoutUsage,
    /// The same part after the release of another one, which frees memory for it.
    AfterRelease,
    /// No further part.
    Stop(Stop),
}

/// Returns what to do after the error of an operation, which may have been cancelled for a reason.
fn step(errno: Errno, cancelled: Option<Errno>, attempt: Attempt) -> Step {
    match (recover::next(errno, attempt), cancelled) {
        (Next::Again, Some(reason)) if errno == Errno::CANCELED => Step::Stop(Stop::Failed(reason)),
        (Next::WithoutUsage, _) => Step::WithoutUsage,
        (Next::AfterRelease, None) => Step::AfterRelease,
        (Next::AfterRelease | Next::Copy | Next::Refused | Next::Read, _) => {
            Step::Stop(Stop::Plain)
        }
        // A plain send raises SIGPIPE, and meets an EINVAL that is not of the ring.
        (Next::Failed, _) if matches!(errno, Errno::PIPE | Errno::INVAL) => Step::Stop(Stop::Plain),
        (Next::Again | Next::WhenWritable | Next::Failed, _) => Step::Stop(Stop::Failed(errno)),
    }
}

/// The outcome of a wait for notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    /// Enough of them have arrived.
    Done,
    DeadlinePassed,
    /// The ring was closed: those that are outstanding will never be read.
    Lost,
}

/// The end of a wait for a completion.
#[derive(Debug, Clone, Copy)]
enum Wait {
    /// The completion, a signal, or the deadline (`None`: none).
    Until(Option<Instant>),
    /// The completion only.
    Uninterrupted,
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
        let (next_user_data, zc_flags) = (IGNORED + 1, REPORT_USAGE);
        Some(Ring { ring, index, identity, owner, next_user_data, zc_flags })
    }

    /// Sends part after part, and waits until all of them are released.
    fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        bytes: Bytes<'_>,
        deadline: Option<Instant>,
    ) -> Result<Sent, Lost> {
        let mut in_flight = InFlight::new(self.next_user_data);
        let (mut sent, mut stop) = (0, Stop::Done);
        while sent < bytes.len() {
            let part = bytes.after(sent).first(PART);
            // The part's own notification, which it may have though it failed, frees no memory.
            let others = in_flight.notifications;
            let (result, cancelled) = match self.send_part(socket, part, deadline, &mut in_flight) {
                Ok(answer) => answer,
                Err(stop) => {
                    let lost = stop == Stop::Lost;
                    let state = if lost { State::Unknown } else { in_flight.state() };
                    return Err(Lost(Sent { bytes: sent, state, stop }));
                }
            };
            let attempt = Attempt {
                by_reference: true,
                others_in_flight: others > 0,
                reports_usage: self.zc_flags & REPORT_USAGE != 0,
                faulted_before: false,
            };
            match result.map_err(|errno| step(errno, cancelled, attempt)) {
                Ok(accepted) => sent += accepted,
                Err(Step::WithoutUsage) => self.zc_flags = 0,
                Err(Step::AfterRelease) => match self.drain(&mut in_flight, others - 1, deadline) {
                    Drained::Done => {}
                    Drained::DeadlinePassed => {
                        stop = Stop::Failed(Errno::TIMEDOUT);
                        break;
                    }
                    Drained::Lost => {
                        stop = Stop::Plain;
                        break;
                    }
                },
                Err(Step::Stop(reason)) => {
                    stop = reason;
                    break;
                }
            }
            if let Some(reason) = cancelled {
                // The operation had a result before it could be cancelled.
                stop = if sent < bytes.len() { Stop::Failed(reason) } else { Stop::Done };
                break;
            }
        }
        let drained = self.drain(&mut in_flight, 0, deadline);
        let done = Sent { bytes: sent, state: in_flight.state(), stop };
        if drained == Drained::Lost { Err(Lost(done)) } else { Ok(done) }
    }

    /// Sends one part, and waits for its result. Cancels the operation at the deadline and for a
    /// signal; returns the error that stands for that beside the result.
    ///
    /// # Errors
    /// [`Stop::Plain`] if nothing was submitted, [`Stop::Lost`] if the result cannot be had.
    fn send_part(
        &mut self,
        socket: BorrowedFd<'_>,
        part: Bytes<'_>,
        deadline: Option<Instant>,
        in_flight: &mut InFlight,
    ) -> Result<(Result<usize, Errno>, Option<Errno>), Stop> {
        let user_data = self.next_user_data;
        self.next_user_data += 1;
        #[expect(clippy::cast_possible_truncation, reason = "a part is not that long")]
        let length = part.len() as u32;
        let entry = opcode::SendZc::new(types::Fd(socket.as_raw_fd()), part.start(), length)
            .flags(libc::MSG_NOSIGNAL)
            .zc_flags(self.zc_flags)
            .build()
            .user_data(user_data);
        // SAFETY: the bytes are mapped, and stay so until the operation has a result, which is
        // waited for below, whatever happens; the pages are pinned by then. Where the result cannot
        // be had, the caller keeps them mapped for ever.
        #[allow(unsafe_code)]
        unsafe { self.submit(&entry) }.map_err(|_| Stop::Plain)?;
        let mut cancelled = None;
        loop {
            let wait =
                if cancelled.is_some() { Wait::Uninterrupted } else { Wait::Until(deadline) };
            match self.completion(wait) {
                Ok(completion) => {
                    if let Some(result) = in_flight.count(completion, user_data) {
                        let accepted = usize::try_from(result);
                        let result = accepted.map_err(|_| Errno::from_raw_os_error(-result));
                        return Ok((result, cancelled));
                    }
                }
                Err(e @ (Errno::TIME | Errno::INTR)) => {
                    cancelled = Some(if e == Errno::TIME { Errno::TIMEDOUT } else { e });
                    let entry = opcode::AsyncCancel::new(user_data).build().user_data(IGNORED);
                    // SAFETY: it refers to no memory.
                    #[allow(unsafe_code)]
                    let _ = unsafe { self.submit(&entry) };
                }
                // Somebody has closed the ring during the call: the kernel drops the operation then,
                // but when is not known.
                Err(_) => return Err(Stop::Lost),
            }
        }
    }

    /// Waits until no more than `down_to` notifications are outstanding, or until the deadline.
    /// Signals do not end the wait: the range is not released by them.
    fn drain(
        &mut self,
        in_flight: &mut InFlight,
        down_to: isize,
        deadline: Option<Instant>,
    ) -> Drained {
        while in_flight.notifications > down_to {
            match self.completion(Wait::Until(deadline)) {
                Ok(completion) => {
                    in_flight.count(completion, IGNORED);
                }
                Err(Errno::TIME) => return Drained::DeadlinePassed,
                Err(Errno::INTR) => {}
                Err(_) => return Drained::Lost,
            }
        }
        Drained::Done
    }

    /// Submits one operation.
    ///
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

    /// Returns the next completion.
    ///
    /// # Errors
    /// ETIME at the deadline and EINTR for a signal, by [`Wait::Until`]; any other error means that
    /// the ring is lost.
    fn completion(&mut self, wait: Wait) -> Result<Completion, Errno> {
        loop {
            if let Some(completion) = self.ring.completion().next() {
                return Ok(completion.into());
            }
            let timeout = match wait {
                Wait::Until(Some(deadline)) => {
                    Some(deadline.saturating_duration_since(Instant::now()))
                }
                Wait::Until(None) | Wait::Uninterrupted => None,
            };
            // SAFETY: nothing is submitted.
            #[allow(unsafe_code)]
            let result = unsafe { kernel::enter_ring(self.index, 0, 1, timeout) };
            match (result, wait) {
                (Ok(_) | Err(Errno::AGAIN | Errno::BUSY), _) => {}
                (Err(Errno::INTR), Wait::Uninterrupted) => {}
                (Err(e), _) => return Err(e),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::kernel::Mapping;

    const MORE: u32 = 1 << 1;
    const NOTIFICATION: u32 = 1 << 3;

    fn completion(user_data: u64, result: i32, flags: u32) -> Completion {
        Completion { user_data, result, flags }
    }

    #[test]
    fn a_notification_may_come_before_its_result() {
        let mut in_flight = InFlight::new(7);
        assert_eq!(in_flight.count(completion(7, 0, NOTIFICATION), 7), None);
        assert_eq!(in_flight.state(), State::Unknown);
        assert_eq!(in_flight.count(completion(7, 100, MORE), 7), Some(100));
        assert_eq!(in_flight.state(), State::Released);
    }

    #[test]
    fn completions_of_earlier_calls_count_for_nothing() {
        let mut in_flight = InFlight::new(7);
        assert_eq!(in_flight.count(completion(6, i32::MIN, NOTIFICATION), 7), None);
        assert_eq!(in_flight.count(completion(IGNORED, -libc::ENOENT, 0), 7), None);
        assert_eq!(in_flight.state(), State::Released);
        assert_eq!(in_flight.count(completion(7, 100, MORE), 7), Some(100));
        assert_eq!(in_flight.state(), State::Unknown);
        assert_eq!(in_flight.count(completion(7, i32::MIN, NOTIFICATION), 7), None);
        assert_eq!(in_flight.state(), State::Copied);
    }

    #[test]
    fn steps_as_a_table() {
        let first = Attempt { by_reference: true, reports_usage: true, ..Attempt::default() };
        let old = Attempt { reports_usage: false, ..first };
        let busy = Attempt { others_in_flight: true, ..first };
        let (signal, late) = (Some(Errno::INTR), Some(Errno::TIMEDOUT));
        let (plain, failed) = (Step::Stop(Stop::Plain), |e| Step::Stop(Stop::Failed(e)));
        #[rustfmt::skip]
        let table = [
            // Linux 6.0 and 6.1 do not know the flag: not a reason to copy.
            (Errno::INVAL,     None,   first, Step::WithoutUsage),
            (Errno::INVAL,     None,   busy,  Step::WithoutUsage),
            (Errno::INVAL,     None,   old,   plain),
            (Errno::NOMEM,     None,   busy,  Step::AfterRelease),
            (Errno::NOBUFS,    None,   busy,  Step::AfterRelease),
            (Errno::NOMEM,     late,   busy,  plain),
            (Errno::NOMEM,     None,   first, plain),
            (Errno::FAULT,     None,   first, plain),
            (Errno::OPNOTSUPP, None,   first, plain),
            (Errno::PIPE,      None,   first, plain),
            (Errno::CANCELED,  signal, first, failed(Errno::INTR)),
            (Errno::CANCELED,  late,   busy,  failed(Errno::TIMEDOUT)),
            (Errno::AGAIN,     None,   first, failed(Errno::AGAIN)),
            (Errno::CONNRESET, late,   first, failed(Errno::CONNRESET)),
        ];
        for (errno, cancelled, attempt, expected) in table {
            assert_eq!(step(errno, cancelled, attempt), expected, "{errno:?} {attempt:?}");
        }
    }

    /// A flag that no kernel knows, as the older ones do not know [`REPORT_USAGE`].
    #[test]
    fn where_the_kernel_does_not_know_the_flag_it_sends_by_reference() {
        let Some(mut ring) = Ring::open() else {
            println!("SKIP: io_uring is not to be had");
            return;
        };
        ring.zc_flags |= 1 << 15;
        let length = 64 << 10;
        let file = tempfile::tempfile().expect("a file");
        file.set_len(length as u64).expect("its size");
        let mapping = Mapping::of(file.as_fd(), 0, length).expect("a mapping");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let address = listener.local_addr().expect("its address");
        let socket = TcpStream::connect(address).expect("connected");
        let (mut peer, _) = listener.accept().expect("accepted");
        let reader = std::thread::spawn(move || {
            let mut received = Vec::new();
            peer.read_to_end(&mut received).map(|_| received.len())
        });
        for _ in 0..2 {
            let Ok(sent) = ring.send(socket.as_fd(), mapping.bytes(), None) else {
                panic!("the ring is lost");
            };
            assert_eq!((sent.bytes, sent.stop), (length, Stop::Done));
            assert_eq!(sent.state, State::Released, "without the flag no copy is reported");
            assert_eq!(ring.zc_flags, 0, "it is not tried again");
        }
        drop(socket);
        assert_eq!(reader.join().expect("the reader").expect("read"), 2 * length);
    }
}
