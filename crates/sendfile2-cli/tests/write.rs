//! `write` as its users meet it: beside whoever sends the file, nginx among them.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, unreachable_pub)]
#[path = "../../sendfile2/tests/common/filesystems.rs"]
mod filesystems;

#[allow(unreachable_pub, missing_debug_implementations)]
#[path = "../../sendfile2/tests/common/peek.rs"]
mod peek;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use filesystems::{Filesystem, here, mounted, overlay, tmpfs};
use sendfile2::Source;
use sendfile2::detach::Detacher;
use serde_json::Value;

/// The size of the files.
const SIZE: usize = 1 << 20;

/// Where what is overwritten begins; to the end of the file.
const FROM: usize = SIZE / 2;

/// The longest that anything may take: only a hang reaches it.
const TIMEOUT: Duration = Duration::from_secs(30);

fn write(args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
    command.arg("write").args(args).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may be refused before it is read.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn overwritten(args: &[&str], input: &[u8]) -> Output {
    let output = write(args, input);
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "no progress where there is no terminal: {output:?}");
    output
}

/// Returns standard error of a command that failed: one line that begins with the command's name.
fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.starts_with("sendfile2: ") && text.lines().count() == 1, "{text}");
    text
}

/// A file of the letter A.
fn letters(directory: &Path) -> PathBuf {
    let path = directory.join("file");
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![b'A'; SIZE], 0).unwrap();
    file.sync_all().unwrap();
    path
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A filesystem on which `write` works: the checkout's, or one that is mounted.
fn detaching() -> Option<Filesystem> {
    let here = here();
    for filesystem in [Some(here), mounted("ext4")].into_iter().flatten() {
        let path = letters(&filesystem.dir);
        let detacher = Detacher::new(&Source::open(&path).unwrap());
        let tried = detacher.map(|detacher| detacher.overwrite(&vec![b'A'; SIZE], 0));
        if matches!(tried, Ok(Ok(()))) {
            return Some(filesystem);
        }
    }
    println!("SKIP: neither the checkout's filesystem nor a mounted one can be detached from");
    None
}

fn unit(path: &Path) -> usize {
    let detacher = Detacher::new(&Source::open(path).unwrap()).unwrap();
    usize::try_from(detacher.unit().unwrap()).unwrap()
}

fn count(bytes: &[u8], letter: u8) -> usize {
    bytes.iter().filter(|byte| **byte == letter).count()
}

/// Queues the file by `sendfile(2)` to a peer that does not read, overwrites its end, and returns
/// how many bytes arrive wrong.
fn wrong_of_sendfile(path: &Path, overwrite: impl Fn()) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut peer, _) = listener.accept().unwrap();
    let (file, mut at) = (File::open(path).unwrap(), 0);
    while at < SIZE as u64 {
        let left = SIZE - usize::try_from(at).unwrap();
        assert!(rustix::fs::sendfile(&sender, &file, Some(&mut at), left).unwrap() > 0);
    }
    drop(sender);
    overwrite();
    let mut got = Vec::new();
    peer.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), SIZE);
    SIZE - count(&got, b'A')
}

#[test]
fn what_is_in_flight_keeps_its_bytes() {
    let Some(filesystem) = detaching() else { return };
    let (new, at) = (vec![b'B'; SIZE - FROM], FROM.to_string());
    let given = filesystem.dir.join("new");
    std::fs::write(&given, &new).unwrap();
    for args in [&["--from", name(&given)][..], &[]] {
        let path = letters(&filesystem.dir);
        let args = [&[name(&path), "--at", &at], args].concat();
        assert_eq!(wrong_of_sendfile(&path, || drop(overwritten(&args, &new))), 0);
        let now = std::fs::read(&path).unwrap();
        assert!(now[..FROM] == vec![b'A'; FROM] && now[FROM..] == new);
    }
}

/// Its control is in the library's `tests/uncontrolled.rs`.
#[test]
fn nothing_changes_for_senders_that_go_on_sending() {
    let Some(filesystem) = detaching() else { return };
    let path = letters(&filesystem.dir);
    let file = File::open(&path).unwrap();
    let enough = |seen: &peek::Seen| seen.overwrites >= 40 && seen.sends > 0;
    let seen = peek::beside(&file, enough, |new, _| {
        let output = write(&[name(&path), "--at", "0"], new);
        // Their pages came back again and again.
        let refused = |output| complaint(output).contains("page cache");
        assert!(output.status.success() || refused(&output), "{output:?}");
        output.status.success()
    });
    println!("{seen:?}");
    assert!(enough(&seen), "{seen:?}");
    assert_eq!(seen.changed, 0, "{seen:?}");
}

#[test]
fn control_an_ordinary_write_changes_what_is_in_flight() {
    let here = here();
    let path = letters(&here.dir);
    let file = File::options().write(true).open(&path).unwrap();
    let ordinary = || file.write_all_at(&vec![b'B'; SIZE - FROM], FROM as u64).unwrap();
    assert!(wrong_of_sendfile(&path, ordinary) > 0);
}

#[test]
fn it_reports_what_it_wrote() {
    let Some(filesystem) = detaching() else { return };
    let path = letters(&filesystem.dir);
    let output = overwritten(&[name(&path), "--at", "512K", "--json"], &vec![b'B'; FROM]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["file"], name(&path));
    assert_eq!((&report["at"], &report["bytes"]), (&FROM.into(), &FROM.into()), "{report}");
    assert_eq!(report["unit"], unit(&path));
    assert!(report["micros"].is_u64() && report["error"].is_null(), "{report}");
    let text = overwritten(&[name(&path), "--at", "0"], &vec![b'C'; FROM]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("{}: bytes 0..{FROM} overwritten", name(&path))), "{text}");
}

#[test]
fn what_cannot_be_written_is_refused_before_anything_is() {
    let Some(filesystem) = detaching() else { return };
    let path = letters(&filesystem.dir);
    let file = name(&path);
    let unit = unit(&path);
    let [long, short, empty] =
        [("long", SIZE), ("short", unit + 5), ("empty", 0)].map(|(it, n)| {
            let path = filesystem.dir.join(it);
            std::fs::write(&path, vec![b'B'; n]).unwrap();
            path
        });
    let unit_told = format!("units of {unit} bytes");
    let rest_told = format!("ends 5 bytes into a unit of {unit}");
    let add_told = format!("add {} bytes", unit - 5);
    let missing = filesystem.dir.join("missing");
    let directory = name(&filesystem.dir);
    for (args, said) in [
        (&[file, "--at", "1", "--from", name(&long)][..], &[file, &unit_told, "nothing was"][..]),
        (&[file, "--at", "0", "--from", name(&short)], &[name(&short), &rest_told, &add_told]),
        (&[file, "--at", "0", "--from", name(&empty)], &[name(&empty), "is empty"]),
        (&[file, "--at", "0"], &["standard input is empty"]),
        (&[file, "--at", "512K", "--from", name(&long)], &[file, "ends at byte 1048576", "longer"]),
        (&[file, "--at", "8E", "--from", name(&long)], &[file, "ends at byte 1048576", "nothing"]),
        (&[file, "--at", "0", "--from", name(&missing)], &[name(&missing), "No such file"]),
        (&[name(&missing), "--at", "0"], &["cannot write to", name(&missing), "No such file"]),
        (&[directory, "--at", "0"], &["cannot write to", directory, "directory"]),
        (&["/dev/null", "--at", "0"], &["/dev/null", "character device"]),
    ] {
        let text = complaint(&write(args, &[]));
        for said in said {
            assert!(text.contains(said), "{args:?}: {said}: {text}");
        }
        assert_eq!(count(&std::fs::read(&path).unwrap(), b'A'), SIZE, "{args:?}");
    }
    assert!(!missing.exists(), "it makes no file");
}

/// A pipe does not tell how much is to come.
#[test]
fn what_was_written_before_a_refusal_is_told() {
    let Some(filesystem) = detaching() else { return };
    let path = letters(&filesystem.dir);
    let unit = unit(&path);
    let output = write(&[name(&path), "--at", "0", "--json"], &vec![b'B'; 3 * unit + 7]);
    let told = format!("the first {} bytes were written", 3 * unit);
    let text = complaint(&output);
    assert!(text.contains("standard input ends 7 bytes into") && text.contains(&told), "{text}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["bytes"], 3 * unit, "{report}");
    assert!(report["error"].as_str().unwrap().contains(&told), "{report}");
    assert_eq!(count(&std::fs::read(&path).unwrap(), b'B'), 3 * unit);

    let text = complaint(&write(&[name(&path), "--at", "0"], &vec![b'C'; SIZE + unit]));
    assert!(text.contains("ends at byte 1048576") && text.contains("first 1048576"), "{text}");
    assert_eq!(count(&std::fs::read(&path).unwrap(), b'C'), SIZE);
}

#[test]
fn on_tmpfs_it_is_refused_with_what_to_do_instead() {
    let tmpfs = tmpfs();
    let path = letters(&tmpfs.dir);
    let text = complaint(&write(&[name(&path), "--at", "0"], &vec![b'B'; SIZE]));
    for said in [name(&path), "direct I/O", "rename it over", "nothing was written"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    assert_eq!(count(&std::fs::read(&path).unwrap(), b'A'), SIZE);
}

fn probed(path: &Path) -> (Value, String) {
    let probe = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
        let output = command.args(["probe", "--file", name(path)]).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let mut report: Value = serde_json::from_slice(&probe(&["--json"])).unwrap();
    (report["file"]["detaches"].take(), String::from_utf8(probe(&[])).unwrap())
}

#[test]
fn probe_tells_whether_it_can_be_done_and_writes_nothing() {
    let all = [Some(here()), mounted("ext4"), mounted("btrfs"), overlay(), Some(tmpfs())];
    for filesystem in all.into_iter().flatten() {
        let path = letters(&filesystem.dir);
        let stat = || {
            let it = std::fs::metadata(&path).unwrap();
            (it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec())
        };
        let before = stat();
        let (detaches, text) = probed(&path);
        assert_eq!(stat(), before);
        assert_eq!(count(&std::fs::read(&path).unwrap(), b'A'), SIZE);
        let (state, by, told) = match filesystem.name {
            "ext4" => ("yes", "direct", "yes (direct I/O, units of "),
            "btrfs" => ("yes", "clone", "yes (clones, units of"),
            "overlayfs" => ("untried", "", "only a try tells"),
            "tmpfs" => ("no", "", "no: the file cannot be opened for direct I/O"),
            // Whatever it is: what it tells is what a try shows.
            _ => {
                let can = write(&[name(&path), "--at", "0"], &vec![b'B'; SIZE]).status.success();
                assert!(detaches["state"] == "untried" || (detaches["state"] == "yes") == can);
                continue;
            }
        };
        assert!(text.contains(&format!("  {:<20} {told}", "detaches")), "{told}: {text}");
        assert_eq!(detaches["state"], state, "{detaches}");
        assert_eq!(detaches["by"].as_str().unwrap_or(""), by, "{detaches}");
        assert_eq!(detaches["unit"].is_u64(), state == "yes", "{detaches}");
        assert_eq!(detaches["proof"].is_string(), state == "yes", "{detaches}");
        assert!(detaches["why"].as_str().unwrap().starts_with(told), "{detaches}");
    }
}

/// To open a file for writing, on overlayfs, copies it up.
#[test]
fn probe_copies_nothing_up() {
    let Some(overlay) = overlay() else { return };
    let root = overlay.dir.parent().unwrap();
    let path = overlay.dir.join("lower");
    std::fs::write(root.join("lower/lower"), [b'A'; 5000]).unwrap();
    let (detaches, _) = probed(&path);
    assert_eq!(detaches["state"], "untried", "{detaches}");
    assert!(!root.join("upper/lower").exists());
    drop(File::options().write(true).open(&path).unwrap());
    assert!(root.join("upper/lower").exists(), "the control");
}

/// A server process, which ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's nginx with `sendfile on`, serving a directory, and the socket that it logs to.
struct Nginx {
    process: Server,
    port: u16,
    log: UnixDatagram,
    _directory: tempfile::TempDir,
}

impl Nginx {
    fn start(served: &Path) -> Option<Self> {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let path = directory.path();
        let log = UnixDatagram::bind(path.join("log")).unwrap();
        log.set_read_timeout(Some(TIMEOUT)).unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let (here, served) = (path.display(), served.display());
        let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
        let user = if is_root { "user root;" } else { "" };
        let configuration = format!(
            "{user} daemon off; master_process off; pid {here}/pid; error_log stderr;
             events {{ }}
             http {{
                 sendfile on; access_log syslog:server=unix:{here}/log;
                 client_body_temp_path {here}/t1; proxy_temp_path {here}/t2;
                 fastcgi_temp_path {here}/t3; uwsgi_temp_path {here}/t4; scgi_temp_path {here}/t5;
                 server {{ listen 127.0.0.1:{port}; root {served}; }}
             }}"
        );
        std::fs::write(path.join("conf"), configuration).unwrap();
        let mut command = Command::new("nginx");
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        command.arg("-e").arg("stderr").arg("-p").arg(path).arg("-c").arg(path.join("conf"));
        match command.spawn() {
            Ok(process) => {
                Some(Nginx { process: Server(process), port, log, _directory: directory })
            }
            Err(e) => {
                println!("SKIP: nginx: {e}");
                None
            }
        }
    }

    fn connect(&mut self) -> TcpStream {
        loop {
            match TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(client) => return client,
                Err(e) => {
                    assert_eq!(self.process.0.try_wait().unwrap(), None, "nginx ended: {e}");
                    std::thread::yield_now();
                }
            }
        }
    }

    /// A client that has asked for the file, does not read, and whose whole response is queued.
    fn queued(&mut self) -> TcpStream {
        let mut client = self.connect();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        client.write_all(b"GET /file HTTP/1.0\r\n\r\n").unwrap();
        // It logs that a response has been sent.
        let mut line = [0; 1024];
        let length = self.log.recv(&mut line).unwrap();
        let line = String::from_utf8_lossy(&line[..length]);
        assert!(line.contains("\"GET /file HTTP/1.0\" 200"), "{line}");
        client
    }
}

fn body(mut client: TcpStream) -> Vec<u8> {
    let mut response = Vec::new();
    client.read_to_end(&mut response).unwrap();
    let head = response.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let body = response.split_off(head + 4);
    assert_eq!(body.len(), SIZE);
    body
}

/// docs/nginx-untouched.md shows this.
#[test]
fn nginx_untouched() {
    const CLIENTS: usize = 20;
    let Some(filesystem) = detaching() else { return };
    let Some(mut nginx) = Nginx::start(&filesystem.dir) else { return };
    let new = vec![b'B'; SIZE - FROM];
    let mut wrong = |overwrite: &dyn Fn(&Path)| {
        let path = letters(&filesystem.dir);
        let clients: Vec<_> = (0..CLIENTS).map(|_| nginx.queued()).collect();
        overwrite(&path);
        let wrong: usize = clients.into_iter().map(|c| SIZE - count(&body(c), b'A')).sum();
        // Whoever asks now gets the new bytes.
        let fresh = body(nginx.queued());
        assert!(fresh[..FROM] == vec![b'A'; FROM] && fresh[FROM..] == new);
        wrong
    };
    let control = wrong(&|path| {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(&new, FROM as u64).unwrap();
    });
    let by_this = wrong(&|path| {
        drop(overwritten(&[name(path), "--at", &FROM.to_string()], &new));
    });
    println!(
        "nginx, {CLIENTS} responses queued, their second halves overwritten: wrong by an ordinary \
         write {control}, by sendfile2 write {by_this}, of {} bytes",
        CLIENTS * SIZE
    );
    assert_eq!((control, by_this), (CLIENTS * (SIZE - FROM), 0));
}
