//! `io_uring`: a ring for sends, and the memory that the kernel reads for them.
//!
//! A send reads its memory until its *first* completion: the kernel imports the address when it
//! begins, and again when it goes on after waiting for the socket, and then has pinned the pages.
//! So a [`Queues`] keeps the memory and the socket of each send itself until then, and forgets them
//! (never frees them) if it goes away too early. *What the file holds* must not change until the
//! notification, which is another matter, and the caller's: its `kept` comes back with that.
//!
//! The ring uses none of the modes `DEFER_TASKRUN`, `COOP_TASKRUN` and `SINGLE_ISSUER`: the
//! reaper's thread must be able to drain a ring whose thread is busy, or gone.
//!
//! Sources: `io_uring_setup(2)`, `io_uring_enter(2)`, `io_uring_register(2)`.

use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue};
use rustix::io::Errno;

use crate::mapping::{Mapping, Region};
use crate::op_table::{Completion, Slots, Step, Stray};

/// `IORING_SEND_ZC_REPORT_USAGE` of `linux/io_uring.h` (Linux 6.2), which the crate keeps to
/// itself: the notification says whether the kernel copied.
const REPORT_USAGE: u16 = 1 << 3;

/// `IORING_NOTIF_USAGE_ZC_COPIED` of `linux/io_uring.h`: the highest bit.
const COPIED: i32 = i32::MIN;

/// The key of requests to the ring itself (a cancellation, a no-op), whose result is ignored.
const NOBODY: u64 = u64::MAX;

/// The size of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Operations that can be queued between two system calls.
    entries: u32,
    /// Completions that the ring holds. Operations under way are limited to half of it, so that it
    /// never overflows.
    completions: u32,
}

impl Size {
    /// A ring for one send after another.
    pub const SMALL: Size = Size { entries: 8, completions: 128 };
    /// A ring for many sockets; 44 KiB.
    pub const LARGE: Size = Size { entries: 128, completions: 2048 };
}

/// The ring itself: what can be done from any thread at any time.
///
/// Beside it, which file it is: where a program closes descriptors that it did not open, the number
/// may be another file's later, and that a ring, too.
pub struct Ring(ManuallyDrop<IoUring>, (u64, u64));

/// The ring's two queues, of which there is one pair, and what the operations in them keep.
pub struct Queues<H> {
    ring: Arc<Ring>,
    slots: Slots<Kept<H>>,
    /// [`REPORT_USAGE`], where the kernel knows it.
    zc_flags: u16,
    /// The number of completions taken, those of [`NOBODY`] included.
    taken: usize,
    /// The most operations that may be under way.
    most: usize,
}

#[derive(Debug)]
struct Kept<H> {
    /// The socket and the memory, which the kernel needs until the first completion.
    for_kernel: Option<(Arc<OwnedFd>, Memory)>,
    for_caller: H,
}

/// The memory that a send reads.
#[derive(Debug, Clone)]
pub enum Memory {
    /// A file range, which the mapping covers.
    Mapped(Arc<Mapping>, Range<u64>),
    /// Bytes on the heap, from the given one on.
    Bytes(Arc<[u8]>, usize),
    /// No memory, for operations that are no sends.
    None,
}

impl Memory {
    fn region(&self) -> Region<'_> {
        let none = Region::from(&[][..]);
        match self {
            Memory::Mapped(mapping, range) => mapping.region(range.clone()).unwrap_or(none),
            Memory::Bytes(bytes, from) => Region::from(bytes.get(*from..).unwrap_or_default()),
            Memory::None => none,
        }
    }
}

/// The bytes of a send, and how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Send {
    /// Whether more follows at once.
    pub more: bool,
    /// The kernel is to wait for space, and go on with the rest itself (`MSG_WAITALL`). Meanwhile
    /// it keeps the socket open, also when the process has died.
    pub wait: bool,
}

/// The operation that the kernel is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// `SEND_ZC`: from the memory itself.
    Zerocopy(Send),
    /// `SEND`: the kernel copies.
    Copy(Send),
    /// `POLL_ADD`: wait until the socket is writable.
    Writable,
    /// `POLL_ADD`: wait until the descriptor is readable.
    Readable,
}

/// One completion.
#[derive(Debug)]
pub enum Event<H> {
    /// The result of an operation, of which something is in flight still.
    Answered {
        /// The key that [`Queues::push`] gave.
        key: u64,
        /// Bytes accepted, or the error.
        result: Result<u32, Errno>,
    },
    /// The kernel has released a send that was answered before.
    Released {
        /// The caller's value.
        kept: H,
        /// The kernel made a private copy.
        copied: bool,
    },
    /// The answer and the release at once: nothing is in flight.
    Ended {
        /// The caller's value.
        kept: H,
        /// Bytes accepted, or the error.
        result: Result<u32, Errno>,
        /// The kernel made a private copy.
        copied: bool,
    },
}

/// No wait is longer: what the kernel can add to its clock, in nanoseconds of 63 bits.
const LONGEST: Duration = Duration::from_secs(1 << 31);

impl Ring {
    /// Submits what is queued, and then sleeps until `want` completions are there (counted from
    /// those that are there now and unread), for at most `timeout`. Returns early for a signal.
    ///
    /// # Errors
    /// The errors of `io_uring_enter(2)`, and EBADF where the descriptor is not the ring's any
    /// more. EAGAIN and EBUSY are none: it has no memory, or wants its completions read, and is to
    /// be asked again.
    pub fn enter(&self, want: usize, timeout: Duration) -> Result<(), Errno> {
        let time = Timespec::from(timeout.min(LONGEST));
        let args = SubmitArgs::new().timespec(&time);
        match self.0.submitter().submit_with_args(want, &args) {
            // Another ring takes nothing of what is queued here, and its completions are others'.
            Ok(0) => self.check(),
            Ok(_) => Ok(()),
            Err(e) => match errno(&e) {
                Errno::TIME => self.check(),
                Errno::INTR => Ok(()),
                Errno::AGAIN | Errno::BUSY => {
                    std::thread::yield_now();
                    Ok(())
                }
                errno => Err(errno),
            },
        }
    }

    /// Checks that the descriptor is the ring's still.
    fn check(&self) -> Result<(), Errno> {
        if identity(self.as_fd())? == self.1 { Ok(()) } else { Err(Errno::BADF) }
    }
}

/// Returns the inode that identifies a ring: each ring is a file of its own.
fn identity(fd: BorrowedFd<'_>) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

impl Drop for Ring {
    fn drop(&mut self) {
        // Another file that has the number by now must not be closed here.
        if self.check().is_ok() {
            // SAFETY: it is dropped once, and not used any more.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring is, which is borrowed (unless the
        // program has closed it, and then it is a number that the kernel refuses, or another file).
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ring").field(&self.0.as_raw_fd()).finish()
    }
}

impl<H> Queues<H> {
    /// Makes a ring that can send by reference (Linux 6.0), and its queues.
    ///
    /// # Errors
    /// The errors of `io_uring_setup(2)`; `Ok(None)` if the ring has no `SEND_ZC`.
    pub fn open(size: Size) -> Result<Option<Self>, Errno> {
        let uring = IoUring::builder()
            .setup_submit_all()
            .setup_cqsize(size.completions)
            .build(size.entries)
            .map_err(|e| errno(&e))?;
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe).map_err(|e| errno(&e))?;
        // SAFETY: the ring's descriptor is open.
        let which = identity(unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) })?;
        let queues = || Queues {
            ring: Arc::new(Ring(ManuallyDrop::new(uring), which)),
            slots: Slots::default(),
            zc_flags: REPORT_USAGE,
            taken: 0,
            most: size.completions as usize / 2,
        };
        Ok(probe.is_supported(opcode::SendZc::CODE).then(queues))
    }

    /// The ring that the queues belong to.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Queues an operation on `socket`, to be submitted by the next [`enter`](Ring::enter); gives
    /// `kept` back if the queue is full until then.
    pub fn push(
        &mut self,
        request: Request,
        socket: &Arc<OwnedFd>,
        memory: Memory,
        kept: H,
    ) -> Result<u64, H> {
        if self.slots.len() >= self.most {
            return Err(kept);
        }
        let fd = Fd(socket.as_raw_fd());
        let region = memory.region();
        let (pointer, len) = (region.as_ptr(), u32::try_from(region.len()).unwrap_or(u32::MAX));
        let flags = |send: Send| {
            libc::MSG_NOSIGNAL
                | if send.wait { libc::MSG_WAITALL } else { libc::MSG_DONTWAIT }
                | if send.more { libc::MSG_MORE } else { 0 }
        };
        // POLLIN and POLLOUT are no negative numbers.
        let poll = |what: libc::c_short| opcode::PollAdd::new(fd, what.unsigned_abs().into());
        let entry = match request {
            Request::Zerocopy(send) => opcode::SendZc::new(fd, pointer, len)
                .flags(flags(send))
                .zc_flags(self.zc_flags)
                .build(),
            Request::Copy(send) => opcode::Send::new(fd, pointer, len).flags(flags(send)).build(),
            Request::Writable => poll(libc::POLLOUT).build(),
            Request::Readable => poll(libc::POLLIN).build(),
        };
        let for_kernel = Some((Arc::clone(socket), memory));
        let key = self.slots.insert(Kept { for_kernel, for_caller: kept });
        // SAFETY: the memory and the descriptor that the entry names are kept in its slot until
        // the first completion, and forgotten, never freed, if `self` is dropped before. (Neither
        // moves: a mapping and an `Arc<[u8]>` are on the heap.)
        if unsafe { self.add(&entry.user_data(key)) } {
            return Ok(key);
        }
        // The slot was inserted just now.
        match self.slots.remove(key) {
            Some(kept) => Err(kept.for_caller),
            None => unreachable!("a slot that was inserted is there"),
        }
    }

    /// Stops asking whether the kernel copied, which Linux before 6.2 does not know; for after an
    /// EINVAL of a zerocopy send.
    pub fn forget_usage(&mut self) {
        self.zc_flags = 0;
    }

    /// Returns whether the ring asks if the kernel copied.
    #[must_use]
    pub fn reports_usage(&self) -> bool {
        self.zc_flags != 0
    }

    /// Queues a request to end the operation `key` early, if it still waits; `false` if the queue
    /// is full.
    pub fn cancel(&mut self, key: u64) -> bool {
        let entry = opcode::AsyncCancel::new(key).build().user_data(NOBODY);
        // SAFETY: the entry names no memory and no descriptor.
        unsafe { self.add(&entry) }
    }

    /// Queues `n` completions of nothing, which wake threads that wait for completions.
    pub fn no_ops(&mut self, n: usize) {
        let entry = opcode::Nop::new().build().user_data(NOBODY);
        for _ in 0..n {
            // SAFETY: the entry names no memory and no descriptor.
            if !unsafe { self.add(&entry) } {
                return;
            }
        }
    }

    /// # Safety
    /// The memory and the descriptors that the entry names must be valid until its completion.
    unsafe fn add(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: there is one `Queues` of a ring, and it is borrowed mutably: no other
        // SubmissionQueue exists. The entry is as the caller promises.
        unsafe { self.ring.0.submission_shared().push(entry).is_ok() }
    }

    /// Returns whether something is queued that was not submitted.
    pub fn is_pending(&mut self) -> bool {
        // SAFETY: as above.
        let queue = unsafe { self.ring.0.submission_shared() };
        // The kernel has completions that did not fit into the queue: entering fetches them.
        !queue.is_empty() || queue.cq_overflow()
    }

    /// Takes the next completion that is there; `None` if there is no other.
    ///
    /// # Errors
    /// [`Stray`], for which nothing is released.
    pub fn next_event(&mut self) -> Option<Result<Event<H>, Stray>> {
        loop {
            // SAFETY: there is one `Queues` of a ring, and it is borrowed mutably: no other
            // CompletionQueue exists. It is dropped at once, which informs the kernel.
            let entry = unsafe { self.ring.0.completion_shared() }.next()?;
            self.taken += 1;
            if entry.user_data() == NOBODY {
                continue;
            }
            match self.take(&entry) {
                // A notification before the result, with which it will be reported.
                Ok(None) => {}
                Ok(Some(event)) => return Some(Ok(event)),
                Err(stray) => return Some(Err(stray)),
            }
        }
    }

    fn take(&mut self, entry: &cqueue::Entry) -> Result<Option<Event<H>>, Stray> {
        let (key, result, flags) = (entry.user_data(), entry.result(), entry.flags());
        if cqueue::notif(flags) {
            let copied = result == COPIED;
            return Ok(match self.slots.complete(key, Completion::Notification { copied })? {
                Step::Done { kept, copied } => {
                    Some(Event::Released { kept: kept.for_caller, copied })
                }
                Step::Kept => None,
            });
        }
        let more = cqueue::more(flags);
        let result =
            u32::try_from(result).map_err(|_| Errno::from_raw_os_error(result.wrapping_neg()));
        Ok(Some(match self.slots.complete(key, Completion::Answer { more })? {
            Step::Done { kept, copied } => Event::Ended { kept: kept.for_caller, result, copied },
            Step::Kept => {
                if let Some(kept) = self.slots.get_mut(key) {
                    kept.for_kernel = None;
                }
                Event::Answered { key, result }
            }
        }))
    }

    /// Returns the number of completions taken since the last call.
    pub fn taken(&mut self) -> usize {
        std::mem::take(&mut self.taken)
    }

    /// Returns what the caller keeps with the operation `key`.
    pub fn kept(&mut self, key: u64) -> Option<&mut H> {
        self.slots.get_mut(key).map(|kept| &mut kept.for_caller)
    }

    /// Iterates over what the caller keeps with all operations under way.
    pub fn all_kept(&self) -> impl Iterator<Item = &H> {
        self.slots.iter().map(|kept| &kept.for_caller)
    }

    /// Returns the number of operations under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns whether no operation is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

impl<H> Drop for Queues<H> {
    fn drop(&mut self) {
        for kept in self.slots.drain() {
            // The kernel may read the memory still, and what is held may be in flight. A mere wait
            // has neither.
            if !matches!(kept.for_kernel, Some((_, Memory::None))) {
                std::mem::forget(kept);
            }
        }
    }
}

impl<H> fmt::Debug for Queues<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("under_way", &self.len()).finish_non_exhaustive()
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
