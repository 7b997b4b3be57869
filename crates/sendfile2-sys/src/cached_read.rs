//! Reads of what is in the page cache, into memory that nobody has written before.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use crate::socket::last_error;

/// Reads up to `len` bytes at `offset` behind what is in `buffer`, and returns how many; where that
/// would take waiting for the disk, it fails ([`Errno::AGAIN`]). The room for them is not filled with
/// zeros first, which for a few pages costs as much as reading them. `preadv2(2)`, `RWF_NOWAIT`
/// (Linux 4.14).
///
/// # Errors
/// Those of `preadv2(2)`, but for EINTR.
pub fn read_behind(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    len: usize,
    offset: u64,
) -> Result<usize, Errno> {
    buffer.reserve(len);
    let room = buffer.spare_capacity_mut();
    let into = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: len };
    let offset = offset.try_into().map_err(|_| Errno::INVAL)?;
    let file = file.as_raw_fd();
    loop {
        // SAFETY: the iovec's memory is free, and writable: `reserve` made `len` bytes of it.
        let read = unsafe { libc::preadv2(file, &raw const into, 1, offset, libc::RWF_NOWAIT) };
        match usize::try_from(read) {
            Ok(read) => {
                // SAFETY: the kernel has written so many bytes behind what was there.
                unsafe { buffer.set_len(buffer.len() + read) };
                return Ok(read);
            }
            Err(_) => match last_error() {
                Errno::INTR => {}
                error => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn it_appends_as_much_as_was_asked_for() {
        let mut file = tempfile();
        file.write_all(b"0123456789").unwrap();
        let mut buffer = b"before".to_vec();
        buffer.reserve(100);
        match read_behind(file.as_fd(), &mut buffer, 3, 2) {
            Ok(read) => assert_eq!((read, &buffer[..]), (3, &b"before234"[..])),
            Err(e) => {
                println!("SKIP: the filesystem cannot read without waiting: {e}");
                return;
            }
        }
        assert_eq!(read_behind(file.as_fd(), &mut buffer, 100, 8), Ok(2));
        assert_eq!(buffer, b"before23489");
        assert_eq!(read_behind(file.as_fd(), &mut buffer, 100, 10), Ok(0));
        assert_eq!(read_behind(file.as_fd(), &mut buffer, 100, u64::MAX), Err(Errno::INVAL));
        assert_eq!(buffer, b"before23489");
    }

    fn tempfile() -> std::fs::File {
        let flags = rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR;
        let file = rustix::fs::open(std::env::temp_dir(), flags, rustix::fs::Mode::RUSR);
        file.unwrap().into()
    }
}
