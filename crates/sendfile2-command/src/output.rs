//! Standard output and standard error.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use sendfile2::{Error, Source};

/// Writes `text` to standard output, without its colours where they are not wanted (no terminal,
/// `NO_COLOR`). A reader that went away (`| head -1`) has seen enough: that is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Returns an error and its causes, in one line. A cause that the message before it ends with is
/// not repeated: errors of the library name theirs.
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
    // An error is lost where standard error is closed.
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

/// Prints an error of the command line, or the help that was asked for.
#[must_use]
pub fn usage_error(mut error: clap::Error) -> ExitCode {
    // "To pass '--port' as a value": no value here begins so, as it happens.
    if let (ErrorKind::UnknownArgument, Some(ContextValue::StyledStrs(mut tips))) =
        (error.kind(), error.remove(ContextKind::Suggested))
    {
        tips.retain(|tip| !tip.to_string().contains("as a value"));
        if !tips.is_empty() {
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
        }
    }
    match error.print() {
        Err(e) if !error.use_stderr() && e.kind() != std::io::ErrorKind::BrokenPipe => {
            report_error(&anyhow::Error::from(e).context("cannot write to standard output"));
            ExitCode::FAILURE
        }
        // An error is lost where standard error is closed.
        _ => u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

/// Prints a line on standard error that is no failure.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Notes of events that may happen thousands of times: at most one a second is printed.
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

/// Returns the columns that prose may take: those of the terminal, but no more than can be read
/// well.
pub fn width() -> usize {
    textwrap::termwidth().clamp(40, 100)
}

/// Opens a file to send from.
pub fn open(path: &Path) -> anyhow::Result<Source> {
    Source::open(path).map_err(|e| match e {
        Error::Open { .. } if path.as_os_str() == "-" => {
            anyhow!("standard input is not sent from, as it may be a pipe: give the name of a file")
        }
        e => e.into(),
    })
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
