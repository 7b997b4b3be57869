//! A file: whether what is in flight of it can be detached, and so overwritten.

use std::fmt;

use crate::detach::{Detacher, Proof};
use crate::not_detached::NotDetached;
use crate::refusal::Unmappable;
use crate::source::Source;

/// Whether what is in flight of a file can be [detached](crate::detach), as far as that is known
/// without writing to it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Detaches {
    /// Yes, on this filesystem, by these means.
    Yes(Means),
    /// Only a try shows it: the filesystem passes writes on to another one, or is not known.
    /// `None` where finding the means, too, would change something.
    Untried(Option<Means>),
    /// No, for this reason.
    No(String),
}

/// The means by which a file is detached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Means {
    /// Pages leave the page cache by a clone, as on btrfs, and else by direct I/O.
    pub clone: bool,
    /// The unit, in bytes, of what [`Detacher::overwrite`] writes.
    pub unit: u64,
    /// The way in which the page cache is asked.
    pub proof: Proof,
}

/// Finds whether `source` can be detached. Opens the file for writing where that changes nothing,
/// and writes nothing: the old bytes, rewritten beside another writer, could be the end of what
/// that one has just written.
#[must_use]
pub fn detaches(source: &Source) -> Detaches {
    // To be opened for writing it would be copied up.
    if source.unmappable() == Some(Unmappable::Overlay) {
        return Detaches::Untried(None);
    }
    match means(source) {
        Ok(means) if source.is_on_disk() || source.is_btrfs() => Detaches::Yes(means),
        Ok(means) => Detaches::Untried(Some(means)),
        Err(why) => Detaches::No(why.to_string()),
    }
}

fn means(source: &Source) -> Result<Means, NotDetached> {
    let detacher = Detacher::new(source)?;
    Ok(Means { clone: source.is_btrfs(), unit: detacher.unit()?, proof: detacher.proof() })
}

impl fmt::Display for Detaches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detaches::Yes(means) => write!(f, "yes ({means})"),
            Detaches::Untried(None) => f.write_str("only a try tells"),
            Detaches::Untried(Some(means)) => write!(f, "only a try tells ({means})"),
            Detaches::No(why) => write!(f, "no: {why}"),
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Means { clone, unit, proof } = self;
        let by = if *clone { "clones" } else { "direct I/O" };
        write!(f, "{by}, units of {unit} bytes, proof by {proof}")
    }
}
