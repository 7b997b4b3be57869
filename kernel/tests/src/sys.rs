//! The calls that neither rustix nor the library offers safely.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use io_uring::{IoUring, cqueue, squeue};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use sendfile2_sys::module::{self, Device};

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn check(ret: c_int) -> Result<c_int, Errno> {
    if ret < 0 { Err(last_error()) } else { Ok(ret) }
}

/// Returns a descriptor by its number, for numbers that are not open, and those a parent has left
/// open.
pub(crate) fn number(fd: RawFd) -> BorrowedFd<'static> {
    assert!(fd >= 0);
    // SAFETY: it is not -1. The kernel checks every number; none is closed through this.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

fn set_option(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(value.len()).expect("a short value");
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: value is valid for reads of its length.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) }).map(drop)
}

/// `SO_ZEROCOPY`.
pub(crate) fn enable_zerocopy(socket: impl AsFd) -> Result<(), Errno> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_ZEROCOPY, &1i32.to_ne_bytes())
}

/// `TCP_FASTOPEN_CONNECT`: connect(2) leaves it to the first send.
pub(crate) fn put_connecting_off(socket: impl AsFd) -> Result<(), Errno> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1i32.to_ne_bytes())
}

/// Sends by arguments in memory that cannot be written to, as `Args::command` lays them out.
pub(crate) fn send_by_read_only(device: &Device, arguments: &[u8]) -> Result<usize, Errno> {
    let file = rustix::fs::memfd_create("arguments", MemfdFlags::CLOEXEC)?;
    rustix::io::write(&file, arguments)?;
    let (len, prot, flags) = (arguments.len(), ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: it takes the place of no other memory.
    let at = unsafe { mmap(std::ptr::null_mut(), len, prot, flags, &file, 0) }?;
    // SAFETY: there is a `struct sendfile2_args`; what the kernel may not write it does not.
    let sent =
        unsafe { libc::ioctl(device.as_fd().as_raw_fd(), module::request(module::SEND), at) };
    usize::try_from(check(sent)?).map_err(|_| Errno::IO)
}

/// Puts the kernel's TLS on a TCP socket.
pub(crate) fn enable_tls(socket: impl AsFd) -> Result<(), Errno> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls\0")
}

/// Bytes that TCP has not yet given to the network (`SIOCOUTQNSD`).
pub(crate) fn not_sent(socket: impl AsFd) -> Result<u64, Errno> {
    const SIOCOUTQNSD: libc::Ioctl = 0x894B;
    let mut value: c_int = 0;
    // SAFETY: this request writes one int.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), SIOCOUTQNSD, &raw mut value) })?;
    Ok(u64::try_from(value).unwrap_or(0))
}

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` takes.
#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The part of `union bpf_attr` that `BPF_MAP_UPDATE_ELEM` takes.
#[repr(C)]
struct MapUpdate {
    map: RawFd,
    _padding: u32,
    key: *const u32,
    value: *const RawFd,
    flags: u64,
}

/// # Safety
/// `attr` must be laid out as the command takes it, and addresses in it be valid for reads.
unsafe fn bpf<T>(command: c_int, attr: &T) -> Result<c_int, Errno> {
    // SAFETY: attr is valid for reads of its size; the rest is the caller's promise.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    check(c_int::try_from(ret).unwrap_or(-1))
}

/// Puts a socket into a sockmap, which lives as long as what is returned.
pub(crate) fn into_sockmap(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    const MAP_CREATE: c_int = 0;
    const MAP_UPDATE_ELEM: c_int = 2;
    const MAP_TYPE_SOCKMAP: u32 = 15;
    let create =
        MapCreate { map_type: MAP_TYPE_SOCKMAP, key_size: 4, value_size: 4, max_entries: 1 };
    // SAFETY: it is laid out so, and has no addresses.
    let map = unsafe { bpf(MAP_CREATE, &create) }?;
    // SAFETY: the kernel has just made this descriptor for us.
    let map = unsafe { OwnedFd::from_raw_fd(map) };
    let (key, value) = (0, socket.as_fd().as_raw_fd());
    let update = MapUpdate {
        map: map.as_raw_fd(),
        _padding: 0,
        key: &raw const key,
        value: &raw const value,
        flags: 0,
    };
    // SAFETY: it is laid out so, and the addresses are those of locals.
    unsafe { bpf(MAP_UPDATE_ELEM, &update) }?;
    Ok(map)
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// Counts this signal from now on; system calls that it interrupts are not restarted.
pub(crate) fn count_signal(signal: c_int) {
    // SAFETY: sigaction is plain data; the handler does nothing but count in an atomic.
    let ret = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        libc::sigaction(signal, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(ret, 0, "sigaction: {}", last_error());
}

/// Returns the number of signals that were counted so far.
pub(crate) fn signals() -> u32 {
    SIGNALS.load(Ordering::SeqCst)
}

/// Sends SIGUSR1 to one thread of this process.
pub(crate) fn signal_thread(thread: rustix::thread::Pid) {
    // SAFETY: plain numbers; the signal has a handler.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            libc::getpid(),
            thread.as_raw_nonzero().get(),
            libc::SIGUSR1,
        )
    };
    // Gone by now is fine.
    assert!(ret == 0 || last_error() == Errno::SRCH, "tgkill: {}", last_error());
}

/// A ring whose entries hold the module's arguments.
pub(crate) type Ring = IoUring<squeue::Entry128, cqueue::Entry32>;

/// Submits one entry, which must refer to no memory.
pub(crate) fn submit(ring: &mut Ring, entry: &squeue::Entry128) {
    // SAFETY: the module's arguments are in the entry itself: numbers, and descriptors, which the
    // kernel checks, and the tests keep open.
    unsafe { ring.submission().push(entry) }.expect("room for one entry");
    ring.submit().expect("io_uring_enter");
}

/// Submits an entry as [`submit`] does, on a ring whose entries are too small for the arguments.
pub(crate) fn submit_small(ring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: the entry refers to no memory.
    unsafe { ring.submission().push(entry) }.expect("room for one entry");
}
