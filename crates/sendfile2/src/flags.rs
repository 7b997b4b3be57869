//! The flags of a send.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// The flags of a send: [`NONE`](Self::NONE), or what is combined with `|`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SendFlags(u8);

impl SendFlags {
    /// No flag: a send like any other.
    pub const NONE: SendFlags = SendFlags(0);
    /// More follows at once, so that the kernel may wait with a segment that is not full
    /// (`MSG_MORE`). What does not follow after all delays the last segment by up to 200 ms.
    pub const MORE: SendFlags = SendFlags(1);

    /// These flags, with [`MORE`](Self::MORE) set if `more` is true, and cleared if not.
    #[must_use]
    pub const fn with_more(self, more: bool) -> Self {
        SendFlags(if more { self.0 | Self::MORE.0 } else { self.0 & !Self::MORE.0 })
    }

    /// Whether all of `flags` are set.
    #[must_use]
    pub const fn contains(self, flags: SendFlags) -> bool {
        self.0 & flags.0 == flags.0
    }

    pub(crate) const fn more(self) -> bool {
        self.contains(Self::MORE)
    }
}

impl BitOr for SendFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        SendFlags(self.0 | other.0)
    }
}

impl BitOrAssign for SendFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for SendFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.more() { "SendFlags(MORE)" } else { "SendFlags(NONE)" })
    }
}
