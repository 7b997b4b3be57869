//! Overwriting at once: writers of a file that detaches wait for no peer, whatever is in flight.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::detachable::{LEN, files, fresh, made, rest};
use common::filesystems::{here, mounted};
use common::{assert_same, deadline, pattern, read, sender};
use sendfile2::detach::Detacher;
use sendfile2::guard::{GuardOptions, GuardedFile, Overwrite, TryWrite};
use sendfile2::{Engine, Error, SendFlags, Sender, Sent, Status};

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// Sends from `range` by leases that are over at once, as far as the socket takes it; its peer
/// reads nothing. Returns how far that was.
fn fill(sender: &mut Sender, guard: &GuardedFile, range: Range<u64>) -> u64 {
    let mut at = range.start;
    while at < range.end {
        let part = at..(at + (64 << 10)).min(range.end);
        let lease = guard.try_lease(part.clone()).unwrap();
        match sender.try_send_lease(&lease, part, SendFlags::NONE).unwrap() {
            Sent::Accepted { bytes, .. } => at += bytes as u64,
            Sent::WouldBlock => break,
            other => panic!("{other:?}"),
        }
    }
    at
}

const BY: [Engine; 3] = [Engine::Zerocopy, Engine::Sendfile, Engine::Copy];

#[test]
fn a_writer_waits_for_no_peer_and_no_wrong_byte_arrives() {
    for (filesystem, file) in files() {
        for engine in BY {
            let name = filesystem.name;
            common::overwrite(&file, &pattern(1, 0..LEN));
            let guard = fresh(&file);
            let (tx, peer) = common::tcp_small_window_on_this_host();
            let mut sender = sender(tx, engine);
            let sent = fill(&mut sender, &guard, 0..LEN);
            // Any offset and length, by pieces; more than what is in flight, too.
            for at in (1..LEN).step_by(100_003) {
                let piece = at..(at + 70_001).min(LEN);
                guard.write_at(&pattern(!1, piece.clone()), at, Duration::from_secs(5)).unwrap();
            }
            let counters = guard.counters();
            assert_eq!(counters.aborts, 0);
            assert!(engine == Engine::Copy || counters.detached > 0, "{name}, {engine}");
            assert_same(&rest(peer, sender), &pattern(1, 0..sent));
        }
    }
}

/// The control: the same writes, not through the guard.
#[test]
fn control_who_bypasses_the_guard_is_seen() {
    for engine in [Engine::Zerocopy, Engine::Sendfile] {
        let Some(file) = made(&here()) else { return };
        let guard = fresh(&file);
        let (tx, peer) = common::tcp_small_window_on_this_host();
        let mut sender = sender(tx, engine);
        let sent = fill(&mut sender, &guard, 0..LEN);
        file.write_all_at(&pattern(!1, 0..LEN), 0).unwrap();
        let got = rest(peer, sender);
        assert!(common::wrong(&got, &pattern(1, 0..sent)) > 0, "{engine}");
    }
}

#[test]
fn where_writers_wait_they_do_so_for_a_lease_in_hand() {
    let Some(file) = made(&here()) else { return };
    let guard = GuardOptions::new().nothing_exposed().overwrite(Overwrite::Wait);
    let guard = guard.guard(file).unwrap();
    let lease = guard.try_lease(0..1000).unwrap();
    let new = pattern(!1, 0..1000);
    let blocked = guard.try_write_at(&new, 0).unwrap();
    assert!(matches!(&blocked, TryWrite::Blocked(by) if by[0].held_by_app), "{blocked:?}");
    let (told, (tx, mut peer)) = (lease.clone(), common::tcp_on_this_host());
    let writing = std::thread::scope(|threads| {
        let writer = threads.spawn(|| guard.write_at(&new, 0, deadline()));
        while guard.writers() == 0 {
            std::thread::yield_now();
        }
        // One generation: what is sent by the lease is what was there when it was taken.
        let mut sender = sender(tx, Engine::Copy);
        sender.send_lease(&told, 0..1000, SendFlags::NONE, deadline()).unwrap();
        drop((told, lease));
        writer.join().unwrap()
    });
    writing.unwrap();
    assert_same(&read(&mut peer, 1000), &pattern(1, 0..1000));
}

#[test]
fn a_writer_that_polls_and_one_that_tries_detach_too() {
    let Some(file) = made(&here()) else { return };
    for engine in [Engine::Zerocopy, Engine::Sendfile] {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let guard = fresh(&file);
        let (tx, peer) = common::tcp_small_window_on_this_host();
        let mut sender = sender(tx, engine);
        let sent = fill(&mut sender, &guard, 0..LEN);
        let half = sent / 2;
        let tried = guard.try_write_at(&pattern(!1, 0..half), 0).unwrap();
        assert_eq!(tried, TryWrite::Written, "{engine}");
        let mut queued = guard.queue_writer(half..LEN).unwrap();
        let range = queued.try_acquire().unwrap().expect("nobody is in the way");
        range.write_at(&pattern(!1, half..LEN), half).unwrap();
        drop(queued);
        assert_same(&rest(peer, sender), &pattern(1, 0..sent));
    }
}

#[test]
fn a_new_size_and_a_hole_change_nothing_that_is_in_flight() {
    let Some(file) = made(&here()) else { return };
    for engine in [Engine::Zerocopy, Engine::Sendfile] {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let guard = fresh(&file);
        let (tx, peer) = common::tcp_small_window_on_this_host();
        let mut sender = sender(tx, engine);
        let sent = fill(&mut sender, &guard, 0..LEN);
        guard.punch_hole(5000..70_000, deadline()).unwrap();
        guard.set_len(100_001, deadline()).unwrap();
        guard.set_len(LEN, deadline()).unwrap();
        guard.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
        assert_same(&rest(peer, sender), &pattern(1, 0..sent));
    }
}

/// Also where the last page has so little left that direct I/O cannot write it.
#[test]
fn what_a_new_size_leaves_of_a_page_can_be_overwritten() {
    let Some(file) = made(&here()) else { return };
    let (whole, cut) = (8192 + 600, 8192 + 100);
    let guard = fresh(&file);
    guard.set_len(whole, deadline()).unwrap();
    let (tx, peer) = common::tcp_on_this_host_large_window();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(0..whole).unwrap();
    if let Err(refused) = sender.try_send_lease(&lease, 0..whole, SendFlags::NONE) {
        println!("SKIP: direct I/O here writes more than 512 bytes: {refused}");
        return;
    }
    drop(lease);
    guard.set_len(cut, deadline()).unwrap();
    guard.write_at(&pattern(!1, 0..cut), 0, deadline()).unwrap();
    assert_eq!(guard.exposed(), []);
    assert_same(&rest(peer, sender), &pattern(1, 0..whole));
}

/// What was sent by others before the file was guarded.
#[test]
fn what_may_be_in_flight_from_before_is_detached_whoever_sent_it() {
    let Some(file) = made(&here()) else { return };
    for (options, safe) in [
        (GuardOptions::new(), true),
        (GuardOptions::new().overwrite(Overwrite::Wait), true),
        (GuardOptions::new().nothing_exposed(), false),
    ] {
        common::overwrite(&file, &pattern(1, 0..LEN));
        let (tx, mut peer) = common::tcp_on_this_host_large_window();
        let mut offset = 0;
        let sent = rustix::fs::sendfile(&tx, &file, Some(&mut offset), 100_000).unwrap();
        drop(tx);
        let guard = options.guard(file.try_clone().unwrap()).unwrap();
        guard.write_at(&pattern(!1, 0..LEN / 2), 0, deadline()).unwrap();
        let exposed = guard.exposed();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        let wrong = common::wrong(&got, &pattern(1, 0..sent as u64));
        assert_eq!(wrong == 0, safe, "{options:?}: {wrong} wrong bytes");
        if safe {
            assert_eq!(exposed, [LEN / 2..LEN], "what was overwritten is exposed no more");
        }
    }
}

#[test]
fn the_release_of_what_is_exposed_is_never_reported() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, _peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(0..1000).unwrap();
    let sent = sender.send_lease(&lease, 0..1000, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.status(), Status::Exposed);
    assert_eq!(sent.ticket.choice().engine, Engine::Sendfile);
    let error = sent.ticket.wait_released(deadline()).unwrap_err();
    assert!(matches!(error, Error::Exposed), "{error}");
    sent.ticket.wait_acknowledged(deadline()).unwrap();
    assert_eq!(sender.in_flight().sends, 0);
    assert_eq!(guard.exposed(), [0..1000]);
}

#[test]
fn sendfile_serves_nothing_that_could_not_be_overwritten_safely() {
    let Some(file) = made(&here()) else { return };
    let waiting = common::waiting(file.try_clone().unwrap());
    let (tx, _peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = waiting.try_lease(0..1000).unwrap();
    let refused = [
        sender.try_send_lease(&lease, 0..1000, SendFlags::NONE).map(drop).unwrap_err(),
        sender.try_send_file(waiting.source(), 0..1000, SendFlags::NONE).map(drop).unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, Error::Refused { engine: Engine::Sendfile, .. }), "{error}");
        assert!(error.to_string().contains("detach"), "{error}");
    }
    // Memory is copied, headers and buffers alike.
    sender.send(b"head", SendFlags::MORE, deadline()).unwrap();
    let mut buffer = sendfile2::SendBuffer::new(vec![0; 100_000]);
    let ticket = sender.send_buffer(&mut buffer, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(ticket.choice().engine, Engine::Copy);
}

/// Where it would copy, and only on sockets that `sendfile(2)` does not block.
#[test]
fn auto_takes_sendfile_where_many_streams_send_what_is_leased() {
    let Some(file) = made(&here()) else { return };
    let (guard, waiting) = (fresh(&file), common::waiting(file.try_clone().unwrap()));
    let mut streams: Vec<_> = (0..8)
        .map(|_| {
            let (tx, peer) = common::tcp_on_this_host_large_window();
            tx.set_nonblocking(true).unwrap();
            (sender(tx, Engine::Auto), peer)
        })
        .collect();
    let (tx, _peer) = common::tcp_on_this_host_large_window();
    let mut blocking = sender(tx, Engine::Auto);
    let engine = |sender: &mut Sender, guard: &GuardedFile| {
        let lease = guard.try_lease(0..65_536).unwrap();
        match sender.try_send_lease(&lease, 0..65_536, SendFlags::NONE).unwrap() {
            Sent::Accepted { ticket, .. } => ticket.choice().engine,
            other => panic!("{other:?}"),
        }
    };
    // From here on there are eight.
    for (sender, _) in &mut streams {
        engine(sender, &guard);
    }
    let (first, _) = &mut streams[0];
    assert_eq!(engine(first, &guard), Engine::Sendfile);
    assert_eq!(engine(first, &waiting), Engine::Copy, "nobody detaches it");
    assert_eq!(engine(&mut blocking, &guard), Engine::Copy, "it would block");
}

#[test]
fn sendfile_sends_what_there_is_on_every_stream_in_order() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, rx) = std::os::unix::net::UnixStream::pair().unwrap();
    let (tcp, peer) = common::tcp_on_this_host();
    let sockets: [(std::os::fd::OwnedFd, Box<dyn Read + Send>); 2] =
        [(tx.into(), Box::new(rx)), (tcp.into(), Box::new(peer))];
    for (socket, mut peer) in sockets {
        let options = sendfile2::Options::new().engine(Engine::Sendfile);
        let mut sender = Sender::with(socket, options).unwrap();
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            got
        });
        let lease = guard.try_lease(0..LEN + 10).unwrap();
        sender.send(b"head", SendFlags::MORE, deadline()).unwrap();
        sender.send_lease(&lease, 0..1_500_001, SendFlags::MORE, deadline()).unwrap();
        sender.send_lease(&lease, 7..9, SendFlags::NONE, deadline()).unwrap();
        let error =
            sender.send_lease(&lease, LEN - 5..LEN + 10, SendFlags::NONE, deadline()).unwrap_err();
        assert!(matches!(error.error, Error::Truncated { at: LEN, .. }), "{error}");
        assert_eq!(error.transfer.bytes, 5);
        drop(lease);
        drop(sender);
        let expected = [
            b"head".to_vec(),
            pattern(1, 0..1_500_001),
            pattern(1, 7..9),
            pattern(1, LEN - 5..LEN),
        ];
        assert_same(&reading.join().unwrap(), &expected.concat());
    }
}

/// Where the peer is gone `sendfile(2)` raises SIGPIPE; a program that does not ignore it lives on.
#[test]
fn sendfile_raises_no_signal() {
    let name = "sendfile_raises_no_signal";
    if common::role().is_none() {
        return common::run_as(&[], name, "with SIGPIPE");
    }
    let Some(file) = made(&here()) else { return };
    // SAFETY: nothing else runs in this process that handles signals.
    #[expect(unsafe_code, reason = "the disposition that C programs have")]
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    let guard = fresh(&file);
    let (tx, peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    drop(peer);
    let lease = guard.try_lease(0..LEN).unwrap();
    let mut failed = 0;
    for _ in 0..3 {
        let sent = sender.send_lease(&lease, 0..LEN, SendFlags::NONE, deadline());
        failed += usize::from(sent.is_err());
    }
    assert!(failed > 0);
}

/// A reader of a socket that was made non-blocking for `sendfile(2)` waits, and it is given back as
/// it was.
#[test]
fn a_blocking_socket_stays_one_for_its_owner() {
    use std::io::Write;
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(0..1000).unwrap();
    sender.send_lease(&lease, 0..1000, SendFlags::NONE, deadline()).unwrap();
    let writing = std::thread::spawn(move || {
        read(&mut peer, 1000);
        peer.write_all(b"request").unwrap();
        peer
    });
    let mut request = [0; 7];
    sender.read_exact(&mut request).unwrap();
    assert_eq!(&request, b"request");
    drop(writing.join().unwrap());
    let socket = sender.into_socket(deadline()).unwrap().socket;
    let flags = rustix::fs::fcntl_getfl(&socket).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

/// As [`fill`], by a ring. Returns what keeps the connection, too.
fn fill_by_ring(
    socket: TcpStream,
    guard: &GuardedFile,
) -> (u64, (sendfile2::uring::Socket, sendfile2::uring::Driver)) {
    let mut driver = sendfile2::uring::Driver::new().unwrap();
    let mut socket = driver.add(socket).unwrap();
    let mut at = 0;
    while at < LEN && socket.queued() == 0 {
        let lease = guard.try_lease(at..at + (64 << 10)).unwrap();
        socket.queue_lease(&lease, at..at + (64 << 10), SendFlags::NONE).unwrap();
        driver.submit().unwrap();
        driver.reap().unwrap();
        at += 64 << 10;
    }
    (socket.counters().accepted, (socket, driver))
}

/// In the child: sends under leases, as far as the socket takes it, and waits to be killed.
fn send_in_child(engine: Engine, options: &GuardOptions) {
    let socket = TcpStream::connect(std::env::var("ADDRESS").unwrap()).unwrap();
    let guard = options.open(std::env::var("FILE").unwrap()).unwrap();
    // Another process keeps the socket, as a forked worker would.
    let held = socket.as_fd().try_clone_to_owned().unwrap();
    let (sent, _kept): (_, Box<dyn std::any::Any>) = if engine == Engine::Uring {
        let (sent, kept) = fill_by_ring(socket, &guard);
        (sent, Box::new(kept))
    } else {
        let mut sender = sender(socket, engine);
        (fill(&mut sender, &guard, 0..LEN), Box::new(sender))
    };
    let mut cat = std::process::Command::new("cat");
    cat.stdin(Stdio::inherit()).stdout(Stdio::null()).stderr(held);
    if std::env::var("HELD").is_ok() {
        #[expect(clippy::zombie_processes, reason = "this is killed before it, and init waits")]
        cat.spawn().unwrap();
    }
    println!("SENT {sent}");
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Clients of a server that was killed get all their bytes, and the restarted one overwrites at
/// once, also where a fork holds the socket.
#[test]
fn after_a_kill_all_bytes_arrive_and_the_file_is_overwritten_at_once() {
    let name = "after_a_kill_all_bytes_arrive_and_the_file_is_overwritten_at_once";
    if let Some(role) = common::role() {
        return send_in_child(role.parse().unwrap(), &GuardOptions::new());
    }
    for (filesystem, file) in files() {
        for engine in [Engine::Zerocopy, Engine::Sendfile, Engine::Uring] {
            if engine == Engine::Uring && !common::has_uring() {
                continue;
            }
            for held in [false, true] {
                common::overwrite(&file, &pattern(1, 0..LEN));
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let small = common::SMALL_WINDOW;
                rustix::net::sockopt::set_socket_recv_buffer_size(&listener, small).unwrap();
                let mut child = common::child(&[], name, engine.name());
                child.env("ADDRESS", listener.local_addr().unwrap().to_string());
                child.env("FILE", filesystem.dir.join("file"));
                if held {
                    child.env("HELD", "1");
                }
                let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                let (mut peer, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                let sent = lines.find_map(|line| {
                    line.unwrap().split_once("SENT ").map(|(_, sent)| sent.trim().parse().unwrap())
                });
                let sent: u64 = sent.unwrap();
                child.kill().unwrap();
                let input = child.stdin.take();
                child.wait().unwrap();
                let restarted = GuardedFile::open(filesystem.dir.join("file")).unwrap();
                restarted.write_at(&pattern(!1, 0..LEN), 0, deadline()).unwrap();
                drop(input);
                let mut got = Vec::new();
                peer.read_to_end(&mut got).unwrap();
                let what = format!("{}, {engine}, held: {held}", filesystem.name);
                assert_eq!(got.len(), index(sent), "{what}");
                assert_eq!(common::wrong(&got, &pattern(1, 0..sent)), 0, "{what}");
            }
        }
    }
}

/// Beside a program that stores through a mapping nothing is written in place: it is refused, or
/// the pages were out.
#[test]
fn beside_writers_of_a_mapping_all_that_was_sent_arrives_or_the_write_is_refused() {
    let filesystem = here();
    let Some(file) = made(&filesystem) else { return };
    let guard = fresh(&file);
    let (tx, peer) = common::tcp_small_window_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let sent = fill(&mut sender, &guard, 0..64 << 10);
    // By a program of its own, which is what the library knows nothing of; beside the range, in the
    // same folio.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),1<<20)\n\
                  print('on',flush=True)\nwhile True: m[65536:65540]=b'mine'";
    let python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(filesystem.dir.join("file"))
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        println!("SKIP: no python3");
        return;
    };
    let mut line = String::new();
    BufReader::new(python.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut written = 0;
    for _ in 0..50 {
        match guard.write_at(&pattern(!1, 0..sent), 0, Duration::from_millis(50)) {
            Ok(()) => written += 1,
            Err(Error::NotDetached(_) | Error::Deadline(_)) => {}
            Err(e) => panic!("{e}"),
        }
    }
    python.kill().unwrap();
    python.wait().unwrap();
    println!("{written} of 50 writes beside a mapping's writer");
    assert_same(&rest(peer, sender), &pattern(1, 0..sent));
}

/// A neighbour in the same page sends after the page was detached, and before the writer is done.
#[test]
fn what_a_neighbour_sends_after_its_page_was_detached_stays_exposed() {
    let Some(file) = made(&here()) else { return };
    let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
    let lease = guard.try_lease(0..1000).unwrap();
    let mut queued = guard.queue_writer(1000..u64::MAX).unwrap();
    let range = queued.try_acquire().unwrap().expect("nobody is in the way");
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    sender.send_lease(&lease, 0..1000, SendFlags::NONE, deadline()).unwrap();
    drop(lease);
    range.set_len(LEN / 2).unwrap();
    drop(queued);
    assert_eq!(guard.exposed(), [0..1000]);
    guard.write_at(&pattern(!1, 0..1000), 0, deadline()).unwrap();
    assert_same(&read(&mut peer, 1000), &pattern(1, 0..1000));
}

/// The part of a lease that was never sent.
#[test]
fn only_what_is_sent_is_exposed() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    guard.set_len(4196, deadline()).unwrap();
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(0..4196).unwrap();
    sender.send_lease(&lease, 0..4096, SendFlags::NONE, deadline()).unwrap();
    sender.send_lease(&lease, 4096..4196, SendFlags::NONE, deadline()).unwrap_err();
    drop(lease);
    assert_eq!(guard.exposed(), [0..4096]);
    guard.write_at(&pattern(!1, 0..4196), 0, deadline()).unwrap();
    assert_same(&read(&mut peer, 4096), &pattern(1, 0..4096));
}

/// However small the pieces are that a lease is detached in, its packets keep its folios once.
#[test]
fn what_packets_keep_is_counted_once() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, peer) = common::tcp_small_window_on_this_host();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..LEN).unwrap();
    let sent = match sender.try_send_lease(&lease, 0..LEN, SendFlags::NONE).unwrap() {
        Sent::Accepted { bytes, .. } => bytes as u64,
        other => panic!("{other:?}"),
    };
    drop(lease);
    for at in (0..LEN).step_by(10_007).take(300) {
        guard.write_at(&pattern(!1, at..at + 10), at, deadline()).unwrap();
    }
    let kept = guard.counters().kept_by_packets;
    assert!(kept <= LEN, "{kept}");
    assert_same(&rest(peer, sender), &pattern(1, 0..sent));
    while !guard.in_flight().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(guard.counters().kept_by_packets, 0);
}

/// Without descriptors to detach by, what may be in flight from before is not overwritten.
#[test]
fn without_descriptors_nothing_exposed_is_overwritten() {
    let name = "without_descriptors_nothing_exposed_is_overwritten";
    if common::role().is_none() {
        return common::run_as(&[], name, "without descriptors");
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let new = pattern(!1, 0..1000);
    for (filesystem, file) in files() {
        // So many are left.
        for left in 0..5 {
            common::overwrite(&file, &pattern(1, 0..1000));
            let (tx, mut peer) = common::tcp_on_this_host();
            let mut offset = 0;
            assert_eq!(rustix::fs::sendfile(&tx, &file, Some(&mut offset), 1000), Ok(1000));
            let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
            let next = file.as_fd().try_clone_to_owned().unwrap();
            let next = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next)).unwrap();
            let few = Rlimit { current: Some(next + left), maximum: limit.maximum };
            setrlimit(Resource::Nofile, few).unwrap();
            let tried = [
                guard.write_at(&new, 0, deadline()).map(|()| TryWrite::Written),
                guard.try_write_at(&new, 0),
            ];
            setrlimit(Resource::Nofile, limit).unwrap();
            if left == 0 {
                for refused in tried {
                    assert!(matches!(refused, Err(Error::NotDetached(_))), "{refused:?}");
                }
                let mut unchanged = vec![0; 1000];
                file.read_exact_at(&mut unchanged, 0).unwrap();
                assert_same(&unchanged, &pattern(1, 0..1000));
            }
            guard.write_at(&new, 0, deadline()).unwrap();
            let wrong = common::wrong(&read(&mut peer, 1000), &pattern(1, 0..1000));
            assert_eq!(wrong, 0, "{}, {left} left", filesystem.name);
        }
    }
}

/// A new size leaves so little of a page that is in flight that direct I/O cannot write it.
#[test]
fn what_a_new_size_leaves_of_a_page_in_flight_can_be_overwritten() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Sendfile);
    let lease = guard.try_lease(4096..4196).unwrap();
    sender.send_lease(&lease, 4096..4196, SendFlags::NONE, deadline()).unwrap();
    drop(lease);
    guard.set_len(4196, deadline()).unwrap();
    guard.write_at(&pattern(!1, 4096..4196), 4096, deadline()).unwrap();
    assert_same(&read(&mut peer, 100), &pattern(1, 4096..4196));
}

/// The same, and the process is killed: the next one cannot detach that page.
#[test]
fn what_a_new_size_left_before_a_kill_does_not_change() {
    let name = "what_a_new_size_left_before_a_kill_does_not_change";
    if common::role().is_some() {
        let socket = TcpStream::connect(std::env::var("ADDRESS").unwrap()).unwrap();
        let guard = GuardOptions::new().nothing_exposed();
        let guard = guard.open(std::env::var("FILE").unwrap()).unwrap();
        let mut sender = sender(socket, Engine::Sendfile);
        let lease = guard.try_lease(4096..4196).unwrap();
        sender.send_lease(&lease, 4096..4196, SendFlags::NONE, deadline()).unwrap();
        drop(lease);
        guard.set_len(4196, deadline()).unwrap();
        println!("SENT");
        std::io::stdin().read_line(&mut String::new()).unwrap();
        return;
    }
    let filesystem = here();
    if made(&filesystem).is_none() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut child = common::child(&[], name, "sender");
    child.env("ADDRESS", listener.local_addr().unwrap().to_string());
    child.env("FILE", filesystem.dir.join("file"));
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map(|line| line.unwrap()).any(|line| line.contains("SENT")));
    child.kill().unwrap();
    child.wait().unwrap();
    let restarted = GuardedFile::open(filesystem.dir.join("file")).unwrap();
    restarted.write_at(&pattern(!1, 4096..4196), 4096, deadline()).unwrap();
    assert_same(&read(&mut peer, 100), &pattern(1, 4096..4196));
}

/// A page of which a new size leaves so little that it cannot be detached may be about to be sent.
#[test]
fn a_new_size_needs_what_it_leaves_little_of_a_page_of() {
    let Some(file) = made(&here()) else { return };
    let guard = fresh(&file);
    let lease = guard.try_lease(4096..4100).unwrap();
    let mut queued = guard.queue_writer(4196..u64::MAX).unwrap();
    let range = queued.try_acquire().unwrap().unwrap();
    let refused = range.set_len(4196).unwrap_err();
    assert!(matches!(&refused, Error::NotLeased { range } if range.start == 4096), "{refused}");
    drop(queued);
    guard.set_len(8192, deadline()).unwrap();
    guard.set_len(4196, deadline()).unwrap();
    guard.write_at(&pattern(!1, 4096..4196), 4096, deadline()).unwrap();
    let mut kept = [0; 4];
    assert_eq!(lease.read_at(&mut kept, 4096).unwrap(), 4);
    assert_same(&kept, &pattern(1, 4096..4100));
}

/// A clone of the last bytes of a file ends where the file does: one of a file that has grown since
/// is refused, and that says nothing about the next.
#[test]
fn a_file_that_grows_meanwhile_is_detached_later() {
    let Some(filesystem) = mounted("btrfs") else { return };
    let Some(file) = made(&filesystem) else { return };
    file.set_len(10_000).unwrap();
    let detacher = Detacher::new(&common::source(&file)).unwrap();
    let grows = AtomicBool::new(true);
    let mut refused = 0;
    std::thread::scope(|threads| {
        threads.spawn(|| {
            let mut at = 10_000;
            while grows.load(Ordering::Relaxed) {
                file.write_all_at(b"+", at).unwrap();
                at += 1;
            }
        });
        for _ in 0..5000 {
            let size = file.metadata().unwrap().len();
            refused += usize::from(detacher.detach(&(size - 1..size)).is_err());
        }
        grows.store(false, Ordering::Relaxed);
    });
    let (tx, mut peer) = common::tcp_on_this_host();
    let mut offset = 0;
    assert_eq!(rustix::fs::sendfile(&tx, &file, Some(&mut offset), 1000), Ok(1000));
    let detached = detacher.detach(&(0..1000));
    assert!(detached.is_ok(), "{refused} refused before: {detached:?}");
    read(&mut peer, 1000);
}

/// Whether a file can be detached is tried where that is not known, as on overlayfs. A program that
/// stores to its first page at that moment does not decide it.
#[test]
fn a_program_that_stores_to_one_page_does_not_keep_others_from_being_detached() {
    let Some(filesystem) = common::filesystems::overlay() else { return };
    let Some(file) = made(&filesystem) else { return };
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),1<<20)\n\
                  print('on',flush=True)\nwhile True: m[0:4]=b'mine'";
    let python = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(filesystem.dir.join("file"))
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut python) = python else {
        println!("SKIP: no python3");
        return;
    };
    let mut line = String::new();
    BufReader::new(python.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let range = 3 << 20..(3 << 20) + 1000;
    let mut wrong = 0;
    for _ in 0..30 {
        file.write_all_at(&pattern(1, range.clone()), range.start).unwrap();
        let (tx, mut peer) = common::tcp_on_this_host();
        let mut offset = range.start;
        assert_eq!(rustix::fs::sendfile(&tx, &file, Some(&mut offset), 1000), Ok(1000));
        let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
        guard.write_at(&pattern(!1, range.clone()), range.start, deadline()).unwrap();
        wrong += common::wrong(&read(&mut peer, 1000), &pattern(1, range.clone()));
    }
    python.kill().unwrap();
    python.wait().unwrap();
    assert_eq!(wrong, 0);
}
