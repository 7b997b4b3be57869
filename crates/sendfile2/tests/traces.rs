//! Who listens to traces may ask, at each of them, about all that the library knows: none is told
//! while anything is locked.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{deadline, file, pattern, read, sender, source};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, Error, Options, SendBuffer, SendFlags, Sender, Sent, Ticket, reaper};

const LEN: u64 = 4 << 20;

/// A listener that, at each event, lets somebody ask, who must be answered before it is over.
#[derive(Clone)]
struct Listener {
    ask: Arc<dyn Fn() + Send + Sync>,
    /// What was told, and whether who asked then was answered.
    told: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Listener {
    fn new(ask: impl Fn() + Send + Sync + 'static) -> Self {
        Listener { ask: Arc::new(ask), told: Arc::default() }
    }

    /// Everything was told while nothing was locked, and these events were among it.
    #[track_caller]
    fn assert_told(&self, events: &[&str]) {
        let told = self.told.lock().unwrap();
        for event in events {
            assert!(told.iter().any(|(text, _)| text.contains(event)), "{event:?}: {told:?}");
        }
        assert!(told.iter().all(|(_, answered)| *answered), "told while locked: {told:?}");
    }
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target().starts_with("sendfile2")
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let (done, answer) = mpsc::channel();
        let ask = Arc::clone(&self.ask);
        // Another thread: what is locked here would keep it waiting, and not for ever.
        std::thread::spawn(move || {
            ask();
            let _ = done.send(());
        });
        let answered = answer.recv_timeout(Duration::from_secs(10)).is_ok();
        self.told.lock().unwrap().push((text.0, answered));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// What an event says.
struct Text(String);

impl tracing::field::Visit for Text {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Runs `what`, of which these `events` are told; at each of them `ask` is run.
#[track_caller]
fn told<T>(events: &[&str], ask: impl Fn() + Send + Sync + 'static, what: impl FnOnce() -> T) -> T {
    let listener = Listener::new(ask);
    let result = tracing::subscriber::with_default(listener.clone(), what);
    listener.assert_told(events);
    result
}

/// Asks what can be asked of the sends so far while their sender sends.
fn about(ticket: &Ticket) -> impl Fn() + Send + Sync + 'static {
    let ticket = ticket.clone();
    move || {
        ticket.acknowledgement().unwrap();
        assert!(!format!("{ticket:?} {:?}", reaper::pending()).is_empty());
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
}

fn first(sender: &mut Sender) -> Ticket {
    sender.send(b"first", SendFlags::NONE, deadline()).unwrap().ticket
}

#[test]
fn of_single_sends() {
    let guard = GuardedFile::new(file(1, LEN)).unwrap();
    for (engine, event) in [(Engine::Zerocopy, "zerocopy send"), (Engine::Copy, "plain send")] {
        let (tx, mut peer) = common::tcp();
        let mut sender = sender(tx, engine);
        let ask = about(&first(&mut sender));
        let lease = guard.lease(0..1000, deadline()).unwrap();
        let (again, file) = (guard.clone(), guard.source());
        told(
            &[event],
            move || {
                ask();
                assert!(!again.in_flight().is_empty());
            },
            || {
                sender.try_send_lease(&lease, 0..1000, SendFlags::NONE).unwrap();
                sender.try_send_file(file, 0..1000, SendFlags::NONE).unwrap();
                sender.try_send_buffer(&mut SendBuffer::new([1; 1000]), SendFlags::NONE).unwrap();
            },
        );
        read(&mut peer, 3005);
    }
}

#[test]
fn of_a_mapping_that_faults() {
    let file = file(1, LEN);
    for engine in [Engine::Zerocopy, Engine::Copy] {
        let (tx, _peer) = common::tcp();
        let mut sender = sender(tx, engine);
        let ask = about(&first(&mut sender));
        let guard = GuardedFile::new(file.try_clone().unwrap()).unwrap();
        let lease = guard.lease(0..LEN, deadline()).unwrap();
        // From here on the size of what is leased is known, and nobody is to change it.
        sender.try_send_lease(&lease, LEN - 1..LEN, SendFlags::NONE).unwrap();
        file.set_len(4096).unwrap();
        told(&["reading instead"], ask, || {
            sender.try_send_lease(&lease, 8192..LEN, SendFlags::NONE).unwrap_err();
        });
        file.set_len(LEN).unwrap();
    }
}

#[test]
fn of_refusals() {
    let source = source(&file(1, LEN));
    for engine in [Engine::Zerocopy, Engine::Native] {
        let (tx, _rx) = UnixStream::pair().unwrap();
        let mut unix = Sender::with(tx, Options::new().engine(engine)).unwrap();
        let ask = about(&first(&mut unix));
        told(&["refused"], ask, || {
            refused(unix.try_send_file(&source, 0..1000, SendFlags::NONE));
        });
        if engine == Engine::Zerocopy {
            told(&["refused"], about(&first(&mut unix)), || {
                refused(unix.try_send_buffer(&mut SendBuffer::new([1; 1000]), SendFlags::NONE));
            });
        }
        // What only looks leaves the sender itself to be asked.
        let unix = Arc::new(unix);
        let asked = Arc::clone(&unix);
        let ask = move || assert!(!format!("{asked:?} {:?}", asked.counters()).is_empty());
        told(&["refused"], ask, || refused(unix.choice(1000)));
    }
}

/// Switches `SO_ZEROCOPY` off, as the application may.
fn switch_off(socket: impl AsFd) {
    let off: libc::c_int = 0;
    let (value, size) = ((&raw const off).cast(), size_of_val(&off) as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the value is an int, which lives through the call.
    let set = unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ZEROCOPY, value, size) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// The kernel, or the socket's options, refuse what was chosen.
#[test]
fn of_refusals_at_the_send() {
    let (tx, _peer) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let ask = about(&first(&mut sender));
    switch_off(&sender);
    let source = source(&file(1, LEN));
    told(&["refused"], ask, || {
        refused(sender.try_send_file(&source, 0..1000, SendFlags::NONE));
    });
}

/// A datagram that may have used an id: more segments than the kernel allows.
#[test]
fn of_ids_that_are_in_doubt() {
    let (tx, _rx) = common::udp();
    setsockopt(&tx, UdpGsoSegment, &100).unwrap();
    let mut sender = Sender::with(tx, Options::new().engine(Engine::Zerocopy)).unwrap();
    let ask = about(&first(&mut sender));
    told(&["used a notification id"], ask, || {
        sender.try_send_buffer(&mut SendBuffer::new([0; 60_000]), SendFlags::NONE).unwrap_err();
    });
    let ask = about(&first(&mut sender));
    told(&["refused"], ask, || {
        let failed = sender.into_socket(deadline()).unwrap_err();
        refused(Err::<(), _>(failed.error));
    });
}

/// Sends until the socket is full.
fn stuck(guard: &GuardedFile) -> (Sender, std::net::TcpStream, Ticket, u64) {
    let (tx, peer) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.lease(0..LEN, deadline()).unwrap();
    let (mut sent, mut last) = (0, None);
    while let Sent::Accepted { bytes, ticket } =
        sender.try_send_lease(&lease, sent..LEN, SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
        last = Some(ticket);
    }
    (sender, peer, last.unwrap(), sent)
}

#[test]
fn of_releases_and_writers() {
    let guard = common::waiting(file(1, LEN));
    let (sender, mut peer, ticket, sent) = stuck(&guard);
    let ask = about(&ticket);
    let again = guard.clone();
    let sender = Arc::new(sender);
    let asked = Arc::clone(&sender);
    let events = ["abort", "aborted for a writer", "released", "exclusive"];
    told(
        &events,
        move || {
            ask();
            assert!(!format!("{asked:?} {again:?} {:?}", again.in_flight()).is_empty());
        },
        || {
            std::thread::scope(|scope| {
                scope.spawn(|| read(&mut peer, sent.min(1000) as usize));
                guard.write_at_abort(b"x", 0, std::time::Instant::now()).unwrap();
            });
        },
    );
}

#[test]
fn of_a_hand_over() {
    let guard = GuardedFile::new(file(1, LEN)).unwrap();
    let (sender, mut peer, ticket, sent) = stuck(&guard);
    let ask = about(&ticket);
    told(&["handed over to the reaper"], ask, || drop(sender));
    common::assert_same(&read(&mut peer, sent as usize), &pattern(1, 0..sent));
}

/// The reaper, whose descriptors the program has closed.
#[test]
fn of_a_reaper_that_is_deaf() {
    let name = "of_a_reaper_that_is_deaf";
    if common::role().is_none() {
        return common::run_as(&[], name, "deaf");
    }
    let listener = Listener::new(|| {
        let _ = reaper::pending();
    });
    tracing::subscriber::set_global_default(listener.clone()).unwrap();
    let sets = || {
        let all = std::fs::read_dir("/proc/self/fd").unwrap();
        let all = all.filter_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let number: i32 = entry.file_name().to_str()?.parse().ok()?;
            (target.to_str() == Some("anon_inode:[eventpoll]")).then_some(number)
        });
        all.collect::<Vec<_>>()
    };
    let before = sets();
    // The first sender starts the reaper.
    drop(sender(common::tcp().0, Engine::Copy));
    let own = sets().into_iter().find(|set| !before.contains(set)).unwrap();
    nix::unistd::close(own).unwrap();
    let guard = GuardedFile::new(file(1, LEN)).unwrap();
    let (sender, mut peer, _, sent) = stuck(&guard);
    drop(sender);
    read(&mut peer, sent as usize);
    reaper::drain(deadline()).unwrap();
    listener.assert_told(&["the reaper looks every"]);
}

#[cfg(feature = "uring")]
#[test]
fn of_rings() {
    if !common::has_uring() {
        return;
    }
    let driver = Arc::new(sendfile2::uring::Driver::new().unwrap());
    let (tx, _peer) = common::tcp_small_window();
    let mut socket = driver.add(tx).unwrap();
    let ticket = socket.queue_file(&source(&file(1, LEN)), 0..LEN, SendFlags::NONE).unwrap();
    driver.reap().unwrap();
    let ask = about(&ticket);
    let asked = Arc::clone(&driver);
    told(
        &["refused", "abort"],
        move || {
            ask();
            let _ = asked.under_way();
        },
        || {
            refused(driver.add(common::udp().0).map(drop));
            socket.abort().unwrap();
            ticket.wait_released(deadline()).unwrap();
        },
    );
}
