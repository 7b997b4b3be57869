//! Everything at once, on many connections that end in all ways: nothing is lost, nothing hangs,
//! and the kernel logs nothing about it.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use sendfile2_sys::syscall::{SENDFILE_SYNC, Sendfile2};
use series_tests::{Ids, Via, drain, file, piped, reset, send, series, wait};

const MSG_ZEROCOPY: SendFlags = SendFlags::from_bits_retain(0x400_0000);

/// The behaviour of the receiving end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peer {
    Reads,
    Stalls,
    Resets,
}

/// Makes some calls of all kinds; returns how many ids they used.
fn calls(call: Sendfile2, rng: &mut Rng, socket: &TcpStream, data: &File, ids: &mut Ids) -> usize {
    let mut used = 0;
    for _ in 0..rng.usize(1..60) {
        let len = 1 << rng.u32(0..18);
        let sent = match rng.u8(0..5) {
            0 => rustix::net::send(socket, &vec![1; len], MSG_ZEROCOPY | SendFlags::NOSIGNAL),
            1 => {
                let pipe = piped(data, len.min(65_536));
                sendfile2_sys::syscall::splice(pipe.as_fd(), socket.as_fd(), len, rng.bool())
            }
            2 => {
                let (socket, file) = (socket.as_fd(), data.as_fd());
                // Its socket is non-blocking: a copy. It uses no id.
                match call.send(socket, file, Some(&mut 0), len, SENDFILE_SYNC) {
                    Ok(_) => continue,
                    error => error,
                }
            }
            _ => send(call, socket, data, len),
        };
        match sent {
            Ok(0) => panic!("nothing was sent"),
            Ok(_) => used += 1,
            Err(Errno::NOBUFS) => ids.reap(socket),
            Err(Errno::AGAIN) => {
                ids.reap(socket);
                wait(socket.as_fd(), PollFlags::OUT, 0);
            }
            Err(Errno::PIPE | Errno::CONNRESET) => break,
            Err(e) => panic!("send: {e}"),
        }
    }
    used
}

fn connection(call: Sendfile2, rng: &mut Rng, data: &File) -> usize {
    let (sender, receiver) = Via::Loopback.connect(rng.bool().then_some(16_384));
    sendfile2_c::enable_zerocopy(&sender).expect("SO_ZEROCOPY");
    sender.set_nonblocking(true).expect("O_NONBLOCK");
    let peer = *rng.choice(&[Peer::Reads, Peer::Stalls, Peer::Resets]).expect("some");
    let mut ids = Ids::default();
    let mut used = calls(call, rng, &sender, data, &mut ids);
    let mut stalled = None;
    let reader = match peer {
        Peer::Reads => Some(drain(receiver)),
        Peer::Stalls => {
            stalled = Some(receiver);
            None
        }
        Peer::Resets => {
            reset(receiver);
            None
        }
    };
    used += calls(call, rng, &sender, data, &mut ids);
    if peer == Peer::Stalls || rng.u8(0..4) == 0 {
        // The socket goes with everything in flight.
        if rng.bool() {
            drop(sender);
        } else {
            reset(sender);
        }
        drop(stalled);
    } else {
        ids.wait(&sender, used);
        ids.assert_each_once(used);
        drop(sender);
    }
    if let Some(reader) = reader {
        reader.join().expect("the reader");
    }
    used
}

#[test]
fn all_kinds_of_calls_on_connections_that_end_in_all_ways() {
    let Some(call) = series() else { return };
    let seconds = std::env::var("SENDFILE2_SECONDS").map_or(10, |text| text.parse().expect("u64"));
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let until = Instant::now() + Duration::from_secs(seconds);
    let totals: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seed ^ thread);
                    let data = file(3, 1 << 18);
                    let (mut connections, mut used) = (0, 0);
                    while Instant::now() < until {
                        used += connection(call, &mut rng, &data);
                        connections += 1;
                    }
                    (connections, used)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    let (connections, used) =
        totals.into_iter().fold((0, 0), |sum, own| (sum.0 + own.0, sum.1 + own.1));
    println!("{connections} connections, {used} ids");
}
