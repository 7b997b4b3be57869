//! The methods of sending.

use std::fmt;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sendfile2::Engine;
use serde::{Deserialize, Serialize};

/// A method of sending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Method {
    /// An engine of the library.
    Library(Engine),
    /// An engine of the library under a lease, taken for each call.
    Leased(Engine),
    /// `sendfile(2)`, to which the others are compared.
    Sendfile,
    /// `splice(2)` into a pipe, and from there into the socket.
    Splice,
    /// `pread(2)` and `send(2)`.
    ReadWrite,
}

/// The suffix of an engine's name.
const LEASED: &str = "+lease";

impl Method {
    /// The library's engine `sendfile`, which serves nothing without a lease.
    pub const SENDFILE_LEASED: Method = Method::Leased(Engine::Sendfile);

    /// The library's choice under a lease, where it may be `sendfile(2)`.
    pub const AUTO_LEASED: Method = Method::Leased(Engine::Auto);

    /// Returns all methods, and under a lease only that which there is in no other way: first those
    /// that there were before this library.
    pub fn all() -> impl Iterator<Item = Method> {
        let before = [Method::Sendfile, Method::SENDFILE_LEASED, Method::Splice, Method::ReadWrite];
        let without_lease = |engine: &Engine| *engine != Engine::Sendfile;
        let engines = Engine::ALL.iter().copied().filter(without_lease).map(Method::Library);
        before.into_iter().chain(engines)
    }

    /// Returns all methods that can be asked for: [`all`](Self::all), and `auto` under a lease.
    pub fn named() -> impl Iterator<Item = Method> {
        Method::all().chain([Method::AUTO_LEASED])
    }

    /// Returns all methods but that whose release is never told, and need not be.
    pub fn releasing() -> impl Iterator<Item = Method> {
        Method::all().filter(|method| *method != Method::SENDFILE_LEASED)
    }

    /// Returns the method's name on the command line and in results.
    pub fn name(self) -> String {
        let lease = if let Method::Leased(_) = self { LEASED } else { "" };
        format!("{}{lease}", self.base())
    }

    fn base(self) -> &'static str {
        match self {
            Method::Library(engine) | Method::Leased(engine) => engine.name(),
            Method::Sendfile => "sendfile",
            Method::Splice => "splice",
            Method::ReadWrite => "read+write",
        }
    }

    /// Returns whether the sender knows when the file may be overwritten.
    pub fn is_safe(self) -> bool {
        !matches!(self, Method::Sendfile | Method::Splice)
    }

    /// Returns the library's engine, if the method is one.
    pub fn engine(self) -> Option<Engine> {
        match self {
            Method::Library(engine) | Method::Leased(engine) => Some(engine),
            Method::Sendfile | Method::Splice | Method::ReadWrite => None,
        }
    }

    /// Reads one of `methods` from the command line, by its name.
    pub fn parser(methods: impl IntoIterator<Item = Self>) -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(methods.into_iter().map(Method::name)).try_map(Method::try_from)
    }
}

impl FromStr for Method {
    type Err = sendfile2::UnknownEngine;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if let Some(method) = Method::all().find(|method| method.name() == name) {
            return Ok(method);
        }
        match name.strip_suffix(LEASED) {
            Some(engine) => engine.parse().map(Method::Leased),
            None => name.parse().map(Method::Library),
        }
    }
}

impl TryFrom<String> for Method {
    type Error = sendfile2::UnknownEngine;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.name()
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let leased = Engine::ALL.iter().copied().map(Method::Leased);
        for method in Method::all().chain(leased) {
            assert_eq!(method.name().parse(), Ok(method));
        }
        assert!("+lease".parse::<Method>().is_err() && "mail".parse::<Method>().is_err());
    }
}
