//! `sendfile2 cache` as its users meet it, before `sendfile2 serve`.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use common::{Server, ask, certificate, curl, files, get, have, number, status};

/// A cache before these origins; the address of each `--listen`, and then the admin's.
fn cache(origins: &[&str], args: &[&str]) -> Server {
    cache_by(Command::new(env!("CARGO_BIN_EXE_sendfile2-server")), origins, args)
}

fn cache_by(mut command: Command, origins: &[&str], args: &[&str]) -> Server {
    command.arg("cache").args(args).stderr(Stdio::piped());
    for origin in origins {
        command.args(["--origin", origin]);
    }
    let mut child = command.spawn().expect("it starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
    let (mut addresses, mut admin) = (Vec::new(), None);
    let wanted = args.iter().filter(|arg| **arg == "--listen" || **arg == "--admin").count();
    while addresses.len() + usize::from(admin.is_some()) < wanted {
        let mut line = String::new();
        assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended early");
        let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
        if line.contains("metrics") {
            admin = Some(address);
        } else if line.contains("listening") {
            addresses.push(address);
        }
    }
    addresses.extend(admin);
    Server { child, addresses, stderr }
}

#[test]
fn files_of_another_server_are_answered_from_the_store() {
    let dir = files();
    let origin =
        Server::new(dir.path(), &["--listen", "127.0.0.1:0", "--cache-control", "*=max-age=60"]);
    let url = format!("http://{}", origin.addresses[0]);
    let mut cache = cache(&[&url], &["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let at = &cache.addresses[0].clone();
    assert!(get(at, "/small").contains("cache-status: sendfile2; fwd=uri-miss; stored\r\n"));
    // It is stored when its last byte has come, which its reader has had then.
    common::until("a hit", || get(at, "/small").contains("cache-status: sendfile2; hit; ttl="));
    let part = b"GET /small HTTP/1.1\r\nhost: x\r\nrange: bytes=2-4\r\nconnection: close\r\n\r\n";
    let part = ask(at, part);
    assert_eq!(status(&part), Some(206));
    assert!(
        part.contains("content-range: bytes 2-4/10\r\n") && part.ends_with("\r\n\r\n234"),
        "{part}"
    );
    let metrics = get(&cache.addresses[1], "/metrics");
    assert!(number(&metrics, "sendfile2_cache_requests_total{result=\"hit\"}") >= 2.0, "{metrics}");
    let page = get(&cache.addresses[1], "/cache");
    assert!(page.contains("refresh: 2\r\n") && page.contains("<p>1 responses, 10 "), "{page}");
    let json = get(&cache.addresses[1], "/cache.json");
    assert!(json.contains("application/json") && json.contains("\"objects\":1,"), "{json}");
    let regions = json.matches("\"state\":").count();
    assert!(regions > 1 && page.matches("<rect ").count() == regions, "{page}");
    assert_eq!(page.matches("<rect class=\"open\"").count(), json.matches("\"open\"").count());
    // A reload leaves the store as it is.
    let pid = rustix::process::Pid::from_child(&cache.child);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is there");
    let mut line = String::new();
    while !line.contains("reloaded") {
        line.clear();
        assert_ne!(cache.stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
    }
    assert!(get(at, "/small").contains("cache-status: sendfile2; hit; ttl="));
    if have("curl") {
        // What is larger than a window, twice: from the origin, and mapped.
        let url = format!("http://{at}/large");
        for _ in 0..2 {
            let got = curl(&["-o", "/dev/null", "-w", "%{size_download}", &url]);
            assert_eq!(String::from_utf8_lossy(&got.stdout), (64 << 20).to_string());
        }
    }
}

/// In memory, by a lease, and in parts: by each version of HTTP.
#[test]
fn a_hit_has_the_same_bytes_by_each_version_of_http() {
    if !have("curl") {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // The store that is in no file takes at most 2 MB in one part.
    let lens: [usize; 6] = [0, 1, 16 << 10, (16 << 10) + 1, 200_000, 3_000_000];
    let body = |len: usize| {
        let words = (0..=len / 8).map(|word| format!("{word:08}")).collect::<String>();
        words.as_bytes()[..len].to_vec()
    };
    for len in lens {
        std::fs::write(dir.path().join(len.to_string()), body(len)).expect("it is written");
    }
    let args = ["--listen", "127.0.0.1:0", "--cache-control", "*=max-age=600"];
    let origin = Server::new(dir.path(), &args);
    let url = format!("http://{}", origin.addresses[0]);
    let cache = cache(&[&url], &["--listen", "127.0.0.1:0"]);
    let got = dir.path().join("got");
    for len in lens {
        let url = format!("http://{}/{len}", cache.addresses[0]);
        let ask = |args: &[&str]| {
            let _ = std::fs::remove_file(&got);
            let out = got.to_str().expect("UTF-8");
            let head = curl(&[&["-D", "-", "-o", out, &url], args].concat());
            assert!(head.status.success(), "{len} {args:?}: {head:?}");
            // curl makes no file of nothing.
            let body = std::fs::read(&got).unwrap_or_default();
            (String::from_utf8(head.stdout).expect("text").to_ascii_lowercase(), body)
        };
        common::until("a hit", || ask(&[]).0.contains("cache-status: sendfile2; hit"));
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let parts = [("0-0", 0..1), ("-7", len.saturating_sub(7)..len), ("", 0..len)];
            for (range, at) in parts.into_iter().filter(|(range, _)| len > 0 || range.is_empty()) {
                let range: &[&str] = if range.is_empty() { &[] } else { &["-r", range] };
                let (head, got) = ask(&[&[version], range].concat());
                assert!(head.contains("cache-status: sendfile2; hit"), "{version} {len}: {head}");
                assert!(head.contains(&format!("content-length: {}\r\n", at.len())), "{head}");
                assert!(got == body(len)[at], "{version} {len} {range:?}: {} bytes", got.len());
            }
            let (head, got) = ask(&[version, "-I"]);
            assert!(head.contains(&format!("content-length: {len}\r\n")), "{head}");
            assert!(version == "--http1.1" || head.starts_with("http/2 200"), "{head}");
            assert!(!got.starts_with(b"0"), "a body to HEAD");
        }
    }
    // What the cache has to say itself is no body of HEAD, either.
    drop(origin);
    let url = format!("http://{}/other", cache.addresses[0]);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let gone = curl(&[version, "-I", "-o", "/dev/null", "-w", "%{http_code}", &url]);
        assert_eq!(String::from_utf8_lossy(&gone.stdout), "502", "{gone:?}");
        assert!(gone.status.success(), "{gone:?}");
    }
}

#[test]
fn an_origin_is_asked_by_https_if_its_certificate_is_right() {
    let dir = files();
    if !have("openssl") {
        return;
    }
    let (cert, key) = certificate(dir.path());
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    let origin = Server::new(dir.path(), &tls);
    for (host, expected) in [("localhost", 200), ("127.0.0.1", 502)] {
        let url = format!("https://{host}:{}", origin.port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
        command.env("SSL_CERT_FILE", &cert);
        let cache = cache_by(command, &[&url], &["--listen", "127.0.0.1:0"]);
        let answer = get(&cache.addresses[0], "/small");
        assert_eq!(status(&answer), Some(expected), "{url}: {answer}");
    }
}

#[test]
fn interim_answers_come_before_the_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("it listens");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let origin = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
        while lines.next().is_some_and(|line| !line.expect("text").is_empty()) {}
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").expect("it reads");
        goes.recv().expect("it is told");
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";
        stream.write_all(answer).expect("it reads");
    });
    let cache = cache(&[&url], &["--listen", "127.0.0.1:0"]);
    let mut client = TcpStream::connect(&cache.addresses[0]).expect("it listens");
    let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    client.write_all(request).expect("it reads");
    let interim = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let mut first = vec![0; interim.len()];
    // It is here before there is anything else.
    client.read_exact(&mut first).expect("it comes");
    assert_eq!(String::from_utf8_lossy(&first), String::from_utf8_lossy(interim));
    go.send(()).expect("it waits");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("text");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("body"), "{answer}");
    origin.join().expect("no panic");
}

/// Answers are for others, too: what one client says of its host or address makes none of them.
#[test]
fn an_origin_is_told_of_clients_by_trusted_proxies_only() {
    for (trusts, told) in [(None, "127.0.0.1"), (Some("127.0.0.0/8"), "192.0.2.1,127.0.0.1")] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("it listens");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let origin = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
            let lines = lines.map(|line| line.expect("text")).take_while(|line| !line.is_empty());
            let lines: Vec<_> = lines.collect();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer).expect("it reads");
            lines
        });
        let mut args = vec!["--listen", "127.0.0.1:0"];
        args.extend(trusts.iter().flat_map(|network| ["--trusted-proxy", network]));
        let cache = cache(&[&url], &args);
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nx-forwarded-for: 192.0.2.1\r\n\
            x-forwarded-host: other\r\nforwarded: host=other\r\nx-original-url: /other\r\n\
            x-rewrite-url: /other\r\nx-http-method-override: PUT\r\n\
            x_forwarded_host: other\r\nx-forwarded_proto: https\r\n\
            connection: close, x-forwarded-for\r\n\r\n";
        assert_eq!(status(&ask(&cache.addresses[0], request)), Some(200));
        let lines = origin.join().expect("no panic");
        let values = |name| lines.iter().filter_map(move |line| line.strip_prefix(name));
        let addresses: Vec<_> = values("x-forwarded-for: ").collect();
        assert_eq!(addresses.join(","), told, "{lines:?}");
        let said = ["x-forwarded-host", "forwarded", "x-original-url", "x-rewrite-url"];
        let said = said.iter().chain(&["x-http-method-override"]);
        // The same, where fields become variables.
        let said = said.chain(&["x_forwarded_host", "x-forwarded_proto"]);
        let said =
            said.filter(|name| lines.iter().any(|line| line.starts_with(&format!("{name}: "))));
        assert_eq!(said.count(), if trusts.is_some() { 7 } else { 0 }, "{lines:?}");
    }
}

#[test]
fn an_origin_that_is_down_is_told_and_shown() {
    let dir = files();
    std::fs::write(dir.path().join("well"), "").expect("a file");
    let origin = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let url = format!("http://{}", origin.addresses[0]);
    // Of no use, but the second of two.
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("an address");
    let gone = format!("http://{gone}");
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let health = ["--health-path", "/well", "--health-interval", "100ms", "--health-fails", "2"];
    let mut cache = cache(&[&url, &gone], &[&listen[..], &health].concat());
    let mut line = String::new();
    while !line.contains(&format!("the origin {gone} is down: ")) {
        line.clear();
        assert_ne!(cache.stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
    }
    let (at, admin) = (&cache.addresses[0], &cache.addresses[1]);
    let up = |url: &str| format!("sendfile2_cache_origin_up{{origin=\"{url}\"}}");
    common::until("it is shown", || number(&get(admin, "/metrics"), &up(&gone)) == 0.0);
    assert!(number(&get(admin, "/metrics"), &up(&url)) > 0.5);
    let page = get(admin, "/cache");
    let shown = format!("<p>origins: {url} is up, <b>{gone} is down</b>");
    assert!(page.contains(&shown), "{page}");
    let json = get(admin, "/cache.json");
    assert!(json.contains(&format!("{{\"up\":false,\"url\":\"{gone}\"}}")), "{json}");
    assert_eq!(status(&get(at, "/small")), Some(200));
}

#[test]
fn why_no_answer_came_is_told() {
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("an address");
    let mut cache = cache(&[&format!("http://{gone}")], &["--listen", "127.0.0.1:0"]);
    assert_eq!(status(&get(&cache.addresses[0], "/path")), Some(502));
    let mut line = String::new();
    while !line.starts_with("sendfile2: no answer from the origin http://") {
        line.clear();
        assert_ne!(cache.stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
    }
    assert!(line.contains("/path: ") && line.contains("refused"), "{line}");
}

#[test]
fn what_is_wrong_is_said_before_a_store_is_made() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    for (args, told) in [
        (&[][..], "which origin?"),
        (&["--origin", "ftp://x"], "--origin: \"ftp://x\" is no origin"),
        (&["--origin", "http://x/path"], "is no origin"),
        (&["--origin", "http://x", "--tls-cert", "x"], "belong together"),
        (&["--origin", "http://x", "--health-path", "x"], "--health-path: \"x\" is no path"),
    ] {
        let server = env!("CARGO_BIN_EXE_sendfile2-server");
        let mut command = Command::new(server);
        command.arg("cache").arg("--store").arg(&store).args(args);
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains(told), "{args:?}: {text}");
        assert!(!store.exists(), "{args:?}");
    }
}

#[test]
fn with_tls_the_port_of_http_is_another_target() {
    let dir = files();
    if !have("openssl") || !have("curl") {
        return;
    }
    let origin =
        Server::new(dir.path(), &["--listen", "127.0.0.1:0", "--cache-control", "*=max-age=60"]);
    let (cert, key) = certificate(dir.path());
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    let cache = cache(&[&format!("http://{}", origin.addresses[0])], &tls);
    let url = format!("https://{}/small", cache.addresses[0]);
    let how = |host: &str| {
        let host = format!("host: {host}");
        let got =
            curl(&["-k", "--http1.1", "-D", "-", "-o", "/dev/null", "-H", &host, &url]).stdout;
        let head = String::from_utf8_lossy(&got).into_owned();
        head.lines().find_map(|line| line.strip_prefix("cache-status: ")).map(str::to_owned)
    };
    let is_hit = |host: &str| how(host).is_some_and(|how| how.starts_with("sendfile2; hit"));
    common::until("a hit", || is_hit("h"));
    assert!(is_hit("h:443"));
    assert_eq!(how("h:80").as_deref(), Some("sendfile2; fwd=uri-miss; stored"));
}

#[test]
fn what_was_purged_does_not_come_back() {
    let dir = files();
    for name in ["url", "prefix", "tag", "other"] {
        std::fs::create_dir(dir.path().join(name)).expect("a directory");
        std::fs::write(dir.path().join(name).join("file"), name).expect("a file");
    }
    let tag = "/tag/*=Cache-Tag: red, a&b";
    let args = ["--listen", "127.0.0.1:0", "--cache-control", "*=max-age=60", "--header", tag];
    let origin = Server::new(dir.path(), &args);
    let url = format!("http://{}", origin.addresses[0]);
    let store = dir.path().join("store").display().to_string();
    let args =
        ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--store", &store, "--size", "64M"];
    let paths = ["/url/file", "/prefix/file", "/tag/file", "/other/file"];
    let is_hit = |at: &str, path| get(at, path).contains("cache-status: sendfile2; hit; ttl=");
    let purge = |at: &str, form: &str, more: &str| {
        let len = form.len();
        let head = format!("POST /purge HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}");
        let request = format!("{head}content-length: {len}\r\n\r\n{form}");
        ask(at, request.as_bytes())
    };
    let forms = ["url=http://x/url/file", "prefix=http://x/prefix", "tag=a%26b"];
    {
        let mut cache = cache(&[&url], &args);
        let (at, admin) = (&cache.addresses[0].clone(), &cache.addresses[1].clone());
        for path in paths {
            common::until("a hit", || is_hit(at, path));
        }
        for form in ["", "tag=", "url=/url/file", "what=x"] {
            let answer = purge(admin, form, "");
            assert_eq!(status(&answer), Some(400), "{form}: {answer}");
            assert!(!answer.ends_with("\r\n\r\n"), "it says why");
        }
        assert_eq!(status(&purge(admin, forms[0], "origin: http://y\r\n")), Some(403));
        assert_eq!(status(&get(admin, "/purge")), Some(405));
        assert!(is_hit(at, paths[0]));
        for form in forms {
            let answer = purge(admin, form, "");
            assert_eq!(status(&answer), Some(200), "{form}: {answer}");
        }
        cache.child.kill().expect("it runs");
        cache.child.wait().expect("it ends");
    }
    let cache = cache(&[&url], &args);
    let at = &cache.addresses[0];
    for path in &paths[..3] {
        let answer = get(at, path);
        assert!(answer.contains("cache-status: sendfile2; fwd=uri-miss"), "{path}: {answer}");
    }
    // Control: what was not purged is there.
    assert!(is_hit(at, paths[3]));
}

/// The reader of an answer when the server is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Stays,
    Leaves,
}

#[test]
fn what_is_being_stored_at_the_end_is_there_at_the_next_start_or_not_at_all() {
    const LENGTH: usize = 1 << 20;
    let half = || vec![b'1'; LENGTH / 2];
    for (reader, sends_all) in
        [(Reader::Stays, true), (Reader::Leaves, true), (Reader::Leaves, false)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").expect("it listens");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (go, goes) = std::sync::mpsc::channel::<Vec<u8>>();
        let origin = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
            while lines.next().is_some_and(|line| !line.expect("text").is_empty()) {}
            let head = format!(
                "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: {LENGTH}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("it reads");
            // The cache may be gone.
            while goes.recv().is_ok_and(|bytes| stream.write_all(&bytes).is_ok()) {}
            listener
        });
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let store = dir.path().join("store").display().to_string();
        let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
        let args = [&args[..], &["--store", &store, "--size", "64M"]].concat();
        let mut first = cache(&[&url], &args);
        let mut client = common::connect(&first.addresses[0]);
        let request = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        client.write_all(request).expect("it reads");
        go.send(half()[1..].to_vec()).expect("it runs");
        client.read_exact(&mut [0; 100]).expect("it comes");
        let client = (reader == Reader::Stays).then_some(client);
        go.send(b"1".to_vec()).expect("it runs");
        if client.is_none() {
            let admin = first.addresses[1].clone();
            common::until("the connection ends", || {
                let metrics = get(&admin, "/metrics");
                number(&metrics, "sendfile2_http_connections") < 0.5
            });
        }
        let pid = rustix::process::Pid::from_child(&first.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is there");
        let mut line = String::new();
        while !line.contains("ending") {
            line.clear();
            assert_ne!(first.stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
        }
        if sends_all {
            go.send(half()).expect("it runs");
        }
        if let Some(mut client) = client {
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).expect("it comes");
            assert!(answer.len() > LENGTH - 100, "{}", answer.len());
        }
        assert!(first.child.wait().expect("it ends").success());
        drop(go);
        let listener = origin.join().expect("no panic");
        drop(first);
        let second = cache(&[&url], &args);
        let asks = std::thread::scope(|scope| {
            let asks = scope.spawn(|| get(&second.addresses[0], "/"));
            if !sends_all {
                // The origin is asked anew.
                let (mut stream, _) = listener.accept().expect("a connection");
                let mut lines = BufReader::new(stream.try_clone().expect("a handle")).lines();
                while lines.next().is_some_and(|line| !line.expect("text").is_empty()) {}
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew";
                stream.write_all(answer).expect("it reads");
            }
            asks.join().expect("no panic")
        });
        if sends_all {
            assert!(asks.contains("cache-status: sendfile2; hit"), "{reader:?}: {:.200}", asks);
            assert!(asks.ends_with(&"1".repeat(LENGTH)), "{reader:?}: {:.200}", asks);
        } else {
            assert!(asks.ends_with("\r\n\r\nnew"), "{asks:.200}");
        }
    }
}
