//! The identity of the calling process, which distinguishes it from its parent and its children
//! without a system call.
//!
//! The process id would cost a system call each time, and may be another's: in a PID namespace of
//! its own a child can have the id of its parent, and ids come round again. A page that the kernel
//! wipes in each child distinguishes them.
//!
//! Source: madvise(2), `MADV_WIPEONFORK` (Linux 4.14).

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

/// A process, distinct from its parent and its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process(u64);

/// The address of this process's number, which is 0 while it has none yet, as in a child at first.
static MARK: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());

/// A stand-in for the page where the kernel wipes none.
static NO_PAGE: AtomicU64 = AtomicU64::new(BY_ID);
const BY_ID: u64 = u64::MAX;

/// The number of the next process. A child goes on where its parent was: whatever it has of its
/// ancestors has a lower one.
static NEXT: AtomicU64 = AtomicU64::new(1);

impl Process {
    /// The calling process.
    #[inline]
    #[must_use]
    pub fn current() -> Self {
        let mark = mark();
        match mark.load(Ordering::Relaxed) {
            0 => number(mark),
            BY_ID => {
                Process(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs().into())
            }
            number => Process(number),
        }
    }

    /// Returns whether this is the calling process, and not one that it was forked from.
    #[inline]
    #[must_use]
    pub fn is_current(self) -> bool {
        // SAFETY: it points at nothing, or at what is never unmapped.
        let mark = unsafe { MARK.load(Ordering::Acquire).as_ref() };
        mark.is_some_and(|mark| mark.load(Ordering::Relaxed) == self.0) || self.is_it_after_all()
    }

    /// Compares anew: a child may have no number yet, or processes may be identified by their ids.
    #[cold]
    #[inline(never)]
    fn is_it_after_all(self) -> bool {
        self == Process::current()
    }
}

#[inline]
fn mark() -> &'static AtomicU64 {
    // SAFETY: it points at nothing, or at what is never unmapped.
    unsafe { MARK.load(Ordering::Acquire).as_ref() }.unwrap_or_else(first_mark)
}

/// Takes no lock, which a fork at this moment would leave locked in the child.
#[cold]
fn first_mark() -> &'static AtomicU64 {
    let mark = page().unwrap_or((&raw const NO_PAGE).cast_mut());
    let kept = match MARK.compare_exchange(null_mut(), mark, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => mark,
        // Another thread was quicker: a page is lost, once.
        Err(other) => other,
    };
    // SAFETY: it points at a page that is never unmapped, or at a static.
    unsafe { &*kept }
}

fn page() -> Option<*mut AtomicU64> {
    let len = rustix::param::page_size();
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let page = unsafe { mmap_anonymous(null_mut(), len, protection, MapFlags::PRIVATE) }.ok()?;
    // SAFETY: it is the mapping's own address and length, and nothing knows it yet.
    unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.ok()?;
    Some(page.cast())
}

#[cold]
fn number(mark: &AtomicU64) -> Process {
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    match mark.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => Process(next),
        Err(other) => Process(other),
    }
}
