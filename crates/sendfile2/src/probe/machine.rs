//! The machine: which engines it has, and its limits.

use std::fmt;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::process::{Resource, getrlimit};

use super::advice::{Advice, MEMLOCK_ENOUGH, OPTMEM_ENOUGH, bytes};
use crate::engine::Engine;
use crate::error::Error;
use crate::flags::SendFlags;
use crate::mtu::tcp_mtu_probing;
use crate::native;
#[cfg(not(feature = "uring"))]
use crate::refusal::UringUnavailable;
use crate::send_buffer::SendBuffer;
use crate::sender::{Options, Sender};
use crate::source::Source;
use crate::sys::rlimit;
#[cfg(feature = "uring")]
use crate::uring;

/// A notification on loopback takes microseconds. What does not notify at all is found after this.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The findings about a machine: its limits, and each engine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Machine {
    /// The kernel's release, as `uname -r` tells it.
    pub kernel: String,
    /// One for each of [`Engine::ALL`], in that order.
    pub engines: Vec<EngineState>,
    /// The kernel's limits on zerocopy sends.
    pub limits: Limits,
    /// The value of `kernel.io_uring_disabled`. For information: whether it can be used, the engine
    /// `uring` tells.
    pub io_uring: IoUring,
    /// `user.max_user_namespaces`, or 0 where a switch forbids them to ordinary users; `None` if
    /// unknown. For information: some tests of this library need them.
    pub user_namespaces: Option<u64>,
}

/// The finding about an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineState {
    /// The engine.
    pub engine: Engine,
    /// Whether it works, as far as that was tried.
    pub availability: Availability,
}

/// Whether an engine can be used at all, and how that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Availability {
    /// The engine works.
    Available(String),
    /// The engine does not work, for this reason.
    Refused(String),
    /// The engine could not be tried, for this reason.
    Untried(String),
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Availability::Available(how) => write!(f, "available: {how}"),
            Availability::Refused(why) => write!(f, "refused: {why}"),
            Availability::Untried(why) => write!(f, "not tried: {why}"),
        }
    }
}

/// The kernel's limits on zerocopy sends, in bytes. `None` where the kernel does not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// `RLIMIT_MEMLOCK`.
    pub memlock: Memlock,
    /// `net.core.optmem_max`: what a socket may use for notifications that are not read yet.
    pub optmem_max: Option<u64>,
    /// `net.core.wmem_max`: the largest send buffer that a program may ask for.
    pub wmem_max: Option<u64>,
    /// `net.ipv4.tcp_wmem`: the least, the first and the largest send buffer of a TCP socket.
    pub tcp_wmem: Option<[u64; 3]>,
    /// `net.ipv4.tcp_mtu_probing`: where it is not 0, what is sent by reference on TCP sockets is
    /// refused ([`Refusal::MtuProbing`](crate::Refusal::MtuProbing)).
    pub tcp_mtu_probing: Option<u8>,
}

/// `RLIMIT_MEMLOCK`: what the zerocopy sends of all processes of a user may pin together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memlock {
    /// The soft limit in bytes, which counts; `None` if unlimited.
    pub soft: Option<u64>,
    /// The hard limit in bytes, up to which the soft one can be raised; `None` if unlimited.
    pub hard: Option<u64>,
    /// `CAP_IPC_LOCK` lifts it for this thread.
    pub lifted: bool,
}

/// `kernel.io_uring_disabled` (Linux 6.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoUring {
    /// 0: anybody may use it.
    Allowed,
    /// 1: only who has `CAP_SYS_ADMIN` or is in the group `kernel.io_uring_group`.
    Group,
    /// 2: nobody may.
    Disabled,
    /// The kernel has no such switch.
    Unknown,
}

impl fmt::Display for IoUring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IoUring::Allowed => "allowed (kernel.io_uring_disabled = 0)",
            IoUring::Group => {
                "for the group kernel.io_uring_group only (kernel.io_uring_disabled = 1)"
            }
            IoUring::Disabled => "disabled (kernel.io_uring_disabled = 2)",
            IoUring::Unknown => {
                "unknown: the kernel has no kernel.io_uring_disabled (Linux before 6.6?)"
            }
        })
    }
}

/// Finds what this machine allows. Makes TCP connections to itself over loopback, on each of
/// which one byte is sent, and waits at most two seconds for each.
#[must_use]
pub fn machine() -> Machine {
    Machine {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        engines: Engine::ALL
            .iter()
            .map(|&engine| EngineState { engine, availability: availability(engine) })
            .collect(),
        limits: limits(),
        io_uring: match sysctl("kernel/io_uring_disabled").as_deref() {
            Some([0]) => IoUring::Allowed,
            Some([1]) => IoUring::Group,
            Some([2]) => IoUring::Disabled,
            _ => IoUring::Unknown,
        },
        user_namespaces: user_namespaces(),
    }
}

fn availability(engine: Engine) -> Availability {
    match engine {
        Engine::Copy => Availability::Available("it needs nothing".into()),
        Engine::Sendfile => Availability::Available(
            "it serves what is leased of files that detach: `sendfile2 probe --file FILE` tells of one"
                .into(),
        ),
        Engine::Auto => {
            Availability::Available("it takes, send by send, an engine that can serve it".into())
        }
        Engine::Zerocopy => tried("", zerocopy),
        #[cfg(feature = "uring")]
        Engine::Uring => tried("", uring),
        #[cfg(not(feature = "uring"))]
        Engine::Uring => Availability::Refused(UringUnavailable::NotBuilt.to_string()),
        Engine::Native => match native::kernel() {
            Ok(kernel) => tried(&format!("{kernel}: "), by_native),
            Err(missing) => Availability::Refused(missing.to_string()),
        },
    }
}

/// One byte (`?`) by `MSG_ZEROCOPY`, and its notification.
fn zerocopy(socket: TcpStream, deadline: Instant) -> Trial {
    let mut sender = Sender::with(socket, Options::new().engine(Engine::Zerocopy))?;
    let mut buffer = SendBuffer::new([b'?']);
    let ticket = sender.send_buffer(&mut buffer, SendFlags::NONE, deadline)?;
    if ticket.choice().engine != Engine::Zerocopy {
        return Ok(Err(ticket.choice().reason.to_string()));
    }
    let copied = ticket.wait_released(deadline)?.copied;
    sender.close(deadline)?;
    Ok(Ok(copied))
}

/// A file with that byte.
fn one_byte() -> Result<Source, Error> {
    let file = rustix::fs::memfd_create("sendfile2-probe", MemfdFlags::CLOEXEC)
        .map_err(Error::file("memfd_create", 0))?;
    rustix::io::pwrite(&file, b"?", 0).map_err(Error::file("pwrite", 0))?;
    Source::new(file)
}

/// The same by a ring.
#[cfg(feature = "uring")]
fn uring(socket: TcpStream, deadline: Instant) -> Trial {
    Ok(Ok(uring::send_file_sync(socket, &one_byte()?, 0..1, deadline)?.copied))
}

/// The same from the file, by what the kernel offers.
fn by_native(socket: TcpStream, deadline: Instant) -> Trial {
    let mut sender = Sender::with(socket, Options::new().engine(Engine::Native))?;
    let sent = sender.send_file(&one_byte()?, 0..1, SendFlags::NONE, deadline)?;
    if sent.ticket.choice().engine != Engine::Native {
        return Ok(Err(sent.ticket.choice().reason.to_string()));
    }
    let copied = sent.ticket.wait_released(deadline)?.copied;
    sender.close(deadline)?;
    Ok(Ok(copied))
}

/// One byte by reference over a connection of its own, and its notification; `by` is what does it.
fn tried(by: &str, trial: impl FnOnce(TcpStream, Instant) -> Trial) -> Availability {
    let (socket, mut peer) = match pair() {
        Ok(pair) => pair,
        Err(e) => {
            return Availability::Untried(format!(
                "no TCP connection over loopback could be made ({e}): is the interface lo up?"
            ));
        }
    };
    match trial(socket, Instant::now() + TIMEOUT) {
        Ok(Ok(copied)) => {
            let mut byte = [0];
            if peer.read_exact(&mut byte).is_err() || byte != [b'?'] {
                return Availability::Refused("the byte that was sent did not arrive".into());
            }
            let copied = if copied { " (COPIED, which is usual on loopback)" } else { "" };
            Availability::Available(format!("{by}tried over loopback, and notified{copied}"))
        }
        Ok(Err(why)) => Availability::Refused(why),
        Err(Error::Refused { reason, .. }) => Availability::Refused(reason.to_string()),
        Err(Error::Deadline(_)) => Availability::Refused(format!(
            "the kernel took the send, but gave no notification within {} s",
            TIMEOUT.as_secs()
        )),
        Err(e) => Availability::Refused(e.to_string()),
    }
}

fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let over = |ip: IpAddr| {
        let listener = TcpListener::bind((ip, 0))?;
        let socket = TcpStream::connect_timeout(&listener.local_addr()?, TIMEOUT)?;
        // Somebody else may have been faster.
        loop {
            let (peer, from) = listener.accept()?;
            if from == socket.local_addr()? {
                peer.set_read_timeout(Some(TIMEOUT))?;
                return Ok((socket, peer));
            }
        }
    };
    over(Ipv4Addr::LOCALHOST.into()).or_else(|e| over(Ipv6Addr::LOCALHOST.into()).map_err(|_| e))
}

fn limits() -> Limits {
    let memlock = getrlimit(Resource::Memlock);
    let one = |name: &str| sysctl(name)?.first().copied();
    Limits {
        memlock: Memlock { soft: memlock.current, hard: memlock.maximum, lifted: rlimit::lifted() },
        optmem_max: one("net/core/optmem_max"),
        wmem_max: one("net/core/wmem_max"),
        tcp_wmem: sysctl("net/ipv4/tcp_wmem").and_then(|all| all.try_into().ok()),
        tcp_mtu_probing: tcp_mtu_probing(),
    }
}

/// The numbers of a sysctl; `None` if it does not exist, here or in this network namespace.
fn sysctl(name: &str) -> Option<Vec<u64>> {
    let text = std::fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.split_whitespace().map(|n| n.parse().ok()).collect()
}

fn user_namespaces() -> Option<u64> {
    // Switches of Debian and of Ubuntu.
    if sysctl("kernel/unprivileged_userns_clone").is_some_and(|on| on == [0])
        || sysctl("kernel/apparmor_restrict_unprivileged_userns").is_some_and(|on| on == [1])
    {
        return Some(0);
    }
    sysctl("user/max_user_namespaces")?.first().copied()
}

impl Machine {
    /// Returns advice: what could be changed so that zerocopy sends work, or work better.
    #[must_use]
    pub fn advice(&self) -> Vec<Advice> {
        let Memlock { soft, hard, lifted } = self.limits.memlock;
        let memlock = soft
            .filter(|soft| !lifted && *soft < MEMLOCK_ENOUGH)
            .map(|soft| Advice::Memlock { soft, hard });
        let optmem =
            self.limits.optmem_max.filter(|bytes| *bytes < OPTMEM_ENOUGH).map(Advice::OptmemMax);
        let probing =
            self.limits.tcp_mtu_probing.filter(|value| *value != 0).map(Advice::MtuProbing);
        memlock.into_iter().chain(optmem).chain(probing).collect()
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel)?;
        writeln!(f, "\nEngines")?;
        for EngineState { engine, availability } in &self.engines {
            writeln!(f, "  {engine:<20} {availability}")?;
        }
        writeln!(f, "\nLimits of zerocopy sends")?;
        let Limits { memlock, optmem_max, wmem_max, tcp_wmem, tcp_mtu_probing } = &self.limits;
        writeln!(f, "  {:<20} {memlock}", "RLIMIT_MEMLOCK")?;
        for (name, value) in [("net.core.optmem_max", optmem_max), ("net.core.wmem_max", wmem_max)]
        {
            writeln!(f, "  {name:<20} {}", value.map_or_else(|| "unknown".into(), bytes))?;
        }
        let tcp_wmem = tcp_wmem.map_or_else(
            || "unknown".into(),
            |[least, first, largest]| {
                format!("{} to {}, at first {}", bytes(least), bytes(largest), bytes(first))
            },
        );
        writeln!(f, "  {:<20} {tcp_wmem}", "net.ipv4.tcp_wmem")?;
        write!(f, "  {:<20} ", "tcp_mtu_probing")?;
        match tcp_mtu_probing {
            Some(0) => writeln!(f, "0: zerocopy, uring and native may serve TCP sockets")?,
            Some(value) => writeln!(f, "{value}: zerocopy, uring and native refuse TCP sockets")?,
            None => writeln!(f, "unknown: zerocopy, uring and native refuse TCP sockets")?,
        }
        writeln!(f, "\nFor information")?;
        writeln!(f, "  {:<20} {}", "io_uring", self.io_uring)?;
        let namespaces = match self.user_namespaces {
            None => "unknown".into(),
            Some(0) => "not for ordinary users".into(),
            Some(n) => format!("allowed (at most {n})"),
        };
        writeln!(f, "  {:<20} {namespaces}", "user namespaces")
    }
}

impl fmt::Display for Memlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = |limit: Option<u64>| limit.map_or_else(|| "unlimited".into(), bytes);
        write!(f, "{} (hard limit: {})", limit(self.soft), limit(self.hard))?;
        if self.lifted {
            f.write_str(", which CAP_IPC_LOCK lifts here")?;
        }
        Ok(())
    }
}

/// The outcome of a trial: whether the kernel copied, or why it was not made.
type Trial = Result<Result<bool, String>, Error>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_given_only_where_it_is_true() {
        let mut machine = machine();
        let limits = |soft, lifted, optmem| Limits {
            memlock: Memlock { soft, hard: Some(64 << 10), lifted },
            optmem_max: optmem,
            wmem_max: None,
            tcp_wmem: None,
            tcp_mtu_probing: Some(0),
        };
        machine.limits = limits(Some(64 << 10), false, Some(20_480));
        let [memlock, optmem] = &machine.advice()[..] else { panic!("{:?}", machine.advice()) };
        let text = memlock.to_string();
        assert!(text.contains("64 KiB") && text.contains("LimitMEMLOCK=8M"), "{text}");
        assert!(text.contains("as root"), "{text}");
        assert!(optmem.to_string().contains("net.core.optmem_max = 20480"), "{optmem}");

        machine.limits = limits(Some(64 << 10), true, Some(131_072));
        assert_eq!(machine.advice(), [], "CAP_IPC_LOCK lifts it");
        machine.limits = limits(None, false, None);
        assert_eq!(machine.advice(), [], "no limit, and an unknown one");
    }
}
