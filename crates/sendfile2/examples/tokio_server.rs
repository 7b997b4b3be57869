//! A file server on tokio (feature `tokio`), with a task for each connection.
//!
//! A request is a line `START END`, which asks for these bytes of the file; the answer is a line
//! with their number, and the bytes.
//!
//! ```sh
//! cargo run --features tokio --example tokio_server -- 127.0.0.1:4000 FILE
//! ```
use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use sendfile2::tokio::AsyncSender;
use sendfile2::{SendFlags, Source};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A client may be silent, or not read what it is sent, for so long. Without a limit, one that has
/// stopped reading would keep its task, and pages of the file, for ever.
const PATIENCE: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: tokio_server ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|e| format!("cannot listen there: {e}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (stream, peer) = listener.accept().await?;
        let file = file.clone();
        tokio::spawn(async move {
            if let Err(e) = serve(stream, &file).await {
                eprintln!("{peer}: {e}");
            }
        });
    }
}

async fn serve(stream: TcpStream, file: &Source) -> Result<(), Failure> {
    // The half that reads may as well be given to another task.
    let (reader, mut sender) = AsyncSender::new(stream)?.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    // No client makes a line longer than this.
    while timeout(PATIENCE, (&mut reader).take(64).read_line(&mut line)).await?? > 0 {
        let range = range(&line, file.size()?).ok_or("the request is not understood")?;
        let header = format!("{}\n", range.end - range.start);
        let answer = async {
            // MORE: header and bytes leave together.
            sender.send(header.as_bytes(), SendFlags::MORE).await?;
            sender.send_file(file, range, SendFlags::NONE).await
        };
        // Where the time is up a part was sent, of which nobody knows how much: `?` ends the
        // connection.
        let sent = timeout(PATIENCE, answer).await??;
        println!("{} bytes by {}", sent.bytes, sent.ticket.choice().engine);
        line.clear();
    }
    // Ends the stream, and waits until the kernel needs nothing of the file any more. A sender that
    // is dropped instead has all of it delivered by the library's own thread.
    timeout(PATIENCE, sender.close()).await??;
    Ok(())
}

/// The bytes that are asked for, if the file has them.
fn range(line: &str, size: u64) -> Option<Range<u64>> {
    let (start, end) = line.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start < range.end && range.end <= size).then_some(range)
}
