//! The state of a driver: its sockets' queues, and what follows from completions.

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use slab::Slab;

use super::lane::{Lane, QueuedSend, SendFrom};
use super::part::{self, Op, Part};
use crate::engine::Limit;
use crate::guard::{Answered, QueuedLease};
use crate::holder::Held;
use crate::park::Mark;
use crate::queued::{Failure, QueuedProgress};
use crate::refusal::Refusal;
use crate::socket::endpoint::Endpoint;
use crate::source::{Extent, Identity};
use crate::sys::op_table::Stray;
use crate::sys::recover::{self, Attempt, Next};
use crate::sys::uring::{Event, Memory, Queues, Request};

/// Work for after unlocking.
pub(super) enum Deferred {
    Released {
        held: Option<Held>,
        progress: Arc<QueuedProgress>,
        copied: bool,
    },
    /// Nothing more of it is sent.
    Over {
        job: QueuedSend,
        failure: Option<Failure>,
    },
    /// Nothing that a lease needs is with the kernel only.
    Answered(Answered),
    /// The socket of a lane that is gone.
    Gone(Arc<Endpoint>),
}

/// The request that the kernel has answered.
pub(super) struct Asked {
    lane: usize,
    op: Op,
    range: Range<u64>,
    reports_usage: bool,
}

impl Asked {
    fn of(part: &Part) -> Self {
        let Part { lane, op, reports_usage, .. } = *part;
        Asked { lane, op, range: part.range.clone(), reports_usage }
    }
}

/// The state of a driver, behind its lock.
pub(super) struct State {
    pub(super) queues: Queues<Part>,
    pub(super) lanes: Slab<Lane>,
    /// The lanes that may have something to send, or to end.
    pub(super) ready: VecDeque<usize>,
    /// The driver sleeps in the kernel until a number of completions is there.
    pub(super) counting: bool,
    /// Says which sockets have got room.
    pub(super) epoll: Arc<OwnedFd>,
    pub(super) mark: Mark,
    /// The ring waits for it.
    pub(super) polling: bool,
    /// Lanes that wait for room.
    pub(super) blocked: usize,
    /// Bytes that one send may ask for, once that was asked.
    pub(super) most: Option<u64>,
    /// Nothing is released by completions that add up to nothing; somebody should know.
    pub(super) stray: Option<Stray>,
}

impl State {
    pub(super) fn lane(&mut self, index: usize) -> &mut Lane {
        // A lane's entry goes with its handle, which whoever calls has.
        &mut self.lanes[index]
    }

    /// Reads the completions that are there.
    pub(super) fn take(&mut self, deferred: &mut Vec<Deferred>) -> usize {
        let mut count = 0;
        while let Some(event) = self.queues.next_event() {
            count += 1;
            match event {
                Ok(Event::Answered { key, result }) => {
                    let Some(part) = self.queues.kept(key) else { continue };
                    part.accepted = match (part.op, result) {
                        (Op::Room, _) | (_, Err(_)) => 0,
                        (_, Ok(bytes)) => bytes.into(),
                    };
                    let asked = Asked::of(part);
                    self.answered(&asked, result, deferred);
                }
                // Also if it was cancelled, as the thread that had submitted it ended.
                Ok(Event::Ended { kept: Part { op: Op::Room, .. }, .. }) => {
                    self.polling = false;
                    if let Err(errno) = self.look_for_room() {
                        self.nobody_tells_of_room(errno);
                    }
                }
                Ok(Event::Ended { mut kept, result, copied }) => {
                    if let (Op::Zerocopy | Op::Copy, Ok(bytes)) = (kept.op, result) {
                        kept.accepted = bytes.into();
                    }
                    self.answered(&Asked::of(&kept), result, deferred);
                    self.released(kept, copied, deferred);
                }
                Ok(Event::Released { kept, copied }) => self.released(kept, copied, deferred),
                Err(stray) => self.stray = Some(stray),
            }
        }
        count
    }

    /// The result of what was asked for the first job of a lane.
    pub(super) fn answered(
        &mut self,
        asked: &Asked,
        result: Result<u32, Errno>,
        deferred: &mut Vec<Deferred>,
    ) {
        let index = asked.lane;
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.submitted = false;
        self.ready.push_back(index);
        let aborted = lane.account.aborted;
        let from_lease = std::mem::take(&mut lane.from_lease);
        let Some(job) = lane.queue.front_mut() else { return };
        if let Some(answered) = job.lease().filter(|_| from_lease).and_then(QueuedLease::answered) {
            deferred.push(Deferred::Answered(answered));
        }
        let usual = if matches!(job.from, SendFrom::Bytes(_)) { Op::Copy } else { Op::Zerocopy };
        let mut failure = None;
        match result {
            Ok(bytes) => {
                job.op = usual;
                job.done += u64::from(bytes);
                lane.account.counters.accepted += u64::from(bytes);
                lane.account.bytes += u64::from(bytes);
                job.progress.accepted(bytes.into(), lane.account.counters.accepted);
                if job.done >= job.len {
                    let job = lane.queue.pop_front();
                    deferred.extend(job.map(|job| Deferred::Over { job, failure: None }));
                }
            }
            Err(_) if aborted => failure = Some(Failure::Aborted),
            Err(errno) => {
                let attempt = Attempt {
                    by_reference: asked.op == Op::Zerocopy,
                    // Not parts that failed, whose notifications make no room.
                    others_in_flight: lane.account.bytes > 0,
                    reports_usage: asked.reports_usage,
                    faulted_before: job.faulted == Some(job.done),
                };
                match recover::next(errno, attempt) {
                    Next::Again => {}
                    Next::WhenWritable => {
                        if !std::mem::take(&mut lane.writable) {
                            lane.blocked = true;
                            self.blocked += 1;
                        }
                    }
                    Next::AfterRelease => {
                        self.most = None;
                        lane.memlock_blocked = true;
                    }
                    Next::Copy => {
                        self.most = None;
                        job.op = Op::Copy;
                        job.progress.limited(Limit::Buffers);
                    }
                    Next::WithoutUsage => self.queues.forget_usage(),
                    Next::Refused => failure = Some(Failure::Refused(Refusal::NotSupported)),
                    Next::Read => {
                        job.faulted = Some(job.done);
                        if let SendFrom::File(from) = &mut job.from {
                            // Whatever was promised about it.
                            from.extent = None;
                            let explained = part::explain_fault(&from.file, &asked.range);
                            failure = explained.as_ref().err().map(Failure::from);
                        }
                    }
                    Next::Failed => failure = Some(Failure::Socket { op: "send", errno }),
                }
            }
        }
        lane.failed = lane.failed.or(failure);
    }

    /// Nothing more is to come of `part`.
    pub(super) fn released(&mut self, part: Part, copied: bool, deferred: &mut Vec<Deferred>) {
        // What a limit is in the way of may go on, unless this part has failed at it, too.
        if part.accepted > 0 {
            for (index, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.memlock_blocked) {
                lane.memlock_blocked = false;
                self.ready.push_back(index);
            }
        }
        if let Some(lane) = self.lanes.get_mut(part.lane) {
            lane.parts -= 1;
            lane.account.ended(part.accepted, part.guarded);
            if part.op == Op::Zerocopy && part.accepted > 0 {
                lane.account.released(copied);
            }
            if lane.queue.is_empty() {
                lane.account.unguard(&lane.endpoint);
            }
        }
        self.bury(part.lane, deferred);
        let copied = copied || part.op == Op::Copy;
        deferred.push(Deferred::Released { held: part.held, progress: part.progress, copied });
    }

    /// Forgets a lane whose handle is gone, when nothing of it is under way. Before that its place
    /// is nobody else's, who would have its parts counted as its own.
    pub(super) fn bury(&mut self, index: usize, deferred: &mut Vec<Deferred>) {
        if self.lanes.get(index).is_some_and(|lane| lane.gone && lane.is_drained()) {
            let lane = self.lanes.remove(index);
            self.blocked -= usize::from(lane.blocked);
            deferred.push(Deferred::Gone(lane.endpoint));
        }
    }

    /// Lets those lanes go on whose sockets have got room, or an error.
    pub(super) fn look_for_room(&mut self) -> Result<(), Errno> {
        let mut events = Vec::with_capacity(64);
        // No more often than there are sockets to tell of: what is left over, the ring tells next.
        for _ in 0..=self.lanes.len() / 64 {
            events.clear();
            let now = Some(&Timespec { tv_sec: 0, tv_nsec: 0 });
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), now)?;
            for event in &events {
                // What is not ours is told by another set, which has got the number.
                let key = self.mark.key_of(event).ok_or(Errno::BADF)?;
                // It was made from an usize.
                let index = usize::try_from(key).unwrap_or(usize::MAX);
                let Some(lane) = self.lanes.get_mut(index) else { continue };
                lane.writable = true;
                if std::mem::take(&mut lane.blocked) {
                    self.blocked -= 1;
                    self.ready.push_back(index);
                }
            }
            if events.len() < events.capacity() {
                break;
            }
        }
        Ok(())
    }

    /// The program has closed the epoll set: who waits for room fails, as nothing else ends that.
    pub(super) fn nobody_tells_of_room(&mut self, errno: Errno) {
        for (index, lane) in self.lanes.iter_mut().filter(|(_, lane)| lane.blocked) {
            lane.failed = Some(Failure::Socket { op: "epoll_wait", errno });
            self.ready.push_back(index);
        }
    }

    /// Lets the ring wait for room, if somebody does; `false` if the ring has no room for that.
    pub(super) fn wait_for_room(&mut self) -> bool {
        if self.polling || self.blocked == 0 {
            return true;
        }
        let part = Part {
            lane: usize::MAX,
            op: Op::Room,
            range: 0..0,
            accepted: 0,
            reports_usage: false,
            guarded: false,
            held: None,
            progress: QueuedProgress::none(),
            at: Instant::now(),
        };
        let pushed = self.queues.push(Request::Readable, &self.epoll, Memory::None, part);
        self.polling = pushed.is_ok();
        self.polling
    }

    /// Queues what may be sent now; `false` if there was no room for all of it.
    pub(super) fn begin(&mut self, deferred: &mut Vec<Deferred>) -> bool {
        let mut extents = Vec::new();
        while let Some(index) = self.ready.pop_front() {
            if !self.begin_one(index, &mut extents, deferred) {
                self.ready.push_front(index);
                return false;
            }
        }
        self.wait_for_room()
    }

    pub(super) fn begin_one(
        &mut self,
        index: usize,
        extents: &mut Vec<(Identity, Extent)>,
        deferred: &mut Vec<Deferred>,
    ) -> bool {
        loop {
            let Some(lane) = self.lanes.get_mut(index) else { return true };
            if lane.submitted || lane.memlock_blocked {
                return true;
            }
            if let Some(failure) = lane.failed {
                let over = |job| Deferred::Over { job, failure: Some(failure) };
                deferred.extend(lane.queue.drain(..).map(over));
                if lane.ending && lane.is_broken() {
                    // Not an end that looks like that of everything. Where it fails the peer is
                    // gone.
                    let _ = lane.abort();
                }
                self.blocked -= usize::from(std::mem::take(&mut lane.blocked));
                self.bury(index, deferred);
                return true;
            }
            if lane.blocked {
                return true;
            }
            let Some(job) = lane.queue.front() else {
                if std::mem::take(&mut lane.ending) {
                    // If it fails there is no peer to tell.
                    let _ = lane.endpoint.shut_down_writing();
                    lane.ended = true;
                    lane.failed = Some(Failure::Socket { op: "send", errno: Errno::PIPE });
                }
                return true;
            };
            match job.prepare(&mut self.most, extents) {
                Ok(part) => {
                    if !lane.ask(&mut self.queues, index, part) {
                        return false;
                    }
                }
                Err(error) => lane.failed = Some(Failure::from(&error)),
            }
        }
    }
}
