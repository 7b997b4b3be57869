//! A balancer (`HAProxy`, nginx) before three caches, as docs/cache.md configures it, each in a network namespace of its
//! own: one is killed under load, and comes back, and no client sees an error.

mod common;
#[path = "../../sendfile2/tests/common/namespaces.rs"]
mod namespaces;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;

use common::{Server, get, have, number, until};
use namespaces::Veth;

const TARGETS: usize = 60;
/// Requests in each part of the test.
const REQUESTS: u64 = 600;

/// A cache with a store that outlives it, in the namespace of this number. It has the addresses of
/// docs/cache.md, but for the network.
fn cache(n: u8, place: &Veth, origin: &str, store: &Path) -> Server {
    let [nsenter, options @ ..] = place.over_there();
    let mut command = Command::new(nsenter);
    command.args(options).arg(env!("CARGO_BIN_EXE_sendfile2-server"));
    let origin = format!("http://10.7.{n}.1:{origin}");
    command.args(["cache", "--origin", &origin, "--size", "64M", "--store"]).arg(store);
    command.args(["--listen", &format!("10.7.{n}.2:8080")]);
    command.args(["--admin", &format!("10.7.{n}.2:9090")]).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let (mut listening, mut metrics) = (None, None);
    while listening.is_none() || metrics.is_none() {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended early");
        let address = line.trim().rsplit(' ').next().map(str::to_owned);
        if line.contains("metrics") {
            metrics = address;
        } else if line.contains("listening") {
            listening = address;
        }
    }
    Server { child, addresses: listening.into_iter().chain(metrics).collect(), stderr }
}

struct Balancer(Child);

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A configuration of docs/cache.md, whose lines are changed where `line` says so: by the words of it,
/// and by the caches that were not used yet.
fn configured(
    language: &str,
    caches: &[Server],
    line: impl Fn(&[&str], &mut std::slice::Iter<'_, Server>) -> Option<String>,
) -> String {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cache.md");
    let docs = std::fs::read_to_string(docs).expect("it is there");
    let (_, shown) = docs.split_once(&format!("```{language}\n")).expect("a configuration");
    let (shown, _) = shown.split_once("```").expect("its end");
    let mut servers = caches.iter();
    let lines = shown.lines().map(|shown| {
        let words: Vec<_> = shown.split_whitespace().collect();
        line(&words, &mut servers).unwrap_or_else(|| shown.to_owned())
    });
    let configuration = lines.collect::<Vec<_>>().join("\n") + "\n";
    assert!(servers.next().is_none(), "{configuration}");
    configuration
}

fn haproxy(caches: &[Server], socket: &Path) -> Command {
    let configuration = configured("haproxy", caches, |words, servers| match words {
        ["bind", ..] => Some(format!("    bind unix@{}", socket.display())),
        ["server", name, ..] => {
            let cache = &servers.next().expect("as many as in the page").addresses;
            let (_, checked) = cache[1].rsplit_once(':').expect("a port");
            let checks = "inter 100ms fall 2 rise 1";
            Some(format!("    server {name} {} check port {checked} {checks}", cache[0]))
        }
        _ => None,
    });
    let file = socket.with_file_name("haproxy.cfg");
    std::fs::write(&file, configuration).expect("a file");
    let mut command = Command::new("haproxy");
    command.args(["-db", "-q", "-f"]).arg(file);
    command
}

fn nginx(caches: &[Server], socket: &Path) -> Command {
    let shown = configured("nginx", caches, |words, servers| match words {
        ["listen", ..] => Some(format!("    listen unix:{};", socket.display())),
        ["server", _, more @ ..] if !more.is_empty() => {
            let cache = &servers.next().expect("as many as in the page").addresses;
            Some(format!("    server {} {}", cache[0], more.join(" ")))
        }
        _ => None,
    });
    let dir = socket.parent().expect("a directory").display();
    let own = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|of| format!("{of}_temp_path {dir}/{of};\n"))
        .concat();
    // The namespaces have no other user.
    let configuration = format!(
        "user root; daemon off; master_process off; pid {dir}/pid; error_log {dir}/errors;\n\
         events {{}}\nhttp {{ access_log off;\n{own}{shown}}}\n"
    );
    let file = socket.with_file_name("nginx.conf");
    std::fs::write(&file, configuration).expect("a file");
    let mut command = Command::new("nginx");
    command.args(["-e".as_ref(), socket.with_file_name("errors").as_os_str(), "-c".as_ref()]);
    command.arg(file);
    command
}

/// Asks for a target; returns whether it was a hit.
fn asks(socket: &Path, target: usize) -> Result<bool, String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| e.to_string())?;
    let request = format!("GET /{target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|e| e.to_string())?;
    let right = answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&body(target));
    if right { Ok(answer.contains("cache-status: sendfile2; hit")) } else { Err(answer) }
}

fn body(target: usize) -> String {
    format!("\r\n\r\n{}", format!("{target:04}").repeat(1000))
}

const VETH: &str = "ip link add v0 type veth peer name v1";

#[test]
fn a_cache_that_is_killed_and_comes_back_is_no_error_to_anybody() {
    let test = "a_cache_that_is_killed_and_comes_back_is_no_error_to_anybody";
    if have("haproxy") && namespaces::inside(test, VETH) {
        no_client_sees_an_error(haproxy);
    }
}

#[test]
fn nor_behind_nginx() {
    if have("nginx") && namespaces::inside("nor_behind_nginx", VETH) {
        no_client_sees_an_error(nginx);
    }
}

fn no_client_sees_an_error(balancer: fn(&[Server], &Path) -> Command) {
    let dir = common::files();
    for target in 0..TARGETS {
        let contents = &body(target)[4..];
        std::fs::write(dir.path().join(target.to_string()), contents).expect("a file");
    }
    let args = ["--listen", "0.0.0.0:0", "--cache-control", "*=max-age=600"];
    let origin = Server::new(dir.path(), &args);
    let stores = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let places = [0, 1, 2].map(Veth::numbered);
    let start = |n: u8| {
        cache(n, &places[usize::from(n)], origin.port(), &stores.path().join(n.to_string()))
    };
    let mut caches = [0, 1, 2].map(start);
    let socket = stores.path().join("socket");
    let _balancer = Balancer(balancer(&caches, &socket).spawn().expect("it starts"));
    until("the balancer listens", || UnixStream::connect(&socket).is_ok());
    until("everything is stored", || (0..TARGETS).all(|n| asks(&socket, n) == Ok(true)));

    let (asked, hits, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let client = |seed: usize| {
        let mut target = seed;
        while !over.load(Relaxed) {
            target = (target + 7) % TARGETS;
            let hit = asks(&socket, target).expect("an answer");
            hits.fetch_add(u64::from(hit), Relaxed);
            asked.fetch_add(1, Relaxed);
        }
    };
    // So many requests later. A client that has seen an error has ended, and its panic is the test's.
    let more = |clients: &[ScopedJoinHandle<'_, ()>]| {
        let (before, hits_before) = (asked.load(Relaxed), hits.load(Relaxed));
        until("the clients have gone on", || {
            asked.load(Relaxed) >= before + REQUESTS
                || clients.iter().any(ScopedJoinHandle::is_finished)
        });
        let asked = asked.load(Relaxed) - before;
        format!("{} of {asked} requests were hits", hits.load(Relaxed) - hits_before)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|seed| scope.spawn(move || client(seed))).collect();
        println!("three caches: {}", more(&clients));
        caches[0].child.kill().expect("it runs");
        caches[0].child.wait().expect("it ends");
        println!("one of them killed: {}", more(&clients));
        caches[0] = start(0);
        let admin = caches[0].addresses[1].clone();
        let served = || {
            number(&get(&admin, "/metrics"), "sendfile2_cache_requests_total{result=\"hit\"}") > 0.0
        };
        until("it serves from its store again", || {
            served() || clients.iter().any(ScopedJoinHandle::is_finished)
        });
        println!("and back, with its store: {}", more(&clients));
        over.store(true, Relaxed);
        clients.into_iter().for_each(|client| client.join().expect("no error"));
    });
}
