//! `net.ipv4.tcp_mtu_probing`: whether TCP tries out larger packets.
//!
//! To make such a probe the kernel moves the queued data of several sends into one new packet
//! (`tcp_mtu_probe`, `tcp_clone_payload`), which refers to the same pages, but not to what keeps
//! account of them (`ubuf_info`). So their notifications arrive while the probe is still on its
//! way, or unread at the peer: what is overwritten then is what the peer receives. That holds for
//! all that notifies in this way: `MSG_ZEROCOPY`, `IORING_OP_SEND_ZC` and the kernel module. A
//! kernel with the patch series makes no probe of what is sent by reference; sendfile2(2) relies on
//! that, and the others, which need no series, do not ask for one.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

use crate::refusal::Refusal;
use crate::socket::kind::Kind;
use crate::sys;

/// `net.ipv4.tcp_mtu_probing` (for IPv6, too) of the calling thread's network namespace: 0 for
/// never, 1 for connections that lost packets for their size, 2 for all. `None` if it cannot be
/// read, as where there is no `/proc`.
///
/// Where it is not 0 the kernel says of zerocopy sends on TCP sockets that they are released while
/// it still sends them.
#[must_use]
pub fn tcp_mtu_probing() -> Option<u8> {
    let path = c"/proc/sys/net/ipv4/tcp_mtu_probing";
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 8];
    let len = rustix::io::read(&file, &mut text);
    sys::close(file);
    std::str::from_utf8(&text[..len.ok()?]).ok()?.trim().parse().ok()
}

/// Refuses what is sent by reference on sockets where TCP may probe.
///
/// Also for 1, as any path may turn out to lose packets in the midst of a connection; and where it
/// is unknown, as a copy is right everywhere. A socket goes by the sysctl of its own namespace,
/// which a thread of another one cannot read.
pub(crate) fn check(kind: Kind, socket: BorrowedFd<'_>) -> Result<(), Refusal> {
    if kind != Kind::Tcp {
        return Ok(());
    }
    if sys::socket::in_own_namespace(socket) == Some(false) {
        return Err(Refusal::OtherNamespace);
    }
    match tcp_mtu_probing() {
        Some(0) => Ok(()),
        value => Err(Refusal::MtuProbing(value)),
    }
}
