//! `sendfile2 bench memory`: the memory of a connection, of a send in flight, and of a lease.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use anyhow::{Context, ensure};
use procfs::process::Process as Proc;
use rustix::net::sockopt;
use rustix::process::{Resource, Rlimit};
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, Options, SendFlags, Sender, Sent, Source};
use serde::{Deserialize, Serialize};

use super::message::Role;
use super::process::Process;
use super::result::{MemoryRow, Rows, Skipped};
use super::test_bed::TestBed;
use crate::args;

/// The kind of object whose memory is measured: a child process makes many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Object {
    Connections,
    Sends,
    Leases,
}

pub(super) fn run(args: &args::Memory) -> anyhow::Result<()> {
    let mut bed = TestBed::new(&args.common, 1 << 20)?;
    let mut rows = Vec::new();
    for object in [Object::Connections, Object::Sends, Object::Leases] {
        let mut process = Process::start(&[], &Role::Memory(object))?;
        match process.recv() {
            Ok(row) => rows.push(row),
            Err(error) => {
                bed.skip([Skipped {
                    what: format!("{object:?}"),
                    why: crate::output::whole(&error),
                }]);
            }
        }
    }
    bed.finish(Rows::Memory(rows), &args.common)
}

/// Makes many objects, and measures the memory that one of them takes.
pub(super) fn measure(object: Object) -> anyhow::Result<MemoryRow> {
    match object {
        Object::Connections => connections(),
        Object::Sends => sends(),
        Object::Leases => leases(),
    }
}

/// Returns the anonymous memory of this process, in bytes. It is read from `smaps_rollup`, for which the
/// kernel counts pages; the numbers in `statm` are not exact.
fn anonymous() -> anyhow::Result<u64> {
    let rollup = Proc::myself()?.smaps_rollup().context("/proc/self/smaps_rollup")?;
    let maps = rollup.memory_map_rollup;
    let map = maps.0.first().context("/proc/self/smaps_rollup is empty")?;
    map.extension.map.get("Anonymous").copied().context("no Anonymous in smaps_rollup")
}

fn row(what: &str, before: u64, number: usize) -> anyhow::Result<MemoryRow> {
    ensure!(number > 0, "none was made");
    let grown = anonymous()?.saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "some megabytes")]
    let bytes = grown as f64 / number as f64;
    Ok(MemoryRow { what: what.into(), bytes, number: number as u64 })
}

/// Makes `number` connections; returns their sending ends, and their receiving ends.
fn pairs(number: usize) -> anyhow::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    // A small receive buffer: most of what is sent stays in flight.
    sockopt::set_socket_recv_buffer_size(&listener, 4096)?;
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..number {
        senders.push(TcpStream::connect(listener.local_addr()?)?);
        receivers.push(listener.accept()?.0);
    }
    Ok((senders, receivers))
}

/// Raises the limit of open descriptors as far as it may be; returns the limit.
fn raise_descriptor_limit() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let limit = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised,
        Err(_) => limit,
    };
    limit.current.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

fn connections() -> anyhow::Result<MemoryRow> {
    let number = 4000.min(raise_descriptor_limit().saturating_sub(64) / 2);
    let (mut sockets, receivers) = pairs(number)?;
    // The first one also starts what all share.
    let mut senders = Vec::with_capacity(number);
    senders.extend(sockets.pop().map(Sender::new).transpose()?);
    let before = anonymous()?;
    for socket in sockets {
        senders.push(Sender::new(socket)?);
    }
    let row = row("connection, idle", before, senders.len() - 1);
    drop((senders, receivers));
    row
}

fn sends() -> anyhow::Result<MemoryRow> {
    const PART: u64 = 4096;
    const EACH: usize = 1000;
    let file = tempfile::tempfile().context("cannot make a file")?;
    std::io::Write::write_all(&mut &file, &[1; 1 << 20])?;
    let source = Source::new(file)?;
    let (sockets, receivers) = pairs(64)?;
    let mut senders = Vec::new();
    for socket in sockets {
        sockopt::set_socket_send_buffer_size(&socket, 4 << 20)?;
        let mut sender = Sender::with(socket, Options::new().engine(Engine::Zerocopy))?;
        // Fills the receive buffer, so that all that follows stays in flight.
        for _ in 0..4 {
            sender.try_send_file(&source, 0..PART, SendFlags::NONE)?;
        }
        senders.push(sender);
    }
    let mut tickets = Vec::with_capacity(senders.len() * EACH);
    let in_flight = |senders: &[Sender]| -> usize {
        senders.iter().map(|sender| sender.in_flight().sends).sum()
    };
    let (before, first) = (anonymous()?, in_flight(&senders));
    for sender in &mut senders {
        for _ in 0..EACH {
            match sender.try_send_file(&source, 0..PART, SendFlags::NONE)? {
                Sent::Accepted { ticket, .. } => tickets.push(ticket),
                _ => break,
            }
        }
    }
    let made = in_flight(&senders).saturating_sub(first);
    let row = row("send in flight, with its ticket", before, made);
    drop((senders, receivers));
    row
}

fn leases() -> anyhow::Result<MemoryRow> {
    const NUMBER: usize = 100_000;
    const SLOT: u64 = 4096;
    let file = tempfile::tempfile().context("cannot make a file")?;
    file.set_len(2 * SLOT * NUMBER as u64)?;
    let guard = GuardedFile::new(file)?;
    let mut leases = Vec::with_capacity(NUMBER);
    let before = anonymous()?;
    for i in 0..NUMBER as u64 {
        // Not side by side, in case that neighbours share something.
        leases.push(guard.try_lease(2 * i * SLOT..(2 * i + 1) * SLOT).context("no lease")?);
    }
    let row = row("lease", before, leases.len());
    drop(leases);
    row
}
