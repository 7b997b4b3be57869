//! A thread that is stopped before some of its system calls (seccomp's notifications, Linux 5.5).
#![expect(unsafe_code, reason = "seccomp(2) and its ioctls")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Pid;

const RECEIVE: libc::Ioctl = libc::SECCOMP_IOCTL_NOTIF_RECV;
const RESPOND: libc::Ioctl = libc::SECCOMP_IOCTL_NOTIF_SEND;

const _: () = assert!(size_of::<libc::seccomp_notif>() == 80);
const _: () = assert!(size_of::<libc::seccomp_notif_resp>() == 24);

/// Runs `body` on a thread of its own, which is stopped before each of these system calls until
/// `at` has returned. `None`, and a skip, where the kernel offers no such thing.
pub fn run<T: Send>(
    calls: &[libc::c_long],
    body: impl FnOnce() -> T + Send,
    mut at: impl FnMut(libc::c_long),
) -> Option<T> {
    let (tell, told) = mpsc::channel();
    std::thread::scope(|threads| {
        let stopped = threads.spawn(move || {
            let listener = listen(calls);
            let begun = listener.is_ok();
            tell.send(listener).unwrap();
            begun.then(body)
        });
        match told.recv().unwrap() {
            Ok(listener) => serve(&listener, &mut at),
            Err(why) => println!("SKIP: seccomp tells nobody of system calls here: {why}"),
        }
        stopped.join().unwrap()
    })
}

/// Lets the kernel tell of this thread's calls, and of those of its children.
fn listen(calls: &[libc::c_long]) -> std::io::Result<OwnedFd> {
    let instruction = |code: u32, jt: usize, k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: u8::try_from(jt).unwrap(),
        jf: 0,
        k,
    };
    let is = |(i, call): (usize, &libc::c_long)| {
        let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        instruction(code, calls.len() - i, u32::try_from(*call).unwrap())
    };
    let answer = |what| instruction(libc::BPF_RET | libc::BPF_K, 0, what);
    // The number of the call is at 0.
    let mut program = vec![instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
    program.extend(calls.iter().enumerate().map(is));
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program.push(answer(libc::SECCOMP_RET_USER_NOTIF));
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_mut_ptr(),
    };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program lives until the call has returned.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
    };
    match RawFd::try_from(listener) {
        // SAFETY: it is new, and nobody else's.
        Ok(listener) if listener >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(listener) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Calls `at` for each call that is stopped, until the thread has gone.
fn serve(listener: &OwnedFd, at: &mut impl FnMut(libc::c_long)) {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        if !fds[0].revents().contains(PollFlags::IN) {
            return;
        }
        // SAFETY: all zeroes is one of its values, and the one that the kernel wants.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes no more than one of these.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut call) } != 0 {
            // A signal has ended the call.
            continue;
        }
        at(call.data.nr.into());
        let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE.try_into().unwrap();
        let mut goes_on = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
        // SAFETY: the kernel reads no more than one of these.
        unsafe { libc::ioctl(listener.as_raw_fd(), RESPOND, &raw mut goes_on) };
    }
}

/// Waits until a thread waits for a lock, or is done with what it was to do.
pub fn until_it_waits_for_a_lock(thread: Pid, is_done: impl Fn() -> bool) {
    // The call, the address, and what is done there: not to wake somebody.
    let waits = |call: &str| {
        let mut words = call.split(' ');
        let call = words.next() == Some(&libc::SYS_futex.to_string());
        call && matches!(words.nth(1), Some("0x80" | "0x89"))
    };
    while !is_done() {
        let path = format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero());
        // It is gone, or there is nothing to read it from.
        if std::fs::read_to_string(path).map_or(true, |call| waits(&call)) {
            return;
        }
        std::thread::yield_now();
    }
}
