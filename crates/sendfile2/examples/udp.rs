//! A file server over UDP.
//!
//! A request is a datagram `START END`, which asks for these bytes of the file. They are sent by
//! datagrams of 1,200 bytes and a last one with the rest, from a socket of their own, as TFTP does.
//! Nothing tells a sender of datagrams how fast it may go: a client asks for as much as it can take
//! in, and again for what was lost.
//!
//! ```sh
//! cargo run --example udp -- 127.0.0.1:4000 FILE
//! ```
use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::time::Duration;

use sendfile2::{SendFlags, Sender, Source};

/// Bytes of a datagram, so that one fits the path of nearly everybody unfragmented.
const DATAGRAM: u64 = 1200;
/// Bytes of a request, at most: a single small datagram is no way to make much traffic.
const REQUEST: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: udp ADDRESS FILE".into());
    };
    let file = Source::open(path)?;
    let socket = UdpSocket::bind(address).map_err(|e| format!("cannot bind there: {e}"))?;
    let local = socket.local_addr()?;
    println!("listening on {local}");
    let mut request = [0; 64];
    loop {
        let (length, peer) = socket.recv_from(&mut request)?;
        let answered = range(&request[..length], file.size()?)
            .ok_or_else(|| "the request is not understood".into())
            .and_then(|range| answer(local, peer, &file, range));
        match answered {
            Ok(bytes) => println!("{bytes} bytes"),
            Err(e) => eprintln!("{peer}: {e}"),
        }
    }
}

fn answer(
    local: SocketAddr,
    peer: SocketAddr,
    file: &Source,
    range: Range<u64>,
) -> Result<u64, Box<dyn Error>> {
    // A sender takes a socket that is connected, and keeps the account of what only it sends there.
    let socket = UdpSocket::bind((local.ip(), 0))?;
    socket.connect(peer)?;
    let mut sender = Sender::new(socket)?;
    let mut at = range.start;
    while at < range.end {
        // One send is one datagram: all of these bytes, or an error.
        let end = range.end.min(at + DATAGRAM);
        sender.send_file(file, at..end, SendFlags::NONE, PATIENCE)?;
        at = end;
    }
    // Until the device has them all: then the file may be overwritten. Nobody acknowledges.
    sender.drain(PATIENCE)?;
    Ok(at - range.start)
}

/// The bytes that are asked for, if the file has them.
fn range(request: &[u8], size: u64) -> Option<Range<u64>> {
    let (start, end) = std::str::from_utf8(request).ok()?.trim_end().split_once(' ')?;
    let range: Range<u64> = start.parse().ok()?..end.parse().ok()?;
    let asked = range.end.checked_sub(range.start)?;
    (asked > 0 && asked <= REQUEST && range.end <= size).then_some(range)
}
