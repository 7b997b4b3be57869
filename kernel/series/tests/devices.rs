//! Over network devices that send from the pages of the file: a file that is overwritten at the
//! release arrives unchanged, and one that is overwritten before does not, or nothing is proved.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::event::PollFlags;
use rustix::io::Errno;
use sendfile2_sys::syscall::{SENDFILE_SYNC, Sendfile2};
use series_tests::{Ids, Via, file, overwrite, reset, send, series, wait, wrong};

const LEN: usize = 1 << 20;

fn both() -> Option<Sendfile2> {
    let call = series()?;
    Via::Devices.is_there().then_some(call)
}

/// Runs `tc`: what is sent is read by the device only after a delay, so that there is time to
/// overwrite it.
fn discipline(what: &str) {
    let words = format!("qdisc replace dev eth0 root netem {what}");
    let status = Command::new("tc").args(words.split(' ')).status().expect("tc");
    assert!(status.success(), "tc {words}: {status}");
}

/// Sends the whole file; returns how many calls that took.
fn send_all(call: Sendfile2, socket: &TcpStream, file: &File) -> usize {
    let (mut at, mut calls) = (0, 0);
    while at < LEN as u64 {
        let left = LEN - usize::try_from(at).expect("small");
        let flags = sendfile2_sys::syscall::SENDFILE_ZC;
        match call.send(socket.as_fd(), file.as_fd(), Some(&mut at), left, flags) {
            Ok(1..) => calls += 1,
            Err(Errno::AGAIN) => wait(socket.as_fd(), PollFlags::OUT, 1),
            other => panic!("sendfile2: {other:?}"),
        }
    }
    calls
}

/// Sends the file several times, and overwrites it each time before the next; returns the bytes
/// that arrived wrong, and the share of ids that were COPIED.
fn overwritten(call: Sendfile2, at_release: bool, rounds: u8) -> (usize, f64) {
    let (sender, receiver) = Via::Devices.connect(None);
    let data = file(0, LEN);
    let mut ids = Ids::default();
    let mut calls = 0;
    let (go, gone) = std::sync::mpsc::channel::<u8>();
    let reader = std::thread::spawn(move || {
        gone.iter().map(|byte| wrong(&receiver, LEN, byte)).sum::<usize>()
    });
    for byte in 0..rounds {
        overwrite(&data, byte, LEN);
        go.send(byte).expect("the reader");
        calls += send_all(call, &sender, &data);
        if at_release {
            ids.wait(&sender, calls);
        }
        overwrite(&data, !byte, LEN);
        // Or the next round would overwrite this one's, in its turn.
        ids.wait(&sender, calls);
    }
    drop(go);
    let wrong = reader.join().expect("the reader");
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let copied = ids.copied as f64 / calls as f64;
    println!("{rounds} times {LEN} bytes, {calls} ids, COPIED {copied:.3}, wrong bytes {wrong}");
    ids.assert_each_once(calls);
    (wrong, copied)
}

#[test]
fn overwriting_at_release_is_never_seen_and_before_it_is() {
    let Some(call) = both() else { return };
    discipline("delay 20ms");
    let (early, _) = overwritten(call, false, 4);
    assert!(early > 0, "overwriting too early was not seen: this proves nothing");
    let (wrong, copied) = overwritten(call, true, 16);
    assert_eq!(wrong, 0, "wrong bytes");
    // One packet of at most 128 bytes flags a whole call: vmxnet3's driver copies those.
    assert!(copied < 1.0, "something of each call was copied: this proves little");
}

#[test]
fn with_losses_too() {
    let Some(call) = both() else { return };
    discipline("delay 10ms loss 3%");
    assert_eq!(overwritten(call, true, 8).0, 0, "wrong bytes");
    discipline("delay 0ms");
}

#[test]
fn a_synchronous_call_returns_at_release() {
    let Some(call) = both() else { return };
    discipline("delay 20ms");
    let (sender, receiver) = Via::Devices.connect(None);
    let data = file(0, LEN);
    let reader =
        std::thread::spawn(move || (0..8).map(|byte| wrong(&receiver, LEN, byte)).sum::<usize>());
    for byte in 0..8 {
        overwrite(&data, byte, LEN);
        let (socket, flags) = (sender.as_fd(), SENDFILE_SYNC);
        assert_eq!(call.send(socket, data.as_fd(), Some(&mut 0), LEN, flags), Ok(LEN));
        overwrite(&data, !byte, LEN);
    }
    assert_eq!(reader.join().expect("the reader"), 0, "wrong bytes");
    discipline("delay 0ms");
}

/// A reset releases the pages, whatever of them a device still holds.
#[test]
fn after_a_reset_all_ids_come() {
    let Some(call) = both() else { return };
    discipline("delay 20ms");
    let data = file(1, LEN);
    for _ in 0..20 {
        let (sender, receiver) = Via::Devices.connect(Some(65_536));
        sender.set_nonblocking(true).expect("O_NONBLOCK");
        let mut calls = 0;
        loop {
            match send(call, &sender, &data, 100_000) {
                Ok(_) => calls += 1,
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                Err(e) => panic!("sendfile2: {e}"),
            }
        }
        reset(receiver);
        let mut ids = Ids::default();
        ids.wait(&sender, calls);
        ids.assert_each_once(calls);
    }
    discipline("delay 0ms");
}
