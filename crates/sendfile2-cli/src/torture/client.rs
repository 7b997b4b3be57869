//! The clients: threads that fetch random ranges of random slots, each in its own manner, and check
//! every block.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::block::{Checker, Wrong, mix};
use super::message::{ClientsRole, ClientsTally, EVERY, Line, Order};
use super::wire::{self, Announced, HEADER, Part};
use crate::child;

const STACK: usize = 256 << 10;

/// The longest that a client waits for bytes. After that the server has lost us: its own deadlines
/// are shorter.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// The time that the clients have to end after the order to.
const END: Duration = Duration::from_secs(3);

/// The number of wrong blocks that are reported at once and in full.
const SAMPLES: u64 = 20;

/// The behaviour of a client on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Reads what comes, many responses on one connection.
    Fast,
    /// Reads little at a time, with pauses.
    Slow,
    /// Stops reading until the connection is over or the client has had enough.
    Stalled,
    /// Resets the connection in mid-response.
    Resetting,
    /// Closes the connection in mid-response.
    Vanishing,
}

impl Manner {
    fn choose(rng: &mut Rng) -> Self {
        match rng.u32(0..100) {
            0..40 => Manner::Fast,
            40..65 => Manner::Slow,
            65..80 => Manner::Stalled,
            80..90 => Manner::Resetting,
            _ => Manner::Vanishing,
        }
    }
}

struct Shared {
    role: ClientsRole,
    stop: AtomicBool,
    running: AtomicUsize,
    tally: Mutex<ClientsTally>,
}

pub(super) fn run(role: ClientsRole) -> anyhow::Result<()> {
    let (clients, seed) = (role.clients, role.seed);
    let shared = Arc::new(Shared {
        role,
        stop: AtomicBool::new(false),
        running: AtomicUsize::new(0),
        tally: Mutex::default(),
    });
    let spawn = |work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name("client".into()).stack_size(STACK).spawn(work)
    };
    for number in 0..clients {
        shared.running.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(&shared);
        let mut rng = Rng::with_seed(mix(seed ^ u64::from(number)));
        spawn(Box::new(move || {
            while !shared.stop.load(Ordering::Relaxed) {
                shared.connection(&mut rng);
            }
            shared.running.fetch_sub(1, Ordering::Release);
        }))?;
    }
    let reporter = Arc::clone(&shared);
    spawn(Box::new(move || {
        loop {
            std::thread::sleep(EVERY);
            reporter.report();
        }
    }))?;
    if child::recv::<Order>().is_none() {
        // The parent is gone.
        std::process::exit(1);
    }
    shared.stop.store(true, Ordering::Relaxed);
    let deadline = Instant::now() + END;
    while shared.running.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    shared.report();
    Ok(())
}

/// The early end of a connection.
type Ended = ControlFlow<()>;

impl Shared {
    fn report(&self) {
        child::send(&Line::Clients(std::mem::take(&mut *self.tally())));
    }

    fn tally(&self) -> MutexGuard<'_, ClientsTally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One connection, from its beginning to its end.
    fn connection(&self, rng: &mut Rng) {
        let manner = Manner::choose(rng);
        let Ok(mut socket) = self.connect(manner, rng) else {
            self.tally().refused += 1;
            return std::thread::sleep(Duration::from_millis(rng.u64(10..50)));
        };
        self.tally().connections += 1;
        let responses = match manner {
            Manner::Fast => rng.u32(1..40),
            Manner::Slow => rng.u32(1..4),
            _ => rng.u32(1..3),
        };
        for n in 1..=responses {
            // Only the last one ends badly.
            let manner = if n < responses { Manner::Fast } else { manner };
            if self.fetch(&mut socket, manner, rng).is_break() {
                return;
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn connect(&self, manner: Manner, rng: &mut Rng) -> std::io::Result<TcpStream> {
        let address = self.role.connect;
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Small enough that a response waits in the server's queue, by reference, and large enough
        // for a segment of loopback.
        let small = manner != Manner::Fast || rng.bool();
        if small {
            sockopt::set_socket_recv_buffer_size(&socket, rng.usize(64 << 10..160 << 10))?;
        }
        // Counts for connect(2), too.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(TIMEOUT))?;
        rustix::net::connect(&socket, &address)?;
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(EVERY))?;
        Ok(socket)
    }

    fn parts(&self, manner: Manner, rng: &mut Rng) -> Vec<Part> {
        let layout = self.role.layout;
        (0..rng.usize(1..=wire::RANGES))
            .map(|_| {
                let slot = match manner {
                    Manner::Slow | Manner::Stalled if rng.u32(0..20) > 0 => {
                        let busy = layout.busy();
                        rng.u32(busy.end.min(layout.slots - 1)..layout.slots)
                    }
                    _ => rng.u32(0..layout.slots),
                };
                let size = layout.slot_size;
                let (start, end) = match rng.u32(0..4) {
                    // Most of the time all of it; the rest begins and ends anywhere.
                    0..2 => (0, size),
                    2 => {
                        let start = rng.u32(0..size);
                        (start, rng.u32(start + 1..=size))
                    }
                    _ => {
                        let start = rng.u32(0..size);
                        (start, size.min(start + rng.u32(1..20_000)))
                    }
                };
                Part { slot, start, end }
            })
            .collect()
    }

    /// Asks for a response and receives it.
    fn fetch(&self, socket: &mut TcpStream, manner: Manner, rng: &mut Rng) -> Ended {
        let request = wire::request(&self.parts(manner, rng));
        if socket.write_all(&request).is_err() {
            return Ended::Break(());
        }
        if manner == Manner::Stalled {
            self.stall(socket, rng);
            if rng.bool() {
                return Ended::Break(());
            }
        }
        let mut header = [0; HEADER];
        if self.read_exact(socket, &mut header).is_break() {
            return Ended::Break(());
        }
        let announced = match wire::parse_header(&header) {
            Ok(announced) => announced,
            Err(e) => {
                child::send(&Line::Unexpected(format!("a header cannot be read: {e}")));
                return Ended::Break(());
            }
        };
        let length: u64 = announced.iter().map(|a| u64::from(a.part.end - a.part.start)).sum();
        let leave_at = match manner {
            Manner::Resetting | Manner::Vanishing => rng.u64(0..length),
            _ => u64::MAX,
        };
        let received = self.receive(socket, &announced, manner, leave_at, rng);
        if leave_at < u64::MAX && manner == Manner::Resetting {
            let _ = sockopt::set_socket_linger(&*socket, Some(Duration::ZERO));
        }
        received
    }

    /// Receives the ranges and checks them, up to `leave_at` bytes.
    fn receive(
        &self,
        socket: &mut TcpStream,
        announced: &[Announced],
        manner: Manner,
        leave_at: u64,
        rng: &mut Rng,
    ) -> Ended {
        let mut buffer = [0; 64 << 10];
        let mut wrong = Vec::new();
        let mut total = 0;
        // Slow ones get through a response in about a second.
        let (most, pause) = match manner {
            Manner::Slow => (rng.usize(2_000..buffer.len()), rng.u64(1..80)),
            _ => (buffer.len(), 0),
        };
        for Announced { part, generation } in announced {
            let Part { slot, start, end } = *part;
            let mut checker = Checker::new(slot.into(), *generation, start.into(), end.into());
            while checker.remaining() > 0 {
                let left = usize::try_from(checker.remaining()).unwrap_or(usize::MAX);
                let got = if total >= leave_at {
                    Ok(0)
                } else {
                    self.read(socket, &mut buffer[..most.min(left)])
                };
                let got = match got {
                    Ok(0) | Err(_) => {
                        checker.cut(&mut wrong);
                        self.count(total, &wrong);
                        let mut tally = self.tally();
                        tally.cut += 1;
                        tally.resets +=
                            u64::from(got.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
                        return Ended::Break(());
                    }
                    Ok(got) => got,
                };
                total += got as u64;
                checker.feed(&buffer[..got], &mut wrong);
                if pause > 0 && !self.stop.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(pause));
                }
            }
        }
        self.count(total, &wrong);
        self.tally().responses += 1;
        Ended::Continue(())
    }

    /// Counts what was received and checked.
    fn count(&self, bytes: u64, wrong: &[Wrong]) {
        let mut tally = self.tally();
        tally.bytes += bytes;
        for wrong in wrong {
            static TOLD: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
            if TOLD.fetch_add(1, Ordering::Relaxed) < SAMPLES {
                child::send(&Line::Wrong(wrong.clone()));
            } else {
                tally.wrong += 1;
            }
        }
    }

    /// Waits without reading until the connection is over, or for some seconds.
    fn stall(&self, socket: &TcpStream, rng: &mut Rng) {
        let until = Instant::now() + Duration::from_millis(rng.u64(200..5_000));
        while Instant::now() < until && !self.stop.load(Ordering::Relaxed) {
            // Errors and hang-ups are always reported.
            let mut poll = [PollFd::new(socket, PollFlags::RDHUP)];
            let nap = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            if rustix::event::poll(&mut poll, Some(&nap)).is_ok_and(|n| n > 0) {
                return;
            }
        }
    }

    /// Reads what comes, waiting for it.
    fn read(&self, socket: &mut TcpStream, buffer: &mut [u8]) -> std::io::Result<usize> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match socket.read(buffer) {
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if self.stop.load(Ordering::Relaxed) {
                        return Err(e);
                    }
                    if Instant::now() > deadline {
                        self.tally().timeouts += 1;
                        return Err(e);
                    }
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn read_exact(&self, socket: &mut TcpStream, mut buffer: &mut [u8]) -> Ended {
        while !buffer.is_empty() {
            match self.read(socket, buffer) {
                Ok(0) | Err(_) => return Ended::Break(()),
                Ok(n) => buffer = &mut buffer[n..],
            }
        }
        Ended::Continue(())
    }
}
