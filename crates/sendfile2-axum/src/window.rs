//! Windows: pieces of files whose addresses travel through hyper as a body's bytes.
//!
//! The connection finds a window by its address. There is no table of them: a body's data is made
//! in the poll of its connection's task, which goes on to poll the connection, so that a list of
//! the thread hands it over without a lock. Should anything else come between, the window is not
//! found, and its bytes are sent from where they are, as any other memory. A connection that finds
//! another one's window at the same address is right, too: the same bytes of the same file, under a
//! lease that covers them.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};
use sendfile2::guard::Lease;
use sendfile2::{Error, Mapped, Source};

/// Where a body's bytes come from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    File(Source),
    Lease(Lease),
}

impl Origin {
    /// The mapping of the front of `range`, if that shows what is to be sent.
    pub(crate) fn mapped(&self, range: Range<u64>) -> Result<Option<Mapped>, Error> {
        match self {
            Origin::File(source) => source.mapped(range),
            Origin::Lease(lease) => lease.mapped(range),
        }
    }

    /// Reads up to `len` bytes at `at` into `buffer`, which is empty, where that need not be waited
    /// for.
    pub(crate) fn try_read(
        &self,
        buffer: &mut Vec<u8>,
        len: usize,
        at: u64,
    ) -> io::Result<Option<usize>> {
        match self {
            Origin::File(file) => Ok(file.try_read_behind(buffer, len, at).unwrap_or(None)),
            Origin::Lease(lease) => Ok(lease.try_read_behind(buffer, len, at)?),
        }
    }

    /// As [`try_read`](Self::try_read), and waits.
    pub(crate) fn read(&self, buffer: &mut Vec<u8>, len: usize, at: u64) -> io::Result<usize> {
        match self {
            // Where a filter forbids the call above, it does not forbid this one.
            Origin::File(file) => {
                buffer.reserve_exact(len);
                retry_on_intr(|| pread(file, spare_capacity(buffer), at))?;
                buffer.truncate(len); // There may be more room than was asked for.
                Ok(buffer.len())
            }
            Origin::Lease(lease) => {
                buffer.resize(len, 0);
                let read = lease.read_at(buffer, at)?;
                buffer.truncate(read);
                Ok(read)
            }
        }
    }
}

/// A mapped piece of a file. A lease of it lasts until this is dropped, or what was sent of it is
/// released.
#[derive(Debug)]
pub(crate) struct Window {
    mapped: Mapped,
    pub(crate) origin: Origin,
    passed: Arc<Passed>,
}

/// Whether hyper has dropped a window: it is sent, or nobody wants it any more.
#[derive(Debug, Default)]
pub(crate) struct Passed(Mutex<(bool, Option<Waker>)>);

impl Passed {
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            return Poll::Ready(());
        }
        state.1 = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut state = self.passed.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        let waker = state.1.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// As many as wait to be picked up by their connection, and many more than that.
const WAITING: usize = 64;

thread_local! {
    static MADE: RefCell<Vec<Weak<Window>>> = const { RefCell::new(Vec::new()) };
}

impl Window {
    /// Its bytes, for hyper to pass on, and what tells that they are passed on.
    pub(crate) fn into_bytes(mapped: Mapped, origin: Origin) -> (Bytes, Arc<Passed>) {
        let passed = Arc::<Passed>::default();
        let window = Arc::new(Window { mapped, origin, passed: Arc::clone(&passed) });
        // Where the thread ends it is not found, and sent from memory.
        let _ = MADE.try_with(|made| {
            let mut made = made.borrow_mut();
            if made.len() >= WAITING {
                made.remove(0);
            }
            made.push(Arc::downgrade(&window));
        });
        (Bytes::from_owner(Owner(window)), passed)
    }

    fn len(&self) -> u64 {
        let range = self.mapped.range();
        range.end - range.start
    }
}

struct Owner(Arc<Window>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        crate::sys::bytes(&self.0.mapped)
    }
}

/// The windows whose bytes a connection is about to be given.
#[derive(Debug, Default)]
pub(crate) struct Windows(Vec<Weak<Window>>);

impl Windows {
    /// Takes over what was made on this thread, and forgets what is gone.
    pub(crate) fn collect(&mut self) {
        let _ = MADE.try_with(|made| {
            let mut made = made.borrow_mut();
            if !made.is_empty() {
                self.0.retain(|window| window.strong_count() > 0);
                self.0.append(&mut made);
            }
        });
    }

    /// The window that `slice` lies in, and which bytes of the file it is. A leased one before
    /// others: a file's windows have the same address for all, and what is sent must hold a lease
    /// if its body had one.
    pub(crate) fn find(&self, slice: &[u8]) -> Option<(Arc<Window>, Range<u64>)> {
        let mut found = self.0.iter().filter_map(Weak::upgrade).filter_map(|window| {
            let skip = slice.as_ptr().addr().checked_sub(window.mapped.as_ptr().addr())? as u64;
            let end = skip.checked_add(slice.len() as u64)?;
            if slice.is_empty() || end > window.len() {
                return None;
            }
            let start = window.mapped.range().start;
            Some((window, start + skip..start + end))
        });
        let first = found.next()?;
        let leased = |(window, _): &(Arc<Window>, _)| matches!(window.origin, Origin::Lease(_));
        if leased(&first) {
            return Some(first);
        }
        Some(found.find(leased).unwrap_or(first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendfile2::guard::GuardedFile;

    #[test]
    fn a_leased_window_is_found_before_a_stranger_at_the_same_address() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("its size");
        let guard = GuardedFile::new(file).expect("it can be guarded");
        let source = guard.source();
        let Some(mapped) = source.mapped(0..1 << 20).expect("looked") else {
            println!("SKIP: files are not mapped here");
            return;
        };
        // Of a connection that never came to collect it.
        let (_stranger, _) = Window::into_bytes(mapped, Origin::File(source.clone()));
        let lease = guard.try_lease(0..1 << 20).expect("a lease");
        let mapped = source.mapped(0..1 << 20).expect("looked").expect("mapped, as before");
        let (own, _) = Window::into_bytes(mapped, Origin::Lease(lease));
        let mut windows = Windows::default();
        windows.collect();
        let (window, range) = windows.find(&own[4096..8192]).expect("found");
        assert!(matches!(window.origin, Origin::Lease(_)), "{window:?}");
        assert_eq!(range, 4096..8192);
    }
}
