//! `net.ipv4.tcp_mtu_probing`: whether TCP tries out larger packets.
//!
//! To make such a probe the kernel moves the queued data of several sends into one new packet
//! (`tcp_mtu_probe`, `tcp_clone_payload`), which refers to the same pages, but not to what keeps
//! account of them (`ubuf_info`). So their notifications arrive while the probe is still on its
//! way, or unread at the peer: what is overwritten then is what the peer receives. That holds for
//! all that notifies in this way: `MSG_ZEROCOPY`, `IORING_OP_SEND_ZC` and the kernel module. A
//! kernel with the patch series makes no probe of what is sent by reference. Only sends by
//! sendfile2(2) rely on that; no other send asks whether the kernel has the series.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};

use crate::refusal::Refusal;
use crate::socket::kind::Kind;
use crate::sys;

/// `net.ipv4.tcp_mtu_probing` (for IPv6, too) of the calling thread's network namespace: 0 for
/// never, 1 for connections that lost packets for their size, 2 for all. `None` if it cannot be
/// read, as where there is no `/proc`.
///
/// Where it is not 0 the kernel may report a send by reference on a TCP socket released while it
/// still sends the bytes.
#[must_use]
pub fn tcp_mtu_probing() -> Option<u8> {
    let path = c"/proc/sys/net/ipv4/tcp_mtu_probing";
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 8];
    let len = rustix::io::read(&file, &mut text);
    sys::close(file);
    std::str::from_utf8(&text[..len.ok()?]).ok()?.trim().parse().ok()
}

/// Refuses sends by reference on a socket where TCP may make MTU probes.
///
/// It may where the sysctl is 1, too, as any path may begin to lose packets during a connection.
/// Where the sysctl cannot be read, or is that of another network namespace than this thread's, it
/// is refused in doubt.
pub(crate) fn no_mtu_probes(kind: Kind, socket: BorrowedFd<'_>) -> Result<(), Refusal> {
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
