//! The synchronous safe `sendfile`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::{assert_same, deadline, file, overwrite, pattern, read, source, wrong};
use sendfile2::uring::{UringUnavailable, send_file_sync};
use sendfile2::{Engine, Error, IncompleteSend, Refusal, Release, Source, Status, reaper};

const LEN: u64 = 6 << 20;

#[test]
fn all_of_the_range_arrives() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let source = source(&file);
    // Several parts, of which the first and the last are not whole pages; none; a byte.
    for range in [4097..LEN - 3, 5..5, 77..78] {
        for nonblocking in [false, true] {
            let (tx, mut rx) = common::tcp_small_window();
            tx.set_nonblocking(nonblocking).unwrap();
            let len = (range.end - range.start) as usize;
            let reader = std::thread::spawn(move || read(&mut rx, len));
            send_file_sync(&tx, &source, range.clone(), deadline()).unwrap();
            assert_same(&reader.join().unwrap(), &pattern(1, range.clone()));
        }
    }
}

#[test]
fn when_it_returns_the_file_may_be_overwritten() {
    if !common::has_uring() {
        return;
    }
    let len = 64 << 10;
    let file = file(1, len);
    let (tx, mut rx) = common::tcp();
    for generation in 0..100_u8 {
        overwrite(&file, &pattern(generation, 0..len));
        send_file_sync(&tx, &source(&file), 0..len, deadline()).unwrap();
        overwrite(&file, &pattern(!generation, 0..len));
        // Nothing was read before.
        assert_same(&read(&mut rx, len as usize), &pattern(generation, 0..len));
    }
}

/// The peer does not read; the call gave up.
fn given_up(file: &std::fs::File) -> (std::net::TcpStream, std::net::TcpStream, u64) {
    let (tx, rx) = common::tcp_small_window();
    let soon = Instant::now() + Duration::from_millis(50);
    let unfinished = send_file_sync(&tx, &source(file), 0..LEN, soon).unwrap_err();
    assert!(matches!(unfinished.error, Error::Deadline(_)), "{unfinished:?}");
    assert_eq!(unfinished.transfer.ticket.status(), Status::Unknown);
    let bytes = unfinished.transfer.bytes;
    assert!(bytes > 0 && bytes < LEN, "{bytes}");
    (tx, rx, bytes)
}

#[test]
fn at_the_deadline_it_says_how_far_it_got_and_the_reaper_waits_for_the_rest() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (tx, mut rx, bytes) = given_up(&file);
    assert!(reaper::pending().sends > 0);
    drop(tx);
    let mut got = Vec::new();
    // The end comes: nobody keeps the socket.
    rx.read_to_end(&mut got).unwrap();
    assert_same(&got, &pattern(1, 0..bytes));
    reaper::drain(deadline()).unwrap();
}

/// The control: what is unknown is not free.
#[test]
fn control_overwritten_at_the_deadline_it_arrives_wrong() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (_tx, mut rx, bytes) = given_up(&file);
    overwrite(&file, &pattern(!1, 0..LEN));
    let got = read(&mut rx, bytes as usize);
    assert!(wrong(&got, &pattern(1, 0..bytes)) > 0, "an unknown range looks free here");
}

#[test]
fn after_the_deadline_the_stream_can_be_continued() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (tx, mut rx, bytes) = given_up(&file);
    let reader = std::thread::spawn(move || read(&mut rx, LEN as usize));
    send_file_sync(&tx, &source(&file), bytes..LEN, deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(1, 0..LEN));
}

#[test]
fn a_deadline_in_the_past_sends_what_there_is_room_for() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, 100);
    let (tx, mut rx) = common::tcp();
    match send_file_sync(&tx, &source(&file), 0..100, Instant::now()) {
        Ok(_) => {}
        Err(IncompleteSend { error: Error::Deadline(_), transfer, .. })
            if transfer.bytes == 100 => {}
        Err(other) => panic!("{other:?}"),
    }
    assert_same(&read(&mut rx, 100), &pattern(1, 0..100));
}

#[test]
fn a_reset_in_mid_send_releases_everything() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (tx, mut rx) = common::tcp_small_window();
    let peer = std::thread::spawn(move || {
        // It has begun, and cannot end.
        read(&mut rx, 1000);
        common::reset(rx);
    });
    let unfinished = send_file_sync(&tx, &source(&file), 0..LEN, deadline()).unwrap_err();
    assert!(matches!(unfinished.error, Error::Socket { .. }), "{unfinished:?}");
    // Errors notify, too, and that was waited for.
    assert!(matches!(unfinished.transfer.ticket.status(), Status::Released(_)), "{unfinished:?}");
    peer.join().unwrap();
}

#[test]
fn a_file_that_ends_early_is_an_error_after_what_there_was() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, 10_000);
    let (tx, mut rx) = common::tcp();
    let unfinished = send_file_sync(&tx, &source(&file), 0..20_000, deadline()).unwrap_err();
    assert!(matches!(unfinished.error, Error::Truncated { at: 10_000, .. }), "{unfinished:?}");
    assert_eq!(unfinished.transfer.bytes, 10_000);
    assert_same(&read(&mut rx, 10_000), &pattern(1, 0..10_000));
}

#[test]
fn a_file_truncated_while_it_waits_is_an_error_and_no_signal() {
    if !common::has_uring() {
        return;
    }
    let file = file(1, LEN);
    let (tx, mut rx) = common::tcp_small_window();
    let cut = file.try_clone().unwrap();
    let peer = std::thread::spawn(move || {
        // What cannot be on its way yet is cut off.
        read(&mut rx, 1000);
        cut.set_len(5 << 20).unwrap();
        let mut rest = Vec::new();
        let _ = rx.read_to_end(&mut rest);
        rest.len() as u64 + 1000
    });
    let unfinished = send_file_sync(&tx, &source(&file), 0..LEN, deadline()).unwrap_err();
    drop(tx);
    assert!(
        matches!(unfinished.error, Error::Truncated { .. } | Error::Socket { .. }),
        "{unfinished:?}"
    );
    assert_eq!(peer.join().unwrap(), unfinished.transfer.bytes);
}

#[test]
fn what_gives_no_notifications_is_refused() {
    if !common::has_uring() {
        return;
    }
    let refused = |result: Result<Release, IncompleteSend>| match result {
        Err(IncompleteSend {
            error: Error::Refused { engine: Engine::Uring, reason },
            transfer,
            ..
        }) => {
            assert_eq!(transfer.bytes, 0);
            assert!(matches!(transfer.ticket.status(), Status::Released(_)));
            reason
        }
        other => panic!("{other:?}"),
    };
    let file = file(1, 100);
    // The kernel's EOPNOTSUPP, which announces a notification.
    let (unix, _peer) = UnixStream::pair().unwrap();
    let reason = refused(send_file_sync(&unix, &source(&file), 0..100, deadline()));
    assert_eq!(reason, Refusal::NotSupported);

    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let reason = refused(send_file_sync(&udp, &source(&file), 0..100, deadline()));
    assert!(matches!(reason, Refusal::Socket(_)), "{reason}");

    let proc = Source::open("/proc/self/maps").unwrap();
    let (tx, _rx) = common::tcp();
    let result = send_file_sync(&tx, &proc, 0..100, deadline());
    // It has no size, so that nothing of it can be sent.
    assert!(matches!(result.unwrap_err().error, Error::Truncated { .. }));
}

#[test]
fn where_a_filter_forbids_io_uring_the_reason_is_told() {
    let name = "where_a_filter_forbids_io_uring_the_reason_is_told";
    if common::role().is_none() {
        return common::run_as(&[], name, "forbidden");
    }
    for (errno, expected) in
        [(libc::ENOSYS, UringUnavailable::Missing), (libc::EPERM, UringUnavailable::Forbidden)]
    {
        // In a thread of its own: a filter lasts as long as its thread.
        std::thread::spawn(move || {
            forbid(errno);
            let (tx, _rx) = common::tcp();
            let file = file(1, 100);
            let unfinished = send_file_sync(&tx, &source(&file), 0..100, deadline()).unwrap_err();
            let Error::Refused { engine: Engine::Uring, reason: Refusal::IoUring(why) } =
                unfinished.error
            else {
                panic!("{unfinished:?}")
            };
            // Where it is forbidden in other ways, too, the sysctl is the reason that is told.
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            if errno == libc::ENOSYS || disabled.map_or(true, |value| value.trim() == "0") {
                assert_eq!(why, expected);
            }
            let machine = sendfile2::probe::machine();
            let told = machine.engines.iter().find(|state| state.engine == Engine::Uring).unwrap();
            assert_eq!(told.availability.to_string(), format!("refused: {why}"));
        })
        .join()
        .unwrap();
    }
}

/// Lets `io_uring_setup` fail for this thread.
fn forbid(errno: i32) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        [(libc::SYS_io_uring_setup, vec![])].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}
