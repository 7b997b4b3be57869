//! The engine `native`: what it alone promises, by the kernel module and by a kernel with the patch
//! series. Where there is neither, that is told.
#![allow(clippy::unwrap_used)]

mod common;

use common::{assert_same, deadline, fill, pattern, read, sender, source};
use rustix::process::{Resource, Rlimit, setrlimit};
use sendfile2::{Choice, Engine, Error, Reason, Refusal, SendBuffer, SendFlags, Status};
use sendfile2_sys::module::Device;
use sendfile2_sys::syscall::{self, Sendfile2};

/// Whether it is there or not, there is one answer, and everybody gives it.
#[test]
fn where_it_is_missing_the_reason_is_told() {
    let (tx, _rx) = common::tcp();
    let file = common::file(1, 100);
    let answer = sender(tx, Engine::Native).try_send_file(&source(&file), 0..100, SendFlags::NONE);
    let machine = sendfile2::probe::machine();
    let told = machine.engines.iter().find(|state| state.engine == Engine::Native).unwrap();
    let told = told.availability.to_string();
    match (Device::open(), Sendfile2::find()) {
        (Ok(device), _) => {
            assert_eq!(device.query().unwrap().version, sendfile2_sys::module::VERSION);
            answer.unwrap();
            assert!(told.contains("available: the kernel module"), "{told}");
        }
        (Err(_), Ok(call)) => {
            syscall::probe().unwrap();
            answer.unwrap();
            assert!(told.contains("available: sendfile2(2)"), "{told}");
            assert!(told.contains(&call.number().to_string()), "{told}");
        }
        (Err(e), Err(_)) => {
            println!("SKIP: the engine native, where it is not missing: {}: {e}", Device::PATH);
            let error = answer.unwrap_err();
            let Error::Refused { engine: Engine::Native, reason: Refusal::Native(why) } = error
            else {
                panic!("{error}");
            };
            assert!(why.to_string().contains(Device::PATH), "{why}");
            assert!(told.contains(&why.to_string()), "{told}");
        }
    }
}

#[test]
fn only_tcp_is_served() {
    let (tx, _rx) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut unix = sendfile2::Sender::with(tx, sendfile2::Options::new().engine(Engine::Native));
    let file = common::file(1, 100);
    let error =
        unix.as_mut().unwrap().try_send_file(&source(&file), 0..100, SendFlags::NONE).unwrap_err();
    assert!(
        matches!(error, Error::Refused { engine: Engine::Native, reason: Refusal::Socket(_) }),
        "{error}"
    );
}

#[test]
fn a_file_goes_by_native_and_a_buffer_by_zerocopy() {
    if !common::has(Engine::Native) {
        return;
    }
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Native);
    let file = common::file(2, 100_000);
    let sent = sender.send_file(&source(&file), 7..90_000, SendFlags::NONE, deadline()).unwrap();
    let choice = sent.ticket.choice();
    assert_eq!((choice.engine, choice.reason), (Engine::Native, Reason::Requested));
    let mut buffer = SendBuffer::new(pattern(3, 0..50_000));
    let ticket = sender.send_buffer(&mut buffer, SendFlags::NONE, deadline()).unwrap();
    let choice = ticket.choice();
    assert_eq!((choice.engine, choice.reason), (Engine::Zerocopy, Reason::Buffer));
    sender.send(b"end", SendFlags::NONE, deadline()).unwrap();
    let got = read(&mut rx, 89_993 + 50_000 + 3);
    assert_same(&got[..89_993], &pattern(2, 7..90_000));
    assert_same(&got[89_993..139_993], &pattern(3, 0..50_000));
    // All of their ids were as expected, or this would fail.
    sent.ticket.wait_released(deadline()).unwrap();
    ticket.wait_released(deadline()).unwrap();
    assert_eq!(sender.counters().released, 2);
}

/// The kernel knows itself where the file ends.
#[test]
fn a_range_beyond_the_end_is_sent_by_native_up_to_it() {
    if !common::has(Engine::Native) {
        return;
    }
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Native);
    let source = source(&common::file(8, 100_000));
    let sent = sender.try_send_file(&source, 99_000..u64::MAX, SendFlags::NONE).unwrap();
    let sendfile2::Sent::Accepted { bytes, ticket } = sent else { panic!("a new socket is full") };
    assert_eq!((bytes, ticket.choice().engine), (1000, Engine::Native));
    assert_same(&read(&mut rx, 1000), &pattern(8, 99_000..100_000));
    ticket.wait_released(deadline()).unwrap();
}

/// A mapped send would allocate them, so `zerocopy` reads; `native` need not.
#[test]
fn a_file_with_holes_on_tmpfs_is_sent_by_reference() {
    if !common::has(Engine::Native) {
        return;
    }
    let memfd = rustix::fs::memfd_create("holes", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memfd, 1 << 20).unwrap();
    rustix::io::pwrite(&memfd, &pattern(4, 0..1000), 300_000).unwrap();
    let before = rustix::fs::fstat(&memfd).unwrap().st_blocks;
    let source = sendfile2::Source::new(memfd.try_clone().unwrap()).unwrap();
    let (tx, mut rx) = common::tcp();
    let reader = std::thread::spawn(move || read(&mut rx, 1 << 20));
    let mut sender = sender(tx, Engine::Native);
    let sent = sender.send_file(&source, 0..1 << 20, SendFlags::NONE, deadline()).unwrap();
    assert_eq!(sent.ticket.choice().engine, Engine::Native);
    let mut expected = vec![0; 1 << 20];
    expected[300_000..301_000].copy_from_slice(&pattern(4, 0..1000));
    assert_same(&reader.join().unwrap(), &expected);
    sent.ticket.wait_released(deadline()).unwrap();
    assert_eq!(rustix::fs::fstat(&memfd).unwrap().st_blocks, before, "holes were allocated");
}

#[test]
fn a_lease_is_held_until_the_release() {
    if !common::has(Engine::Native) {
        return;
    }
    let (tx, mut rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Native);
    let file = common::file(5, 4 << 20);
    let guarded = common::waiting(file.try_clone().unwrap());
    let lease = guarded.lease(0..4 << 20, deadline()).unwrap();
    let mut sent = 0;
    let mut last = None;
    while let sendfile2::Sent::Accepted { bytes, ticket } =
        sender.try_send_lease(&lease, sent..4 << 20, SendFlags::NONE).unwrap()
    {
        sent += bytes as u64;
        last = Some(ticket);
    }
    drop(lease);
    assert_eq!(last.as_ref().unwrap().status(), Status::InFlight);
    let error = guarded.write_at(b"early", 0, std::time::Instant::now()).unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error}");
    let reader = std::thread::spawn(move || read(&mut rx, usize::try_from(sent).unwrap()));
    guarded.write_at(&pattern(!5, 0..4 << 20), 0, deadline()).unwrap();
    assert_same(&reader.join().unwrap(), &pattern(5, 0..sent));
}

/// Without `CAP_IPC_LOCK`: as an ordinary user, or as the root of a user namespace.
#[test]
fn auto_takes_it_where_memlock_forbids_zerocopy() {
    const NAME: &str = "auto_takes_it_where_memlock_forbids_zerocopy";
    if common::role().is_none() {
        if !common::has(Engine::Native) {
            return;
        }
        if common::can("no user namespace", &[&common::UNSHARE[..], &["true"]].concat()) {
            common::run_as(&common::UNSHARE, NAME, "limited");
        }
        return;
    }
    setrlimit(Resource::Memlock, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    common::sh("ip link set lo up");
    let veth = common::Veth::new();
    let over_there = veth.over_there();
    let wrapper: Vec<&str> = over_there.iter().map(String::as_str).collect();
    let mut child = common::child(&wrapper, "swallows_everything", "swallow")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let tx = std::net::TcpStream::connect(common::listening(&mut output)).unwrap();
    let mut auto = sender(tx, Engine::Auto);
    let file = common::file(6, 200_000);
    let sent = auto.send_file(&source(&file), 0..200_000, SendFlags::NONE, deadline()).unwrap();
    let Choice { engine, reason: why, .. } = sent.ticket.choice();
    assert_eq!(engine, Engine::Native, "{why}");
    assert!(matches!(why, Reason::Refused(Refusal::Memlock(0))), "{why}");
    sent.ticket.wait_released(deadline()).unwrap();
    let zerocopy = auto
        .send_buffer(&mut SendBuffer::new(vec![1; 100_000]), SendFlags::NONE, deadline())
        .unwrap();
    assert_eq!(zerocopy.choice().engine, Engine::Copy, "a buffer is charged");
    auto.close(deadline()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// The other end of the one before.
#[test]
fn swallows_everything() {
    if common::role().as_deref() == Some("swallow") {
        let mut socket = common::serve_one("10.7.0.2:0");
        std::io::copy(&mut socket, &mut std::io::sink()).unwrap();
    }
}

#[test]
fn a_truncated_file_is_told_as_by_the_other_engines() {
    if !common::has(Engine::Native) {
        return;
    }
    let (tx, _rx) = common::tcp_small_window();
    let mut sender = sender(tx, Engine::Native);
    let file = common::file(7, 1 << 20);
    let source = source(&file);
    fill(&mut sender, &source);
    file.set_len(1000).unwrap();
    let error = sender.try_send_file(&source, 2000..3000, SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::Truncated { at: 1000, wanted: 2000 }), "{error}");
}
