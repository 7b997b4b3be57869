//! The operations on sockets that rustix does not offer: sending from a [`Region`], `SO_ZEROCOPY`,
//! SIOCOUTQ, the state of a TCP connection, who sends for it, option memory, network namespaces.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::mapping::Region;

/// `send(2)` from `region`, never blocking and never raising SIGPIPE.
///
/// With `zerocopy` the kernel goes on reading the region's pages after the return, until the
/// completion notification; it pins them, so that unmapping is harmless, but what is written into
/// them meanwhile is what the peer receives.
///
/// Source: send(2); `Documentation/networking/msg_zerocopy.rst`.
#[inline(always)]
pub fn send(
    socket: BorrowedFd<'_>,
    region: Region<'_>,
    zerocopy: bool,
    more: bool,
) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT
        | libc::MSG_NOSIGNAL
        | if zerocopy { libc::MSG_ZEROCOPY } else { 0 }
        | if more { libc::MSG_MORE } else { 0 };
    loop {
        // Not libc's send(), a point of thread cancellation, which costs more than all around it.
        // SAFETY: the region is mapped memory for the time of the call; the kernel only reads it,
        // and answers EFAULT where a page is gone. sendto(2) takes these six arguments, and no
        // address.
        let sent = unsafe {
            libc::syscall(
                libc::SYS_sendto,
                socket.as_raw_fd(),
                region.as_ptr(),
                region.len(),
                flags,
                std::ptr::null::<libc::sockaddr>(),
                0,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => return Ok(sent),
            Err(_) => match last_error() {
                Errno::INTR => {}
                error => return Err(error),
            },
        }
    }
}

/// Returns whether `SO_ZEROCOPY` is set (socket(7), Linux 4.14).
pub fn zerocopy_enabled(socket: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY)? != 0)
}

/// Lets every send on a TCP socket put a timestamp on the error queue when it is acknowledged
/// (`TX_ACK`, Linux 3.17; without the bytes that were sent, `OPT_TSONLY`), or ends that. `false`, and
/// nothing is done, if the application has asked for timestamps of its own.
///
/// Source: `Documentation/networking/timestamping.rst`.
pub fn stamp_acknowledgements(socket: BorrowedFd<'_>, on: bool) -> Result<bool, Errno> {
    let flags = libc::SOF_TIMESTAMPING_TX_ACK
        | libc::SOF_TIMESTAMPING_OPT_TSONLY
        | libc::SOF_TIMESTAMPING_SOFTWARE;
    let ours = c_int::try_from(flags).unwrap_or(0);
    let (from, to) = if on { (0, ours) } else { (ours, 0) };
    if option(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPING)? != from {
        return Ok(false);
    }
    set_option(socket, libc::SO_TIMESTAMPING, to)?;
    Ok(true)
}

/// The state of a TCP connection, as far as the account of what it has sent goes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// The end of the stream was sent, and is not acknowledged.
    EndSent,
    /// No segment will come or go any more.
    Closed,
    /// Any other.
    Other,
}

/// Returns the state of a TCP connection.
///
/// Source: tcp(7), `TCP_INFO`, whose first byte is the state; `net/tcp_states.h`.
///
/// # Errors
/// What `getsockopt(2)` fails with.
pub fn tcp_state(socket: BorrowedFd<'_>) -> Result<TcpState, Errno> {
    const FIN_WAIT1: u8 = 4;
    const CLOSE: u8 = 7;
    const LAST_ACK: u8 = 9;
    const CLOSING: u8 = 11;
    let info = option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    Ok(match info.to_ne_bytes()[0] {
        CLOSE => TcpState::Closed,
        FIN_WAIT1 | LAST_ACK | CLOSING => TcpState::EndSent,
        _ => TcpState::Other,
    })
}

/// Returns whether bytes sent on a TCP socket go to TCP itself, and not to the program of a BPF
/// sockmap that the socket is in (`BPF_SK_MSG_VERDICT`).
///
/// Before that program the kernel copies what is sent, and makes several sends of it; with
/// `MSG_ZEROCOPY` each of these uses a notification id, so that the number of ids one call uses is
/// not known.
///
/// Found by a send of no bytes, whose control message lacks its data: TCP refuses that
/// (`sock_cmsg_send`, Linux 4.6), and what a sockmap puts in its place (`tcp_bpf_sendmsg`) does not look
/// at it.
///
/// # Errors
/// The errors of a send on the socket, EAGAIN and EPIPE among them; no signal is raised.
pub fn sent_by_tcp(socket: impl AsFd) -> io::Result<bool> {
    // SAFETY: cmsghdr is a plain C structure, for which all zeroes are a valid value. (musl's has
    // padding of its own.)
    let mut control: libc::cmsghdr = unsafe { std::mem::zeroed() };
    control.cmsg_len = size_of::<libc::cmsghdr>() as _;
    control.cmsg_level = libc::SOL_SOCKET;
    control.cmsg_type = libc::SO_TIMESTAMPING;
    // SAFETY: as above.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = (&raw const control).cast_mut().cast();
    message.msg_controllen = size_of::<libc::cmsghdr>() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message has no address and no bytes; its control message is as long as it says, and
    // alive; sendmsg(2) changes neither. By number, as in `send`.
    let ret = unsafe {
        libc::syscall(libc::SYS_sendmsg, socket.as_fd().as_raw_fd(), &raw const message, flags)
    };
    match ret {
        0 => Ok(false),
        _ => match last_error() {
            Errno::INVAL => Ok(true),
            error => Err(error.into()),
        },
    }
}

/// Returns the bytes of option memory that are charged to the socket (`SO_MEMINFO`, Linux 4.12).
///
/// The kernel's account of a zerocopy send is charged, from before the send until its notification
/// is read (`sock_omalloc`, `msg_zerocopy_alloc`); filters and BPF's storage are charged, too. So
/// where this is 0 the kernel has nothing of the socket by reference, whatever ids were reported.
pub fn option_memory(socket: BorrowedFd<'_>) -> Result<u32, Errno> {
    /// `SK_MEMINFO_OPTMEM` of `linux/sock_diag.h`.
    const OPTMEM: usize = 6;
    let mut values = [0_u32; OPTMEM + 1];
    let mut len = libc::socklen_t::try_from(size_of_val(&values)).unwrap_or(0);
    // SAFETY: values and len are valid for writes, and len is the size of values.
    let ret = unsafe {
        let values = values.as_mut_ptr().cast();
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            values,
            &raw mut len,
        )
    };
    // Where it says less than that nothing is known.
    match (ret, len as usize == size_of_val(&values)) {
        (0, true) => Ok(values[OPTMEM]),
        (0, false) => Err(Errno::NOPROTOOPT),
        _ => Err(last_error()),
    }
}

/// Returns whether a socket is of the network namespace of the calling thread, whose sysctls are
/// those that the thread reads (`SO_NETNS_COOKIE`). `None` where the kernel cannot say (before
/// Linux 5.14).
#[must_use]
pub fn in_own_namespace(socket: impl AsFd) -> Option<bool> {
    let theirs = match namespace(socket.as_fd()) {
        Err(Errno::NOPROTOOPT) => return None,
        theirs => theirs.ok(),
    };
    let flags = SocketFlags::CLOEXEC;
    let own = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok();
    let ours = own.and_then(|own| {
        let ours = namespace(own.as_fd());
        super::close(own);
        ours.ok()
    });
    Some(theirs.is_some() && theirs == ours)
}

/// The number of a socket's network namespace, which no other one ever gets.
fn namespace(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    /// `SO_NETNS_COOKIE` of `asm-generic/socket.h`; the libc crate does not have it.
    const SO_NETNS_COOKIE: c_int = 71;
    let mut cookie = 0_u64;
    let mut len = socklen::<u64>();
    // SAFETY: cookie and len are valid for writes, and len is the size of cookie.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret == 0 { Ok(cookie) } else { Err(last_error()) }
}

/// The first bytes of a socket option, as many as an int has.
fn option(socket: BorrowedFd<'_>, level: c_int, name: c_int) -> Result<c_int, Errno> {
    let mut value: c_int = 0;
    let mut len = socklen::<c_int>();
    // SAFETY: value and len are valid for writes, and len is the size of value.
    let ret = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut len)
    };
    if ret == 0 { Ok(value) } else { Err(last_error()) }
}

/// Sets `SO_ZEROCOPY`, without which `MSG_ZEROCOPY` is accepted and ignored.
pub fn enable_zerocopy(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    set_option(socket, libc::SO_ZEROCOPY, 1)
}

/// Sets an option of `SOL_SOCKET`.
fn set_option(socket: BorrowedFd<'_>, name: c_int, value: c_int) -> Result<(), Errno> {
    // SAFETY: value is valid for reads of its size.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw const value).cast(),
            socklen::<c_int>(),
        )
    };
    if ret == 0 { Ok(()) } else { Err(last_error()) }
}

/// Bytes written to a TCP socket that its peer's TCP has not acknowledged, sent or not (SIOCOUTQ).
///
/// 0 says that the peer's TCP has everything. It does not say that a file may be overwritten that
/// was sent with `sendfile(2)`: a peer on this host holds the file's pages in its receive queue.
/// For what a `Sender` sent, ask its `Ticket` instead, which leaves out what was sent later.
///
/// Source: tcp(7), which says "unsent"; `tcp_ioctl` counts from `snd_una` (and a FIN as one).
///
/// # Errors
/// ENOTTY if it is no socket, EINVAL if it listens.
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u64> {
    let mut value: c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ) writes one int.
    let ret = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut value) };
    // The kernel's is unsigned: what would be negative is much, and not nothing.
    let bytes = u32::from_ne_bytes(value.to_ne_bytes());
    if ret == 0 { Ok(bytes.into()) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn last_error() -> Errno {
    // errno of the failed call; rustix has no constructor that cannot fail.
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn socklen<T>() -> libc::socklen_t {
    // An int's size fits.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
