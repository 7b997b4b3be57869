//! The connections of the engine `uring`: one ring for all of them, and so a loop of its own.

use std::net::TcpStream;
use std::ops::Range;
use std::time::Instant;

use anyhow::{Context, ensure};
use sendfile2::uring::{Driver, Socket};
use sendfile2::{SendFlags, Ticket};

use super::sender::Files;

/// A ring and its connections.
pub(super) struct Ring {
    driver: Driver,
    sockets: Vec<Socket>,
    leased: bool,
}

impl Ring {
    pub(super) fn new(streams: Vec<TcpStream>, leased: bool) -> anyhow::Result<Self> {
        let driver = Driver::new()?;
        let add = |socket: TcpStream| -> anyhow::Result<Socket> {
            socket.set_nodelay(true)?;
            Ok(driver.add(socket)?)
        };
        let sockets = streams.into_iter().map(add).collect::<anyhow::Result<_>>()?;
        Ok(Ring { driver, sockets, leased })
    }

    fn queue(&mut self, number: usize, files: &Files, range: Range<u64>) -> anyhow::Result<Ticket> {
        let socket = &mut self.sockets[number];
        Ok(if self.leased {
            // There is no writer, so the lease is granted at once.
            let lease = files.guard()?.try_lease(range.clone()).context("no lease")?;
            socket.queue_lease(&lease, range, SendFlags::NONE)?
        } else {
            socket.queue_file(files.source()?, range, SendFlags::NONE)?
        })
    }

    /// Sends what `next` gives, and waits until everything is released; returns how many requests
    /// that took: one that the socket had too little space for is followed by another. Each stream
    /// that has nothing queued gets a range, and all of them together one system call, which sleeps
    /// until half as many completions are there.
    pub(super) fn send(
        &mut self,
        files: &Files,
        mut next: impl FnMut() -> Option<Range<u64>>,
        deadline: Instant,
    ) -> anyhow::Result<u64> {
        let (before, mut over) = (self.requests(), false);
        let batch = self.sockets.len().div_ceil(2);
        loop {
            for number in 0..self.sockets.len() {
                if over || self.sockets[number].queued() > 0 {
                    continue;
                }
                match next() {
                    Some(range) => drop(self.queue(number, files, range)?),
                    None => over = true,
                }
            }
            if over && self.driver.under_way() == 0 {
                return Ok(self.requests() - before);
            }
            ensure!(Instant::now() < deadline, "nothing moved in time");
            self.driver.wait(if over { usize::MAX } else { batch }, deadline)?;
        }
    }

    /// Gives the first connection the first `bytes` of the file, and returns when the kernel has
    /// accepted them.
    pub(super) fn hand_over(
        &mut self,
        files: &Files,
        bytes: u64,
        deadline: Instant,
    ) -> anyhow::Result<Ticket> {
        let ticket = self.queue(0, files, 0..bytes)?;
        self.driver.submit()?;
        while ticket.bytes() < bytes {
            ensure!(Instant::now() < deadline, "nothing moved in time");
            if let Some(error) = ticket.error() {
                return Err(error.into());
            }
            self.driver.reap()?;
        }
        Ok(ticket)
    }

    pub(super) fn reap(&self) -> anyhow::Result<()> {
        self.driver.reap()?;
        Ok(())
    }

    /// The first connection.
    pub(super) fn first(&self) -> anyhow::Result<&Socket> {
        self.sockets.first().context("no connection")
    }

    /// Returns the number of requests so far that were released.
    fn requests(&self) -> u64 {
        self.sockets.iter().map(|socket| socket.counters().released).sum()
    }

    /// Returns the number of requests so far of which the kernel has made a copy.
    pub(super) fn copies(&self) -> u64 {
        self.sockets.iter().map(|socket| socket.counters().copied).sum()
    }
}
