//! Every engine, on every kind of socket, sends exactly the bytes of the range.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::{assert_same, deadline, file, pattern, read, sender, source};
use sendfile2::{Engine, Error, Options, Reason, Refusal, SendFlags, Sender, Sent};

/// Ranges that begin and end around the edges of pages, of chunks and of the file.
fn ranges(len: u64) -> Vec<std::ops::Range<u64>> {
    let edges = [0, 1, 4095, 4096, 4097, 65535, 65536, (1 << 20) - 1, (1 << 20) + 1, len - 1, len];
    let mut ranges = Vec::new();
    for (i, start) in edges.iter().enumerate() {
        for end in &edges[i..] {
            ranges.push(*start..*end);
        }
    }
    ranges
}

fn all_ranges_arrive(mut sender: Sender, mut receiver: impl Read + Send + 'static) {
    let len = (3 << 20) + 123;
    let file = file(1, len);
    let source = source(&file);
    let expected: u64 = ranges(len).iter().map(|r| r.end - r.start).sum();
    let reader = std::thread::spawn(move || {
        let got = read(&mut receiver, usize::try_from(expected).unwrap());
        (got, receiver.read(&mut [0]).unwrap())
    });
    for range in ranges(len) {
        let sent = sender.send_file(&source, range.clone(), SendFlags::NONE, deadline()).unwrap();
        assert_eq!(sent.bytes, range.end - range.start);
    }
    sender.close(deadline()).unwrap();
    let (got, after) = reader.join().unwrap();
    assert_eq!(after, 0, "bytes after the end");
    let mut at = 0;
    for range in ranges(len) {
        let bytes = usize::try_from(range.end - range.start).unwrap();
        assert_same(&got[at..at + bytes], &pattern(1, range));
        at += bytes;
    }
}

#[test]
fn tcp_v4_copy() {
    let (tx, rx) = common::tcp();
    all_ranges_arrive(sender(tx, Engine::Copy), rx);
}

#[test]
fn tcp_v4_zerocopy() {
    let (tx, rx) = common::tcp();
    all_ranges_arrive(sender(tx, Engine::Zerocopy), rx);
}

#[test]
fn tcp_v4_auto() {
    let (tx, rx) = common::tcp();
    all_ranges_arrive(sender(tx, Engine::Auto), rx);
}

#[test]
fn tcp_v6_every_engine() {
    for engine in common::engines() {
        let Some((tx, rx)) = common::tcp6() else { return };
        all_ranges_arrive(sender(tx, engine), rx);
    }
}

#[test]
fn unix_stream_is_served_by_copy() {
    let (tx, rx) = UnixStream::pair().unwrap();
    all_ranges_arrive(Sender::new(tx).unwrap(), rx);
}

/// `AF_UNIX` ignores `MSG_ERRQUEUE`: reading the error queue there takes the peer's data, and after
/// its end never ends.
#[test]
fn reaping_a_unix_socket_takes_nothing_of_what_the_peer_sent() {
    use std::io::Write;
    use std::os::fd::AsFd;
    let (tx, mut rx) = UnixStream::pair().unwrap();
    let sender = Sender::new(tx).unwrap();
    rx.write_all(b"request").unwrap();
    assert_eq!(sender.reap().unwrap(), 0);
    let mut own = UnixStream::from(sender.as_fd().try_clone_to_owned().unwrap());
    assert_eq!(read(&mut own, 7), b"request");
    drop(rx);
    assert_eq!(sender.reap().unwrap(), 0);
    sender.close(deadline()).unwrap();
}

#[test]
fn zerocopy_refuses_a_unix_stream() {
    let (tx, _rx) = UnixStream::pair().unwrap();
    let mut sender = Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap();
    let file = file(1, 100);
    let error = sender.try_send_file(&source(&file), 0..100, SendFlags::NONE).unwrap_err();
    assert!(
        matches!(error, Error::Refused { engine: Engine::Zerocopy, reason: Refusal::Socket(_) }),
        "{error}"
    );
    assert!(error.to_string().contains("unix socket"), "{error}");
}

#[test]
fn a_slow_reader_gets_partial_sends_and_everything() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, engine);
        let len = 16 << 20;
        let file = file(2, len);
        let source = source(&file);
        let (mut sent, mut got, mut partial, mut blocked) = (0, Vec::new(), 0, 0);
        let mut buffer = [0; 3001];
        while sent < len {
            match sender.try_send_file(&source, sent..len, SendFlags::NONE).unwrap() {
                Sent::Accepted { bytes, ticket } => {
                    assert_eq!(ticket.bytes(), bytes as u64);
                    sent += bytes as u64;
                    partial += u32::from(sent < len);
                }
                _ => {
                    blocked += 1;
                    let n = rx.read(&mut buffer).unwrap();
                    got.extend_from_slice(&buffer[..n]);
                }
            }
        }
        assert!(partial > 0 && blocked > 0, "{engine}: {partial} partial, {blocked} blocked");
        let rest = usize::try_from(len).unwrap() - got.len();
        let reader = std::thread::spawn(move || read(&mut rx, rest));
        sender.close(deadline()).unwrap();
        got.extend(reader.join().unwrap());
        assert_same(&got, &pattern(2, 0..len));
    }
}

#[test]
fn headers_and_file_arrive_in_order() {
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(3, 100_000);
    sender.send(b"header", SendFlags::MORE, deadline()).unwrap();
    sender.send_file(&source(&file), 10..90_000, SendFlags::MORE, deadline()).unwrap();
    sender.send(b"trailer", SendFlags::NONE, deadline()).unwrap();
    let got = read(&mut rx, 6 + 89_990 + 7);
    assert_same(&got, &[b"header", &pattern(3, 10..90_000)[..], b"trailer"].concat());
}

/// `TCP_CORK` is set while more is said to follow, and at no other time: what it holds back would
/// come 200 ms late.
#[test]
fn a_series_is_corked_until_it_ends_or_somebody_waits() {
    let len = 2 << 20;
    let source = source(&file(9, len));
    for engine in [Engine::Copy, Engine::Zerocopy] {
        let (tx, mut rx) = common::tcp();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            rx.read_to_end(&mut got).unwrap();
            got
        });
        let mut sender = sender(tx, engine);
        let corked = |sender: &Sender| rustix::net::sockopt::tcp_cork(sender).unwrap();
        let step = 65_536;
        let mut at = 0;
        let mut send = |sender: &mut Sender, flags| {
            let sent = sender.send_file(&source, at..at + step, flags, deadline()).unwrap();
            at += step;
            sent.ticket
        };
        send(&mut sender, SendFlags::MORE);
        assert!(!corked(&sender), "a header and its body need no option");
        send(&mut sender, SendFlags::MORE);
        assert!(corked(&sender));
        send(&mut sender, SendFlags::MORE);
        send(&mut sender, SendFlags::NONE);
        assert!(!corked(&sender), "the end of the series");
        send(&mut sender, SendFlags::MORE);
        let ticket = send(&mut sender, SendFlags::MORE);
        assert!(corked(&sender));
        ticket.wait_acknowledged(deadline()).unwrap();
        assert!(!corked(&sender), "somebody waits for the peer to have it");
        send(&mut sender, SendFlags::MORE);
        let ticket = send(&mut sender, SendFlags::MORE);
        ticket.wait_released(deadline()).unwrap();
        assert_eq!(
            corked(&sender),
            engine == Engine::Copy,
            "it was in flight, or released at once"
        );
        // Nothing to send, but the end of the series all the same.
        for how in 0..4 {
            send(&mut sender, SendFlags::MORE);
            send(&mut sender, SendFlags::MORE);
            assert!(corked(&sender));
            match how {
                0 => drop(sender.send_file(&source, 5..5, SendFlags::NONE, deadline()).unwrap()),
                1 => drop(sender.try_send_file(&source, 5..5, SendFlags::NONE).unwrap()),
                2 => drop(sender.send(b"", SendFlags::NONE, deadline()).unwrap()),
                _ => drop(sender.try_send(b"", SendFlags::NONE).unwrap()),
            }
            assert!(!corked(&sender), "{how}");
        }
        // What the application has set itself stays.
        send(&mut sender, SendFlags::NONE);
        rustix::net::sockopt::set_tcp_cork(&sender, true).unwrap();
        send(&mut sender, SendFlags::MORE);
        send(&mut sender, SendFlags::MORE);
        send(&mut sender, SendFlags::NONE);
        assert!(corked(&sender));
        sender.close(deadline()).unwrap();
        assert_same(&reader.join().unwrap(), &pattern(9, 0..at));
    }
}

#[test]
fn a_writer_that_waits_for_a_lease_ends_the_series() {
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let slab = sendfile2::guard::GuardedFile::new(file(9, 1000)).unwrap();
    let lease = slab.lease(0..1000, deadline()).unwrap();
    for at in [0, 100, 200] {
        sender.send_lease(&lease, at..at + 100, SendFlags::MORE, deadline()).unwrap();
    }
    assert!(rustix::net::sockopt::tcp_cork(&sender).unwrap());
    drop(lease);
    slab.write_at(b"new", 0, deadline()).unwrap();
    assert!(!rustix::net::sockopt::tcp_cork(&sender).unwrap());
    assert_same(&read(&mut rx, 300), &pattern(9, 0..300));
}

#[test]
fn an_empty_range_sends_nothing_and_is_released() {
    let (tx, _rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(3, 100);
    let sent = sender.send_file(&source(&file), 50..50, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.bytes, 0);
    sent.ticket.wait_released(deadline()).unwrap();
    assert_eq!(sender.counters().accepted, 0);
}

#[test]
fn auto_says_what_it_took_and_why() {
    let (tx, _rx) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Auto);
    let file = file(3, 65536);
    let sent = sender.send_file(&source(&file), 0..65536, SendFlags::NONE, deadline()).unwrap();
    let choice = sent.ticket.choice();
    assert_eq!((choice.engine, choice.reason), (Engine::Copy, Reason::PeerOnThisHost));
}

/// A request is read from a sender, and answered by whatever writes.
#[test]
fn a_sender_is_read_from_and_written_to() {
    let (tx, mut rx) = common::tcp_small_window();
    let (local, peer) = (tx.local_addr().unwrap(), tx.peer_addr().unwrap());
    let mut sender = Sender::try_from(tx).unwrap();
    assert_eq!((sender.local_addr(), sender.peer_addr()), (Some(local), Some(peer)));
    rx.write_all(b"GET").unwrap();
    let mut request = [0; 3];
    (&sender).read_exact(&mut request).unwrap();
    assert_eq!(&request, b"GET");
    // More than the socket has room for: it waits.
    let answer = pattern(1, 0..4 << 20);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        rx.read_to_end(&mut got).unwrap();
        got
    });
    sender.send(b"head", SendFlags::MORE, deadline()).unwrap();
    sender.write_all(&answer).unwrap();
    sender.flush().unwrap();
    sender.close(deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &[b"head", &answer[..]].concat());
}
