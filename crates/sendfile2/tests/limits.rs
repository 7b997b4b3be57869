//! Kernel limits: everything still arrives.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::TcpStream;

use common::{assert_same, deadline, file, fill, pattern, read, sender, source};
use sendfile2::{Engine, Error, Limit, Reason, Refusal, SendFlags, Sender, Sent, Source};

/// Runs the test as somebody who may lock this many bytes. Root may lock any number, so it has to
/// give up `CAP_IPC_LOCK`. `false` in the parent, `true` in the child.
fn with_memlock(bytes: u64, test: &str) -> bool {
    if common::role().is_some() {
        return bytes < PAGES_OF_A_CALL || limit_is_free();
    }
    let limit = format!("--memlock={bytes}:{bytes}");
    let mut wrapper = vec!["prlimit", &limit];
    if rustix::process::geteuid().is_root() {
        wrapper.extend(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
    }
    // The limit is the user's, so one at a time.
    let path = concat!(env!("CARGO_TARGET_TMPDIR"), "/memlock");
    let lock = std::fs::File::create(path).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    if common::can("cannot set limits", &[&wrapper[..], &["true"]].concat()) {
        common::run_as(&wrapper, test, "limited");
    }
    false
}

/// Under this limit no zerocopy send is possible at all: a page, and two for its ends.
const PAGES_OF_A_CALL: u64 = 3 * 4096;

/// The limit is the user's: other processes, not of these tests, may have used it up.
fn limit_is_free() -> bool {
    let (tx, _rx) = common::tcp();
    let (mut sender, file) = (sender(tx, Engine::Zerocopy), file(1, 50_000));
    let sent = sender.send_file(&source(&file), 0..50_000, SendFlags::NONE, deadline()).unwrap();
    sent.ticket.wait_released(deadline()).unwrap();
    let free = sent.ticket.choice().engine == Engine::Zerocopy;
    if !free {
        println!("SKIP: other processes of this user have used up RLIMIT_MEMLOCK");
    }
    free
}

#[test]
fn with_64_kib_of_memlock_everything_arrives_by_zerocopy() {
    if !with_memlock(64 << 10, "with_64_kib_of_memlock_everything_arrives_by_zerocopy") {
        return;
    }
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let len = 8 << 20;
    let file = file(1, len);
    let reader = std::thread::spawn(move || read(&mut rx, len as usize));
    let sent = sender.send_file(&source(&file), 0..len, SendFlags::NONE, deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(1, 0..len));
    sent.ticket.wait_released(deadline()).unwrap();
    assert!(sender.counters().released >= 100, "{:?}", sender.counters());
}

#[test]
fn the_limit_is_a_value_while_something_is_in_flight() {
    if !with_memlock(64 << 10, "the_limit_is_a_value_while_something_is_in_flight") {
        return;
    }
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, 4 << 20);
    let source = source(&file);
    let (tickets, sent) = fill(&mut sender, &source);
    // The limit, and not the socket buffer, was in the way.
    let result = sender.try_send_file(&source, sent..4 << 20, SendFlags::NONE).unwrap();
    assert!(matches!(result, Sent::Limit(Limit::Buffers)), "{result:?}");
    let reader = std::thread::spawn(move || read(&mut rx, sent as usize));
    tickets.last().unwrap().wait_released(deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(1, 0..sent));
    let result = sender.try_send_file(&source, sent..4 << 20, SendFlags::NONE).unwrap();
    assert!(matches!(result, Sent::Accepted { .. }), "{result:?}");
}

/// A file, and another connection of the same user, which holds the whole limit.
fn used_up() -> (Source, (Sender, TcpStream)) {
    let source = source(&file(1, 4 << 20));
    let (tx, rx) = common::tcp_small_window();
    let mut greedy = sender(tx, Engine::Zerocopy);
    fill(&mut greedy, &source);
    (source, (greedy, rx))
}

#[test]
fn with_nothing_in_flight_it_copies_instead_of_waiting_for_ever() {
    if !with_memlock(64 << 10, "with_nothing_in_flight_it_copies_instead_of_waiting_for_ever") {
        return;
    }
    let (source, _greedy) = used_up();
    let (tx, mut rx) = common::tcp();
    let mut modest = sender(tx, Engine::Zerocopy);
    let sent = modest.send_file(&source, 0..50_000, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.choice().reason, Reason::Limit(Limit::Buffers));
    assert_eq!(sent.ticket.choice().engine, Engine::Copy);
    assert_same(&read(&mut rx, 50_000), &pattern(1, 0..50_000));
}

#[test]
fn with_no_memlock_at_all_zerocopy_refuses_and_auto_copies() {
    if !with_memlock(4096, "with_no_memlock_at_all_zerocopy_refuses_and_auto_copies") {
        return;
    }
    let file = file(1, 100_000);
    let (tx, _rx) = common::tcp();
    let error = sender(tx, Engine::Zerocopy)
        .try_send_file(&source(&file), 0..100_000, SendFlags::NONE)
        .unwrap_err();
    assert!(matches!(error, Error::Refused { reason: Refusal::Memlock(4096), .. }), "{error}");
    let (tx, mut rx) = common::tcp();
    let mut auto = sender(tx, Engine::Auto);
    auto.send_file(&source(&file), 0..100_000, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, 100_000), &pattern(1, 0..100_000));
}

#[test]
fn a_limit_that_a_capability_lifts_refuses_nothing() {
    let name = "a_limit_that_a_capability_lifts_refuses_nothing";
    if common::role().is_none() {
        // Zerocopy itself is the proof that the kernel does not apply the limit to root here.
        let wrapper = ["prlimit", "--memlock=4096:4096"];
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: only root has CAP_IPC_LOCK");
        } else if std::fs::read_link("/proc/self/ns/user").unwrap().as_os_str()
            != "user:[4026531837]"
        {
            println!("SKIP: in a user namespace CAP_IPC_LOCK lifts nothing");
        } else if common::can("cannot set limits", &[&wrapper[..], &["true"]].concat()) {
            common::run_as(&wrapper, name, "lifted");
        }
        return;
    }
    let file = file(1, 4 << 20);
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let reader = std::thread::spawn(move || read(&mut rx, 4 << 20));
    let sent = sender.send_file(&source(&file), 0..4 << 20, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.choice().engine, Engine::Zerocopy);
    assert_same(&reader.join().unwrap(), &pattern(1, 0..4 << 20));
}

#[test]
fn with_64_kib_of_memlock_a_ring_or_a_call_delivers_everything() {
    // Not in the child: the ring of the probe counts a little longer than it lives.
    if common::role().is_none() && !common::has_uring() {
        return;
    }
    if !with_memlock(64 << 10, "with_64_kib_of_memlock_a_ring_or_a_call_delivers_everything") {
        return;
    }
    let len = 4 << 20;
    let file = file(1, len);
    let source = source(&file);
    let (tx, mut rx) = common::tcp_small_window();
    let reader = std::thread::spawn(move || read(&mut rx, len as usize));
    sendfile2::uring::send_file_sync(&tx, &source, 0..len, deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(1, 0..len));

    let driver = match sendfile2::uring::Driver::new() {
        Ok(driver) => driver,
        Err(error) => {
            // Of the 64 KiB a ring has 44, where rings count.
            let Error::Refused { reason: Refusal::IoUring(_), .. } = error else {
                panic!("{error}")
            };
            println!("SKIP: no room for a ring under RLIMIT_MEMLOCK: {error}");
            return;
        }
    };
    // Several sockets, which are in each other's way.
    let mut readers = Vec::new();
    let mut tickets = Vec::new();
    let mut sockets = Vec::new();
    for _ in 0..4 {
        let (tx, mut rx) = common::tcp_small_window();
        let mut socket = driver.add(tx).unwrap();
        readers.push(std::thread::spawn(move || read(&mut rx, len as usize)));
        tickets.push(socket.queue_file(&source, 0..len, SendFlags::NONE).unwrap());
        sockets.push(socket);
    }
    for (ticket, reader) in tickets.iter().zip(readers) {
        ticket.wait_released(deadline()).unwrap();
        assert!(ticket.error().is_none(), "{ticket:?}");
        assert_same(&reader.join().unwrap(), &pattern(1, 0..len));
    }
}

#[test]
fn where_rings_use_up_the_limit_the_reason_is_told() {
    // Not in the child: the ring of the probe counts a little longer than it lives.
    if common::role().is_none() && !common::has_uring() {
        return;
    }
    if !with_memlock(64 << 10, "where_rings_use_up_the_limit_the_reason_is_told") {
        return;
    }
    let mut rings = Vec::new();
    let error = loop {
        match sendfile2::uring::Driver::new() {
            Ok(ring) => rings.push(ring),
            Err(error) => break error,
        }
        if rings.len() == 100 {
            println!("SKIP: rings do not count against RLIMIT_MEMLOCK here (Linux before 6.14?)");
            return;
        }
    };
    assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
}

/// The kernel's ENOMEM announces a notification, whose arrival makes no room.
#[test]
fn a_call_copies_where_others_have_used_up_the_limit() {
    // Not in the child: the ring of the probe counts a little longer than it lives.
    if common::role().is_none() && !common::has_uring() {
        return;
    }
    if !with_memlock(64 << 10, "a_call_copies_where_others_have_used_up_the_limit") {
        return;
    }
    let (source, _greedy) = used_up();
    let (tx, mut rx) = common::tcp();
    match sendfile2::uring::send_file_sync(&tx, &source, 0..50_000, deadline()) {
        Ok(release) => assert!(release.copied),
        Err(unfinished) => {
            // Not even a small ring has room.
            let Error::Refused { reason: Refusal::IoUring(_), .. } = unfinished.error else {
                panic!("{unfinished}")
            };
            println!("SKIP: no room for a ring under RLIMIT_MEMLOCK: {unfinished}");
            return;
        }
    }
    assert_same(&read(&mut rx, 50_000), &pattern(1, 0..50_000));
}

#[cfg(feature = "tokio")]
#[test]
fn async_senders_that_share_a_small_limit_all_arrive() {
    use sendfile2::tokio::{AsyncSender, Progress};
    if !with_memlock(64 << 10, "async_senders_that_share_a_small_limit_all_arrive") {
        return;
    }
    const LEN: u64 = 4 << 20;
    let file = file(1, LEN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // One thread for all: who waits must be woken, and nobody may wait for what is not in flight.
    let released = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (tx, mut rx) = common::tcp_small_window();
            let options = sendfile2::Options::new().engine(Engine::Zerocopy);
            let mut sender = AsyncSender::from_socket(tx, options).unwrap();
            let source = source(&file);
            tasks.spawn(async move {
                let reader = tokio::task::spawn_blocking(move || read(&mut rx, LEN as usize));
                let mut progress = Progress::new(0..LEN);
                sender.send_file_resumable(&source, &mut progress, SendFlags::NONE).await.unwrap();
                assert_same(&reader.await.unwrap(), &pattern(1, 0..LEN));
                progress.ticket().released().await.unwrap();
                sender.sender().counters().released
            });
        }
        let all = tokio::time::timeout(std::time::Duration::from_secs(60), tasks.join_all());
        all.await.expect("a sender waits for ever")
    });
    // Who finds the limit used up by others copies.
    assert!(released.iter().sum::<u64>() > 0, "nothing was sent without a copy");
}
