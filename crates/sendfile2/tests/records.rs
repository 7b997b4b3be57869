//! On sockets with record boundaries a range is one record.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::os::unix::net::UnixDatagram;

use common::{assert_same, deadline, file, pattern, source, udp};
use sendfile2::uring::Driver;
use sendfile2::{
    Acknowledgement, Engine, Error, Options, Refusal, SendBuffer, SendFlags, Sender, Sent,
};

#[test]
fn udp_ranges_stay_datagrams() {
    for engine in common::ENGINES {
        let (tx, rx) = udp();
        let mut sender = Sender::with(tx, Options::new().engine(engine)).unwrap();
        let file = file(1, 200_000);
        let source = source(&file);
        let mut buffer = [0; 65536];
        for range in [0..1, 4095..4097, 100..1500, 0..65507, 130_000..195_507] {
            let sent =
                sender.send_file(&source, range.clone(), SendFlags::NONE, deadline()).unwrap();
            let n = rx.recv(&mut buffer).unwrap();
            assert_same(&buffer[..n], &pattern(1, range));
            sent.ticket.wait_released(deadline()).unwrap();
        }
        assert_eq!(sender.in_flight().sends, 0);
    }
}

#[test]
fn a_datagram_too_large_is_an_error_and_not_split() {
    for engine in [Engine::Copy, Engine::Zerocopy] {
        let (tx, rx) = udp();
        let mut sender = Sender::with(tx, Options::new().engine(engine)).unwrap();
        let file = file(1, 200_000);
        let error = sender.try_send_file(&source(&file), 0..65508, SendFlags::NONE).unwrap_err();
        let errno = error.io_error().and_then(std::io::Error::raw_os_error);
        assert_eq!(errno, Some(rustix::io::Errno::MSGSIZE.raw_os_error()), "{error}");
        // Nothing arrived, and the next one is right.
        sender.send_file(&source(&file), 7..9, SendFlags::NONE, deadline()).unwrap();
        let mut buffer = [0; 100];
        let n = rx.recv(&mut buffer).unwrap();
        assert_same(&buffer[..n], &pattern(1, 7..9));
        sender.close(deadline()).unwrap();
    }
}

#[test]
fn a_record_past_the_end_of_the_file_is_not_sent_short() {
    let (tx, rx) = udp();
    let mut sender = Sender::new(tx).unwrap();
    let file = file(1, 1000);
    let error = sender.try_send_file(&source(&file), 500..1500, SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::Truncated { at: 1000, .. }), "{error}");
    rx.set_nonblocking(true).unwrap();
    assert!(rx.recv(&mut [0; 10]).is_err(), "a datagram was sent");
}

#[test]
fn unix_datagrams_keep_their_boundaries() {
    let (tx, rx) = UnixDatagram::pair().unwrap();
    let mut sender = Sender::new(tx).unwrap();
    let file = file(1, 100_000);
    sender.send_file(&source(&file), 0..60_000, SendFlags::NONE, deadline()).unwrap();
    sender.send_file(&source(&file), 60_000..60_010, SendFlags::NONE, deadline()).unwrap();
    let mut buffer = [0; 100_000];
    assert_eq!(rx.recv(&mut buffer).unwrap(), 60_000);
    assert_eq!(rx.recv(&mut buffer).unwrap(), 10);
    assert_same(&buffer[..10], &pattern(1, 60_000..60_010));
}

#[test]
fn a_buffer_goes_as_one_datagram_and_comes_back() {
    let (tx, rx) = udp();
    let mut sender = Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap();
    let mut buffer = SendBuffer::new(pattern(4, 0..9000));
    assert!(matches!(
        sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap(),
        Sent::Accepted { bytes: 9000, .. }
    ));
    let mut got = [0; 10_000];
    let n = rx.recv(&mut got).unwrap();
    assert_same(&got[..n], &pattern(4, 0..9000));
    buffer.ticket().wait_released(deadline()).unwrap();
    assert_eq!(buffer.into_buffer().unwrap().len(), 9000);
}

#[test]
fn a_raw_socket_is_not_one_of_its_packets_protocol() {
    use rustix::net::{AddressFamily, RecvFlags, SocketType, ipproto, recv};
    if !common::inside("a_raw_socket_is_not_one_of_its_packets_protocol", "true") {
        return;
    }
    let to = std::net::SocketAddr::from(([127, 0, 0, 1], 9));
    let file = file(7, 10_000);
    for (protocol, number) in [(ipproto::TCP, 6), (ipproto::UDP, 17)] {
        let raw = || {
            let kind = SocketType::RAW;
            let socket = rustix::net::socket(AddressFamily::INET, kind, Some(protocol)).unwrap();
            rustix::net::connect(&socket, &to).unwrap();
            socket
        };
        let mut sender = Sender::with(raw(), Options::new().engine(Engine::Zerocopy)).unwrap();
        let error = sender.try_send_file(&source(&file), 0..100, SendFlags::NONE).unwrap_err();
        let Error::Refused { reason: Refusal::Socket(_), .. } = error else { panic!("{error}") };
        match Driver::new() {
            Ok(driver) => {
                let error = driver.add(raw()).unwrap_err();
                assert!(matches!(error, Error::Refused { .. }), "{error}");
            }
            Err(e) => println!("SKIP: {e}"),
        }
        // What is sent is a packet's contents, as it is.
        let receiver = raw();
        let mut sender = Sender::with(raw(), Options::new().engine(Engine::Copy)).unwrap();
        let sent = sender.send_file(&source(&file), 0..100, SendFlags::NONE, deadline()).unwrap();
        assert_eq!(sent.ticket.acknowledgement().unwrap(), Acknowledgement::Unknowable);
        let mut packet = [0; 1000];
        let (got, _) = recv(&receiver, &mut packet[..], RecvFlags::empty()).unwrap();
        assert_eq!(packet[9], number, "the protocol");
        assert_same(&packet[20..got], &pattern(7, 0..100));
    }
}
