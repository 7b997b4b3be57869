//! Descriptors that tokio is to watch.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use ::tokio::io::unix::AsyncFd;
use ::tokio::io::{Interest, ReadBuf};
use rustix::net::RecvFlags;

/// A descriptor that a runtime watches, which stays open for as long.
#[derive(Debug)]
pub struct Registered(Arc<OwnedFd>);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Registers `epoll` with the runtime, for becoming readable.
///
/// # Errors
/// The errors of `epoll_ctl(2)`.
///
/// # Panics
/// Outside of a runtime with its I/O enabled.
pub fn register(epoll: Arc<OwnedFd>) -> io::Result<AsyncFd<Registered>> {
    // SAFETY: the descriptor is open and the same for as long as the `Arc` lives, and that is until
    // the AsyncFd is dropped, which deregisters it first.
    unsafe { AsyncFd::register_with_interest(Registered(epoll), Interest::READABLE) }
        .map_err(Into::into)
}

/// Receives into what is left of `buf`, without blocking and without filling it with zeroes first:
/// a connection that is idle does not keep more memory than was written.
///
/// # Errors
/// The errors of `recv(2)`; EAGAIN where nothing is there.
pub fn recv(socket: impl AsFd, buf: &mut ReadBuf<'_>) -> rustix::io::Result<usize> {
    // SAFETY: the kernel only writes to it, so that nothing of it becomes uninitialised.
    let room = unsafe { buf.unfilled_mut() };
    let ((filled, _), _) = rustix::net::recv(socket, room, RecvFlags::DONTWAIT)?;
    let got = filled.len();
    // SAFETY: rustix hands out as initialised what the kernel has written, at the front of it.
    unsafe { buf.assume_init(got) };
    buf.advance(got);
    Ok(got)
}
