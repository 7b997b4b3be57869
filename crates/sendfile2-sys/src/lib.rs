//! The system calls and kernel structures that [sendfile2] rests on, one concept a module.
//!
//! This is the only crate of the library that holds `unsafe`. Everything it exports is safe: sizes
//! and addresses are checked here, not by the callers. What rustix already offers safely (epoll,
//! `pread`, socket options, `connect_unspec`) is used from there and not repeated.
//!
//! Two modules are pure and do no I/O, since what they keep must outlive the kernel's use of it:
//! [`ledger`] maps the notification ids of a socket to what its sends hold, [`op_table`] the
//! operations of a ring.
//!
//! This crate is made for sendfile2, its C and Python libraries and its tests. Its interface changes whenever
//! they need that; programs use sendfile2.
//!
//! [sendfile2]: https://docs.rs/sendfile2
#![cfg(target_os = "linux")]
// On docs.rs each item says which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![allow(unsafe_code)]

#[cfg(all(feature = "uring", not(target_pointer_width = "64")))]
compile_error!(
    "the feature `uring` of sendfile2 is for 64-bit targets: build with `default-features = false`"
);

pub mod cached_read;
#[cfg(feature = "supervise")]
pub mod daemon;
pub mod errqueue;
pub mod filesystem;
pub mod ledger;
pub mod mapping;
#[cfg(feature = "native")]
pub mod module;
pub mod op_table;
pub mod page_cache;
pub mod process;
pub mod recover;
pub mod rlimit;
#[cfg(feature = "supervise")]
pub mod seccomp;
pub mod sendfile;
pub mod shim;
pub mod socket;
#[cfg(feature = "native")]
pub mod syscall;
#[cfg(feature = "supervise")]
pub mod thread;
#[cfg(feature = "tokio")]
pub mod tokio;
#[cfg(feature = "uring")]
pub mod uring;

/// Closes a descriptor without being a point of thread cancellation, as the standard library's
/// close is: a thread of a C program must not be unwound through Rust.
pub fn close(file: std::os::fd::OwnedFd) {
    // SAFETY: the descriptor was owned, and nothing has it any more.
    unsafe { rustix::io::close(std::os::fd::IntoRawFd::into_raw_fd(file)) }
}

/// Duplicates the descriptor with this number, which the code of another language owns. A number that
/// is no descriptor is refused.
///
/// # Errors
/// Those of `fcntl(2)`, `F_DUPFD_CLOEXEC`.
pub fn duplicate(number: std::os::fd::RawFd) -> std::io::Result<std::os::fd::OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: it is not -1, and borrowed for this call only, which refuses what is no descriptor. As
    // where /proc/self/fd is opened, nothing of its owner's is read, written or closed.
    let given = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
    given.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::duplicate;

    #[test]
    fn a_duplicate_outlives_the_number() {
        let (one, two) = UnixStream::pair().unwrap();
        let mut own = UnixStream::from(duplicate(one.as_raw_fd()).unwrap());
        drop((one, two));
        assert_eq!(own.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn what_is_no_descriptor_is_refused() {
        for number in [-1, i32::MIN, i32::MAX] {
            assert_eq!(duplicate(number).unwrap_err().raw_os_error(), Some(libc::EBADF));
        }
    }
}
