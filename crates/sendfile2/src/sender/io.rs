//! The traits of the standard library's streams, for a sender.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::outcome::Sent;
use super::sender::{FULL, Sender};
use crate::deadline::Deadline;
use crate::error::Error;
use crate::flags::SendFlags;
use crate::holder::CompletionSource;
use crate::wait;

impl Sender {
    /// The address of the socket, where it is one of IP.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self).ok()?.try_into().ok()
    }

    /// The address of the peer, where it is one of IP.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        CompletionSource::peer(&*self.conn)
    }
}

impl TryFrom<TcpStream> for Sender {
    type Error = Error;

    fn try_from(stream: TcpStream) -> Result<Self, Error> {
        Sender::new(stream)
    }
}

/// Plain sends, as [`Sender::send`] makes them, which wait for the socket for as long as it takes.
impl io::Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let conn = Arc::clone(&self.conn);
        let mut attempt = || {
            Ok(match self.try_send(bytes, SendFlags::NONE)? {
                Sent::Accepted { bytes, .. } => Some(bytes),
                Sent::WouldBlock | Sent::Limit(_) => None,
            })
        };
        let sent = match attempt()? {
            Some(sent) => sent,
            None => wait::until_writable(&*conn, Deadline::NEVER, FULL, attempt)?,
        };
        Ok(sent)
    }

    /// Sends what earlier sends held back for more to follow. It waits for no release.
    fn flush(&mut self) -> io::Result<()> {
        CompletionSource::flush(&*self.conn);
        Ok(())
    }
}

/// Reads from the socket, which waits unless the socket was given in non-blocking mode.
impl io::Read for Sender {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

/// As for [`Sender`].
impl io::Read for &Sender {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(self.as_fd(), &mut *buffer) {
                Err(Errno::AGAIN) if self.made_nonblocking.load(Ordering::Relaxed) => {
                    let mut readable = [PollFd::new(self, PollFlags::IN)];
                    rustix::event::poll(&mut readable, None)?;
                    // Or what is on the error queue would wake it again and again.
                    self.reap()?;
                }
                read => return Ok(read?),
            }
        }
    }
}
