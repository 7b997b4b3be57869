//! Where a filter forbids `setsockopt(2)`.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::{assert_same, deadline, file, pattern, read, source};
use sendfile2::{Engine, Error, Options, Reason, Refusal, SendFlags, Sender};

const LEN: u64 = 3 << 20;

/// Lets `setsockopt(2)` fail for this thread.
fn forbid() {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        [(libc::SYS_setsockopt, vec![])].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn a_series_of_sends_arrives_without_tcp_cork() {
    // In a thread of its own: a filter lasts as long as its thread.
    let test = || {
        let (tx, mut rx) = common::tcp_on_this_host();
        let (file, watched) = (file(1, LEN), tx.try_clone().unwrap());
        let source = source(&file);
        forbid();
        // The control: the filter is there.
        assert!(tx.set_nodelay(true).is_err());
        let mut sender = Sender::with(tx, Options::new().engine(Engine::Copy)).unwrap();
        let reader = std::thread::spawn(move || read(&mut rx, LEN as usize));
        for piece in 0..3 {
            let range = piece << 20..(piece + 1) << 20;
            sender
                .send_file(&source, range, SendFlags::NONE.with_more(piece < 2), deadline())
                .unwrap();
            assert_eq!(rustix::net::sockopt::tcp_cork(&watched), Ok(false));
        }
        assert_same(&reader.join().unwrap(), &pattern(1, 0..LEN));
    };
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn the_reason_for_which_zerocopy_is_refused_is_that_of_the_option() {
    let expected = Refusal::ZerocopyOption(libc::EPERM);
    assert!(expected.to_string().contains("SO_ZEROCOPY"), "{expected}");
    assert!(expected.to_string().contains("Operation not permitted"), "{expected}");
    let test = move || {
        let file = file(1, LEN);
        let source = source(&file);
        let (asked, _rx) = common::tcp_on_this_host();
        let (free, mut rx) = common::tcp_on_this_host();
        forbid();
        let mut sender = Sender::with(asked, Options::new().engine(Engine::Zerocopy)).unwrap();
        match sender.try_send_file(&source, 0..100, SendFlags::NONE) {
            Err(Error::Refused { engine: Engine::Zerocopy, reason }) => {
                assert_eq!(reason, expected);
            }
            other => panic!("{other:?}"),
        }
        let mut sender = Sender::new(free).unwrap();
        let sent = sender.send_file(&source, 0..100, SendFlags::NONE, deadline()).unwrap();
        assert_eq!(sent.ticket.choice().reason, Reason::Refused(expected));
        assert_same(&read(&mut rx, 100), &pattern(1, 0..100));
    };
    std::thread::spawn(test).join().unwrap();
}
