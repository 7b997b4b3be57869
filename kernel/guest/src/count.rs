//! Counts the instructions of sending, in a guest whose clock counts instructions (one a
//! nanosecond): those of the sending thread, and those of its network device's own thread, in which
//! the kernel learns of what was sent and acknowledged. The receiving side is not counted.
//!
//! Usage: guest-count NAMESPACE ADDRESS FILE; prints a line of JSON for each connection.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{ClockId, clock_gettime};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{Counters, Engine, Error, Options, SendFlags, Sender, Source};
use sendfile2_guest::Count;

/// Bytes of the file, which is sent again and again.
const FILE: u64 = 8 << 20;

/// The sizes of the calls, in bytes.
const SIZES: [u64; 3] = [16 << 10, 64 << 10, 1 << 20];

/// The bytes that each connection sends until its buffers and windows have grown, and the bytes
/// that are counted.
const GROWTH: u64 = 2 * FILE;
const COUNTED: u64 = 4 * FILE;

/// The number of connections, each with all ways in turn. Which side waits for which differs
/// between connections, and stays so on each: a single one shows little.
const ROUNDS: u64 = 24;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [namespace, address, path] = &arguments[..] else {
        bail!("usage: guest-count NAMESPACE ADDRESS FILE");
    };
    let address = address.parse().context("the address")?;
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    for i in 0..FILE >> 16 {
        file.write_all(&[i.to_le_bytes()[0]; 1 << 16])?;
    }
    let (source, device) = (Source::new(file)?, Device::find()?);
    let ways = [None].into_iter().chain(Engine::ALL.iter().copied().map(Some));
    let ways: Vec<_> = ways.filter(|way| *way != Some(Engine::Auto)).collect();
    let mut counts = Vec::new();
    for _ in 0..ROUNDS {
        for (size, engine) in SIZES.into_iter().flat_map(|size| ways.iter().map(move |w| (size, w)))
        {
            // Until what came before has ended; an idle guest's time costs nothing.
            std::thread::sleep(Duration::from_secs(10));
            let name = engine.map_or("sendfile", Engine::name);
            let mut way = Way::new(connect(namespace, address)?, *engine).context(name)?;
            let calls = COUNTED / size;
            way.send(&source, size, GROWTH / size)?;
            let (counters, others, packets) =
                (way.counters(), device.instructions()?, Device::packets()?);
            let before = instructions()?;
            way.send(&source, size, calls)?;
            counts.push(Count {
                way: name.to_owned(),
                size,
                calls,
                thread: instructions()? - before,
                device: device.instructions()? - others,
                packets: Device::packets()? - packets,
                copied: match (engine, way.counters()) {
                    (None, _) => 0,
                    (Some(Engine::Copy), _) => calls * size,
                    // A call whose notification had COPIED counts with all of its bytes.
                    (_, after) => (after.copied - counters.copied) * size,
                },
            });
        }
    }
    // Only now: when the console takes it is the host's affair.
    for count in counts {
        println!("{}", serde_json::to_string(&count)?);
    }
    Ok(())
}

/// A way of sending, on a connection.
enum Way {
    Sendfile(TcpStream),
    Sender(Sender),
    Ring(Driver, Socket),
}

impl Way {
    fn new(socket: TcpStream, engine: Option<Engine>) -> Result<Self, Error> {
        Ok(match engine {
            None => Way::Sendfile(socket),
            Some(Engine::Uring) => {
                let driver = Driver::new()?;
                let socket = driver.add(socket)?;
                Way::Ring(driver, socket)
            }
            Some(engine) => Way::Sender(Sender::with(socket, Options::new().engine(engine))?),
        })
    }

    /// Makes the calls, and waits until all is released.
    fn send(&mut self, source: &Source, size: u64, calls: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(3600);
        for call in 0..calls {
            let at = call * size % FILE;
            match self {
                Way::Sendfile(socket) => {
                    let (mut offset, end) = (at, at + size);
                    while offset < end {
                        let rest = usize::try_from(end - offset)?;
                        let sent = rustix::fs::sendfile(&*socket, source, Some(&mut offset), rest)?;
                        ensure!(sent > 0, "the file is too short");
                    }
                }
                Way::Sender(sender) => {
                    sender.send_file(source, at..at + size, SendFlags::NONE, deadline)?;
                }
                Way::Ring(driver, socket) => {
                    socket.queue_file(source, at..at + size, SendFlags::NONE)?;
                    driver.submit()?;
                    driver.reap()?;
                    // As the others do, it goes on when the socket has taken it.
                    while socket.queued() > 0 {
                        driver.wait(1, deadline)?;
                    }
                }
            }
        }
        match self {
            Way::Sendfile(_) => {}
            Way::Sender(sender) => sender.drain(deadline)?,
            Way::Ring(_, socket) => socket.drain(deadline)?,
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        match self {
            Way::Sendfile(_) => Counters::default(),
            Way::Sender(sender) => sender.counters(),
            Way::Ring(_, socket) => socket.counters(),
        }
    }
}

/// Connects to a receiver in the namespace, which reads all that comes.
fn connect(namespace: &str, address: IpAddr) -> anyhow::Result<TcpStream> {
    let namespace = File::open(namespace).context("the namespace")?;
    let (sender, listening) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> anyhow::Result<()> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        let listener = TcpListener::bind((address, 0))?;
        sender.send(listener.local_addr()?)?;
        let (mut socket, _) = listener.accept()?;
        let mut buffer = vec![0; 1 << 20];
        while socket.read(&mut buffer)? > 0 {}
        Ok(())
    });
    let address = listening.recv().context("there is no receiver in the namespace")?;
    Ok(TcpStream::connect(address)?)
}

/// The threads in which the kernel handles what the sending device is given.
struct Device(Vec<PathBuf>);

impl Device {
    fn find() -> anyhow::Result<Self> {
        let mut found = Vec::new();
        for process in std::fs::read_dir("/proc")? {
            let process = process?.path();
            let Ok(name) = std::fs::read_to_string(process.join("comm")) else { continue };
            if name.starts_with("napi/eth0-") {
                found.push(process.join("schedstat"));
            }
        }
        ensure!(!found.is_empty(), "eth0 has no threads of its own");
        Ok(Device(found))
    }

    /// Returns the number of packets that the device was given, as the network stack cuts them.
    fn packets() -> anyhow::Result<u64> {
        let packets = std::fs::read_to_string("/sys/class/net/eth0/statistics/tx_packets")?;
        packets.trim().parse().context("tx_packets")
    }

    fn instructions(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for times in &self.0 {
            let times = std::fs::read_to_string(times)?;
            let time = times.split(' ').next().unwrap_or_default();
            sum += time.parse::<u64>().context("schedstat")?;
        }
        Ok(sum)
    }
}

/// Returns the instructions of this thread.
fn instructions() -> anyhow::Result<u64> {
    let own = clock_gettime(ClockId::ThreadCPUTime);
    Ok(u64::try_from(own.tv_sec * 1_000_000_000 + own.tv_nsec)?)
}
