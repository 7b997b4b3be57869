//! The ways in which pages of the page cache come into packets.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::pipe::{SpliceFlags, pipe, splice};
use sendfile2::uring::Driver;
use sendfile2::{Engine, Options, SendFlags, Sender, Source};

use crate::sys;

/// The limit of every wait, which only a hang passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// sendfile(2).
    Sendfile,
    /// splice(2) from the file into a pipe, and from there.
    Splice,
    /// vmsplice(2) of a mapping of the file into a pipe, and splice(2) from there.
    Vmsplice,
    /// This project's module.
    Native,
    /// `MSG_ZEROCOPY` of a mapping of the file.
    Zerocopy,
    /// The `SEND_ZC` of a ring, from a mapping of the file.
    Uring,
}

impl Way {
    pub(crate) const ALL: [Way; 6] =
        [Way::Sendfile, Way::Splice, Way::Vmsplice, Way::Native, Way::Zerocopy, Way::Uring];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Sendfile => "sendfile",
            Way::Splice => "splice",
            Way::Vmsplice => "vmsplice",
            Way::Native => "native",
            Way::Zerocopy => "zerocopy",
            Way::Uring => "uring",
        }
    }

    /// Whether the kernel keeps account of the pages for a notification: then it copies them before
    /// a tap or a receiver on this machine gets them.
    pub(crate) fn notifies(self) -> bool {
        matches!(self, Way::Native | Way::Zerocopy | Way::Uring)
    }

    /// Sends so many bytes of the file, and ends the stream.
    pub(crate) fn send(self, socket: TcpStream, file: &File, len: u64) -> anyhow::Result<()> {
        let engine = match self {
            Way::Native => Engine::Native,
            Way::Zerocopy => Engine::Zerocopy,
            Way::Uring => return ring(socket, file, len),
            Way::Sendfile | Way::Splice | Way::Vmsplice => {
                for at in (0..len).step_by(1 << 16) {
                    self.give(&socket, file, at, usize::try_from((len - at).min(1 << 16))?)?;
                }
                socket.shutdown(std::net::Shutdown::Write)?;
                return Ok(());
            }
        };
        let source = Source::new(file.try_clone()?)?;
        let mut sender = Sender::with(socket, Options::new().engine(engine))?;
        let deadline = Instant::now() + PATIENCE;
        sender.send_file(&source, 0..len, SendFlags::NONE, deadline)?;
        sender.close(deadline)?;
        Ok(())
    }

    /// Gives a part of the file to a socket of any kind.
    pub(crate) fn give(
        self,
        socket: impl AsFd,
        file: &File,
        at: u64,
        len: usize,
    ) -> anyhow::Result<()> {
        let mut done = 0;
        while done < len {
            let (mut from, rest) = (at + done as u64, len - done);
            done += if self == Way::Sendfile {
                rustix::fs::sendfile(&socket, file, Some(&mut from), rest)?
            } else {
                let (output, input) = pipe()?;
                let taken = if self == Way::Vmsplice {
                    sys::vmsplice(&input, file, from, rest)?
                } else {
                    splice(file, Some(&mut from), &input, None, rest, SpliceFlags::empty())?
                };
                empty(&output, &socket, taken)?;
                taken
            };
        }
        Ok(())
    }
}

fn empty(pipe: &OwnedFd, socket: impl AsFd, mut left: usize) -> anyhow::Result<()> {
    while left > 0 {
        let sent = splice(pipe, None, &socket, None, left, SpliceFlags::empty())?;
        ensure!(sent > 0, "the pipe is empty too early");
        left -= sent;
    }
    Ok(())
}

fn ring(socket: TcpStream, file: &File, len: u64) -> anyhow::Result<()> {
    let source = Source::new(file.try_clone()?)?;
    let deadline = Instant::now() + PATIENCE;
    let end = socket.try_clone()?;
    let mut driver = Driver::new()?;
    let mut socket = driver.add(socket)?;
    socket.queue_file(&source, 0..len, SendFlags::NONE)?;
    driver.submit()?;
    while socket.queued() > 0 {
        driver.wait(1, deadline)?;
    }
    end.shutdown(std::net::Shutdown::Write)?;
    socket.drain(deadline)?;
    Ok(())
}

/// Makes a new file, whose content is in the page cache.
pub(crate) fn file(path: &Path, content: &[u8]) -> std::io::Result<File> {
    let _ = std::fs::remove_file(path);
    let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    Ok(file)
}
