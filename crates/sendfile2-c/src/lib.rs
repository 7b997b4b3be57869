//! libsendfile2: `sendfile2()` for C programs, with the interface of the kernel RFC of March 2025
//! ("Add ZC notifications to splice and sendfile"), on stock kernels.
//!
//! Thin and without state: each call maps what it sends, and unmaps it. A mapping that was kept
//! would hold an `flock(2)` past `close(2)`, make `F_SEAL_WRITE` fail, and delay the freeing of a
//! deleted file's space. Nothing is remembered by descriptor number, since programs close
//! descriptors, and libraries see nothing of it.
//!
//! What the functions promise is said in `sendfile2.h` and in `sendfile2(3)`.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod abi;
mod file;
mod kernel;
mod request;
mod ring;
mod send;
pub mod shim;
mod sync;

pub use abi::*;
