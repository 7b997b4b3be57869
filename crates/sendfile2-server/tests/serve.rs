//! `sendfile2 serve` as its users meet it: by curl, by Chromium, by those who watch it and end it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sendfile2::Engine;
use sendfile2::probe::Availability;
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

struct Server {
    child: Child,
    /// The address of each `--listen`, and then the admin's, in this order.
    addresses: Vec<String>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Server {
    fn new(dir: &Path, args: &[&str]) -> Self {
        Server::by(Command::new(env!("CARGO_BIN_EXE_sendfile2-server")), dir, args)
    }

    fn by(mut command: Command, dir: &Path, args: &[&str]) -> Self {
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

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it is there");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn files() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let write =
        |name, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).expect("a file");
    write("small", b"hello\n".into());
    write("large", (0..9_000_000_u32).map(|i| (i ^ (i >> 9)).to_le_bytes()[0]).collect());
    write(
        "index.html",
        b"<script>fetch('/large').then(r => r.arrayBuffer()).then(b => document.title = \
          b.byteLength + ' arrived').then(() => document.body.append(document.title))</script>"
            .into(),
    );
    dir
}

/// Returns whether there is such a program; prints the reason for a skip if not.
fn have(program: &str) -> bool {
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

fn curl(args: &[&str]) -> Output {
    let output = Command::new("curl").args(["-sS", "--max-time", "30"]).args(args).output();
    output.expect("curl runs")
}

fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it closes");
    answer
}

fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"))
}

/// Waits for something that other processes do.
#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

#[test]
fn curl_gets_what_is_there_by_all_listeners() {
    if !have("curl") {
        return;
    }
    let dir = files();
    let large = std::fs::read(dir.path().join("large")).expect("it is there");
    let socket = dir.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    for engine in ["auto", "copy", "zerocopy"] {
        let mut args = vec!["--listen", "127.0.0.1:0", "--listen", "[::1]:0"];
        if engine != "zerocopy" {
            args.extend(["--listen", &*unix]);
        }
        args.extend(["--engine", engine, "--workers", "1"]);
        let server = Server::new(dir.path(), &args);
        for address in &server.addresses[..2] {
            for version in ["--http1.1", "--http2-prior-knowledge"] {
                let got = curl(&[version, &format!("http://{address}/large")]);
                assert!(
                    got.status.success() && got.stdout == large,
                    "{engine:?} {version} {address}"
                );
            }
        }
        if engine != "zerocopy" {
            let path = socket.to_str().expect("UTF-8");
            let got = curl(&["--unix-socket", path, "http://x/large"]);
            assert!(got.status.success() && got.stdout == large, "by the unix socket");
        }
        let address = &server.addresses[0];
        let got = curl(&["-r", "1000-1999", &format!("http://{address}/large")]);
        assert_eq!(got.stdout, &large[1000..2000]);
        for path in ["../Cargo.toml", "%2e%2e/Cargo.toml", "nothing", "socket"] {
            let url = format!("http://{address}/{path}");
            let got = curl(&["--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", &url]);
            assert_eq!(got.stdout, b"404", "{path}");
        }
    }
}

/// A certificate for localhost, and its key.
fn certificate(dir: &Path) -> (String, String) {
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

#[test]
fn tls_with_http2_and_http1() {
    if !have("curl") || !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let args = ["--listen", "127.0.0.1:0", "--tls-cert", &*cert, "--tls-key", &*key];
    let server = Server::new(dir.path(), &args);
    let port = server.addresses[0].rsplit(':').next().expect("a port");
    let url = format!("https://localhost:{port}/large");
    let large = std::fs::read(dir.path().join("large")).expect("it is there");
    for (version, name) in [("--http2", b"2"), ("--http1.1", b"1")] {
        let got = curl(&["--cacert", &cert, version, &url]);
        assert!(got.status.success() && got.stdout == large, "{version}: {:?}", got.stderr);
        let args = ["--cacert", &cert, version, "-o", "/dev/null", "-w", "%{http_version}", &url];
        assert!(curl(&args).stdout.starts_with(name), "{version} was not spoken");
    }
    // Truncated while it is read for TLS: the server lives.
    let got = dir.path().join("got");
    let mut slow = Command::new("curl")
        .args(["-sS", "--cacert", &cert, "--limit-rate", "2M", &url, "-o"])
        .arg(&got)
        .stderr(Stdio::null())
        .spawn()
        .expect("curl runs");
    until("something arrives", || got.metadata().is_ok_and(|got| got.len() > 0));
    std::fs::File::options()
        .write(true)
        .open(dir.path().join("large"))
        .and_then(|file| file.set_len(8_000_000))
        .expect("truncated");
    assert!(!slow.wait().expect("it ends").success(), "what is cut off cannot have arrived");
    let got = curl(&["--cacert", &cert, &url]);
    assert_eq!(got.stdout.len(), 8_000_000);
}

/// Returns the value of a metric.
fn number(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

/// Returns the number of zerocopy sends, and of those of them that are known to be released.
fn issued_and_released(text: &str) -> (f64, f64) {
    let copied = |c: &str| number(text, &format!("sendfile2_releases_total{{copied=\"{c}\"}}"));
    (number(text, "sendfile2_sends_total{engine=\"zerocopy\"}"), copied("yes") + copied("no"))
}

/// Clients connect, get, stall, reset and close. Sends of connections that are gone are either
/// released or reported as unknown, and that ends.
#[test]
fn after_a_storm_everything_issued_is_released_or_unknown_and_unknown_ends() {
    let dir = files();
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--engine", "zerocopy"];
    let server = Server::new(dir.path(), &args);
    let [public, admin] = &server.addresses[..] else { panic!("{:?}", server.addresses) };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..20_usize {
                    let mut client = TcpStream::connect(public).expect("it listens");
                    let close = if round % 2 == 0 { "connection: close\r\n" } else { "" };
                    let request = format!("GET /large HTTP/1.1\r\nhost: x\r\n{close}\r\n");
                    client.write_all(request.as_bytes()).expect("it reads");
                    if (round + thread) % 5 != 0 {
                        client.read_exact(&mut vec![0; 1 + round * 50_000]).expect("it answers");
                    }
                    match (round + thread) % 3 {
                        0 => rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO))
                            .expect("it resets"),
                        1 if round % 2 == 0 => {
                            let mut rest = Vec::new();
                            client.read_to_end(&mut rest).expect("it closes");
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    until("the connections are gone", || {
        number(&get(admin, "/metrics"), "sendfile2_http_connections") == 0.0
    });
    // Not before: what a connection counts is not read in one moment.
    until("nothing is unknown", || {
        let text = get(admin, "/metrics");
        let (issued, released) = issued_and_released(&text);
        let unknown = number(&text, "sendfile2_unknown_sends");
        assert!(issued > 100.0, "{text}");
        assert_eq!(issued, released + unknown, "{text}");
        assert_eq!(number(&text, "sendfile2_in_flight_sends"), 0.0, "{text}");
        unknown == 0.0
    });
}

#[test]
fn metrics_health_and_the_log() {
    let dir = files();
    let log = dir.path().join("log");
    let log = log.to_str().expect("UTF-8");
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--engine",
        "zerocopy",
        "--access-log",
        log,
    ];
    let server = Server::new(dir.path(), &args);
    let [public, admin] = &server.addresses[..] else { panic!("{:?}", server.addresses) };
    assert!(get(admin, "/health").ends_with("ok\n"));
    assert!(get(public, "/small").ends_with("hello\n"));
    let mut stream = TcpStream::connect(public).expect("it listens");
    stream
        .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("it closes");
    assert!(get(public, "/metrics").starts_with("HTTP/1.1 404"), "only for the admin");

    let mut text = String::new();
    until("everything is released", || {
        text = get(admin, "/metrics");
        let (issued, released) = issued_and_released(&text);
        issued > 0.0 && released >= issued
    });
    assert!(
        number(&text, "sendfile2_sent_bytes_total{engine=\"zerocopy\"}") >= 9_000_000.0,
        "{text}"
    );
    assert_eq!(number(&text, "sendfile2_in_flight_sends"), 0.0, "{text}");
    assert_eq!(number(&text, "sendfile2_unknown_sends"), 0.0, "{text}");
    assert!(text.contains("sendfile2_release_seconds_bucket"), "{text}");
    assert!(text.contains("sendfile2_http_bodies_total{became=\"mapped\"}"), "{text}");
    assert!(text.contains("sendfile2_http_requests_total{status=\"404\"} 1"), "{text}");
    until("it is logged", || {
        let log = std::fs::read_to_string(log).expect("it is there");
        log.contains("\"GET /large HTTP/1.1\" 200 9000000 \"-\" \"-\" ")
            && log.contains("\"GET /metrics HTTP/1.1\" 404 ")
    });
}

/// The log has more lines than the pipe and the server keep.
#[test]
fn an_access_log_that_nobody_reads_stops_nothing() {
    let dir = files();
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
    command.stdout(Stdio::piped());
    let args = ["--listen", "127.0.0.1:0", "--access-log", "-", "--workers", "1"];
    let mut server = Server::by(command, dir.path(), &args);
    let request = format!("HEAD /small?{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(900));
    let mut client = TcpStream::connect(&server.addresses[0]).expect("it listens");
    client.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    for _ in 0..50 {
        client.write_all(request.repeat(100).as_bytes()).expect("it reads");
        let mut heads = 0;
        let mut bytes = [0; 64 << 10];
        let mut answers = Vec::new();
        while heads < 100 {
            let read = client.read(&mut bytes).expect("it answers");
            assert_ne!(read, 0, "it closed");
            answers.extend_from_slice(&bytes[..read]);
            heads = answers.windows(4).filter(|w| w == b"\r\n\r\n").count();
        }
    }
    assert!(get(&server.addresses[0], "/small").ends_with("hello\n"));
    server.signal(rustix::process::Signal::TERM);
    let mut said = String::new();
    server.stderr.read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("lines of the access log were dropped"), "{said}");
    assert!(server.child.wait().expect("it ends").success());
}

#[test]
fn sigterm_lets_requests_in_progress_end() {
    let dir = files();
    let mut server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let address = server.addresses[0].clone();
    let idle = TcpStream::connect(&address).expect("it listens");
    let mut busy = TcpStream::connect(&address).expect("it listens");
    busy.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    let mut some = vec![0; 1000];
    busy.read_exact(&mut some).expect("it answers");
    server.signal(rustix::process::Signal::TERM);
    let mut line = String::new();
    server.stderr.read_line(&mut line).expect("UTF-8");
    assert!(line.contains("ending"), "{line}");
    assert!(TcpStream::connect(&address).is_err(), "it still listens");
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).expect("all of it");
    let large = std::fs::read(dir.path().join("large")).expect("it is there");
    assert!(rest.ends_with(&large[1000..]), "what was in progress is whole");
    assert!(server.child.wait().expect("it ends").success());
    drop(idle);
}

#[test]
fn a_second_sigterm_ends_it_at_once_and_no_path_stays() {
    let dir = files();
    let path = dir.path().join("admin");
    let admin = format!("unix:{}", path.display());
    let args = ["--listen", "127.0.0.1:0", "--admin", &admin, "--workers", "2", "--grace", "1h"];
    let mut server = Server::new(dir.path(), &args);
    std::fs::write(dir.path().join("huge"), vec![7; 64 << 20]).expect("a file");
    let mut busy = TcpStream::connect(&server.addresses[0]).expect("it listens");
    busy.write_all(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    busy.read_exact(&mut [0; 1000]).expect("it answers");
    assert!(path.exists());
    server.signal(rustix::process::Signal::TERM);
    let mut line = String::new();
    server.stderr.read_line(&mut line).expect("UTF-8");
    assert!(line.contains("ending"), "{line}");
    server.signal(rustix::process::Signal::TERM);
    let mut said = String::new();
    server.stderr.read_to_string(&mut said).expect("UTF-8");
    assert!(said.contains("1 connections were cut off"), "{said}");
    assert!(server.child.wait().expect("it ends").success());
    assert!(!path.exists(), "the admin's socket stays behind");
}

#[test]
fn sigterm_waits_for_no_client_that_has_not_asked() {
    if !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let tls = ["--tls-cert", &*cert, "--tls-key", &*key];
    for (tls, begun) in [(&[][..], &b""[..]), (&[], b"P"), (&tls, b""), (&tls, b"\x16\x03")] {
        let addresses = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let args = [&addresses[..], &["--max-connections", "1"], tls].concat();
        let mut server = Server::new(dir.path(), &args);
        let mut client = TcpStream::connect(&server.addresses[0]).expect("it listens");
        client.write_all(begun).expect("it reads");
        until("it is accepted", || {
            number(&get(&server.addresses[1], "/metrics"), "sendfile2_http_connections") == 1.0
        });
        server.signal(rustix::process::Signal::TERM);
        let mut said = String::new();
        server.stderr.read_to_string(&mut said).expect("UTF-8");
        assert!(said.contains("ending") && !said.contains("cut off"), "{said}");
        assert!(server.child.wait().expect("it ends").success());
    }
}

#[test]
fn slow_and_stalled_clients_are_ended() {
    let dir = files();
    std::fs::write(dir.path().join("huge"), vec![7; 64 << 20]).expect("a file");
    let times = ["--header-timeout", "300ms", "--stall-timeout", "300ms"];
    let addresses = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let server = Server::new(dir.path(), &[&addresses, &times[..]].concat());
    // Its headers never end.
    let answer = ask(&server.addresses[0], "GET /small HTTP/1.1\r\nhost:");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    // What it speaks is never clear; more comes all the time.
    let mut unclear = TcpStream::connect(&server.addresses[0]).expect("it listens");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r";
    let ended = preface.iter().any(|byte| {
        std::thread::sleep(Duration::from_millis(100));
        unclear.write_all(&[*byte]).is_err()
    });
    assert!(ended, "a client that says nothing but its first words is waited for");
    // It reads nothing of what it asked for.
    let mut stalled = TcpStream::connect(&server.addresses[0]).expect("it listens");
    stalled.write_all(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    // Until it is ended nothing is read.
    until("it is answered and ended", || {
        let text = get(&server.addresses[1], "/metrics");
        let answered = number(&text, "sendfile2_http_requests_total{status=\"200\"}");
        answered == 1.0 && number(&text, "sendfile2_http_connections") == 0.0
    });
    let mut got = Vec::new();
    let _ = stalled.read_to_end(&mut got);
    assert!(got.len() < 64 << 20, "it was served all the same");
    assert!(get(&server.addresses[0], "/small").ends_with("hello\n"));
}

/// The kernel has space for more only when a third of the buffer is free, which takes these clients
/// longer than the stall timeout.
#[test]
fn slow_clients_that_read_all_the_time_are_not_stalled() {
    /// Reads `pieces`, one in a while.
    fn read_slowly(mut stream: impl Read + Write, piece: usize, pieces: usize) {
        stream.write_all(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
        let mut bytes = vec![0; piece];
        for i in 0..pieces {
            stream.read_exact(&mut bytes).unwrap_or_else(|e| panic!("piece {i}: {e}"));
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    let dir = files();
    std::fs::write(dir.path().join("huge"), vec![7; 64 << 20]).expect("a file");
    let socket = dir.path().join("socket");
    let unix = format!("unix:{}", socket.display());
    let args = ["--listen", "127.0.0.1:0", "--listen", &*unix, "--stall-timeout", "500ms"];
    let server = Server::new(dir.path(), &args);
    std::thread::scope(|scope| {
        // More than the buffers of both sides hold.
        scope.spawn(|| {
            let tcp = TcpStream::connect(&server.addresses[0]).expect("it listens");
            rustix::net::sockopt::set_socket_recv_buffer_size(&tcp, 64 << 10).expect("a size");
            read_slowly(tcp, 32 << 10, 200);
        });
        scope.spawn(|| {
            read_slowly(UnixStream::connect(&socket).expect("it listens"), 6 << 10, 200);
        });
    });
}

/// The end of some of these answers is in none of the kernel's buffers, but in TLS's own, which is
/// written when it is flushed.
#[test]
fn tls_clients_that_stop_reading_are_ended() {
    if !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let args = [
        ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
        ["--tls-cert", &*cert, "--tls-key", &*key],
        ["--header-timeout", "1s", "--stall-timeout", "300ms"],
    ];
    let server = Server::new(dir.path(), args.as_flattened());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&cert).expect("PEM")).expect("a certificate");
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let config = Arc::new(config);
    let clients: Vec<_> = (0..64)
        .map(|i| {
            let tcp = TcpStream::connect(&server.addresses[0]).expect("it listens");
            rustix::net::sockopt::set_socket_recv_buffer_size(&tcp, 8 << 10).expect("a size");
            let name = "localhost".try_into().expect("a name");
            let tls = ClientConnection::new(Arc::clone(&config), name).expect("a client");
            let mut stream = StreamOwned::new(tls, tcp);
            let (last, end) = ((i + 1) * 65_536 - 1, ["close", "keep-alive"][i % 2]);
            write!(
                stream,
                "GET /large HTTP/1.1\r\nhost: x\r\nrange: bytes=0-{last}\r\nconnection: {end}\r\n\r\n"
            )
            .expect("it reads");
            stream
        })
        .collect();
    until("all are answered and ended", || {
        let text = get(&server.addresses[1], "/metrics");
        let answered = number(&text, "sendfile2_http_requests_total{status=\"206\"}");
        answered == 64.0 && number(&text, "sendfile2_http_connections") == 0.0
    });
    drop(clients);
}

#[test]
fn more_connections_than_allowed_wait() {
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0", "--max-connections", "1"]);
    let mut first = TcpStream::connect(&server.addresses[0]).expect("it listens");
    first.write_all(b"GET /small HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    first.read_exact(&mut [0; 10]).expect("it answers");
    let address = server.addresses[0].clone();
    let second = std::thread::spawn(move || get(&address, "/small"));
    drop(first);
    assert!(second.join().expect("no panic").ends_with("hello\n"));
}

#[test]
fn a_wrong_command_line_is_told() {
    for (args, word) in [
        (&["/nonexistent"][..], "cannot open /nonexistent"),
        (&["/tmp", "--dance"], "Usage: sendfile2 serve"),
        (&["/tmp", "--engine", "uring"], "auto, copy or zerocopy"),
        (&["/tmp", "--engine", "sendfile"], "auto, copy or zerocopy"),
        (&["/tmp", "--engine", "zerocopy", "--listen", "unix:/tmp/s"], "auto or copy"),
        (&["/tmp", "--listen", "localhost:1:2"], "brackets"),
        (
            &["/tmp", "--listen", ":0", "--listen", ":0", "--max-connections", "1"],
            "--max-connections 2",
        ),
        (&["/tmp", "--tls-cert", "x"], "--tls-key"),
        (&["/tmp", "--tls-cert", "/dev/null", "--tls-key", "/dev/null"], "no certificate"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"))
            .arg("serve")
            .args(args)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(word), "{args:?}: {text}");
    }
}

#[test]
fn an_engine_that_is_not_there_is_refused_at_the_start() {
    let there = sendfile2::probe::machine().engines.into_iter().any(|state| {
        let available = matches!(state.availability, Availability::Available(_));
        state.engine == Engine::Native && available
    });
    if there {
        println!("SKIP: this kernel has the engine native");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"))
        .args(["serve", "/tmp", "--listen", "127.0.0.1:0", "--engine", "native"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("native is not to be had"), "{text}");
}

/// An engine finds only when it sends that memory may not be locked.
#[test]
fn an_answer_that_breaks_off_is_told() {
    let ordinary = ["--user", "--map-root-user"];
    if !Command::new("unshare").args(ordinary).arg("true").status().is_ok_and(|s| s.success()) {
        println!("SKIP: user namespaces are forbidden");
        return;
    }
    let dir = files();
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--engine", "zerocopy"];
    // Where the limit counts also for root.
    let mut command = Command::new("unshare");
    command.args(ordinary).arg(env!("CARGO_BIN_EXE_sendfile2-server"));
    let mut server = Server::by(command, dir.path(), &args);
    let pid = rustix::process::Pid::from_child(&server.child);
    let limit = rustix::process::Rlimit { current: Some(4096), maximum: Some(4096) };
    rustix::process::prlimit(Some(pid), rustix::process::Resource::Memlock, limit).expect("set");
    let mut client = TcpStream::connect(&server.addresses[0]).expect("it listens");
    client
        .write_all(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.len() < 9_000_000, "it does not count");
    until("it is counted", || {
        number(&get(&server.addresses[1], "/metrics"), "sendfile2_http_broken_total") == 1.0
    });
    let mut line = String::new();
    server.stderr.read_line(&mut line).expect("UTF-8");
    assert!(line.contains("zerocopy refused"), "{line}");
}

/// The connection goes on with HTTP/2, and reports nothing more.
#[test]
fn a_file_that_becomes_shorter_is_counted_once() {
    if !have("curl") {
        return;
    }
    let dir = files();
    let huge = File::create(dir.path().join("huge")).expect("a file");
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let server = Server::new(dir.path(), &args);
    for (version, count) in [("--http2-prior-knowledge", 1.0), ("--http1.1", 2.0)] {
        huge.set_len(256 << 20).expect("a length");
        let mut curl = Command::new("curl")
            .args(["--silent", version, "--limit-rate", "8M"])
            .arg(format!("http://{}/huge", server.addresses[0]))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl runs");
        let mut answer = curl.stdout.take().expect("piped");
        answer.read_exact(&mut [0; 4096]).expect("it has begun");
        huge.set_len(0).expect("a length");
        let rest = std::io::copy(&mut answer, &mut std::io::sink()).expect("it ends");
        assert!(rest < 256 << 20, "all of it was sent before: this proves nothing");
        assert!(!curl.wait().expect("it ends").success());
        until("the connection ends", || {
            number(&get(&server.addresses[1], "/metrics"), "sendfile2_http_connections") == 0.0
        });
        let text = get(&server.addresses[1], "/metrics");
        assert_eq!(number(&text, "sendfile2_http_broken_total"), count, "{version}");
    }
}

/// A page that loads images, seeks in a sound, as far as its end, and reads the listing of a directory.
const PAGE: &str = r#"<body><script>
const tells = (what) => document.body.append(what + "; ");
const images = [...Array(20).keys()].map((i) => new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image.naturalWidth);
    image.onerror = failed;
    image.src = `/images/${i}.svg`;
}));
const sound = new Promise((done, failed) => {
    const sound = new Audio("/sound.wav");
    sound.onloadedmetadata = () => sound.currentTime = sound.duration - 1;
    sound.onseeked = () => done(sound.currentTime.toFixed());
    sound.onerror = failed;
});
const listing = fetch("/images/").then((r) => r.text()).then((text) =>
    [...new DOMParser().parseFromString(text, "text/html").querySelectorAll("a")]
        .filter((a) => a.textContent.endsWith(".svg")).length);
const part = fetch("/sound.wav", {headers: {Range: "bytes=-44"}}).then(async (r) =>
    r.status + " of " + (await r.arrayBuffer()).byteLength);
Promise.all([Promise.all(images), sound, listing, part]).then(([images, sound, listing, part]) => {
    const by = new Set(performance.getEntriesByType("resource").map((e) => e.nextHopProtocol));
    tells(`${images.filter((width) => width == 7).length} images, at ${sound}, ${listing} names`);
    tells(`${part}, by ${[...by].filter((by) => by)}`);
}).catch((e) => tells(e.type ?? e));
</script>"#;

/// Ten minutes of silence: 8 kHz, a byte a sample.
fn sound() -> Vec<u8> {
    let len = 8000 * 600_u32;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + len).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend([8000_u32, 8000].map(u32::to_le_bytes).as_flattened());
    wav.extend(b"\x01\0\x08\0data");
    wav.extend(len.to_le_bytes());
    wav.resize(wav.len() + len as usize, 128);
    wav
}

#[test]
fn chromium_gets_the_whole_file() {
    if !have("chromium") {
        return;
    }
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let page = chromium(&format!("http://{}/", server.addresses[0]));
    assert!(page.contains("9000000 arrived"), "{page}");
}

/// The text that a page of Chromium's shows when nothing more happens.
fn chromium(url: &str) -> String {
    let profile = tempfile::tempdir().expect("a directory");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000"])
        .args(["--ignore-certificate-errors", "--dump-dom", url])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .stderr(Stdio::null())
        .output()
        .expect("chromium runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn chromium_shows_a_page_with_images_a_sound_and_a_listing() {
    if !have("chromium") || !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    std::fs::write(dir.path().join("index.html"), PAGE).expect("a file");
    std::fs::write(dir.path().join("sound.wav"), sound()).expect("a file");
    std::fs::create_dir(dir.path().join("images")).expect("a directory");
    for i in 0..20 {
        let image = r#"<svg xmlns="http://www.w3.org/2000/svg" width="7" height="7"/>"#;
        std::fs::write(dir.path().join(format!("images/{i}.svg")), image).expect("a file");
    }
    let plain = ["--listen", "127.0.0.1:0", "--list-directories"];
    let tls = [&plain[..], &["--tls-cert", &*cert, "--tls-key", &*key]].concat();
    for (args, scheme, by) in [(&plain[..], "http", "http/1.1"), (&tls, "https", "h2")] {
        let server = Server::new(dir.path(), args);
        let page = chromium(&format!("{scheme}://{}/", server.addresses[0]));
        let expected = format!("20 images, at 599, 20 names; 206 of 44, by {by}; ");
        assert!(page.contains(&expected), "{expected}: {page}");
    }
}
