//! MTU probing: TCP puts the data of several sends into one probe. The pages of these sends must
//! not be released before the probe is.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::event::PollFlags;
use rustix::io::Errno;
use sendfile2_sys::syscall::Sendfile2;
use series_tests::{Ids, Via, file, overwrite, send, series, wait, wrong};

const PROBING: &str = "/proc/sys/net/ipv4/tcp_mtu_probing";
const LEN: usize = 700;

/// Returns whether TCP probes (on each connection, always); else prints the reason.
fn probes() -> bool {
    match std::fs::write(PROBING, "2") {
        Ok(()) => true,
        Err(e) => {
            println!("SKIP: {PROBING}: {e}");
            false
        }
    }
}

const CALLS: usize = 80;

/// Sends as much as [`overwritten`] does in as many parts, but copied; returns how many probes that
/// made.
fn copied(mut sender: &TcpStream, receiver: TcpStream) -> u64 {
    const ROUNDS: usize = 20;
    sender.set_nonblocking(false).expect("O_NONBLOCK");
    let before = probed();
    let reader = std::thread::spawn(move || wrong(&receiver, LEN * CALLS * ROUNDS, 7));
    for _ in 0..CALLS * ROUNDS {
        sender.write_all(&[7; LEN]).expect("send");
    }
    assert_eq!(reader.join().expect("the reader"), 0);
    probed() - before
}

/// Sends a file in many small calls, more than fit the congestion window, and overwrites it when
/// everything is reported as released, and before it is read.
fn overwritten(call: Sendfile2, sender: &TcpStream, receiver: TcpStream) -> usize {
    const ROUNDS: u8 = 20;
    let data = file(0, LEN);
    let (go, gone) = std::sync::mpsc::channel::<u8>();
    let reader = std::thread::spawn(move || {
        gone.iter().map(|byte| wrong(&receiver, LEN * CALLS, byte)).sum::<usize>()
    });
    let mut ids = Ids::default();
    for round in 0..ROUNDS {
        overwrite(&data, round, LEN);
        for _ in 0..CALLS {
            while let Err(e) = send(call, sender, &data, LEN) {
                assert!(e == Errno::AGAIN || e == Errno::NOBUFS, "sendfile2: {e}");
                ids.reap(sender);
                wait(sender.as_fd(), PollFlags::OUT, 0);
            }
        }
        ids.wait(sender, CALLS * (usize::from(round) + 1));
        overwrite(&data, !round, LEN);
        go.send(round).expect("the reader");
    }
    drop(go);
    reader.join().expect("the reader")
}

/// Returns the number of probes that have arrived.
fn probed() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").expect("netstat");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let both = names.split(' ').zip(values.split(' '));
    let probed = both.filter(|(name, _)| name.starts_with("TCPMTUP"));
    probed.map(|(_, value)| value.parse::<u64>().expect("a number")).sum()
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().expect("a program")).args(words).status();
    assert!(status.expect(command).success(), "{command}");
}

#[test]
fn nothing_is_released_that_a_probe_carries() {
    let Some(call) = series() else { return };
    if !probes() {
        return;
    }
    // So that more is queued than may be in flight, and a probe has few parts.
    run("tc qdisc replace dev lo root netem delay 20ms");
    run("ip link set dev lo mtu 3000");
    let (sender, receiver) = Via::Loopback.connect(Some(1 << 20));
    sender.set_nonblocking(true).expect("O_NONBLOCK");
    let before = probed();
    let wrong = overwritten(call, &sender, receiver);
    let probes = probed() - before;
    // Each connection makes few.
    let mut control = 0;
    for _ in 0..20 {
        let (sender, receiver) = Via::Loopback.connect(Some(1 << 20));
        control += copied(&sender, receiver);
        if control > 0 {
            break;
        }
    }
    println!("{probes} probes, {wrong} wrong bytes; of what is copied, {control} probes");
    std::fs::write(PROBING, "0").expect(PROBING);
    run("ip link set dev lo mtu 65536");
    run("tc qdisc del dev lo root");
    assert_eq!((probes, wrong), (0, 0), "(probes, wrong bytes)");
    assert!(control > 0, "TCP makes no probes here at all: this proves nothing");
}
