//! Waiting for many sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

/// An epoll set whose members have numbers.
pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub(super) fn new() -> anyhow::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?;
        Ok(Poll { epoll, events: Vec::with_capacity(64) })
    }

    pub(super) fn add(
        &self,
        fd: impl AsFd,
        number: usize,
        what: epoll::EventFlags,
    ) -> anyhow::Result<()> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(number as u64), what).context("epoll")
    }

    /// Waits until something happens; returns to which members, and what.
    pub(super) fn wait(
        &mut self,
        deadline: Instant,
    ) -> anyhow::Result<impl Iterator<Item = (usize, epoll::EventFlags)> + '_> {
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "nothing moved in time");
        let timeout = Timespec::try_from(left)?;
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context("epoll"),
        }
        Ok(self.events.iter().map(|event| {
            // It was made from an usize.
            (usize::try_from(event.data.u64()).unwrap_or(usize::MAX), event.flags)
        }))
    }
}
