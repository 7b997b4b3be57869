//! Races, with the peers as the oracle: a buffer is scribbled over when it is let go of.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::{deadline, pattern};
use sendfile2::{Engine, Options, SendBuffer, SendFlags, Sender, Sent, Source, reaper};

struct Scribble(Vec<u8>);
impl AsRef<[u8]> for Scribble {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl Drop for Scribble {
    fn drop(&mut self) {
        self.0.fill(0xee);
        std::hint::black_box(&self.0);
    }
}

fn seconds() -> u64 {
    std::env::var("STRESS").ok().and_then(|s| s.parse().ok()).unwrap_or(2)
}

#[test]
fn senders_dropped_aborted_and_reaped_by_many_let_nothing_go_early() {
    let stop = Instant::now() + Duration::from_secs(seconds());
    let wrong = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    let rounds = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for t in 0..4u64 {
            let (wrong, bytes, rounds) = (&wrong, &bytes, &rounds);
            scope.spawn(move || {
                let mut x = 0x9e37_79b9 + t * 77;
                let mut rand = move |n: u64| {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    x % n
                };
                while Instant::now() < stop {
                    rounds.fetch_add(1, SeqCst);
                    let (tx, mut rx) = common::tcp_small_window();
                    let linger = Duration::from_millis(rand(30));
                    let how = rand(4);
                    let options = Options::new().engine(Engine::Zerocopy);
                    let options = if how == 3 { options.linger(linger) } else { options };
                    let mut sender = Sender::with(tx, options).unwrap();
                    let seed = rand(100) as u8;
                    let reader = std::thread::spawn(move || {
                        let mut got = Vec::<u8>::new();
                        let mut buffer = vec![0; 50_000];
                        std::thread::sleep(Duration::from_millis(10));
                        while let Ok(n) = rx.read(&mut buffer) {
                            if n == 0 {
                                break;
                            }
                            got.extend(&buffer[..n]);
                            std::thread::sleep(Duration::from_micros(100));
                        }
                        got
                    });
                    let mut tickets = Vec::new();
                    let mut at = 0u64;
                    for _ in 0..rand(60) {
                        let len = 1 + rand(80_000);
                        let mut buffer = SendBuffer::new(Scribble(pattern(seed, at..at + len)));
                        if let Ok(Sent::Accepted { bytes, ticket }) = sender
                            .try_send_buffer(&mut buffer, SendFlags::NONE.with_more(rand(2) == 0))
                        {
                            at += bytes as u64;
                            tickets.push(ticket);
                        }
                        if rand(3) == 0 {
                            let _ = buffer.into_buffer();
                        }
                        if rand(5) == 0 {
                            sender.reap().unwrap();
                        }
                    }
                    let waiters: Vec<_> = tickets
                        .into_iter()
                        .take(3)
                        .map(|t| std::thread::spawn(move || t.wait_released(deadline()).unwrap()))
                        .collect();
                    match how {
                        0 => {
                            sender.abort().unwrap();
                            drop(sender);
                        }
                        1 => {
                            let _ = sender.close(Instant::now() + Duration::from_millis(rand(20)));
                        }
                        _ => drop(sender),
                    }
                    for w in waiters {
                        w.join().unwrap();
                    }
                    let got = reader.join().unwrap();
                    bytes.fetch_add(got.len() as u64, SeqCst);
                    let expected = pattern(seed, 0..got.len() as u64);
                    let bad = got.iter().zip(&expected).filter(|(a, b)| a != b).count();
                    wrong.fetch_add(bad as u64, SeqCst);
                    if how == 2 || how == 1 {
                        assert_eq!(got.len() as u64, at, "lost");
                    }
                }
            });
        }
    });
    assert_eq!(wrong.load(SeqCst), 0);
    reaper::drain(deadline()).unwrap();
}

/// The file shrinks and grows all the time, so that sends fault in their midst.
#[test]
fn faults_in_mid_send_use_no_ids() {
    for udp in [false, true] {
        let file = common::file(1, 1 << 20);
        let source = Source::new(file.try_clone().unwrap()).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0u64;
                while !stop.load(SeqCst) {
                    n += 1;
                    file.set_len((n * 4099) % (1 << 20)).unwrap();
                    file.set_len(1 << 20).unwrap();
                }
            });
            let stop = common::SetOnDrop(&stop);
            let mut sender;
            if udp {
                let rx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                let tx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                tx.connect(rx.local_addr().unwrap()).unwrap();
                sender = Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap();
                std::mem::forget(rx);
            } else {
                let (tx, mut rx) = common::tcp();
                std::thread::spawn(move || {
                    let mut b = vec![0; 1 << 16];
                    while rx.read(&mut b).is_ok_and(|n| n > 0) {}
                });
                sender = common::sender(tx, Engine::Zerocopy);
            }
            let until = Instant::now() + Duration::from_secs(seconds());
            let mut at = 0u64;
            while Instant::now() < until {
                at = (at + 77_777) % 900_000;
                let len = if udp { 60_000 } else { 130_000 };
                match sender.try_send_file(&source, at..at + len, SendFlags::NONE) {
                    Ok(Sent::Accepted { .. }) | Err(sendfile2::Error::Truncated { .. }) => {}
                    Ok(_) => sender.drain(deadline()).unwrap(),
                    Err(e) => panic!("{e}"),
                }
            }
            drop(stop);
            sender.drain(deadline()).unwrap();
            let released = sender.counters().released;
            let next = sender.into_socket(deadline()).unwrap().next_id;
            assert_eq!(u64::from(next), released);
        });
    }
}

/// A datagram of many packets meets a full send buffer in its midst.
#[test]
fn a_datagram_that_would_block_in_its_midst_uses_no_id() {
    let name = "a_datagram_that_would_block_in_its_midst_uses_no_id";
    if !common::inside(name, common::SLOW) {
        return;
    }
    common::sh("ip link set lo mtu 1500");
    common::sh(common::SLOW);
    let rx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    tx.connect(rx.local_addr().unwrap()).unwrap();
    nix::sys::socket::setsockopt(&tx, nix::sys::socket::sockopt::SndBuf, &40_000).unwrap();
    let mut sender = Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap();
    rx.set_nonblocking(true).unwrap();
    let (mut ok, mut block) = (0, 0);
    while ok < 50 || block < 10 {
        let mut buffer = SendBuffer::new(vec![1; 30_000]);
        match sender.try_send_buffer(&mut buffer, SendFlags::NONE).unwrap() {
            Sent::Accepted { .. } => ok += 1,
            _ => block += 1,
        }
        // What is not read holds its notification back.
        while rx.recv(&mut [0; 65536]).is_ok() {}
        sender.reap().unwrap();
    }
    drop(rx);
    sender.drain(deadline()).unwrap();
    assert_eq!(sender.counters().released, ok);
}

/// Hundreds of clients in the way of one writer, who alone reads their notifications.
#[test]
fn a_writer_in_the_way_of_many_clients() {
    const LEN: u64 = 256 << 10;
    let guard = common::waiting(common::file(1, LEN));
    let (mut peers, mut senders) = (Vec::new(), Vec::new());
    // The emulated machine took longer than its deadline for 300.
    for _ in 0..if common::peer().is_some() { 100 } else { 300 } {
        // Over a device that drops what it has no room for, TCP retries 300 closed windows for
        // minutes, and the writer waits for that.
        let (tx, rx) = common::tcp_small_window_on_this_host();
        let mut sender = common::sender(tx, Engine::Zerocopy);
        let lease = guard.try_lease(0..LEN).unwrap();
        let Sent::Accepted { bytes, .. } =
            sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap()
        else {
            panic!("an empty socket takes nothing")
        };
        peers.push((rx, bytes));
        senders.push(sender);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (rx, sent) in &mut peers {
                common::read(rx, *sent);
            }
        });
        guard.write_at(b"x", 0, deadline()).unwrap();
    });
    assert_eq!(guard.in_flight(), []);
}
