//! How the responses are sent: by an engine of the library, or by the control.

use std::fmt;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use sendfile2::Engine;
use serde::{Deserialize, Serialize};

/// The name of the control.
const SENDFILE: &str = "sendfile";

/// An engine, or plain `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Way {
    Library(Engine),
    Sendfile,
}

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Library(engine) => engine.name(),
            Way::Sendfile => SENDFILE,
        }
    }

    pub(super) fn is_control(self) -> bool {
        self == Way::Sendfile
    }

    /// Reads its name from the command line.
    pub(super) fn parser() -> impl TypedValueParser<Value = Self> {
        let engines = Engine::ALL.map(Engine::name);
        PossibleValuesParser::new(engines.into_iter().chain([SENDFILE])).try_map(Way::try_from)
    }
}

impl TryFrom<String> for Way {
    type Error = sendfile2::UnknownEngine;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        if name == SENDFILE { Ok(Way::Sendfile) } else { name.parse().map(Way::Library) }
    }
}

impl From<Way> for String {
    fn from(way: Way) -> Self {
        way.name().into()
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
