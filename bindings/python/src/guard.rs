//! Guarded files and their leases.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use sendfile2::Error;
use sendfile2::guard::{self, GuardOptions, Overwrite, TryWrite};

use crate::arguments;
use crate::errors::{self, closed};

/// A file that is sent under leases and overwritten in place, by this process.
///
/// Leases are of the process: all ``GuardedFile`` of one file share them. A writer detaches what is in
/// flight, or, with ``overwrite="wait"`` and where that is impossible, waits for the leases in its
/// way. ``nothing_exposed`` declares that no packet refers to the file when it is guarded first.
#[pyclass(frozen, module = "sendfile2")]
pub(crate) struct GuardedFile(Mutex<Option<guard::GuardedFile>>);

impl GuardedFile {
    fn handle(&self) -> PyResult<guard::GuardedFile> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(closed)
    }

    /// Calls the library without the interpreter's lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&guard::GuardedFile) -> Result<T, Error> + Send,
    ) -> PyResult<T> {
        let guarded = self.handle()?;
        py.detach(|| call(&guarded)).map_err(|error| errors::general(&error))
    }
}

#[pymethods]
impl GuardedFile {
    #[new]
    #[pyo3(signature = (file, *, overwrite = "detach", nothing_exposed = false))]
    fn new(
        py: Python<'_>,
        file: &Bound<'_, PyAny>,
        overwrite: &str,
        nothing_exposed: bool,
    ) -> PyResult<Self> {
        let options = GuardOptions::new().overwrite(match overwrite {
            "detach" => Overwrite::Detach,
            "wait" => Overwrite::Wait,
            _ => {
                let text = format!("overwrite is {overwrite:?}: choose one of detach, wait");
                return Err(PyValueError::new_err(text));
            }
        });
        let options = if nothing_exposed { options.nothing_exposed() } else { options };
        let guarded = match file.extract::<PathBuf>() {
            Ok(path) => py.detach(|| options.open(path)),
            Err(_) => {
                let file = arguments::descriptor(file)?;
                py.detach(|| options.guard(file))
            }
        };
        let guarded = guarded.map_err(|error| errors::general(&error))?;
        Ok(GuardedFile(Mutex::new(Some(guarded))))
    }

    /// Leases a range; waits for a writer that is in the way, ``deadline`` seconds at most.
    #[pyo3(signature = (offset, count, deadline = None))]
    fn lease(
        &self,
        py: Python<'_>,
        offset: i64,
        count: i64,
        deadline: Option<f64>,
    ) -> PyResult<Lease> {
        let range = arguments::range(offset, count)?;
        let deadline = arguments::deadline(deadline)?;
        let lease = self.with(py, |guarded| guarded.lease(range.clone(), deadline))?;
        Ok(Lease { lease: Mutex::new(Some(lease)), range })
    }

    /// Leases a range, unless a writer is in the way.
    fn try_lease(&self, py: Python<'_>, offset: i64, count: i64) -> PyResult<Option<Lease>> {
        let range = arguments::range(offset, count)?;
        let lease = self.with(py, |guarded| Ok(guarded.try_lease(range.clone())))?;
        Ok(lease.map(|lease| Lease { lease: Mutex::new(Some(lease)), range }))
    }

    /// Overwrites at ``offset`` when nothing in flight can change by it. ``TimeoutError`` if that is
    /// not within ``deadline`` seconds; then nothing was written.
    #[pyo3(signature = (data, offset, deadline = None))]
    fn write_at(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        offset: i64,
        deadline: Option<f64>,
    ) -> PyResult<()> {
        let offset = arguments::unsigned("offset", offset)?;
        let (data, deadline) = (arguments::bytes(data)?, arguments::deadline(deadline)?);
        self.with(py, |guarded| guarded.write_at(&data, offset, deadline))
    }

    /// As ``write_at``; after ``deadline`` seconds it revokes the leases that are in its way.
    fn write_at_abort(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        offset: i64,
        deadline: f64,
    ) -> PyResult<()> {
        let offset = arguments::unsigned("offset", offset)?;
        let (data, deadline) = (arguments::bytes(data)?, arguments::deadline(Some(deadline))?);
        self.with(py, |guarded| guarded.write_at_abort(&data, offset, deadline))
    }

    /// Overwrites if nobody is in the way, and returns whether it has.
    fn try_write_at(&self, py: Python<'_>, data: &Bound<'_, PyAny>, offset: i64) -> PyResult<bool> {
        let offset = arguments::unsigned("offset", offset)?;
        let data = arguments::bytes(data)?;
        let written = self.with(py, |guarded| guarded.try_write_at(&data, offset))?;
        Ok(matches!(written, TryWrite::Written))
    }

    /// Sets the size of the file, as ``write_at`` does what is cut off.
    #[pyo3(signature = (size, deadline = None))]
    fn set_len(&self, py: Python<'_>, size: i64, deadline: Option<f64>) -> PyResult<()> {
        let (size, deadline) = (arguments::unsigned("size", size)?, arguments::deadline(deadline)?);
        self.with(py, |guarded| guarded.set_len(size, deadline))
    }

    /// Closes this handle; leases stay.
    fn close(&self) {
        let guarded = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(guarded);
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) {
        self.close();
    }
}

/// The right to send a range, which is sent as it was when it was leased.
///
/// A context manager: it ends with the ``with`` statement. ``send_file`` takes it in place of a file.
#[pyclass(frozen, module = "sendfile2")]
pub(crate) struct Lease {
    lease: Mutex<Option<guard::Lease>>,
    range: Range<u64>,
}

impl Lease {
    /// A handle of the lease, which lasts as long as it, and the leased range.
    pub(crate) fn handle(&self) -> PyResult<(guard::Lease, Range<u64>)> {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((lease.ok_or_else(closed)?, self.range.clone()))
    }
}

#[pymethods]
impl Lease {
    #[getter]
    fn offset(&self) -> u64 {
        self.range.start
    }

    #[getter]
    fn count(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Reads what the file had there when it was leased; fewer bytes at its end.
    fn read_at<'py>(
        &self,
        py: Python<'py>,
        offset: i64,
        count: i64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let range = arguments::range(offset, count)?;
        let (lease, leased) = self.handle()?;
        // Before so much memory is asked for.
        if range.start < leased.start || range.end > leased.end {
            return Err(errors::general(&Error::NotLeased { range }));
        }
        let read = py.detach(|| {
            let size = lease.file_size()?.max(range.start).min(range.end) - range.start;
            // What does not fit into memory ends the process nowhere else either.
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
            let mut done = 0;
            while done < bytes.len() {
                match lease.read_at(&mut bytes[done..], range.start + done as u64)? {
                    0 => break,
                    read => done += read,
                }
            }
            bytes.truncate(done);
            Ok(bytes)
        });
        let bytes = read.map_err(|error| errors::general(&error))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Ends the lease, unless a send still has it.
    fn close(&self) {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lease);
    }

    fn __enter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    #[pyo3(signature = (*_error))]
    fn __exit__(&self, _error: &Bound<'_, PyAny>) {
        self.close();
    }
}
