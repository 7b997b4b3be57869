//! Standard output and standard error.

use std::io::{self, Write};

use anyhow::Context;

/// Writes `text` to standard output, without its colours where they are not wanted (no terminal,
/// `NO_COLOR`). A reader that went away (`| head -1`) has seen enough: that is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Says on standard error what went wrong, in one line.
pub(crate) fn complain(error: &anyhow::Error) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "sendfile2: {}", sentence(error));
}

/// The error and its causes. The library's errors name their cause themselves: it is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cause_is_said_twice() {
        let source = io::Error::other("the disk is on fire");
        let library = sendfile2::Error::File { op: "pread", offset: 7, source };
        let error = anyhow::Error::from(library).context("demo");
        let text = sentence(&error);
        assert_eq!(text, "demo: pread of the file failed at byte 7: the disk is on fire");
    }
}
