//! A server, and what its clients need.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;

pub struct Server {
    pub child: Child,
    /// The address of each `--listen`, and then the admin's, in this order.
    pub addresses: Vec<String>,
    pub stderr: BufReader<ChildStderr>,
}

impl Server {
    pub fn new(dir: &Path, args: &[&str]) -> Self {
        Server::by(Command::new(env!("CARGO_BIN_EXE_sendfile2-server")), dir, args)
    }

    pub fn by(mut command: Command, dir: &Path, args: &[&str]) -> Self {
        command.arg("serve").arg(dir).args(args).stderr(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let wanted = args.iter().filter(|arg| **arg == "--listen" || **arg == "--admin").count();
        let (mut addresses, mut admin) = (Vec::new(), None);
        while addresses.len() + usize::from(admin.is_some()) < wanted {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended early");
            let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
            if line.contains("metrics") {
                admin = Some(address);
            } else {
                addresses.push(address);
            }
        }
        addresses.extend(admin);
        Server { child, addresses, stderr }
    }

    pub fn port(&self) -> &str {
        self.addresses[0].rsplit(':').next().expect("a port")
    }

    /// Resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory with a few files.
pub fn files() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    std::fs::write(dir.path().join("small"), "0123456789").expect("a file");
    let large = std::fs::File::create(dir.path().join("large")).expect("a file");
    large.set_len(64 << 20).expect("a size");
    dir
}

/// Returns whether there is such a program; prints the reason for a skip if not.
pub fn have(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        println!("SKIP: there is no {program} here");
    }
    found
}

pub fn curl(args: &[&str]) -> Output {
    let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(args).output();
    output.expect("curl runs")
}

/// Runs a program of Python, which prints what it saw.
pub fn python(program: &str, args: &[&str]) -> String {
    let output = Command::new("python3").args(["-c", program]).args(args).output();
    let output = output.expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Connects, and waits no longer than a minute for anything.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    stream
}

/// Writes these bytes, and returns the answer until the end.
pub fn ask(address: &str, request: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(request).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it closes");
    String::from_utf8_lossy(&answer).into_owned()
}

pub fn get(address: &str, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    ask(address, request.as_bytes())
}

/// The number in an answer's first line; `None` if it is not one.
pub fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// Returns the value of a metric.
pub fn number(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Waits for something that other processes do.
#[track_caller]
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

/// A certificate for localhost, and its key.
pub fn certificate(dir: &Path) -> (String, String) {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    (text(&cert), text(&key))
}
