//! A file server of a single thread that sends by `io_uring` (feature `uring`): whatever there is
//! to be sent to all clients is given to the kernel by one system call a turn.
//!
//! A request is a line `START END`, which asks for these bytes of the file; the answer is a line
//! with their number, and the bytes.
//!
//! ```sh
//! cargo run --example uring_server -- 127.0.0.1:4000 FILE
//! ```
use std::error::Error;
use std::net::TcpListener;
use std::ops::Range;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{SendFlags, Source};

/// A connection, and what was read of a request.
struct Client(Socket, Vec<u8>);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: uring_server ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    // Where io_uring is forbidden the error says by whom.
    let mut driver = Driver::new()?;
    let listener = TcpListener::bind(address).map_err(|e| format!("cannot listen there: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    let mut clients: Vec<Client> = Vec::new();
    loop {
        // All that was queued on all sockets.
        driver.submit()?;
        let mut ready = vec![PollFd::new(&listener, PollFlags::IN)];
        // Readable when there are completions.
        ready.push(PollFd::new(&driver, PollFlags::IN));
        for Client(socket, _) in &clients {
            // Who has not taken what was queued may not ask for more.
            let idle = socket.queued() == 0;
            let events = if idle { PollFlags::IN } else { PollFlags::empty() };
            ready.push(PollFd::new(socket, events));
        }
        poll(&mut ready, None)?;
        let ready: Vec<bool> = ready.iter().map(|one| !one.revents().is_empty()).collect();
        // Lets go of what is released, and gives the kernel what was queued behind it.
        driver.reap()?;
        let mut told = ready[2..].iter();
        clients.retain_mut(|client| {
            // A client that goes gets what was queued, and then the end.
            !told.next().is_some_and(|told| *told)
                || serve(client, &file).unwrap_or_else(|e| {
                    eprintln!("a client: {e}");
                    false
                })
        });
        if ready[0] {
            let (stream, _) = listener.accept()?;
            clients.push(Client(driver.add(stream)?, Vec::new()));
        }
    }
}

/// Reads requests, and queues the answers. Returns whether more may come.
fn serve(client: &mut Client, file: &Source) -> Result<bool, Box<dyn Error>> {
    let Client(socket, asked) = client;
    let mut buffer = [0; 64];
    // The socket is the driver's, and is lent for reading.
    match recv(&*socket, &mut buffer, RecvFlags::DONTWAIT) {
        Ok((_, length)) if length == 0 || asked.len() > 64 => return Ok(false),
        Ok((_, length)) => asked.extend_from_slice(&buffer[..length]),
        Err(rustix::io::Errno::AGAIN) => return Ok(true),
        Err(e) => return Err(e.into()),
    }
    while let Some(end) = asked.iter().position(|byte| *byte == b'\n') {
        let line = String::from_utf8(asked.drain(..=end).collect())?;
        let range = range(&line, file.size()?).ok_or("the request is not understood")?;
        let header = format!("{}\n", range.end - range.start);
        socket.queue_bytes(header.into_bytes(), SendFlags::MORE)?;
        socket.queue_file(file, range, SendFlags::NONE)?;
    }
    Ok(true)
}

/// The bytes that are asked for, if the file has them.
fn range(line: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = line.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end && range.end <= size).then_some(range)
}
