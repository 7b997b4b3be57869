//! The process that receives: it reads whatever arrives into a buffer, as a client would.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::epoll::EventFlags;

use super::clock;
use super::message::{self, Received, ReceiverOrder};
use super::poll::Poll;
use crate::child;

/// The most that one read can take.
const BUFFER: usize = 1 << 20;

/// Serves the parent until it goes away.
pub(super) fn run(cpu: Option<usize>) -> anyhow::Result<()> {
    clock::pin(cpu).context("cannot stay on one processor")?;
    let mut client = Client { streams: Vec::new(), poll: Poll::new()?, buffer: vec![0; BUFFER] };
    while let Some(order) = child::recv() {
        match order {
            ReceiverOrder::Connect { address, streams } => {
                message::answer(client.connect(address, streams));
            }
            ReceiverOrder::Expect { bytes, timeout } => {
                let cpu = clock::cpu();
                message::answer(Ok(()));
                message::answer(client.read(bytes, Instant::now() + timeout).map(|()| {
                    let end = clock::now();
                    Received { end, cpu: clock::cpu() - cpu }
                }));
            }
        }
    }
    Ok(())
}

struct Client {
    streams: Vec<TcpStream>,
    poll: Poll,
    buffer: Vec<u8>,
}

impl Client {
    fn connect(&mut self, address: SocketAddr, streams: usize) -> anyhow::Result<()> {
        // Closing them takes them out of the set.
        self.streams.clear();
        for number in 0..streams {
            let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
                .with_context(|| format!("cannot connect to {address}"))?;
            stream.set_nonblocking(true)?;
            self.poll.add(&stream, number, EventFlags::IN)?;
            self.streams.push(stream);
        }
        Ok(())
    }

    fn read(&mut self, bytes: u64, deadline: Instant) -> anyhow::Result<()> {
        let mut left = bytes;
        while left > 0 {
            for (number, _) in self.poll.wait(deadline)? {
                // A read that fills the buffer has left something.
                loop {
                    match (&self.streams[number]).read(&mut self.buffer) {
                        Ok(0) => bail!("the connection ended early"),
                        Ok(n) => {
                            ensure!(n as u64 <= left, "more arrived than was to be sent");
                            left -= n as u64;
                            if n < BUFFER {
                                break;
                            }
                        }
                        Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                        Err(e) => return Err(e).context("cannot read"),
                    }
                }
            }
        }
        Ok(())
    }
}
