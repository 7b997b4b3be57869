//! The ways of sending that are compared.

use std::fmt;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sendfile2::Engine;
use serde::{Deserialize, Serialize};

/// A way of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Way {
    Library(Engine),
    /// The same under a lease, taken for each call.
    Leased(Engine),
    /// `sendfile(2)`, to which the others are compared.
    Sendfile,
    /// `splice(2)` into a pipe, and from there into the socket.
    Splice,
    /// `pread(2)` and `send(2)`.
    ReadWrite,
}

/// What follows an engine's name.
const LEASED: &str = "+lease";

impl Way {
    /// The ways that `bench engines` knows: what there was before this library first.
    pub(super) fn all() -> impl Iterator<Item = Way> {
        [Way::Sendfile, Way::Splice, Way::ReadWrite]
            .into_iter()
            .chain(Engine::ALL.into_iter().map(Way::Library))
    }

    pub(super) fn name(self) -> String {
        let lease = if let Way::Leased(_) = self { LEASED } else { "" };
        format!("{}{lease}", self.carrier())
    }

    fn carrier(self) -> &'static str {
        match self {
            Way::Library(engine) | Way::Leased(engine) => engine.name(),
            Way::Sendfile => "sendfile",
            Way::Splice => "splice",
            Way::ReadWrite => "read+write",
        }
    }

    /// Whether the sender knows when the file may be overwritten.
    pub(super) fn is_safe(self) -> bool {
        !matches!(self, Way::Sendfile | Way::Splice)
    }

    /// The library's engine, if it is one.
    pub(super) fn engine(self) -> Option<Engine> {
        match self {
            Way::Library(engine) | Way::Leased(engine) => Some(engine),
            Way::Sendfile | Way::Splice | Way::ReadWrite => None,
        }
    }

    /// Reads its name from the command line.
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(Way::all().map(Way::carrier)).try_map(Way::try_from)
    }
}

impl FromStr for Way {
    type Err = sendfile2::UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if let Some(way) = Way::all().find(|way| way.name() == name) {
            return Ok(way);
        }
        match name.strip_suffix(LEASED) {
            Some(engine) => engine.parse().map(Way::Leased),
            None => name.parse().map(Way::Library),
        }
    }
}

impl TryFrom<String> for Way {
    type Error = sendfile2::UnknownEngine;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Way> for String {
    fn from(way: Way) -> Self {
        way.name()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let leased = Engine::ALL.into_iter().map(Way::Leased);
        for way in Way::all().chain(leased) {
            assert_eq!(way.name().parse(), Ok(way));
        }
        assert!("+lease".parse::<Way>().is_err() && "mail".parse::<Way>().is_err());
    }
}
