//! What a power failure leaves: a log of what was done to the file.

use std::ops::Range;
use std::sync::Mutex;

/// One thing that was done to the file.
#[derive(Debug, Clone)]
pub(in crate::store) enum Done {
    Write(u64, Vec<u8>),
    Erase(Range<u64>),
    Sync,
}

#[derive(Debug, Default)]
pub(in crate::store) struct Log(pub(super) Mutex<Vec<Done>>);

impl Log {
    pub(in crate::store) fn write(&self, at: u64, bytes: &[u8]) {
        self.0.lock().unwrap().push(Done::Write(at, bytes.to_vec()));
    }

    pub(in crate::store) fn erase(&self, range: Range<u64>) {
        self.0.lock().unwrap().push(Done::Erase(range));
    }

    pub(in crate::store) fn sync(&self) {
        self.0.lock().unwrap().push(Done::Sync);
    }
}
