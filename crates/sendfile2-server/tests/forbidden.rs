//! Where a filter forbids what the server needs: it serves without, or says so at the start.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use common::{connect, files};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Starts the server where this system call fails, and returns what it says first.
fn start(dir: &std::path::Path, call: i64, errno: i32) -> (std::process::Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
    command.arg("serve").arg(dir).args(["--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
    // In a thread of its own: a filter lasts as long as its thread, and its children have it, too.
    let spawn = move || {
        let filter = SeccompFilter::new(
            [(call, vec![])].into_iter().collect(),
            SeccompAction::Allow,
            SeccompAction::Errno(errno.unsigned_abs()),
            std::env::consts::ARCH.try_into().expect("an architecture"),
        );
        let program: BpfProgram = filter.expect("a filter").try_into().expect("a program");
        seccompiler::apply_filter(&program).expect("a filter");
        command.spawn().expect("it starts")
    };
    let mut child = std::thread::spawn(spawn).join().expect("no panic");
    let mut said = String::new();
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    stderr.read_line(&mut said).expect("UTF-8");
    if !said.contains("listening") {
        stderr.read_to_string(&mut said).expect("UTF-8");
    }
    (child, said)
}

/// Answers were 404 or 500, to all.
#[test]
fn what_every_file_needs_is_asked_for_at_the_start() {
    let dir = files();
    for (name, call) in
        [("openat2", libc::SYS_openat2), ("fstatfs", libc::SYS_fstatfs), ("fstat", libc::SYS_fstat)]
    {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let (mut child, said) = start(dir.path(), call, errno);
            let told = said.contains(&format!("{name}(2)")) && said.contains("seccomp filter");
            assert!(told, "{name}, {errno}: {said}");
            assert!(!child.wait().expect("it ends").success());
        }
    }
}

#[test]
fn what_can_be_done_without_is_done_without() {
    let dir = files();
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i ^ (i >> 9)).to_le_bytes()[0]).collect();
    std::fs::write(dir.path().join("content"), &content).expect("a file");
    for call in [
        libc::SYS_statx,
        libc::SYS_preadv2,
        libc::SYS_mincore,
        libc::SYS_madvise,
        libc::SYS_lseek,
        libc::SYS_shutdown,
        libc::SYS_getpeername,
        // The control: the server that all these are compared with.
        libc::SYS_reboot,
    ] {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let (mut child, said) = start(dir.path(), call, errno);
            let address = said.trim().strip_prefix("sendfile2: listening on ");
            let mut client = connect(address.unwrap_or_else(|| panic!("{call}: {said}")));
            client
                .write_all(b"GET /content HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                .expect("it reads");
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("it closes");
            assert!(answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(&content), "{call}");
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }
}
