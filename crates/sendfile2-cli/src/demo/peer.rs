//! The receiver, in a thread of its own, and the connection to it.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::TIMEOUT;
use crate::scratch::{Generation, len};

/// Bytes that the kernel is asked for as each socket's buffers; it gives what `net.core.rmem_max`
/// and `wmem_max` allow.
const BUFFERS: usize = 4 << 20;

/// Pieces to try, the largest first.
const PIECES: [u64; 7] =
    [1 << 20, 512 << 10, 256 << 10, 128 << 10, 64 << 10, 32 << 10, SMALLEST_PIECE];
const SMALLEST_PIECE: u64 = 16 << 10;

/// The least number of pieces that a file is cut into, if it is not a small one.
const ROUNDS: u64 = 32;

/// A receiver that reads only on an order.
#[derive(Debug)]
pub(super) struct Peer {
    orders: mpsc::Sender<Order>,
    answers: mpsc::Receiver<anyhow::Result<u64>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Order {
    /// Read a piece of the file, and count the bytes that are not this generation's.
    Piece(Range<u64>, Generation),
    /// The end: nothing more is to come.
    End,
}

/// Another network namespace, and the address of this one as seen from there.
pub(super) type Elsewhere = (File, IpAddr);

/// Connects to a new receiver, over loopback or elsewhere. Returns the socket to send on, the
/// receiver, and how large a piece may be: the buffers hold it (tried), so that it can be sent and
/// acknowledged while the receiver does not read.
pub(super) fn connect(
    file_size: u64,
    place: Option<&Elsewhere>,
) -> anyhow::Result<(TcpStream, Peer, u64)> {
    let (socket, received) = match place {
        None => pair(Ipv4Addr::LOCALHOST.into(), None).context(
            "cannot make a TCP connection to 127.0.0.1 (is the loopback interface up: ip link \
             show lo?)",
        ),
        Some((namespace, address)) => pair(*address, Some(namespace))
            .with_context(|| format!("cannot connect from the namespace of the peer to {address}")),
    }?;
    let room = sockopt::socket_recv_buffer_size(&received)?
        .min(sockopt::socket_send_buffer_size(&socket)?);
    let peer = Peer::new(received)?;
    let wanted = (file_size / ROUNDS).max(SMALLEST_PIECE);
    for piece in PIECES.into_iter().filter(|piece| *piece <= wanted) {
        // The kernel charges a buffer for more than the bytes in it.
        if usize::try_from(piece)? * 4 <= room && rehearse(&socket, &peer, piece)? {
            return Ok((socket, peer, piece));
        }
    }
    bail!(
        "the socket buffers ({room} bytes) do not hold {SMALLEST_PIECE} bytes that nobody reads: \
         raise net.core.rmem_max and net.core.wmem_max"
    );
}

/// Connects the two ends: the sending end listens at this address, and the receiving end, in the
/// namespace, connects to it.
fn pair(address: IpAddr, namespace: Option<&File>) -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((address, 0))?;
    let address = listener.local_addr()?;
    // A socket stays in the namespace of the thread that made it.
    let receiver = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new();
        Ok::<_, io::Error>(thread.spawn_scoped(scope, || receiver(address, namespace))?.join())
    });
    let receiver = receiver.context("cannot start a thread for the receiver")?;
    let received = receiver.map_err(|_| anyhow!("the receiver panicked"))??;
    let (socket, _) = listener.accept()?;
    sockopt::set_socket_send_buffer_size(&socket, BUFFERS)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok((socket, received))
}

fn receiver(address: SocketAddr, namespace: Option<&File>) -> anyhow::Result<TcpStream> {
    if let Some(namespace) = namespace {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter it (only root can)")?;
    }
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Before the connection is made: the window that it may offer is agreed on then.
    sockopt::set_socket_recv_buffer_size(&socket, BUFFERS)?;
    // An attempt to connect ends by this timeout, too.
    sockopt::set_socket_timeout(&socket, Timeout::Send, Some(TIMEOUT))?;
    net::connect(&socket, &address)?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// Checks whether a piece sent by a plain `send(2)` is acknowledged while the receiver does not
/// read.
fn rehearse(mut socket: &TcpStream, peer: &Peer, piece: u64) -> anyhow::Result<bool> {
    let mut content = vec![0; usize::try_from(piece)?];
    Generation::A.fill(&mut content, 0);
    std::io::Write::write_all(&mut socket, &content)?;
    let fits = wait_acknowledged(socket, Duration::from_secs(1))?;
    let wrong = peer.count_wrong(0..piece, Generation::A)?;
    ensure!(wrong == 0, "{wrong} bytes of a plain send(2) arrived wrong: this machine is broken");
    Ok(fits)
}

/// Waits until the peer's TCP has acknowledged everything; `false` if it did not in time.
pub(super) fn wait_acknowledged(socket: &TcpStream, timeout: Duration) -> anyhow::Result<bool> {
    let deadline = Instant::now() + timeout;
    // No event reports an acknowledgement.
    while sendfile2::unacknowledged(socket)? > 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_micros(20));
    }
    Ok(true)
}

impl Peer {
    fn new(socket: TcpStream) -> anyhow::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (outbox, answers) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("receiver".into())
            .spawn(move || {
                for order in inbox {
                    // The other side went away: it has its own error to report.
                    let Ok(()) = outbox.send(obey(&socket, order)) else { return };
                }
            })
            .context("cannot start the receiver's thread")?;
        Ok(Peer { orders, answers, thread })
    }

    /// Lets the receiver read the next piece, and returns how many of its bytes are not what
    /// `expected` has there.
    pub(super) fn count_wrong(
        &self,
        piece: Range<u64>,
        expected: Generation,
    ) -> anyhow::Result<u64> {
        self.ask(Order::Piece(piece, expected))
    }

    /// Makes sure that the stream ends here, and ends the receiver.
    pub(super) fn end(self) -> anyhow::Result<()> {
        self.ask(Order::End)?;
        drop(self.orders);
        self.thread.join().map_err(|_| anyhow!("the receiver panicked"))
    }

    fn ask(&self, order: Order) -> anyhow::Result<u64> {
        let gone = "the receiver is gone";
        self.orders.send(order).context(gone)?;
        self.answers.recv().context(gone)?
    }
}

fn obey(mut socket: &TcpStream, order: Order) -> anyhow::Result<u64> {
    match order {
        Order::Piece(piece, expected) => {
            let mut received = vec![0; len(&piece)];
            socket.read_exact(&mut received).context("the receiver did not get a whole piece")?;
            let mut content = vec![0; received.len()];
            expected.fill(&mut content, piece.start);
            Ok(received.iter().zip(&content).filter(|(a, b)| a != b).count() as u64)
        }
        Order::End => {
            let n = socket.read(&mut [0]).context("the receiver did not see the end")?;
            ensure!(n == 0, "the receiver got more bytes than were sent");
            Ok(0)
        }
    }
}
