//! `sendfile2 serve` as those meet it who run it: configuration, signals, systemd, logs, rules.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use clap::Args as _;
use rustix::process::Signal;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sendfile2-server");

struct Server {
    child: Child,
    /// Where it listens, in its order.
    addresses: Vec<String>,
    admin: Option<String>,
    /// A socket, so that what is never said ends a test, and not only a hang.
    stderr: BufReader<UnixStream>,
}

impl Server {
    /// Runs it, on a port of its own, with these arguments behind the directory.
    fn new(dir: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(dir).args(["--listen", "127.0.0.1:0"]).args(args);
        Server::by(command, 1)
    }

    /// Runs it, until it listens at so many addresses.
    fn by(mut command: Command, wanted: usize) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let child = command.stderr(OwnedFd::from(theirs)).spawn().expect("it starts");
        let mut stderr = BufReader::new(ours);
        let (mut addresses, mut admin) = (Vec::new(), None);
        while addresses.len() < wanted {
            let line = line_of(&mut stderr);
            let address = line.rsplit(' ').next().expect("an address").to_owned();
            if line.contains("metrics") {
                admin = Some(address);
            } else if line.contains("listening on") {
                addresses.push(address);
            }
        }
        Server { child, addresses, admin, stderr }
    }

    fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it is there");
    }

    /// Waits until it says this on standard error, and returns the line.
    fn says(&mut self, text: &str) -> String {
        loop {
            let line = line_of(&mut self.stderr);
            if line.contains(text) {
                return line;
            }
        }
    }

    fn reload(&mut self) {
        self.signal(Signal::HUP);
        self.says("sendfile2: reloaded");
    }

    fn get(&self, path: &str) -> String {
        get(&self.addresses[0], path, "")
    }

    fn metrics(&self) -> String {
        get(self.admin.as_ref().expect("--admin"), "/metrics", "")
    }

    /// Ends it; returns what it still says.
    fn end(mut self) -> String {
        self.signal(Signal::TERM);
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("UTF-8");
        assert!(self.child.wait().expect("it ends").success(), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line_of(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    assert_ne!(from.read_line(&mut line).expect("UTF-8"), 0, "it ended early");
    line.trim_end().to_owned()
}

fn dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// A directory with these files.
fn files(files: &[(&str, &str)]) -> TempDir {
    let dir = dir();
    for (name, text) in files {
        write(&dir, name, text);
    }
    dir
}

fn write(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().expect("of a directory")).expect("directories");
    std::fs::write(&path, text).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream
}

/// GETs a path, with more headers; returns the whole answer.
fn get(address: &str, path: &str, headers: &str) -> String {
    let mut stream = connect(address);
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("it closes");
    String::from_utf8_lossy(&answer).into_owned()
}

/// GETs a path on a connection that goes on; returns the body.
fn ask(stream: &mut BufReader<TcpStream>, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes()).expect("it reads");
    let mut length = 0;
    loop {
        let line = line_of(stream).to_lowercase();
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a number");
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("all of it");
    String::from_utf8(body).expect("UTF-8")
}

/// Returns whether there is such a program; prints the reason for a skip if not.
fn have(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    let found = command.status().is_ok();
    if !found {
        println!("SKIP: there is no {program} here");
    }
    found
}

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
}

fn curl(args: &[&str]) -> String {
    let output = run("curl", &[&["-sS", "--max-time", "30"], args].concat());
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
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

/// A certificate for localhost, by this name, and its key, in one file.
fn certificate(dir: &TempDir, name: &str) -> String {
    let path = dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "1", "-subj", &format!("/CN={name}")])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", &path, "-out"])
        .arg(format!("{path}.cert"))
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{made:?}");
    let both = [std::fs::read(format!("{path}.cert")), std::fs::read(&path)];
    std::fs::write(&path, both.map(|it| it.expect("it is made")).concat()).expect("a file");
    path
}

/// Runs it until it ends by itself; returns whether it succeeded, and what it said.
fn refused(args: &[&str]) -> (bool, String) {
    let output = run(PROGRAM, &[&["serve"], args].concat());
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().expect("a port")
}

// ---- Configuration and signals ----

#[test]
fn the_command_line_comes_before_the_environment_and_that_before_the_file() {
    let dir = files(&[("a.txt", "a")]);
    let config = write(&dir, "c.toml", "charset = \"of-file\"\n");
    let charset = |config: Option<&str>, environment: Option<&str>, line: Option<&str>| {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(dir.path()).args(["--listen", "127.0.0.1:0"]);
        command.args(config.iter().flat_map(|config| ["--config", config]));
        command.envs(environment.map(|name| ("SENDFILE2_SERVE_CHARSET", name)));
        command.args(line.iter().flat_map(|name| ["--charset", name]));
        let answer = Server::by(command, 1).get("/a.txt");
        let (_, rest) = answer.split_once("text/plain; charset=").expect("a charset");
        rest.split("\r\n").next().expect("a line").to_owned()
    };
    let file = Some(&*config);
    assert_eq!(charset(file, Some("of-environment"), Some("of-line")), "of-line");
    assert_eq!(charset(file, Some("of-environment"), None), "of-environment");
    assert_eq!(charset(file, None, None), "of-file");
    assert_eq!(charset(None, None, None), "utf-8");
}

#[test]
fn everything_can_be_in_the_environment() {
    let dir = files(&[("a.txt", "a"), (".a", "dot")]);
    let mut command = Command::new(PROGRAM);
    command.arg("serve").env("SENDFILE2_SERVE_DIR", dir.path());
    command.env("SENDFILE2_SERVE_LISTEN", "127.0.0.1:0,127.0.0.1:0");
    command.env("SENDFILE2_SERVE_HEADER", "*=A: b\n*.txt=C: d");
    command.env("SENDFILE2_SERVE_DOTFILES", "true");
    let server = Server::by(command, 2);
    for address in &server.addresses {
        let answer = get(address, "/a.txt", "");
        assert!(answer.contains("\r\na: b\r\n") && answer.contains("\r\nc: d\r\n"), "{answer}");
    }
    assert!(server.get("/.a").ends_with("dot"));
    // A flag that is set there is unset by the command line.
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--dotfiles=false"]).arg(dir.path());
    let server = Server::by(
        {
            command.env("SENDFILE2_SERVE_DOTFILES", "true");
            command
        },
        1,
    );
    assert!(server.get("/.a").starts_with("HTTP/1.1 404"));
}

#[test]
fn what_is_wrong_in_the_environment_is_told_by_its_name() {
    for (name, value, words) in [
        ("SENDFILE2_SERVE_WORKERS", "0", "SENDFILE2_SERVE_WORKERS: invalid value '0'"),
        ("SENDFILE2_SERVE_LISEN", ":80", "SENDFILE2_SERVE_LISEN: there is no such option"),
        ("SENDFILE2_SERVE_CHECK", "true", "SENDFILE2_SERVE_CHECK: there is no such option"),
        ("SENDFILE2_SERVE_CORS", "x", "SENDFILE2_SERVE_CORS: x is no origin"),
    ] {
        let mut command = Command::new(PROGRAM);
        let output = command.args(["serve", "/tmp", "--check"]).env(name, value).output();
        let output = output.expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{said}");
    }
}

/// The example in the repository has each option, and each is right.
#[test]
fn a_file_has_every_option() {
    if !have("openssl") {
        return;
    }
    let example = include_str!("../systemd/serve.toml");
    let keyed = |line: &&str| line.starts_with(['#', '[', 'd']) && !line.starts_with("# ");
    let lines = example.lines().filter(keyed).map(|line| line.trim_start_matches('#'));
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    let keys = text.lines().filter_map(|line| match line.strip_prefix('[') {
        Some(table) => Some(table.trim_end_matches(']').to_owned()),
        None => line.split_once(" = ").map(|(key, _)| key.to_owned()),
    });
    let keys: BTreeSet<String> = keys.filter(|key| !key.starts_with('"')).collect();
    let options = sendfile2_command::args::serve::Args::augment_args(clap::Command::new("serve"));
    let options: BTreeSet<String> =
        options.get_arguments().map(|option| option.get_id().as_str().replace('_', "-")).collect();
    let of_one_run = ["config", "check"].map(str::to_owned).into();
    assert_eq!(options.difference(&of_one_run).cloned().collect::<BTreeSet<_>>(), keys);

    let dir = files(&[("index.html", "i"), ("404.html", "4")]);
    let pem = certificate(&dir, "both.pem");
    let text = text
        .replace("/srv/www", dir.path().to_str().expect("UTF-8"))
        .replace("/etc/ssl/chain.pem", &pem)
        .replace("/etc/ssl/private/key.pem", &pem)
        .replace("/var/log/sendfile2", dir.path().to_str().expect("UTF-8"));
    let config = write(&dir, "c.toml", &text);
    let (fine, said) = refused(&["--config", &config, "--check"]);
    assert!(!fine && said.contains("cannot be used with '--not-found-page <FILE>'"), "{said}");
    let text = text.replace("not-found-page = ", "#");
    let (fine, said) = refused(&["--config", &write(&dir, "c.toml", &text), "--check"]);
    assert!(fine, "{said}");
    assert!(!dir.path().join("access.log").exists(), "who checks is not who writes");
}

#[test]
fn what_is_wrong_in_a_file_is_told_by_its_line_and_key() {
    let dir = files(&[("a", "a")]);
    let root = format!("dir = {:?}\n", dir.path());
    for (text, words) in [
        ("lisen = 3", &["c.toml:2: lisen", "'--listen'"][..]),
        ("tls_cert = \"x\"", &["c.toml:2: tls_cert", "'--tls-cert'"]),
        ("workers = 0", &["c.toml:2: workers", "at least 1"]),
        ("listen = [\n  \":80\",\n  \"host\",\n]", &["c.toml:4: listen", "the port is missing"]),
        ("grace = 30", &["c.toml:2: grace", "such as 500ms or 30s"]),
        ("grace = 1.5", &["c.toml:2: grace", "float"]),
        ("access-log-format = \"xml\"", &["c.toml:2: access-log-format", "combined, json"]),
        ("\n[header]\n\"*\" = \"x\"", &["c.toml:4: header", "give NAME: VALUE"]),
        ("header = [\"*=Content-Length: 3\"]", &["c.toml:2: header", "content-length"]),
        ("[cache-control]\n\"a[\" = \"x\"", &["c.toml:3: cache-control", "\"a[\""]),
        ("trusted-proxy = \"10.0.0.0/99\"", &["c.toml:2: trusted-proxy", "10.0.0.0/8"]),
        ("cors = \"example.org\"", &["c.toml:2: cors", "https://example.org"]),
        ("fallback = \"none\"", &["c.toml:2: fallback", "no file none"]),
        ("tls-cert = \"/x\"", &["c.toml:2: tls-cert", "--tls-key"]),
        ("tls-cert = \"/x\"\ntls-key = \"/x\"", &["c.toml:2: tls-cert", "from /x"]),
        ("redirect-https = true", &["c.toml:2: redirect-https", "--tls-cert"]),
        ("access-log = \"/none/log\"", &["c.toml:2: access-log", "cannot write to /none/log"]),
        ("check = true", &["c.toml:2: check", "command line"]),
        ("a = ", &["c.toml:2: "]),
    ] {
        let config = write(&dir, "c.toml", &format!("{root}{text}\n"));
        let (fine, said) = refused(&["--config", &config, "--check"]);
        assert!(!fine && said.lines().count() == 1, "{text}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{text}: {said}");
    }
    let config = write(&dir, "c.toml", "dir = \"/nonexistent\"\n");
    let (_, said) = refused(&["--config", &config, "--check"]);
    assert!(said.contains("c.toml:1: dir: cannot open /nonexistent"), "{said}");
    let (_, said) = refused(&["--check", "--config", "/nonexistent"]);
    assert!(said.contains("cannot read the configuration /nonexistent"), "{said}");
    let (_, said) = refused(&["--check"]);
    assert!(said.contains("which directory?"), "{said}");
}

#[test]
fn sighup_reads_all_anew_and_loses_no_connection() {
    if !have("openssl") || !have("curl") {
        return;
    }
    let large = "0123456789".repeat(3_000_000);
    let old = files(&[("a.txt", "old"), ("large", &large)]);
    let new = files(&[("a.txt", "new")]);
    let [first, second] = ["first.pem", "second.pem"].map(|name| certificate(&old, name));
    let pem = write(&old, "now.pem", &std::fs::read_to_string(&first).expect("it is made"));
    let logs = [old.path().join("log-1"), old.path().join("log-2")];
    let configuration = |dir: &TempDir, log: &Path, more: &str| {
        let text = format!(
            "dir = {:?}\nlisten = \"127.0.0.1:0\"\nlisten-http = \"127.0.0.1:0\"\n\
             admin = \"127.0.0.1:0\"\ntls-cert = {pem:?}\ntls-key = {pem:?}\naccess-log = {log:?}\n{more}",
            dir.path()
        );
        write(&old, "c.toml", &text)
    };
    let config = configuration(&old, &logs[0], "");
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--config", &config]);
    let mut server = Server::by(command, 2);
    let [https, http] = &server.addresses.clone()[..] else { panic!("two addresses") };
    let url = format!("https://localhost:{}/a.txt", port(https));
    assert_eq!(curl(&["--cacert", &first, &url]), "old");
    let mut kept = BufReader::new(connect(http));
    assert_eq!(ask(&mut kept, "/a.txt"), "old");
    let mut silent = BufReader::new(connect(http));
    let mut busy = connect(http);
    let request = "GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    busy.write_all(request.as_bytes()).expect("it reads");
    let mut got = vec![0; 1000];
    busy.read_exact(&mut got).expect("it answers");

    // All of it is new, but for the addresses, which are told.
    std::fs::copy(&second, &pem).expect("copied");
    configuration(&new, &logs[1], "workers = 7\n[header]\n\"*\" = \"X-New: yes\"\n");
    server.signal(Signal::HUP);
    server.says("sendfile2: reloaded");
    let told = server.says("takes effect when the server is started anew");
    assert!(told.contains("c.toml:8: workers"), "{told}");

    assert_eq!(ask(&mut kept, "/a.txt"), "new", "on a connection from before");
    assert_eq!(ask(&mut silent, "/a.txt"), "new", "on one that had not asked");
    assert!(get(http, "/a.txt", "").contains("x-new: yes"));
    server.signal(Signal::HUP);
    server.says("c.toml:8: workers");
    busy.read_to_end(&mut got).expect("all of it");
    assert!(got.ends_with(large.as_bytes()), "what was in progress is whole");
    assert_eq!(curl(&["--cacert", &second, &url]), "new");
    assert!(
        !run("curl", &["-sS", "--cacert", &first, &url]).status.success(),
        "the old certificate"
    );
    until("the new log is written", || {
        std::fs::read_to_string(&logs[1]).is_ok_and(|log| log.contains("GET /large"))
    });
    assert!(std::fs::read_to_string(&logs[0]).expect("it is there").contains("GET /a.txt"));

    // What is wrong changes nothing.
    for (text, words) in [
        ("dir = \"/\"\nlisten = 3.5\n".to_owned(), "c.toml:2: listen"),
        (
            format!("dir = {:?}\ntls-cert = \"/x\"\ntls-key = \"/x\"\n", old.path()),
            "c.toml:2: tls-cert",
        ),
        (format!("dir = {:?}\naccess-log = \"/x/y\"\n", old.path()), "cannot write to /x/y"),
    ] {
        write(&old, "c.toml", &text);
        server.signal(Signal::HUP);
        let said = server.says("not reloaded, all stays as it was");
        assert!(said.contains(words), "{said}");
        assert_eq!(ask(&mut kept, "/a.txt"), "new");
    }
    let text = server.metrics();
    assert!(text.contains("sendfile2_reloads_total{result=\"done\"} 2\n"), "{text}");
    assert!(text.contains("sendfile2_reloads_total{result=\"failed\"} 3\n"), "{text}");
}

#[test]
fn the_directory_that_a_link_leads_to_is_found_anew() {
    let all = files(&[("one/a", "first"), ("two/a", "second")]);
    let current = all.path().join("current");
    std::os::unix::fs::symlink("one", &current).expect("a link");
    let mut server = Server::new(&current, &[]);
    assert!(server.get("/a").ends_with("first"));
    std::fs::remove_file(&current).expect("it is there");
    std::os::unix::fs::symlink("two", &current).expect("a link");
    server.reload();
    assert!(server.get("/a").ends_with("second"));
}

/// Without a reload, too, as for files.
#[test]
fn a_listing_is_of_the_directory_that_a_link_leads_to_by_then() {
    let all = files(&[("one/first", ""), ("two/second", "")]);
    let (current, next) = (all.path().join("current"), all.path().join("next"));
    std::os::unix::fs::symlink("one", &current).expect("a link");
    let server = Server::new(&current, &["--list-directories"]);
    assert!(server.get("/").contains("first"));
    std::os::unix::fs::symlink("two", &next).expect("a link");
    std::fs::rename(&next, &current).expect("it is there");
    until("it is followed", || server.get("/").contains("second"));
}

#[test]
fn a_reload_opens_and_closes_listeners() {
    let dir = files(&[("a", "a")]);
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (first, second) = (path("first"), path("second"));
    let listen = |addresses: &str| {
        write(&dir, "c.toml", &format!("dir = {:?}\nlisten = {addresses}\n", dir.path()))
    };
    let config = listen(&format!("[\"127.0.0.1:0\", \"unix:{first}\"]"));
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--config", &config]);
    let mut server = Server::by(command, 2);
    let by = |path: &str| {
        let mut stream = UnixStream::connect(path)?;
        stream.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let mut kept = UnixStream::connect(&first).expect("it listens");
    kept.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    kept.read_exact(&mut [0; 12]).expect("it answers");
    listen(&format!("[\"unix:{second}\", \"127.0.0.1:0\"]"));
    server.signal(Signal::HUP);
    server.says(&format!("listening on unix:{second}"));
    server.says("reloaded");
    assert!(by(&second).expect("it listens").ends_with("\r\n\r\na"));
    assert!(server.get("/a").ends_with("\r\n\r\na"), "the one that stays");
    until("its path is gone", || !Path::new(&first).exists());
    kept.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut rest = String::new();
    kept.read_to_string(&mut rest).expect("it answers");
    assert_eq!(rest.matches("HTTP/1.1 200").count(), 1, "its connections go on: {rest}");
    // One that cannot be had leaves all as it was.
    let taken = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr().map(|at| (it, at)));
    let (_taken, at) = taken.expect("a port");
    listen(&format!("[\"{at}\"]"));
    server.signal(Signal::HUP);
    assert!(server.says("not reloaded").contains(&format!("cannot listen on {at}")));
    assert!(server.get("/a").ends_with("\r\n\r\na") && by(&second).is_ok());
}

/// Connections go on, but what was served before them is not kept open for them.
#[test]
fn a_reload_closes_the_files_of_before() {
    let names: Vec<String> = (0..50).map(|i| format!("f{i}")).collect();
    let dir = files(&names.iter().map(|name| (&**name, "x")).collect::<Vec<_>>());
    let mut server = Server::new(dir.path(), &[]);
    let mut kept = BufReader::new(connect(&server.addresses[0]));
    for name in &names {
        assert_eq!(ask(&mut kept, &format!("/{name}")), "x");
    }
    let open = |server: &Server| {
        let descriptors = format!("/proc/{}/fd", server.child.id());
        let links = std::fs::read_dir(descriptors).expect("it is there").flatten();
        let links = links.filter_map(|link| std::fs::read_link(link.path()).ok());
        links.filter(|path| path.starts_with(dir.path()) && path != dir.path()).count()
    };
    assert_eq!(open(&server), 50);
    server.reload();
    until("they are closed", || open(&server) == 0);
    assert_eq!(ask(&mut kept, "/f0"), "x");
}

#[test]
fn sigusr1_opens_the_log_again_and_no_line_is_lost() {
    let dir = files(&[("a", "a")]);
    let log = dir.path().join("log");
    let moved: Vec<PathBuf> = (0..10).map(|i| dir.path().join(format!("log.{i}"))).collect();
    let server = Server::new(dir.path(), &["--access-log", log.to_str().expect("UTF-8")]);
    let mut client = BufReader::new(connect(&server.addresses[0]));
    let mut asked = 0;
    for moved in &moved {
        for _ in 0..20 {
            ask(&mut client, &format!("/a?{asked}"));
            asked += 1;
        }
        std::fs::rename(&log, moved).expect("it is there");
        server.signal(Signal::USR1);
        until("it is there again", || log.exists());
    }
    drop(client);
    server.end();
    let mut lines = Vec::new();
    for file in moved.iter().chain([&log]) {
        let text = std::fs::read_to_string(file).expect("it is there");
        assert!(*file == log || !text.is_empty(), "{} has nothing of its time", file.display());
        let number = |line: &str| line.split_once("/a?")?.1.split(' ').next()?.parse::<u32>().ok();
        lines.extend(text.lines().map(|line| number(line).expect(line)));
    }
    assert_eq!(lines, (0..asked).collect::<Vec<_>>());
}

/// Nobody reads, at first: nothing waits for that.
#[test]
fn a_log_that_is_a_fifo_waits_for_nobody() {
    let dir = files(&[("a", "a")]);
    let log = dir.path().join("fifo");
    assert!(run("mkfifo", &[log.to_str().expect("UTF-8")]).status.success());
    let mut server = Server::new(dir.path(), &["--access-log", log.to_str().expect("UTF-8")]);
    assert!(server.get("/a?first").ends_with("\r\n\r\na"));
    server.reload();
    server.signal(Signal::USR1);
    assert!(server.get("/a?second").ends_with("\r\n\r\na"));
    let mut reader = BufReader::new(std::fs::File::open(&log).expect("it is written"));
    assert!(line_of(&mut reader).contains("/a?first"));
    assert!(line_of(&mut reader).contains("/a?second"));
    server.end();
}

/// A reload may wait for what never comes: here certificates, by a FIFO that nobody writes to.
#[test]
fn a_reload_that_never_ends_keeps_nobody_from_ending() {
    if !have("openssl") {
        return;
    }
    let dir = files(&[("a", "a")]);
    let pem = certificate(&dir, "both.pem");
    let server = Server::new(dir.path(), &["--tls-cert", &pem, "--tls-key", &pem]);
    std::fs::remove_file(&pem).expect("it is there");
    assert!(run("mkfifo", &[&pem]).status.success());
    server.signal(Signal::HUP);
    // It has a writer when it has a reader, and what is written is still to come.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::WRONLY;
    let mut writer = None;
    until("the reload reads it", || {
        writer = rustix::fs::open(&pem, flags, rustix::fs::Mode::empty()).ok();
        writer.is_some()
    });
    server.end();
}

// ---- Listeners ----

#[test]
fn http_beside_https_and_redirects() {
    if !have("openssl") || !have("curl") {
        return;
    }
    let dir = files(&[("a.txt", "a"), (".well-known/acme-challenge/token", "proof")]);
    let pem = certificate(&dir, "both.pem");
    let tls = ["--tls-cert", &*pem, "--tls-key", &*pem, "--listen-http", "127.0.0.1:0"];
    let with = |more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg(dir.path()).args(["--listen", "127.0.0.1:0"]).args(tls).args(more);
        Server::by(command, 2)
    };
    let server = with(&[]);
    let https = format!("https://localhost:{}/a.txt", port(&server.addresses[0]));
    assert_eq!(curl(&["--cacert", &pem, &https]), "a");
    assert!(get(&server.addresses[1], "/a.txt", "").ends_with("\r\n\r\na"), "both are served");

    let server = with(&["--redirect-https"]);
    let http = &server.addresses[1];
    let location = |answer: &str| {
        assert!(answer.starts_with("HTTP/1.1 308"), "{answer}");
        let (_, rest) = answer.split_once("location: ").expect("a location");
        rest.split("\r\n").next().expect("a line").to_owned()
    };
    assert_eq!(location(&get(http, "/a.txt?b=c", "")), "https://x/a.txt?b=c");
    assert_eq!(location(&get(http, "http://y:80/a", "")), "https://y/a");
    assert_eq!(location(&get(http, "//evil.org/a", "")), "https://x//evil.org/a");
    assert!(get(http, "/.well-known/acme-challenge/token", "").ends_with("proof"));
    for no_path in ["*", "x:80"] {
        let answer = get(http, no_path, "");
        assert!(answer.starts_with("HTTP/1.1 400"), "{no_path}: {answer}");
    }

    // It is followed to where it leads.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let mut command = Command::new(PROGRAM);
    let redirect = format!("--redirect-https={}", free.port());
    command.arg("serve").arg(dir.path()).args(["--listen", &free.to_string(), &redirect]).args(tls);
    let server = Server::by(command, 2);
    let url = format!("http://localhost:{}/a.txt", port(&server.addresses[1]));
    assert_eq!(curl(&["-L", "--cacert", &pem, &url]), "a");
}

/// By a shell: what systemd does is to leave the sockets where the program finds them.
#[test]
fn sockets_of_systemd_are_listened_on() {
    let dir = files(&[("a", "a")]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let mut command = Command::new("sh");
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web exec \"$@\" 3<&0 0</dev/null";
    command.args(["-c", script, "sh", PROGRAM, "serve"]).arg(dir.path());
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    // They are in place of the address that it listens at by itself.
    let server = Server::by(command, 1);
    assert_eq!(server.addresses, [address]);
    assert!(server.get("/a").ends_with("\r\n\r\na"));
    assert!(!server.end().contains("8080"));
    if !have("systemd-socket-activate") {
        return;
    }
    let free = || TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port");
    let (web, admin) = (free(), free());
    let mut command = Command::new("systemd-socket-activate");
    command.args(["-l", &web.to_string(), "-l", &admin.to_string(), "--fdname=http:admin"]);
    command.arg(PROGRAM).arg("serve").arg(dir.path()).stderr(Stdio::null());
    let child = command.spawn().expect("it starts");
    let mut child = KillOnDrop(child);
    until("it listens", || TcpStream::connect(web).is_ok());
    assert!(get(&web.to_string(), "/a", "").ends_with("\r\n\r\na"));
    assert!(get(&admin.to_string(), "/health", "").ends_with("ok\n"));
    assert!(child.0.try_wait().expect("a child").is_none());
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn systemd_is_told_what_happens() {
    let dir = files(&[("a", "a")]);
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    let told = || {
        let mut text = [0; 200];
        let length = socket.recv(&mut text).expect("it tells");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let mut command = Command::new(PROGRAM);
    command.arg("serve").arg(dir.path()).args(["--listen", "127.0.0.1:0"]);
    command.env("NOTIFY_SOCKET", &path);
    let mut server = Server::by(command, 1);
    assert_eq!(told(), "READY=1\n");
    server.reload();
    let reloading = told();
    assert!(reloading.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{reloading}");
    assert_eq!(told(), "READY=1\n");
    server.end();
    assert_eq!(told(), "STOPPING=1\n");
}

/// The unit of the repository, with the program where it is here.
fn unit(dir: &TempDir) -> String {
    let unit = include_str!("../systemd/sendfile2-serve.service");
    let unit = unit.replace("/usr/local/bin/sendfile2-server", PROGRAM);
    write(dir, "sendfile2-serve.socket", include_str!("../systemd/sendfile2-serve.socket"));
    write(dir, "sendfile2-serve.service", &unit)
}

#[test]
fn the_unit_is_right_and_leaves_little_exposed() {
    if !have("systemd-analyze") {
        return;
    }
    let dir = dir();
    let service = unit(&dir);
    let socket = service.replace(".service", ".socket");
    let verified = run("systemd-analyze", &["verify", "--man=no", &service, &socket]);
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("sendfile2-serve"), "{said}");
    // systemd.exec(5): both forbid openat2, whose flags no filter sees.
    let unit = include_str!("../systemd/sendfile2-serve.service");
    for forbids in ["DynamicUser=", "RestrictSUIDSGID="] {
        assert!(!unit.lines().any(|line| line.starts_with(forbids)), "{forbids}");
    }
    let secure = ["security", "--offline=true", "--threshold=20", "--no-pager", &service];
    let secure = run("systemd-analyze", &secure);
    assert!(secure.status.success(), "{}", String::from_utf8_lossy(&secure.stdout));
}

/// The names of a set of systemd's, with those of the sets in it.
fn calls(set: &str) -> BTreeSet<String> {
    let listed = run("systemd-analyze", &["syscall-filter", "--no-pager", set]);
    let listed = String::from_utf8(listed.stdout).expect("UTF-8");
    let lines = listed.lines().skip(1).map(str::trim);
    let mut names = BTreeSet::new();
    for name in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match name.starts_with('@') {
            true => names.append(&mut calls(name)),
            false => _ = names.insert(name.to_owned()),
        }
    }
    names
}

#[test]
fn the_unit_allows_all_system_calls_that_are_made() {
    if !have("systemd-analyze") || !have("strace") || !have("openssl") || !have("curl") {
        return;
    }
    if !run("strace", &["-f", "true"]).status.success() {
        println!("SKIP: strace may not trace here");
        return;
    }
    let mut allowed = BTreeSet::new();
    for line in include_str!("../systemd/sendfile2-serve.service").lines() {
        let Some(filter) = line.strip_prefix("SystemCallFilter=") else { continue };
        let (denies, names) =
            filter.strip_prefix('~').map_or((false, filter), |names| (true, names));
        for name in names.split(' ') {
            let set = match name.starts_with('@') {
                true => calls(name),
                false => [name.to_owned()].into(),
            };
            assert!(!set.is_empty(), "{name} is no set");
            allowed = if denies { &allowed - &set } else { &allowed | &set };
        }
    }
    let dir = files(&[("a.txt", "a"), ("d/b", "b"), ("large", &"x".repeat(4 << 20))]);
    let pem = certificate(&dir, "both.pem");
    let trace = dir.path().join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o"]).arg(&trace).args([PROGRAM, "serve"]).arg(dir.path());
    command.args(["--listen", "localhost:0", "--listen-http", "127.0.0.1:0", "--list-directories"]);
    command.args(["--admin", "127.0.0.1:0", "--tls-cert", &pem, "--tls-key", &pem]);
    command.args(["--access-log", dir.path().join("log").to_str().expect("UTF-8")]);
    command.args(["--max-connections-per-address", "99", "--engine", "zerocopy"]);
    let mut server = Server::by(command, 2);
    let https = format!("https://localhost:{}/large", port(&server.addresses[0]));
    let http = server.addresses[1].clone();
    assert_eq!(curl(&["--cacert", &pem, &https]).len(), 4 << 20);
    assert!(get(&http, "/large", "").len() > 4 << 20);
    assert!(get(&http, "/d/", "").contains("./b"));
    assert!(get(&http, "/none", "").contains("404"));
    assert!(server.metrics().contains("process_open_fds"));
    // strace has the signals of the terminal and its own: the server is its child.
    let children = format!("/proc/{0}/task/{0}/children", server.child.id());
    let child = std::fs::read_to_string(children).expect("it is there");
    let child =
        child.trim().parse().ok().and_then(rustix::process::Pid::from_raw).expect("one child");
    rustix::process::kill_process(child, Signal::HUP).expect("it is there");
    server.says("reloaded");
    rustix::process::kill_process(child, Signal::TERM).expect("it is there");
    server.says("ending");
    assert!(server.child.wait().expect("it ends").success());
    let trace = std::fs::read_to_string(&trace).expect("it is written");
    let name = |line: &str| {
        let call = line.split_whitespace().nth(1)?;
        let name = call.split('(').next().filter(|_| call.contains('('))?;
        name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_').then(|| name.to_owned())
    };
    let made: BTreeSet<String> = trace.lines().filter_map(name).collect();
    assert!(made.contains("sendmsg") && made.contains("openat2"), "this sees no calls: {made:?}");
    assert_eq!(&made - &allowed, BTreeSet::new());
}

// ---- The access log and metrics ----

/// The log's last line, when there are so many.
fn logged(log: &str, lines: usize) -> String {
    let text = || std::fs::read_to_string(log).unwrap_or_default();
    until("it is logged", || text().lines().count() >= lines);
    text().lines().last().expect("a line").to_owned()
}

#[test]
fn the_log_in_the_combined_format() {
    let dir = files(&[("a.txt", "hello")]);
    let log = dir.path().join("log").to_str().expect("UTF-8").to_owned();
    let server = Server::new(dir.path(), &["--access-log", &log]);
    let headers =
        "referer: https://a/\"b\r\nuser-agent: me/1 (x)\r\nx-forwarded-for: 192.0.2.9\r\n";
    get(&server.addresses[0], "/a.txt?q", headers);
    let line = logged(&log, 1);
    let (client, rest) = line.split_once(" - - [").expect("a client");
    assert_eq!(client, "127.0.0.1", "who is not trusted says who the client is");
    let (time, rest) = rest.split_once("] ").expect("a time");
    assert_eq!((time.len(), &time[20..]), (26, " +0000"), "{line}");
    let (rest, seconds) = rest.rsplit_once(' ').expect("seconds");
    assert_eq!(rest, r#""GET /a.txt?q HTTP/1.1" 200 5 "https://a/\"b" "me/1 (x)""#);
    assert!(seconds.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0), "{line}");
    let mut head = connect(&server.addresses[0]);
    head.write_all(b"HEAD /none HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .expect("it reads");
    let line = logged(&log, 2);
    assert!(line.contains(r#""HEAD /none HTTP/1.1" 404 0 "-" "-" "#), "{line}");
}

#[test]
fn the_log_in_json_with_the_client_of_a_trusted_proxy() {
    let dir = files(&[("a.txt", "hello")]);
    let log = dir.path().join("log").to_str().expect("UTF-8").to_owned();
    let json = ["--access-log", &*log, "--access-log-format", "json"];
    let server = Server::new(
        dir.path(),
        &[&json[..], &["--trusted-proxy", "127.0.0.0/8,10.0.0.0/8"]].concat(),
    );
    let headers = "range: bytes=1-2\r\nx-forwarded-for: 192.0.2.66, 192.0.2.9, 10.9.9.9\r\n\
                   referer: \"\\\r\nuser-agent: \u{fc}\r\n";
    get(&server.addresses[0], "/a.txt", headers);
    let line: serde_json::Value = serde_json::from_str(&logged(&log, 1)).expect("JSON");
    let time = line["time"].as_str().expect("a time");
    assert!(time.len() == 24 && time.ends_with('Z'), "{line}");
    assert!(line["seconds"].is_f64());
    for (key, value) in [
        ("client", "192.0.2.9".into()),
        ("peer", "127.0.0.1".into()),
        ("method", "GET".into()),
        ("uri", "/a.txt".into()),
        ("version", "HTTP/1.1".into()),
        ("host", "x".into()),
        ("referer", r#"\"\\"#.into()),
        ("user_agent", r"\xc3\xbc".into()),
        ("status", 206.into()),
        ("bytes", serde_json::Value::from(2)),
    ] {
        assert_eq!(line[key], value, "{key}: {line}");
    }
}

/// A line has the bytes that were sent, of an answer that the client broke off, and the time until
/// then.
#[test]
fn an_answer_that_is_broken_off_is_logged() {
    let dir = dir();
    std::fs::File::create(dir.path().join("huge")).and_then(|it| it.set_len(1 << 30)).expect("set");
    let log = dir.path().join("log").to_str().expect("UTF-8").to_owned();
    let server = Server::new(dir.path(), &["--access-log", &log]);
    let mut client = connect(&server.addresses[0]);
    client.write_all(b"GET /huge HTTP/1.1\r\nhost: x\r\n\r\n").expect("it reads");
    client.read_exact(&mut [0; 1000]).expect("it answers");
    assert_eq!(std::fs::metadata(&log).expect("it is there").len(), 0, "it is not answered yet");
    drop(client);
    let line = logged(&log, 1);
    let (_, rest) = line.split_once("\" 200 ").expect("a status");
    let bytes: u64 = rest.split(' ').next().expect("a number").parse().expect("a number");
    assert!((1000..1 << 30).contains(&bytes), "{line}");
}

#[test]
fn lines_that_the_disk_does_not_take_are_counted_and_told() {
    let dir = files(&[("a", "a")]);
    let mut server =
        Server::new(dir.path(), &["--access-log", "/dev/full", "--admin", "127.0.0.1:0"]);
    let mut client = BufReader::new(connect(&server.addresses[0]));
    for _ in 0..5 {
        ask(&mut client, "/a");
    }
    let said = server.says("of the access log are lost by now");
    assert!(said.contains("No space left on device"), "{said}");
    until("they are counted", || {
        // The last one is written when the client has its answer.
        server.metrics().contains("sendfile2_log_lines_dropped_total 5\n")
    });
    drop(client);
    let said = server.end();
    assert!(said.contains("5 lines of the access log were dropped"), "{said}");
}

#[test]
fn metrics_are_there_before_anything_happens() {
    let dir = files(&[("a", "a")]);
    let server = Server::new(dir.path(), &["--admin", "127.0.0.1:0"]);
    let before = server.metrics();
    for name in [
        "sendfile2_sent_bytes_total{engine=\"copy\"} 0",
        "sendfile2_sends_total{engine=\"zerocopy\"} 0",
        "sendfile2_releases_total{copied=\"no\"} 0",
        "sendfile2_fallbacks_total{why=\"limit\"} 0",
        "sendfile2_http_bodies_total{became=\"mapped\"} 0",
        "sendfile2_http_requests_total{status=\"200\"} 0",
        "sendfile2_http_requests_total{status=\"404\"} 0",
        "sendfile2_http_requests_total{status=\"500\"} 0",
        "sendfile2_http_broken_total 0",
        "sendfile2_http_connections 0",
        "sendfile2_http_refused_total{what=\"connection\"} 0",
        "sendfile2_log_lines_dropped_total 0",
        "sendfile2_reloads_total{result=\"failed\"} 0",
        "sendfile2_in_flight_sends 0",
        "sendfile2_unknown_sends 0",
        "sendfile2_http_first_byte_seconds_count 0",
        "sendfile2_http_request_seconds_bucket{le=\"0.001\"} 0",
        "sendfile2_release_seconds_count 0",
        "process_resident_memory_bytes ",
        "process_open_fds ",
        "process_cpu_seconds_total ",
        "process_start_time_seconds ",
        &format!("sendfile2_build_info{{version=\"{}\"", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(before.lines().any(|line| line.starts_with(name)), "{name}: {before}");
    }
    // Each is described.
    for line in before.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).expect("a name");
        assert!(before.contains(&format!("# HELP {name} ")), "{name}");
    }
    server.get("/a");
    until("it is measured", || {
        let text = server.metrics();
        text.contains("sendfile2_http_request_seconds_count 1\n")
            && text.contains("sendfile2_http_first_byte_seconds_bucket{le=\"+Inf\"} 1\n")
    });
}

// ---- What is served ----

/// The value of a header, if it is there.
fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next().expect("a head");
    let mut lines = head.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
    lines.find(|(at, _)| *at == name).map(|(_, value)| value)
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or(answer)
}

#[test]
fn headers_by_patterns() {
    let dir = files(&[
        ("index.html", "i"),
        ("a.js", "a"),
        ("v/b.js", "b"),
        ("v/index.html", "v"),
        ("c d.txt", "c"),
    ]);
    let rules = [
        ["--cache-control", "/v/**=no-store"],
        ["--cache-control", "*.{js,css}=public, max-age=60"],
        ["--cache-control", "index.html=no-cache"],
        ["--header", "*=X-All: yes"],
        ["--header", "c d.*=X-Name: a=b: c"],
        ["--header", "*=X-All: again"],
    ];
    let server = Server::new(dir.path(), rules.as_flattened());
    for (path, cache) in [
        ("/", Some("no-cache")),
        ("/a.js", Some("public, max-age=60")),
        ("/a%2ejs", Some("public, max-age=60")),
        ("/v/b.js", Some("no-store")),
        ("/v/", Some("no-store")),
        ("/c%20d.txt", None),
        ("/none.js", None),
    ] {
        // The second time it is answered from what is known.
        for time in 0..2 {
            let answer = server.get(path);
            assert_eq!(header(&answer, "cache-control"), cache, "{path}, {time}: {answer}");
            assert_eq!(header(&answer, "x-all"), Some("again"), "{path}: {answer}");
            let name = (path == "/c%20d.txt").then_some("a=b: c");
            assert_eq!(header(&answer, "x-name"), name, "{path}: {answer}");
        }
    }
    // A copy that is still good is told for how long, too.
    let answer = server.get("/a.js");
    let tag = format!("if-none-match: {}\r\n", header(&answer, "etag").expect("a tag"));
    let answer = get(&server.addresses[0], "/a.js", &tag);
    assert_eq!(
        (status(&answer), header(&answer, "cache-control")),
        ("304", Some("public, max-age=60"))
    );
}

#[test]
fn a_page_in_place_of_what_is_not_there() {
    let dir = files(&[("404.html", "sorry"), ("app/index.html", "app"), ("a", "a")]);
    let server = Server::new(dir.path(), &["--not-found-page", "404.html"]);
    for headers in
        ["", "range: bytes=0-1\r\n", "if-modified-since: Fri, 01 Jan 2100 00:00:00 GMT\r\n"]
    {
        let answer = get(&server.addresses[0], "/none", headers);
        assert_eq!(status(&answer), "404", "{answer}");
        assert!(answer.ends_with("\r\n\r\nsorry"), "{answer}");
        assert_eq!(header(&answer, "content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(header(&answer, "etag"), None, "it is no version of what was asked for");
    }
    assert!(server.get("/a").ends_with("\r\n\r\na"));
    assert_eq!(status(&server.get("/404.html")), "200");
    let server = Server::new(dir.path(), &["--fallback", "app/index.html"]);
    let answer = server.get("/some/where?x");
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(answer.ends_with("\r\n\r\napp"), "{answer}");
    let tag = format!("if-none-match: {}\r\n", header(&answer, "etag").expect("a tag"));
    assert_eq!(status(&get(&server.addresses[0], "/else/where", &tag)), "304");
    assert!(server.get("/.env").ends_with("\r\n\r\napp"), "hidden is as not there");
    let mut post = connect(&server.addresses[0]);
    let request =
        "POST /none HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    post.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    post.read_to_string(&mut answer).expect("it closes");
    assert_eq!(status(&answer), "405");
}

/// Large pages are mapped as any file is.
#[test]
fn a_page_in_place_is_sent_without_being_read() {
    let page = "x".repeat(1 << 20);
    let dir = files(&[("404.html", &page)]);
    let server =
        Server::new(dir.path(), &["--not-found-page", "404.html", "--admin", "127.0.0.1:0"]);
    assert!(server.get("/none").ends_with(&page));
    let text = server.metrics();
    assert!(text.contains("sendfile2_http_bodies_total{became=\"mapped\"} 1\n"), "{text}");
}

#[test]
fn pages_of_other_origins() {
    let dir = files(&[("a", "a")]);
    let server = Server::new(dir.path(), &["--cors", "https://a.example,http://b.example:81"]);
    let allowed = "access-control-allow-origin";
    let answer = get(&server.addresses[0], "/a", "origin: http://b.example:81\r\n");
    assert_eq!(header(&answer, allowed), Some("http://b.example:81"), "{answer}");
    assert!(header(&answer, "vary").is_some_and(|vary| vary.contains("origin")), "{answer}");
    let answer = get(&server.addresses[0], "/a", "origin: https://c.example\r\n");
    assert_eq!(header(&answer, allowed), None, "{answer}");
    let mut asked = connect(&server.addresses[0]);
    let request = "OPTIONS /a HTTP/1.1\r\nhost: x\r\norigin: https://a.example\r\n\
                   access-control-request-method: GET\r\nconnection: close\r\n\r\n";
    asked.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    asked.read_to_string(&mut answer).expect("it closes");
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!(header(&answer, allowed), Some("https://a.example"), "{answer}");
    assert_eq!(header(&answer, "access-control-allow-methods"), Some("GET,HEAD"), "{answer}");
    let server = Server::new(dir.path(), &["--cors", "*"]);
    assert_eq!(header(&server.get("/a"), allowed), Some("*"));
    let server = Server::new(dir.path(), &[]);
    assert_eq!(header(&server.get("/a"), allowed), None);
}

#[test]
fn what_is_compressed_beforehand() {
    let dir = files(&[("a.html", "plain"), ("a.html.gz", "gz"), ("a.html.br", "br"), ("b", "b")]);
    let server = Server::new(dir.path(), &["--precompressed"]);
    let with = |accepts: &str| {
        get(&server.addresses[0], "/a.html", &format!("accept-encoding: {accepts}\r\n"))
    };
    for (accepts, encoding, body) in
        [("gzip", Some("gzip"), "gz"), ("gzip, br", Some("br"), "br"), ("zstd", None, "plain")]
    {
        let answer = with(accepts);
        assert_eq!(header(&answer, "content-encoding"), encoding, "{answer}");
        assert_eq!(header(&answer, "content-type"), Some("text/html; charset=utf-8"));
        assert_eq!(header(&answer, "vary"), Some("accept-encoding"));
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{answer}");
    }
    let server = Server::new(dir.path(), &[]);
    assert!(get(&server.addresses[0], "/a.html", "accept-encoding: br\r\n").ends_with("plain"));
}

#[test]
fn text_names_its_encoding() {
    let dir = files(&[("a.html", ""), ("a.css", ""), ("a.js", ""), ("a.csv", ""), ("a.png", "")]);
    for (args, behind) in [
        (&[][..], "; charset=utf-8"),
        (&["--charset", "iso-8859-1"], "; charset=iso-8859-1"),
        (&["--charset", ""], ""),
    ] {
        let server = Server::new(dir.path(), args);
        for (name, of) in [
            ("a.html", "text/html"),
            ("a.css", "text/css"),
            ("a.js", "text/javascript"),
            ("a.csv", "text/csv"),
        ] {
            let answer = server.get(&format!("/{name}"));
            assert_eq!(header(&answer, "content-type"), Some(&*format!("{of}{behind}")), "{name}");
        }
        assert_eq!(header(&server.get("/a.png"), "content-type"), Some("image/png"));
    }
}

#[test]
fn names_with_a_dot_are_not_served_unless_they_are_to_be() {
    let dir = files(&[(".env", "secret"), (".git/config", "secret"), (".well-known/a", "known")]);
    let hidden = ["/.env", "/.git/config", "/%2eenv", "/%2E%67it/config", "//.env", "/x/../.env"];
    let server = Server::new(dir.path(), &["--list-directories"]);
    for path in hidden {
        let answer = server.get(path);
        assert!(!answer.contains("secret") && status(&answer) != "200", "{path}: {answer}");
    }
    assert!(!server.get("/.git/").contains("config"));
    assert!(!server.get("/").contains(".env"));
    assert!(server.get("/.well-known/a").ends_with("known"));
    let server = Server::new(dir.path(), &["--dotfiles"]);
    for path in &hidden[..4] {
        assert!(server.get(path).ends_with("secret"), "{path}");
    }
}

#[test]
fn directories_are_listed_where_they_are_to_be() {
    let dir = files(&[
        ("d/b & c.txt", "12345"),
        ("d/e/f", "f"),
        ("d/.hidden", ""),
        ("i/index.html", "i"),
    ]);
    let server = Server::new(dir.path(), &[]);
    assert_eq!(status(&server.get("/d/")), "404", "not if nobody asked for it");
    let outside = files(&[("secret", "")]);
    std::os::unix::fs::symlink(outside.path(), dir.path().join("out")).expect("a link");
    std::fs::write(dir.path().join("d").join("\u{fc}<b>"), "").expect("a file");
    let server = Server::new(dir.path(), &["--list-directories"]);
    let page = server.get("/d/");
    assert_eq!(
        (status(&page), header(&page, "content-type")),
        ("200", Some("text/html; charset=utf-8"))
    );
    assert!(
        page.contains("<a href=\"./b%20%26%20c%2Etxt\">b &amp; c.txt</a><td>5<td>20"),
        "{page}"
    );
    assert!(page.contains("<a href=\"./e/\">e/</a>") && page.contains("\u{fc}&lt;b&gt;"), "{page}");
    assert!(page.contains("href=\"../\"") && !page.contains("hidden"), "{page}");
    assert!(!server.get("/").contains("href=\"../\""), "there is nothing above it");
    assert!(server.get("/d/b%20%26%20c%2Etxt").ends_with("12345"), "the link leads there");
    assert!(server.get("/i/").ends_with("\r\n\r\ni"), "an index comes first");
    assert_eq!(header(&server.get("/d"), "location"), Some("/d/"));
    for path in ["/out/", "/d/../../", "/d/%2e%2e/%2e%2e/", "/none/", "/d/e/f/"] {
        let answer = server.get(path);
        assert_eq!(status(&answer), "404", "{path}: {answer}");
    }
    let mut head = connect(&server.addresses[0]);
    head.write_all(b"HEAD /d/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    head.read_to_string(&mut answer).expect("it closes");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    let server = Server::new(dir.path(), &["--list-directories", "--follow-links-out"]);
    assert!(server.get("/out/").contains("./secret"));
}

#[test]
fn a_listing_tells_nothing_of_where_links_lead_out() {
    let dir = files(&[("d/here", "12345"), ("above", "1234567")]);
    let outside = files(&[("secret", "123")]);
    let link = |to: &Path, name| {
        std::os::unix::fs::symlink(to, dir.path().join("d").join(name)).expect("a link");
    };
    link(&outside.path().join("secret"), "out");
    link(Path::new("../above"), "up");
    link(Path::new("nowhere"), "broken");
    let server = Server::new(dir.path(), &["--list-directories"]);
    let page = server.get("/d/");
    assert!(page.contains("./here") && !page.contains("out") && !page.contains("broken"), "{page}");
    assert!(page.contains(">up</a><td>7<td>"), "{page}");
}

#[test]
fn an_address_has_no_more_than_it_may() {
    let dir = files(&[("a", "a")]);
    let limits = ["--max-connections-per-address", "2", "--admin", "127.0.0.1:0"];
    let server = Server::new(dir.path(), &limits);
    let mut two = [(); 2].map(|()| BufReader::new(connect(&server.addresses[0])));
    for client in &mut two {
        assert_eq!(ask(client, "/a"), "a");
    }
    let mut third = connect(&server.addresses[0]);
    let read = third.read(&mut [0; 1]);
    assert!(matches!(read, Ok(0) | Err(_)), "it is closed: {read:?}");
    let other = "--interface";
    if have("curl") {
        let url = format!("http://{}/a", server.addresses[0]);
        assert_eq!(curl(&[other, "127.0.0.2", &url]), "a", "others have their own");
    }
    assert!(server.metrics().contains("sendfile2_http_refused_total{what=\"connection\"} 1\n"));
    drop(two);
    until("they are counted no more", || {
        let mut client = connect(&server.addresses[0]);
        let asked = client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let mut answer = String::new();
        asked.and_then(|()| client.read_to_string(&mut answer)).is_ok_and(|_| answer.ends_with('a'))
    });

    let limits = ["--max-requests-per-address", "1", "--trusted-proxy", "127.0.0.2"];
    let server = Server::new(dir.path(), &limits);
    // So many within one second that one of them must be too many.
    let answers: Vec<String> = (0..20).map(|_| server.get("/a")).collect();
    assert_eq!(status(&answers[0]), "200");
    let refused = answers.iter().find(|answer| status(answer) == "429").expect("too many");
    assert_eq!(header(refused, "retry-after"), Some("1"));
    if have("curl") {
        let url = format!("http://{}/a", server.addresses[0]);
        for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            let forwarded = format!("x-forwarded-for: {client}");
            let args = [other, "127.0.0.2", "-H", &forwarded, &url];
            assert_eq!(curl(&args), "a", "each client of a trusted proxy is one");
        }
    }
}
