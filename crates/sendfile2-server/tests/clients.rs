//! What real clients found: each with the client that did.

mod common;

use std::io::{Read, Write};
use std::process::Command;

use common::{Server, ask, certificate, connect, curl, files, have, python, status};

#[test]
fn curl_gets_ranges_by_every_version_of_http() {
    if !have("curl") || !have("openssl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let plain = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &*cert, "--tls-key", &*key];
    let tls = Server::new(dir.path(), &tls);
    let plain = format!("http://localhost:{}/small", plain.port());
    let tls = format!("https://localhost:{}/small", tls.port());
    for (version, url) in [
        ("--http1.1", &plain),
        ("--http2-prior-knowledge", &plain),
        ("--http1.1", &tls),
        ("--http2", &tls),
    ] {
        for (range, answer) in [
            ("-500", "0123456789 206"),
            ("008-", "89 206"),
            ("10-", " 416"),
            ("0-1,4-5", "0123456789 200"),
        ] {
            let args = ["--cacert", &*cert, version, "-w", " %{http_code}", "-r", range, url];
            let got = String::from_utf8(curl(&args).stdout).expect("UTF-8");
            assert_eq!(got, answer, "{version} {range} {url}");
        }
    }
}

/// A megabyte to a file, ten times on connections of its own.
const POST: &str = r#"
import http.client, ssl, sys
secure, port = sys.argv[1] == "https", int(sys.argv[2])
context = ssl.create_default_context(cafile=sys.argv[3]) if secure else None
# Java's, too, asks for HTTP/2 in that way.
upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
seen = []
for headers in [{}, upgrade] * 5:
    if secure: client = http.client.HTTPSConnection("localhost", port, timeout=60, context=context)
    else: client = http.client.HTTPConnection("localhost", port, timeout=60)
    try:
        client.request("POST", "/small", b"x" * 1000000, headers)
        answer = client.getresponse()
        seen.append("%d/%s" % (answer.status, answer.getheader("connection")))
    except OSError as e:
        seen.append(repr(e))
    client.close()
print(*seen)
"#;

#[test]
fn python_reads_the_answer_to_a_megabyte_that_nobody_wants() {
    if !have("python3") || !have("openssl") || !have("curl") {
        return;
    }
    let dir = files();
    let (cert, key) = certificate(dir.path());
    let plain = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &*cert, "--tls-key", &*key];
    let tls = Server::new(dir.path(), &tls);
    // Without the header a client would send its next request where nobody answers.
    let expected = ["405/close"; 10].join(" ");
    assert_eq!(python(POST, &["http", plain.port(), &cert]), expected);
    assert_eq!(python(POST, &["https", tls.port(), &cert]), expected);
    std::fs::write(dir.path().join("body"), vec![b'x'; 1_000_000]).expect("a file");
    let body = format!("@{}", dir.path().join("body").display());
    for (version, scheme, port) in [
        ("--http1.1", "http", plain.port()),
        ("--http2-prior-knowledge", "http", plain.port()),
        ("--http1.1", "https", tls.port()),
        ("--http2", "https", tls.port()),
    ] {
        let url = format!("{scheme}://localhost:{port}/small");
        let args = ["--cacert", &*cert, version, "--data-binary", &*body, "-H", "Expect:"];
        let args = [&args[..], &["-o", "/dev/null", "-w", "%{http_code}", &*url]].concat();
        assert_eq!(String::from_utf8_lossy(&curl(&args).stdout), "405", "{version} {scheme}");
    }
}

/// A megabyte to a file, ten times, each by a client of its own, as Java's asks by default.
const JAVA: &str = r#"
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

class Post {
    public static void main(String[] port) {
        var body = HttpRequest.BodyPublishers.ofByteArray(new byte[1_000_000]);
        var request = HttpRequest.newBuilder(URI.create("http://localhost:" + port[0] + "/small"));
        var post = request.POST(body).build();
        for (int i = 0; i < 10; i++) {
            try {
                var answer = HttpClient.newHttpClient().send(post, BodyHandlers.ofString());
                System.out.print(answer.statusCode() + " ");
            } catch (Exception e) {
                System.out.print(e + " ");
            }
        }
        System.exit(0);
    }
}
"#;

#[test]
fn java_reads_the_answer_to_a_megabyte_that_nobody_wants() {
    if !have("javac") {
        return;
    }
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let program = dir.path().join("Post.java");
    std::fs::write(&program, JAVA).expect("a file");
    let mut java = Command::new("java");
    let out = java.arg(&program).arg(server.port()).output().expect("it starts");
    let answers = String::from_utf8_lossy(&out.stdout);
    assert_eq!(answers, "405 ".repeat(10), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn h2load_gets_all_of_what_it_asks_for_at_once() {
    if !have("h2load") || !have("openssl") {
        return;
    }
    let dir = files();
    std::fs::write(dir.path().join("large"), vec![b'x'; 300_000]).expect("a file");
    let (cert, key) = certificate(dir.path());
    let plain = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let tls = ["--listen", "127.0.0.1:0", "--tls-cert", &*cert, "--tls-key", &*key];
    let tls = Server::new(dir.path(), &tls);
    for url in [
        format!("http://localhost:{}/large", plain.port()),
        format!("https://localhost:{}/large", tls.port()),
    ] {
        // 4 connections of 50 requests at once, in windows smaller and larger than the file.
        for window in ["16", "20"] {
            let windows = ["-w", window, "-W", window];
            let mut h2load = Command::new("h2load");
            let h2load = h2load.args(["-n", "1000", "-c", "4", "-m", "50"]).args(windows);
            let out = h2load.arg(&url).output().expect("it starts");
            let told = String::from_utf8_lossy(&out.stdout);
            let all = "1000 total, 1000 started, 1000 done, 1000 succeeded, 0 failed, 0 errored";
            assert!(told.contains(all), "{url} {window}: {told}");
            assert!(told.contains("1000 2xx"), "{url} {window}: {told}");
        }
    }
}

/// Headers that are too long are refused before all of them are read.
#[test]
fn the_answer_to_headers_without_end_can_be_read() {
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n", "x".repeat(1 << 20));
    let many = format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "x: y\r\n".repeat(1 << 18));
    for request in [long, many] {
        let answer = ask(&server.addresses[0], request.as_bytes());
        assert!(matches!(status(&answer), Some(414 | 431)), "{answer}");
    }
}

#[test]
fn a_client_that_sends_for_ever_is_not_listened_to_for_ever() {
    let dir = files();
    let args = ["--listen", "127.0.0.1:0", "--max-connections", "1"];
    let server = Server::new(dir.path(), &args);
    let mut endless = connect(&server.addresses[0]);
    endless
        .write_all(b"POST /small HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n")
        .expect("it reads");
    endless.read_exact(&mut [0; 12]).expect("it answers");
    // It stops, and does not end: the only connection is free for another one all the same.
    assert_eq!(status(&common::get(&server.addresses[0], "/small")), Some(200));
}

/// The statuses of the answers to these requests.
fn statuses(server: &Server, requests: &[(&str, &str, u16)], form: impl Fn(&str) -> Vec<u8>) {
    for (what, version, expected) in requests {
        let mut request = form(what);
        let at = request.windows(8).position(|w| w == b"HTTP/1.1").expect("a version");
        request[at..at + 8].copy_from_slice(version.as_bytes());
        let answer = ask(&server.addresses[0], &request);
        assert_eq!(status(&answer), Some(*expected), "{what:?} {version}: {answer}");
    }
}

#[test]
fn a_request_tells_one_valid_host() {
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let requests = [
        ("", "HTTP/1.1", 400),
        ("", "HTTP/1.0", 200),
        ("Host: x\r\nHost: x\r\n", "HTTP/1.1", 400),
        ("Host: x\r\nHost: y\r\n", "HTTP/1.0", 400),
        ("Host: a b\r\n", "HTTP/1.1", 400),
        ("Host: x/\r\n", "HTTP/1.1", 400),
        ("Host: \u{e9}\r\n", "HTTP/1.1", 400),
        ("Host: a@b\r\n", "HTTP/1.0", 400),
        ("Host: x:80\r\n", "HTTP/1.1", 200),
        ("Host: [::1]:80\r\n", "HTTP/1.1", 200),
        ("Host:\r\n", "HTTP/1.1", 200),
    ];
    statuses(&server, &requests, |hosts| {
        format!("GET /small HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n").into_bytes()
    });
}

#[test]
fn a_target_has_one_of_the_forms() {
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let requests = [
        ("GET small", "HTTP/1.1", 400),
        ("GET x:80", "HTTP/1.1", 400),
        ("GET http:small", "HTTP/1.1", 400),
        ("HEAD [::1]", "HTTP/1.1", 400),
        ("POST x:80", "HTTP/1.1", 400),
        ("GET *", "HTTP/1.1", 400),
        ("OPTIONS *", "HTTP/1.1", 405),
        ("CONNECT x:80", "HTTP/1.1", 405),
        ("GET http://x/small", "HTTP/1.1", 200),
        ("GET /small", "HTTP/1.1", 200),
    ];
    statuses(&server, &requests, |target| {
        format!("{target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes()
    });
}

/// Nobody keeps those who run the server from it by connecting and saying nothing.
#[test]
fn the_admin_listener_waits_for_nobody_for_ever() {
    let dir = files();
    let args = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--header-timeout", "1s"];
    let server = Server::new(dir.path(), &args);
    let [_, admin] = &server.addresses[..] else { panic!("{:?}", server.addresses) };
    let silent: Vec<_> = [&b""[..], b"GET /metr"]
        .into_iter()
        .cycle()
        .take(200)
        .map(|begun| {
            let mut client = connect(admin);
            client.write_all(begun).expect("it reads");
            client
        })
        .collect();
    // More than may be there at a time: it is answered when others have been ended.
    assert_eq!(status(&common::get(admin, "/health")), Some(200));
    for mut client in silent {
        // Without any answer, or with one that says why.
        let _ = client.read_to_end(&mut Vec::new());
    }
}

/// The characters that a browser leaves as they are in a query, by the URL standard, and as Chromium
/// was seen to send them, and raw UTF-8.
#[test]
fn what_browsers_send_in_queries_is_taken() {
    let dir = files();
    let server = Server::new(dir.path(), &["--listen", "127.0.0.1:0"]);
    let raw: String = ('!'..='~').filter(|c| !"\"#<>".contains(*c)).chain(['\u{e9}']).collect();
    for query in raw.chars().map(String::from).chain([raw.clone()]) {
        let answer = common::get(&server.addresses[0], &format!("/small?a{query}b"));
        assert_eq!(status(&answer), Some(200), "{query}");
    }
    // In a path, where ? and # would end it.
    for c in ('!'..='~').filter(|c| !"#<>?`".contains(*c)).chain(['\u{e9}']) {
        std::fs::write(dir.path().join(format!("a{c}b")), "there").unwrap_or_else(|e| {
            assert_eq!(c, '/', "{e}");
        });
        let answer = common::get(&server.addresses[0], &format!("/a{c}b"));
        let expected = if c == '/' { 404 } else { 200 };
        assert_eq!(status(&answer), Some(expected), "{c}");
    }
    // The controls: what docs/http.md says is not taken.
    for target in
        [&b"/small?\""[..], b"/small?<", b"/small?>", b"/small?\xff", b"/`", b"/<", b"/\xff"]
    {
        let request =
            [b"GET ", target, b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"].concat();
        let answer = ask(&server.addresses[0], &request);
        assert_eq!(status(&answer), Some(400), "{}", String::from_utf8_lossy(target));
    }
    if have("curl") {
        let url = format!("http://{}/small?a{raw}b", server.addresses[0]);
        let got = curl(&["--http2-prior-knowledge", "--globoff", &url]);
        assert_eq!(got.stdout, b"0123456789", "{:?}", got.stderr);
    }
}
