//! Senders, tickets and guarded files in tokio's tasks, on both of its runtimes.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use common::{Flagged, assert_same, file, pattern, read, source};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;
use sendfile2::tokio::{AsyncSender, Progress};
use sendfile2::{Acknowledgement, Engine, Error, Options, SendBuffer, Sender, Source, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

fn runtimes() -> [(&'static str, Runtime); 2] {
    [
        ("current-thread", Builder::new_current_thread().enable_all().build().unwrap()),
        (
            "multi-thread",
            Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap(),
        ),
    ]
}

/// Runs `test` on each runtime, as a task of it, and fails if it hangs.
fn on_each<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
    for (name, runtime) in runtimes() {
        println!("on the {name} runtime");
        let test = runtime.spawn(test());
        let in_time = async { tokio::time::timeout(Duration::from_secs(60), test).await };
        runtime.block_on(in_time).expect(name).unwrap();
    }
}

fn options(engine: Engine) -> Options {
    Options::new().engine(engine)
}

fn sender(socket: TcpStream, engine: Engine) -> AsyncSender {
    AsyncSender::from_socket(socket, options(engine)).unwrap()
}

/// Reads on a thread of its own.
async fn received(mut peer: TcpStream, len: usize) -> (Vec<u8>, TcpStream) {
    tokio::task::spawn_blocking(move || (read(&mut peer, len), peer)).await.unwrap()
}

/// Sends until the socket is full, and gives the sends that are stuck.
async fn fill(sender: &mut AsyncSender, file: &Source) -> Progress {
    let mut progress = Progress::new(0..file.size().unwrap());
    let full = sender.send_file_resumable(file, &mut progress, sendfile2::SendFlags::NONE);
    // Its polls end with the socket full; nobody reads.
    tokio::time::timeout(Duration::from_millis(300), full).await.unwrap_err();
    assert!(sender.sender().in_flight().sends > 0, "nothing is stuck in flight");
    progress
}

/// Counts how often `future` is polled.
async fn counted<F: Future>(polls: Arc<AtomicUsize>, future: F) -> F::Output {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        polls.fetch_add(1, SeqCst);
        future.as_mut().poll(cx)
    })
    .await
}

/// Wake-ups that nothing but spinning comes to.
const ENOUGH: usize = 10_000;

const LOOK: Duration = Duration::from_millis(200);

#[test]
fn a_full_socket_with_completions_wakes_nobody() {
    on_each(|| async {
        let file = file(1, 8 << 20);
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        let source = source(&file);
        // A completion has come, and more will, before and after the socket is full.
        sender
            .send_file_some(&source, 0..4096, sendfile2::SendFlags::NONE)
            .await
            .unwrap()
            .ticket
            .released()
            .await
            .ok();
        let read_first = tokio::task::spawn_blocking(move || {
            read(&mut rx, 4096);
            rx
        });
        let mut rx = read_first.await.unwrap();
        let mut progress = fill(&mut sender, &source).await;
        let ticket = progress.ticket();
        let (mut half, mut sender) = sender.into_split();

        let polls: [Arc<AtomicUsize>; 3] = Default::default();
        let all = {
            let [writing, reading, waiting] = polls.clone();
            let ticket = ticket.clone();
            let source = source.clone();
            let write = tokio::spawn(counted(writing, async move {
                sender
                    .send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE)
                    .await
                    .unwrap();
                sender
            }));
            let read = tokio::spawn(counted(reading, async move { half.read(&mut [0; 10]).await }));
            let wait = tokio::spawn(counted(waiting, async move { ticket.released().await }));
            (write, read, wait)
        };
        let before = Instant::now();
        tokio::time::sleep(LOOK).await;
        let woken = polls.clone().map(|p| p.load(SeqCst));
        println!(
            "polls in {:?} with a full socket (write, read, release): {woken:?}",
            before.elapsed()
        );
        assert!(woken.iter().all(|polls| *polls < 100), "{woken:?}");

        let (write, reading, wait) = all;
        let receive = tokio::task::spawn_blocking(move || {
            let got = read(&mut rx, 8 << 20);
            (got, rx)
        });
        let (got, rx) = receive.await.unwrap();
        assert_same(&got, &pattern(1, 0..8 << 20));
        wait.await.unwrap().unwrap();
        write.await.unwrap().close().await.unwrap();
        drop(rx);
        assert_eq!(reading.await.unwrap().unwrap(), 0);
        let polled = polls.map(|p| p.load(SeqCst));
        println!("polls in all: {polled:?}");
        assert!(polled.iter().all(|polls| *polls < 5000), "{polled:?}");
    });
}

/// The control: so it would be seen if the socket were registered with tokio itself.
#[test]
fn tokios_own_registration_would_be_woken_without_end() {
    on_each(|| async {
        let (tx, _rx) = common::tcp_small_window();
        rustix::net::sockopt::set_socket_send_buffer_size(&tx, 64 << 10).unwrap();
        // A sender sets SO_ZEROCOPY, and gives the socket back.
        let tx = Sender::new(tx).unwrap().into_socket(common::deadline()).unwrap().socket;
        let tx = TcpStream::from(tx);
        tx.set_nonblocking(true).unwrap();
        let tx = tokio::net::TcpStream::from_std(tx).unwrap();
        let zerocopy = SendFlags::DONTWAIT | SendFlags::from_bits_retain(0x400_0000);
        rustix::net::send(tx.as_fd(), &[1; 4096], zerocopy).unwrap();
        let mut woken = 0;
        let spinning = async {
            // It does not even yield: without this limit no timeout would end it.
            while woken < ENOUGH {
                tx.writable().await.unwrap();
                woken += usize::from(tx.try_write(&[1; 65536]).is_err());
            }
        };
        let _ = tokio::time::timeout(LOOK, spinning).await;
        assert_eq!(woken, ENOUGH, "the trap is gone, or the test does not see it");
    });
}

#[test]
fn content_by_every_engine_and_every_way() {
    on_each(|| async {
        for engine in common::ENGINES {
            let file = file(2, 3 << 20);
            let guard = common::waiting(file.try_clone().unwrap());
            let (tx, rx) = common::tcp();
            let mut sender = sender(tx, engine);
            let peer = tokio::spawn(received(rx, 10 + 2 * (3 << 20) + 100_000 + 1));
            sender.send(b"0123456789", sendfile2::SendFlags::MORE).await.unwrap();
            let mut progress = Progress::new(0..3 << 20);
            sender
                .send_file_resumable(&source(&file), &mut progress, sendfile2::SendFlags::MORE)
                .await
                .unwrap();
            let lease = guard.lease_async(0..3 << 20).await.unwrap();
            let mut leased = Progress::new(0..3 << 20);
            sender
                .send_lease_resumable(&lease, &mut leased, sendfile2::SendFlags::NONE)
                .await
                .unwrap();
            drop(lease);
            let mut buffer = SendBuffer::new(pattern(3, 0..100_000));
            let ticket = sender.send_buffer(&mut buffer, sendfile2::SendFlags::NONE).await.unwrap();
            sender.write_all(b"!").await.unwrap();
            let (got, _rx) = peer.await.unwrap();
            assert_same(&got[..10], b"0123456789");
            for range in [10..10 + (3 << 20), 10 + (3 << 20)..10 + (6 << 20)] {
                assert_same(&got[range], &pattern(2, 0..3 << 20));
            }
            assert_same(&got[10 + (6 << 20)..got.len() - 1], &pattern(3, 0..100_000));
            for ticket in [progress.ticket(), leased.ticket(), ticket] {
                ticket.released().await.unwrap();
                assert!(matches!(ticket.status(), Status::Released(_)));
                assert_eq!(ticket.acknowledged().await.unwrap(), Acknowledgement::Acknowledged);
            }
            assert_eq!(progress.ticket().bytes(), 3 << 20);
            guard.write_at_async(b"free", 100).await.unwrap();
            sender.close().await.unwrap();
        }
    });
}

/// Futures of all kinds, dropped after a few polls or before any.
#[test]
fn a_dropped_future_loses_and_repeats_nothing() {
    on_each(|| async {
        for engine in common::ENGINES {
            const LEN: u64 = 4 << 20;
            let file = file(4, LEN);
            let source = source(&file);
            let (tx, rx) = common::tcp_small_window();
            // Full again and again.
            rustix::net::sockopt::set_socket_send_buffer_size(&tx, 256 << 10).unwrap();
            let mut sender = sender(tx, engine);
            let (mut peer, mut rx) = (None, Some(rx));
            let mut progress = Progress::new(0..LEN);
            let mut buffer = SendBuffer::new(pattern(5, 0..200_000));
            let mut dropped = 0;
            let mut polls = few_polls();
            while !progress.remaining().is_empty() {
                let sent = at_most(
                    polls(),
                    sender.send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE),
                )
                .await;
                dropped += usize::from(sent.transpose().unwrap().is_none());
                // It begins to read when the socket was full once.
                if let Some(rx) = rx.take() {
                    peer = Some(tokio::spawn(received(rx, LEN as usize + 200_000)));
                }
                let released = progress.ticket();
                at_most(polls(), released.released()).await.transpose().unwrap();
                at_most(polls(), sender.drain()).await.transpose().unwrap();
            }
            while buffer.remaining() > 0 {
                let sent =
                    at_most(polls(), sender.send_buffer(&mut buffer, sendfile2::SendFlags::NONE))
                        .await;
                dropped += usize::from(sent.transpose().unwrap().is_none());
            }
            let (got, _rx) = peer.unwrap().await.unwrap();
            assert_same(&got[..LEN as usize], &pattern(4, 0..LEN));
            assert_same(&got[LEN as usize..], &pattern(5, 0..200_000));
            progress.ticket().released().await.unwrap();
            sender.close().await.unwrap();
            assert!(buffer.into_buffer().is_ok());
            println!("{engine}: {dropped} sends dropped in the middle");
            assert!(dropped > 0);
        }
    });
}

/// 1, 2, 3, 1, …
fn few_polls() -> impl FnMut() -> usize {
    let mut n = 0;
    move || {
        n = n % 3 + 1;
        n
    }
}

/// Polls `future` that often, and drops it. `None` if it was not done by then.
async fn at_most<F: Future>(mut polls: usize, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let result = std::future::poll_fn(|cx| {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
            return std::task::Poll::Ready(Some(value));
        }
        polls -= 1;
        if polls == 0 { std::task::Poll::Ready(None) } else { std::task::Poll::Pending }
    });
    // A release that nobody causes while this waits is not a fault.
    let result = tokio::time::timeout(Duration::from_millis(50), result).await;
    tokio::task::yield_now().await;
    result.ok().flatten()
}

/// Only the reading half is awaited; nobody asks for the release.
#[test]
fn an_idle_connection_learns_of_its_releases() {
    on_each(|| async {
        let (tx, rx) = common::tcp();
        let (mut half, mut sender) = sender(tx, Engine::Zerocopy).into_split();
        let reading = tokio::spawn(async move {
            let mut buffer = [0; 10];
            half.read(&mut buffer).await
        });
        let (buffer, flag) = Flagged::new(vec![7; 200_000]);
        let mut buffer = SendBuffer::new(buffer);
        sender.send_buffer(&mut buffer, sendfile2::SendFlags::NONE).await.unwrap();
        drop(buffer);
        let (_, rx) = received(rx, 200_000).await;
        while !flag.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(rx);
        assert_eq!(reading.await.unwrap().unwrap(), 0);
    });
}

#[test]
fn a_reset_is_told_to_both_halves() {
    on_each(|| async {
        let file = file(1, 16 << 20);
        let (tx, rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        let source = source(&file);
        let mut progress = fill(&mut sender, &source).await;
        let ticket = progress.ticket();
        let (mut half, mut sender) = sender.into_split();
        let reading = tokio::spawn(async move { half.read(&mut [0; 10]).await });
        let writing = tokio::spawn(async move {
            let result = sender
                .send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE)
                .await;
            (result, sender)
        });
        common::reset(rx);
        // One of them is given the error that the kernel gives once; the other one sees the end.
        let read = reading.await.unwrap();
        assert!(matches!(read, Err(_) | Ok(0)), "{read:?}");
        let (write, sender) = writing.await.unwrap();
        assert!(matches!(write, Err(Error::Socket { .. })), "{write:?}");
        // A reset releases the pages, without delivery.
        ticket.released().await.unwrap();
        assert_eq!(ticket.acknowledged().await.unwrap(), Acknowledgement::Unknowable);
        sender.close().await.ok();
    });
}

/// Nothing tells any more what happens to a connection whose runtime is gone.
#[test]
fn a_runtime_that_ends_tells_those_who_wait() {
    // The second one may be given the first one's id.
    for (name, runtime) in runtimes().into_iter().chain(runtimes()) {
        let source = source(&file(1, 16 << 20));
        let (tx, rx) = common::tcp_small_window();
        let entered = runtime.enter();
        let mut sender = sender(tx, Engine::Zerocopy);
        drop(entered);
        let mut progress = runtime.block_on(fill(&mut sender, &source));
        let other = Builder::new_current_thread().build().unwrap();
        let waiting = std::thread::spawn(move || {
            let sent =
                sender.send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE);
            other.block_on(sent)
        });
        runtime.shutdown_background();
        let sent = waiting.join().unwrap();
        assert!(matches!(sent, Err(Error::Wait { .. })), "{name}: {sent:?}");
        drop(rx);
    }
}

/// All that one task can do to the others of its runtime.
#[test]
fn a_waker_that_panics_harms_nobody_else() {
    struct Panics(AtomicUsize);
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
            // Without the panic hook: nobody need read of this one.
            std::panic::resume_unwind(Box::new("a waker that panics"));
        }
    }
    on_each(|| async {
        let panics = Arc::new(Panics(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&panics));
        let (mut bad, mut peers): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (tx, rx) = common::tcp();
                let mut sender = sender(tx, Engine::Copy);
                assert!(pin!(sender.read_u8()).poll(&mut Context::from_waker(&waker)).is_pending());
                (sender, rx)
            })
            .unzip();
        let (tx, mut rx) = common::tcp();
        let mut good = sender(tx, Engine::Copy);
        let reading = tokio::spawn(async move { good.read_u8().await });
        peers.iter_mut().for_each(|peer| peer.write_all(b"1").unwrap());
        while panics.0.load(SeqCst) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        rx.write_all(b"2").unwrap();
        assert_eq!(reading.await.unwrap().unwrap(), b'2');
        for bad in &mut bad {
            assert_eq!(bad.read_u8().await.unwrap(), b'1');
        }
    });
}

/// Runs `test` on a thread of its own, and fails if it hangs.
fn ends(test: impl FnOnce() + Send + 'static) {
    let (ended, end) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        test();
        ended.send(()).unwrap();
    });
    let hangs = end.recv_timeout(Duration::from_secs(60));
    assert_ne!(hangs, Err(std::sync::mpsc::RecvTimeoutError::Timeout), "it hangs");
    thread.join().unwrap();
}

/// A socket of records that was shut down for reading says EAGAIN, and that it is readable.
#[test]
fn reading_ends_where_it_was_shut_down() {
    for (name, runtime) in runtimes() {
        println!("on the {name} runtime");
        ends(move || {
            runtime.block_on(async {
                let (tx, rx) = common::udp();
                let (local, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
                for socket in [OwnedFd::from(tx), OwnedFd::from(local)] {
                    let mut sender = AsyncSender::from_socket(socket, Options::new()).unwrap();
                    sender.sender().abort().unwrap();
                    assert_eq!(sender.read(&mut [0; 10]).await.unwrap(), 0);
                }
                drop((rx, far));
            });
        });
    }
}

/// A waker may be all that keeps a task, and that the other half of the connection.
#[test]
fn a_replaced_waker_may_own_the_other_half() {
    struct Task(#[allow(dead_code, reason = "it is dropped with it")] Mutex<AsyncSender>);
    impl std::task::Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    ends(|| {
        // Nobody else looks at what happens meanwhile.
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (tx, mut rx) = common::tcp_small_window();
            let socket = tx.try_clone().unwrap();
            let mut sender = sender(tx, Engine::Zerocopy);
            fill(&mut sender, &source(&file(1, 16 << 20))).await;
            let (mut half, sender) = sender.into_split();
            let task = Arc::new(Task(Mutex::new(sender)));
            let left = Arc::downgrade(&task);
            let mut wait = |waker: Waker| {
                pin!(half.read_u8()).poll(&mut Context::from_waker(&waker)).is_pending()
            };
            assert!(wait(task.into()));
            // When the sender is dropped it has something to read, and to tell.
            let mut notified = [PollFd::new(&socket, PollFlags::empty())];
            while rustix::event::poll(&mut notified, Some(&Timespec::default())).unwrap() == 0 {
                read(&mut rx, 64 << 10);
            }
            assert!(wait(Waker::noop().clone()));
            assert_eq!(left.strong_count(), 0, "the waker was kept");
        });
    });
}

/// EPOLLERR without anything on the error queue: a UDP socket whose peer is gone.
#[test]
fn an_error_of_the_socket_is_no_completion() {
    on_each(|| async {
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(gone.local_addr().unwrap()).unwrap();
        drop(gone);
        let (mut half, mut sender) =
            AsyncSender::from_socket(socket, options(Engine::Copy)).unwrap().into_split();
        let polls = Arc::<AtomicUsize>::default();
        let reading = counted(Arc::clone(&polls), async move { half.read(&mut [0; 10]).await });
        let reading = tokio::spawn(reading);
        while polls.load(SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        sender.send(b"to nobody", sendfile2::SendFlags::NONE).await.unwrap();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert!(polls.load(SeqCst) < 100, "{polls:?}");
    });
}

#[test]
fn both_halves_at_once() {
    on_each(|| async {
        const LEN: usize = 8 << 20;
        let (tx, rx) = common::tcp();
        let (mut half, mut sender) = sender(tx, Engine::Auto).into_split();
        let file = file(6, LEN as u64);
        let source = source(&file);
        let echo = std::thread::spawn(move || {
            let (mut from, mut to) = (rx.try_clone().unwrap(), rx);
            std::io::copy(&mut from, &mut to).unwrap();
        });
        let sending = tokio::spawn(async move {
            let mut progress = Progress::new(0..LEN as u64);
            sender
                .send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE)
                .await
                .unwrap();
            // The end of the stream, while the other half goes on reading.
        });
        let mut got = Vec::new();
        half.read_to_end(&mut got).await.unwrap();
        sending.await.unwrap();
        assert_same(&got, &pattern(6, 0..LEN as u64));
        tokio::task::spawn_blocking(|| echo.join().unwrap()).await.unwrap();
    });
}

#[test]
fn what_is_held_back_for_more_goes_when_its_release_is_awaited() {
    on_each(|| async {
        for engine in common::ENGINES {
            let (tx, rx) = common::tcp();
            let mut sender = sender(tx, engine);
            let file = file(1, 100_000);
            let mut progress = Progress::new(0..3000);
            for _ in 0..3 {
                sender.send(b"x", sendfile2::SendFlags::MORE).await.unwrap();
            }
            sender
                .send_file_resumable(&source(&file), &mut progress, sendfile2::SendFlags::MORE)
                .await
                .unwrap();
            progress.ticket().released().await.unwrap();
            let (got, _rx) = received(rx, 3003).await;
            assert_same(&got[3..], &pattern(1, 0..3000));
        }
    });
}

#[test]
fn a_writer_waits_for_the_release_and_no_wrong_byte_arrives() {
    on_each(|| async {
        const LEN: u64 = 4 << 20;
        let file = file(8, LEN);
        let guard = common::waiting(file.try_clone().unwrap());
        let (tx, rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        let lease = guard.lease_async(0..LEN).await.unwrap();
        let mut progress = Progress::new(0..LEN);
        let sent = sender.send_lease_resumable(&lease, &mut progress, sendfile2::SendFlags::NONE);
        tokio::time::timeout(Duration::from_millis(200), sent).await.unwrap_err();
        drop(lease);
        let stuck = progress.sent();
        assert!(stuck > 0 && sender.sender().in_flight().sends > 0);

        // A writer that gives up is gone, and lets others in.
        let mut early = Box::pin(guard.write_at_async(b"early", 0));
        assert!(at_most(2, &mut early).await.is_none());
        assert_eq!(guard.writers(), 1);
        assert!(guard.try_lease(0..1).is_none(), "nothing is leased past a queued writer");
        drop(early);
        assert_eq!(guard.writers(), 0);
        drop(guard.try_lease(0..1).expect("nobody is in the way"));

        // And one that waits, only for what is in flight, and needs nobody else to reap.
        let all = tokio::spawn({
            let guard = guard.clone();
            async move { guard.write_at_async(pattern(!8, 0..LEN), 0).await }
        });
        while guard.writers() == 0 {
            tokio::task::yield_now().await;
        }
        let mut waiting = Box::pin(guard.lease_async(0..1));
        assert!(at_most(2, &mut waiting).await.is_none());
        let (got, _rx) = received(rx, usize::try_from(stuck).unwrap()).await;
        all.await.unwrap().unwrap();
        assert_same(&got, &pattern(8, 0..stuck));
        waiting.await.unwrap();
        let mut now = vec![0; 1000];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut now, 0).unwrap();
        assert_same(&now, &pattern(!8, 0..1000));
    });
}

#[test]
fn a_stalled_peer_is_aborted_for_a_writer() {
    on_each(|| async {
        let file = file(9, 4 << 20);
        let guard = common::waiting(file.try_clone().unwrap());
        let (tx, mut rx) = common::tcp_small_window();
        let mut sender = sender(tx, Engine::Zerocopy);
        let lease = guard.lease_async(0..4 << 20).await.unwrap();
        let part =
            sender.send_lease_some(&lease, 0..4 << 20, sendfile2::SendFlags::NONE).await.unwrap();
        assert!(part.bytes < 4 << 20);
        drop(lease);
        let deadline = Instant::now() + Duration::from_millis(50);
        guard.write_at_abort_async(vec![0; 100], 0, deadline).await.unwrap();
        assert_eq!(guard.counters().aborts, 1);
        let mut all = Vec::new();
        let ended = tokio::task::spawn_blocking(move || rx.read_to_end(&mut all)).await.unwrap();
        assert!(ended.is_err(), "the peer sees a reset: {ended:?}");
    });
}

#[test]
fn progress_of_one_sender_is_not_continued_by_another() {
    on_each(|| async {
        let file = file(1, 16 << 20);
        let source = source(&file);
        let (a, rx) = common::tcp_small_window();
        let mut first = sender(a, Engine::Copy);
        let mut progress = Progress::new(0..16 << 20);
        let _ = at_most(
            1,
            first.send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE),
        )
        .await;
        assert!(progress.sent() > 0 && !progress.remaining().is_empty());
        let (b, _other) = common::tcp();
        let mut second = sender(b, Engine::Copy);
        let refused =
            second.send_file_resumable(&source, &mut progress, sendfile2::SendFlags::NONE).await;
        assert!(matches!(refused, Err(Error::OtherSender)), "{refused:?}");
        drop(rx);
    });
}

/// However large, as by a [`Sender`]: one call takes 512 KiB at most.
#[test]
fn a_send_is_of_all_and_a_call_of_some() {
    on_each(|| async {
        const LEN: u64 = 8 << 20;
        let (more, none) = (sendfile2::SendFlags::MORE, sendfile2::SendFlags::NONE);
        let file = file(3, LEN);
        let source = source(&file);
        let guard = common::waiting(file.try_clone().unwrap());
        let bytes = pattern(4, 0..LEN);
        for engine in common::engines() {
            let (tx, rx) = common::tcp_small_window();
            let mut sender = sender(tx, engine);
            let reader = tokio::spawn(received(rx, 3 * LEN as usize));
            let sent = sender.send(&bytes, more).await.unwrap();
            assert_eq!((sent.bytes, sent.ticket.bytes()), (LEN, LEN));
            let sent = sender.send_file(&source, 0..LEN, more).await.unwrap();
            assert_eq!((sent.bytes, sent.ticket.bytes()), (LEN, LEN));
            let lease = guard.lease_async(0..LEN).await.unwrap();
            let sent = sender.send_lease(&lease, 0..LEN, none).await.unwrap();
            assert_eq!((sent.bytes, sent.ticket.bytes()), (LEN, LEN));
            let (got, _peer) = reader.await.unwrap();
            let all = [&bytes[..], &pattern(3, 0..LEN), &pattern(3, 0..LEN)].concat();
            assert_same(&got, &all);
            let part = sender.send_file_some(&source, 0..LEN, none).await.unwrap();
            assert!((part.bytes as u64) < LEN, "{engine}: {part:?}");
        }
    });
}

#[test]
fn a_send_that_stops_says_how_far_it_got() {
    on_each(|| async {
        let none = sendfile2::SendFlags::NONE;
        let file = file(3, 100_000);
        let (tx, rx) = common::tcp();
        let mut sender = sender(tx, Engine::Zerocopy);
        let reader = tokio::spawn(received(rx, 100_000));
        let stopped = sender.send_file(&source(&file), 0..1 << 20, none).await.unwrap_err();
        assert!(matches!(stopped.error, Error::Truncated { at: 100_000, .. }), "{stopped}");
        assert_eq!(stopped.transfer.bytes, 100_000);
        stopped.transfer.ticket.released().await.unwrap();
        assert_same(&reader.await.unwrap().0, &pattern(3, 0..100_000));
        let guard = common::waiting(file.try_clone().unwrap());
        let lease = guard.lease_async(0..10).await.unwrap();
        let stopped = sender.send_lease(&lease, 0..11, none).await.unwrap_err();
        assert!(matches!(stopped.error, Error::NotLeased { .. }), "{stopped}");
        assert_eq!(stopped.transfer.bytes, 0);
    });
}
