//! `send`, `recv` and `probe` as their users meet them.

mod engines;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use sendfile2::Engine;
use serde_json::Value;
use tempfile::TempDir;

fn sendfile2(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
    command.args(args).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    sendfile2(args).output().expect("the command starts")
}

/// Returns standard error of a command that failed: one line that begins with the command's name.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert!(text.starts_with("sendfile2: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// The one JSON object that a command printed.
fn object(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{output:?}");
    serde_json::from_str(&text).expect("JSON")
}

/// A file on disk (not tmpfs) that is different everywhere.
struct Content {
    directory: TempDir,
    bytes: Vec<u8>,
}

impl Content {
    fn new(len: usize) -> Self {
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        std::fs::write(directory.path().join("content"), &bytes).expect("written");
        Content { directory, bytes }
    }

    fn path(&self) -> String {
        self.beside("content")
    }

    fn beside(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("UTF-8").into()
    }
}

fn blake3(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_string()
}

/// A running `recv`.
struct Receiver {
    child: Child,
    stderr: BufReader<ChildStderr>,
    address: String,
}

impl Receiver {
    fn start(listen: &str, args: &[&str]) -> Self {
        let mut child = sendfile2(&[&["recv", listen, "--json"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        stderr.read_line(&mut line).expect("UTF-8");
        let address = line.trim().strip_prefix("sendfile2: listening on ").expect(&line).into();
        Receiver { child, stderr, address }
    }

    fn end(mut self) -> Output {
        // Both at once: it may wait for a reader of either.
        let passed_on = self.child.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut all = Vec::new();
                stdout.read_to_end(&mut all).expect("read");
                all
            })
        });
        let mut stderr = Vec::new();
        self.stderr.read_to_end(&mut stderr).expect("read");
        let stdout = passed_on.map_or_else(Vec::new, |thread| thread.join().expect("read"));
        Output { status: self.child.wait().expect("it ends"), stdout, stderr }
    }
}

#[test]
fn both_ends_agree_on_what_was_sent_by_each_engine() {
    let content = Content::new(5_000_001);
    for engine in engines::without_lease() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            if listen.starts_with('[') && TcpListener::bind(listen).is_err() {
                println!("SKIP: no IPv6 loopback here");
                continue;
            }
            let copy = content.beside("copy");
            let receiver = Receiver::start(listen, &["--once", "-o", &copy]);
            let args = ["send", &content.path(), &receiver.address, "--engine", engine.name()];
            let sent = run(&[&args[..], &["--wait", "acknowledged", "--json"]].concat());
            assert!(sent.status.success() && sent.stderr.is_empty(), "{engine}: {sent:?}");
            let received = receiver.end();
            assert!(received.status.success(), "{engine}: {received:?}");

            let (sent, received) = (object(&sent), object(&received));
            assert_eq!(sent["blake3"], blake3(&content.bytes), "{engine}");
            assert_eq!(received["blake3"], sent["blake3"], "{engine}");
            assert_eq!(received["bytes"], 5_000_001);
            assert!(std::fs::read(&copy).expect("it is there") == content.bytes, "{engine}");

            for bytes in ["bytes", "released_bytes", "acknowledged_bytes"] {
                assert_eq!(sent[bytes], 5_000_001, "{sent}");
            }
            for time in ["sent", "released", "acknowledged"] {
                assert!(sent[format!("micros_until_{time}")].is_u64(), "{sent}");
            }
            let choices = sent["choices"].as_array().expect("choices");
            let sum: u64 = choices.iter().map(|c| c["bytes"].as_u64().expect("bytes")).sum();
            assert_eq!(sum, 5_000_001, "{sent}");
            if matches!(engine, Engine::Zerocopy | Engine::Uring) {
                assert_eq!(sent["copied_share"], 1.0, "on loopback: {sent}");
            } else {
                assert_eq!(sent["zerocopy_sends"], 0, "{sent}");
            }
        }
    }
}

#[test]
fn a_range_is_sent_and_nothing_else() {
    let content = Content::new(1 << 20);
    for (args, range) in [
        (&["--offset", "64K", "--length", "100001"][..], 65_536..165_537),
        (&["--offset", "1000000"], 1_000_000..1 << 20),
        (&["--length", "1"], 0..1),
        (&["--length", "0"], 0..0),
        (&["--offset", "1M"], 1 << 20..1 << 20),
    ] {
        let receiver = Receiver::start("127.0.0.1:0", &["--once"]);
        let sent = run(&[&["send", &content.path(), &receiver.address, "--json"], args].concat());
        assert!(sent.status.success(), "{sent:?}");
        let received = object(&receiver.end());
        assert_eq!(received["bytes"], range.len(), "{args:?}");
        assert_eq!(received["blake3"], blake3(&content.bytes[range]), "{args:?}");
        assert_eq!(object(&sent)["blake3"], received["blake3"], "{args:?}");
    }
}

#[test]
fn a_unix_socket_is_served_by_copy_and_refused_by_zerocopy() {
    let content = Content::new(300_000);
    let socket = format!("unix:{}", content.beside("socket"));
    let receiver = Receiver::start(&socket, &["--once"]);

    let refused = run(&["send", &content.path(), &socket, "--engine", "zerocopy"]);
    let text = complaint(&refused);
    assert!(text.contains("zerocopy refused") && text.contains("unix socket"), "{text}");
    assert!(text.contains("nothing was sent"), "{text}");
    let text = complaint(&run(&["send", &content.path(), &socket, "--wait", "acknowledged"]));
    assert!(text.contains("unix socket acknowledges nothing"), "{text}");

    // The receiver saw nothing of these: this is its first connection.
    let sent = object(&run(&["send", &content.path(), &socket, "--json"]));
    assert!(sent["acknowledged_bytes"].is_null(), "{sent}");
    assert_eq!(sent["choices"][0]["engine"], "copy");
    let received = object(&receiver.end());
    assert_eq!(received["blake3"], blake3(&content.bytes));
    assert!(!Path::new(&content.beside("socket")).exists(), "the socket is left behind");
}

#[test]
fn a_socket_that_an_interrupted_receiver_left_is_no_obstacle() {
    let content = Content::new(10);
    let path = content.beside("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let socket = format!("unix:{path}");
    let receiver = Receiver::start(&socket, &["--once"]);
    // One that is in use is, and its receiver sees nothing of the attempt.
    let text = complaint(&run(&["recv", &socket]));
    assert!(text.contains("in use") && text.contains(&path), "{text}");
    assert!(run(&["send", &content.path(), &socket]).status.success());
    assert_eq!(object(&receiver.end())["bytes"], 10);
}

#[test]
fn a_receiver_that_never_reads_ends_at_the_deadline() {
    let content = Content::new(64 << 20);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    for engine in engines::without_lease() {
        let args = ["send", &content.path(), &address, "--engine", engine.name(), "--deadline"];
        let sent = run(&[&args[..], &["500ms", "--json"]].concat());
        let text = complaint(&sent);
        assert!(text.contains("the deadline of 500ms passed: of 64 MiB, "), "{text}");
        for word in [" sent, ", " released, ", " acknowledged", "connection was reset"] {
            assert!(text.contains(word), "{text}");
        }
        let sent = object(&sent);
        let bytes = usize::try_from(sent["bytes"].as_u64().expect("bytes")).expect("fits");
        assert!(bytes > 0 && bytes < 64 << 20, "{sent}");
        assert_eq!(sent["blake3"], blake3(&content.bytes[..bytes]));
        assert!(text.contains(sent["error"].as_str().expect("error")), "{text}");
    }
}

#[test]
fn a_receiver_that_goes_away_is_told_of() {
    let content = Content::new(64 << 20);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    for engine in engines::without_lease() {
        let sending = sendfile2(&["send", &content.path(), &address, "--engine", engine.name()])
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let (mut peer, _) = listener.accept().expect("accepted");
        peer.read_exact(&mut [0; 100_000]).expect("read");
        // With bytes that were not read, this is a reset.
        drop(peer);
        let sent = sending.wait_with_output().expect("it ends");
        let text = complaint(&sent);
        assert!(text.contains("the peer closed the connection"), "{text}");
        assert!(text.contains("the file is free now"), "{text}");
        assert!(sent.stdout.is_empty());
    }
}

#[test]
fn wrong_input_is_explained_in_a_sentence() {
    let content = Content::new(1000);
    let file = content.path();
    let missing = content.beside("missing");
    let directory = content.directory.path().to_str().expect("UTF-8");
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("bound").to_string()
    };
    for (args, said) in [
        (&["send", &missing, &closed][..], &["cannot open", "No such file"][..]),
        (&["send", directory, &closed], &["directory", directory]),
        (&["send", &file, &closed], &["Connection refused", &closed, "recv"]),
        (&["send", &file, "no.such.host.invalid:1"], &["no.such.host.invalid"]),
        (&["send", &file, "unix:/nowhere/socket"], &["unix:/nowhere/socket", "No such file"]),
        (&["send", &file, &closed, "--offset", "1001"], &["1001", "1000 bytes", "nothing was"]),
        (&["send", &file, &closed, "--offset", "999", "--length", "2"], &["1 byte", "--length 2"]),
        (&["recv", "203.0.113.9:1"], &["cannot listen on 203.0.113.9:1"]),
        (&["recv", "127.0.0.1:0", "-o", directory], &["cannot write to", directory]),
        (&["probe", &closed], &["Connection refused"]),
        (&["probe", "--file", &missing], &["cannot open"]),
    ] {
        let text = complaint(&run(args));
        for word in said {
            assert!(text.contains(word), "{args:?}: {text}");
        }
    }
    for args in [
        &["send", &file, "localhost"][..],
        &["send", &file, "::1:80"],
        &["send", &file, "localhost:99999"],
        &["send", &file, &closed, "--deadline", "soon"],
        &["send", &file, &closed, "--engine", "warp"],
        &["recv", ":80", "--rate", "0"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn without_once_it_serves_one_after_another() {
    let content = Content::new(100_000);
    let copy = content.beside("copy");
    let mut receiver = Receiver::start("127.0.0.1:0", &["-o", &copy]);
    let mut lines = BufReader::new(receiver.child.stdout.take().expect("piped")).lines();
    for length in [100_000, 10] {
        let length_given = length.to_string();
        let sent = run(&["send", &content.path(), &receiver.address, "--length", &length_given]);
        assert!(sent.status.success(), "{sent:?}");
        let line = lines.next().expect("a line").expect("UTF-8");
        let report: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(report["blake3"], blake3(&content.bytes[..length]));
        assert!(std::fs::read(&copy).expect("there") == content.bytes[..length], "replaced");
    }
    receiver.child.kill().expect("killed");
    receiver.end();
}

#[test]
fn a_connection_that_breaks_leaves_a_partial_file_and_says_so() {
    let content = Content::new(0);
    let copy = content.beside("copy");
    let receiver = Receiver::start("127.0.0.1:0", &["--once", "-o", &copy]);
    let mut socket = TcpStream::connect(&receiver.address).expect("connected");
    socket.write_all(b"the first part").expect("sent");
    let written = || std::fs::metadata(&copy).is_ok_and(|m| m.len() == 14);
    while !written() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    rustix::net::sockopt::set_socket_linger(&socket, Some(std::time::Duration::ZERO)).expect("set");
    drop(socket);
    let received = receiver.end();
    let text = complaint(&received);
    assert!(text.contains("Connection reset") && text.contains("first 14 bytes"), "{text}");
    assert!(text.contains(&copy), "{text}");
    assert_eq!(object(&received)["bytes"], 14);
    assert!(object(&received)["error"].is_string());
}

/// A length that is more than the sockets and the pipe of a receiver that is held up hold.
const MUCH: usize = 16 << 20;

/// Starts a sender that cannot send everything, as its receiver is held up: the receiver's standard
/// output is not read.
fn held_up(content: &Content, listen: &str, args: &[&str]) -> (Child, Receiver) {
    let mut receiver = Receiver::start(listen, &["--once", "-o", "-"]);
    let send = ["send", &content.path(), &receiver.address];
    let sending = sendfile2(&[&send, args].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let passed_on = receiver.child.stdout.as_mut().expect("piped");
    passed_on.read_exact(&mut [0]).expect("the first byte");
    (sending, receiver)
}

/// Returns what a `recv -o -` that failed passed on, its report and its complaint.
fn failed(output: &Output) -> (usize, Value, String) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    let (report, complaint) = text.split_once('\n').expect("two lines");
    let report = serde_json::from_str(report).expect("JSON");
    // With the byte that was read before.
    (output.stdout.len() + 1, report, complaint.into())
}

/// Whether programs that are started from here ignore the signal, as they inherit it.
fn is_ignored(signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("SigIgn");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("hexadecimal");
    ignored >> (signal.as_raw() - 1) & 1 == 1
}

#[test]
fn a_sender_that_is_killed_is_no_end_for_its_receiver() {
    use rustix::process::{Pid, Signal, kill_process};
    let content = Content::new(MUCH);
    for engine in engines::without_lease() {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL] {
            if is_ignored(signal) {
                println!("SKIP: {signal:?} is ignored here (nohup, a job in the background)");
                continue;
            }
            let args = ["--engine", engine.name(), "--wait", "none"];
            let (mut sending, receiver) = held_up(&content, "127.0.0.1:0", &args);
            kill_process(Pid::from_child(&sending), signal).expect("killed");
            let ended = sending.wait().expect("it ends");
            assert!(!ended.success(), "{engine}, {signal:?}: {ended:?}");
            let (passed_on, report, complaint) = failed(&receiver.end());
            assert!(complaint.contains("Connection reset"), "{engine}, {signal:?}: {complaint}");
            assert!(complaint.contains("of an unknown whole"), "{complaint}");
            assert!(passed_on < content.bytes.len());
            assert_eq!(report["bytes"], passed_on, "{engine}, {signal:?}");
            assert!(report["error"].is_string(), "{report}");
        }
    }
}

/// The control for a documented limit: without a reset a part passes for the whole.
#[test]
fn control_a_sender_that_is_killed_over_a_unix_socket_is_taken_for_an_end() {
    let content = Content::new(MUCH);
    let socket = format!("unix:{}", content.beside("socket"));
    let (mut sending, receiver) = held_up(&content, &socket, &[]);
    sending.kill().expect("killed");
    sending.wait().expect("it ends");
    let received = receiver.end();
    assert!(received.status.success());
    assert!(received.stdout.len() < content.bytes.len() - 1);
}

#[test]
fn over_a_unix_socket_a_failure_says_that_it_cannot_be_told() {
    let content = Content::new(MUCH);
    let path = content.beside("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let args = ["send", &content.path(), &format!("unix:{path}"), "--deadline", "500ms"];
    let text = complaint(&run(&args));
    assert!(text.contains("a unix socket cannot be reset"), "{text}");
}

#[test]
fn what_was_sent_arrives_when_nobody_waits_for_it() {
    // More than what the receiver takes without being read, less than what the sockets hold.
    let content = Content::new(300_000);
    for engine in engines::without_lease() {
        let args = ["--engine", engine.name(), "--wait", "none"];
        let (sending, receiver) = held_up(&content, "127.0.0.1:0", &args);
        let sent = sending.wait_with_output().expect("it ends");
        assert!(sent.status.success(), "{engine}: {sent:?}");
        let received = receiver.end();
        assert!(received.status.success(), "{engine}");
        assert!(received.stdout == content.bytes[1..], "{engine}");
    }
}

#[test]
fn a_connection_without_content_that_is_reset_leaves_the_file_as_it_was() {
    let content = Content::new(1000);
    let receiver = Receiver::start("127.0.0.1:0", &["--once", "-o", &content.path()]);
    assert!(run(&["probe", &receiver.address]).status.success());
    let text = complaint(&receiver.end());
    assert!(text.contains("as it was") && text.contains(&content.path()), "{text}");
    assert!(std::fs::read(content.path()).expect("there") == content.bytes);
}

#[test]
fn files_that_do_not_tell_their_size_are_refused_before_anybody_is_connected_to() {
    let sysfs = ["/sys/devices/system/cpu/online", "/sys/kernel/mm/transparent_hugepage/enabled"];
    let sysfs = sysfs.into_iter().find(|path| Path::new(path).exists());
    if sysfs.is_none() {
        println!("SKIP: sysfs: it is not mounted here");
    }
    for file in sysfs.into_iter().chain(["/proc/version"]) {
        for length in [&[][..], &["--length", "1"]] {
            // No process listens there.
            let text = complaint(&run(&[&["send", file, "127.0.0.1:1"], length].concat()));
            assert!(text.contains(file) && text.contains("nothing was sent"), "{text}");
            assert!(text.contains("does not end where it says"), "{text}");
        }
    }
}

#[test]
fn a_file_that_grows_is_sent_to_its_end() {
    let content = Content::new(MUCH);
    let (sending, receiver) = held_up(&content, "127.0.0.1:0", &["--json"]);
    let file = std::fs::OpenOptions::new().append(true).open(content.path());
    file.expect("open").write_all(b"and more").expect("written");
    let received = receiver.end();
    assert_eq!(object(&sending.wait_with_output().expect("it ends"))["bytes"], MUCH + 8);
    assert!(received.stdout[..content.bytes.len() - 1] == content.bytes[1..]);
    assert!(received.stdout.ends_with(b"and more"), "the end of the file");
}

/// Runs the command where a filter forbids `setsockopt(2)`, which lasts as long as its thread.
fn without_setsockopt(args: &[&str]) -> Output {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filtered = || {
        let filter = SeccompFilter::new(
            [(libc::SYS_setsockopt, vec![])].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            std::env::consts::ARCH.try_into().expect("an architecture with filters"),
        );
        let program: seccompiler::BpfProgram = filter.expect("valid").try_into().expect("valid");
        seccompiler::apply_filter(&program).expect("applied");
        run(args)
    };
    std::thread::scope(|scope| scope.spawn(filtered).join()).expect("it runs")
}

#[test]
fn where_no_option_can_be_set_it_is_sent_and_said_what_is_lost() {
    let content = Content::new(3_000_000);
    let receiver = Receiver::start("127.0.0.1:0", &["--once"]);
    let args = ["send", &content.path(), &receiver.address];
    let refused = without_setsockopt(&[&args[..], &["--engine", "zerocopy"]].concat());
    let text = complaint(&refused);
    assert!(text.contains("SO_ZEROCOPY cannot be set"), "{text}");
    assert!(text.contains("not permitted") && text.contains("nothing was sent"), "{text}");

    let sent = without_setsockopt(&args);
    assert!(sent.status.success(), "{sent:?}");
    let text = String::from_utf8(sent.stderr).expect("UTF-8");
    assert!(text.contains("SO_LINGER cannot be set") && text.lines().count() == 1, "{text}");
    assert_eq!(object(&receiver.end())["blake3"], blake3(&content.bytes));
}

#[test]
fn abstract_unix_sockets_have_names_and_no_files() {
    let content = Content::new(100_000);
    let name = format!("@sendfile2-test-{}", std::process::id());
    let socket = format!("unix:{name}");
    let receiver = Receiver::start(&socket, &["--once"]);
    assert_eq!(receiver.address, socket);
    assert!(!Path::new(&name).exists());
    let probed = object(&run(&["probe", &socket, "--json"]));
    assert_eq!(probed["destination"]["address"], socket, "{probed}");
    for engine in ["zerocopy_refused", "native_refused"] {
        assert!(probed["destination"][engine].is_string(), "{engine}: {probed}");
    }
    // The probe was its one connection.
    assert_eq!(object(&receiver.end())["bytes"], 0);

    let receiver = Receiver::start(&socket, &["--once"]);
    assert!(run(&["send", &content.path(), &socket]).status.success());
    assert_eq!(object(&receiver.end())["blake3"], blake3(&content.bytes));
    let text = complaint(&run(&["send", &content.path(), &socket]));
    assert!(text.contains(&socket) && text.contains("refused"), "{text}");
}

#[test]
fn standard_output_that_is_closed_is_no_place_for_what_is_received() {
    let closed = Command::new("sh")
        .args(["-c", "exec \"$0\" recv 127.0.0.1:0 --once -o - >&-"])
        .arg(env!("CARGO_BIN_EXE_sendfile2"))
        .output()
        .expect("sh starts");
    assert!(complaint(&closed).contains("standard output is closed"));
}

#[test]
fn standard_output_gets_the_content_and_nothing_else() {
    let content = Content::new(50_000);
    // Few enough for a pipe that is read late.
    let receiver = Receiver::start("127.0.0.1:0", &["--once", "-o", "-", "--rate", "10M/s"]);
    let sent = run(&["send", &content.path(), &receiver.address]);
    assert!(sent.status.success(), "{sent:?}");
    // For people: no colour, no progress where there is no terminal, and the digest.
    let text = String::from_utf8(sent.stdout).expect("UTF-8");
    assert!(text.contains(&blake3(&content.bytes)) && !text.contains('\x1b'), "{text}");
    let received = receiver.end();
    assert!(received.stdout == content.bytes);
    let report: Value = serde_json::from_slice(&received.stderr).expect("JSON on standard error");
    assert_eq!(report["bytes"], 50_000);
}

#[test]
fn probe_names_all_engines() {
    let machine = object(&run(&["probe", "--json"]));
    let engines = machine["engines"].as_array().expect("engines");
    let names: Vec<_> = engines.iter().map(|e| e["engine"].as_str().expect("a name")).collect();
    assert!(names.into_iter().eq(Engine::ALL.iter().map(|engine| engine.name())));
    for engine in engines {
        assert!(engine["why"].is_string(), "{engine}");
        assert!(["available", "refused", "untried"].contains(&engine["state"].as_str().expect("")));
    }
    assert_eq!(engines[0]["state"], "available", "copy needs nothing");
    assert!(machine["advice"].is_array() && machine["kernel"].is_string(), "{machine}");
    let text = String::from_utf8(run(&["probe"]).stdout).expect("UTF-8");
    for word in ["zerocopy", "RLIMIT_MEMLOCK", "net.core.optmem_max", "io_uring", "Advice"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn probe_of_a_destination_on_this_host_says_that_auto_copies_and_why() {
    let content = Content::new(1000);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let report = object(&run(&["probe", &address, "--file", &content.path(), "--json"]));
    let destination = &report["destination"];
    assert_eq!(destination["peer_on_this_host"], true, "{report}");
    assert!(destination["mtu"].as_u64() > Some(1000), "{report}");
    let auto = destination["auto"].as_array().expect("auto");
    assert!(auto.iter().all(|choice| choice["engine"] == "copy"), "{report}");
    let largest = auto.last().expect("at least one");
    assert!(largest["why"].as_str().expect("why").contains("on this host"), "{report}");
    assert!(largest["to_bytes"].is_null(), "{report}");
    assert_eq!(report["file"]["size"], 1000);
    assert!(report["file"]["filesystem"].is_string(), "{report}");
    let (mut seen, _) = listener.accept().expect("accepted");
    let end = seen.read(&mut [0; 1]).expect_err("nothing was sent, and that is no empty file");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Runs the command under a limit on locked memory, without the capability that lifts it; `None`
/// where that cannot be had.
fn limited(memlock: u64, args: &[&str]) -> Option<Output> {
    let limit = format!("--memlock={memlock}:{memlock}");
    let mut wrapper = vec!["prlimit", &limit];
    if rustix::process::geteuid().is_root() {
        wrapper.extend(["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]);
    }
    let under = |program: &Path, args: &[&str]| {
        Command::new(wrapper[0]).args(&wrapper[1..]).arg(program).args(args).output()
    };
    match under(&PathBuf::from("true"), &[]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("SKIP: cannot set limits: {}", why.trim());
            return None;
        }
        Err(e) => {
            println!("SKIP: cannot set limits: {}: {e}", wrapper[0]);
            return None;
        }
    }
    Some(under(env!("CARGO_BIN_EXE_sendfile2").as_ref(), args).expect("it starts"))
}

#[test]
fn a_low_limit_on_locked_memory_gets_advice() {
    let Some(output) = limited(64 << 10, &["probe", "--json"]) else { return };
    let report = object(&output);
    assert_eq!(report["limits"]["memlock_soft"], 65_536, "{report}");
    assert_eq!(report["limits"]["memlock_lifted"], false, "{report}");
    let advice = report["advice"].to_string();
    for word in ["RLIMIT_MEMLOCK", "64 KiB", "LimitMEMLOCK=", "ulimit -l"] {
        assert!(advice.contains(word), "{report}");
    }
}

#[test]
fn a_limit_that_allows_no_zerocopy_send_is_found_before_anybody_is_connected_to() {
    let Some(output) = limited(4096, &["probe", "--json"]) else { return };
    let report = object(&output);
    assert_eq!(report["engines"][1]["state"], "refused", "{report}");
    let content = Content::new(1000);
    let args = ["send", &content.path(), "127.0.0.1:1", "--engine", "zerocopy"];
    let text = complaint(&limited(4096, &args).expect("as before"));
    assert!(text.contains("RLIMIT_MEMLOCK is 4096") && text.contains("nothing was sent"), "{text}");
}

#[test]
fn help_has_examples() {
    for command in ["probe", "send", "recv"] {
        let output = run(&[command, "--help"]);
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(text.contains(&format!("Examples:\n  sendfile2 {command}")), "{text}");
    }
}
