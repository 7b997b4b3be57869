//! `/dev/sendfile2`, the device of the kernel module.
//!
//! Source: `kernel/module/sendfile2_module.h`, which has the same constants and structures.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::opcode;

use crate::socket::last_error;

/// The flags of a call, in [`Args::flags`].
pub mod flags {
    /// One notification id on the socket's error queue for each call that returned more than 0.
    /// Must be set.
    pub const ZC: u32 = 0x2;
    /// The call sends from the file's own position, and moves it.
    pub const POSITION: u32 = 0x100;
    /// `MSG_DONTWAIT` of send(2).
    pub const DONTWAIT: u32 = 0x200;
    /// `MSG_MORE` of send(2).
    pub const MORE: u32 = 0x400;
    /// `MSG_NOSIGNAL` of send(2).
    pub const NOSIGNAL: u32 = 0x800;
    /// The call returns when the pages are released, no later than at the deadline, and reports in
    /// the state whether they are. An id is used only if the deadline or a signal comes first.
    pub const WAIT: u32 = 0x1000;
}

/// A bit of [`Args::state`]: the pages were released before the call returned.
pub const RELEASED: u32 = 0x1;
/// A bit of [`Args::state`], beside [`RELEASED`]: the kernel has made a copy of some of the pages.
pub const COPIED: u32 = 0x2;

/// `SENDFILE2_MODULE_VERSION`: the version of this interface.
pub const VERSION: u32 = 1;
/// A bit of [`Query::features`]: `IORING_OP_URING_CMD` can use the device, too.
pub const FEATURE_URING: u32 = 0x1;

/// `SENDFILE2_IOC_QUERY`. (A request has 32 bits; rustix calls it a `c_ulong` where it goes by libc.)
const QUERY: u32 = opcode::read::<Query>(0xF7, 0) as u32;
/// `SENDFILE2_IOC_SEND`; also the `cmd_op` of an `IORING_OP_URING_CMD`, with the arguments in the
/// 80 bytes of a large submission entry ([`Args::command`]).
pub const SEND: u32 = opcode::read_write::<Args>(0xF7, 1) as u32;

/// `struct sendfile2_query`: what the module can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Query {
    /// The module's [`VERSION`].
    pub version: u32,
    /// The [`flags`] a call may have.
    pub flags: u32,
    /// The module's features: [`FEATURE_URING`].
    pub features: u32,
    reserved: u32,
}

/// `struct sendfile2_args`, without the descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Args {
    out_fd: i32,
    in_fd: i32,
    /// Before the call, the offset in the file to begin at; after it, the offset behind the last
    /// byte sent. Not used with [`flags::POSITION`].
    pub offset: i64,
    /// Bytes to send.
    pub count: u64,
    /// The [`flags`] of the call.
    pub flags: u32,
    /// The state after the call: [`RELEASED`] and [`COPIED`].
    pub state: u32,
    /// The deadline for [`flags::WAIT`], in nanoseconds of `CLOCK_MONOTONIC`; 0 for none.
    pub deadline: u64,
}

impl Args {
    /// The arguments of an `IORING_OP_URING_CMD`, which says nothing in [`Args::state`]. Its entry
    /// must have `IOSQE_ASYNC`, or fails with EINVAL. A worker of the kernel's looks the descriptors
    /// up, some time after the ring has taken the entry: they must stay open until its completion,
    /// or it sends from, or to, what has their numbers by then.
    #[must_use]
    pub fn command(&self, socket: BorrowedFd<'_>, file: BorrowedFd<'_>) -> [u8; 80] {
        let mut bytes = [0; 80];
        let (fds, rest) = bytes.split_at_mut(8);
        fds[..4].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
        fds[4..].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        rest[..8].copy_from_slice(&self.offset.to_ne_bytes());
        rest[8..16].copy_from_slice(&self.count.to_ne_bytes());
        rest[16..20].copy_from_slice(&self.flags.to_ne_bytes());
        rest[20..24].copy_from_slice(&self.state.to_ne_bytes());
        rest[24..32].copy_from_slice(&self.deadline.to_ne_bytes());
        bytes
    }
}

/// The open device.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// The path of the device.
    pub const PATH: &str = "/dev/sendfile2";

    /// Opens the device, and checks that the module has the version that this library knows.
    ///
    /// # Errors
    /// `NotFound` where the module is not loaded, `PermissionDenied` where its device may not be
    /// opened, `Unsupported` if it is another one, or another version of it.
    pub fn open() -> io::Result<Self> {
        let fd = rustix::fs::open(Self::PATH, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let device = Device(fd);
        match device.query() {
            Ok(Query { version: VERSION, .. }) => Ok(device),
            Ok(Query { version, .. }) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the module speaks version {version}, this library version {VERSION}"),
            )),
            Err(Errno::NOTTY) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "it is not the module's device"))
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Returns what the module can do.
    ///
    /// # Errors
    /// ENOTTY if the device is another one.
    pub fn query(&self) -> Result<Query, Errno> {
        let mut query = Query::default();
        // SAFETY: this request writes one `struct sendfile2_query`, as which it is laid out; the
        // size is part of the request's number.
        let ret = unsafe { libc::ioctl(self.0.as_raw_fd(), request(QUERY), &raw mut query) };
        if ret == 0 { Ok(query) } else { Err(last_error()) }
    }

    /// Sends up to `args.count` bytes of `file` to `socket` by reference; returns how many. Its
    /// checks, and its errors, are sendfile(2)'s and then those of the header.
    ///
    /// # Errors
    /// The kernel's answer.
    #[inline]
    pub fn send(
        &self,
        socket: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        args: &mut Args,
    ) -> Result<usize, Errno> {
        args.out_fd = socket.as_raw_fd();
        args.in_fd = file.as_raw_fd();
        // SAFETY: this request reads and writes one `struct sendfile2_args`, as which it is laid
        // out. The file's pages are the kernel's; no memory of this process is referred to.
        let sent =
            unsafe { libc::ioctl(self.0.as_raw_fd(), request(SEND), std::ptr::from_mut(args)) };
        usize::try_from(sent).map_err(|_| last_error())
    }
}

/// Returns a request's number in the type of libc's `ioctl`, which has a sign for musl.
#[must_use]
#[allow(clippy::cast_lossless, reason = "only where that type is wider")]
pub const fn request(number: u32) -> libc::Ioctl {
    number as libc::Ioctl
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
