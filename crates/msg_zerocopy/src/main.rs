//! `msg_zerocopy`: the kernel selftest's program of that name, with the options that the sendfile2
//! RFC gives it. It sends for some seconds, counts its zerocopy sends, and fails unless each of
//! them was completed, once.
#![forbid(unsafe_code)]
#![allow(clippy::doc_markdown, reason = "the help text is read in a terminal")]

mod receive;
mod send;

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{ArgAction, Parser, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The longest payload: an IP packet, less the headers of IPv6 and TCP and TCP's longest options.
const PAYLOAD_MAX: usize = 65535 - 40 - 20 - 40;

/// Send for some seconds with MSG_ZEROCOPY, or a file by sendfile2(), and count the notifications
#[derive(Debug, Parser)]
#[command(
    version,
    args_override_self = true,
    after_help = "\
Examples:
  msg_zerocopy -4 -i eth0 -t 2 -v -r tcp
  msg_zerocopy -4 -i eth0 -D SERVER -v -l 1 -t 2 -z -f FILE tcp

Exit status: 0 if each zerocopy send was notified once, and what was received is right; 1 if not."
)]
struct Args {
    /// Use IPv4
    #[arg(short = '4', conflicts_with = "v6", required_unless_present = "v6")]
    v4: bool,
    /// Use IPv6
    #[arg(short = '6')]
    v6: bool,
    /// Send each datagram in COUNT parts (udp)
    #[arg(short = 'c', value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    cork: usize,
    /// Run on this CPU
    #[arg(short = 'C', value_name = "CPU")]
    cpu: Option<usize>,
    /// The receiver's address [default: any, to receive]
    #[arg(short = 'D', value_name = "ADDRESS")]
    destination: Option<IpAddr>,
    /// The network interface: that of link-local addresses
    #[arg(short = 'i', value_name = "INTERFACE")]
    interface: Option<String>,
    /// Read notifications after so many sends
    #[arg(short = 'l', value_name = "SENDS", default_value_t = 32)]
    limit: u32,
    /// Send every second part of a datagram by zerocopy (with -c and -z)
    #[arg(short = 'm')]
    mixed: bool,
    /// The port
    #[arg(short = 'p', default_value_t = 8000)]
    port: u16,
    /// Receive
    #[arg(short = 'r')]
    receive: bool,
    /// Bytes of a send, or of a datagram
    #[arg(short = 's', value_name = "BYTES", default_value_t = PAYLOAD_MAX)]
    payload: usize,
    /// The sender's address
    #[arg(short = 'S', value_name = "ADDRESS")]
    source: Option<IpAddr>,
    /// Seconds to run [default: 4]
    #[arg(short = 't', value_name = "SECONDS")]
    seconds: Option<u32>,
    /// Say more; twice: each notification
    #[arg(short = 'v', action = ArgAction::Count)]
    verbose: u8,
    /// Send by zerocopy
    #[arg(short = 'z')]
    zerocopy: bool,
    /// Send this file by sendfile2(), again and again; to receive: compare the bytes that come with
    /// it
    #[arg(short = 'f', value_name = "FILE", conflicts_with_all = ["cork", "mixed"])]
    file: Option<PathBuf>,
    /// Seconds to wait for the last notifications [default: half a second]
    #[arg(short = 'w', value_name = "SECONDS")]
    wait: Option<u32>,
    /// The protocol to test
    test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Test {
    Tcp,
    Udp,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.receive { receive::run(&args) } else { send::run(&args) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("msg_zerocopy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    /// Returns the time to send or receive for: somewhat longer than the seconds that are asked
    /// for.
    fn runtime(&self) -> Duration {
        match self.seconds {
            Some(seconds) => Duration::from_secs(seconds.into()) + Duration::from_millis(200),
            None => Duration::from_millis(4200),
        }
    }

    fn timeout(&self) -> Duration {
        match self.wait {
            Some(seconds) => Duration::from_secs(seconds.into()),
            None => Duration::from_millis(500),
        }
    }

    /// Makes a socket for the test, after what else is asked of the process.
    fn socket(&self) -> anyhow::Result<std::os::fd::OwnedFd> {
        ensure!(self.payload <= PAYLOAD_MAX, "-s: {} bytes at most", PAYLOAD_MAX);
        ensure!(self.payload > 0, "-s: one byte at least");
        ensure!(self.cork == 0 || self.test == Test::Udp, "-c: only datagrams have parts: use udp");
        ensure!(!self.mixed || (self.cork > 0 && self.zerocopy), "-m: needs -c and -z");
        if let Some(cpu) = self.cpu {
            let mut set = rustix::thread::CpuSet::new();
            if cpu < rustix::thread::CpuSet::MAX_CPU {
                set.set(cpu);
            }
            match rustix::thread::sched_setaffinity(None, &set) {
                Ok(()) if self.verbose > 0 => eprintln!("cpu: {cpu}"),
                Ok(()) => {}
                Err(e) => eprintln!("cpu {cpu}: {e}: it runs anywhere"),
            }
        }
        let family = if self.v6 { AddressFamily::INET6 } else { AddressFamily::INET };
        let kind = match self.test {
            Test::Tcp => SocketType::STREAM,
            Test::Udp => SocketType::DGRAM,
        };
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
            .context("a socket could not be made")?;
        Ok(socket)
    }

    /// Makes an address with the port given, on the interface if it is a link-local one.
    fn address(
        &self,
        socket: BorrowedFd<'_>,
        address: Option<IpAddr>,
        port: u16,
    ) -> anyhow::Result<SocketAddr> {
        let index = match &self.interface {
            Some(name) => rustix::net::netdevice::name_to_index(socket, name)
                .with_context(|| format!("-i: no interface {name}"))?,
            None => 0,
        };
        Ok(match (address, self.v6) {
            (None, false) => (Ipv4Addr::UNSPECIFIED, port).into(),
            (None, true) => (Ipv6Addr::UNSPECIFIED, port).into(),
            (Some(IpAddr::V4(address)), false) => (address, port).into(),
            (Some(IpAddr::V6(address)), true) => {
                let link_local = (address.segments()[0] & 0xffc0) == 0xfe80;
                let scope = if link_local { index } else { 0 };
                SocketAddrV6::new(address, port, 0, scope).into()
            }
            (Some(address), false) => bail!("{address} is no IPv4 address, which -4 asks for"),
            (Some(address), true) => bail!("{address} is no IPv6 address, which -6 asks for"),
        })
    }

    fn file(&self) -> anyhow::Result<Option<File>> {
        let Some(path) = &self.file else { return Ok(None) };
        let file = File::open(path).with_context(|| format!("-f: {}", path.display()))?;
        let size = file.metadata()?.len();
        let needed = if self.test == Test::Udp { self.payload as u64 } else { 1 };
        ensure!(size >= needed, "-f: {} has {size} bytes, of {needed} needed", path.display());
        Ok(Some(file))
    }
}

/// Returns the payload of sends that are from memory: the alphabet, over and over.
fn alphabet() -> Vec<u8> {
    (b'a'..=b'z').cycle().take(PAYLOAD_MAX).collect()
}

/// Waits for `events`, or an error, until then; returns those that came, none if the time is over
/// first.
fn wait(socket: BorrowedFd<'_>, events: PollFlags, until: Instant) -> anyhow::Result<PollFlags> {
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now()))?;
        let mut fds = [PollFd::new(&socket, events)];
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("poll"),
            Ok(_) => return Ok(fds[0].revents()),
        }
    }
}

/// Turns the error of a socket that would block, or of an interruption, into `None`.
fn unless_blocked<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn nonblocking(socket: impl AsFd) -> anyhow::Result<()> {
    rustix::io::ioctl_fionbio(socket, true).context("O_NONBLOCK")
}
