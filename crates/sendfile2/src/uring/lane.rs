//! A socket's queue in a driver: what is queued, and what the kernel has of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use super::part::{self, Op, Part};
use crate::error::Error;
use crate::guard::QueuedLease;
use crate::holder::Held;
use crate::queued::{Failure, QueuedProgress};
use crate::socket::account::Account;
use crate::socket::endpoint::Endpoint;
use crate::source::{Extent, Identity, Source};
use crate::sys::uring::{Memory, Queues, Request, Send};

pub(super) struct Lane {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) queue: VecDeque<QueuedSend>,
    /// The kernel has something of the first job, and its result is not known.
    pub(super) submitted: bool,
    /// The socket is full.
    pub(super) blocked: bool,
    /// The socket has got room since it was asked last.
    pub(super) writable: bool,
    /// It was asked to send from the pages of a lease.
    pub(super) from_lease: bool,
    /// A limit is in the way until something is released.
    pub(super) memlock_blocked: bool,
    /// The reason why nothing more is sent.
    pub(super) failed: Option<Failure>,
    /// After the queue, the end of the stream.
    pub(super) ending: bool,
    /// The end of the stream was sent.
    pub(super) ended: bool,
    pub(super) account: Account,
    /// Parts in flight.
    pub(super) parts: usize,
    /// Its handle is gone: so is this when the kernel has nothing of it any more.
    pub(super) gone: bool,
}

/// A send that is queued.
pub(super) struct QueuedSend {
    pub(super) from: SendFrom,
    pub(super) len: u64,
    pub(super) done: u64,
    pub(super) more: bool,
    pub(super) held: Option<Held>,
    /// The pages must not outlive this process on their way.
    pub(super) guarded: bool,
    pub(super) progress: Arc<QueuedProgress>,
    /// The operation that is to be asked for next.
    pub(super) op: Op,
    /// Where it faulted last.
    pub(super) faulted: Option<u64>,
}

pub(super) enum SendFrom {
    File(FileSend),
    Bytes(Arc<[u8]>),
}

pub(super) struct FileSend {
    pub(super) file: Source,
    /// The first byte.
    pub(super) start: u64,
    /// Known where it is leased.
    pub(super) extent: Option<Extent>,
    pub(super) lease: Option<QueuedLease>,
}

/// The next part of a send.
pub(super) struct Prepared {
    op: Op,
    memory: Memory,
    /// The bytes of the file.
    range: Range<u64>,
    /// Nothing of the send follows it.
    last: bool,
}

impl Lane {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        Lane {
            endpoint,
            queue: VecDeque::new(),
            submitted: false,
            blocked: false,
            writable: false,
            from_lease: false,
            memlock_blocked: false,
            failed: None,
            ending: false,
            ended: false,
            account: Account::default(),
            parts: 0,
            gone: false,
        }
    }

    /// Asks the kernel for the next part of the first job; `false` if the ring has no room. It is not
    /// asked if a writer has got its pages meanwhile.
    pub(super) fn ask(&mut self, queues: &mut Queues<Part>, index: usize, part: Prepared) -> bool {
        let Some(job) = self.queue.front() else { return true };
        let Prepared { op, memory, range, last } = part;
        // A part that is not the last says nothing: its release would wait for the next, and that
        // maybe for a release.
        let more = job.more && last;
        let request = match op {
            Op::Zerocopy => Request::Zerocopy(Send { more, wait: false }),
            // No job waits for room: its lane does.
            Op::Copy | Op::Room => Request::Copy(Send { more, wait: false }),
        };
        let pages = match (job.lease(), &memory) {
            (Some(lease), Memory::Mapped(..)) => match lease.pages(&range) {
                Some(pages) => Some((lease, pages)),
                None => return true,
            },
            _ => None,
        };
        let guarded = op == Op::Zerocopy && job.guarded;
        if guarded {
            if let Err(error) = self.account.guard(&self.endpoint) {
                self.failed = Some(Failure::from(&error));
                return true;
            }
        }
        let part = Part {
            lane: index,
            op,
            range,
            accepted: 0,
            reports_usage: queues.reports_usage(),
            guarded,
            held: job.held.clone(),
            progress: Arc::clone(&job.progress),
            at: Instant::now(),
        };
        if queues.push(request, self.endpoint.socket(), memory, part).is_err() {
            return false;
        }
        self.from_lease = pages.is_some();
        if let Some((lease, pages)) = pages {
            lease.submit(&pages);
        }
        job.progress.pending().part_begins();
        self.submitted = true;
        self.writable = false;
        self.parts += 1;
        self.account.begun(guarded);
        true
    }

    pub(super) fn queued(&self) -> u64 {
        self.queue.iter().map(|job| job.len - job.done).sum()
    }

    /// Sends that are queued or in flight.
    pub(super) fn sends(&self) -> usize {
        // The one that the kernel was asked about is in both.
        self.parts + self.queue.len() - usize::from(self.submitted)
    }

    pub(super) fn is_drained(&self) -> bool {
        self.sends() == 0
    }

    /// A send ended early, and the peer may not know.
    pub(super) fn is_broken(&self) -> bool {
        self.failed.is_some() && !self.ended && !self.account.aborted
    }

    pub(super) fn abort(&mut self) -> Result<(), Error> {
        self.account.aborted = true;
        self.failed = Some(Failure::Aborted);
        self.endpoint.abort()
    }
}

impl QueuedSend {
    pub(super) fn lease(&self) -> Option<&QueuedLease> {
        match &self.from {
            SendFrom::File(file) => file.lease.as_ref(),
            SendFrom::Bytes(_) => None,
        }
    }

    /// Prepares the next part.
    pub(super) fn prepare(
        &self,
        most: &mut Option<u64>,
        extents: &mut Vec<(Identity, Extent)>,
    ) -> Result<Prepared, Error> {
        let FileSend { file, start, extent, lease } = match &self.from {
            SendFrom::Bytes(bytes) => {
                // It is an offset within them.
                let at = usize::try_from(self.done).unwrap_or(bytes.len());
                let memory = Memory::Bytes(Arc::clone(bytes), at);
                return Ok(Prepared { op: self.op, memory, range: 0..0, last: true });
            }
            SendFrom::File(file) => file,
        };
        let most = match most {
            Some(most) => *most,
            None => *most.insert(part::limit()?),
        };
        let range = start + self.done..start + self.len;
        if let Some(lease) = lease {
            let first = range.start..range.end.min(range.start.saturating_add(most));
            if lease.pages(&first).is_none() {
                let (memory, range, last) = part::read(lease, first, range.end)?;
                return Ok(Prepared { op: Op::Copy, memory, range, last });
            }
        }
        let known = extents.iter().find(|(file_of, _)| *file_of == file.identity());
        let extent = match extent.or(known.map(|(_, extent)| *extent)) {
            Some(extent) => extent,
            None => {
                let extent = file.extent()?;
                extents.push((file.identity(), extent));
                extent
            }
        };
        let (memory, part) = part::next(file, extent, &range, most)?;
        let last = part.end == range.end;
        Ok(Prepared { op: self.op, memory, range: part, last })
    }
}
