//! The clients that tell hits from misses, which wrk does not.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use hdrhistogram::Histogram;

use crate::clock;

/// A path to be asked for.
pub(super) enum Asked {
    /// One of those that are asked for often.
    Hot(String),
    /// One that nobody has asked for.
    New(String),
}

/// The outcome of a load.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) requests: u64,
    /// The nanoseconds that the hits took.
    pub(super) hits: Histogram<u64>,
}

/// Lets clients ask, each for one after the other, until there is nothing more to be asked for: `next`
/// is called with how many were asked for before.
pub(super) fn run(
    address: SocketAddr,
    connections: u32,
    cpu: Option<usize>,
    next: impl Fn(u64) -> Option<Asked> + Sync,
) -> anyhow::Result<Load> {
    let asked = AtomicU64::new(0);
    let one = || -> anyhow::Result<Load> {
        clock::pin(cpu)?;
        let mut client = Client::connect(address)?;
        let mut load = empty()?;
        while let Some(what) = next(asked.fetch_add(1, Ordering::Relaxed)) {
            let begin = Instant::now();
            let (Asked::Hot(path) | Asked::New(path)) = &what;
            let hit = client.get(path, None)?;
            ensure!(!hit || matches!(what, Asked::Hot(_)), "what nobody had asked for is a hit");
            load.requests += 1;
            if hit {
                load.hits.record(u64::try_from(begin.elapsed().as_nanos())?)?;
            }
        }
        Ok(load)
    };
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for _ in 0..connections {
            let thread = std::thread::Builder::new().spawn_scoped(scope, one);
            threads.push(thread.context("cannot start a thread for a client")?);
        }
        let mut all = empty()?;
        for thread in threads {
            let load = thread.join().map_err(|_| anyhow!("a client panicked"))??;
            all.requests += load.requests;
            all.hits.add(&load.hits)?;
        }
        Ok(all)
    })
}

fn empty() -> anyhow::Result<Load> {
    Ok(Load { requests: 0, hits: Histogram::new(3)? })
}

/// A connection to a cache.
pub(super) struct Client {
    stream: BufReader<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).context("cannot connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Client { stream: BufReader::with_capacity(64 << 10, stream), buffer: Vec::new() })
    }

    /// Asks for a path; returns whether it was a hit.
    pub(super) fn get(&mut self, path: &str, body: Option<&mut Vec<u8>>) -> anyhow::Result<bool> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut hit, mut line) = (None, false, String::new());
        loop {
            let first = line.is_empty();
            line.clear();
            ensure!(self.stream.read_line(&mut line)? > 0, "the server ended the connection");
            ensure!(!first || line.starts_with("HTTP/1.1 200 "), "it answered: {}", line.trim());
            if line == "\r\n" {
                break;
            }
            line.make_ascii_lowercase();
            let Some((name, value)) = line.split_once(':') else { continue };
            match name {
                "content-length" => length = Some(value.trim().parse::<usize>()?),
                "cache-status" | "x-cache" => hit |= value.contains("hit"),
                _ => {}
            }
        }
        self.buffer.resize(length.context("an answer without a length")?, 0);
        self.stream.read_exact(&mut self.buffer)?;
        if let Some(body) = body {
            body.clone_from(&self.buffer);
        }
        Ok(hit)
    }
}
