//! `RLIMIT_MEMLOCK`: the memory that the zerocopy sends of a user may pin.

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

/// The limit in bytes, as the kernel applies it to this thread's zerocopy sends; `None` if there
/// is none (`mm_account_pinned_pages`).
pub fn memlock() -> Option<u64> {
    getrlimit(Resource::Memlock).current.filter(|_| !lifted())
}

/// Bytes that one zerocopy call may ask for; 0 if the limit allows none.
///
/// The kernel charges a call `(len >> PAGE_SHIFT) + 2` pages (`mm_account_pinned_pages`, and
/// `io_notif_account_mem` likewise).
pub fn call() -> usize {
    let page = rustix::param::page_size();
    memlock().map_or(usize::MAX, |limit| {
        let pages = usize::try_from(limit).unwrap_or(usize::MAX) / page;
        pages.saturating_sub(2).saturating_mul(page)
    })
}

/// Returns whether `CAP_IPC_LOCK` lifts the limit. The kernel asks for it in the first user
/// namespace: the root of a container that has a namespace of its own has it in vain.
pub fn lifted() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
        && in_first_user_namespace()
}

fn in_first_user_namespace() -> bool {
    // Its inode number is part of the kernel's interface (`USER_NS_INIT_INO`, linux/nsfs.h).
    std::fs::read_link("/proc/self/ns/user")
        .is_ok_and(|name| name.as_os_str() == "user:[4026531837]")
}
