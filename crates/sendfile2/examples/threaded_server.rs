//! A file server with a thread for each connection.
//!
//! A request is a line `START END`, which asks for these bytes of the file; the answer is a line
//! with their number, and the bytes. `udp`, `tokio_server`, `epoll_loop` and `uring_server` answer
//! the same requests.
//!
//! ```sh
//! cargo run --example threaded_server -- 127.0.0.1:4000 FILE
//! ```
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::thread;
use std::time::Duration;

use sendfile2::{SendFlags, Sender, Source};

/// A client may be silent, or not read what it is sent, for so long.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: threaded_server ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    let listener = TcpListener::bind(address).map_err(|e| format!("cannot listen there: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept()?;
        // A handle: all threads send from the same mapping.
        let file = file.clone();
        thread::Builder::new().spawn(move || {
            if let Err(e) = serve(stream, &file) {
                eprintln!("{peer}: {e}");
            }
        })?;
    }
}

fn serve(stream: TcpStream, file: &Source) -> Result<(), Box<dyn Error>> {
    // Options of the socket stay as they were before it was handed over.
    stream.set_read_timeout(Some(PATIENCE))?;
    // Who reads from the sender owns it, and lends it to who sends: one thread, by turns.
    let mut connection = BufReader::new(Sender::new(stream)?);
    let mut line = String::new();
    // No client makes a line longer than this.
    while connection.by_ref().take(64).read_line(&mut line)? > 0 {
        let sender = connection.get_mut();
        let range = range(&line, file.size()?).ok_or("the request is not understood")?;
        let header = format!("{}\n", range.end - range.start);
        // MORE: header and bytes leave together.
        sender.send(header.as_bytes(), SendFlags::MORE, PATIENCE)?;
        let sent = sender.send_file(file, range, SendFlags::NONE, PATIENCE)?;
        println!("{} bytes by {}", sent.bytes, sent.ticket.choice().engine);
        line.clear();
    }
    // Ends the stream, and waits until the kernel needs nothing of the file any more. A sender that
    // is dropped instead has all of it delivered by the library's own thread.
    connection.into_inner().close(PATIENCE)?;
    Ok(())
}

/// The bytes that are asked for, if the file has them.
fn range(line: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = line.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end && range.end <= size).then_some(range)
}
