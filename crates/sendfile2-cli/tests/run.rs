//! `sendfile2 run`.
#![allow(clippy::unwrap_used)]
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

#[path = "../../sendfile2-c/tests/installed/mod.rs"]
mod installed;
mod programs;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use programs::Kind;
use rustix::process::{Pid, Signal};

const RUN: &str = env!("CARGO_BIN_EXE_sendfile2");

/// A command that runs a program, protected or not, without the shim.
fn command(protected: bool, program: impl AsRef<Path>) -> Command {
    let program = program.as_ref();
    let mut command = if protected {
        let mut command = Command::new(RUN);
        command.arg("run").arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env_remove("LD_PRELOAD").env_remove("SENDFILE2_MODE");
    command
}

/// Returns whether anything can be protected here.
fn can() -> bool {
    let output = command(true, "true").output().unwrap();
    let can = output.status.success();
    if !can {
        println!("SKIP: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        assert_eq!(output.status.code(), Some(125));
    }
    can
}

/// A process that ends with the test.
struct Running {
    child: Child,
    lines: BufReader<Box<dyn Read>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines: Box<dyn Read> = Box::new(child.stdout.take().unwrap());
        Running { child, lines: BufReader::new(lines) }
    }

    /// Starts a program, whose lines are those of its standard error.
    fn start_with_stderr(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines: Box<dyn Read> = Box::new(child.stderr.take().unwrap());
        Running { child, lines: BufReader::new(lines) }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().into()
    }

    /// Connects to the port that the program tells.
    fn connect(&mut self) -> TcpStream {
        let port: u16 = self.line().parse().unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of bytes that a program has sent and the client got changed, of 1 MiB.
fn overtaken(program: &Path, protected: bool) -> usize {
    overtaken_by(command(protected, program))
}

/// As [`overtaken`], of the program that this command runs.
fn overtaken_by(mut command: Command) -> usize {
    const SIZE: usize = 1 << 20;
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, vec![b'A'; SIZE]).unwrap();
    command.arg(&file);
    let mut server = Running::start(command);
    let mut client = server.connect();
    assert_eq!(server.line(), "overwritten");
    let mut body = Vec::new();
    client.read_to_end(&mut body).unwrap();
    assert_eq!(body.len(), SIZE);
    drop(server.child.stdin.take());
    assert!(server.child.wait().unwrap().success());
    body.iter().filter(|byte| **byte != b'A').count()
}

#[test]
fn programs_of_every_kind_are_safe() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for kind in Kind::ALL {
        let Some(program) = kind.compile("overtaken", directory.path()) else { continue };
        let (control, wrong) = (overtaken(&program, false), overtaken(&program, true));
        println!("{kind:?}: wrong without it {control}, with it {wrong}");
        assert_eq!((control, wrong), (1 << 20, 0), "{kind:?}");
    }
}

/// The program itself says what is wrong.
#[test]
fn signals_and_limits_come_through_and_nobody_waits_for_another_call() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for kind in [Kind::Static, Kind::Dynamic] {
        let Some(program) = kind.compile("stalls", directory.path()) else { continue };
        let printed = [false, true].map(|protected| {
            let output = command(protected, &program).output().unwrap();
            assert!(output.status.success(), "{kind:?}, protected: {protected}: {output:?}");
            output.stdout
        });
        assert_eq!(printed[0], printed[1], "{kind:?}");
    }
}

/// The bytes of a file; no 255 is among them.
fn pattern(at: u64) -> u8 {
    u8::try_from(((at * 31) ^ ((at >> 8) * 17) ^ ((at >> 16) * 7)) % 251).unwrap()
}

fn make_file(path: &Path, length: u64) {
    let file = File::create(path).unwrap();
    let mut at = 0;
    while at < length {
        let end = length.min(at + (1 << 20));
        let bytes: Vec<u8> = (at..end).map(pattern).collect();
        file.write_all_at(&bytes, at).unwrap();
        at = end;
    }
}

/// The bytes that a client of `stream.c` has got.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    /// Exactly the file.
    All,
    /// A part of it, and it is seen that it is one.
    Part,
    /// Something else: wrong bytes, or too many.
    Wrong,
}

fn receive(client: &mut TcpStream, mut at: impl FnMut(u64)) -> Got {
    let mut length = [0; 8];
    if client.read_exact(&mut length).is_err() {
        return Got::Part;
    }
    let length = u64::from_ne_bytes(length);
    let mut got = 0;
    let mut bytes = vec![0; 1 << 16];
    loop {
        at(got);
        match client.read(&mut bytes) {
            Ok(0) if got == length => return Got::All,
            Ok(0) => return Got::Part,
            Ok(more) => {
                for byte in &bytes[..more] {
                    if *byte != pattern(got) || got >= length {
                        return Got::Wrong;
                    }
                    got += 1;
                }
            }
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Got::Part,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_signal_each_millisecond_changes_no_byte() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = directory.path().join("file");
    for kind in [Kind::Static, Kind::StaticMusl] {
        let Some(program) = kind.compile("stream", directory.path()) else { continue };
        make_file(&file, 32 << 20);
        let mut command = command(true, &program);
        command.arg(&file).arg("signals");
        let mut server = Running::start(command);
        let mut client = server.connect();
        assert_eq!(receive(&mut client, |_| ()), Got::All);
        let line = server.line();
        println!("{kind:?}: {line}");
        assert!(line.starts_with("sent, ") && !line.contains(" 0 signals"), "{line}");
    }
}

/// The processes of `sendfile2` that go on beside a program which has begun: the supervisor and its
/// guardian.
fn beside(tag: &str) -> (Pid, Pid) {
    let variable = format!("TEST_TAG={tag}");
    loop {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let path = entry.path();
            let Ok(id) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let ours = std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe == Path::new(RUN));
            let environment = std::fs::read(path.join("environ")).unwrap_or_default();
            if !ours || !environment.split(|byte| *byte == 0).any(|it| it == variable.as_bytes()) {
                continue;
            }
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            let words = stat.rsplit(')').next().unwrap().split_whitespace();
            let [state, parent] = words.take(2).collect::<Vec<_>>()[..] else { continue };
            if state != "Z" {
                found.push((id, parent.parse::<i32>().unwrap()));
            }
        }
        for (id, parent) in &found {
            if found.iter().any(|(other, _)| other == parent) {
                return (Pid::from_raw(*parent).unwrap(), Pid::from_raw(*id).unwrap());
            }
        }
        std::thread::yield_now();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Program,
    Supervisor,
    Guardian,
    /// Those of them that have the command's name, or a command line with it in it.
    Named,
    /// The guardian, while the supervisor cannot start another one, and then the supervisor.
    Both,
}

fn named(id: &Pid) -> bool {
    ["comm", "cmdline"].iter().any(|file| {
        let path = format!("/proc/{}/{file}", id.as_raw_nonzero());
        std::fs::read_to_string(path).is_ok_and(|name| name.contains("sendfile2"))
    })
}

/// Kills in the midst of the file, and returns what the client got.
fn killed(program: &Path, file: &Path, victim: Victim, round: u64) -> Got {
    const LENGTH: u64 = 8 << 20;
    make_file(file, LENGTH);
    let tag = format!("{victim:?}-{round}-{}", std::process::id());
    let mut command = command(true, program);
    command.arg(file).env("TEST_TAG", &tag).stderr(Stdio::null());
    let mut server = Running::start(command);
    let mut client = server.connect();
    let (supervisor, guardian) = beside(&tag);
    let process = Pid::from_raw(i32::try_from(server.child.id()).unwrap()).unwrap();
    // Somewhere in the first three fourths.
    let place = fastrand::u64(0..LENGTH * 3 / 4);
    let kill = |id, signal| rustix::process::kill_process(id, signal).unwrap();
    let mut done = false;
    receive(&mut client, |got| {
        if got >= place && !std::mem::replace(&mut done, true) {
            match victim {
                Victim::Program => kill(process, Signal::KILL),
                Victim::Supervisor => kill(supervisor, Signal::KILL),
                Victim::Guardian => kill(guardian, Signal::KILL),
                Victim::Named => {
                    // It may not have come to write over its own yet.
                    let end = Instant::now() + Duration::from_secs(60);
                    while named(&guardian) && Instant::now() < end {
                        std::thread::yield_now();
                    }
                    let named: Vec<_> = [supervisor, guardian].into_iter().filter(named).collect();
                    named.iter().for_each(|id| kill(*id, Signal::KILL));
                    assert_eq!(named, [supervisor]);
                }
                Victim::Both => {
                    kill(supervisor, Signal::STOP);
                    kill(guardian, Signal::KILL);
                    kill(supervisor, Signal::KILL);
                }
            }
        }
    })
}

const ROUNDS: u64 = 10;

#[test]
fn whoever_is_killed_no_client_takes_wrong_bytes_for_right() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = directory.path().join("file");
    let Some(program) = Kind::Static.compile("stream", directory.path()) else { return };
    for victim in [Victim::Program, Victim::Supervisor, Victim::Guardian, Victim::Named] {
        let mut all = 0;
        for round in 0..ROUNDS {
            let got = killed(&program, &file, victim, round);
            assert_ne!(got, Got::Wrong, "{victim:?}, round {round}");
            assert!(victim != Victim::Guardian || got == Got::All, "nothing is lost by it");
            all += usize::from(got == Got::All);
        }
        println!("{victim:?} killed: {all} of {ROUNDS} clients got all, the others a part");
    }
    // What the guardian is for can be seen where it is missing.
    let wrong = (0..50).any(|round| killed(&program, &file, Victim::Both, round) == Got::Wrong);
    assert!(wrong, "the control");
}

#[test]
fn the_program_is_the_process_that_was_started() {
    if !can() {
        return;
    }
    let shell = |script: &str| {
        let mut command = command(true, "sh");
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(Stdio::piped());
        command
    };
    let child = shell("echo $$; cat /proc/$$/task/$$/children; exit 7").spawn().unwrap();
    let id = child.id();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert_eq!(lines[0], id.to_string());
    // Its only child is `cat`.
    assert!(lines[1].split_whitespace().count() <= 1, "{text}");
    assert!(output.stderr.is_empty(), "{output:?}");

    assert_eq!(shell("kill -TERM $$").status().unwrap().signal(), Some(15));

    let mut child = shell("cat").spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through");

    // A signal to the process reaches the program.
    let mut child =
        shell("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done").spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let process = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(process, Signal::USR1).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));

    // Ignored and blocked signals are inherited, and SIGPIPE is as it was.
    let status = "exec grep -E 'SigIgn|SigBlk' /proc/self/status";
    let plain = Command::new("sh").args(["-c", status]).output().unwrap();
    assert_eq!(shell(status).output().unwrap().stdout, plain.stdout);
}

#[test]
fn what_cannot_be_run_is_told_as_by_env() {
    if !can() {
        return;
    }
    for (program, code) in [("/nonexistent", 127), ("no-such-program", 127), ("/etc/passwd", 126)] {
        let output = command(true, program).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.starts_with("sendfile2: cannot run ") && text.contains(program), "{text}");
    }
}

/// A filter that lasts as long as its thread forbids what a supervisor needs.
#[test]
fn who_may_not_look_into_the_program_says_so_and_runs_nothing() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    if !can() {
        return;
    }
    for (call, status) in [
        (libc::SYS_pidfd_getfd, 125),
        (libc::SYS_process_vm_readv, 125),
        // The control.
        (libc::SYS_acct, 0),
    ] {
        let filtered = || {
            let filter = SeccompFilter::new(
                [(call, vec![])].into_iter().collect(),
                SeccompAction::Allow,
                SeccompAction::Errno(libc::EPERM.unsigned_abs()),
                std::env::consts::ARCH.try_into().unwrap(),
            );
            let program: BpfProgram = filter.unwrap().try_into().unwrap();
            seccompiler::apply_filter(&program).unwrap();
            command(true, "echo").arg("run").output().unwrap()
        };
        let output = std::thread::scope(|scope| scope.spawn(filtered).join()).unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert_eq!(output.stdout.is_empty(), status != 0);
        assert_eq!(text.contains("cannot be looked into"), status != 0, "{text}");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_told_before_anything_is_run() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("missing/report");
    let mut run = Command::new(RUN);
    run.arg("run").arg(format!("--report={}", report.display())).args(["echo", "run"]);
    let output = run.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(125), 0), "{text}");
    assert!(text.contains("cannot report to") && text.contains("missing/report"), "{text}");
}

#[test]
fn a_second_one_within_it_says_that_the_first_protects_it() {
    if !can() {
        return;
    }
    let output = command(true, RUN).args(["run", "true"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{text}");
    assert!(text.contains("another `sendfile2 run`"), "{text}");
}

#[test]
fn nothing_is_left_when_the_program_has_ended() {
    if !can() {
        return;
    }
    let tag = format!("left-{}", std::process::id());
    let mut command = command(true, "sh");
    command.args(["-c", "echo begun; exec cat"]).env("TEST_TAG", &tag).stderr(Stdio::piped());
    let mut running = Running::start(command);
    assert_eq!(running.line(), "begun");
    let (supervisor, guardian) = beside(&tag);
    // Nor do they keep what the program writes to from its reader's end: before Linux 6.11 they go on until
    // the program is waited for.
    for id in [supervisor, guardian] {
        for number in 0..3 {
            let path = format!("/proc/{}/fd/{number}", id.as_raw_nonzero());
            while std::fs::read_link(&path).unwrap() != Path::new("/dev/null") {
                std::thread::yield_now();
            }
        }
    }
    let files = [supervisor, guardian]
        .map(|id| rustix::process::pidfd_open(id, rustix::process::PidfdFlags::empty()).unwrap());
    // Nobody who asks politely ends them, nor closes what the program writes to.
    for id in [supervisor, guardian] {
        rustix::process::kill_process(id, Signal::TERM).unwrap();
    }
    drop(running.child.stdin.take());
    assert!(running.child.wait().unwrap().success());
    for file in files {
        let mut ended = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut ended, None), Ok(1));
    }
}

#[test]
fn a_probe_tells_who_is_protected_by_it() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let Some(program) = Kind::Static.compile("waits", directory.path()) else { return };
    for protected in [false, true] {
        let mut running = Running::start(command(protected, &program));
        assert_eq!(running.line(), "-1");
        let id = running.child.id().to_string();
        let output = Command::new(RUN).args(["probe", "--json", "--pid", &id]).output().unwrap();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["process"]["supervised"], protected, "{report}");
        assert_eq!(report["process"]["protected"], protected, "{report}");
    }
}

#[test]
fn a_report_says_what_became_of_the_calls() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(program) = Kind::Static.compile("stalls", directory.path()) else { return };
    let mut command = Command::new(RUN);
    let output = command.args(["run", "--report"]).arg(&program).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.starts_with("sendfile2: ") && text.contains(" calls made safe by the supervisor"),
        "{text}"
    );
}

/// A daemon, whose workers it forks, and which starts itself anew without most of its environment.
struct Nginx(std::path::PathBuf);

impl Nginx {
    fn id(&self) -> Option<Pid> {
        let id = std::fs::read_to_string(self.0.join("pid")).ok()?.trim().parse().ok()?;
        Pid::from_raw(id)
    }
}

/// The number of bytes of a file that an HTTP server sends wrong, where the file is overwritten when the
/// server has told that it is sent.
fn wrong(file: &Path, port: u16, told: impl FnOnce()) -> usize {
    const SIZE: usize = 1 << 20;
    std::fs::write(file, vec![b'A'; SIZE]).unwrap();
    let mut client = loop {
        if let Ok(client) = TcpStream::connect(("127.0.0.1", port)) {
            break client;
        }
        std::thread::yield_now();
    };
    client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
    told();
    let written = File::options().write(true).open(file).unwrap();
    written.write_all_at(&[b'B'; SIZE], 0).unwrap();
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    let head = response.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(response.len() - head, SIZE);
    response[head..].iter().filter(|byte| **byte != b'A').count()
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(id) = self.id() {
            let _ = rustix::process::kill_process(id, Signal::TERM);
        }
        // Its directory is removed then.
        while self.0.join("pid").exists() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_daemon_and_what_it_starts_anew_are_safe() {
    let program = Path::new("/usr/sbin/nginx");
    if !can() {
        return;
    }
    if !program.exists() || !rustix::process::geteuid().is_root() {
        println!("SKIP: no /usr/sbin/nginx, or not root");
        return;
    }
    for protected in [false, true] {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let here = directory.path();
        let log = UnixDatagram::bind(here.join("log")).unwrap();
        log.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let port = free_port();
        let at = here.display();
        let configuration = format!(
            "user root; worker_processes 1; pid {at}/pid; error_log {at}/errors;
             events {{ }}
             http {{
                 sendfile on; access_log syslog:server=unix:{at}/log;
                 client_body_temp_path {at}/t1; proxy_temp_path {at}/t2;
                 fastcgi_temp_path {at}/t3; uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;
                 server {{ listen 127.0.0.1:{port}; root {at}; }}
             }}"
        );
        std::fs::write(here.join("conf"), configuration).unwrap();
        let mut start = command(protected, program);
        start.arg("-e").arg(here.join("errors")).arg("-p").arg(here);
        assert!(start.arg("-c").arg(here.join("conf")).status().unwrap().success());
        let nginx = Nginx(here.to_owned());
        let expected = if protected { 0 } else { 1 << 20 };
        let told = || assert_ne!(log.recv(&mut [0; 1024]).unwrap(), 0);
        assert_eq!(wrong(&here.join("file"), port, told), expected);
        let before = loop {
            if let Some(id) = nginx.id() {
                break id;
            }
        };
        // The live upgrade.
        rustix::process::kill_process(before, Signal::USR2).unwrap();
        while nginx.id().is_none_or(|id| id == before) {
            std::thread::yield_now();
        }
        rustix::process::kill_process(before, Signal::QUIT).unwrap();
        while rustix::process::test_kill_process(before).is_ok() {
            std::thread::yield_now();
        }
        assert_eq!(wrong(&here.join("file"), port, told), expected);
    }
}

#[test]
fn http_servers_of_go_are_safe() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let here = directory.path();
    let file = here.join("file");
    let expected = |wrong, protected| {
        // net/http looks at the first bytes, and sends them by write(2).
        let all = (1 << 20) - 512..=1 << 20;
        if protected { wrong == 0 } else { all.contains(&wrong) }
    };
    if let Some(program) = Kind::Go.compile("serve", here) {
        for protected in [false, true] {
            std::fs::write(&file, vec![0; 1 << 20]).unwrap();
            let mut command = command(protected, &program);
            command.arg(&file);
            let mut server = Running::start(command);
            let port = server.line().parse().unwrap();
            // It overwrites the file itself, each time.
            for _ in 0..3 {
                let wrong = wrong(&file, port, || assert_eq!(server.line(), "overwritten"));
                assert!(expected(wrong, protected), "net/http: {wrong}, protected: {protected}");
            }
        }
    }
    let caddy = Path::new("/usr/bin/caddy");
    if !caddy.exists() {
        println!("SKIP: no /usr/bin/caddy");
        return;
    }
    for protected in [false, true] {
        let port = free_port();
        let mut command = command(protected, caddy);
        command.args(["file-server", "--access-log", "--listen", &format!("127.0.0.1:{port}")]);
        command.arg("--root").arg(here).env("HOME", here).env_remove("XDG_DATA_HOME");
        let mut server = Running::start_with_stderr(command);
        for _ in 0..3 {
            let wrong = wrong(&file, port, || {
                while !server.line().contains("handled request") {
                    assert!(server.child.try_wait().unwrap().is_none());
                }
            });
            assert!(expected(wrong, protected), "Caddy: {wrong}, protected: {protected}");
        }
    }
}

/// Half of the clients read nothing until the others have all.
#[test]
fn a_thousand_connections_get_what_is_theirs() {
    const COUNT: u32 = 1000;
    const SIZE: usize = 128 << 10;
    if !can() {
        return;
    }
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if files.maximum.is_some_and(|most| most < 4 * u64::from(COUNT)) {
        println!("SKIP: no more than {:?} descriptors", files.maximum);
        return;
    }
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: files.maximum, maximum: files.maximum },
    )
    .unwrap();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("file");
    let Some(program) = Kind::Static.compile("many", directory.path()) else { return };
    let of = |number: u32| [u8::try_from(number % 251).unwrap(); SIZE];
    for protected in [false, true] {
        let file = File::create(&path).unwrap();
        for number in 0..COUNT {
            file.write_all_at(&of(number), u64::from(number) * SIZE as u64).unwrap();
        }
        let mut command = command(protected, &program);
        command.arg(&path).arg(SIZE.to_string()).arg(COUNT.to_string());
        let mut server = Running::start(command);
        let port: u16 = server.line().parse().unwrap();
        let address = rustix::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, port);
        let mut clients: Vec<TcpStream> = (0..COUNT)
            .map(|number| {
                let (family, kind) =
                    (rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM);
                let socket = rustix::net::socket(family, kind, None).unwrap();
                // So that a client that does not read stalls the call.
                rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 1 << 14).unwrap();
                rustix::net::connect(&socket, &address).unwrap();
                let mut client = TcpStream::from(socket);
                client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                client.write_all(&number.to_ne_bytes()).unwrap();
                client
            })
            .collect();
        let mut wrong = 0;
        for first in [0, 1] {
            for number in (first..COUNT).step_by(2) {
                let mut body = Vec::new();
                clients[number as usize].read_to_end(&mut body).unwrap();
                assert_eq!(body.len(), SIZE, "client {number}, protected: {protected}");
                wrong += usize::from(body[..] != of(number));
            }
        }
        clients.clear();
        assert_eq!(server.line(), "sent");
        println!("protected: {protected}: {wrong} of {COUNT} clients got wrong bytes");
        assert_eq!(wrong > 0, !protected);
    }
}

/// The shim is found where it is installed, beside the command's directory.
#[test]
fn what_the_shim_does_is_not_done_again() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let program = Kind::Dynamic.compile("stalls", directory.path()).unwrap();
    for (before, by_the_shim) in [(&[][..], true), (&["env", "-u", "LD_PRELOAD"], false)] {
        let mut command = Command::new(with_the_shim());
        command.args(["run", "--report"]).args(before).arg(&program).env_remove("LD_PRELOAD");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        let told = |word: &str| text.lines().find(|line| line.contains(word));
        let supervisor = told("by the supervisor").unwrap();
        if by_the_shim {
            let shim = told("sendfile2: stalls-").unwrap();
            assert!(
                shim.contains(" made safe (")
                    && shim.contains(" passed on as they are not to a socket"),
                "{text}"
            );
            let nothing = "sendfile2: 0 calls made safe by the supervisor (0 bytes), 0 left to the kernel, 0 failed";
            assert!(supervisor.starts_with(nothing), "{text}");
        } else {
            assert!(
                told("sendfile2: stalls-").is_none() && !supervisor.contains(" 0 calls"),
                "{text}"
            );
        }
    }
}

/// The shim's own symbols are those of glibc.
#[test]
fn programs_of_another_libc_begin_beside_the_shim() {
    if !can() {
        return;
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(program) = Kind::DynamicMusl.compile("overtaken", directory.path()) else { return };
    let shell = ["sh", "-c", "exec \"$0\" \"$1\""];
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg(&program);
    command.env("LD_PRELOAD", installed::prefix().join("lib/libsendfile2_preload.so"));
    let control = command.arg("/dev/null").stderr(Stdio::null()).status().unwrap();
    assert_eq!(control.code(), Some(127), "the control");
    for before in [&shell[..], &[]] {
        let mut command = Command::new(with_the_shim());
        command.arg("run").args(before).arg(&program).env_remove("LD_PRELOAD");
        assert_eq!(overtaken_by(command), 0);
    }
}

/// The command, in a place where the shim is installed beside it.
fn with_the_shim() -> std::path::PathBuf {
    static ONCE: std::sync::Once = std::sync::Once::new();
    let program = installed::prefix().join("bin/sendfile2");
    ONCE.call_once(|| {
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        std::fs::copy(RUN, &program).unwrap();
    });
    program
}

/// Where programs are linked with musl, it is the only way but `sendfile2 run`.
#[test]
fn the_shim_for_musl_takes_hold_of_programs_of_musl() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(program) = Kind::DynamicMusl.compile("overtaken", directory.path()) else { return };
    if installed::kept().is_some() {
        println!("SKIP: nothing can be installed in a guest");
        return;
    }
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed/musl");
    let output = installed::xtask(&[
        "install",
        "--only-libraries",
        "--musl",
        "--prefix",
        prefix.to_str().unwrap(),
    ]);
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("rustup target add") {
        println!("SKIP: {}", text.trim_end());
        return;
    }
    assert!(output.status.success(), "{text}");
    let library = format!("lib/{}-linux-musl/libsendfile2_preload.so", std::env::consts::ARCH);
    let shim = prefix.join(library);
    let own = prefix.join("bin/sendfile2");
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    std::fs::copy(RUN, &own).unwrap();

    let report = directory.path().join("report");
    let with_it = |program: &Path| {
        let mut command = command(false, program);
        command.env("LD_PRELOAD", &shim).env("SENDFILE2_REPORT", &report);
        command
    };
    assert_eq!(overtaken(&program, false), 1 << 20, "the control");
    assert_eq!(overtaken_by(with_it(&program)), 0);
    let text = std::fs::read_to_string(&report).unwrap();
    assert!(text.contains(" made safe (1048576 bytes)"), "{text}");
    let stalls = Kind::DynamicMusl.compile("stalls", directory.path()).unwrap();
    assert!(with_it(&stalls).status().unwrap().success());

    let probe = |of: &str, what: &str| -> serde_json::Value {
        let mut command = Command::new(&own);
        let output = command.args(["probe", "--json", of, what]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let name = program.to_str().unwrap();
    assert_eq!(probe("--program", name)["program"]["executable"]["shim_takes_hold"], true);
    let told = Command::new(&own).args(["probe", "--program", name]).output().unwrap();
    let told: String = String::from_utf8_lossy(&told.stdout).split_whitespace().collect();
    assert!(told.contains(&format!("LD_PRELOAD={}", shim.display())), "{told}");
    let waits = Kind::DynamicMusl.compile("waits", directory.path()).unwrap();
    let mut running = Running::start(with_it(&waits));
    assert_eq!(running.line(), "-1");
    let process = probe("--pid", &running.child.id().to_string())["process"].clone();
    assert_eq!(process["protected"], true, "{process}");
    assert_eq!(process["counted"]["passed_on_no_socket"], 1, "{process}");
}

/// Root may look into every process; others not into one that is not dumpable.
#[test]
fn what_cannot_be_protected_fails_and_sends_nothing() {
    if !can() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: not root, who can become somebody else");
        return;
    }
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, everybody).unwrap();
    let Some(program) = Kind::Static.compile("refused", path) else { return };
    let own = path.join("sendfile2");
    std::fs::copy(RUN, &own).unwrap();
    let told = |protected: bool| {
        let mut command = Command::new(if protected { &own } else { &program });
        if protected {
            command.arg("run").arg(&program);
        }
        command.arg(&program).uid(65534).gid(65534).output().unwrap()
    };
    let control = told(false);
    if !control.status.success() {
        println!("SKIP: this kernel knows no 32-bit calls: {control:?}");
        return;
    }
    let lines = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = if cfg!(target_arch = "x86_64") { "EBADF" } else { "ENOSYS" };
    assert_eq!(lines(&control), [plain, "sent"]);
    assert_eq!(lines(&told(true)), ["ENOSYS", "ENOSYS"]);
}

/// Where neither root nor Yama stands in the way.
#[test]
fn who_is_not_root_is_protected_too() {
    if !can() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: not root, so that all tests are of it");
        return;
    }
    let directory = tempfile::tempdir_in("/tmp").unwrap();
    let path = directory.path();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let Some(program) = Kind::Static.compile("overtaken", path) else { return };
    std::fs::copy(RUN, path.join("sendfile2")).unwrap();
    let file = path.join("file");
    for protected in [false, true] {
        std::fs::write(&file, vec![b'A'; 1 << 20]).unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .unwrap();
        let mut command = Command::new(path.join("sendfile2"));
        if protected {
            command.arg("run").arg(&program);
        } else {
            command = Command::new(&program);
        }
        command.arg(&file).uid(65534).gid(65534);
        let mut server = Running::start(command);
        let mut client = server.connect();
        assert_eq!(server.line(), "overwritten");
        let mut body = Vec::new();
        client.read_to_end(&mut body).unwrap();
        let wrong = body.iter().filter(|byte| **byte != b'A').count();
        assert_eq!(wrong, if protected { 0 } else { 1 << 20 });
    }
}

#[test]
#[ignore = "compiles what the other tests need in a guest, for `cargo xtask guest run`"]
fn compiled_for_a_guest() {
    installed::prefix();
    // Where Go keeps what it has compiled.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for entry in std::fs::read_dir(programs::sources()).unwrap() {
        let source = entry.unwrap().path();
        let name = source.file_stem().unwrap().to_str().unwrap();
        for kind in
            Kind::ALL.into_iter().filter(|kind| source.extension().unwrap() == kind.extension())
        {
            let _ = kind.compile(name, directory);
        }
    }
}
