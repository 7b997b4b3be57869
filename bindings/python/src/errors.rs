//! Errors as Python knows them.

use std::io;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use rustix::io::Errno;
use sendfile2::detach::{NotDetached, NotOverwritten};
use sendfile2::{Error, Ticket};

mod python {
    pyo3::import_exception!(sendfile2._errors, LeaseError);
    pyo3::import_exception!(sendfile2._errors, LeaseRevoked);
    pyo3::import_exception!(sendfile2._errors, NotDetached);
    pyo3::import_exception!(sendfile2._errors, PeerGone);
    pyo3::import_exception!(sendfile2._errors, SendError);
    pyo3::import_exception!(sendfile2._errors, SendTimeout);
}

/// A send that ended early.
pub(crate) struct Failure {
    pub(crate) error: Error,
    /// Bytes that the socket has taken.
    pub(crate) sent: u64,
    /// The kernel no longer reads them.
    pub(crate) released: bool,
}

impl Failure {
    /// The failure of a send whose bytes were copied, if there were any.
    pub(crate) fn copied(error: Error, sent: u64) -> Self {
        Failure { error, sent, released: true }
    }

    /// The failure of a send by reference.
    pub(crate) fn of(error: Error, sent: u64, ticket: &Ticket) -> Self {
        let released = sent == 0 || matches!(ticket.status(), sendfile2::Status::Released(_));
        Failure { error, sent, released }
    }
}

impl From<Failure> for PyErr {
    fn from(Failure { error, sent, released }: Failure) -> Self {
        let errno = match &error {
            // They are the lease's, and not the connection's.
            Error::Revoked | Error::NotLeased { .. } | Error::Forked => return general(&error),
            Error::Deadline(_) => Errno::TIMEDOUT,
            Error::Refused { .. } => Errno::OPNOTSUPP,
            Error::NotASource(_) => Errno::INVAL,
            error => beneath(error),
        };
        let mut text = error.to_string();
        if !released {
            text += "; the kernel may still read what was sent";
        }
        let arguments = (errno.raw_os_error(), text, sent, released);
        match errno {
            Errno::TIMEDOUT if matches!(error, Error::Deadline(_)) => {
                python::SendTimeout::new_err(arguments)
            }
            Errno::PIPE | Errno::CONNRESET | Errno::CONNABORTED => {
                python::PeerGone::new_err(arguments)
            }
            _ => python::SendError::new_err(arguments),
        }
    }
}

/// An error that is about no send.
pub(crate) fn general(error: &Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Revoked => python::LeaseRevoked::new_err(text),
        Error::NotLeased { .. } | Error::HoldsLease | Error::OwnLease => {
            python::LeaseError::new_err(text)
        }
        Error::Forked => PyRuntimeError::new_err(text),
        Error::Deadline(_) => PyTimeoutError::new_err((Errno::TIMEDOUT.raw_os_error(), text)),
        Error::NotASource(_) => PyOSError::new_err((Errno::INVAL.raw_os_error(), text)),
        Error::NotDetached(why) => not_detached(why, text, 0),
        // Python makes a subclass of it: FileNotFoundError, say.
        error => PyOSError::new_err((beneath(error).raw_os_error(), text)),
    }
}

/// The error of a call after `close()`.
pub(crate) fn closed() -> PyErr {
    PyValueError::new_err("it is closed")
}

/// An overwrite that was refused.
pub(crate) fn not_overwritten(error: &NotOverwritten) -> PyErr {
    not_detached(&error.why, error.to_string(), error.written)
}

pub(crate) fn not_detached(why: &NotDetached, text: String, written: u64) -> PyErr {
    python::NotDetached::new_err((errno(why).raw_os_error(), text, written))
}

/// An error of the operating system, of what `text` names.
pub(crate) fn io(error: &io::Error, text: &str) -> PyErr {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    PyOSError::new_err((errno.raw_os_error(), format!("{text}: {error}")))
}

fn beneath(error: &Error) -> Errno {
    error.io_error().and_then(Errno::from_io_error).unwrap_or(Errno::IO)
}

/// The errors of sendfile2_pwrite(3).
fn errno(why: &NotDetached) -> Errno {
    let beneath = |cause: &io::Error| Errno::from_io_error(cause).unwrap_or(Errno::IO);
    match why {
        NotDetached::NoDirect { cause } | NotDetached::Unsupported { cause, .. } => {
            match beneath(cause) {
                // Direct I/O and clones; no /proc, or another one.
                Errno::INVAL | Errno::XDEV | Errno::NOENT | Errno::STALE => Errno::OPNOTSUPP,
                cause => cause,
            }
        }
        NotDetached::NoProof => Errno::OPNOTSUPP,
        NotDetached::Unaligned { .. } | NotDetached::End { .. } => Errno::INVAL,
        NotDetached::BehindEnd { .. } => Errno::NXIO,
        NotDetached::Cached { .. } => Errno::BUSY,
        NotDetached::Io { cause, .. } => beneath(cause),
        _ => Errno::IO,
    }
}
