//! A call that another process answers. A program of its own, as only one without threads can be forked.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use sendfile2_sys::daemon;
use sendfile2_sys::seccomp::{self, Answer};
use sendfile2_sys::thread::{Pending, Thread};

const COOKIE: u64 = 0x0123_4567_89ab_cdef;

/// The process whose calls are answered: tells the number of its listener, and what each call gave.
fn answered(mut socket: &UnixStream) -> u8 {
    let listener = match seccomp::listen(COOKIE) {
        Ok(listener) => listener,
        Err(errno) => {
            println!("SKIP: no listener: {errno}");
            return 0;
        }
    };
    let id = std::process::id();
    let number = listener.as_raw_fd().unsigned_abs();
    for value in [id, number] {
        socket.write_all(&value.to_ne_bytes()).expect("a reader");
    }
    let calls = || rustix::fs::sendfile(socket, socket, None, 5);
    assert_eq!(calls(), Ok(5));
    assert_eq!(calls(), Err(Errno::XDEV));
    assert_eq!(calls(), Err(Errno::INVAL), "the kernel's own: a socket is no file");
    // One of no bytes is not reported.
    assert_eq!(rustix::fs::sendfile(socket, socket, None, 0), Err(Errno::INVAL));
    0
}

/// Returns the state of a process: S if a signal would wake it, D if only its death would.
fn state(id: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).expect("a process");
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).expect("a state")
}

fn main() {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    let child = daemon::fork(vec![theirs.into()], |given| {
        let socket = given.into_iter().next().map(UnixStream::from).expect("one was given");
        answered(&socket)
    })
    .expect("one thread");
    let mut numbers = [0; 8];
    if ours.read_exact(&mut numbers).is_err() {
        assert!(child.succeeds());
        return;
    }
    let [id, number] =
        [0, 4].map(|at| u32::from_ne_bytes(numbers[at..at + 4].try_into().expect("four")));
    let thread = Thread::open(id).expect("it is there");
    let number = i32::try_from(number).expect("a descriptor");
    let listener = thread.duplicate(number).expect("it may be looked into");
    let next = || {
        let mut ready = [PollFd::new(&listener, PollFlags::IN)];
        assert_eq!(poll(&mut ready, None), Ok(1));
        seccomp::receive(listener.as_fd()).expect("a listener").expect("no signal comes")
    };
    for (i, answer) in
        [Answer::Sent(5), Answer::Failed(Errno::XDEV), Answer::Continued].into_iter().enumerate()
    {
        let call = next();
        assert_eq!((call.thread, call.arguments[3]), (id, 5));
        assert!(seccomp::is_open(listener.as_fd(), call.id));
        assert_eq!(thread.pending(), Pending::No);
        if i == 0 {
            // The control: a signal that comes now is seen only when the thread looks.
            assert_eq!(state(id), 'S');
            assert!(seccomp::settle(listener.as_fd(), call.id));
            while state(id) != 'D' {
                std::thread::yield_now();
            }
        }
        seccomp::answer(listener.as_fd(), call.id, answer).expect("it waits");
    }
    assert!(child.succeeds());
    assert!(!seccomp::settle(listener.as_fd(), 1), "there is no such call");
    println!("test result: ok");
}
