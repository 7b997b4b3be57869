//! What a send holds, when things go wrong around it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod common;

use std::io::Read;
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use common::{Flagged, assert_same, deadline, file, fill, pattern, read, sender, source};
use rustix::net::SendFlags;
use sendfile2::guard::{GuardedFile, Lease, TryWrite};
use sendfile2::{Engine, Error, Options, SendBuffer, Sender, Sent, Status, reaper};

const LEN: u64 = 4 << 20;

fn guarded(file: &std::fs::File) -> GuardedFile {
    common::waiting(file.try_clone().unwrap())
}

/// One byte by `MSG_ZEROCOPY`, as the application would.
fn own_send(socket: std::os::fd::BorrowedFd<'_>) {
    let flags = SendFlags::DONTWAIT | SendFlags::from_bits_retain(0x400_0000);
    assert_eq!(rustix::net::send(socket, b"!", flags).unwrap(), 1);
}

#[test]
fn a_panic_among_the_applications_sends_does_not_shift_the_ids() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Zerocopy);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        sender.application_sends(|socket| -> ((), u32) {
            own_send(socket);
            std::panic::resume_unwind(Box::new("on purpose"))
        })
    }));
    assert!(panicked.is_err());
    let (buffer, dropped) = Flagged::new(pattern(1, 0..1 << 20));
    let mut buffer = SendBuffer::new(buffer);
    // To be refused is as good.
    let sent = sender.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE);
    drop(buffer);
    if sent.is_ok() {
        read(&mut rx, 1);
        sender.reap().unwrap();
        assert!(!dropped.load(SeqCst), "let go of in flight");
    }
}

#[test]
fn a_buffer_begun_on_one_connection_is_not_continued_on_another() {
    let (tx, mut rx) = common::tcp_small_window();
    let mut first = sender(tx, Engine::Zerocopy);
    let mut buffer = SendBuffer::new(pattern(1, 0..LEN));
    first.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE).unwrap();
    let sent = buffer.sent();
    assert!(sent > 0 && buffer.remaining() > 0);
    read(&mut rx, sent);
    first.close(deadline()).unwrap();
    let (tx, _rx) = common::tcp_small_window();
    let mut second = sender(tx, Engine::Zerocopy);
    let result = second.try_send_buffer(&mut buffer, sendfile2::SendFlags::NONE);
    // Its peer would get the tail of it for the whole.
    assert!(matches!(result, Err(Error::OtherSender)), "{result:?}");
    assert_same(&buffer.into_buffer().unwrap(), &pattern(1, 0..LEN));
}

#[test]
fn an_abort_for_a_writer_spares_those_on_which_nothing_is_in_flight() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let lease = guard.try_lease(0..LEN).unwrap();
    let (tx, mut quick_peer) = common::tcp();
    let mut quick = sender(tx, Engine::Zerocopy);
    quick.send_lease(&lease, 0..1000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    read(&mut quick_peer, 1000);
    quick.drain(deadline()).unwrap();
    let (tx, _stalled_peer) = common::tcp_small_window();
    let mut stalled = sender(tx, Engine::Zerocopy);
    let mut at = 0;
    while let Sent::Accepted { bytes, .. } =
        stalled.try_send_lease(&lease, at..LEN, sendfile2::SendFlags::NONE).unwrap()
    {
        at += bytes as u64;
        if at == LEN {
            break;
        }
    }
    drop(lease);
    guard.write_at_abort(b"x", 0, Instant::now()).unwrap();
    quick.send(b"next", sendfile2::SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut quick_peer, 4), b"next");
    assert_eq!(guard.counters().aborts, 1);
}

/// Copied sends are nowhere in flight; the lease is in the hands of who waits to send more.
#[test]
fn an_abort_for_a_writer_ends_a_copied_send_that_is_stuck() {
    let file = file(1, 64 << 20);
    let guard = common::waiting(file.try_clone().unwrap());
    let (tx, rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Copy);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let lease = guard.try_lease(0..64 << 20).unwrap();
            sender
                .send_lease(&lease, 0..64 << 20, sendfile2::SendFlags::NONE, deadline())
                .unwrap_err()
        });
        // It has begun, and nobody reads on.
        rx.peek(&mut [0]).unwrap();
        guard.write_at_abort(b"x", 0, Instant::now()).unwrap();
        // Whichever it meets first.
        let error = sending.join().unwrap().error;
        assert!(matches!(error, Error::Aborted | Error::Revoked), "{error}");
    });
}

/// A lease in hand, that a connection has sent from; `then`, while a writer waits for it.
fn while_a_writer_waits(then: impl FnOnce(&GuardedFile, Lease, Sender, &mut TcpStream)) {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let lease = guard.try_lease(0..LEN).unwrap();
    sender.send_lease(&lease, 0..1000, sendfile2::SendFlags::NONE, deadline()).unwrap();
    read(&mut rx, 1000);
    sender.drain(deadline()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| guard.write_at(b"x", 0, deadline()).unwrap());
        while guard.writers() == 0 {
            std::thread::yield_now();
        }
        then(&guard, lease, sender, &mut rx);
    });
}

#[test]
fn a_waiting_writer_does_not_keep_a_connection_open() {
    while_a_writer_waits(|_, lease, sender, rx| {
        drop(sender);
        let end = rx.read(&mut [0]);
        drop(lease);
        assert!(matches!(end, Ok(0)), "no end of the stream: {end:?}");
    });
}

#[test]
fn a_socket_given_back_can_be_taken_again_while_a_writer_waits() {
    while_a_writer_waits(|guard, lease, sender, rx| {
        let sendfile2::ReturnedSocket { socket, next_id: next, .. } =
            sender.into_socket(deadline()).unwrap();
        let again = Sender::with(socket, Options::new().engine(Engine::Zerocopy).next_id(next));
        drop(lease);
        let mut again = again.unwrap();
        again.send_file(guard.source(), 0..1000, sendfile2::SendFlags::NONE, deadline()).unwrap();
        again.drain(deadline()).unwrap();
        read(rx, 1000);
    });
}

struct Bomb(Vec<u8>);

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
}

/// The notifications of both are read at once; the first one's buffer panics when dropped.
#[test]
fn a_destructor_that_panics_leaves_no_other_send_in_flight() {
    // There a notification is not late.
    let (tx, mut rx) = common::tcp_on_this_host();
    let mut sender = sender(tx, Engine::Zerocopy);
    let mut bad = SendBuffer::new(Bomb(vec![0; 1000]));
    sender.try_send_buffer(&mut bad, sendfile2::SendFlags::NONE).unwrap();
    let bad_ticket = bad.ticket();
    drop(bad);
    let mut good = SendBuffer::new(vec![0; 1000]);
    sender.try_send_buffer(&mut good, sendfile2::SendFlags::NONE).unwrap();
    read(&mut rx, 2000);
    assert!(catch_unwind(AssertUnwindSafe(|| sender.reap())).is_err());
    assert_eq!(sender.in_flight().sends, 0);
    for ticket in [bad_ticket, good.ticket()] {
        assert!(matches!(ticket.status(), Status::Released(_)), "{:?}", ticket.status());
    }
    good.into_buffer().unwrap();
}

struct Spark;

impl Drop for Spark {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
    }
}

/// The last owner of a hook is the reaper, when what the hook holds panics.
#[test]
fn the_reaper_survives_what_it_drops() {
    for bad in [true, false] {
        let (tx, mut rx) = common::tcp_small_window();
        let spark = bad.then(|| Spark);
        let options = Options::new().engine(Engine::Zerocopy).on_error_queue(move |_| {
            let _ = &spark;
        });
        let mut sender = Sender::with(tx, options).unwrap();
        let file = file(1, LEN);
        let (_, sent) = fill(&mut sender, &source(&file));
        drop(sender);
        read(&mut rx, sent as usize);
        assert!(common::ends(&mut rx), "no end of the stream");
        reaper::drain(Instant::now() + Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn a_record_of_any_size_is_an_error_and_no_allocation() {
    let file = file(1, 1000);
    let source = source(&file);
    for end in [2000, 1 << 20, 1 << 33, 1 << 46, u64::MAX] {
        let (tx, _rx) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut sender = Sender::new(tx).unwrap();
        let error =
            sender.try_send_file(&source, 500..end, sendfile2::SendFlags::NONE).unwrap_err();
        assert!(matches!(error, Error::Truncated { at: 1000, .. }), "{error}");
    }
}

#[test]
fn writers_do_not_starve_who_waits_for_a_lease() {
    let file = file(1, 4096);
    let guard = guarded(&file);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    guard.write_at(&[7; 4096], 0, deadline()).unwrap();
                }
            });
        }
        let _stop = common::SetOnDrop(&stop);
        for _ in 0..20 {
            while guard.writers() < 2 {
                std::hint::spin_loop();
            }
            guard.lease(0..4096, deadline()).unwrap();
        }
    });
}

fn cpu() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// POLLERR and POLLHUP for ever, while the last ids are still out: no core waits busily.
#[test]
fn waiting_on_a_dead_socket_is_not_busy() {
    if !common::inside("waiting_on_a_dead_socket_is_not_busy", common::SLOW) {
        return;
    }
    let (tx, rx) = common::tcp_on_this_host();
    // Nowhere else would it take long.
    common::sh("tc qdisc add dev lo root tbf rate 1mbit burst 64k limit 64m");
    let mut sender = sender(tx, Engine::Zerocopy);
    let file = file(1, LEN);
    let (tickets, _) = fill(&mut sender, &source(&file));
    sender.abort().unwrap();
    drop(rx);
    let busy = |wait: &dyn Fn(Instant)| {
        let (before, began) = (cpu(), Instant::now());
        wait(began + Duration::from_secs(1));
        let (used, took) = (cpu() - before, began.elapsed());
        let little = Duration::from_millis(50);
        assert!(used < took / 4 + little, "{used:?} of processor time in {took:?}");
    };
    busy(&|deadline| {
        let _ = tickets.last().unwrap().wait_released(deadline);
    });
    drop(sender);
    busy(&|deadline| {
        let _ = reaper::drain(deadline);
    });
}

/// A sender with sends in flight under a lease, and stuck; what it was made with; its peer, and how
/// many bytes are on their way to it.
fn stuck(guard: &GuardedFile, options: Options) -> (Sender, TcpStream, u64) {
    let (tx, peer) = common::tcp_small_window();
    let mut sender = Sender::with(tx, options.engine(Engine::Zerocopy)).unwrap();
    let lease = guard.try_lease(0..LEN).unwrap();
    let mut sent = 0;
    while let Sent::Accepted { bytes, .. } =
        sender.try_send_lease(&lease, sent..LEN, sendfile2::SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
    }
    assert!(sent > 0 && sender.in_flight().sends > 0, "nothing is stuck in flight");
    (sender, peer, sent)
}

/// What was in flight when the sender went is held until it has arrived, and arrives whole.
fn assert_handed_over(guard: &GuardedFile, peer: &mut TcpStream, sent: u64) {
    let way = guard.try_write_at(&pattern(!1, 0..LEN), 0).unwrap();
    assert!(matches!(way, TryWrite::Blocked(_)), "a writer was let through");
    assert_same(&read(peer, sent as usize), &pattern(1, 0..sent));
    assert!(common::ends(peer), "no end of the stream");
    guard.write_at(b"x", 0, deadline()).unwrap();
}

#[test]
fn a_limit_that_no_clock_counts_is_none() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (sender, mut peer, sent) = stuck(&guard, Options::new().linger(Duration::MAX));
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(sender)));
    assert_handed_over(&guard, &mut peer, sent);
    assert!(dropped.is_ok(), "it panicked");
}

/// Also where the kernel counts no more milliseconds than an int has (Linux before 5.11).
#[test]
fn a_wait_until_a_time_that_is_ages_away_waits() {
    use seccompiler::{SeccompAction, SeccompFilter};
    let name = "a_wait_until_a_time_that_is_ages_away_waits";
    if common::role().is_none() {
        return common::run_as(&[], name, "old");
    }
    let rules = [(libc::SYS_epoll_pwait2, Vec::new())].into_iter().collect();
    let missing = SeccompAction::Errno(libc::ENOSYS as u32);
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, missing, arch).unwrap();
    // Threads that are made from here on have it, too.
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    let ages = Instant::now() + Duration::from_secs(1 << 40);
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (sender, mut peer, sent) = stuck(&guard, Options::new());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| guard.write_at(b"x", 0, ages));
        let waiter = scope.spawn(|| sender.drain(ages));
        assert_same(&read(&mut peer, sent as usize), &pattern(1, 0..sent));
        writer.join().unwrap().unwrap();
        waiter.join().unwrap().unwrap();
    });
}

/// Who listens to traces, and panics at each.
struct Listener;

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        std::panic::resume_unwind(Box::new("on purpose"));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn who_panics_while_a_sender_is_handed_over_frees_nothing() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (sender, mut peer, sent) = stuck(&guard, Options::new());
    let dropped = tracing::subscriber::with_default(Listener, || {
        catch_unwind(AssertUnwindSafe(|| drop(sender)))
    });
    assert!(dropped.is_err(), "nobody listened");
    assert_handed_over(&guard, &mut peer, sent);
}

/// A sender that, when it is dropped, first finds what its hook panics at, and has sends in flight.
fn with_a_hook_that_panics(guard: &GuardedFile) -> (Sender, TcpStream, u64) {
    let (tx, mut peer) = common::tcp_small_window();
    let options = Options::new()
        .engine(Engine::Zerocopy)
        .on_error_queue(|_| std::panic::resume_unwind(Box::new("on purpose")));
    let mut sender = Sender::with(tx, options).unwrap();
    sender.application_sends(|socket| (own_send(socket), 1)).unwrap();
    read(&mut peer, 1);
    let lease = guard.try_lease(0..LEN).unwrap();
    // Fewer sends than those after which the next one reads what was completed.
    let Ok(Sent::Accepted { bytes, .. }) =
        sender.try_send_lease(&lease, 0..LEN, sendfile2::SendFlags::NONE)
    else {
        panic!("an empty socket takes nothing")
    };
    assert!(sender.in_flight().sends > 0);
    (sender, peer, bytes as u64)
}

#[test]
fn a_hook_that_panics_while_a_sender_is_dropped_frees_nothing() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (sender, mut peer, sent) = with_a_hook_that_panics(&guard);
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(sender)));
    assert!(dropped.is_err(), "the hook was not called");
    assert_handed_over(&guard, &mut peer, sent);
}

#[test]
fn a_hook_that_panics_while_the_thread_panics_ends_no_process() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (sender, mut peer, sent) = with_a_hook_that_panics(&guard);
    let panicked = catch_unwind(AssertUnwindSafe(move || {
        let _sender = sender;
        std::panic::resume_unwind(Box::new("on purpose"));
    }));
    assert!(panicked.is_err());
    assert_handed_over(&guard, &mut peer, sent);
}
