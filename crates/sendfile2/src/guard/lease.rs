//! Leases, and what all handles of a file share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::detaching::{Detaching, Overwrite};
use super::exposed::Exposed;
use super::ranges::folios;
use super::table::Table;
use crate::aside::Aside;
use crate::detach::Detacher;
use crate::error::Error;
use crate::holder::{CompletionSource, Held};
use crate::not_detached::NotDetached;
use crate::source::{self, Extent, Identity, Mapped, Source};
use crate::sync::lock;
use crate::sys::process::Process;

/// The state that all handles of one file share.
pub(super) struct Shared {
    pub(super) identity: Identity,
    /// The process whose leases and writers these are: a fork has a copy, which learns nothing of
    /// them.
    pub(super) process: Process,
    pub(super) table: Table<Weak<Inner>>,
    /// The key of the next lease.
    pub(super) next: AtomicU64,
    pub(super) leases: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) waits: AtomicU64,
    pub(super) aborts: AtomicU64,
    pub(super) detaching: Detaching,
    /// Whether the content of the file may be in flight from before.
    pub(super) may_be_exposed: bool,
    /// The file reaches at least to here where it is leased up to here: whoever shortens it waits
    /// for leases.
    pub(super) reach: AtomicU64,
}

/// The tables of the files that are guarded, a fork's beside those of its parent.
pub(super) static SHARED: Mutex<Option<HashMap<(Process, Identity), Known>>> = Mutex::new(None);

pub(super) type Known = Weak<Shared>;

/// The right to send some ranges of a [`GuardedFile`](crate::guard::GuardedFile), while nobody
/// overwrites them.
///
/// It ends when all handles to it are dropped **and** each send made under it was released by the
/// kernel, or detached by a writer ([`Overwrite`](crate::guard::Overwrite)). A writer that waits no
/// longer ([`write_at_abort`](crate::guard::GuardedFile::write_at_abort)) revokes it, unless
/// [`mapped`](Self::mapped) was asked for: then what is sent or read under it from there on fails
/// ([`Error::Revoked`]). A send by the engine
/// `sendfile` holds nothing. Clones are handles to the same lease.
pub struct Lease {
    pub(super) inner: Arc<Inner>,
    /// Leases in the hands of the thread that took this one.
    pub(super) taken: Arc<AtomicUsize>,
}

/// The hold that a send under a lease has.
struct Hold(Arc<Inner>);

impl Drop for Hold {
    fn drop(&mut self) {
        // In a fork nothing ends: it is the parent's.
        if self.0.sends.fetch_sub(1, Ordering::SeqCst) == 1 && self.0.shared.is_ours() {
            self.0.end_revoked();
        }
    }
}

/// The lease that a send holds, by its address; `None` if it holds something else.
pub(super) fn held_lease(held: &Held) -> Option<usize> {
    held.downcast_ref::<Hold>().map(|hold| Arc::as_ptr(&hold.0).addr())
}

/// The lease, as its handles and the sends under it share it.
pub(crate) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) source: Source,
    pub(super) key: u64,
    pub(super) ranges: SmallVec<[Range<u64>; 1]>,
    pub(super) since: Instant,
    /// Handles in users' hands; the sends in flight hold the `Arc`, too.
    pub(super) handles: AtomicUsize,
    /// Sends that have a hold.
    pub(super) sends: AtomicUsize,
    /// The thread that took it, by its counter.
    pub(super) taken: Arc<AtomicUsize>,
    pub(super) holders: Mutex<SmallVec<[Weak<dyn CompletionSource>; 1]>>,
    /// The file has at least this size and no holes that matter, once somebody looked: nobody
    /// resizes or punches it where it is leased.
    pub(super) size: AtomicU64,
    /// The way in which the handle's writers deal with it.
    pub(super) overwrite: Overwrite,
    /// Sends that are queued, which no socket has accepted all of.
    pub(super) queued: AtomicUsize,
    /// The overwritten bytes that it still needs.
    pub(super) aside: Aside,
    /// The folios that packets may keep since they were detached.
    pub(super) kept: Mutex<Exposed>,
}

thread_local! {
    /// The number of leases that this thread took and that are still in somebody's hands. A fork
    /// counts anew: the hands that its parent's are in may be of threads that it has not.
    static TAKEN: RefCell<Option<(Process, Arc<AtomicUsize>)>> = const { RefCell::new(None) };
}

/// A lease that is in the way of a writer, or just there.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leased {
    /// The leased range, in bytes.
    pub range: Range<u64>,
    /// The time since it was leased.
    pub age: Duration,
    /// The peers of the connections on which it may still be in flight.
    pub peers: Vec<SocketAddr>,
    /// A [`Lease`] handle is still in the application's hands.
    pub held_by_app: bool,
}

impl Shared {
    /// The detacher of the file, if it can be detached. What is in the file when it is made is
    /// exposed, unless the application has said otherwise.
    pub(super) fn detacher(&self, source: &Source) -> Result<Option<&Arc<Detacher>>, NotDetached> {
        self.detaching.detacher(source, |detacher| {
            let size = source.size()?;
            let page = rustix::param::page_size() as u64;
            // A last page that cannot be detached would forbid every write to it.
            let pages = size / page * page;
            let end = if detacher.allows(&(pages..size)) { size } else { pages };
            if self.may_be_exposed {
                self.table.expose(&(0..end));
            }
            Ok(())
        })
    }

    pub(super) fn is_ours(&self) -> bool {
        self.process.is_current()
    }

    /// Fails in a forked child. Asked before the table's lock, which a thread of the parent's may
    /// have had when it forked.
    pub(super) fn ours(&self) -> Result<(), Error> {
        if self.is_ours() { Ok(()) } else { Err(Error::Forked) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(tables) = lock(&SHARED).as_mut() {
            // A new one may have taken its place already.
            let key = (self.process, self.identity);
            if tables.get(&key).is_some_and(|t| t.strong_count() == 0) {
                tables.remove(&key);
            }
        }
    }
}

impl Lease {
    /// The leased ranges, sorted and disjoint.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.inner.ranges
    }

    /// Whether all of `range` is leased.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>) -> bool {
        range.is_empty()
            || self.inner.ranges.iter().any(|r| r.start <= range.start && range.end <= r.end)
    }

    /// Reads at `offset`, which must be leased, what the file had there when it was leased; a part
    /// of it maybe, and 0 bytes at the end of the file.
    ///
    /// # Errors
    /// [`Error::NotLeased`]; [`Error::Revoked`]; [`Error::File`]; [`Error::Forked`].
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Error> {
        self.read(buffer, offset, Source::read_at)
    }

    /// As [`read_at`](Self::read_at), if that takes no waiting for the disk (`RWF_NOWAIT`, Linux
    /// 4.14); else `None`, as it is on filesystems that cannot tell.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn try_read_at(&self, buffer: &mut [u8], offset: u64) -> Result<Option<usize>, Error> {
        source::if_cached(self.read(buffer, offset, Source::read_cached))
    }

    /// As [`try_read_at`](Self::try_read_at), up to `len` bytes behind what is in `buffer`. The room
    /// for them is not filled with zeros first.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    pub fn try_read_behind(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
        offset: u64,
    ) -> Result<Option<usize>, Error> {
        self.may_read(len, offset)?;
        let Inner { aside, source, .. } = &*self.inner;
        let copy = |buffer: &mut Vec<u8>, bytes: &[u8]| buffer.extend_from_slice(bytes);
        let file = |buffer: &mut Vec<u8>, len| source.read_behind(buffer, len, offset);
        let read = aside.read_to(buffer, len, offset, copy, file);
        source::if_cached(read.unwrap_or(Err(Error::Revoked)))
    }

    fn read(
        &self,
        buffer: &mut [u8],
        offset: u64,
        read: impl FnOnce(&Source, &mut [u8], u64) -> Result<usize, Error>,
    ) -> Result<usize, Error> {
        self.may_read(buffer.len(), offset)?;
        self.inner.read(buffer, offset, read)
    }

    /// Fails where so many bytes are not leased to this process.
    fn may_read(&self, len: usize, offset: u64) -> Result<(), Error> {
        self.ours()?;
        let range = offset..offset.saturating_add(len as u64);
        if self.covers(&range) { Ok(()) } else { Err(Error::NotLeased { range }) }
    }

    /// The mapping of the front of `range`, as [`Source::mapped`]; `None` also where a writer has
    /// overwritten some of it meanwhile: then [`read_at`](Self::read_at) has the bytes. The lease is
    /// waited for from here on, since its addresses would show what is written.
    ///
    /// # Errors
    /// As [`Source::mapped`]; [`Error::NotLeased`]; [`Error::Forked`].
    pub fn mapped(&self, range: Range<u64>) -> Result<Option<Mapped>, Error> {
        self.ours()?;
        if !self.covers(&range) {
            return Err(Error::NotLeased { range });
        }
        if self.inner.aside.has(&range) {
            return Ok(None);
        }
        let extent = self.extent(&range)?;
        let mapped = self.inner.source.mapped_of(range, extent)?;
        Ok(mapped.filter(|mapped| self.inner.aside.map(&mapped.range())))
    }

    /// The size of the file now, in bytes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn file_size(&self) -> Result<u64, Error> {
        Ok(self.inner.look()?.size)
    }

    pub(crate) fn source(&self) -> &Source {
        &self.inner.source
    }

    /// The overwritten bytes that it still needs.
    pub(crate) fn aside(&self) -> &Aside {
        &self.inner.aside
    }

    /// Whether a writer can detach `range`, which is leased, whenever that is after it was sent: then
    /// the death of the process need not end the connection, and `sendfile(2)` may send it.
    pub(crate) fn detaches(&self, range: &Range<u64>) -> bool {
        let inner = &*self.inner;
        if inner.overwrite == Overwrite::Wait {
            return false;
        }
        let Ok(Some(detacher)) = inner.shared.detacher(&inner.source) else { return false };
        let size =
            inner.size.load(Ordering::Relaxed).max(inner.shared.reach.load(Ordering::Relaxed));
        detacher.always_allows_before(range.end, size) || detacher.always_allows(range)
    }

    /// Notes that `range`, which is leased, may be in flight from here on without anybody's knowing.
    pub(crate) fn expose(&self, range: &Range<u64>) {
        self.inner.shared.table.expose(range);
    }

    /// Fails for a fork's copy of its parent's lease.
    pub(crate) fn ours(&self) -> Result<(), Error> {
        self.inner.shared.ours()
    }

    /// The properties of the file, as far as `range` is concerned, which is leased.
    pub(crate) fn extent(&self, range: &Range<u64>) -> Result<Extent, Error> {
        let size = self.inner.size.load(Ordering::Relaxed);
        if range.end <= size {
            return Ok(Extent { size, sparse: false });
        }
        self.inner.look()
    }

    /// The end of `range`, which is leased, or of the file, if that comes first: for a send that
    /// ends there by itself. Where the file was shortened past the guard, the former.
    pub(crate) fn end_of(&self, range: &Range<u64>) -> Result<u64, Error> {
        let reach = &self.inner.shared.reach;
        if range.end <= reach.load(Ordering::Relaxed) {
            return Ok(range.end);
        }
        // Meanwhile no byte of it is kept aside, so that the file could be shortened.
        let pages = self.inner.aside.pages(range);
        let end = range.end.min(self.extent(range)?.size);
        if pages.is_some() {
            reach.fetch_max(end, Ordering::Relaxed);
        }
        Ok(end)
    }

    /// The hold of a send, so that the lease ends no earlier than its release. The holder is known
    /// to waiting writers from here on.
    pub(crate) fn hold(&self, holder: &Arc<impl CompletionSource + 'static>) -> Held {
        let mut holders = lock(&self.inner.holders);
        // The place of one that is gone is not given to another while it is listed.
        let known = holders.iter().any(|h| std::ptr::addr_eq(h.as_ptr(), Arc::as_ptr(holder)));
        if !known {
            // Connections that are gone have nothing in flight.
            holders.retain(|h| h.strong_count() > 0);
            holders.push(Arc::downgrade(holder) as Weak<dyn CompletionSource>);
        }
        drop(holders);
        if !known {
            self.inner.shared.table.waiting_writers(&self.inner.ranges).wake();
        }
        self.inner.sends.fetch_add(1, Ordering::SeqCst);
        Arc::new(Hold(Arc::clone(&self.inner)))
    }
}

impl Clone for Lease {
    fn clone(&self) -> Self {
        self.inner.handles.fetch_add(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
        Lease { inner: Arc::clone(&self.inner), taken: Arc::clone(&self.taken) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        // Release: what was sent under it is with the kernel for who sees none left.
        let last = self.inner.handles.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && Arc::strong_count(&self.inner) > 1 && self.inner.shared.is_ours() {
            self.inner.left();
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("ranges", &self.inner.ranges).finish_non_exhaustive()
    }
}

impl Inner {
    /// Asks for the properties of the file, and notes them for whom they are enough.
    fn look(&self) -> Result<Extent, Error> {
        let extent = self.source.extent()?;
        if !extent.sparse {
            self.size.store(extent.size, Ordering::Relaxed);
        }
        Ok(extent)
    }

    /// The folios that its packets may keep, once `range` is detached, too.
    fn kept_with(&self, kept: &Exposed, range: &Range<u64>) -> Exposed {
        let mut kept = kept.clone();
        let parts = self.ranges.iter().map(|r| r.start.max(range.start)..r.end.min(range.end));
        parts.filter(|part| !part.is_empty()).for_each(|part| kept.add(&folios(part)));
        kept
    }

    /// The bytes that its packets may keep more than now, once `range` is detached.
    pub(super) fn would_keep(&self, range: &Range<u64>) -> u64 {
        let kept = lock(&self.kept);
        self.kept_with(&kept, range).bytes() - kept.bytes()
    }

    /// Counts the memory that its packets keep from here on, since `range` was detached.
    pub(super) fn keep(&self, range: &Range<u64>) {
        let mut kept = lock(&self.kept);
        let before = kept.bytes();
        *kept = self.kept_with(&kept, range);
        self.shared.detaching.kept.fetch_add(kept.bytes() - before, Ordering::Relaxed);
    }

    /// Whether the application can still send under it.
    pub(super) fn is_in_hand(&self) -> bool {
        self.handles.load(Ordering::Relaxed) > 0
    }

    pub(super) fn is_in_hand_of_this_thread(&self) -> bool {
        self.is_in_hand() && Arc::ptr_eq(&self.taken, &taken())
    }

    /// The connections that have sent under it and are still there.
    pub(super) fn holders(&self) -> Vec<Arc<dyn CompletionSource>> {
        lock(&self.holders).iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn describe_one(&self, range: Range<u64>) -> Leased {
        let this = Some(std::ptr::from_ref(self).addr());
        let holds = |h: &Arc<dyn CompletionSource>| h.holds(&|held| held_lease(held) == this);
        let peers = self.holders().into_iter().filter(holds).filter_map(|h| h.peer()).collect();
        let held_by_app = self.is_in_hand();
        Leased { range, age: self.since.elapsed(), peers, held_by_app }
    }

    pub(super) fn describe(&self, within: &Range<u64>) -> Vec<Leased> {
        let overlap = |r: &&Range<u64>| r.start.max(within.start) < r.end.min(within.end);
        self.ranges.iter().filter(overlap).map(|r| self.describe_one(r.clone())).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // In a fork nothing ends: it is the parent's.
        if self.shared.is_ours() {
            let kept = lock(&self.kept).bytes();
            self.forget_aside();
            self.shared.detaching.kept.fetch_sub(kept, Ordering::Relaxed);
            self.shared.table.end_lease(&self.ranges, self.key).wake();
        }
    }
}

pub(super) struct Lessee<'a> {
    pub(super) shared: &'a Shared,
    pub(super) key: u64,
}

impl Drop for Lessee<'_> {
    fn drop(&mut self) {
        if self.shared.is_ours() {
            self.shared.table.remove_lessee(self.key);
        }
    }
}

pub(super) fn taken() -> Arc<AtomicUsize> {
    let taken = TAKEN.try_with(|taken| {
        let mut taken = taken.borrow_mut();
        taken.take_if(|(process, _)| !process.is_current());
        let (_, count) = taken.get_or_insert_with(|| (Process::current(), Arc::default()));
        Arc::clone(count)
    });
    // While the thread ends there is none any more, and what it takes then is not counted.
    taken.unwrap_or_default()
}
