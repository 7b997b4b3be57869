//! Strangers' code, run so that a panic in it keeps nobody from what is due.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Runs strangers' code (destructors, hooks, who listens to traces) piece by piece: one that panics
/// keeps no other piece from its turn.
#[derive(Debug, Default)]
pub(crate) struct Apart(Option<Box<dyn Any + Send>>);

impl Apart {
    pub(crate) fn run(&mut self, piece: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(piece)) {
            self.0.get_or_insert(panic);
        }
    }

    /// Lets the first panic go on, unless the thread panics already.
    pub(crate) fn resume(self) {
        if let Some(panic) = self.0.filter(|_| !std::thread::panicking()) {
            resume_unwind(panic);
        }
    }
}
