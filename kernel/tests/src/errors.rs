//! Errors: sendfile(2)'s, in its order; sends whose release the module could not report; and that
//! none of them uses an id.

use std::fs::File;
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SocketType;
use sendfile2_sys::module::{Args, flags};

use crate::lab::{
    args, assert_ids, device, file, pattern, read, read_ids, reset, send, tcp, tcp_small, wait_ids,
    wrong,
};
use crate::{Done, Run, Test, sys};

pub(crate) const TESTS: &[Test] = &[
    ("errors_are_those_of_sendfile", Run::Plain(beside_sendfile)),
    ("what_the_arguments_must_be", Run::Plain(arguments)),
    ("no_error_uses_an_id", Run::Plain(no_ids)),
    ("sockets_that_cannot_tell_are_refused", Run::Plain(refused)),
    ("sigpipe_unless_it_is_not_wanted", Run::Plain(sigpipe)),
    ("a_reset_is_told_as_by_sendfile", Run::Plain(after_reset)),
    ("nothing_is_sent_if_it_could_not_be_told", Run::Plain(read_only_arguments)),
];

/// The tests that need root.
pub(crate) const ROOT_TESTS: &[Test] = &[
    ("kernel_tls_is_refused", Run::MaySkip(tls)),
    ("a_sockmap_is_refused", Run::MaySkip(sockmap)),
    ("tcp_that_may_probe_the_paths_mtu_is_refused", Run::Plain(mtu_probing)),
    ("a_connection_that_was_put_off_is_made", Run::Plain(put_off)),
];

const NOBODY: i32 = 1000;

/// The descriptors that the tests of errors use.
struct Bench {
    file: File,
    write_only: File,
    path_only: OwnedFd,
    directory: File,
    pipe: (OwnedFd, OwnedFd),
    proc_maps: File,
    socket: TcpStream,
    _peer: TcpStream,
    other: TcpStream,
    _other_peer: TcpStream,
    append: TcpStream,
    _append_peer: TcpStream,
    unconnected: OwnedFd,
    listener: TcpListener,
}

impl Bench {
    fn new() -> Self {
        let (socket, peer) = tcp();
        let (other, other_peer) = tcp();
        let (append, append_peer) = tcp();
        let mode = rustix::fs::fcntl_getfl(&append).expect("F_GETFL");
        rustix::fs::fcntl_setfl(&append, mode | OFlags::APPEND).expect("F_SETFL");
        let none = rustix::fs::Mode::empty();
        let tmp = std::env::temp_dir();
        let write_only = tmp.join(format!("kernel-tests-write-{}", std::process::id()));
        let open = File::create(&write_only).expect("a file");
        std::fs::remove_file(write_only).expect("remove");
        use rustix::net::{AddressFamily, SocketType};
        Bench {
            file: file(10, 10_000),
            write_only: open,
            path_only: rustix::fs::open("/proc/self/exe", OFlags::PATH, none).expect("O_PATH"),
            directory: File::open("/").expect("the root directory"),
            pipe: rustix::pipe::pipe().expect("pipe"),
            proc_maps: File::open("/proc/self/maps").expect("maps"),
            socket,
            _peer: peer,
            other,
            _other_peer: other_peer,
            append,
            _append_peer: append_peer,
            unconnected: rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)
                .expect("socket"),
            listener: TcpListener::bind("127.0.0.1:0").expect("bind"),
        }
    }
}

fn beside_sendfile() {
    let device = device();
    let bench = Bench::new();
    let ins: [(&str, BorrowedFd<'_>); 9] = [
        ("a file", bench.file.as_fd()),
        ("nothing", sys::number(NOBODY)),
        ("a file open for writing", bench.write_only.as_fd()),
        ("a path", bench.path_only.as_fd()),
        ("a directory", bench.directory.as_fd()),
        ("a pipe", bench.pipe.0.as_fd()),
        ("a pipe's other end", bench.pipe.1.as_fd()),
        ("a socket", bench.other.as_fd()),
        ("/proc/self/maps", bench.proc_maps.as_fd()),
    ];
    // Where both may succeed each sends to a socket of the same kind, and is given so little that
    // it fits.
    let outs: [(&str, BorrowedFd<'_>); 6] = [
        ("a socket", bench.socket.as_fd()),
        ("nothing", sys::number(NOBODY)),
        ("a file open for reading", bench.directory.as_fd()),
        ("a socket with O_APPEND", bench.append.as_fd()),
        ("a socket that is not connected", bench.unconnected.as_fd()),
        ("a socket that listens", bench.listener.as_fd()),
    ];
    let far = i64::MAX - 1;
    let places: [(Option<i64>, u64); 12] = [
        (Some(0), 10),
        (None, 10),
        (Some(0), 0),
        (None, 0),
        (Some(9_995), 10),
        (Some(10_000), 10),
        (Some(-1), 10),
        (Some(-1), 0),
        (Some(far), 1),
        (Some(far), 10),
        (Some(0), u64::MAX),
        (Some(1 << 60), 1),
    ];
    let mut differ = Vec::new();
    for (in_name, from) in ins {
        for (out_name, to) in outs {
            for (at, count) in places {
                let theirs = sendfile(to, from, at, count);
                let ours = by_device(&device, to, from, at, count);
                if theirs != ours {
                    differ.push(format!(
                        "{count} bytes at {at:?} of {in_name} to {out_name}: sendfile {theirs:?}, \
                         ours {ours:?}"
                    ));
                }
            }
        }
    }
    assert!(differ.is_empty(), "\n{}", differ.join("\n"));
}

/// The result, and the offset afterwards. Where the position is used, it begins at 0.
type Answer = (Result<usize, Errno>, Option<i64>);

fn rewind(from: BorrowedFd<'_>) {
    // What cannot be rewound has no position.
    let _ = rustix::fs::seek(from, rustix::fs::SeekFrom::Start(0));
}

fn sendfile(to: BorrowedFd<'_>, from: BorrowedFd<'_>, at: Option<i64>, count: u64) -> Answer {
    rewind(from);
    let mut offset = at.map(|at| u64::from_ne_bytes(at.to_ne_bytes()));
    let count = usize::try_from(count).expect("64 bits");
    let sent = rustix::fs::sendfile(to, from, offset.as_mut(), count);
    (sent, offset.map(|at| i64::from_ne_bytes(at.to_ne_bytes())))
}

fn by_device(
    device: &sendfile2_sys::module::Device,
    to: BorrowedFd<'_>,
    from: BorrowedFd<'_>,
    at: Option<i64>,
    count: u64,
) -> Answer {
    rewind(from);
    let mut args = Args::default();
    args.count = count;
    args.flags = flags::ZC | if at.is_some() { 0 } else { flags::POSITION };
    args.offset = at.unwrap_or(0);
    let sent = device.send(to, from, &mut args);
    (sent, at.map(|_| args.offset))
}

fn arguments() {
    let (device, (tx, _rx)) = (device(), tcp());
    let from = file(11, 100);
    let bad = |change: &dyn Fn(&mut Args)| {
        let mut args = args(10, 0);
        change(&mut args);
        assert_eq!(send(&device, &tx, &from, &mut args), Err(Errno::INVAL), "{args:?}");
    };
    bad(&|args| args.flags = 0);
    bad(&|args| args.flags |= 1);
    bad(&|args| args.flags |= 1 << 31);
    bad(&|args| args.state = 1);
    bad(&|args| args.deadline = 1);
    bad(&|args| {
        args.flags |= flags::WAIT;
        args.deadline = u64::MAX;
    });
    bad(&|args| args.flags |= flags::WAIT | flags::MORE);
    // EBADF comes after these.
    let mut args = args(10, 0);
    args.flags = 0;
    assert_eq!(send(&device, sys::number(NOBODY), &from, &mut args), Err(Errno::INVAL));
}

fn no_ids() {
    let (device, (tx, rx)) = (device(), tcp());
    let from = file(12, 1000);
    let mut sent = 0;
    let call = |at: i64, count: usize, expected: Result<usize, Errno>| {
        let mut args = args(count, 0);
        args.offset = at;
        assert_eq!(send(&device, &tx, &from, &mut args), expected, "{count} bytes at {at}");
    };
    for _ in 0..10 {
        call(1000, 10, Ok(0));
        call(0, 0, Ok(0));
        call(-1, 10, Err(Errno::INVAL));
        assert_eq!(
            send(&device, &tx, File::open("/").expect("/"), &mut args(10, 0)),
            Err(Errno::INVAL)
        );
        call(0, 1000, Ok(1000));
        sent += 1;
    }
    assert_eq!(wrong(&read(&rx, 10_000), &pattern(12, 1000).repeat(10)), 0);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 10);
    read_ids(&tx, &mut ids);
    assert_ids(ids, sent);
}

fn refused() {
    let device = device();
    let from = file(13, 1000);
    let refused = |to: BorrowedFd<'_>, error, what: &str| {
        assert_eq!(device.send(to, from.as_fd(), &mut args(10, 0)), Err(error), "{what}");
        // Also where there is nothing to send.
        let mut at_end = args(10, 0);
        at_end.offset = 1000;
        assert_eq!(device.send(to, from.as_fd(), &mut at_end), Err(error), "{what}, at the end");
    };
    let (unix, _peer) = UnixStream::pair().expect("socketpair");
    refused(unix.as_fd(), Errno::OPNOTSUPP, "unix");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
    udp.connect(udp.local_addr().expect("address")).expect("connect");
    refused(udp.as_fd(), Errno::OPNOTSUPP, "UDP");
    let (_out, into) = rustix::pipe::pipe().expect("pipe");
    refused(into.as_fd(), Errno::INVAL, "a pipe");
    refused(from.as_fd(), Errno::INVAL, "a file");
}

fn sigpipe() {
    sys::count_signal(libc::SIGPIPE);
    let (device, (tx, _rx)) = (device(), tcp());
    let from = file(14, 1000);
    tx.shutdown(Shutdown::Write).expect("shutdown");
    let before = sys::signals();
    assert_eq!(send(&device, &tx, &from, &mut args(10, flags::NOSIGNAL)), Err(Errno::PIPE));
    assert_eq!(sys::signals(), before);
    assert_eq!(send(&device, &tx, &from, &mut args(10, 0)), Err(Errno::PIPE));
    assert_eq!(sys::signals(), before + 1);
}

fn after_reset() {
    let device = device();
    let from = file(15, 1 << 20);
    let errors = |send: &dyn Fn(&TcpStream) -> Result<usize, Errno>| {
        let (tx, rx) = tcp_small();
        tx.set_nonblocking(true).expect("O_NONBLOCK");
        while send(&tx).is_ok() {}
        reset(rx);
        // The reset has arrived when the socket reports it.
        crate::lab::wait_until("a reset", || {
            use rustix::event::{PollFd, PollFlags, Timespec, poll};
            let mut fds = [PollFd::new(&tx, PollFlags::empty())];
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            poll(&mut fds, Some(&now)).expect("poll");
            fds[0].revents().contains(PollFlags::HUP)
        });
        (send(&tx), send(&tx))
    };
    let theirs = errors(&|tx| rustix::fs::sendfile(tx, &from, Some(&mut 0), 1 << 20));
    let ours = errors(&|tx| send(&device, tx, &from, &mut args(1 << 20, flags::NOSIGNAL)));
    assert_eq!(theirs, (Err(Errno::CONNRESET), Err(Errno::PIPE)));
    assert_eq!(ours, theirs);
}

fn tls() -> Done {
    let (tx, _rx) = tcp();
    if let Err(e) = sys::enable_tls(&tx) {
        return Done::Skipped(format!("no kernel TLS here (is the module tls loaded?): {e}"));
    }
    let from = file(16, 100);
    assert_eq!(send(&device(), &tx, &from, &mut args(10, 0)), Err(Errno::OPNOTSUPP));
    Done::Passed
}

fn sockmap() -> Done {
    let (tx, _rx) = tcp();
    let _map = match sys::into_sockmap(&tx) {
        Ok(map) => map,
        Err(e) => return Done::Skipped(format!("no sockmap here: {e}")),
    };
    let from = file(17, 100);
    assert_eq!(send(&device(), &tx, &from, &mut args(10, 0)), Err(Errno::OPNOTSUPP));
    Done::Passed
}

/// MTU probing is refused: a probe carries pages without what counts them, so their notification
/// comes while it is on its way.
fn mtu_probing() {
    let probing = |value| {
        std::fs::write("/proc/sys/net/ipv4/tcp_mtu_probing", value).expect("tcp_mtu_probing");
    };
    let (device, from) = (device(), file(18, 100));
    let refused = |socket: &TcpStream, what| {
        let sent = send(&device, socket, &from, &mut args(10, 0));
        assert_eq!(sent, Err(Errno::OPNOTSUPP), "{what}");
    };
    let (before, _peer) = tcp();
    probing("1");
    refused(&before, "where every socket may begin to");
    probing("2");
    let (probes, _peer) = tcp();
    probing("0");
    refused(&probes, "a socket that does");
    assert_eq!(send(&device, &before, &from, &mut args(10, 0)), Ok(10), "one that does not");
}

/// Arguments that cannot be written to are refused, where `sendfile(2)` would have sent.
fn read_only_arguments() {
    let (device, from, (tx, rx)) = (device(), file(19, 100), tcp());
    let arguments = args(10, 0).command(tx.as_fd(), from.as_fd());
    let sent = sys::send_by_read_only(&device, &arguments);
    assert_eq!(sent, Err(Errno::FAULT));
    let mut ids = Vec::new();
    read_ids(&tx, &mut ids);
    assert_eq!(ids, [], "nobody would know of it");
    assert_eq!(send(&device, &tx, &from, &mut args(20, 0)), Ok(20));
    drop(tx);
    assert_eq!(read(&rx, 20), pattern(19, 20), "the first bytes on their way");
}

/// A socket with `TCP_FASTOPEN_CONNECT` connects by its first send.
fn put_off() {
    const PATH: &str = "/proc/sys/net/ipv4/tcp_fastopen";
    let before = std::fs::read(PATH).expect(PATH);
    // As a client, and without a cookie.
    std::fs::write(PATH, "5").expect(PATH);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = listener.local_addr().expect("address");
    let (device, from) = (device(), file(20, 100));
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, SocketType::STREAM, None);
    let socket = socket.expect("socket");
    sys::put_connecting_off(&socket).expect("TCP_FASTOPEN_CONNECT");
    rustix::net::connect(&socket, &to).expect("connect");
    assert_eq!(rustix::net::getpeername(&socket).err(), Some(Errno::NOTCONN), "it was not put off");
    assert_eq!(send(&device, &socket, &from, &mut args(100, 0)), Ok(100));
    let (peer, _) = listener.accept().expect("accept");
    assert_eq!(read(&peer, 100), pattern(20, 100));
    std::fs::write(PATH, before).expect(PATH);
}
