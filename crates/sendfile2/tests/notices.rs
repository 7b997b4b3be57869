//! What is on the error queue for others reaches them; ids that others use are told apart.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use common::{assert_same, deadline, file, pattern, read, sender, source};
use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::SendFlags;
use sendfile2::{Acknowledgement, Engine, Error, ErrorQueueMessage, Options, Sender};

fn collecting() -> (Arc<Mutex<Vec<ErrorQueueMessage>>>, Options) {
    let notices: Arc<Mutex<Vec<ErrorQueueMessage>>> = Arc::default();
    let options = Options::new().engine(Engine::Zerocopy).on_error_queue({
        let notices = Arc::clone(&notices);
        move |notice| notices.lock().unwrap().push(notice)
    });
    (notices, options)
}

#[test]
fn an_icmp_error_reaches_the_hook_whole() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tx = UdpSocket::bind("127.0.0.1:0").unwrap();
    tx.connect(closed.local_addr().unwrap()).unwrap();
    drop(closed);
    setsockopt(&tx, sockopt::Ipv4RecvErr, &true).unwrap();
    let (notices, options) = collecting();
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 5000);
    let sent =
        sender.send_file(&source(&file), 0..1000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    sent.ticket.wait_released(deadline()).unwrap();
    sender.reap().unwrap();
    let notices = notices.lock().unwrap();
    let [ErrorQueueMessage::Foreign(foreign)] = &notices[..] else { panic!("{notices:?}") };
    let error = foreign.error.unwrap();
    // SO_EE_ORIGIN_ICMP, destination unreachable, port unreachable.
    assert_eq!((error.origin, error.kind, error.code), (2, 3, 3));
    let refused = rustix::io::Errno::CONNREFUSED.raw_os_error();
    assert_eq!(error.errno, u32::try_from(refused).unwrap());
    assert_same(&foreign.payload, &pattern(1, 0..foreign.payload.len() as u64));
}

/// One byte by `MSG_ZEROCOPY`, as the application would.
fn own_send(socket: std::os::fd::BorrowedFd<'_>) -> ((), u32) {
    const MSG_ZEROCOPY: u32 = 0x400_0000;
    let flags = SendFlags::DONTWAIT | SendFlags::from_bits_retain(MSG_ZEROCOPY);
    assert_eq!(rustix::net::send(socket, b"!", flags).unwrap(), 1);
    ((), 1)
}

#[test]
fn the_applications_own_ids_are_split_off_and_handed_to_it() {
    let (tx, mut rx) = common::tcp();
    let (notices, options) = collecting();
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 5000);
    let source = source(&file);
    let mut expected = Vec::new();
    for _ in 0..100 {
        sender.send_file(&source, 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
        sender.application_sends(own_send).unwrap();
        expected.extend(pattern(1, 0..5000));
        expected.push(b'!');
    }
    assert_same(&read(&mut rx, expected.len()), &expected);
    sender.drain(deadline()).unwrap();
    sender.reap().unwrap();
    assert_eq!(sender.counters().released, 100);
    let mut theirs = Vec::new();
    for notice in notices.lock().unwrap().iter() {
        let ErrorQueueMessage::Application { lo, hi, .. } = *notice else { panic!("{notice:?}") };
        theirs.extend(lo..=hi);
    }
    assert_eq!(theirs, (0..100).map(|i| 2 * i + 1).collect::<Vec<u32>>());
}

/// What tells of the sends of a connection that was reset tells of the application's, too.
#[test]
fn the_applications_own_ids_are_told_of_after_a_reset() {
    let (tx, rx) = common::tcp_small_window();
    setsockopt(&tx, sockopt::SndBuf, &(2 << 20)).unwrap();
    let (notices, options) = collecting();
    let mut sender = Sender::with(tx, options).unwrap();
    let file = file(1, 1 << 20);
    let source = source(&file);
    sender.send_file(&source, 0..300_000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    sender.application_sends(own_send).unwrap();
    sender.send_file(&source, 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert!(sender.in_flight().sends > 0);
    // With bytes that were not read, that resets.
    drop(rx);
    sender.drain(deadline()).unwrap();
    sender.reap().unwrap();
    let notices = notices.lock().unwrap();
    let theirs: Vec<_> = notices
        .iter()
        .map(|notice| match *notice {
            ErrorQueueMessage::Application { lo, hi, .. } => lo..=hi,
            _ => panic!("{notice:?}"),
        })
        .collect();
    let own = sender.counters().released as u32;
    assert_eq!(theirs, [own - 1..=own - 1]);
}

#[test]
fn ids_that_nobody_told_of_are_an_error_and_release_nothing() {
    // There a notification is not late.
    let (tx, mut rx) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Zerocopy);
    // Behind the sender's back.
    own_send(std::os::fd::AsFd::as_fd(&sender));
    read(&mut rx, 1);
    let error = sender.drain(deadline()).and_then(|()| sender.reap().map(|_| ())).unwrap_err();
    assert!(matches!(error, Error::NotIssued(_)), "{error}");
    let file = file(1, 5000);
    let error =
        sender.try_send_file(&source(&file), 0..5000, sendfile2::SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::NotIssued(_)), "{error}");
}

#[test]
fn a_socket_with_a_history_needs_its_next_id() {
    let (tx, mut rx) = common::tcp();
    let file = file(1, 5000);
    let source = source(&file);
    let mut first = sender(tx, Engine::Zerocopy);
    for _ in 0..3 {
        first.send_file(&source, 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    }
    read(&mut rx, 15_000);
    let sendfile2::ReturnedSocket { socket, next_id: next, .. } =
        first.into_socket(deadline()).unwrap();
    assert_eq!(next, 3);
    let other = socket.try_clone().unwrap();
    let error = Sender::new(socket).unwrap_err();
    assert!(matches!(error, Error::NextIdUnknown), "{error}");
    let options = Options::new().engine(Engine::Zerocopy).next_id(next);
    let mut second = Sender::with(other, options).unwrap();
    let sent = second.send_file(&source, 0..5000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, 5000), &pattern(1, 0..5000));
    sent.ticket.wait_released(deadline()).unwrap();
}

#[test]
fn a_socket_has_one_sender() {
    let (tx, _rx) = common::tcp();
    let duplicate = OwnedFd::from(tx.try_clone().unwrap());
    let again = duplicate.try_clone().unwrap();
    let first = Sender::new(tx).unwrap();
    let error = Sender::new(duplicate).unwrap_err();
    assert!(matches!(error, Error::AlreadyOwned { .. }), "{error}");
    first.close(deadline()).unwrap();
    let error = Sender::new(again).unwrap_err();
    assert!(matches!(error, Error::NextIdUnknown), "{error}");
}

/// What the error queue of `socket` reports now, or as soon as it reports something.
fn reports(socket: &Sender, wait: bool) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut watched = [PollFd::new(socket, PollFlags::empty())];
    let now = Timespec { tv_sec: if wait { 30 } else { 0 }, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).unwrap();
    watched[0].revents().contains(PollFlags::ERR)
}

#[test]
fn who_waits_for_an_acknowledgement_is_told_by_the_kernel_and_the_hook_is_not() {
    for engine in common::engines() {
        let (tx, _rx) = common::tcp();
        let (notices, options) = collecting();
        let mut sender = Sender::with(tx, options.engine(engine).acknowledgements(true)).unwrap();
        let file = file(1, 100_000);
        let sent = sender
            .send_file(&source(&file), 0..100_000, sendfile2::SendFlags::NONE, deadline())
            .unwrap();
        assert!(reports(&sender, true), "{engine}: nothing came");
        assert_eq!(
            sent.ticket.wait_acknowledged(deadline()).unwrap(),
            Acknowledgement::Acknowledged
        );
        // However many sends there are, what comes of them is read.
        for _ in 0..100 {
            sender.send(b"x", sendfile2::SendFlags::NONE, deadline()).unwrap();
        }
        let last = sender.send(b"x", sendfile2::SendFlags::NONE, deadline()).unwrap();
        assert_eq!(
            last.ticket.wait_acknowledged(deadline()).unwrap(),
            Acknowledgement::Acknowledged
        );
        assert_eq!(*notices.lock().unwrap(), [], "{engine}");
        // Given back, it stamps no more.
        let socket = sender.into_socket(deadline()).unwrap_or_else(|e| panic!("{e}")).socket;
        assert!(nix::sys::socket::getsockopt(&socket, sockopt::Timestamping).unwrap().is_empty());
    }
}

/// The control: unless asked for, nothing comes to the error queue of a socket that copies.
#[test]
fn control_without_being_asked_the_kernel_tells_nothing() {
    let (tx, _rx) = common::tcp();
    let mut sender = sender(tx, Engine::Copy);
    let sent = sender.send(b"x", sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.wait_acknowledged(deadline()).unwrap(), Acknowledgement::Acknowledged);
    assert!(!reports(&sender, false));
}

#[test]
fn timestamps_that_the_application_asked_for_reach_the_hook() {
    use nix::sys::socket::TimestampingFlag;
    // Not every driver stamps what it sends.
    let (tx, _rx) = common::tcp_on_this_host();
    let theirs = TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE
        | TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE;
    setsockopt(&tx, sockopt::Timestamping, &theirs).unwrap();
    let (notices, options) = collecting();
    let mut sender = Sender::with(tx, options.engine(Engine::Copy).acknowledgements(true)).unwrap();
    let sent = sender.send(b"x", sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.wait_acknowledged(deadline()).unwrap(), Acknowledgement::Acknowledged);
    assert!(reports(&sender, true) || !notices.lock().unwrap().is_empty());
    sender.reap().unwrap();
    let notices = notices.lock().unwrap();
    let [ErrorQueueMessage::Foreign(stamp)] = &notices[..] else { panic!("{notices:?}") };
    // SO_EE_ORIGIN_TIMESTAMPING, SCM_TSTAMP_SND.
    let error = stamp.error.unwrap();
    assert_eq!((error.origin, error.info), (4, 0));
}
