//! The one place with unsafe code.
#![allow(unsafe_code)]

use sendfile2::Mapped;

/// The address and length of what is mapped, in the form in which hyper passes bytes on.
pub(crate) fn bytes(mapped: &Mapped) -> &[u8] {
    let range = mapped.range();
    // It is mapped, so its length is a usize.
    let len = usize::try_from(range.end - range.start).unwrap_or(0);
    // SAFETY: the memory is mapped for as long as `mapped` lives. That others may change it is
    // answered in the crate's documentation: nobody reads the slice but the kernel.
    unsafe { std::slice::from_raw_parts(mapped.as_ptr(), len) }
}

/// Returns the limit of descriptors; `None` if there is none, or if it cannot be had. getrlimit(2).
pub(crate) fn descriptors() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the memory is there, and is of the type that the call fills.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
