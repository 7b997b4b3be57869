//! The shim under programs: a C program that looks at each promise, nginx, Python.
#![allow(clippy::unwrap_used)]

#[path = "../../sendfile2-c/tests/installed/mod.rs"]
mod installed;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use installed::{compile, installed, prefix, root, run};

/// Bytes of the files that are overwritten: they fit the socket's buffers.
const SIZE: usize = 1 << 20;

fn shim() -> PathBuf {
    prefix().join("lib/libsendfile2_preload.so")
}

fn shim_test(mode: &str) {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/shim.c"));
    let mut command = installed(program);
    command.arg(mode).env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", mode);
    run(&mut command);
}

#[test]
fn mode_safe() {
    shim_test("safe");
}

#[test]
fn mode_notify() {
    shim_test("notify");
}

#[test]
fn mode_off() {
    shim_test("off");
}

#[test]
fn every_rule_of_sendfile_holds_with_the_shim() {
    let program = compile(&root().join("crates/sendfile2-c/tests/c/semantics.c"));
    run(installed(program).env("LD_PRELOAD", shim()));
}

/// Runs a program with the shim in this mode, and returns what it prints on standard error.
fn in_mode(value: &str, does: &str) -> String {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/shim.c"));
    let mut command = installed(program);
    command.arg(does).env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", value);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{value:?} as {does}: {said}");
    said
}

const COMPLAINT: &str = "SENDFILE2_MODE is none of safe, notify, off: taken as safe";

#[test]
fn an_unknown_mode_is_told_once_and_safe() {
    for value in ["sfae", "offf", "o", "0", "of f"] {
        let said = in_mode(value, "safe");
        assert_eq!(said.matches(COMPLAINT).count(), 1, "{value:?}: {said}");
    }
}

#[test]
fn neither_case_nor_blanks_matter_to_a_mode() {
    for (value, does) in
        [("SAFE", "safe"), (" Off\n", "off"), ("\tNotify ", "notify"), ("", "safe"), ("  ", "safe")]
    {
        assert_eq!(in_mode(value, does).matches("SENDFILE2_MODE").count(), 0, "{value:?}");
    }
}

#[test]
fn an_unknown_mode_is_not_told_by_each_program_that_is_started() {
    let mut command = Command::new("sh");
    command.args(["-c", "for i in 1 2 3; do env true; done; env sh -c 'env true'"]);
    let output = command.env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", "sfae").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches(COMPLAINT).count(), 1, "{said}");
}

/// Runs a shell script with the shim, which is to report to `place`; returns its standard error.
fn reporting(place: &str, script: &str, directory: &Path) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(directory).env_remove("SENDFILE2_MODE");
    command.env("LD_PRELOAD", shim()).env("SENDFILE2_REPORT", place);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn what_became_of_the_calls_is_reported_at_the_exit() {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/shim.c"));
    for (mode, told) in [
        ("safe", " made safe ("),
        ("notify", " with a notification ("),
        ("off", " passed on as SENDFILE2_MODE is off"),
    ] {
        let mut command = installed(&program);
        command.arg(mode).env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", mode);
        let output = command.env("SENDFILE2_REPORT", "stderr").output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        // Its forked children end by _exit(2).
        let [line] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
        assert!(line.starts_with("sendfile2: shim (") && line.contains(told), "{line}");
    }
}

fn names(report: &str) -> Vec<&str> {
    report.lines().map(|line| line.split(' ').nth(1).unwrap()).collect()
}

#[test]
fn each_program_reports_once_and_a_forked_child_what_it_has_done_itself() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    // (The shell itself may end by _exit(2).)
    let said = reporting("stderr", "env true; env env true; :", directory.path());
    assert_eq!(names(&said), ["true", "true"], "{said}");
    assert!(said.lines().all(|line| line.ends_with(": no calls of sendfile")), "{said}");
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/forks.c"));
    let mut command = installed(program);
    command
        .env("LD_PRELOAD", shim())
        .env("SENDFILE2_REPORT", "stderr")
        .env_remove("SENDFILE2_MODE");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let told: Vec<_> = said.lines().map(|line| line.split_once("): ").unwrap().1).collect();
    assert_eq!(told, ["1 made safe (7 bytes)", "2 made safe (20 bytes)"], "{said}");
}

#[test]
fn a_file_is_reported_to_wherever_the_program_goes() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("report");
    let script = "cd /; env true; env true";
    let said = reporting(path.to_str().unwrap(), script, directory.path());
    assert_eq!(said, "");
    let report = std::fs::read_to_string(path).unwrap();
    assert_eq!(names(&report), ["true", "true"], "{report}");
    // Each would take it for another one.
    let said = reporting("report", script, directory.path());
    assert!(said.contains("SENDFILE2_REPORT is neither stderr nor a path"), "{said}");
    assert!(!Path::new("/report").exists() && said.lines().count() == 1, "{said}");
}

#[test]
fn what_has_the_number_of_standard_error_by_then_is_not_written_to() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let said = reporting("stderr", "exec 2>other; :", directory.path());
    assert_eq!(said, "");
    assert_eq!(std::fs::read_to_string(directory.path().join("other")).unwrap(), "");
    assert_eq!(reporting("stderr", "exec 2>&-; :", directory.path()), "");
}

#[test]
fn without_being_asked_for_there_is_no_report() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    assert_eq!(reporting("", "env true", directory.path()), "");
    assert_eq!(reporting("/nowhere/report", "env true", directory.path()), "");
}

/// Compares each kind of input and output, offset and count with the system call.
fn compared(mode: &str) {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/compare.c"));
    let mut command = installed(program);
    run(command.arg(mode).env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", mode));
}

#[test]
fn all_that_the_system_call_answers_in_mode_safe() {
    compared("safe");
}

#[test]
fn all_that_the_system_call_answers_in_mode_notify() {
    compared("notify");
}

#[test]
fn all_that_the_system_call_answers_in_mode_off() {
    compared("off");
}

/// Runs a program in a sandbox that forbids calls which `sendfile(2)` does not need, as other
/// programs do.
fn filtered(mode: &str) {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/filtered.c"));
    let mut command = installed(program);
    run(command.arg(mode).env("LD_PRELOAD", shim()).env("SENDFILE2_MODE", mode));
}

#[test]
fn where_a_filter_forbids_calls_it_is_safe_all_the_same() {
    filtered("safe");
}

#[test]
fn where_a_filter_forbids_calls_the_control_is_seen() {
    filtered("off");
}

#[test]
fn the_shim_exports_nothing_else() {
    let symbols = run(Command::new("objdump").arg("-T").arg(shim()));
    let mut names: Vec<&str> = symbols
        .lines()
        .filter(|line| line.contains(" g    D"))
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["sendfile", "sendfile64"]);
}

/// A file of the letter A.
fn file(directory: &Path) -> PathBuf {
    let path = directory.join("file");
    std::fs::write(&path, vec![b'A'; SIZE]).unwrap();
    path
}

/// A server process, which ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Compares the number of bytes that are not as the file was when it was sent: the program is to be
/// overtaken without the shim, in every byte, and with it in none.
fn trial(what: &str, wrong: impl Fn(bool) -> Option<usize>) {
    let Some(control) = wrong(false) else { return };
    let with_the_shim = wrong(true).unwrap();
    println!("{what}: wrong without the shim {control}, with it {with_the_shim}, of {SIZE} bytes");
    assert_eq!((control, with_the_shim), (SIZE, 0), "{what}");
}

fn preload(command: &mut Command, with_the_shim: bool) -> &mut Command {
    command.env_remove("LD_PRELOAD").env_remove("SENDFILE2_MODE");
    if with_the_shim {
        command.env("LD_PRELOAD", shim());
    }
    command
}

fn wrong_in(body: &[u8]) -> usize {
    assert_eq!(body.len(), SIZE);
    body.iter().filter(|byte| **byte != b'A').count()
}

#[test]
fn cpython() {
    for way in ["socket.sendfile", "os.sendfile"] {
        trial(way, |with_the_shim| {
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let mut command = Command::new("python3");
            command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server.py")).arg(way);
            command.arg(file(directory.path())).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut server = match preload(&mut command, with_the_shim).spawn() {
                Ok(server) => Server(server),
                Err(e) => {
                    println!("SKIP: CPython: python3: {e}");
                    return None;
                }
            };
            let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
            let port: u16 = lines.next().unwrap().unwrap().parse().unwrap();
            let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), "overwritten");
            let mut body = vec![0; SIZE];
            client.read_exact(&mut body).unwrap();
            Some(wrong_in(&body))
        });
    }
}

#[test]
fn nginx() {
    trial("nginx", |with_the_shim| {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let path = directory.path();
        let file = file(path);
        // The server logs that a response has been sent; the log is a socket of this test's.
        let log = UnixDatagram::bind(path.join("log")).unwrap();
        log.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let here = path.display();
        let user = if std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            "user root;"
        } else {
            ""
        };
        let configuration = format!(
            "{user} daemon off; master_process off; pid {here}/pid; error_log stderr;
             events {{ }}
             http {{
                 sendfile on; access_log syslog:server=unix:{here}/log;
                 client_body_temp_path {here}/t1; proxy_temp_path {here}/t2;
                 fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
                 server {{ listen 127.0.0.1:{port}; root {here}; }}
             }}"
        );
        std::fs::write(path.join("conf"), configuration).unwrap();
        let mut command = Command::new("nginx");
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        command.arg("-e").arg("stderr").arg("-p").arg(path).arg("-c").arg(path.join("conf"));
        let mut server = match preload(&mut command, with_the_shim).spawn() {
            Ok(server) => Server(server),
            Err(e) => {
                println!("SKIP: nginx: {e}");
                return None;
            }
        };
        let mut client = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(client) => break client,
                Err(e) => {
                    assert_eq!(server.0.try_wait().unwrap(), None, "nginx ended: {e}");
                    std::thread::yield_now();
                }
            }
        };
        client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        client.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
        let mut line = [0; 1024];
        let length = log.recv(&mut line).unwrap();
        let line = String::from_utf8_lossy(&line[..length]);
        assert!(line.contains("\"GET /file HTTP/1.0\" 200"), "{line}");
        let written = std::fs::File::options().write(true).open(&file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&written, &[b'B'; SIZE], 0).unwrap();
        let mut response = Vec::new();
        client.read_to_end(&mut response).unwrap();
        let head = response.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        Some(wrong_in(&response[head + 4..]))
    });
}

#[test]
#[ignore = "compiles what the other tests need in a guest, for `cargo xtask guest run`"]
fn compiled_for_a_guest() {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c")).unwrap() {
        compile(&entry.unwrap().path());
    }
    compile(&root().join("crates/sendfile2-c/tests/c/semantics.c"));
}
