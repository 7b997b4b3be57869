//! Standard output and standard error.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use sendfile2::Source;

/// Writes `text` to standard output, without its colours where they are not wanted (no terminal,
/// `NO_COLOR`). A reader that went away (`| head -1`) has seen enough: that is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Returns an error and its causes, in one line. A cause that the message before it ends with is not
/// repeated: those of the library tell theirs.
#[must_use]
pub fn whole(error: &anyhow::Error) -> String {
    let mut whole = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !whole.ends_with(&cause) {
            whole = format!("{whole}: {cause}");
        }
    }
    whole
}

/// Reports an error on standard error, in one line.
pub fn report_error(error: &anyhow::Error) {
    // Where standard error is closed nobody can be told.
    let _ = writeln!(io::stderr().lock(), "sendfile2: {}", whole(error));
}

/// Reports the error, if there is one, and returns the exit status of a program that ends so.
pub fn exit_code(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints a line on standard error that is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Notes of what may happen thousands of times: at most one a second is printed.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Prints a note, unless there was one within the last second.
    pub fn note(&self, text: &str) {
        {
            let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
                return;
            }
            *last = Some(Instant::now());
        }
        note(text);
    }
}

/// The columns that prose may take: those of the terminal, but no more than can be read well.
pub fn width() -> usize {
    textwrap::termwidth().clamp(40, 100)
}

/// Opens a file to send from.
pub fn open(path: &Path) -> anyhow::Result<Source> {
    Ok(Source::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let missing = anyhow::Error::from(Source::open("/nonexistent").unwrap_err());
        let told = "cannot open /nonexistent: No such file or directory (os error 2)";
        assert_eq!(whole(&missing), told);
        assert_eq!(whole(&missing.context("the demo")), format!("the demo: {told}"));
        let other = anyhow::anyhow!("inner").context("outer");
        assert_eq!(whole(&other), "outer: inner");
    }
}
