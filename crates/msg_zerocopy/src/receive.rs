//! Receiving, and looking at what arrives.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SocketFlags, sockopt};

use crate::{Args, Test, alphabet, nonblocking, unless_blocked, wait};

/// Bytes of the socket's receive buffer, and the most that are received at once.
const BUFFER: usize = 1 << 21;

/// The time by which the receiver runs longer than the sender.
const LONGER: Duration = Duration::from_millis(400);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = args.file()?;
    let socket = listen(args)?;
    let until = Instant::now() + args.runtime() + LONGER;
    let mut buffer = vec![0; BUFFER];
    let (mut receives, mut bytes) = (0_u64, 0_u64);
    let alphabet = alphabet();
    let flags = match (args.test, &file) {
        // The bytes of a stream are of interest only where they can be compared.
        (Test::Tcp, None) => RecvFlags::DONTWAIT | RecvFlags::TRUNC,
        _ => RecvFlags::DONTWAIT,
    };
    while Instant::now() < until {
        wait(socket.as_fd(), PollFlags::IN, until)?;
        let received = rustix::net::recv(&socket, &mut buffer[..], flags);
        let Some((_, length)) = unless_blocked(received).context("recv")? else { continue };
        if length == 0 && args.test == Test::Tcp {
            break; // The sender has sent all.
        }
        let got = &buffer[..length.min(BUFFER)];
        if args.test == Test::Udp {
            ensure!(length == args.payload, "recv: {length} bytes, not {}", args.payload);
        }
        match (&file, args.test) {
            (Some(file), Test::Tcp) => compare_stream(file, bytes, got)?,
            (Some(file), Test::Udp) => compare(file, 0, got)?,
            (None, Test::Udp) => ensure!(got == &alphabet[..length], "recv: wrong data"),
            (None, Test::Tcp) => {}
        }
        receives += 1;
        bytes += length as u64;
    }
    // The format of the kernel's program.
    eprintln!("rx={receives} ({} MB)", bytes >> 20);
    Ok(())
}

fn listen(args: &Args) -> anyhow::Result<OwnedFd> {
    let socket = args.socket()?;
    let at = args.address(socket.as_fd(), args.destination, args.port)?;
    sockopt::set_socket_recv_buffer_size(&socket, BUFFER).context("SO_RCVBUF")?;
    sockopt::set_socket_reuseport(&socket, true).context("SO_REUSEPORT")?;
    rustix::net::bind(&socket, &at).with_context(|| format!("cannot receive at {at}"))?;
    let socket = match args.test {
        Test::Udp => socket,
        Test::Tcp => {
            rustix::net::listen(&socket, 1).context("listen")?;
            rustix::net::accept_with(&socket, SocketFlags::CLOEXEC).context("accept")?
        }
    };
    nonblocking(&socket)?;
    Ok(socket)
}

/// Checks that a stream, of which `before` bytes have been received, goes on with the file, which
/// is sent over and over.
fn compare_stream(file: &File, before: u64, mut got: &[u8]) -> anyhow::Result<()> {
    let size = file.metadata()?.len();
    ensure!(size > 0, "-f: the file is empty by now");
    let mut at = before % size;
    while !got.is_empty() {
        let left = usize::try_from(size - at).unwrap_or(usize::MAX);
        let (part, rest) = got.split_at(got.len().min(left));
        compare(file, at, part)?;
        (got, at) = (rest, 0);
    }
    Ok(())
}

fn compare(file: &File, at: u64, got: &[u8]) -> anyhow::Result<()> {
    let mut expected = vec![0; got.len()];
    file.read_exact_at(&mut expected, at).context("-f: the file could not be read")?;
    if let Some(wrong) = got.iter().zip(&expected).position(|(a, b)| a != b) {
        anyhow::bail!("recv: byte {} of the file arrived wrong", at + wrong as u64);
    }
    Ok(())
}
