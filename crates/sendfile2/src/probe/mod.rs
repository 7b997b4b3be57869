//! The probe: what this machine allows, engine by engine, and why; and what `auto` would do for a
//! destination.
//!
//! Found by function, not by version: kernels have features without their version numbers, and
//! sandboxes have version numbers without the features.
//!
//! ```
//! let machine = sendfile2::probe::machine();
//! println!("{machine}");
//! for advice in machine.advice() {
//!     println!("{advice}");
//! }
//! ```

mod advice;
mod destination;
mod detaches;
mod file;
mod machine;

pub use advice::Advice;
pub use destination::{Destination, destination};
pub use detaches::{Detaches, Means, detaches};
pub use file::{File, file};
pub use machine::{Availability, EngineState, IoUring, Limits, Machine, Memlock, machine};
