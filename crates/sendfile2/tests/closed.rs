//! Descriptors of the library's own that the program closes under it, as `closefrom(3)` and
//! `daemon(3)` do, and what has their numbers then. Each in a process of its own.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, Instant};

use common::{assert_same, deadline, file, pattern, sender, source};
use io_uring::IoUring;
use rustix::event::{EventfdFlags, epoll, eventfd};
use sendfile2::guard::TryWrite;
use sendfile2::uring::{self, send_file_sync};
use sendfile2::{Engine, Error, SendFlags, reaper};

const LEN: u64 = 6 << 20;

/// This process's descriptors of that kind.
fn descriptors(kind: &str) -> Vec<RawFd> {
    let kind = format!("anon_inode:[{kind}]");
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name().to_str()?.parse().ok()?;
            (target.to_str() == Some(&kind)).then_some(number)
        })
        .collect()
}

/// What the program puts in the place of the number that was closed.
fn instead<T: AsRawFd>(number: RawFd, make: impl Fn() -> T) -> T {
    let mut others = Vec::new();
    loop {
        let one = make();
        if one.as_raw_fd() == number {
            return one;
        }
        assert!(one.as_raw_fd() < number, "the number is taken");
        others.push(one);
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap()
}

fn reaper_sleeps() -> bool {
    std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.contains("(sendfile2-reape") && stat.contains(") S ")
    })
}

fn broken<T>(result: Result<T, Error>) {
    match result.map(drop) {
        Err(Error::Wait { .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_drivers_ring() {
    if common::role().is_none() {
        if common::has_uring() {
            common::run_as(&[], "a_drivers_ring", "closed");
            common::run_as(&[], "a_drivers_ring", "replaced");
        }
        return;
    }
    let (guarded, (tx, _rx)) = (common::waiting(file(1, LEN)), common::tcp());
    let mut driver = uring::Driver::new().unwrap();
    let ring = driver.as_fd().as_raw_fd();
    let mut socket = driver.add(tx).unwrap();
    nix::unistd::close(ring).unwrap();
    let replaced = common::role().unwrap() == "replaced";
    let own = replaced.then(|| instead(ring, || IoUring::new(4).unwrap()));
    let lease = guarded.lease(0..LEN, deadline()).unwrap();
    let ticket = socket.queue_lease(&lease, 0..LEN, SendFlags::NONE).unwrap();
    drop(lease);
    // Neither is sent, and none of it is taken for released.
    broken(driver.submit());
    broken(driver.wait(1, deadline()));
    broken(ticket.wait_released(deadline()));
    assert_eq!(socket.in_flight().sends, 1);
    assert!(!matches!(guarded.try_write_at(b"new", 0), Ok(TryWrite::Written)));
    drop((socket, driver, ticket));
    if let Some(mut own) = own {
        // It is the program's still.
        assert_eq!(own.submission().len(), 0);
        own.submit().unwrap();
        assert!(descriptors("io_uring").contains(&ring));
    }
    // What is held stays so; the reaper would wait for it.
    std::process::exit(passed());
}

/// As the harness says it, for a process that ends at once.
fn passed() -> i32 {
    println!("test result: ok. 1 passed");
    0
}

#[test]
fn a_drivers_set_of_full_sockets() {
    if common::role().is_none() {
        if common::has_uring() {
            for role in ["closed", "a file", "a set"] {
                common::run_as(&[], "a_drivers_set_of_full_sockets", role);
            }
        }
        return;
    }
    let (tx, rx) = common::tcp_small_window();
    let source = source(&file(1, LEN));
    let before = descriptors("eventpoll");
    let mut driver = uring::Driver::new().unwrap();
    let set = descriptors("eventpoll").into_iter().find(|fd| !before.contains(fd)).unwrap();
    let mut socket = driver.add(tx).unwrap();
    // Before, or what the thread waits with gets the number.
    let first = socket.queue_bytes(&b"first"[..], SendFlags::NONE).unwrap();
    driver.submit().unwrap();
    first.wait_released(deadline()).unwrap();
    nix::unistd::close(set).unwrap();
    let role = common::role().unwrap();
    let null = || std::fs::File::open("/dev/null").unwrap();
    let _file = (role == "a file").then(|| instead(set, null));
    let _set = (role == "a set").then(|| {
        let own = instead(set, || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let bell = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&own, &bell, data, epoll::EventFlags::IN).unwrap();
        (own, bell)
    });
    // The peer reads nothing, so that the socket is full soon.
    let ticket = socket.queue_file(&source, 0..LEN, SendFlags::NONE).unwrap();
    driver.submit().unwrap();
    match ticket.wait_accepted(deadline()) {
        Err(Error::Socket { op: "epoll_wait", .. }) => {}
        other => panic!("{other:?}"),
    }
    drop(rx);
    std::process::exit(passed());
}

#[test]
fn a_synchronous_sends_ring() {
    if common::role().is_none() {
        if common::has_uring() {
            common::run_as(&[], "a_synchronous_sends_ring", "replaced");
        }
        return;
    }
    // It waits for room: its ring is closed meanwhile, and another one made.
    let (tx, _rx) = common::tcp_small_window();
    let sending = std::thread::spawn(move || {
        send_file_sync(&tx, &source(&file(1, LEN)), 0..LEN, Instant::now() + Duration::from_secs(2))
    });
    let ring = loop {
        if let [ring] = descriptors("io_uring")[..] {
            break ring;
        }
        std::thread::yield_now();
    };
    nix::unistd::close(ring).unwrap();
    let _own = instead(ring, || IoUring::new(4).unwrap());
    let unfinished = sending.join().unwrap().unwrap_err();
    // A ring that is closed while it sends answers once too often, now and then.
    let error = &unfinished.error;
    assert!(
        matches!(error, Error::Wait { .. } | Error::Deadline(_) | Error::Stray(_)),
        "{unfinished:?}"
    );
    assert!(descriptors("io_uring").contains(&ring), "the program's ring was closed");
    std::process::exit(passed());
}

#[test]
fn what_a_thread_waits_with() {
    if common::role().is_none() {
        for role in ["closed", "a file", "a set"] {
            common::run_as(&[], "what_a_thread_waits_with", role);
        }
        return;
    }
    let (tx, _rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (tickets, _) = common::fill(&mut sender, &source(&file(1, LEN)));
    let ticket = tickets.last().unwrap();
    let soon = || Instant::now() + Duration::from_millis(50);
    let (sets, bells) = (descriptors("eventpoll"), descriptors("eventfd"));
    assert!(matches!(ticket.wait_released(soon()), Err(Error::Deadline(_))));
    // What it has waited with is kept.
    let [set, bell] = [("eventpoll", &sets), ("eventfd", &bells)].map(|(kind, others)| {
        descriptors(kind).into_iter().find(|fd| !others.contains(fd)).unwrap()
    });
    nix::unistd::close(set).unwrap();
    nix::unistd::close(bell).unwrap();
    let null = || std::fs::File::open("/dev/null").unwrap();
    let role = common::role().unwrap();
    let _files = (role == "a file").then(|| [instead(set, null), instead(bell, null)]);
    let _set = (role == "a set").then(|| {
        let own = instead(set, || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let other = instead(bell, || eventfd(1, EventfdFlags::CLOEXEC).unwrap());
        let data = epoll::EventData::new_u64(0x5555_0000_1000);
        epoll::add(&own, &other, data, epoll::EventFlags::IN).unwrap();
        (own, other)
    });
    // It is told, once: the next wait has others.
    broken(ticket.wait_released(deadline()));
    assert!(matches!(ticket.wait_released(soon()), Err(Error::Deadline(_))));
    assert!(sender.in_flight().sends > 0);
    std::process::exit(passed());
}

#[test]
fn what_the_reaper_waits_with() {
    if common::role().is_none() {
        for role in ["closed", "a set"] {
            common::run_as(&[], "what_the_reaper_waits_with", role);
        }
        return;
    }
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let (tickets, sent) = common::fill(&mut sender, &source(&file(1, LEN)));
    let (set, bell) = (descriptors("eventpoll"), descriptors("eventfd"));
    let ([set], [bell]) = (&set[..], &bell[..]) else { panic!("{set:?} {bell:?}") };
    // The thread may sleep on its set, which it goes on with until it is woken.
    nix::unistd::close(*set).unwrap();
    nix::unistd::close(*bell).unwrap();
    let _own = (common::role().unwrap() == "a set").then(|| {
        let own = instead(*set, || epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let other = instead(*bell, || eventfd(1, EventfdFlags::CLOEXEC).unwrap());
        let data = epoll::EventData::new_u64(0x5555_0000_1000);
        epoll::add(&own, &other, data, epoll::EventFlags::IN).unwrap();
        (own, other)
    });
    drop((sender, tickets));
    assert!(reaper::pending().sends > 0);
    // It is not busy: it was seen asleep again and again, after it had noticed.
    let mut asleep = 0;
    let until = deadline();
    let used = cpu();
    while asleep < 100 {
        assert!(Instant::now() < until && cpu() - used < Duration::from_secs(5), "it is busy");
        std::thread::sleep(Duration::from_millis(20));
        asleep = if reaper_sleeps() { asleep + 1 } else { 0 };
    }
    // The end of the stream comes, and everything is drained.
    let mut got = Vec::new();
    rx.read_to_end(&mut got).unwrap();
    assert_same(&got, &pattern(1, 0..sent));
    reaper::drain(deadline()).unwrap();
    std::process::exit(passed());
}
