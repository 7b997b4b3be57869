//! Leases and writers for tokio's tasks.

use std::ops::Range;
use std::time::Instant;

use super::clear::Need;
use super::exclusive::{Exclusive, span};
use super::file::GuardedFile;
use super::lease::{Lease, Lessee};
use super::queue::{Looked, Queued};
use super::ranges::Ranges;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::park::task::{Parker, failed};

/// Forms for tokio's tasks (feature `tokio`). Dropping a future gives up its place in the queue.
/// Tasks wander between threads, so that nobody can see here that a task waits for itself: drop a
/// lease before you await another one, or a write to what it covers.
///
/// All panic outside of a tokio runtime with I/O (and, where there is a deadline, its timer)
/// enabled.
impl GuardedFile {
    /// As [`lease`](Self::lease), for a task.
    ///
    /// # Errors
    /// [`Error::Wait`]; [`Error::Forked`].
    pub async fn lease_async(&self, ranges: impl Into<Ranges>) -> Result<Lease, Error> {
        self.0.shared.ours()?;
        let ranges = ranges.into();
        if let Some(lease) = self.grant(&ranges, std::sync::Arc::default()) {
            return Ok(lease);
        }
        let parker = Parker::new()?;
        let shared = &self.0.shared;
        let key = shared.table.add_lessee(parker.as_thread().waker());
        let _registered = Lessee { shared, key };
        loop {
            if let Some(lease) = self.grant(&ranges, std::sync::Arc::default()) {
                return Ok(lease);
            }
            parker.park(None).await?;
        }
    }

    /// As [`write_at`](Self::write_at), for a task; `data` is given by value, because it is
    /// written on another thread. If the future is dropped before the range is free, nothing is
    /// written; after that, everything.
    ///
    /// # Errors
    /// [`Error::File`] if writing fails, maybe after a part; [`Error::Wait`].
    pub async fn write_at_async<B>(&self, data: B, offset: u64) -> Result<(), Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let range = span(offset, data.as_ref())?;
        write(self.exclusive_async(range).await?, data, offset).await
    }

    /// As [`write_at_abort`](Self::write_at_abort), for a task: at `deadline` the connections in
    /// the way are aborted.
    ///
    /// # Errors
    /// As [`write_at_async`](Self::write_at_async); [`Error::Deadline`] as
    /// [`write_at_abort`](Self::write_at_abort).
    pub async fn write_at_abort_async<B>(
        &self,
        data: B,
        offset: u64,
        deadline: impl Into<Deadline>,
    ) -> Result<(), Error>
    where
        B: AsRef<[u8]> + Send + 'static,
    {
        let deadline = deadline.into();
        let range = span(offset, data.as_ref())?;
        write(self.acquire_async(range, deadline.instant(), true).await?, data, offset).await
    }

    /// Waits until no lease overlaps `range` that could not be detached, and keeps everybody else
    /// out of it until the result
    /// is dropped; as [`write_with`](Self::write_with), for a task.
    ///
    /// # Errors
    /// [`Error::Wait`].
    pub async fn exclusive_async(&self, range: Range<u64>) -> Result<Exclusive, Error> {
        self.acquire_async(range, None, false).await
    }

    async fn acquire_async(
        &self,
        range: Range<u64>,
        deadline: Option<Instant>,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        self.0.shared.ours()?;
        loop {
            let writer = self.wait_async(self.changed(&range)?, deadline, abort).await?;
            // The file may have been shortened meanwhile.
            if writer.covers(&self.changed(&range)?).is_ok() {
                return Ok(writer);
            }
        }
    }

    async fn wait_async(
        &self,
        range: Range<u64>,
        deadline: Option<Instant>,
        abort: bool,
    ) -> Result<Exclusive, Error> {
        if let Some(writer) = self.unhindered(&range)? {
            return Ok(writer);
        }
        let parker = Parker::new()?;
        let mut queued = Queued::new(self, range, Need::All, parker.as_thread(), deadline, abort)?;
        loop {
            match queued.look(false)? {
                Looked::Exclusive => return Ok(queued.writer),
                Looked::Detach => {
                    let job = queued.detaching();
                    let detaching = ::tokio::task::spawn_blocking(move || job.run());
                    let detached = detaching.await.map_err(|e| failed(e.into()))?;
                    queued.detached(detached)?;
                }
                Looked::Wait(until) => queued.heard(&parker.park(until).await?),
            }
        }
    }
}

/// On a thread that may wait for the disk.
async fn write<B>(range: Exclusive, data: B, offset: u64) -> Result<(), Error>
where
    B: AsRef<[u8]> + Send + 'static,
{
    let writing = move || range.write_at(data.as_ref(), offset);
    match ::tokio::task::spawn_blocking(writing).await {
        Ok(written) => written,
        // It panicked (in the data's AsRef), or the runtime is going away.
        Err(e) => Err(failed(e.into())),
    }
}
