//! A connection on which one method of sending is measured, and one call on it.

use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, ensure};
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use rustix::pipe::SpliceFlags;
use sendfile2::guard::Lease;
use sendfile2::{Engine, Options, Sender, Sent};

use super::sender::Files;
use crate::method::Method;
use crate::scratch::len;

/// The most that a pipe or a buffer holds: more does not fit an unprivileged user's pipe, and no
/// program reads more at a time.
const BETWEEN: u64 = 1 << 20;

/// A connection.
pub(super) struct BenchConn {
    transport: Transport,
    /// The rest of the range that is still to be sent.
    part: Range<u64>,
    /// Whether each call announces that more follows.
    more: bool,
}

/// The means by which the bytes travel.
enum Transport {
    Library {
        sender: Sender,
        /// The number of plain copies that the library chose to make.
        plain: u64,
        leased: bool,
        lease: Option<Lease>,
    },
    Sendfile(TcpStream),
    Splice {
        socket: TcpStream,
        pipe: (OwnedFd, OwnedFd),
        filled: usize,
    },
    ReadWrite {
        socket: TcpStream,
        buffer: Vec<u8>,
        filled: Range<usize>,
    },
}

/// The result of a call.
pub(super) enum Step {
    Sent(u64),
    /// Nothing is possible before the socket reports something.
    Blocked,
}

impl BenchConn {
    pub(super) fn new(method: Method, socket: TcpStream) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let library = |socket: TcpStream, engine: Engine, leased| -> anyhow::Result<Transport> {
            let sender = Sender::with(socket, Options::new().engine(engine))?;
            Ok(Transport::Library { sender, plain: 0, leased, lease: None })
        };
        let transport = match method {
            Method::Library(engine) => library(socket, engine, false)?,
            Method::Leased(engine) => library(socket, engine, true)?,
            Method::Sendfile => Transport::Sendfile(socket),
            Method::Splice => {
                let pipe = rustix::pipe::pipe().context("pipe")?;
                Transport::Splice { socket, pipe, filled: 0 }
            }
            Method::ReadWrite => Transport::ReadWrite { socket, buffer: Vec::new(), filled: 0..0 },
        };
        Ok(BenchConn { transport, part: 0..0, more: false })
    }

    /// Gives the connection a range to send, when it has sent the last one.
    pub(super) fn give(&mut self, part: Range<u64>) -> anyhow::Result<()> {
        let between = part.end - part.start;
        self.part = part;
        match &mut self.transport {
            Transport::Splice { pipe, .. } => {
                let wanted = usize::try_from(between.min(BETWEEN))?;
                if rustix::pipe::fcntl_getpipe_size(&pipe.0)? < wanted {
                    // A limit on pipes leaves it as it is.
                    match rustix::pipe::fcntl_setpipe_size(&pipe.0, wanted) {
                        Ok(_) | Err(Errno::PERM) => {}
                        Err(e) => return Err(e).context("F_SETPIPE_SZ"),
                    }
                }
            }
            Transport::ReadWrite { buffer, .. } => {
                let wanted = usize::try_from(between.min(BETWEEN))?;
                if buffer.len() < wanted {
                    buffer.resize(wanted, 0);
                }
            }
            Transport::Library { .. } | Transport::Sendfile(_) => {}
        }
        Ok(())
    }

    /// Announces with each call from here on that more follows, or no longer.
    pub(super) fn set_more(&mut self, more: bool) -> anyhow::Result<()> {
        match &mut self.transport {
            // An empty send that does not say so ends it.
            Transport::Library { sender, .. } if !more => {
                drop(sender.try_send(&[], sendfile2::SendFlags::NONE)?);
            }
            Transport::Library { .. } => {}
            Transport::Sendfile(socket)
            | Transport::Splice { socket, .. }
            | Transport::ReadWrite { socket, .. } => sockopt::set_tcp_cork(socket, more)?,
        }
        self.more = more;
        Ok(())
    }

    /// Returns whether nothing is left of the range that the connection was given.
    pub(super) fn is_done(&self) -> bool {
        self.part.is_empty()
    }

    /// Makes one call that sends as much of the part as the kernel takes.
    pub(super) fn step(&mut self, files: &Files) -> anyhow::Result<Step> {
        let part = self.part.clone();
        let taken = match &mut self.transport {
            Transport::Library { sender, plain, leased, lease } => {
                let flags = sendfile2::SendFlags::NONE.with_more(self.more);
                let sent = if *leased {
                    // There is no writer, so the lease is granted at once.
                    let granted = match lease.take() {
                        None => files.guard()?.try_lease(part.clone()).context("no lease")?,
                        Some(lease) => lease,
                    };
                    sender.try_send_lease(lease.insert(granted), part.clone(), flags)?
                } else {
                    sender.try_send_file(files.source()?, part.clone(), flags)?
                };
                match sent {
                    Sent::Accepted { bytes, ticket } => {
                        *plain += u64::from(ticket.choice().engine == Engine::Copy);
                        if part.start + bytes as u64 == part.end {
                            *lease = None;
                        }
                        Some(bytes)
                    }
                    _ => None,
                }
            }
            Transport::Sendfile(socket) => {
                let mut at = part.start;
                let sent = rustix::fs::sendfile(&*socket, files.plain(), Some(&mut at), len(&part));
                accepted(sent).context("sendfile")?
            }
            Transport::Splice { socket, pipe, filled } => {
                if *filled == 0 {
                    let (mut at, to) = (part.start, &pipe.1);
                    *filled = rustix::pipe::splice(
                        files.plain(),
                        Some(&mut at),
                        to,
                        None,
                        len(&part),
                        SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
                    )
                    .context("splice from the file")?;
                    ensure!(*filled > 0, "the file is shorter than it was written");
                }
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                let sent = rustix::pipe::splice(&pipe.0, None, &*socket, None, *filled, flags);
                let sent = accepted(sent).context("splice to the socket")?;
                *filled -= sent.unwrap_or(0);
                sent
            }
            Transport::ReadWrite { socket, buffer, filled } => {
                if filled.start == filled.end {
                    let wanted = len(&part).min(buffer.len());
                    files.plain().read_exact_at(&mut buffer[..wanted], part.start)?;
                    *filled = 0..wanted;
                }
                let sent =
                    rustix::net::send(&*socket, &buffer[filled.clone()], SendFlags::NOSIGNAL);
                let sent = accepted(sent).context("send")?;
                filled.start += sent.unwrap_or(0);
                sent
            }
        };
        Ok(match taken {
            Some(bytes) => {
                self.part.start += bytes as u64;
                Step::Sent(bytes as u64)
            }
            None => Step::Blocked,
        })
    }

    /// Reads the notifications that there are.
    pub(super) fn reap(&self) -> anyhow::Result<()> {
        if let Transport::Library { sender, .. } = &self.transport {
            sender.reap()?;
        }
        Ok(())
    }

    /// Returns whether everything that was sent is released, as far as this method reports it.
    pub(super) fn is_released(&self) -> bool {
        match &self.transport {
            Transport::Library { sender, .. } => sender.in_flight().sends == 0,
            _ => true,
        }
    }

    /// Returns the number of calls so far after which the kernel had copied the bytes; `None` where
    /// it does not report that.
    pub(super) fn copies(&self, sends: u64) -> Option<u64> {
        match &self.transport {
            Transport::Library { sender, plain, .. } => Some(plain + sender.counters().copied),
            Transport::ReadWrite { .. } => Some(sends),
            Transport::Sendfile(_) | Transport::Splice { .. } => None,
        }
    }

    /// Returns the library's sender, where the connection has one.
    pub(super) fn sender(&mut self) -> Option<&mut Sender> {
        match &mut self.transport {
            Transport::Library { sender, .. } => Some(sender),
            _ => None,
        }
    }
}

impl AsFd for BenchConn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.transport {
            Transport::Library { sender, .. } => sender.as_fd(),
            Transport::Sendfile(socket)
            | Transport::Splice { socket, .. }
            | Transport::ReadWrite { socket, .. } => socket.as_fd(),
        }
    }
}

fn accepted(sent: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match sent {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(n) => Ok(Some(n)),
        Err(Errno::AGAIN) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
