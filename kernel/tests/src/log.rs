//! The kernel's log during the tests.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

/// The words that a kernel logs only when something is broken.
const COMPLAINTS: [&str; 11] = [
    "BUG:",
    "WARNING:",
    "Oops",
    "KASAN",
    "UBSAN",
    "Call Trace",
    "refcount_t",
    "INFO: task",
    "possible circular locking",
    "unreferenced object",
    "general protection fault",
];

pub(crate) struct Log {
    marker: String,
}

impl Log {
    /// Begins the part of the log that is looked at, by a marker.
    pub(crate) fn begin() -> Self {
        let marker = format!("kernel-tests begin {}", std::process::id());
        let to = OpenOptions::new().write(true).open("/dev/kmsg");
        // If it cannot be written, the marker is not found, which is reported then.
        let _ = to.and_then(|mut to| to.write_all(marker.as_bytes()));
        Log { marker }
    }

    pub(crate) fn complaints(&self) -> std::io::Result<Vec<String>> {
        let mut from =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        let mut seen = false;
        let mut complaints = Vec::new();
        let mut record = [0; 8192];
        loop {
            match from.read(&mut record) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    seen |= text.contains(&self.marker);
                    if seen && COMPLAINTS.iter().any(|word| text.contains(word)) {
                        complaints.push(text.lines().next().unwrap_or_default().to_owned());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock && seen => return Ok(complaints),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(std::io::Error::other("its beginning was overwritten"));
                }
                // Some was overwritten.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
