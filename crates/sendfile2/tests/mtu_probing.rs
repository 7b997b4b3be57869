//! Where TCP probes the path for a larger MTU it puts the data of several sends into one packet, and
//! the kernel notifies of them while that packet still refers to the file's pages.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::net::TcpStream;

use common::{assert_same, deadline, file, overwrite, pattern, read, source};
use sendfile2::uring::{Driver, send_file_sync};
use sendfile2::{Engine, Error, Reason, Refusal, SendBuffer, SendFlags, Sent, Source};
use sendfile2_sys::module::Device;
use sendfile2_sys::syscall::Sendfile2;

const SYSCTL: &str = "/proc/sys/net/ipv4/tcp_mtu_probing";

/// An MTU that leaves room to probe, for parts that a probe is made of.
const PATH: &str = "ip link set dev lo mtu 3000
                    tc qdisc replace dev lo root tbf rate 20mbit burst 4k limit 64m";

/// Bytes that one call sends.
const LEN: u64 = 700;

/// A connection made while the sysctl has that value, with which it goes on.
fn connected_under(value: &str) -> (TcpStream, TcpStream) {
    std::fs::write(SYSCTL, value).unwrap();
    common::tcp_on_this_host_large_window()
}

/// How many probes have arrived, by the kernel's count.
fn probes() -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let named = names.split(' ').zip(values.split(' '));
    let ours = named.filter(|(name, _)| name.starts_with("TCPMTUP"));
    ours.map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

/// Whether `native` is sendfile2(2) of a kernel with the patch series, which mends that.
fn series() -> bool {
    Device::open().is_err() && Sendfile2::find().is_ok()
}

/// Sends a file in many small calls, overwrites it when all of them are released, and before they
/// are read; how many wrong bytes arrive.
fn overwritten_at_release(engine: Engine, tx: TcpStream, mut rx: TcpStream) -> usize {
    const CALLS: u64 = 40;
    const ROUNDS: u8 = 20;
    let file = file(0, LEN);
    let source = source(&file);
    let mut sender = common::sender(tx, engine);
    let mut wrong = 0;
    for round in 0..ROUNDS {
        let sent = pattern(round, 0..LEN);
        overwrite(&file, &sent);
        for _ in 0..CALLS {
            // The whole of a call, or the next one would begin in the middle.
            let transfer = sender.send_file(&source, 0..LEN, SendFlags::NONE, deadline()).unwrap();
            assert_eq!(transfer.ticket.choice().engine, engine);
        }
        sender.drain(deadline()).unwrap();
        overwrite(&file, &pattern(!round, 0..LEN));
        for _ in 0..CALLS {
            wrong += common::wrong(&read(&mut rx, usize::try_from(LEN).unwrap()), &sent);
        }
    }
    wrong
}

/// What the refusal is for. A connection that was made before the sysctl was switched off goes on
/// probing, and nobody can see that: so the kernel shows what it does.
#[test]
fn control_a_probe_outlives_the_notification() {
    if !common::inside("control_a_probe_outlives_the_notification", PATH) {
        return;
    }
    common::sh(PATH);
    for value in ["0", "2"] {
        let (tx, rx) = connected_under(value);
        std::fs::write(SYSCTL, "0").unwrap();
        let before = probes();
        let wrong = overwritten_at_release(Engine::Zerocopy, tx, rx);
        let probes = probes() - before;
        println!("tcp_mtu_probing={value}: {probes} probes, {wrong} wrong bytes");
        if value == "0" {
            assert_eq!((probes, wrong), (0, 0));
        } else if wrong == 0 {
            println!("SKIP: this kernel did not probe, or its probes do no harm");
        }
    }
}

#[test]
fn a_kernel_with_the_series_makes_no_such_probe() {
    if !series() {
        println!("SKIP: this is no kernel with the patch series");
        return;
    }
    if !common::inside("a_kernel_with_the_series_makes_no_such_probe", PATH) {
        return;
    }
    common::sh(PATH);
    let (tx, rx) = connected_under("2");
    assert_eq!(overwritten_at_release(Engine::Native, tx, rx), 0);
}

#[track_caller]
fn assert_refused(error: &Error, engine: Engine, value: u8) {
    let Error::Refused { engine: refused, reason } = error else { panic!("{error}") };
    assert_eq!((*refused, *reason), (engine, Refusal::MtuProbing(Some(value))));
    assert!(error.to_string().contains("sysctl -w net.ipv4.tcp_mtu_probing=0"), "{error}");
}

#[test]
fn where_tcp_may_probe_nothing_is_sent_by_reference() {
    let writable = format!("echo 2 > {SYSCTL}");
    if !common::inside("where_tcp_may_probe_nothing_is_sent_by_reference", &writable) {
        return;
    }
    const LEN: u64 = 300_000;
    let file = file(1, LEN);
    let source = source(&file);
    for value in [1, 2] {
        refused_by_name(&source, value);
        auto_copies(&file, &source, value);
        uring_refuses(&source, value);
    }
    // And where it may not, everything is as ever.
    let (tx, mut rx) = connected_under("0");
    let mut sender = common::sender(tx, Engine::Zerocopy);
    let Sent::Accepted { bytes, ticket } =
        sender.try_send_file(&source, 0..1000, SendFlags::NONE).unwrap()
    else {
        panic!("a new socket is full")
    };
    assert_eq!((bytes, ticket.choice().engine), (1000, Engine::Zerocopy));
    assert_same(&read(&mut rx, 1000), &pattern(1, 0..1000));
    // UDP makes no such probes.
    std::fs::write(SYSCTL, "2").unwrap();
    let (tx, _rx) = common::udp();
    let options = sendfile2::Options::new().engine(Engine::Zerocopy);
    let mut sender = sendfile2::Sender::with(tx, options).unwrap();
    let mut buffer = SendBuffer::new([b'?']);
    let ticket = sender.send_buffer(&mut buffer, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(ticket.choice().engine, Engine::Zerocopy);
}

fn refused_by_name(source: &Source, value: u8) {
    let (tx, rx) = connected_under(&value.to_string());
    let mut sender = common::sender(tx, Engine::Zerocopy);
    let error = sender.try_send_file(source, 0..1000, SendFlags::NONE).unwrap_err();
    assert_refused(&error, Engine::Zerocopy, value);
    nothing_came(&rx);
    match sendfile2::probe::destination(&sender).native_refused {
        Some(reason @ Refusal::Native(_)) => {
            println!("SKIP: the engine native: {reason}");
            return;
        }
        // By a kernel that makes no such probes, which the other test tries.
        None => return assert!(series()),
        Some(_) => {}
    }
    let (tx, rx) = connected_under(&value.to_string());
    let mut sender = common::sender(tx, Engine::Native);
    let error = sender.try_send_file(source, 0..1000, SendFlags::NONE).unwrap_err();
    assert_refused(&error, Engine::Native, value);
    nothing_came(&rx);
}

fn auto_copies(file: &File, source: &Source, value: u8) {
    let (tx, mut rx) = connected_under(&value.to_string());
    let mut sender = common::sender(tx, Engine::Auto);
    let len = source.size().unwrap();
    overwrite(file, &pattern(1, 0..len));
    let reader = std::thread::spawn(move || read(&mut rx, usize::try_from(len).unwrap()));
    let transfer = sender.send_file(source, 0..len, SendFlags::NONE, deadline()).unwrap();
    let choice = transfer.ticket.choice();
    assert_eq!(choice.engine, Engine::Copy);
    // Where it is not probing that stands in the way, it is that the peer is near.
    let reason = Reason::Refused(Refusal::MtuProbing(Some(value)));
    assert_eq!(choice.reason, if series() { Reason::PeerOnThisHost } else { reason });
    overwrite(file, &pattern(!1, 0..len));
    assert_same(&reader.join().unwrap(), &pattern(1, 0..len));
    overwrite(file, &pattern(1, 0..len));
    // probe says so, and what to do.
    let machine = sendfile2::probe::machine();
    assert_eq!(machine.limits.tcp_mtu_probing, Some(value));
    assert!(machine.to_string().contains("refuse TCP sockets"), "{machine}");
    let advice = machine.advice().iter().any(|a| a.to_string().contains("tcp_mtu_probing=0"));
    assert!(advice, "{:?}", machine.advice());
}

fn uring_refuses(source: &Source, value: u8) {
    let (tx, rx) = connected_under(&value.to_string());
    let unfinished = send_file_sync(&tx, source, 0..1000, deadline()).unwrap_err();
    assert_refused(&unfinished.error, Engine::Uring, value);
    nothing_came(&rx);
    match Driver::new() {
        Ok(driver) => assert_refused(&driver.add(tx).unwrap_err(), Engine::Uring, value),
        Err(e) => println!("SKIP: {e}"),
    }
}

fn nothing_came(rx: &TcpStream) {
    rx.set_nonblocking(true).unwrap();
    let error = rx.peek(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// Where the sysctl cannot be read it may have any value.
#[test]
fn what_cannot_be_read_is_refused() {
    let hide = "mount -t tmpfs none /proc/sys";
    if !common::inside("what_cannot_be_read_is_refused", hide) {
        return;
    }
    common::sh(hide);
    assert_eq!(sendfile2::tcp_mtu_probing(), None);
    let (tx, _rx) = common::tcp_on_this_host();
    let mut sender = common::sender(tx, Engine::Zerocopy);
    let error = sender.try_send_file(&source(&file(1, 100)), 0..100, SendFlags::NONE).unwrap_err();
    let Error::Refused { reason: Refusal::MtuProbing(None), .. } = error else { panic!("{error}") };
}

/// Does `make` in a network namespace of its own, where TCP probes.
fn in_another_namespace<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};
    let script = format!("ip link set lo up; echo 2 > {SYSCTL}; echo ready; exec cat");
    let mut anchor = Command::new("unshare")
        .args(["--net", "sh", "-ec", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    anchor.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
    let namespace = File::open(format!("/proc/{}/ns/net", anchor.id())).unwrap();
    let made = std::thread::scope(|scope| {
        let enter = || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).unwrap();
            make()
        };
        scope.spawn(enter).join().unwrap()
    });
    drop(anchor.stdin.take());
    anchor.wait().unwrap();
    made
}

/// What counts is the sysctl of the socket's namespace, which the thread may not be in.
#[test]
fn a_socket_of_another_namespace_is_not_sent_by_reference() {
    let test = "a_socket_of_another_namespace_is_not_sent_by_reference";
    if !common::inside(test, &format!("unshare --net sh -c 'echo 2 > {SYSCTL}'")) {
        return;
    }
    let file = file(2, 1000);
    let source = source(&file);
    assert_eq!(sendfile2::tcp_mtu_probing(), Some(0), "here");
    let (tx, _rx) = common::tcp_on_this_host();
    if sendfile2::in_own_namespace(&tx).is_none() {
        println!("SKIP: no SO_NETNS_COOKIE here");
        return;
    }
    assert_eq!(sendfile2::in_own_namespace(&tx), Some(true));
    let refused = |error: &Error, by: Engine| {
        let Error::Refused { engine, reason } = error else { panic!("{error}") };
        assert_eq!((*engine, *reason), (by, Refusal::OtherNamespace));
    };
    let (tx, rx) = in_another_namespace(common::tcp_on_this_host);
    assert_eq!(sendfile2::in_own_namespace(&tx), Some(false));
    let unfinished = send_file_sync(&tx, &source, 0..1000, deadline()).unwrap_err();
    refused(&unfinished.error, Engine::Uring);
    match Driver::new() {
        Ok(driver) => refused(&driver.add(tx.try_clone().unwrap()).unwrap_err(), Engine::Uring),
        Err(e) => println!("SKIP: {e}"),
    }
    let mut sender = common::sender(tx, Engine::Zerocopy);
    refused(
        &sender.try_send_file(&source, 0..1000, SendFlags::NONE).unwrap_err(),
        Engine::Zerocopy,
    );
    nothing_came(&rx);
    // By a thread that is there the value is seen.
    let error = in_another_namespace(|| {
        let (tx, _rx) = common::tcp_on_this_host();
        common::sender(tx, Engine::Zerocopy)
            .try_send_file(&source, 0..1000, SendFlags::NONE)
            .unwrap_err()
    });
    assert_refused(&error, Engine::Zerocopy, 2);
    // And who sends here is served, whoever else has made sockets elsewhere.
    let (tx, _rx) = common::tcp_on_this_host();
    let mut sender = common::sender(tx, Engine::Zerocopy);
    assert!(matches!(
        sender.try_send_file(&source, 0..1000, SendFlags::NONE).unwrap(),
        Sent::Accepted { .. }
    ));
}
