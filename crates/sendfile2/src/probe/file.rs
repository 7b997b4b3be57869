//! A file: how it would be sent.

use std::fmt;

use super::advice::{Advice, bytes};
use crate::error::Error;
use crate::refusal::Unmappable;
use crate::source::Source;

/// The way in which a file would be sent.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct File {
    /// Its size now, in bytes.
    pub size: u64,
    /// The name of its filesystem, as far as `f_type` tells it; `None` for a block device.
    pub filesystem: Option<String>,
    /// The reason why it is read and not mapped; `None` if it is mapped.
    pub unmappable: Option<Unmappable>,
}

/// Finds how `source` would be sent now. Maps its first byte where that is possible.
///
/// # Errors
/// [`Error::File`] if the file cannot be asked.
pub fn file(source: &Source) -> Result<File, Error> {
    Ok(File {
        size: source.size()?,
        filesystem: source.filesystem(),
        unmappable: source.unmappable_now()?,
    })
}

impl File {
    /// Returns advice: what could be changed so that zerocopy can serve it.
    #[must_use]
    pub fn advice(&self) -> Option<Advice> {
        self.unmappable.map(Advice::File)
    }
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  {:<20} {}", "size", bytes(self.size))?;
        let filesystem = self.filesystem.as_deref().unwrap_or("none: a block device");
        writeln!(f, "  {:<20} {filesystem}", "filesystem")?;
        match &self.unmappable {
            None => writeln!(f, "  {:<20} from a mapping: every engine can serve it", "sent"),
            Some(why) => {
                writeln!(f, "  {:<20} by pread, since {why}; zerocopy cannot serve it", "sent")
            }
        }
    }
}
