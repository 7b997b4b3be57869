//! A loop of sends for counting instructions and system calls; docs/costs.md says how.
//!
//! `cost WAY SENDS`, where WAY is `bare` (plain `send(2)` of a slice, nothing else), an engine's
//! name, or `guarded` (`copy` under a lease for each send).
#![allow(missing_docs)]

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, Options, Sender};

const CHUNK: u64 = 4096;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(way), Some(sends)) = (args.next(), args.next()) else {
        return Err("usage: cost bare|copy|zerocopy|auto|guarded SENDS".into());
    };
    let sends: u64 = sends.parse()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let tx = TcpStream::connect(listener.local_addr()?)?;
    let (mut rx, _) = listener.accept()?;
    let mut sink = vec![0; CHUNK as usize];
    let file = tempfile::tempfile_in(".")?;
    rustix::io::write(&file, &vec![7; CHUNK as usize])?;
    let guard = GuardedFile::new(file)?;
    if way == "bare" {
        let bytes = vec![7; CHUNK as usize];
        for _ in 0..sends {
            let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
            rustix::net::send(&tx, &bytes, flags)?;
            rx.read_exact(&mut sink)?;
        }
        return Ok(());
    }
    let guarded = way == "guarded";
    let engine = if guarded { Engine::Copy } else { way.parse()? };
    let mut sender = Sender::with(tx, Options::new().engine(engine))?;
    for _ in 0..sends {
        if guarded {
            let lease = guard.try_lease(0..CHUNK).ok_or("a writer is in the way")?;
            sender.try_send_lease(&lease, 0..CHUNK, false)?;
        } else {
            sender.try_send_file(guard.source(), 0..CHUNK, false)?;
        }
        rx.read_exact(&mut sink)?;
    }
    sender.close(Instant::now() + Duration::from_secs(10))?;
    Ok(())
}
