//! The supervisor: answers the `sendfile(2)` of programs that are run by it.
//!
//! Its rules:
//!
//! 1. **No byte leaves for a call unless it is certain that the program learns of it.** A call that was
//!    received is interrupted by nothing but the death of its thread (`WAIT_KILLABLE_RECV`, and
//!    [`seccomp::settle`] before Linux 6.18). It is written into a place that the guardian sees before its
//!    first byte is sent: if the supervisor dies, the guardian kills the program before the kernel
//!    answers in its stead.
//! 2. **Nothing is sent by reference.** The bytes are read, and copied into the socket; a program that
//!    has its answer may overwrite the file, and close the socket: nothing here has it any more.
//! 3. **The supervisor waits for no socket.** Each send returns at once. A call whose socket is full, and
//!    that is to wait, waits in an epoll set; all others go on, in turns.
//! 4. **Signals are not held back.** Nothing tells of a signal, so the threads of calls that wait are
//!    looked at every now and then. One that has a signal gets what was sent, or, if nothing was, the
//!    call is interrupted: by the kernel's own code for that only where the signal is certain to be this
//!    thread's, by EINTR where another thread may take it.
//! 5. **What cannot be protected fails**, with ENOSYS, before anything is sent. Only what is not to a
//!    socket, or not from a file with pages, is left to the kernel.
//! 6. **It ends with the last process that it serves**, and before that for nobody who asks politely.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use sendfile2_sys::daemon::{Forked, Slot};
use sendfile2_sys::seccomp::{self, Answer, Call};
use sendfile2_sys::thread::Pending;

use super::call::{Open, PIECE, REFUSED, Turn};
use super::guardian;

/// The least time between two looks at the threads whose calls wait; and the part of the time that
/// looking may take.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_PART: u32 = 10;
/// The places that are looked at before it is the turn of calls that can go on.
const LOOK_AT: usize = 32;

const LISTENER: u64 = u64::MAX;
const GUARDIAN: u64 = u64::MAX - 1;
const PROGRAM: u64 = u64::MAX - 2;

/// Counters of the calls, by their outcome.
#[derive(Debug, Default)]
pub(super) struct Tally {
    safe: u64,
    bytes: u64,
    passed_on: u64,
    failed: u64,
    refused: BTreeMap<&'static str, u64>,
}

/// A call whose socket is full.
#[derive(Debug)]
struct Stalled {
    /// When it began, or when the last byte was accepted.
    since: Instant,
    /// The bytes that were sent by then.
    sent: u64,
    timeout: Option<Duration>,
    /// Whether epoll watches it. One that was woken for nothing rests until the next look.
    watched: bool,
    /// Whether a signal that another thread may take was there at the last look, too.
    signalled: bool,
}

#[derive(Debug)]
struct Place {
    call: Open,
    stalled: Option<Stalled>,
}

pub(super) struct Supervisor {
    listener: OwnedFd,
    epoll: OwnedFd,
    guardian: Option<(Forked, OwnedFd)>,
    /// The calls, and the places in which the guardian finds them.
    calls: Vec<Option<Place>>,
    slots: &'static [Slot],
    free: Vec<usize>,
    /// Calls that have more to send.
    ready: VecDeque<usize>,
    stalled: usize,
    next_look: Instant,
    /// How many places this look has come to, and the time that it has taken.
    looked: usize,
    look_time: Duration,
    /// Whether signals may meet a call that is answered quickly (before Linux 6.18).
    settle: bool,
    buffer: Vec<u8>,
    pub(super) tally: Tally,
}

impl Supervisor {
    /// Prepares all that is needed to answer, the guardian included.
    pub(super) fn new(listener: OwnedFd, slots: &'static [Slot]) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(LISTENER);
        epoll::add(&epoll, &listener, data, epoll::EventFlags::IN)?;
        let mut it = Supervisor {
            listener,
            epoll,
            guardian: None,
            calls: Vec::new(),
            slots,
            free: Vec::new(),
            ready: VecDeque::new(),
            stalled: 0,
            next_look: Instant::now(),
            looked: 0,
            look_time: Duration::ZERO,
            // Since then it holds signals back from the moment at which a call is received.
            settle: !kernel_is_since((6, 18)),
            buffer: vec![0; PIECE],
            tally: Tally::default(),
        };
        it.start_guardian()?;
        Ok(it)
    }

    fn start_guardian(&mut self) -> rustix::io::Result<()> {
        let guardian = guardian::start(self.listener.as_fd(), self.slots)?;
        let file = guardian.open()?;
        let data = epoll::EventData::new_u64(GUARDIAN);
        epoll::add(&self.epoll, &file, data, epoll::EventFlags::IN)?;
        self.guardian = Some((guardian, file));
        Ok(())
    }

    /// Answers calls until no process is left that could make one, or, where its process is given, until
    /// the program has ended.
    pub(super) fn serve(&mut self, program: Option<&OwnedFd>) -> rustix::io::Result<()> {
        if let Some(program) = program {
            let data = epoll::EventData::new_u64(PROGRAM);
            epoll::add(&self.epoll, program, data, epoll::EventFlags::IN)?;
        }
        let mut ended = false;
        let mut events = Vec::with_capacity(64);
        while !ended {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
            for event in &events {
                // They are in a packed structure.
                let (data, flags) = (event.data, event.flags);
                match data.u64() {
                    LISTENER if flags.contains(epoll::EventFlags::IN) => self.receive()?,
                    LISTENER => return Ok(()),
                    PROGRAM => ended = true,
                    GUARDIAN => self.guardian_is_gone()?,
                    place => self.has_space(usize::try_from(place).unwrap_or(usize::MAX)),
                }
            }
            for _ in 0..self.ready.len() {
                if let Some(place) = self.ready.pop_front() {
                    self.turn(place);
                }
            }
            if self.stalled > 0 && Instant::now() >= self.next_look {
                self.look();
            }
        }
        program.map_or(Ok(()), |program| epoll::delete(&self.epoll, program))
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = if !self.ready.is_empty() {
            Duration::ZERO
        } else if self.stalled > 0 {
            self.next_look.saturating_duration_since(Instant::now())
        } else {
            return None;
        };
        Timespec::try_from(left).ok()
    }

    fn guardian_is_gone(&mut self) -> rustix::io::Result<()> {
        if let Some((guardian, file)) = self.guardian.take() {
            let _ = epoll::delete(&self.epoll, &file);
            let _ = guardian.succeeds();
        }
        self.start_guardian()
    }

    fn receive(&mut self) -> rustix::io::Result<()> {
        let Some(call) = seccomp::receive(self.listener.as_fd())? else { return Ok(()) };
        match Open::new(&call) {
            Ok(Some(open)) => self.begin(&call, open),
            Ok(None) => {
                self.tally.passed_on += 1;
                self.answer(call.id, Answer::Continued)
            }
            Err(errno) => {
                if errno == REFUSED {
                    self.refused("its process cannot be looked into");
                } else {
                    self.tally.failed += 1;
                }
                self.answer(call.id, Answer::Failed(errno))
            }
        }
    }

    fn refused(&mut self, why: &'static str) {
        *self.tally.refused.entry(why).or_default() += 1;
    }

    fn answer(&self, id: u64, answer: Answer) -> rustix::io::Result<()> {
        seccomp::answer(self.listener.as_fd(), id, answer)
    }

    fn begin(&mut self, call: &Call, open: Open) -> rustix::io::Result<()> {
        let listener = self.listener.as_fd();
        // What was read by the thread's id was the thread's if the call is there still.
        let there = if self.settle {
            seccomp::settle(listener, call.id)
        } else {
            seccomp::is_open(listener, call.id)
        };
        if !there {
            return Ok(());
        }
        let place = match self.free.pop() {
            Some(place) => place,
            None if self.calls.len() < self.slots.len() => {
                self.calls.push(None);
                self.calls.len() - 1
            }
            None => {
                drop(open);
                self.refused("too many calls wait");
                return self.answer(call.id, Answer::Failed(REFUSED));
            }
        };
        self.slots[place].take(call.id, call.thread.into());
        self.calls[place] = Some(Place { call: open, stalled: None });
        self.turn(place);
        Ok(())
    }

    fn turn(&mut self, index: usize) {
        let Some(Some(place)) = self.calls.get_mut(index) else { return };
        if !seccomp::is_open(self.listener.as_fd(), place.call.id) {
            return self.forget(index);
        }
        match place.call.turn(&mut self.buffer) {
            Turn::Done => self.end(index, None),
            Turn::Failed(errno) => self.end(index, Some(errno)),
            Turn::More => {
                self.moving(index);
                self.ready.push_back(index);
            }
            Turn::Full if place.call.waits => self.stall(index),
            Turn::Full => self.end(index, Some(Errno::AGAIN)),
        }
    }

    /// Takes a call out of those that wait for space.
    fn moving(&mut self, index: usize) {
        let Some(Some(place)) = self.calls.get_mut(index) else { return };
        if place.stalled.take().is_some() {
            self.stalled -= 1;
            let _ = epoll::delete(&self.epoll, place.call.socket());
        }
    }

    fn stall(&mut self, index: usize) {
        let Some(Some(place)) = self.calls.get_mut(index) else { return };
        let now = Instant::now();
        let sent = place.call.sent;
        if let Some(stalled) = &mut place.stalled {
            if stalled.sent == sent {
                // Woken for nothing: it rests until the next look.
                return;
            }
            (stalled.since, stalled.sent) = (now, sent);
            self.watch(index);
            return;
        }
        let timeout = place.call.timeout();
        let stalled = Stalled { since: now, sent, timeout, watched: false, signalled: false };
        place.stalled = Some(stalled);
        if self.stalled == 0 {
            self.next_look = now;
        }
        self.stalled += 1;
        let data = epoll::EventData::new_u64(index as u64);
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
        // One that epoll does not watch is looked after by the looks.
        let watched = epoll::add(&self.epoll, place.call.socket(), data, flags).is_ok();
        if let Some(stalled) = &mut place.stalled {
            stalled.watched = watched;
        }
    }

    /// Lets epoll watch a call's socket again.
    fn watch(&mut self, index: usize) {
        let Some(Some(place)) = self.calls.get_mut(index) else { return };
        let data = epoll::EventData::new_u64(index as u64);
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT;
        let watched = epoll::modify(&self.epoll, place.call.socket(), data, flags).is_ok();
        if let Some(stalled) = &mut place.stalled {
            stalled.watched = watched;
        }
    }

    fn has_space(&mut self, index: usize) {
        if let Some(Some(Place { stalled: Some(stalled), .. })) = self.calls.get_mut(index) {
            stalled.watched = false;
            self.turn(index);
        }
    }

    /// Looks after the calls that wait: whose thread is dead or has a signal, whose time has come.
    fn look(&mut self) {
        let begin = Instant::now();
        let end = self.calls.len().min(self.looked + LOOK_AT);
        for index in self.looked..end {
            let Some(Some(place)) = self.calls.get_mut(index) else { continue };
            let Some(stalled) = &mut place.stalled else { continue };
            if !seccomp::is_open(self.listener.as_fd(), place.call.id) {
                self.forget(index);
                continue;
            }
            let pending = place.call.pending();
            let again = stalled.signalled;
            stalled.signalled = pending == Pending::Shared;
            let late = stalled.timeout.is_some_and(|timeout| stalled.since.elapsed() >= timeout);
            let watched = stalled.watched;
            match pending {
                Pending::Own if place.call.sent == 0 => self.interrupt(index),
                Pending::Own => self.end(index, None),
                Pending::Shared if again => self.end(index, Some(Errno::INTR)),
                _ if late => self.end(index, Some(Errno::AGAIN)),
                _ => {
                    if !watched {
                        self.watch(index);
                    }
                    // Not everything that ends a wait is told by epoll: a unix socket whose peer has
                    // shut down reading is not ready while it is full.
                    self.turn(index);
                }
            }
        }
        self.look_time += begin.elapsed();
        if end < self.calls.len() {
            // The others' turn comes first.
            self.looked = end;
        } else {
            self.next_look = Instant::now() + LOOK.max(self.look_time * LOOK_PART);
            (self.looked, self.look_time) = (0, Duration::ZERO);
        }
    }

    fn interrupt(&mut self, index: usize) {
        if let Some(id) = self.take(index, |id, _| id) {
            let _ = self.answer(id, Answer::Interrupted);
            self.slots[index].clear();
            self.free.push(index);
        }
    }

    fn end(&mut self, index: usize, failed: Option<Errno>) {
        let Some((id, sent, answer)) =
            self.take(index, |id, call| (id, call.sent, call.end(failed)))
        else {
            return;
        };
        match answer {
            Answer::Sent(_) => {
                self.tally.safe += 1;
                self.tally.bytes += sent;
            }
            _ => self.tally.failed += 1,
        }
        let _ = self.answer(id, answer);
        self.slots[index].clear();
        self.free.push(index);
    }

    /// Lets go of a call whose thread is dead.
    fn forget(&mut self, index: usize) {
        if self.take(index, |_, call| drop(call)).is_some() {
            self.slots[index].clear();
            self.free.push(index);
        }
    }

    /// Takes a call out of its place, which stays taken until it is answered.
    fn take<T>(&mut self, index: usize, then: impl FnOnce(u64, Open) -> T) -> Option<T> {
        self.moving(index);
        self.ready.retain(|ready| *ready != index);
        let place = self.calls.get_mut(index)?.take()?;
        Some(then(place.call.id, place.call))
    }
}

/// Returns whether this kernel is of this version or younger; `false` in doubt.
pub(super) fn kernel_is_since(version: (u32, u32)) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-', '+']).map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= version,
        _ => false,
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} calls made safe by the supervisor ({} bytes), {} left to the kernel, {} failed or \
             found the socket full",
            self.safe, self.bytes, self.passed_on, self.failed
        )?;
        for (why, count) in &self.refused {
            write!(f, ", {count} refused as {why}")?;
        }
        Ok(())
    }
}
