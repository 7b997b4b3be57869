//! A cache whose store is far too small, before an origin that changes all the time and breaks off,
//! with clients that read late or go away, killed again and again: no byte is wrong.
#![expect(clippy::cast_possible_truncation, reason = "bodies are of a few megabytes")]

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const TARGETS: u64 = 800;

/// The size of the store.
const STORE: u64 = 40 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// More than the part of a body that is stored in one, and less than the store takes.
const IN_PARTS: usize = 2_300_000;

fn len(target: u64) -> usize {
    let lens = [16, 4_096, 30_000, 66_008, 200_000, 700_000, 1_300_000, 1_900_000, IN_PARTS];
    // And one that is too large for the store.
    lens.get(target as usize % 10).copied().unwrap_or(3_000_000)
}

/// A body in which each word tells its target, its generation and its place.
fn body(target: u64, generation: u64) -> Vec<u8> {
    let mut body = Vec::with_capacity(len(target) + 8);
    while body.len() < len(target) {
        let word = target << 48 | generation << 24 | body.len() as u64;
        body.extend_from_slice(&word.to_le_bytes());
    }
    body
}

type Fields = HashMap<String, String>;

/// The first line and the fields of a head; `None` if it breaks off.
fn head(stream: &mut impl BufRead) -> Option<(String, Fields)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim() {
            "" => break,
            line => lines.push(line.to_ascii_lowercase()),
        }
    }
    let fields = lines.iter().filter_map(|line| line.split_once(": "));
    let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    Some((lines.first()?.clone(), fields))
}

/// The numbers in a text.
fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Answers the requests of a connection, each by a generation of its own.
fn answers(stream: &TcpStream, next: &AtomicU64) -> Option<()> {
    let mut requests = BufReader::new(stream);
    let mut out = stream;
    while let Some((line, fields)) = head(&mut requests) {
        let target = numbers(&line)[0];
        let generation = next.fetch_add(1, Relaxed);
        let mut random = Random(generation);
        let fresh = if line.contains("/keep") { 600 } else { 1 };
        let common = |generation| {
            format!(
                "etag: \"{generation}\"\r\ngeneration: {generation}\r\ncache-control: max-age={fresh}\r\n"
            )
        };
        if let Some(old) = fields.get("if-none-match").filter(|_| random.below(2) == 0) {
            let common = common(numbers(old)[0]);
            out.write_all(format!("HTTP/1.1 304 Not Modified\r\n{common}\r\n").as_bytes()).ok()?;
            continue;
        }
        let (common, body) = (common(generation), body(target, generation));
        let (part, status) = match fields.get("range").map(|range| numbers(range)) {
            Some(range) => {
                let (from, to) = (range[0], range[1]);
                let status = format!(
                    "206 Partial Content\r\ncontent-range: bytes {from}-{to}/{}",
                    body.len()
                );
                (&body[from as usize..=to as usize], status)
            }
            None => (&body[..], "200 OK".into()),
        };
        let head = format!("HTTP/1.1 {status}\r\n{common}");
        // Where no length is told, what is large is stored in parts.
        if random.below(2) == 0 || body.len() >= IN_PARTS {
            out.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).ok()?;
            let most = if random.below(8) == 0 { part.len() / 2 } else { part.len() };
            for piece in part[..most].chunks(50_000) {
                out.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).ok()?;
                out.write_all(piece).ok()?;
                out.write_all(b"\r\n").ok()?;
            }
            if most < part.len() {
                return None;
            }
            out.write_all(b"0\r\n\r\n").ok()?;
        } else {
            out.write_all(format!("{head}content-length: {}\r\n\r\n", part.len()).as_bytes())
                .ok()?;
            if random.below(8) == 0 {
                return out.write_all(&part[..part.len() / 2]).ok();
            }
            out.write_all(part).ok()?;
        }
    }
    Some(())
}

fn origin() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let listener = TcpListener::bind("127.0.0.1:0").expect("it listens");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answers(&stream, &NEXT));
        }
    });
    url
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Tells the clients to end, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn cache(origin: &str, store: &Path) -> (Killed, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-server"));
    command.args(["cache", "--listen", "127.0.0.1:0", "--origin", origin]);
    command.args(["--size", &STORE.to_string()]);
    command.args(["--stale-if-error", "0s"]);
    let mut child =
        command.arg("--store").arg(store).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("listening"));
    let address = line.expect("it listens").rsplit(' ').next().expect("an address").to_owned();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    (Killed(child), address)
}

/// The outcome of a request.
#[derive(Debug, Default)]
struct Got {
    generation: u64,
    hit: bool,
    /// An answer that has come to its end.
    whole: bool,
    bytes: usize,
    wrong: usize,
}

/// Asks for a target, or a part, does something else before it reads the body, as it likes, and
/// compares; `None` if no head came.
fn ask(
    address: &str,
    path: &str,
    target: u64,
    random: &mut Random,
    before: impl FnOnce(),
) -> Option<Got> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    let range = (path == "/" && random.below(4) == 0).then(|| {
        let from = random.below(len(target) as u64);
        (from, from + random.below(len(target) as u64 - from))
    });
    let range = range.map_or(String::new(), |(from, to)| format!("range: bytes={from}-{to}\r\n"));
    let request =
        format!("GET {path}{target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{range}\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = BufReader::new(stream);
    let (status, fields) = head(&mut answer)?;
    let Some(generation) = fields.get("generation") else {
        // The cache's own.
        assert!(status.contains(" 502 "), "{status} {fields:?}");
        return None;
    };
    let generation = numbers(generation)[0];
    let expected = body(target, generation);
    let expected = match fields.get("content-range") {
        Some(range) => &expected[numbers(range)[0] as usize..=numbers(range)[1] as usize],
        None => &expected[..],
    };
    let hit = fields["cache-status"].contains("; hit");
    assert!(!hit || path == "/keep/" || numbers(&fields["age"])[0] <= 1, "it is stale: {fields:?}");
    before();
    let patience = random.below(4);
    let mut got = Vec::new();
    let mut pause = || match patience {
        // It stalls, for less than the cache allows, and goes on.
        0 if random.below(20) == 0 => std::thread::sleep(Duration::from_millis(random.below(400))),
        _ => {}
    };
    let most = if patience == 1 { expected.len() as u64 / 2 } else { u64::MAX };
    let chunked = fields.contains_key("transfer-encoding");
    let mut whole = false;
    let mut buffer = vec![0; 16 << 10];
    while (got.len() as u64) < most {
        let mut left = expected.len() + 1;
        if chunked {
            let mut line = String::new();
            if answer.read_line(&mut line).is_err() || !line.ends_with("\r\n") {
                break;
            }
            left = usize::from_str_radix(line.trim(), 16).expect("a length");
        }
        whole = chunked && left == 0;
        while left > 0 {
            pause();
            let most = left.min(buffer.len());
            let Ok(read @ 1..) = answer.read(&mut buffer[..most]) else { break };
            got.extend_from_slice(&buffer[..read]);
            left -= read;
        }
        // What is behind a piece.
        if whole || !chunked || left > 0 || answer.read_exact(&mut [0; 2]).is_err() {
            break;
        }
    }
    whole |= !chunked && fields["content-length"] == got.len().to_string();
    let same = expected.starts_with(&got);
    let mut wrong = if same { 0 } else { got.iter().zip(expected).filter(|(a, b)| a != b).count() };
    if got.len() > expected.len() || whole && got.len() < expected.len() {
        wrong += got.len().abs_diff(expected.len());
    }
    Some(Got { generation, hit, whole, bytes: got.len(), wrong })
}

#[test]
fn nothing_is_wrong_whatever_happens() {
    torture(4, Duration::from_millis(2500));
}

#[test]
#[ignore = "takes ten minutes"]
fn nothing_is_wrong_for_ten_minutes() {
    torture(10, Duration::from_secs(60));
}

/// Kills the cache after each round.
fn torture(rounds: u32, round: Duration) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let store = dir.path().join("store");
    let origin = origin();
    let (mut child, address) = cache(&origin, &store);
    let (address, over) = (Mutex::new(address), AtomicBool::new(false));
    let current = || address.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let written = AtomicU64::new(0);
    // In whose hands a body is while a store's worth is written.
    let slow = |seed| {
        let (mut random, mut all) = (Random(seed), Vec::new());
        while !over.load(Relaxed) {
            let target = 5 + random.below(4);
            let until = written.load(Relaxed) + STORE;
            let pause = || {
                while written.load(Relaxed) < until && !over.load(Relaxed) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            let Some(got) = ask(&current(), "/keep/", target, &mut random, pause) else { continue };
            assert_eq!(got.wrong, 0, "target {target}, late: {got:?}");
            all.push(got);
        }
        all
    };
    let client = |seed| {
        let (mut random, mut all) = (Random(seed), Vec::new());
        while !over.load(Relaxed) {
            let among = if random.below(2) == 0 { 24 } else { TARGETS };
            let target = random.below(among);
            match ask(&current(), "/", target, &mut random, || ()) {
                Some(got) => {
                    written.fetch_add(if got.hit { 0 } else { got.bytes as u64 }, Relaxed);
                    assert_eq!(got.wrong, 0, "target {target}: {got:?}");
                    all.push(got);
                }
                // It is killed.
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        all
    };
    let [all, late] = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12).map(|seed| scope.spawn(move || client(seed))).collect();
        let late: Vec<_> = (0..4).map(|seed| scope.spawn(move || slow(seed))).collect();
        let over = Over(&over);
        for _ in 0..rounds {
            // When it is killed is a matter of chance: that is what is tried.
            std::thread::sleep(round);
            assert!(child.0.try_wait().expect("ours").is_none(), "it has ended by itself");
            child.kill();
            let (again, at) = cache(&origin, &store);
            child = again;
            *address.lock().unwrap_or_else(PoisonError::into_inner) = at;
        }
        drop(over);
        [clients, late].map(|clients| {
            let all = clients.into_iter().flat_map(|client| client.join().expect("no panic"));
            all.collect::<Vec<_>>()
        })
    });
    let (hits, whole) = (all.iter().filter(|got| got.hit), all.iter().filter(|got| got.whole));
    let (hits, whole) = (hits.count(), whole.count());
    let bytes: usize = all.iter().map(|got| got.bytes).sum();
    let in_parts = all.iter().filter(|got| got.hit && got.bytes == IN_PARTS).count();
    println!(
        "{} answers, {whole} whole, {hits} hits, {in_parts} of them in parts, {} MB",
        all.len(),
        bytes >> 20
    );
    let whole = late.iter().filter(|got| got.whole).count();
    println!("{} others late, {whole} of them whole", late.len());
    assert!(hits > 0 && whole > 0 && bytes > 40 << 20, "the store was written over");
    let mut random = Random(2);
    let mut keep = |target| ask(&current(), "/keep/", target, &mut random, || ());
    // How many of the hits were in parts is a matter of chance: here is one.
    let large = loop {
        if let Some(got) = keep(8).filter(|got| got.hit && got.whole) {
            break got;
        }
    };
    assert_eq!((large.bytes, large.wrong), (IN_PARTS, 0));
    // The control: what is written over as it is, is seen.
    let generation = loop {
        if let Some(got) = keep(7).filter(|got| got.hit) {
            break got.generation;
        }
    };
    let file = std::fs::read(&store).expect("it is ours");
    let (old, new) = (body(7, generation), body(7, 0));
    let at = file.windows(64).position(|bytes| *bytes == old[..64]).expect("it is there");
    let file = OpenOptions::new().write(true).open(&store).expect("it is ours");
    file.write_all_at(&new, at as u64).expect("it is written");
    let wrong = keep(7).expect("an answer").wrong;
    child.kill();
    assert!(wrong > 0);
}
