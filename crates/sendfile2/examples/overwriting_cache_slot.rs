//! A cache of slots in one file, which are overwritten in place while they are sent: who is being
//! sent a slot gets what it was.
//!
//! A request is a line `get SLOT`, which is answered by the 65,536 bytes of the slot, or `put SLOT`
//! with as many bytes behind it, which is answered by the line `stored`.
//!
//! ```sh
//! truncate -s 1M slots && cargo run --example overwriting_cache_slot -- 127.0.0.1:4000 slots
//! ```
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use sendfile2::guard::GuardedFile;
use sendfile2::{SendFlags, Sender};

const SLOT: u64 = 65_536;
/// A client may be silent, or not read what it is sent, for so long. One that keeps a slot from
/// being overwritten for longer loses its connection.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: overwriting_cache_slot ADDRESS FILE".into());
    };
    // Nobody but this program may write to it: the guard knows only who goes through it.
    let cache = GuardedFile::open(path)?;
    let listener = TcpListener::bind(address).map_err(|e| format!("cannot listen there: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        let cache = cache.clone();
        thread::Builder::new().spawn(move || {
            if let Err(e) = serve(stream, &cache) {
                eprintln!("{peer}: {e}");
            }
        })?;
    }
}

fn serve(stream: TcpStream, cache: &GuardedFile) -> Result<(), Box<dyn Error>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut connection = BufReader::new(Sender::new(stream)?);
    let mut line = String::new();
    while connection.by_ref().take(64).read_line(&mut line)? > 0 {
        let slots = cache.source().size()? / SLOT;
        match request(&line, slots).ok_or("the request is not understood")? {
            ("get", slot) => {
                // Before the first byte, and for all of them: so the answer is of one generation.
                let lease = cache.lease(slot.clone(), PATIENCE)?;
                connection.get_mut().send_lease(&lease, slot, SendFlags::NONE, PATIENCE)?;
                // The lease is dropped here, and what is still in flight stays leased.
            }
            (_, slot) => {
                // All of it is here before anybody waits: a slow client holds up nobody.
                let mut new = vec![0; usize::try_from(SLOT)?];
                connection.read_exact(&mut new)?;
                // Waits for what is being sent of the slot, or detaches it; and from now on no
                // lease of it is granted until it is written.
                cache.write_at_abort(&new, slot.start, PATIENCE)?;
                connection.get_mut().send(b"stored\n", SendFlags::NONE, PATIENCE)?;
            }
        }
        line.clear();
    }
    connection.into_inner().close(PATIENCE)?;
    Ok(())
}

/// The verb of a request and the bytes of its slot, if there is such a slot.
fn request(line: &str, slots: u64) -> Option<(&str, Range<u64>)> {
    let (verb, slot) = line.trim_end().split_once(' ')?;
    let slot: u64 = slot.parse().ok().filter(|slot| *slot < slots)?;
    ["get", "put"].contains(&verb).then_some((verb, slot * SLOT..(slot + 1) * SLOT))
}
