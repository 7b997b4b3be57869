//! Descriptors that tokio is to watch.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use ::tokio::io::Interest;
use ::tokio::io::unix::AsyncFd;

use crate::park::Parker;

/// What keeps one epoll descriptor open for as long as it lives.
pub(crate) trait Epoll: AsFd {}

impl Epoll for OwnedFd {}
impl Epoll for Parker {}

/// It by its descriptor, for tokio.
#[derive(Debug)]
pub(crate) struct Registered<T>(pub(crate) T);

impl<T: Epoll> AsRawFd for Registered<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers `epoll` with the runtime, for becoming readable. Panics outside of one.
pub(crate) fn register<T: Epoll>(epoll: T) -> io::Result<AsyncFd<Registered<T>>> {
    // SAFETY: the descriptor is open and the same for as long as `epoll` lives (the trait says so,
    // which is private), and that is until the AsyncFd is dropped, which deregisters it first.
    unsafe { AsyncFd::register_with_interest(Registered(epoll), Interest::READABLE) }
        .map_err(Into::into)
}
