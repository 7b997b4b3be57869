//! What the tests share: files with known content, connected sockets, children of the test
//! binary in places of their own (namespaces, limits).
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use sendfile2::guard::{GuardOptions, GuardedFile, Overwrite};
use sendfile2::{Engine, Options, SendFlags, Sender, Source};

pub mod detachable;
pub mod faults;
pub mod filesystems;
pub mod namespaces;
pub mod peek;
pub mod stopped;

// Not each test needs each of them.
#[allow(unused_imports)]
pub use namespaces::{UNSHARE, Veth, can, child, inside, role, run_as, sh};

/// Long enough that only a hang passes it.
pub fn deadline() -> Instant {
    Instant::now() + patience()
}

fn patience() -> Duration {
    // An emulated machine behind a slow queue may take its time.
    Duration::from_secs(if peer().is_some() { 240 } else { 30 })
}

/// The engines of a [`Sender`] on a TCP socket; `native` where the kernel has it.
pub fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine::Copy, Engine::Zerocopy, Engine::Auto];
    if has(Engine::Native) {
        engines.push(Engine::Native);
    }
    engines
}

/// Those that serve other sockets, too.
pub const ENGINES: [Engine; 3] = [Engine::Copy, Engine::Zerocopy, Engine::Auto];

/// Whether the engine can be used here; if not, says so as the reason for a skip.
pub fn has(engine: Engine) -> bool {
    use sendfile2::probe::Availability::Available;
    let engines = sendfile2::probe::machine().engines;
    let state = engines.into_iter().find(|state| state.engine == engine).unwrap();
    let has = matches!(state.availability, Available(_));
    if !has {
        println!("SKIP: the engine {engine}: {}", state.availability);
    }
    has
}

pub fn has_uring() -> bool {
    has(Engine::Uring)
}

/// Bytes that differ at each position of a page, from page to page, and between seeds; under
/// `pattern(seed, …)` and `pattern(!seed, …)` they differ everywhere.
pub fn pattern(seed: u8, range: std::ops::Range<u64>) -> Vec<u8> {
    range
        .map(|i| {
            let [a, b, c, ..] = i.to_le_bytes();
            seed ^ a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ c.wrapping_mul(7)
        })
        .collect()
}

/// An open temporary file of `len` bytes of `pattern(seed)`, on disk (not tmpfs).
pub fn file(seed: u8, len: u64) -> File {
    // The target directory is on whatever the checkout is on; /tmp may be tmpfs.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut file = tempfile::tempfile_in(dir).unwrap();
    file.write_all(&pattern(seed, 0..len)).unwrap();
    file
}

/// The file, guarded in the way in which writers wait for releases.
pub fn waiting(file: File) -> GuardedFile {
    GuardOptions::new().overwrite(Overwrite::Wait).nothing_exposed().guard(file).unwrap()
}

pub fn source(file: &File) -> Source {
    Source::new(file.try_clone().unwrap()).unwrap()
}

/// Where `cargo xtask guest nic` lets the peers be: behind a network device that sends from the
/// file's pages, where zero copy is true. Written as ADDRESS@NAMESPACE.
pub fn peer() -> Option<(String, String)> {
    // Those that play a role are in places of their own.
    let peer = std::env::var("SENDFILE2_TEST_PEER").ok().filter(|_| role().is_none())?;
    let (address, namespace) = peer.split_once('@').unwrap();
    Some((address.to_owned(), namespace.to_owned()))
}

fn listen(receive_buffer: Option<usize>) -> TcpListener {
    let listener = match peer() {
        None => TcpListener::bind("127.0.0.1:0").unwrap(),
        // A socket stays in the namespace of the thread that made it.
        Some((address, namespace)) => std::thread::spawn(move || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            let namespace = File::open(namespace).unwrap();
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            TcpListener::bind((address, 0)).unwrap()
        })
        .join()
        .unwrap(),
    };
    if let Some(bytes) = receive_buffer.or(peer().map(|_| BUFFERS)) {
        rustix::net::sockopt::set_socket_recv_buffer_size(listener.as_fd(), bytes).unwrap();
    }
    listener
}

/// A connected TCP pair, on loopback or over the device: the sending end, the receiving end.
pub fn tcp() -> (TcpStream, TcpStream) {
    pair(&listen(None))
}

/// The same, on loopback in any case.
pub fn tcp_on_this_host() -> (TcpStream, TcpStream) {
    pair(&TcpListener::bind("127.0.0.1:0").unwrap())
}

/// The same, and a receiving end that takes in much before it is read, also in small packets.
pub fn tcp_on_this_host_large_window() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(&listener, BUFFERS).unwrap();
    pair(&listener)
}

/// A connected pair of UDP sockets: the first sends.
pub fn udp() -> (std::net::UdpSocket, std::net::UdpSocket) {
    let rx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let tx = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    tx.connect(rx.local_addr().unwrap()).unwrap();
    rx.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (tx, rx)
}

pub fn tcp6() -> Option<(TcpStream, TcpStream)> {
    match TcpListener::bind("[::1]:0") {
        Ok(listener) => Some(pair(&listener)),
        Err(e) => {
            println!("SKIP: no IPv6 loopback here: {e}");
            None
        }
    }
}

/// Bytes of buffers over a device, as large as those of loopback grow by themselves.
const BUFFERS: usize = 1 << 20;

fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    if peer().is_some() {
        rustix::net::sockopt::set_socket_send_buffer_size(&sender, BUFFERS).unwrap();
    }
    let (receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(patience())).unwrap();
    (sender, receiver)
}

/// Bytes of receive buffer for a peer that takes in little until it is read. (With a window below
/// loopback's segment size TCP falls back to probing it by timer, and takes minutes.)
pub const SMALL_WINDOW: usize = 128 << 10;

/// A pair whose receiving end takes in little until it is read.
pub fn tcp_small_window() -> (TcpStream, TcpStream) {
    pair(&listen(Some(SMALL_WINDOW)))
}

/// The same, on loopback in any case.
pub fn tcp_small_window_on_this_host() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size(listener.as_fd(), SMALL_WINDOW).unwrap();
    pair(&listener)
}

pub fn sender(socket: TcpStream, engine: Engine) -> Sender {
    Sender::with(socket, Options::new().engine(engine)).unwrap()
}

/// Whether nothing more comes. (With a time limit on the socket a read is interrupted also by what
/// `io_uring` tells its thread.)
pub fn ends(socket: &mut impl Read) -> bool {
    loop {
        match socket.read(&mut [0]) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            end => return end.unwrap() == 0,
        }
    }
}

/// Reads exactly `len` bytes.
pub fn read(receiver: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    receiver.read_exact(&mut bytes).unwrap();
    bytes
}

/// How many bytes differ.
pub fn wrong(got: &[u8], expected: &[u8]) -> usize {
    assert_eq!(got.len(), expected.len(), "length");
    got.iter().zip(expected).filter(|(a, b)| a != b).count()
}

/// Fails without printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    let first = got.iter().zip(expected).position(|(a, b)| a != b);
    assert_eq!((got.len(), first), (expected.len(), None), "(length, first wrong byte)");
}

/// Addresses on loopback for [`tcp_between_two_addresses`].
pub const TWO_ADDRESSES: &str = "ip addr add 10.9.0.1/32 dev lo; ip addr add 10.9.0.2/32 dev lo";

/// A pair on this host that does not look like one. Call it where there are [`TWO_ADDRESSES`].
pub fn tcp_between_two_addresses() -> (TcpStream, TcpStream) {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let listener = TcpListener::bind("10.9.0.2:0").unwrap();
    let sender = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&sender, &SocketAddr::from(([10, 9, 0, 1], 0))).unwrap();
    connect(&sender, &listener.local_addr().unwrap()).unwrap();
    let (receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(patience())).unwrap();
    (sender.into(), receiver)
}

/// A queue on loopback that lets little through.
pub const SLOW: &str = "tc qdisc replace dev lo root tbf rate 8mbit burst 64k limit 64m";

/// Tells a thread to stop, also where the test fails.
pub struct SetOnDrop<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// Accepts one connection, and prints the address for the parent to connect to.
pub fn serve_one(listen: &str) -> TcpStream {
    let listener = TcpListener::bind(listen).unwrap();
    println!("LISTENING {}", listener.local_addr().unwrap());
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    stream
}

/// Reads a child's output up to the line that [`serve_one`] prints.
pub fn listening(output: &mut impl std::io::BufRead) -> SocketAddr {
    loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
        // The test harness prints the test's name before it, on the same line.
        if let Some((_, address)) = line.split_once("LISTENING ") {
            return address.trim().parse().unwrap();
        }
    }
}

/// A buffer that says when it is dropped: what a send holds must not be, before its release.
pub struct Flagged {
    pub bytes: Vec<u8>,
    pub dropped: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Flagged {
    pub fn new(bytes: Vec<u8>) -> (Self, std::sync::Arc<std::sync::atomic::AtomicBool>) {
        let dropped = std::sync::Arc::default();
        (Flagged { bytes, dropped: std::sync::Arc::clone(&dropped) }, dropped)
    }
}

impl AsRef<[u8]> for Flagged {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Flagged {
    fn drop(&mut self) {
        self.dropped.store(true, std::sync::atomic::Ordering::SeqCst);
    }
}

/// Sends from the file by zerocopy until the socket is full; returns the tickets and the bytes.
pub fn fill(sender: &mut Sender, source: &Source) -> (Vec<sendfile2::Ticket>, u64) {
    let (mut tickets, mut sent) = (Vec::new(), 0);
    let size = source.size().unwrap();
    while sent < size {
        match sender.try_send_file(source, sent..size, SendFlags::NONE).unwrap() {
            sendfile2::Sent::Accepted { bytes, ticket } => {
                sent += bytes as u64;
                tickets.push(ticket);
            }
            _ => break,
        }
    }
    assert!(sent > 0 && sender.in_flight().sends > 0, "nothing is stuck in flight");
    (tickets, sent)
}

/// Overwrites the file from its start.
pub fn overwrite(file: &File, bytes: &[u8]) {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, 0).unwrap();
}

pub fn reset(receiver: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&receiver, Some(Duration::ZERO)).unwrap();
    drop(receiver);
}
