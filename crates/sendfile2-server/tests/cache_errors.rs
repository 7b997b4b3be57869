//! Errors of a cache name what is wrong: an option, a file, an origin, a target.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use common::connect;

const PROGRAM: &str = env!("CARGO_BIN_EXE_sendfile2-server");
const ORIGIN: &str = "http://127.0.0.1:1";

/// A cache that must not start; returns what it says.
fn refused(change: impl FnOnce(&mut Command) -> &mut Command) -> String {
    let mut command = Command::new(PROGRAM);
    command.args(["cache", "--listen", "127.0.0.1:0"]);
    change(&mut command);
    let output = command.output().expect("it starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(!output.status.success(), "{command:?}: {said}");
    said
}

/// Each is refused in the same words, whether it is checked or used.
#[track_caller]
fn is_told(args: &[&str], words: &[&str]) {
    for more in [&[][..], &["--check"]] {
        let said = refused(|command| command.args(args).args(more));
        for words in words {
            assert!(said.contains(words), "{args:?} {more:?}: {words} is not in {said}");
        }
    }
}

fn with_origin<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["--origin", ORIGIN], args].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn a_file_that_can_be_no_store_is_named_and_nothing_is_made() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let at = |name: &str| text(&dir.path().join(name)).to_owned();
    std::fs::write(at("theirs"), "hello").expect("a file");
    let _socket = UnixListener::bind(at("socket")).expect("a socket");
    std::os::unix::fs::symlink(at("loop"), at("loop")).expect("a link");
    let long = "n".repeat(300);
    for (name, words) in [
        ("none/store", &["its directory is not there"][..]),
        ("theirs", &["not a store", "was not touched", "give another file"]),
        ("theirs/store", &["Not a directory"]),
        ("", &["it is a directory", "give another file"]),
        ("socket", &["it is a socket"]),
        ("loop", &["symbolic links"]),
        (&long, &["name too long"]),
    ] {
        let store = at(name);
        is_told(&with_origin(&["--store", &store]), &[words, &["--store: ", &store]].concat());
    }
    let words = ["--store: /dev/null is not a store", "character device"];
    is_told(&with_origin(&["--store", "/dev/null"]), &words);
    let mut names: Vec<_> = std::fs::read_dir(dir.path()).expect("a directory").collect();
    names.sort_by_key(|name| name.as_ref().map(std::fs::DirEntry::file_name).ok());
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_size_that_cannot_be_is_the_sizes_fault_and_nothing_is_made() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("store");
    let store = text(&path);
    for (size, words) in [
        ("1", "--size: 1 bytes are too few: 36M at least"),
        ("0", "--size: 0 bytes are too few: 36M at least"),
        ("1000P", "--size: 1125899906842624000 bytes are too many"),
        ("x", "invalid value 'x' for '--size"),
        ("-1", "invalid value '-1' for '--size"),
    ] {
        is_told(&with_origin(&["--size", size]), &[words]);
        is_told(&with_origin(&["--size", size, "--store", store]), &[words]);
        assert!(!path.exists(), "{size}");
    }
    // The least that it says is enough.
    let args = with_origin(&["--check", "--size", "36M", "--store", store]);
    let output = Command::new(PROGRAM).arg("cache").args(args).output().expect("it starts");
    assert!(output.status.success() && !path.exists(), "{output:?}");
    // Nothing has so much room, which nobody knows before.
    let args = with_origin(&["--size", "8000000G", "--store", store]);
    let said = refused(|command| command.args(args));
    assert!(said.contains("--size: no room for ") && said.contains(store), "{said}");
}

#[test]
fn where_there_is_no_room_for_temporary_files_their_directory_is_named() {
    for more in [&[][..], &["--check"]] {
        let said = refused(|command| {
            command.args(["--origin", ORIGIN]).args(more).env("TMPDIR", "/nonexistent")
        });
        assert!(said.contains("/nonexistent (TMPDIR, or give --store)"), "{said}");
    }
}

#[test]
fn a_store_in_use_is_named_and_may_be_checked() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let path = dir.path().join("store");
    let args = with_origin(&["--size", "64M", "--store", text(&path)]);
    let _cache = started(&args);
    let said = refused(|command| command.args(&args));
    assert!(said.contains(&format!("--store: {} is in use", text(&path))), "{said}");
    let checked = Command::new(PROGRAM).arg("cache").args(&args).arg("--check").output();
    let checked = checked.expect("it starts");
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn an_origin_that_is_none_is_named_as_it_was_given() {
    for origin in [
        "127.0.0.1:3000",
        "http://",
        "http://a b",
        "http://a/b",
        "ftp://a",
        "http://u@a",
        "http://a:99999",
        "http://a:0",
        "http://a:x",
        "http://a?b",
        "*",
        "",
    ] {
        let said = refused(|command| command.args(["--origin", origin, "--check"]));
        let named = format!("--origin: \"{origin}");
        assert!(said.contains(&named) && said.contains("is no origin: give http"), "{said}");
    }
    let said =
        refused(|command| command.arg("--check").env("SENDFILE2_CACHE_ORIGIN", "http://a,ftp://b"));
    assert!(said.contains("SENDFILE2_CACHE_ORIGIN: \"ftp://b\""), "{said}");
    for right in ["http://a", "http://a:1", "https://a:443", "http://[::1]", "http://[::1]:80/"] {
        let mut command = Command::new(PROGRAM);
        let output =
            command.args(["cache", "--check", "--origin", right]).output().expect("it starts");
        assert!(output.status.success(), "{right}: {output:?}");
    }
}

#[test]
fn other_options_are_named() {
    for (args, words) in [
        (&["--health-path", ""][..], "--health-path: \"\" is no path"),
        (&["--health-path", "/a b"], "--health-path: \"/a b\" is no path"),
        (
            &["--health-path", "/", "--health-fails", "0"],
            "'--health-fails <N>': must be at least 1",
        ),
        (&["--health-path", "/", "--health-passes", "x"], "give a whole number, at least 1"),
        (&["--health-fails", "2"], "--health-path <PATH>"),
        (&["--health-passes", "2"], "--health-path <PATH>"),
        (&["--health-interval", "2s"], "--health-path <PATH>"),
        (&["--stale-if-error", "-1"], "invalid value '-1' for '--stale-if-error <TIME>'"),
        (&["--choose", "x"], "round-robin, hash"),
        (&["--second-request=x"], "'--second-request[=<BOOL>]'"),
        (&["--max-request-body", "x"], "'--max-request-body <SIZE>'"),
        (&["--connect-timeout", "0"], "'--connect-timeout <TIME>'"),
        (&["--answer-timeout", "1"], "'--answer-timeout <TIME>'"),
        (&["--origin-stall-timeout", "x"], "'--origin-stall-timeout <TIME>'"),
    ] {
        is_told(&with_origin(args), &[words]);
    }
}

#[test]
fn a_file_is_told_by_the_line() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let config = dir.path().join("c.toml");
    for (lines, words) in [
        (
            "origin = [\n\"http://a\",\n\"ftp://b\",\n]",
            "c.toml:3: origin: \"ftp://b\" is no origin",
        ),
        ("origin = \"http://a\"\nstore = \"/nonexistent/x\"", "c.toml:2: store: its directory"),
        ("origin = \"http://a\"\nstore = \"/dev\"", "c.toml:2: store: /dev is not a store"),
        ("origin = \"http://a\"\nsize = \"1\"", "c.toml:2: size: 1 bytes are too few"),
        ("origin = \"http://a\"\nhealth-fails = 0", "c.toml:2: health-fails"),
        ("origin = []", "origin = \"...\" in a file"),
    ] {
        std::fs::write(&config, lines).expect("a file");
        is_told(&["--config", text(&config)], &[words]);
    }
}

/// A cache that has started; its address.
fn started(args: &[&str]) -> common::Server {
    let mut command = Command::new(PROGRAM);
    command.args(["cache", "--listen", "127.0.0.1:0"]).args(args).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let mut cache = common::Server { child, addresses: Vec::new(), stderr };
    let listening = line_with(&mut cache, "listening on ");
    cache.addresses.extend(listening.trim().rsplit(' ').next().map(str::to_owned));
    cache
}

/// The next line on standard error that has these words.
fn line_with(cache: &mut common::Server, words: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(cache.stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
        if line.contains(words) {
            return line;
        }
    }
}

/// Whether it is stored meanwhile or not, and whether it ends or comes to a standstill.
#[test]
fn an_answer_that_breaks_off_is_told_with_its_target_and_origin() {
    for (fields, ends, why) in [
        ("Cache-Control: max-age=60\r\nContent-Length: 10\r\n", true, "end of file"),
        ("Cache-Control: no-store\r\nContent-Length: 10\r\n", true, "end of file"),
        ("Cache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n", true, "error reading"),
        ("Cache-Control: no-store\r\nContent-Length: 10\r\n", false, "nothing came for 200ms"),
        ("Cache-Control: max-age=60\r\nContent-Length: 10\r\n", false, "nothing came for 200ms"),
    ] {
        let origin = TcpListener::bind("127.0.0.1:0").expect("it listens");
        let url = format!("http://{}", origin.local_addr().expect("an address"));
        let mut cache = started(&["--origin", &url, "--origin-stall-timeout", "200ms"]);
        let mut client = connect(&cache.addresses[0]);
        client.write_all(b"GET /path HTTP/1.1\r\nhost: h\r\n\r\n").expect("it reads");
        let (mut stream, _) = origin.accept().expect("the cache comes");
        let mut asked = [0; 4096];
        assert_ne!(stream.read(&mut asked).expect("a request"), 0);
        let chunk = if fields.contains("chunked") { "a\r\nabc" } else { "abc" };
        write!(stream, "HTTP/1.1 200 OK\r\n{fields}\r\n{chunk}").expect("it reads");
        let held = (!ends).then_some(stream);
        let mut answer = Vec::new();
        // A connection that breaks off may be reset.
        let _ = client.read_to_end(&mut answer);
        let line = line_with(&mut cache, "an answer broke off: ");
        let named = format!("h/path of the origin {url}: ");
        assert!(line.contains(&named) && line.contains(why), "{fields} {ends}: {line}");
        drop(held);
    }
}
