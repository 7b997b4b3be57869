//! The guarded file: opening it, leasing ranges of it.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use super::detaching::{Detaching, Overwrite};
use super::lease::{Inner, Lease, Leased, Lessee, SHARED, Shared, taken};
use super::ranges::Ranges;
use super::table::Table;
use crate::aside::Aside;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::park::Parker;
use crate::source::Source;
use crate::sync::lock;
use crate::sys::process::Process;

/// A file whose ranges are sent under leases and overwritten when no lease is in the way. A
/// shared handle: clone it.
#[derive(Clone)]
pub struct GuardedFile(pub(super) Arc<Guarded>);

pub(super) struct Guarded {
    pub(super) source: Source,
    pub(super) shared: Arc<Shared>,
    pub(super) overwrite: Overwrite,
}

/// The options of a [`GuardedFile`].
#[derive(Debug, Clone, Default)]
pub struct GuardOptions {
    overwrite: Overwrite,
    nothing_exposed: bool,
}

impl GuardOptions {
    /// The defaults: what is in flight is detached where that is possible, and all that is in the
    /// file may be in flight from before.
    #[must_use]
    pub fn new() -> Self {
        GuardOptions::default()
    }

    /// Sets how writers by this handle deal with what is still in flight.
    #[must_use]
    pub fn overwrite(mut self, overwrite: Overwrite) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Declares that no packet refers to the file when it is guarded first. After a restart of the
    /// program alone that is wrong, and peers may get wrong bytes. Otherwise the first overwrite of
    /// each range detaches it, which costs a read and a write of it. Ignored where the file is
    /// guarded already.
    #[must_use]
    pub fn nothing_exposed(mut self) -> Self {
        self.nothing_exposed = true;
        self
    }

    /// Opens the file at `path`, as [`GuardedFile::open`] does.
    ///
    /// # Errors
    /// As [`GuardedFile::open`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<GuardedFile, Error> {
        let path = path.as_ref();
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        let guarded = file.map_err(Error::file("open", 0)).and_then(|file| self.guard(file));
        guarded.map_err(|e| e.of(path))
    }

    /// Guards an open file, as [`GuardedFile::new`] does.
    ///
    /// # Errors
    /// As [`GuardedFile::new`].
    pub fn guard(&self, file: impl Into<OwnedFd>) -> Result<GuardedFile, Error> {
        GuardedFile::with(file.into(), self)
    }
}

/// The counters of a file, over all its handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GuardCounters {
    /// Leases granted.
    pub leases: u64,
    /// Ranges written, resized or punched.
    pub writes: u64,
    /// The number of these that had to wait.
    pub waits: u64,
    /// Connections aborted for a writer.
    pub aborts: u64,
    /// Ranges detached for a writer.
    pub detached: u64,
    /// The number of tries to detach that failed.
    pub not_detached: u64,
    /// The time that both took.
    pub detaching: Duration,
    /// Times that pages stayed in the page cache, or came back, while they were taken out: another
    /// try followed, or a refusal.
    pub pages_stayed: u64,
    /// Bytes that packets may keep in memory now, of leases that were detached and are not
    /// released, in whole folios.
    pub kept_by_packets: u64,
    /// Bytes that are kept aside now: what was overwritten under leases that are still in hand, of
    /// which it may be sent.
    pub kept_aside: u64,
    /// Bytes that were detached while they were [exposed](GuardedFile::exposed), in whole folios, since
    /// the file was guarded first. Packets may have kept them, and nothing tells for how long: it
    /// never shrinks, and has no limit.
    pub detached_exposed: u64,
}

impl GuardedFile {
    /// Opens the file at `path` for reading and writing; it must exist.
    ///
    /// # Errors
    /// [`Error::Open`], and as [`new`](Self::new); they name the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        GuardOptions::new().open(path)
    }

    /// Guards an open file: a regular file, a memfd, or a block device, open for reading and
    /// writing. If the file is guarded already, by whatever descriptor, the leases are shared.
    ///
    /// # Errors
    /// [`Error::NotASource`] for anything else, for a read-only descriptor, and for one with
    /// `O_APPEND` (where `pwrite(2)` appends whatever the offset; for what is set later see
    /// [`Exclusive::write_at`](crate::guard::Exclusive::write_at)); [`Error::File`].
    pub fn new(file: impl Into<OwnedFd>) -> Result<Self, Error> {
        GuardOptions::new().guard(file)
    }

    fn with(file: OwnedFd, options: &GuardOptions) -> Result<Self, Error> {
        let flags = rustix::fs::fcntl_getfl(&file).map_err(Error::file("fcntl", 0))?;
        if flags & OFlags::RWMODE == OFlags::RDONLY {
            return Err(Error::unsuitable("it is open for reading only: open it for writing too"));
        }
        if flags.contains(OFlags::APPEND) {
            return Err(Error::unsuitable("it is open with O_APPEND, which ignores offsets"));
        }
        let source = Source::new(file)?;
        let (process, identity) = (Process::current(), source.identity());
        let mut tables = lock(&SHARED);
        let tables = tables.get_or_insert_default();
        let known = tables.get(&(process, identity)).and_then(Weak::upgrade);
        let shared = known.unwrap_or_else(|| {
            let shared = Arc::new(Shared {
                identity,
                process,
                table: Table::new(),
                next: AtomicU64::new(0),
                leases: AtomicU64::new(0),
                writes: AtomicU64::new(0),
                waits: AtomicU64::new(0),
                aborts: AtomicU64::new(0),
                detaching: Detaching::default(),
                may_be_exposed: !options.nothing_exposed,
                reach: AtomicU64::new(0),
            });
            tables.insert((process, identity), Arc::downgrade(&shared));
            shared
        });
        Ok(GuardedFile(Arc::new(Guarded { source, shared, overwrite: options.overwrite })))
    }

    /// Leases `ranges`, all or none, without waiting; `None` while a writer waits for, or is
    /// writing to, a byte of them, and in a forked child. Empty ranges are passed over.
    ///
    /// Lease all of a response before its first byte is sent.
    #[must_use]
    pub fn try_lease(&self, ranges: impl Into<Ranges>) -> Option<Lease> {
        self.0.shared.ours().ok()?;
        self.grant(&ranges.into(), taken())
    }

    /// Leases `ranges`, all or none, waiting for the writers before it until `deadline`.
    ///
    /// # Errors
    /// [`Error::HoldsLease`] if a lease that this thread took is still in somebody's hands (it
    /// counts for the thread that took it, also after it was moved): whoever waits for a lease
    /// while holding one may wait for a writer that waits for it. [`Error::Deadline`];
    /// [`Error::Wait`]; [`Error::Forked`].
    pub fn lease(
        &self,
        ranges: impl Into<Ranges>,
        deadline: impl Into<Deadline>,
    ) -> Result<Lease, Error> {
        let deadline = deadline.into();
        self.0.shared.ours()?;
        let ranges = ranges.into();
        if taken().load(Ordering::Relaxed) > 0 {
            return Err(Error::HoldsLease);
        }
        if let Some(lease) = self.grant(&ranges, taken()) {
            return Ok(lease);
        }
        Parker::with(|parker| {
            let table = &self.0.shared.table;
            let key = table.add_lessee(parker.waker());
            let _registered = Lessee { shared: &self.0.shared, key };
            loop {
                if let Some(lease) = self.grant(&ranges, taken()) {
                    return Ok(lease);
                }
                if deadline.has_passed() {
                    return Err(Error::Deadline("a writer was in the way of the lease"));
                }
                parker.park(deadline.instant())?;
            }
        })
    }

    /// `taken` counts the leases in the hands of whoever takes it.
    pub(super) fn grant(&self, ranges: &Ranges, taken: Arc<AtomicUsize>) -> Option<Lease> {
        let Guarded { source, shared, .. } = &*self.0;
        let inner = Arc::new(Inner {
            shared: Arc::clone(shared),
            source: source.clone(),
            key: shared.next.fetch_add(1, Ordering::Relaxed),
            ranges: ranges.0.clone(),
            since: Instant::now(),
            handles: AtomicUsize::new(1),
            sends: AtomicUsize::new(0),
            taken: Arc::clone(&taken),
            holders: Mutex::default(),
            size: AtomicU64::new(0),
            overwrite: self.0.overwrite,
            queued: AtomicUsize::new(0),
            aside: Aside::default(),
            kept: Mutex::default(),
        });
        if !shared.table.try_lease(&inner.ranges, inner.key, &Arc::downgrade(&inner)) {
            return None;
        }
        shared.leases.fetch_add(1, Ordering::Relaxed);
        taken.fetch_add(1, Ordering::Relaxed);
        Some(Lease { inner, taken })
    }

    /// The source of the file, for sends without a lease. Nothing protects those from writers.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.0.source
    }

    /// The ranges that are leased now: in somebody's hands, or in flight as far as the
    /// notifications read so far say. A forked child is told of none.
    #[must_use]
    pub fn in_flight(&self) -> Vec<Leased> {
        if !self.0.shared.is_ours() {
            return Vec::new();
        }
        let leases = self.0.shared.table.leases();
        leases
            .iter()
            .filter_map(|(range, l)| Some(l.upgrade()?.describe_one(range.clone())))
            .collect()
    }

    /// The ranges that may be in flight without our knowing: sent by `sendfile(2)`, or before this
    /// process. They are detached before they are overwritten. None where the file cannot be
    /// detached, or nothing was written yet; and in a forked child.
    #[must_use]
    pub fn exposed(&self) -> Vec<Range<u64>> {
        if self.0.shared.is_ours() { self.0.shared.table.exposed() } else { Vec::new() }
    }

    /// Writers that write or wait now; 0 in a forked child.
    #[must_use]
    pub fn writers(&self) -> usize {
        if self.0.shared.is_ours() { self.0.shared.table.writers() } else { 0 }
    }

    /// The counters of the file.
    #[must_use]
    pub fn counters(&self) -> GuardCounters {
        let shared = &self.0.shared;
        GuardCounters {
            leases: shared.leases.load(Ordering::Relaxed),
            writes: shared.writes.load(Ordering::Relaxed),
            waits: shared.waits.load(Ordering::Relaxed),
            aborts: shared.aborts.load(Ordering::Relaxed),
            detached: shared.detaching.done.load(Ordering::Relaxed),
            not_detached: shared.detaching.refused.load(Ordering::Relaxed),
            pages_stayed: shared.detaching.stayed(),
            detaching: Duration::from_nanos(shared.detaching.nanoseconds.load(Ordering::Relaxed)),
            kept_by_packets: shared.detaching.kept.load(Ordering::Relaxed),
            kept_aside: shared.detaching.kept_aside.load(Ordering::Relaxed),
            detached_exposed: shared.detaching.detached_exposed.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for GuardedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedFile")
            .field("identity", &self.0.shared.identity)
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl AsFd for GuardedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.source.as_fd()
    }
}
