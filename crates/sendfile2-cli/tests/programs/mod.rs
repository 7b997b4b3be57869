//! Programs of several kinds, compiled where their compilers are.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs are kept in this directory, and taken from there, if it is set: for guests, which have no
/// compiler.
const COMPILED: &str = "SENDFILE2_TEST_COMPILED";

/// The kinds of programs: by what they are compiled and linked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Dynamic,
    Static,
    StaticMusl,
    DynamicMusl,
    Go,
}

impl Kind {
    pub const ALL: [Kind; 5] =
        [Kind::Dynamic, Kind::Static, Kind::StaticMusl, Kind::DynamicMusl, Kind::Go];

    fn compiler(self) -> &'static [&'static str] {
        match self {
            Kind::Dynamic => &["cc", "-O1", "-pthread"],
            Kind::Static => &["cc", "-O1", "-pthread", "-static"],
            Kind::StaticMusl => &["musl-gcc", "-O1", "-pthread", "-static"],
            Kind::DynamicMusl => &["musl-gcc", "-O1", "-pthread"],
            Kind::Go => &["go", "build"],
        }
    }

    pub fn extension(self) -> &'static str {
        if self == Kind::Go { "go" } else { "c" }
    }

    /// Compiles a program into a directory; `None`, and it is said why, where it cannot be done.
    pub fn compile(self, source: &str, directory: &Path) -> Option<PathBuf> {
        let kept = std::env::var_os(COMPILED).map(PathBuf::from);
        let program = kept.as_deref().unwrap_or(directory).join(format!("{source}-{self:?}"));
        if kept.is_some() && program.exists() {
            return Some(program);
        }
        let source = sources().join(format!("{source}.{}", self.extension()));
        let mut words = self.compiler().iter();
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("-o").arg(&program).arg(&source);
        command
            .env("GOCACHE", directory.join("go"))
            .env("GOFLAGS", "-mod=mod")
            .env("CGO_ENABLED", "0");
        match command.output() {
            Ok(output) if output.status.success() => Some(program),
            Ok(output) if self == Kind::Dynamic => {
                panic!("{}", String::from_utf8_lossy(&output.stderr))
            }
            Ok(output) => {
                let why = String::from_utf8_lossy(&output.stderr);
                println!("SKIP: {self:?}: {}", why.lines().next().unwrap_or("no compiler"));
                None
            }
            Err(e) => {
                println!("SKIP: {self:?}: {}: {e}", self.compiler()[0]);
                None
            }
        }
    }
}

/// The directory of the programs' sources.
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c")
}
