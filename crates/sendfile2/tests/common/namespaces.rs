//! Children of the test binary in places of their own, and network namespaces without root.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::process::{Child, Command, Stdio};

/// The role this process of the test binary plays, if [`run_as`] started it.
pub fn role() -> Option<String> {
    std::env::var("SENDFILE2_TEST_ROLE").ok()
}

/// A command that runs the test `name` of this binary alone, in the given role, under `wrapper`.
pub fn child(wrapper: &[&str], name: &str, role: &str) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut command = match wrapper {
        [] => Command::new(exe),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(exe);
            command
        }
    };
    command.args(["--exact", name, "--nocapture"]);
    command.env("SENDFILE2_TEST_ROLE", role);
    command
}

/// Runs it to its end and shows what it printed; panics unless it passed.
pub fn run_as(wrapper: &[&str], name: &str, role: &str) {
    let output = child(wrapper, name, role).stdin(Stdio::null()).output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} as {role}: {}", output.status);
    let passed = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(passed, "{name} as {role} ran no test");
}

/// Whether the machine lets `command` succeed; if not, says so as the reason for a skip.
pub fn can(what: &str, command: &[&str]) -> bool {
    let result = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output();
    match result {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("SKIP: {what}: {}", String::from_utf8_lossy(&output.stderr).trim());
            false
        }
        Err(e) => {
            println!("SKIP: {what}: {}: {e}", command[0]);
            false
        }
    }
}

/// A user namespace of its own with network namespace (and mounts), without root.
pub const UNSHARE: [&str; 5] = ["unshare", "--user", "--map-root-user", "--net", "--mount"];

/// Runs the test in namespaces of its own, with loopback up, if `needs` can be done there; `true`
/// for who is inside, `false` when that is over or skipped.
pub fn inside(test: &str, needs: &str) -> bool {
    if role().is_none() {
        let needs = format!("ip link set lo up && {needs}");
        if can("not in this place", &[&UNSHARE[..], &["sh", "-ec", &needs]].concat()) {
            run_as(&UNSHARE, test, "inside");
        }
        return false;
    }
    sh("ip link set lo up");
    true
}

/// Runs `script` with sh and panics if it fails.
#[track_caller]
pub fn sh(script: &str) {
    let status = Command::new("sh").args(["-ec", script]).status().unwrap();
    assert!(status.success(), "{script}: {status}");
}

/// Two network namespaces joined by a veth pair: this process's, and a child's. The addresses are
/// 10.7.0.1 and `fd07::1` here, 10.7.0.2 and `fd07::2` there. Call it inside [`UNSHARE`].
pub struct Veth {
    anchor: Child,
}

impl Veth {
    pub fn new() -> Self {
        Veth::numbered(0)
    }

    /// One of several: the addresses of number `n` are 10.7.`n`.1 and 10.7.`n`.2.
    pub fn numbered(n: u8) -> Self {
        let mut anchor = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        anchor.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let pid = anchor.id();
        sh(&format!(
            "ip link set lo up
             ip link add v{n} type veth peer name v1 netns {pid}
             ip addr add 10.7.{n}.1/24 dev v{n}
             ip addr add fd07:0:0:{n}::1/64 dev v{n} nodad
             ip link set v{n} up
             nsenter -t {pid} -n sh -ec '
               ip link set lo up
               ip addr add 10.7.{n}.2/24 dev v1
               ip addr add fd07:0:0:{n}::2/64 dev v1 nodad
               ip link set v1 up'"
        ));
        Veth { anchor }
    }

    /// The wrapper that runs a command in the other namespace.
    pub fn over_there(&self) -> [String; 4] {
        ["nsenter".into(), "-t".into(), self.anchor.id().to_string(), "-n".into()]
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        // Killed, not waited for by time: the namespace goes with it.
        let _ = self.anchor.kill();
        let _ = self.anchor.wait();
    }
}
