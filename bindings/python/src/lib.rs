//! The native half of the Python package `sendfile2`: what it promises is said there.

use pyo3::prelude::*;

mod arguments;
mod copier;
mod errors;
mod guard;
mod send;
mod write;

#[pymodule]
mod _native {
    #[pymodule_export]
    use crate::copier::Copier;
    #[pymodule_export]
    use crate::guard::{GuardedFile, Lease};
    #[pymodule_export]
    use crate::send::send_file;
    #[pymodule_export]
    use crate::write::{pwrite, pwrite_unit};

    #[allow(non_upper_case_globals)]
    #[pymodule_export]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
