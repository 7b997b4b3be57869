//! The ways in which pages of the page cache come into packets.

use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{SpliceFlags, pipe, splice};
use sendfile2::uring::Driver;
use sendfile2::{Engine, Options, SendFlags, Sender, Source};
use sendfile2_sys::errqueue::{self, Entry};
use sendfile2_sys::syscall::{self, SENDFILE_ZC, Sendfile2};

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
    /// The engine `native`, by this project's module.
    Native,
    /// `MSG_ZEROCOPY` of a mapping of the file.
    Zerocopy,
    /// The `SEND_ZC` of a ring, from a mapping of the file.
    Uring,
    /// sendfile2(2) of the patch series.
    Sendfile2,
    /// `SPLICE_F_ZC` of the patch series, from a pipe with pages of the file.
    SpliceZc,
}

impl Way {
    /// Returns the ways that this kernel has.
    pub(crate) fn here() -> Vec<Way> {
        let mut ways = vec![Way::Sendfile, Way::Splice, Way::Vmsplice, Way::Zerocopy, Way::Uring];
        if Path::new("/dev/sendfile2").exists() {
            ways.push(Way::Native);
        }
        if Sendfile2::find().is_ok() {
            ways.extend([Way::Sendfile2, Way::SpliceZc]);
        }
        ways
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Sendfile => "sendfile",
            Way::Splice => "splice",
            Way::Vmsplice => "vmsplice",
            Way::Native => "native",
            Way::Zerocopy => "zerocopy",
            Way::Uring => "uring",
            Way::Sendfile2 => "sendfile2(2)",
            Way::SpliceZc => "SPLICE_F_ZC",
        }
    }

    /// Whether the kernel keeps account of the pages for a notification: then it copies them before
    /// a tap or a receiver on this machine gets them.
    pub(crate) fn notifies(self) -> bool {
        !matches!(self, Way::Sendfile | Way::Splice | Way::Vmsplice)
    }

    /// Sends so many bytes of the file, and ends the stream.
    pub(crate) fn send(self, socket: TcpStream, file: &File, len: u64) -> anyhow::Result<()> {
        let engine = match self {
            Way::Native => Engine::Native,
            Way::Zerocopy => Engine::Zerocopy,
            Way::Uring => return ring(socket, file, len),
            Way::Sendfile2 | Way::SpliceZc => return self.by_the_series(&socket, file, len),
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

    /// Sends by calls of the patch series, and waits until the kernel has released all.
    fn by_the_series(self, socket: &TcpStream, file: &File, len: u64) -> anyhow::Result<()> {
        let call = Sendfile2::find()?;
        let (mut at, mut ids) = (0, 0);
        while at < len {
            let count = usize::try_from((len - at).min(1 << 16))?;
            if self == Way::Sendfile2 {
                let sent =
                    call.send(socket.as_fd(), file.as_fd(), Some(&mut at), count, SENDFILE_ZC)?;
                ensure!(sent > 0, "the file is shorter");
                ids += 1;
                continue;
            }
            let (output, input) = pipe()?;
            let mut left = splice(file, Some(&mut at), &input, None, count, SpliceFlags::empty())?;
            ensure!(left > 0, "the file is shorter");
            while left > 0 {
                left -= syscall::splice(output.as_fd(), socket.as_fd(), left, false)?;
                ids += 1;
            }
        }
        socket.shutdown(std::net::Shutdown::Write)?;
        released(socket, ids)
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

/// Waits until each of so many calls has been notified.
fn released(socket: &TcpStream, ids: u32) -> anyhow::Result<()> {
    let mut left = ids;
    while left > 0 {
        let limit = Timespec::try_from(PATIENCE)?;
        // The event is POLLERR, which is reported without being asked for.
        let ready = poll(&mut [PollFd::new(socket, PollFlags::empty())], Some(&limit))?;
        ensure!(ready > 0, "{left} of {ids} notifications have not come");
        let mut entries = Vec::new();
        while errqueue::read(socket.as_fd(), &mut entries)? {}
        for entry in entries {
            let Entry::Completion { lo, hi, .. } = entry? else { bail!("not a completion") };
            left = left.checked_sub(hi - lo + 1).context("too many notifications")?;
        }
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
