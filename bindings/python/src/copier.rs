//! Sends by copies: what the socket has taken is free to be overwritten.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use rustix::io::{Errno, ReadWriteFlags, retry_on_intr};
use rustix::net::SendFlags;
use sendfile2::Error;

use crate::arguments::{self, Origin};
use crate::errors::{Failure, closed};

/// Bytes read, and sent, by one call: they stay in the processor's cache in between.
const BUFFER: usize = 128 << 10;

/// Bytes that are sent before somebody looks for signals, or serves another connection.
const STEP: u64 = 1 << 20;

/// The end of one step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// All is sent, or the file ends here.
    Done,
    /// There is more to send.
    More,
    /// The socket has no room.
    Full,
    /// The file must be read from the disk, which was not to be waited for.
    Cold,
}

/// The copies of one send. It keeps a duplicate of the socket, so that its number stays the
/// socket's, and waits for nothing but the disk.
pub(crate) struct Copies {
    socket: OwnedFd,
    origin: Origin,
    range: Range<u64>,
    sent: u64,
    buffer: Vec<u8>,
}

impl Copies {
    /// The copies of `range`, of which `sent` bytes were sent before.
    pub(crate) fn new(socket: OwnedFd, origin: Origin, range: Range<u64>, sent: u64) -> Self {
        Copies { socket, origin, range, sent, buffer: Vec::new() }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends up to [`STEP`] bytes. If `cached`, only what takes no waiting for the disk.
    pub(crate) fn step(&mut self, cached: bool) -> Result<Step, Failure> {
        let until = self.sent.saturating_add(STEP);
        while self.sent < until {
            let at = self.range.start + self.sent;
            let left = usize::try_from(self.range.end - at).unwrap_or(BUFFER).min(BUFFER);
            if left == 0 {
                return Ok(Step::Done);
            }
            self.buffer.resize(left.max(self.buffer.len()), 0);
            let buffer = &mut self.buffer[..left];
            let read = self.origin.read(buffer, at, cached);
            let read = match read.map_err(|error| Failure::copied(error, self.sent))? {
                Some(0) => return Ok(Step::Done),
                Some(read) => read,
                None => return Ok(Step::Cold),
            };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match retry_on_intr(|| rustix::net::send(&self.socket, &buffer[..read], flags)) {
                Ok(sent) => self.sent += sent as u64,
                Err(Errno::AGAIN) => return Ok(Step::Full),
                Err(e) => {
                    let error = Error::Socket { op: "send", cause: e.into() };
                    return Err(Failure::copied(error, self.sent));
                }
            }
        }
        Ok(Step::More)
    }
}

impl Origin {
    /// Reads at `offset`; `None` if it is to be read from the disk, and that was not to be waited for.
    fn read(&self, buffer: &mut [u8], offset: u64, cached: bool) -> Result<Option<usize>, Error> {
        match self {
            Origin::Lease(lease) if cached => lease.try_read_at(buffer, offset),
            Origin::Lease(lease) => lease.read_at(buffer, offset).map(Some),
            Origin::File(file) => {
                let failed = |e: Errno| Error::File { op: "read", offset, cause: e.into() };
                if !cached {
                    return retry_on_intr(|| rustix::io::pread(file, &mut *buffer, offset))
                        .map(Some)
                        .map_err(failed);
                }
                let mut slices = [std::io::IoSliceMut::new(buffer)];
                let flags = ReadWriteFlags::NOWAIT;
                let read = || rustix::io::preadv2(file, &mut slices, offset, flags);
                match retry_on_intr(read) {
                    Ok(read) => Ok(Some(read)),
                    Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
                    Err(e) => Err(failed(e)),
                }
            }
        }
    }
}

/// The same for the event loop.
#[pyclass(frozen)]
pub(crate) struct Copier(Mutex<Inner>);

struct Inner {
    /// None: closed.
    copies: Option<Copies>,
    sent: u64,
}

impl Copier {
    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Copier {
    #[new]
    fn new(
        socket: &Bound<'_, PyAny>,
        file: &Bound<'_, PyAny>,
        offset: Option<i64>,
        count: Option<i64>,
    ) -> PyResult<Self> {
        let (origin, range) = arguments::origin(file, offset, count)?;
        let copies = Copies::new(arguments::stream(socket)?, origin, range, 0);
        Ok(Copier(Mutex::new(Inner { copies: Some(copies), sent: 0 })))
    }

    /// The number of the duplicate, to be watched.
    fn fileno(&self) -> PyResult<i32> {
        self.locked().copies.as_ref().map(|copies| copies.socket.as_raw_fd()).ok_or_else(closed)
    }

    #[getter]
    fn sent(&self) -> u64 {
        self.locked().sent
    }

    /// What ended the step: "done", "more", "full", "cold".
    fn step(&self, py: Python<'_>, cached: bool) -> PyResult<&'static str> {
        let step = py.detach(|| {
            let inner = &mut *self.locked();
            let copies = inner.copies.as_mut().ok_or_else(closed)?;
            let step = copies.step(cached);
            inner.sent = copies.sent;
            step.map_err(PyErr::from)
        });
        Ok(match step? {
            Step::Done => "done",
            Step::More => "more",
            Step::Full => "full",
            Step::Cold => "cold",
        })
    }

    /// Gives up the duplicate and the lease, which the traceback of an error would keep.
    fn close(&self) {
        let copies = self.locked().copies.take();
        drop(copies);
    }
}
