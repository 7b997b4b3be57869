//! How long a writer waits for what clients have not read, who have stopped reading.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt;
use sendfile2::guard::{GuardOptions, GuardedFile};
use sendfile2::{Engine, Options, SendFlags, Sender, Sent};

use super::result::GuardRow;

/// Clients that have stopped reading, and slots of the file, each of which one of them is sent.
const CLIENTS: usize = 50;

/// Bytes of a slot, and of a write.
const SLOT: usize = 64 << 10;

/// Rounds of the measurement: in each, all connections are new.
const ROUNDS: usize = 12;

/// The longest that a write may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A buffer for direct I/O begins at a multiple of this.
const ALIGNED: usize = 4096;

/// Measures overwriting what is in flight to all clients, beside a direct write to an idle file.
pub(super) fn rows(directory: &Path, engine: Engine) -> anyhow::Result<[GuardRow; 2]> {
    let guard = GuardOptions::new().nothing_exposed().guard(file(directory)?)?;
    let idle = direct(&file(directory)?)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("loopback")?;
    // Accepted sockets inherit it: what is sent waits at the sender, by reference.
    sockopt::set_socket_recv_buffer_size(&listener, 4096)?;
    let mut buffer = vec![0; SLOT + ALIGNED];
    let start = buffer.as_ptr().align_offset(ALIGNED);
    let (mut detaching, mut writing) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let data = &mut buffer[start..start + SLOT];
        data.fill(round.to_le_bytes()[0]);
        let clients = stalled(&listener, &guard, engine)?;
        for slot in 0..CLIENTS {
            let at = (slot * SLOT) as u64;
            let began = Instant::now();
            guard.write_at(data, at, PATIENCE)?;
            detaching.push(began.elapsed());
            let began = Instant::now();
            idle.write_all_at(data, at).context("a direct write")?;
            writing.push(began.elapsed());
        }
        drop(clients);
    }
    ensure!(guard.counters().detached > 0, "nothing was detached");
    let p99 = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() * 99 / 100].as_secs_f64() * 1e9
    };
    let (detaching, writing) = (p99(&mut detaching), p99(&mut writing));
    let row = |what: String, nanoseconds: f64, ratio| GuardRow {
        what,
        nanoseconds,
        ci: None,
        ratio,
        ratio_ci: None,
        rounds: ROUNDS,
    };
    Ok([
        row("write of 64 KiB by O_DIRECT to an idle file: p99".into(), writing, None),
        row(
            format!("write of 64 KiB that {CLIENTS} stalled clients were sent by {engine}: p99"),
            detaching,
            Some(detaching / writing),
        ),
    ])
}

/// A file with all slots in it, on the disk.
fn file(directory: &Path) -> anyhow::Result<File> {
    let file = tempfile::tempfile_in(directory).context("cannot make a file")?;
    file.write_all_at(&vec![1; CLIENTS * SLOT], 0)?;
    file.sync_all()?;
    Ok(file)
}

/// The file, open for direct I/O.
fn direct(file: &File) -> anyhow::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    Ok(opened.context("the file cannot be opened for direct I/O")?.into())
}

/// Connections whose peers read nothing, each with a slot in flight that nobody has in hand.
fn stalled(
    listener: &TcpListener,
    guard: &GuardedFile,
    engine: Engine,
) -> anyhow::Result<Vec<(Sender, TcpStream)>> {
    (0..CLIENTS)
        .map(|slot| {
            let socket = TcpStream::connect(listener.local_addr()?)?;
            let (peer, _) = listener.accept()?;
            let options = Options::new().engine(engine).linger(Duration::ZERO);
            let mut sender = Sender::with(socket, options)?;
            let (mut at, end) = ((slot * SLOT) as u64, ((slot + 1) * SLOT) as u64);
            let lease = guard.lease(at..end, PATIENCE)?;
            while at < end {
                match sender.try_send_lease(&lease, at..end, SendFlags::NONE)? {
                    Sent::Accepted { bytes, .. } => at += bytes as u64,
                    // The rest of the slot is not in flight.
                    _ => break,
                }
            }
            Ok((sender, peer))
        })
        .collect()
}
