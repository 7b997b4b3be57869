//! The storage of a file, as far as it decides how its pages leave the page cache.

use super::Source;
use crate::sys::filesystem;

impl Source {
    /// Whether the page cache is all that there is of the file, so that nothing leaves it.
    pub(crate) fn is_in_memory(&self) -> bool {
        !self.0.nature.block_device && self.0.nature.filesystem == filesystem::TMPFS
    }

    /// Whether the file is a disk, or on a filesystem whose direct I/O is known to reach one.
    pub(crate) fn is_on_disk(&self) -> bool {
        let nature = &self.0.nature;
        nature.block_device || [filesystem::EXT, filesystem::XFS].contains(&nature.filesystem)
    }

    /// Whether the unit of direct I/O on the file is known to stay as it is. On XFS a reflink raises it.
    pub(crate) fn keeps_direct_unit(&self) -> bool {
        self.0.nature.block_device || self.0.nature.filesystem == filesystem::EXT
    }

    /// Whether the file is on btrfs, whose direct writes go through the page cache where it keeps
    /// checksums.
    pub(crate) fn is_btrfs(&self) -> bool {
        !self.0.nature.block_device && self.0.nature.filesystem == filesystem::BTRFS
    }
}
