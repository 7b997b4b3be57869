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

/// A server that listened, and answered nobody; or gave a number of an error, and nothing else.
#[test]
fn what_every_connection_needs_is_asked_for_at_the_start() {
    let dir = files();
    let calls = [
        ("prlimit", libc::SYS_prlimit64),
        ("epoll_create1", libc::SYS_epoll_create1),
        ("epoll_ctl", libc::SYS_epoll_ctl),
        ("epoll_wait", libc::SYS_epoll_pwait),
        ("eventfd2", libc::SYS_eventfd2),
        ("fcntl", libc::SYS_fcntl),
        ("ioctl", libc::SYS_ioctl),
        ("socketpair", libc::SYS_socketpair),
        ("getsockname", libc::SYS_getsockname),
        ("getsockopt", libc::SYS_getsockopt),
        ("accept4", libc::SYS_accept4),
        ("recvfrom", libc::SYS_recvfrom),
        ("sendto", libc::SYS_sendto),
        ("sendmsg", libc::SYS_sendmsg),
    ];
    for (name, call) in calls {
        for errno in [libc::EPERM, libc::ENOSYS] {
            let (mut child, said) = start(dir.path(), call, errno);
            let told = said.contains(&format!("{name}(2)")) && said.contains("seccomp filter");
            assert!(told, "{name}, {errno}: {said}");
            assert!(!child.wait().expect("it ends").success());
        }
    }
    // The runtime's own way to wait.
    #[cfg(target_arch = "x86_64")]
    {
        let (mut child, said) = start(dir.path(), libc::SYS_epoll_wait, libc::EPERM);
        assert!(said.contains("cannot start the runtime") && said.contains("filter"), "{said}");
        assert!(!child.wait().expect("it ends").success());
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
            let address = address.unwrap_or_else(|| panic!("{call}: {said}"));
            // One that is mapped, one that is read, and that again.
            for (path, content) in
                [("content", &*content), ("small", b"0123456789"), ("small", b"0123456789")]
            {
                let mut client = connect(address);
                let request =
                    format!("GET /{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
                client.write_all(request.as_bytes()).expect("it reads");
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).expect("it closes");
                let whole = answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(content);
                assert!(whole, "{call}: {path}");
            }
            child.kill().expect("it runs");
            child.wait().expect("it ends");
        }
    }
}
