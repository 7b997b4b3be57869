//! The guardian: keeps the listener open when the supervisor dies, until no call is left that the
//! supervisor had begun to answer.
//!
//! A listener that is closed answers every open call with ENOSYS. A program then sends the bytes again,
//! of which a part has left. So each process that has such a call open is killed first: its connections
//! end, and nobody takes what arrived for the whole.

use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use sendfile2_sys::daemon::{self, Forked, Slot};
use sendfile2_sys::seccomp;
use sendfile2_sys::thread::Thread;

/// The guardian's name and command line, as ps(1) and pkill(1) know it.
const NAME: &CStr = c"sf2-guardian";

/// Starts a guardian of this process, whose listener and open calls these are.
pub(super) fn start(
    listener: BorrowedFd<'_>,
    calls: &'static [Slot],
) -> rustix::io::Result<Forked> {
    let own = rustix::process::getpid();
    let supervisor = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty())?;
    let given =
        vec![listener.try_clone_to_owned().map_err(|_| rustix::io::Errno::MFILE)?, supervisor];
    daemon::fork(given, |given| {
        // Who kills the supervisor by the command's name does not kill its guardian with it.
        let _ = rustix::thread::set_name(NAME);
        let _ = hide_command_line();
        // The supervisor may have the program's standard error still; its input is /dev/null.
        if rustix::stdio::dup2_stderr(rustix::stdio::stdin()).is_err() {
            return 1;
        }
        let mut given = given.into_iter();
        if let (Some(listener), Some(supervisor)) = (given.next(), given.next()) {
            guard(&listener, &supervisor, calls);
        }
        0
    })
}

/// Writes this process's name over the command line that it has of the supervisor: `pkill -f` looks
/// there. (`proc_pid_stat(5)` has the place, as fields 48 and 49.)
fn hide_command_line() -> Option<()> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, field 2, in which anything may be.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(48 - 3);
    let start: u64 = fields.next()?.parse().ok()?;
    let end: u64 = fields.next()?.parse().ok()?;
    let mut line = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    // One that does not end with zero would be read on beyond its end.
    let length = NAME.count_bytes().min(line.len().checked_sub(1)?);
    line[..length].copy_from_slice(&NAME.to_bytes()[..length]);
    File::options().write(true).open("/proc/self/mem").ok()?.write_all_at(&line, start).ok()
}

fn guard(listener: &OwnedFd, supervisor: &OwnedFd, calls: &[Slot]) {
    loop {
        let mut both = [
            PollFd::new(supervisor, PollFlags::IN),
            // Only its end is of interest, which comes unasked.
            PollFd::new(listener, PollFlags::empty()),
        ];
        let _ = poll(&mut both, None);
        if both[1].revents().contains(PollFlags::HUP) {
            return; // No process is left.
        }
        if both[0].revents().contains(PollFlags::IN) {
            break;
        }
    }
    let begun: Vec<_> = calls.iter().filter_map(Slot::get).collect();
    for (id, thread) in begun {
        end(listener.as_fd(), id, thread);
    }
    // What follows gets ENOSYS, before anything was sent.
}

/// Kills the process that has a call open, and waits until the call is gone. Who may not be killed
/// waits for ever, and sends nothing twice.
fn end(listener: BorrowedFd<'_>, id: u64, thread: u64) {
    while seccomp::is_open(listener, id) {
        let thread = u32::try_from(thread).ok().and_then(|thread| Thread::open(thread).ok());
        // It is the call's thread, and no other one that has got its id, if the call is there still.
        if let Some(thread) = thread.filter(|_| seccomp::is_open(listener, id)) {
            let _ = thread.signal(Signal::KILL);
        }
        let _ = poll(&mut [], Some(&Timespec { tv_sec: 0, tv_nsec: 1_000_000 }));
    }
}
