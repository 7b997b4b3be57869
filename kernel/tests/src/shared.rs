//! Notifications that calls share: which they must not, while a call that waits for room has sent
//! only a part.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;

use rustix::io::Errno;
use sendfile2_sys::module::{Device, flags};
use sendfile2_sys::socket::unacknowledged;
use sendfile2_sys::syscall::{SENDFILE_ZC, Sendfile2};

use crate::lab::{
    args, asleep, assert_ids, device, drain, file, pattern, read, send, stall, tcp_small, wait_ids,
    wait_until, wrong,
};
use crate::{Done, Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("nobody_joins_a_long_call_that_waits_for_room", Run::Plain(long_call)),
    ("nobody_joins_a_notification_without_an_id", Run::MaySkip(without_an_id)),
];

const SIZE: usize = 4 << 20;
const LITTLE: usize = 64;

/// The notification of a blocking call comes when all that it asks for is sent; that of a call
/// which found room meanwhile must not wait for it.
fn long_call() {
    let device = device();
    // The call that waits took its id first.
    overtaken(&device, 1, |tx, from| send(&device, tx, from, &mut args(SIZE, 0)));
}

/// A call of sendfile2(2), of a kernel with the patch series, has no id until its end.
fn without_an_id() -> Done {
    let call = match Sendfile2::find() {
        Ok(call) => call,
        Err(e) if std::env::var_os("SENDFILE2_SERIES").is_none() => {
            return Done::Skipped(format!("no kernel with the patch series: {e}"));
        }
        Err(e) => panic!("the patch series is not in this kernel: {e}"),
    };
    overtaken(&device(), 0, |tx, from| {
        call.send(tx.as_fd(), from.as_fd(), Some(&mut 0), SIZE, SENDFILE_ZC)
    });
    Done::Passed
}

/// Has `long` send the file, which waits for room, and a small call of the module's find some in
/// between: that has this id, which comes while the other still waits.
fn overtaken(
    device: &Device,
    id: u32,
    long: impl Fn(&TcpStream, &File) -> Result<usize, Errno> + Sync,
) {
    let (tx, rx) = tcp_small();
    let (from, other) = (file(70, SIZE), file(!70, LITTLE));
    let stalled = stall(&tx);
    let mut buffer = 64 << 10;
    rustix::net::sockopt::set_socket_send_buffer_size(&tx, buffer).expect("SO_SNDBUF");
    let unsent = sys::not_sent(&tx).expect("SIOCOUTQNSD");
    let received = std::thread::scope(|scope| {
        // If anything fails it is closed, and the call ends.
        let rx = rx;
        let (tell, told) = std::sync::mpsc::channel();
        let (long, tx, from) = (&long, &tx, &from);
        let waits = scope.spawn(move || {
            tell.send(rustix::thread::gettid()).expect("the main thread waits");
            long(tx, from)
        });
        let thread = told.recv().expect("its id");
        wait_until("it waits for room", || {
            sys::not_sent(tx).expect("SIOCOUTQNSD") > unsent && asleep(thread)
        });
        // So little room that who waits for it is not woken: that takes a third of the buffer.
        let mut little = args(LITTLE, flags::DONTWAIT);
        while send(device, tx, &other, &mut little) == Err(Errno::AGAIN) {
            buffer += 1 << 10;
            rustix::net::sockopt::set_socket_send_buffer_size(tx, buffer).expect("SO_SNDBUF");
        }
        assert_eq!(little.offset, LITTLE as i64, "it found room");

        let arrived = rustix::io::ioctl_fionread(&rx).expect("FIONREAD");
        let waiting = unacknowledged(tx).expect("SIOCOUTQ");
        let mut received = read(&rx, usize::try_from(arrived + waiting).expect("little"));
        let mut ids = Vec::new();
        wait_ids(tx, &mut ids, 1);
        assert_eq!(ids, [id], "the call that waits is told of before it ends");
        assert!(!waits.is_finished(), "it did not wait: the socket took everything");
        let rest = drain(rx);
        assert_eq!(waits.join().expect("the call"), Ok(SIZE));
        wait_ids(tx, &mut ids, 2);
        assert_ids(ids, 2);
        tx.shutdown(std::net::Shutdown::Write).expect("shutdown");
        received.extend(rest.join().expect("reader"));
        received
    });
    let (received, bytes) = (&received[stalled..], pattern(70, SIZE));
    let differs = received.iter().zip(&bytes).position(|(a, b)| a != b).expect("the small call");
    println!("after {differs} bytes, with a buffer of {buffer}");
    let expected = [&bytes[..differs], &pattern(!70, LITTLE), &bytes[differs..]].concat();
    assert_eq!(wrong(received, &expected), 0);
}
