//! `SPLICE_F_ZC` by `io_uring`.
#![allow(unsafe_code, reason = "the queue of a ring takes entries that are right")]

use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use series_tests::{Ids, Via, file, piped, series, wrong};

const SPLICE_F_ZC: u32 = sendfile2_sys::syscall::SPLICE_F_ZC.bits();

/// Makes a ring, or prints the reason why there is none.
fn ring() -> Option<IoUring> {
    match IoUring::new(2) {
        Ok(ring) => Some(ring),
        Err(e) => {
            println!("SKIP: no io_uring: {e}");
            None
        }
    }
}

fn result(ring: &mut IoUring, entry: &squeue::Entry) -> i32 {
    // SAFETY: splice and tee have no memory, and their descriptors stay open until they end, which
    // is waited for.
    unsafe { ring.submission().push(entry) }.expect("room");
    ring.submit_and_wait(1).expect("submit");
    ring.completion().next().expect("a completion").result()
}

#[test]
fn a_splice_is_notified_on_the_error_queue() {
    let (Some(_), Some(mut ring)) = (series(), ring()) else { return };
    let (sender, receiver) = Via::Loopback.connect(None);
    let pipe = piped(&file(7, 65_536), 65_536);
    for _ in 0..4 {
        let (from, to) = (types::Fd(pipe.as_raw_fd()), types::Fd(sender.as_raw_fd()));
        let entry = opcode::Splice::new(from, -1, to, -1, 16_384).flags(SPLICE_F_ZC).build();
        assert_eq!(result(&mut ring, &entry), 16_384);
    }
    assert_eq!(wrong(&receiver, 65_536, 7), 0);
    let mut ids = Ids::default();
    ids.wait(&sender, 4);
    ids.assert_each_once(4);
}

#[test]
fn tee_knows_no_such_flag() {
    let (Some(_), Some(mut ring)) = (series(), ring()) else { return };
    let pipe = piped(&file(7, 4096), 4096);
    let (_reader, writer) = rustix::pipe::pipe().expect("pipe");
    let (from, to) = (types::Fd(pipe.as_raw_fd()), types::Fd(writer.as_raw_fd()));
    let tee = |flags| opcode::Tee::new(from, to, 1).flags(flags).build();
    assert_eq!(result(&mut ring, &tee(0)), 1);
    assert_eq!(result(&mut ring, &tee(SPLICE_F_ZC)), -Errno::INVAL.raw_os_error());
}
