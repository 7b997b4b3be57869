//! Datagrams that use a notification id without being a send of ours.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::UdpSocket;
use std::os::fd::AsFd;

use common::{deadline, pattern, udp};
use sendfile2::{Engine, Error, Options, Refusal, SendBuffer, Sender};

fn zerocopy(tx: UdpSocket) -> Sender {
    Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap()
}

/// If the kernel has used an id more than the ledger knows of, each send is let go of when the one
/// before it is released, and in the end there is a notification for an id that was never issued.
fn the_ids_add_up(sender: &mut Sender, rx: &UdpSocket) {
    let mut got = [0; 65536];
    for _ in 0..2 {
        let mut buffer = SendBuffer::new(pattern(1, 0..1000));
        match sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE) {
            Ok(_) => assert_eq!(rx.recv(&mut got).unwrap(), 1000),
            // As safe: no more ids are used.
            Err(Error::Refused { reason: Refusal::IdsUnsure, .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    sender.drain(deadline()).unwrap();
    // What was sent before a datagram that has arrived is released, and notified.
    sender.send(b"last", sendfile2::SendFlags::NONE, deadline()).unwrap();
    while rx.recv(&mut got).unwrap() != 4 {}
    sender.reap().unwrap();
}

/// The control: an id that nobody told of is found.
#[test]
fn control_an_id_too_many_is_found() {
    let (tx, rx) = udp();
    let mut sender = zerocopy(tx);
    const MSG_ZEROCOPY: u32 = 0x400_0000;
    let flags = rustix::net::SendFlags::from_bits_retain(MSG_ZEROCOPY);
    rustix::net::send(&sender, b"!", flags).unwrap();
    rx.recv(&mut [0; 10]).unwrap();
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        the_ids_add_up(&mut sender, &rx);
    }));
    assert!(found.is_err(), "an id too many looks right here");
}

/// The kernel gives a datagram without a payload an id, too: its header is counted.
#[test]
fn an_empty_datagram_does_not_shift_the_ids() {
    let (tx, rx) = udp();
    let mut sender = zerocopy(tx);
    let mut empty = SendBuffer::new(Vec::new());
    sender.try_send_buffer(&mut empty, sendfile2::SendFlags::NONE).unwrap();
    assert_eq!(rx.recv(&mut [0; 10]).unwrap(), 0);
    the_ids_add_up(&mut sender, &rx);
}

#[test]
fn a_buffer_that_is_all_sent_sends_no_empty_datagram() {
    let (tx, rx) = udp();
    let mut sender = zerocopy(tx);
    let mut buffer = SendBuffer::new(vec![1; 10]);
    for _ in 0..2 {
        sender.send_buffer(&mut buffer, sendfile2::SendFlags::NONE, deadline()).unwrap();
    }
    sender.drain(deadline()).unwrap();
    rx.set_nonblocking(true).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(rx.recv(&mut buffer).unwrap(), 10);
    assert!(rx.recv(&mut buffer).is_err(), "an empty datagram");
}

fn segment(tx: &UdpSocket, size: i32) {
    nix::sys::socket::setsockopt(tx, nix::sys::socket::sockopt::UdpGsoSegment, &size).unwrap();
}

/// More segments than the kernel allows: EINVAL, after the datagram was built.
#[test]
fn a_datagram_of_too_many_segments_does_not_shift_the_ids() {
    let (tx, rx) = udp();
    segment(&tx, 100);
    let mut sender = zerocopy(tx);
    let mut buffer = SendBuffer::new(vec![0; 60_000]);
    sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE).unwrap_err();
    nix::sys::socket::setsockopt(&sender.as_fd(), nix::sys::socket::sockopt::UdpGsoSegment, &0)
        .unwrap();
    the_ids_add_up(&mut sender, &rx);
}

/// A segment larger than the path: EMSGSIZE or EINVAL, after the datagram was built.
#[test]
fn a_segment_too_large_does_not_shift_the_ids() {
    if !common::inside("a_segment_too_large_does_not_shift_the_ids", "true") {
        return;
    }
    common::sh("ip link set lo mtu 1500");
    let (tx, rx) = udp();
    segment(&tx, 2000);
    let mut sender = zerocopy(tx);
    let mut buffer = SendBuffer::new(vec![0; 60_000]);
    sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE).unwrap_err();
    common::sh("ip link set lo mtu 65536");
    nix::sys::socket::setsockopt(&sender.as_fd(), nix::sys::socket::sockopt::UdpGsoSegment, &0)
        .unwrap();
    the_ids_add_up(&mut sender, &rx);
}

/// ENOBUFS of the limits, which uses no id: the retry must not count one.
#[test]
fn a_datagram_that_met_a_limit_is_released_all_the_same() {
    let name = "a_datagram_that_met_a_limit_is_released_all_the_same";
    // Five notifications that nobody has read are as many as it takes.
    let few = "sysctl -qw net.core.optmem_max=4096";
    if !common::inside(name, few) {
        return;
    }
    common::sh(few);
    let (tx, _rx) = udp();
    let mut sender = zerocopy(tx);
    for _ in 0..50 {
        let mut buffer = SendBuffer::new(vec![0; 500]);
        let sent = sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE);
        if !matches!(sent, Ok(sendfile2::Sent::Accepted { .. })) {
            break;
        }
    }
    sender.drain(deadline()).unwrap();
}

/// As above, behind a queue that keeps them in flight; `IP_RECVERR` makes a full one tell.
#[test]
fn datagrams_that_a_full_queue_drops() {
    if !common::inside("datagrams_that_a_full_queue_drops", common::SLOW) {
        return;
    }
    for recverr in [false, true] {
        common::sh("tc qdisc replace dev lo root tbf rate 8mbit burst 64k limit 100k");
        let (tx, _rx) = udp();
        nix::sys::socket::setsockopt(&tx, nix::sys::socket::sockopt::Ipv4RecvErr, &recverr)
            .unwrap();
        let mut sender = zerocopy(tx);
        for _ in 0..8 {
            // Some are dropped, and only who asked for it is told.
            let _ = sender
                .try_send_buffer(&mut SendBuffer::new(vec![0; 40_000]), sendfile2::SendFlags::NONE);
        }
        sender.drain(deadline()).unwrap();
        // Those may have used an id or not: nobody may go by it.
        let next = sender.into_socket(deadline());
        assert_eq!(next.is_err(), recverr, "{next:?}");
    }
}

/// The limit is met with everything in flight in a queue.
#[test]
fn a_limit_met_by_datagrams_in_flight() {
    if !common::inside("a_limit_met_by_datagrams_in_flight", common::SLOW) {
        return;
    }
    common::sh(common::SLOW);
    let (tx, _rx) = udp();
    nix::sys::socket::setsockopt(&tx, nix::sys::socket::sockopt::SndBuf, &(8 << 20)).unwrap();
    let mut sender = zerocopy(tx);
    let mut n = 0;
    for _ in 0..3000 {
        let mut buffer = SendBuffer::new(vec![0; 1400]);
        match sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE) {
            Ok(sendfile2::Sent::Accepted { .. }) => n += 1,
            Ok(_) => sender.drain(deadline()).unwrap(),
            Err(_) => break,
        }
    }
    sender.drain(deadline()).unwrap();
    // The kernel counted n; what is handed on must not be another number.
    if let Ok(sendfile2::ReturnedSocket { next_id: next, .. }) = sender.into_socket(deadline()) {
        assert_eq!(next, n);
    }
}
