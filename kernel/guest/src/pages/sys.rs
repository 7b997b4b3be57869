//! The calls that neither rustix nor the library offers safely.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::pipe::{IoSliceRaw, SpliceFlags};

fn check(ret: c_int) -> Result<c_int, Errno> {
    if ret < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(ret)
}

fn set_option(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: value is valid for reads of its length.
    check(unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) }).map(drop)
}

/// Puts the kernel's TLS 1.2 with AES-GCM, and a key of zeros, on both directions of a socket.
pub(crate) fn enable_tls(socket: impl AsFd) -> Result<(), Errno> {
    const SOL_TLS: c_int = 282;
    const TLS_TX: c_int = 1;
    const TLS_RX: c_int = 2;
    set_option(&socket, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls\0")?;
    // struct tls12_crypto_info_aes_gcm_128: version 0x0303, cipher 51; then iv, key, salt, number.
    let mut info = [0; 40];
    info[..4].copy_from_slice(&[0x03, 0x03, 51, 0]);
    set_option(&socket, SOL_TLS, TLS_TX, &info)?;
    set_option(&socket, SOL_TLS, TLS_RX, &info)
}

/// Makes a UDP socket take what it is sent for ESP.
pub(crate) fn decapsulate_esp(socket: impl AsFd) -> Result<(), Errno> {
    const UDP_ENCAP: c_int = 100;
    const ESPINUDP: c_int = 2;
    set_option(socket, libc::IPPROTO_UDP, UDP_ENCAP, &ESPINUDP.to_ne_bytes())
}

/// Gives the pages of a mapping of the file to a pipe; returns how many bytes it has taken.
pub(crate) fn vmsplice(pipe: impl AsFd, file: &File, at: u64, len: usize) -> Result<usize, Errno> {
    let page = rustix::param::page_size();
    let within = usize::try_from(at).map_err(|_| Errno::INVAL)? % page;
    let size = within + len;
    let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: it takes the place of no other memory.
    let mapping =
        unsafe { mmap(std::ptr::null_mut(), size, protection, flags, file, at - within as u64)? };
    // SAFETY: the mapping is that large.
    let base = unsafe { mapping.byte_add(within) };
    let slice = IoSliceRaw::from_slice(
        // SAFETY: it is mapped, and nobody in this program writes to the file meanwhile.
        unsafe { std::slice::from_raw_parts(base.cast::<u8>(), len) },
    );
    // SAFETY: the kernel only reads it, and holds the pages by references of its own.
    let given = unsafe { rustix::pipe::vmsplice(pipe, &[slice], SpliceFlags::empty()) };
    // SAFETY: nothing refers to the mapping any more.
    unsafe { munmap(mapping, size) }?;
    given
}

/// Makes a tun device, of packets without headers of its own, that lives as long as what is
/// returned.
pub(crate) fn tun(name: &str) -> std::io::Result<File> {
    const TUNSETIFF: libc::Ioctl = 0x4004_54CA;
    const IFF_TUN: u16 = 1;
    const IFF_NO_PI: u16 = 0x1000;
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // struct ifreq: a name of 16 bytes, and a union of 24.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: this request reads and writes a struct ifreq, which has this size.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) })?;
    Ok(file)
}

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` must be given.
#[repr(C)]
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: *const u64,
    license: *const libc::c_char,
    log: [u32; 4],
    flags: [u32; 2],
}

/// The part of `union bpf_attr` that `BPF_OBJ_PIN` must be given.
#[repr(C)]
struct Pin {
    path: *const libc::c_char,
    program: u32,
    flags: u32,
}

/// # Safety
/// `attr` must be laid out as the command takes it, and addresses in it be valid for reads.
unsafe fn bpf<T>(command: c_int, attr: &T) -> Result<c_int, Errno> {
    // SAFETY: attr is valid for reads of its size; the rest is the caller's promise.
    let ret =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    check(c_int::try_from(ret).unwrap_or(-1))
}

/// Loads a program for a traffic control classifier, and pins it there.
pub(crate) fn pin_program(instructions: &[u64], path: &CStr) -> Result<(), Errno> {
    const PROG_LOAD: c_int = 5;
    const OBJ_PIN: c_int = 6;
    const SCHED_CLS: u32 = 3;
    let load = ProgramLoad {
        kind: SCHED_CLS,
        count: u32::try_from(instructions.len()).map_err(|_| Errno::INVAL)?,
        instructions: instructions.as_ptr(),
        license: c"GPL".as_ptr(),
        log: [0; 4],
        flags: [0; 2],
    };
    // SAFETY: it is laid out so, and the addresses are those of what is borrowed.
    let program = unsafe { bpf(PROG_LOAD, &load) }?;
    let pin = Pin {
        path: path.as_ptr(),
        program: u32::try_from(program).map_err(|_| Errno::IO)?,
        flags: 0,
    };
    // SAFETY: it is laid out so, and the address is that of what is borrowed.
    unsafe { bpf(OBJ_PIN, &pin) }.map(drop)
}
