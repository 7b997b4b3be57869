//! Over a network device that sends from the pages of the file itself, late: where zero copy is
//! true. `cargo xtask guest nic` makes such a place.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::ops::Range;

use common::{assert_same, deadline, file, overwrite, pattern, read, source, wrong};
use sendfile2::uring::Driver;
use sendfile2::{Counters, Engine, InFlight, SendFlags, Sender, Sent, Source, Ticket};

/// One packet, as the kernel hands it to the device: what happens to it is told by a call of its own.
const PIECE: u64 = 64 << 10;

/// Whether this is such a place; if not, says so as the reason for a skip.
fn here() -> bool {
    let here = common::peer().is_some();
    if !here {
        println!("SKIP: no network device that zero copy is true on: cargo xtask guest nic");
    }
    here
}

/// Whether the queue in between loses or reorders.
fn lossy() -> bool {
    std::env::var_os("SENDFILE2_TEST_LOSSY").is_some()
}

/// The engines that send from the file's pages.
fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Zerocopy];
    engines.extend([Engine::Uring, Engine::Native].into_iter().filter(|e| common::has(*e)));
    engines
}

/// A connection of any engine.
enum Connection {
    Sender(Sender),
    Ring(Driver, sendfile2::uring::Socket),
}

impl Connection {
    fn new(socket: TcpStream, engine: Engine) -> Self {
        if engine != Engine::Uring {
            return Connection::Sender(common::sender(socket, engine));
        }
        let driver = Driver::new().unwrap();
        let socket = driver.add(socket).unwrap();
        Connection::Ring(driver, socket)
    }

    /// Sends what the socket takes now; returns how much that was.
    fn send(&mut self, source: &Source, range: Range<u64>) -> (u64, Vec<Ticket>) {
        let (mut sent, mut tickets) = (0, Vec::new());
        match self {
            Connection::Sender(sender) => {
                while range.start + sent < range.end {
                    let rest = range.start + sent..range.end;
                    match sender.try_send_file(source, rest, SendFlags::NONE).unwrap() {
                        Sent::Accepted { bytes, ticket } => {
                            sent += bytes as u64;
                            tickets.push(ticket);
                        }
                        _ => break,
                    }
                }
            }
            Connection::Ring(driver, socket) => {
                let ticket = socket.queue_file(source, range, SendFlags::NONE).unwrap();
                driver.submit().unwrap();
                driver.reap().unwrap();
                sent = ticket.bytes();
                tickets.push(ticket);
            }
        }
        (sent, tickets)
    }

    fn counters(&self) -> Counters {
        match self {
            Connection::Sender(sender) => sender.counters(),
            Connection::Ring(_, socket) => socket.counters(),
        }
    }

    fn drain(&self) {
        match self {
            Connection::Sender(sender) => sender.drain(deadline()).unwrap(),
            Connection::Ring(_, socket) => socket.drain(deadline()).unwrap(),
        }
    }

    /// Ends the stream when all is sent, and waits until all is released.
    fn close(self) {
        match self {
            // A peer that reset the connection has released all without it.
            Connection::Sender(sender) => drop(sender.close(deadline())),
            Connection::Ring(_driver, socket) => drop(socket.close(deadline())),
        }
    }

    fn in_flight(&self) -> InFlight {
        match self {
            Connection::Sender(sender) => sender.in_flight(),
            Connection::Ring(_, socket) => socket.in_flight(),
        }
    }
}

/// The control of the place: what plain sendfile(2) sends is read when the file is overwritten.
#[test]
fn control_the_device_reads_late() {
    if !here() {
        return;
    }
    let seen = seen("sendfile(2), overwritten at return", |tx, file| {
        rustix::fs::sendfile(&tx, file, Some(&mut 0), PIECE as usize).unwrap()
    });
    assert!(seen, "sendfile(2) looks safe here: is there a delay?");
}

/// Whether the peer sees that a file is overwritten when this has sent it; a few times, since the
/// writer may be late.
fn seen(what: &str, send: impl Fn(TcpStream, &std::fs::File) -> usize) -> bool {
    (0..10).any(|_| {
        let (tx, mut rx) = common::tcp();
        let (file, later) = (file(1, PIECE), pattern(!1, 0..PIECE));
        let kept = tx.try_clone().unwrap();
        let sent = send(tx, &file);
        overwrite(&file, &later);
        let got = read(&mut rx, sent);
        drop(kept);
        let wrong = wrong(&got, &pattern(1, 0..sent as u64));
        println!("{what}: {wrong} of {sent} bytes wrong");
        wrong > 0
    })
}

/// Each engine must be seen to fail when it is not waited for; else its success proves nothing.
#[test]
fn control_overwriting_before_the_release_is_seen() {
    if !here() {
        return;
    }
    for engine in engines() {
        let seen = seen(&format!("{engine}, overwritten before its release"), |tx, file| {
            let mut connection = Connection::new(tx, engine);
            // What is in flight stays so: the reaper takes care of it.
            connection.send(&source(file), 0..PIECE).0 as usize
        });
        assert!(seen, "{engine}: overwriting early looks safe here");
    }
}

#[test]
fn overwriting_at_the_release_changes_nothing_and_nothing_is_copied() {
    const GENERATIONS: u8 = 100;
    if !here() {
        return;
    }
    for engine in engines() {
        let (tx, mut rx) = common::tcp();
        let mut connection = Connection::new(tx, engine);
        // It reads all the time, so that nothing waits for it.
        let reader = std::thread::spawn(move || {
            let mut wrong_bytes = 0;
            for generation in 0..GENERATIONS {
                let got = read(&mut rx, PIECE as usize);
                wrong_bytes += wrong(&got, &pattern(generation, 0..PIECE));
            }
            wrong_bytes
        });
        for generation in 0..GENERATIONS {
            let (file, later) = (file(generation, PIECE), pattern(!generation, 0..PIECE));
            let source = source(&file);
            let mut at = 0;
            while at < PIECE {
                let (sent, tickets) = connection.send(&source, at..PIECE);
                for ticket in tickets {
                    ticket.wait_released(deadline()).unwrap();
                }
                at += sent;
            }
            overwrite(&file, &later);
        }
        let (bad, bytes) = (reader.join().unwrap(), PIECE * u64::from(GENERATIONS));
        let counters = connection.counters();
        println!(
            "{engine}, overwritten at its release: {bad} of {bytes} bytes wrong, {} of {} \
             notifications COPIED",
            counters.copied, counters.released
        );
        assert_eq!(bad, 0, "{engine}");
        assert!(counters.released >= u64::from(GENERATIONS), "{engine}: {counters:?}");
        // Packets of at most 128 bytes are copied by the driver; the queue may cause some.
        let most = if lossy() { 50 } else { 10 };
        assert!(counters.copied * 100 <= counters.released * most, "{engine}: {counters:?}");
    }
}

/// Half of the peers go away while the queue is full of the file's pages: everything is released
/// in the end, and the other half gets what it should.
#[test]
fn a_reset_with_data_in_flight_releases_all_and_harms_no_other() {
    const LEN: u64 = 4 << 20;
    if !here() {
        return;
    }
    for engine in engines() {
        let file = file(1, LEN);
        let source = source(&file);
        let mut all = Vec::new();
        for i in 0..8 {
            let (tx, mut rx) = common::tcp_small_window();
            let mut connection = Connection::new(tx, engine);
            connection.send(&source, 0..LEN);
            assert!(connection.in_flight().sends > 0, "{engine}: nothing is in flight");
            let resets = i % 2 == 1;
            let reader = std::thread::spawn(move || {
                let mut got = read(&mut rx, 20_000);
                if resets {
                    common::reset(rx);
                } else {
                    rx.read_to_end(&mut got).unwrap();
                }
                got
            });
            all.push((connection, resets, reader));
        }
        // What is left in flight is told by the counters when all have ended.
        let mut ends = Vec::new();
        for (connection, resets, reader) in all {
            if resets {
                connection.drain();
                assert_eq!(connection.in_flight(), InFlight::default(), "{engine}");
            }
            ends.push((connection, reader));
        }
        for (connection, reader) in ends {
            connection.close();
            let got = reader.join().unwrap();
            assert_same(&got, &pattern(1, 0..got.len() as u64));
        }
        sendfile2::reaper::drain(deadline()).unwrap();
        println!("{engine}: 4 of 8 peers reset with data in flight, all released");
    }
}
