//! A file server of a single thread, which waits by epoll and never otherwise.
//!
//! A request is a line `START END`, which asks for these bytes of the file; the answer is a line
//! with their number, and the bytes.
//!
//! ```sh
//! cargo run --example epoll_loop -- 127.0.0.1:4000 FILE
//! ```
use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, Read};
use std::net::TcpListener;
use std::ops::Range;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use sendfile2::{SendFlags, Sender, Sent, Source};

/// A connection; what was read of a request; what is still to be sent of the answer.
struct Client(Sender, Vec<u8>, Vec<u8>, Range<u64>);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: epoll_loop ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    let listener = TcpListener::bind(address).map_err(|e| format!("cannot listen there: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(0), EventFlags::IN)?;
    let mut clients = HashMap::new();
    let mut events = Vec::with_capacity(64);
    for next in 1.. {
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for key in events.drain(..).map(|event| event.data.u64()) {
            if key == 0 {
                let (stream, _) = listener.accept()?;
                stream.set_nonblocking(true)?; // For reads: `try_` forms never wait.
                let sender = Sender::new(stream)?;
                // At edges: followed until the socket would block. EPOLLERR comes unasked.
                let events = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
                epoll::add(&epoll, &sender, EventData::new_u64(next), events)?;
                clients.insert(next, Client(sender, vec![], vec![], 0..0));
            } else if let Some(client) = clients.get_mut(&key) {
                let goes_on = advance(client, &file);
                if let Err(e) = &goes_on {
                    eprintln!("client {key}: {e}");
                }
                if !goes_on.unwrap_or(false) {
                    // It gets what was sent, and then the end. Until then its socket is open, and
                    // there may be events of it, with a key that nobody has any more.
                    clients.remove(&key);
                }
            }
        }
    }
    Ok(())
}

/// Goes on with a client until its socket would block. Returns whether there will be more to do.
fn advance(client: &mut Client, file: &Source) -> Result<bool, Box<dyn Error>> {
    let Client(sender, asked, header, left) = client;
    sender.reap()?; // What EPOLLERR tells of, if it came.
    loop {
        let sent = if !header.is_empty() {
            sender.try_send(header, SendFlags::MORE)?
        } else if !left.is_empty() {
            sender.try_send_file(file, left.clone(), SendFlags::NONE)?
        } else if let Some(end) = asked.iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8(asked.drain(..=end).collect())?;
            *left = range(&line, file.size()?).ok_or("the request is not understood")?;
            *header = format!("{}\n", left.end - left.start).into_bytes();
            continue;
        } else {
            let mut buffer = [0; 64];
            match sender.read(&mut buffer) {
                Ok(length) if length == 0 || asked.len() > 64 => return Ok(false),
                Ok(length) => asked.extend_from_slice(&buffer[..length]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(e) => return Err(e.into()),
            }
            continue;
        };
        match sent {
            Sent::Accepted { bytes, .. } if !header.is_empty() => drop(header.drain(..bytes)),
            Sent::Accepted { bytes, .. } => left.start += u64::try_from(bytes)?,
            // EPOLLOUT follows; or, at a limit, EPOLLERR with a release, which makes room.
            _ => return Ok(true),
        }
    }
}

/// The bytes that are asked for, if the file has them.
fn range(line: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = line.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end && range.end <= size).then_some(range)
}
