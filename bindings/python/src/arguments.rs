//! The arguments that Python hands over: descriptors, numbers, times, bytes.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use rustix::net::{SocketType, sockopt};
use sendfile2::Deadline;
use sendfile2::guard;

use crate::errors;
use crate::guard::Lease;

/// The origin of the bytes of a send.
pub(crate) enum Origin {
    File(OwnedFd),
    Lease(guard::Lease),
}

/// Duplicates the descriptor of an object with `fileno()`, or a descriptor that is given by its
/// number. The duplicate keeps it what it is, whoever closes the number meanwhile.
pub(crate) fn descriptor(object: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let number: i32 = match object.extract() {
        Ok(number) => number,
        Err(_) => object.call_method0("fileno")?.extract()?,
    };
    sendfile2_sys::duplicate(number).map_err(|e| errors::io(&e, "the descriptor"))
}

/// Duplicates the descriptor of a stream socket: sends are continued in the middle, which would split
/// a record.
pub(crate) fn stream(object: &Bound<'_, PyAny>) -> PyResult<OwnedFd> {
    let socket = descriptor(object)?;
    match sockopt::socket_type(&socket) {
        Ok(SocketType::STREAM) => Ok(socket),
        Ok(_) => Err(PyValueError::new_err("only stream sockets can send files")),
        Err(e) => Err(errors::io(&e.into(), "the socket")),
    }
}

/// The origin that `file` is, and the range of it, whose end may be behind that of the file.
pub(crate) fn origin(
    file: &Bound<'_, PyAny>,
    offset: Option<i64>,
    count: Option<i64>,
) -> PyResult<(Origin, Range<u64>)> {
    let offset = offset.map(|offset| unsigned("offset", offset)).transpose()?;
    let count = count.map(|count| unsigned("count", count)).transpose()?;
    let (origin, leased) = match file.cast::<Lease>() {
        Ok(lease) => {
            let (lease, leased) = lease.get().handle()?;
            (Origin::Lease(lease), leased)
        }
        Err(_) => (Origin::File(descriptor(file)?), 0..u64::MAX),
    };
    let start = offset.unwrap_or(leased.start);
    let end = count.map_or(leased.end, |count| start.saturating_add(count));
    // What is not leased is refused where it is read.
    Ok((origin, start..end.max(start)))
}

pub(crate) fn unsigned(name: &str, number: i64) -> PyResult<u64> {
    u64::try_from(number).map_err(|_| PyValueError::new_err(format!("{name} is negative")))
}

/// The range of `count` bytes from `offset` on.
pub(crate) fn range(offset: i64, count: i64) -> PyResult<Range<u64>> {
    let (start, count) = (unsigned("offset", offset)?, unsigned("count", count)?);
    Ok(start..start.saturating_add(count))
}

/// The deadline that is so many seconds away; none: never.
pub(crate) fn deadline(seconds: Option<f64>) -> PyResult<Deadline> {
    let Some(seconds) = seconds else { return Ok(Deadline::NEVER) };
    // Infinity is no duration, and never ends.
    if seconds == f64::INFINITY {
        return Ok(Deadline::NEVER);
    }
    let duration = Duration::try_from_secs_f64(seconds)
        .map_err(|why| PyValueError::new_err(format!("deadline of {seconds} seconds: {why}")))?;
    Ok(duration.into())
}

/// The bytes of whatever has a buffer; copied, but for `bytes`.
pub(crate) fn bytes(data: &Bound<'_, PyAny>) -> PyResult<PyBackedBytes> {
    if let Ok(bytes) = data.extract() {
        return Ok(bytes);
    }
    let view = data.py().import("builtins")?.getattr("memoryview")?.call1((data,))?;
    Ok(view.call_method0("tobytes")?.extract()?)
}
