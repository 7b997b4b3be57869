//! Overwrites of what others may be sending.

use pyo3::prelude::*;
use sendfile2::Source;
use sendfile2::detach::Detacher;

use crate::arguments;
use crate::errors;

/// Overwrites a part of a file that anybody may be sending, and returns the bytes written: all.
///
/// What is in flight keeps its old bytes, whoever sent it. Only whole units (``pwrite_unit``) within the
/// file; nothing is synced. Where that cannot be done (tmpfs, say), nothing is written, and
/// ``NotDetached`` is raised.
#[pyfunction]
pub(crate) fn pwrite(
    py: Python<'_>,
    file: &Bound<'_, PyAny>,
    data: &Bound<'_, PyAny>,
    offset: i64,
) -> PyResult<usize> {
    let offset = arguments::unsigned("offset", offset)?;
    let data = arguments::bytes(data)?;
    let detacher = detacher(py, file)?;
    py.detach(|| detacher.overwrite(&data, offset))
        .map_err(|error| errors::not_overwritten(&error))?;
    Ok(data.len())
}

/// The unit of ``pwrite``, in bytes: offsets and lengths are multiples of it.
#[pyfunction]
pub(crate) fn pwrite_unit(py: Python<'_>, file: &Bound<'_, PyAny>) -> PyResult<u64> {
    let detacher = detacher(py, file)?;
    let unit = py.detach(|| detacher.unit());
    unit.map_err(|why| errors::not_detached(&why, why.to_string(), 0))
}

fn detacher(py: Python<'_>, file: &Bound<'_, PyAny>) -> PyResult<Detacher> {
    let file = arguments::descriptor(file)?;
    py.detach(|| {
        let source = Source::new(file).map_err(|error| errors::general(&error))?;
        Detacher::new(&source).map_err(|why| errors::not_detached(&why, why.to_string(), 0))
    })
}
