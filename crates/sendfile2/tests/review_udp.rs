//! Datagrams that use a notification id without being a send of ours.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{Flagged, deadline, pattern};
use sendfile2::{Engine, Error, Options, Parcel, Refusal, Sender};

fn udp() -> (UdpSocket, UdpSocket) {
    let rx = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tx = UdpSocket::bind("127.0.0.1:0").unwrap();
    tx.connect(rx.local_addr().unwrap()).unwrap();
    rx.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (tx, rx)
}

fn zerocopy(tx: UdpSocket) -> Sender {
    Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap()
}

/// Runs the test in a network namespace; `true` for who is inside.
fn inside(name: &str) -> bool {
    if common::role().is_none() {
        let script =
            "ip link set lo up && tc qdisc add dev lo root tbf rate 1mbit burst 64k limit 64m";
        if common::can(
            "no namespace with a tbf queue",
            &[&common::UNSHARE[..], &["sh", "-c", script]].concat(),
        ) {
            common::run_as(&common::UNSHARE, name, "inside");
        }
        return false;
    }
    common::sh("ip link set lo up");
    true
}

/// Two datagrams of which the second one waits in the queue for half a second.
fn the_second_of_two_is_held(sender: &mut Sender) {
    common::sh("tc qdisc add dev lo root tbf rate 1mbit burst 64k limit 64m");
    let mut first = Parcel::new(pattern(1, 0..60_000));
    match sender.try_send_buffer(&mut first, false) {
        Ok(_) => {}
        Err(Error::Refused { reason: Refusal::IdsUnsure, .. }) => {
            // As safe.
            sender.reap().unwrap();
            return;
        }
        Err(e) => panic!("{e}"),
    }
    let (buffer, dropped) = Flagged::new(pattern(2, 0..60_000));
    let mut second = Parcel::new(buffer);
    sender.try_send_buffer(&mut second, false).unwrap();
    drop(second);
    let began = Instant::now();
    while !dropped.load(SeqCst) && began.elapsed() < Duration::from_secs(5) {
        sender.reap().unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    let after = began.elapsed();
    assert!(after > Duration::from_millis(200), "let go of while in the queue: {after:?}");
    assert!(dropped.load(SeqCst), "never let go of");
}

#[test]
fn control() {
    if !inside("control") {
        return;
    }
    let (tx, _rx) = udp();
    the_second_of_two_is_held(&mut zerocopy(tx));
}

/// The kernel gives a datagram without a payload an id, too: its header is counted.
#[test]
fn an_empty_datagram_does_not_shift_the_ids() {
    if !inside("an_empty_datagram_does_not_shift_the_ids") {
        return;
    }
    let (tx, _rx) = udp();
    let mut sender = zerocopy(tx);
    let mut empty = Parcel::new(Vec::new());
    sender.try_send_buffer(&mut empty, false).unwrap();
    the_second_of_two_is_held(&mut sender);
}

#[test]
fn a_parcel_that_is_all_sent_sends_no_empty_datagram() {
    let (tx, rx) = udp();
    let mut sender = zerocopy(tx);
    let mut parcel = Parcel::new(vec![1; 10]);
    for _ in 0..2 {
        sender.send_buffer(&mut parcel, false, deadline()).unwrap();
    }
    sender.wait_all(deadline()).unwrap();
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
    if !inside("a_datagram_of_too_many_segments_does_not_shift_the_ids") {
        return;
    }
    let (tx, _rx) = udp();
    segment(&tx, 100);
    let mut sender = zerocopy(tx);
    let mut parcel = Parcel::new(vec![0; 60_000]);
    sender.try_send_buffer(&mut parcel, false).unwrap_err();
    nix::sys::socket::setsockopt(&sender.as_fd(), nix::sys::socket::sockopt::UdpGsoSegment, &0)
        .unwrap();
    the_second_of_two_is_held(&mut sender);
}

/// A segment larger than the path: EMSGSIZE or EINVAL, after the datagram was built.
#[test]
fn a_segment_too_large_does_not_shift_the_ids() {
    if !inside("a_segment_too_large_does_not_shift_the_ids") {
        return;
    }
    common::sh("ip link set lo mtu 1500");
    let (tx, _rx) = udp();
    segment(&tx, 2000);
    let mut sender = zerocopy(tx);
    let mut parcel = Parcel::new(vec![0; 60_000]);
    sender.try_send_buffer(&mut parcel, false).unwrap_err();
    common::sh("ip link set lo mtu 65536");
    nix::sys::socket::setsockopt(&sender.as_fd(), nix::sys::socket::sockopt::UdpGsoSegment, &0)
        .unwrap();
    the_second_of_two_is_held(&mut sender);
}

/// ENOBUFS of the limits, which uses no id: the retry must not count one.
#[test]
fn a_datagram_that_met_a_limit_is_released_all_the_same() {
    if !inside("a_datagram_that_met_a_limit_is_released_all_the_same") {
        return;
    }
    // Five notifications that nobody has read are as many as it takes.
    common::sh("sysctl -qw net.core.optmem_max=4096");
    let (tx, _rx) = udp();
    let mut sender = zerocopy(tx);
    let mut n = 0;
    loop {
        let mut parcel = Parcel::new(vec![0; 500]);
        match sender.try_send_buffer(&mut parcel, false) {
            Ok(sendfile2::Sent::Accepted { .. }) => n += 1,
            other => {
                println!("{n}: {other:?}");
                break;
            }
        }
        if n == 50 {
            break;
        }
    }
    println!("{n} {:?}", sender.in_flight());
    sender.wait_all(Instant::now() + Duration::from_secs(3)).unwrap();
}

/// As above, behind a queue that keeps them in flight; `IP_RECVERR` makes a full one tell.
#[test]
fn datagrams_that_a_full_queue_drops() {
    if !inside("datagrams_that_a_full_queue_drops") {
        return;
    }
    for recverr in [false, true] {
        common::sh("tc qdisc replace dev lo root tbf rate 8mbit burst 64k limit 100k");
        let (tx, _rx) = udp();
        nix::sys::socket::setsockopt(&tx, nix::sys::socket::sockopt::Ipv4RecvErr, &recverr)
            .unwrap();
        let mut sender = zerocopy(tx);
        let mut n = 0;
        let mut flags = Vec::new();
        for _ in 0..8 {
            let (buffer, dropped) = Flagged::new(vec![0; 40_000]);
            let mut parcel = Parcel::new(buffer);
            match sender.try_send_buffer(&mut parcel, false) {
                Ok(sendfile2::Sent::Accepted { .. }) => n += 1,
                other => println!("recverr {recverr}: {n}: {other:?}"),
            }
            flags.push(dropped);
        }
        sender.wait_all(Instant::now() + Duration::from_secs(3)).unwrap();
        // Three more may have used an id or not: nobody may go by it.
        let next = sender.into_socket(deadline());
        assert_eq!(next.is_err(), recverr, "{n}: {next:?}");
    }
}

/// The limit is met with everything in flight in a queue.
#[test]
fn a_limit_met_by_datagrams_in_flight() {
    if !inside("a_limit_met_by_datagrams_in_flight") {
        return;
    }
    common::sh("tc qdisc replace dev lo root tbf rate 8mbit burst 64k limit 64m");
    let (tx, _rx) = udp();
    nix::sys::socket::setsockopt(&tx, nix::sys::socket::sockopt::SndBuf, &(8 << 20)).unwrap();
    let mut sender = zerocopy(tx);
    let mut n = 0;
    for _ in 0..3000 {
        let mut parcel = Parcel::new(vec![0; 1400]);
        match sender.try_send_buffer(&mut parcel, false) {
            Ok(sendfile2::Sent::Accepted { .. }) => n += 1,
            other => {
                println!("{n}: {other:?}");
                if other.is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    sender.wait_all(Instant::now() + Duration::from_secs(10)).unwrap();
    // The kernel counted n; what is handed on must not be another number.
    if let Ok((_, next)) = sender.into_socket(deadline()) {
        assert_eq!(next, n);
    }
}
