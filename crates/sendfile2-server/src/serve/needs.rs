//! The system calls that every connection needs. What is forbidden shows at the start, and not in
//! answers that never come.

use std::io::IoSlice;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, accept_with,
    getsockname, recv, send, sendmsg, socketpair, sockopt,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Asks for each of them, in a way that changes nothing.
pub(super) fn check() -> anyhow::Result<()> {
    let nothing = Rlimit { current: None, maximum: None };
    // No process has this number.
    let nobody = Pid::from_raw(i32::MAX);
    may("prlimit", prlimit(nobody, Resource::Nofile, nothing))?;
    let no_socket = may("epoll_create1", epoll::create(epoll::CreateFlags::CLOEXEC))?;
    let Some(no_socket) = no_socket else { return Ok(()) };
    let no_socket = &no_socket;
    let (data, flags) = (epoll::EventData::new_u64(0), epoll::EventFlags::IN);
    may("epoll_ctl", epoll::add(no_socket, no_socket, data, flags))?;
    let (mut events, at_once) = (Vec::with_capacity(1), Timespec::default());
    let events = rustix::buffer::spare_capacity(&mut events);
    may("epoll_wait", epoll::wait(no_socket, events, Some(&at_once)))?;
    may("eventfd2", eventfd(0, EventfdFlags::CLOEXEC))?;
    may("fcntl", rustix::io::fcntl_getfd(no_socket))?;
    may("ioctl", rustix::io::ioctl_fionbio(no_socket, false))?;
    let (unix, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    may("socketpair", socketpair(unix, SocketType::STREAM, flags, None))?;
    may("getsockname", getsockname(no_socket))?;
    may("getsockopt", sockopt::socket_type(no_socket))?;
    may("accept4", accept_with(no_socket, flags))?;
    may("recvfrom", recv(no_socket, &mut [0; 1], RecvFlags::DONTWAIT))?;
    may("sendto", send(no_socket, &[], SendFlags::DONTWAIT))?;
    let (bytes, mut ancillary) = ([IoSlice::new(&[])], SendAncillaryBuffer::default());
    may("sendmsg", sendmsg(no_socket, &bytes, &mut ancillary, SendFlags::DONTWAIT))?;
    Ok(())
}

/// Fails where a call is not allowed.
fn may<T>(call: &str, result: rustix::io::Result<T>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(done) => Ok(Some(done)),
        // As is right for a process or a socket that there is not, and for what contains itself.
        Err(Errno::SRCH | Errno::NOTSOCK | Errno::INVAL) => Ok(None),
        Err(e @ (Errno::PERM | Errno::ACCESS | Errno::NOSYS)) => {
            anyhow::bail!("{call}(2), which every connection needs: {e} (a seccomp filter?)")
        }
        Err(e) => anyhow::bail!("{call}(2), which every connection needs: {e}"),
    }
}
