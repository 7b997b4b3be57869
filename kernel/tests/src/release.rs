//! Overwriting: after the release nothing is seen of it; before, it is.

use std::net::Shutdown;
use std::os::fd::AsFd;

use crate::lab::{
    args, device, drain, file, fill, overwrite, pattern, read, send, tcp, tcp_small, wait_ids,
    wrong,
};
use crate::{Run, Test};

pub(crate) const TESTS: &[Test] = &[
    ("overwritten_after_the_release", Run::Plain(after)),
    ("overwritten_after_the_release_before_it_is_read", Run::Plain(before_it_is_read)),
    ("control_overwritten_before_the_release", Run::Plain(before)),
    ("control_overwritten_after_sendfile", Run::Plain(after_sendfile)),
];

const SIZE: usize = 4 << 20;

fn after() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(30, SIZE);
    let received = drain(rx);
    let mut ids = Vec::new();
    for round in 0..4 {
        overwrite(&from, 30 + round, SIZE);
        assert_eq!(send(&device, &tx, &from, &mut args(SIZE, 0)), Ok(SIZE));
        wait_ids(&tx, &mut ids, usize::from(round) + 1);
    }
    overwrite(&from, 99, SIZE);
    tx.shutdown(Shutdown::Write).expect("shutdown");
    let received = received.join().expect("reader");
    let expected: Vec<u8> = (0..4).flat_map(|round| pattern(30 + round, SIZE)).collect();
    assert_eq!(wrong(&received, &expected), 0);
}

const LITTLE: usize = 32 << 10;

/// A file that is overwritten after the release arrives unchanged, though the peer has not read it
/// yet.
fn before_it_is_read() {
    let (device, (tx, rx)) = (device(), tcp());
    let from = file(31, LITTLE);
    assert_eq!(send(&device, &tx, &from, &mut args(LITTLE, 0)), Ok(LITTLE));
    wait_ids(&tx, &mut Vec::new(), 1);
    overwrite(&from, !31, LITTLE);
    assert_eq!(wrong(&read(&rx, LITTLE), &pattern(31, LITTLE)), 0);
}

/// A file that is overwritten before the release arrives changed, on loopback too: the control.
fn before() {
    let (device, (tx, rx)) = (device(), tcp_small());
    let from = file(32, SIZE);
    let mut one = args(SIZE, sendfile2_sys::module::flags::DONTWAIT);
    let sent = send(&device, &tx, &from, &mut one).expect("some");
    let (_, more) = fill(&device, tx.as_fd(), &from);
    overwrite(&from, !32, SIZE);
    let received = read(&rx, sent + more);
    let wrong = wrong(&received[..sent], &pattern(32, sent));
    println!("{wrong} of {sent} bytes");
    assert!(wrong > 0, "overwriting too early is not seen here, so the other tests prove nothing");
}

fn after_sendfile() {
    let (tx, rx) = tcp();
    let from = file(33, LITTLE);
    assert_eq!(rustix::fs::sendfile(&tx, &from, Some(&mut 0), LITTLE), Ok(LITTLE));
    overwrite(&from, !33, LITTLE);
    let wrong = wrong(&read(&rx, LITTLE), &pattern(33, LITTLE));
    assert!(wrong > 0, "overwriting too early is not seen here, so the other tests prove nothing");
}
