//! A connection for hyper, which finds windows in its vectored writes.

use std::future::Future;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sendfile2::tokio::AsyncSender;
use sendfile2::{Engine, Error, Options, SendFlags};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep};

use crate::conn::Conn;
use crate::stats::Sends;
use crate::window::{Origin, Windows};

/// The longest that the end of a connection takes: to wait for its releases, before the reaper takes
/// over, and to read what the peer still sends.
const DRAIN: Duration = Duration::from_secs(30);

/// The time for which the peer may send nothing while it is waited for.
const QUIET: Duration = Duration::from_secs(2);

/// A connection for hyper (or whoever else writes [`FileBody`](crate::FileBody)s): an `AsyncRead`
/// and `AsyncWrite` that sends mapped bodies from their files, and everything else by plain sends.
///
/// Shutting it down ends the stream at once, and waits until everything sent is released and the
/// peer has ended its side, too: for 30 seconds at most, and for 2 where the peer sends nothing. What
/// it sends is thrown away: a socket that is closed before it is read resets the connection, and the
/// peer may lose the answer. What is in flight after that, or when it is dropped without, goes to
/// the [reaper](sendfile2::reaper).
///
/// Until the first mapped body comes, a TCP connection is tokio's own, which costs less than a
/// sender.
#[derive(Debug)]
pub struct Io {
    conn: Conn,
    windows: Windows,
    sends: Sends,
    ending: Option<Ending>,
}

/// The end of a connection, of which the peer is told.
#[derive(Debug)]
struct Ending {
    latest: Instant,
    /// Nothing more comes from the peer, or nobody waits for it any more.
    heard: bool,
    timer: Pin<Box<Sleep>>,
}

impl Io {
    /// Takes a TCP connection. Sets `TCP_NODELAY`: what belongs together is sent together here, so
    /// that nothing needs to wait.
    ///
    /// # Errors
    /// None: what [`AsyncSender::with`] fails with, the first mapped body does.
    pub fn new(stream: TcpStream, options: Options) -> Result<Self, Error> {
        // A stream that refuses is over, as its first use will say.
        let _ = stream.set_nodelay(true);
        Ok(Io::of(Conn::plain(stream, options)))
    }

    /// Takes a connection of a unix socket.
    ///
    /// # Errors
    /// As [`AsyncSender::from_socket`].
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn from_unix(stream: UnixStream, options: Options) -> Result<Self, Error> {
        let stream = stream.into_std();
        let stream = stream.map_err(|cause| Error::Wait { op: "UnixStream::into_std", cause })?;
        AsyncSender::from_socket(stream, options).map(|sender| Io::of(Conn::Sender(sender)))
    }

    fn of(conn: Conn) -> Self {
        Io { conn, windows: Windows::default(), sends: Sends::default(), ending: None }
    }

    /// The sender beneath; `None` while the connection is tokio's, and has sent nothing from a
    /// file.
    #[must_use]
    pub fn sender(&self) -> Option<&AsyncSender> {
        match &self.conn {
            Conn::Sender(sender) => Some(sender),
            Conn::Tokio(_) | Conn::Lost => None,
        }
    }

    /// The bytes that the peer has not acknowledged (TCP), or memory of what it has not read (unix
    /// sockets).
    ///
    /// # Errors
    /// As [`sendfile2::unacknowledged`].
    pub fn unacknowledged(&self) -> io::Result<u64> {
        self.conn.unacknowledged()
    }
}

/// Bytes of a window that leave with its headers at most: larger calls cost more a byte (see
/// docs/costs.md).
const WITH_HEADERS: usize = 512 << 10;

/// Sends headers and the window behind them by one call, where the window is to be copied. Nothing
/// where it is not, or where it is not all there any more: its own send tells what there is.
fn poll_copy(
    sender: &mut AsyncSender,
    cx: &mut Context<'_>,
    head: &[u8],
    window: &[u8],
    flags: SendFlags,
    sends: &mut Sends,
) -> Poll<Option<io::Result<usize>>> {
    let choice = match sender.sender().choice(window.len() as u64) {
        Ok(choice) if choice.engine == Engine::Copy => choice,
        _ => return Poll::Ready(None),
    };
    let most = window.len().min(WITH_HEADERS);
    let flags = if most < window.len() { flags | SendFlags::MORE } else { flags };
    let both = [IoSlice::new(head), IoSlice::new(&window[..most])];
    let sent = ready!(sender.poll_send(cx, |sender| sender.try_send_vectored(&both, flags)));
    Poll::Ready(match sent {
        Ok(part) => {
            sends.count(part.bytes.saturating_sub(head.len()) as u64, choice);
            Some(Ok(part.bytes))
        }
        Err(e) if fault(&e) => None,
        Err(e) => Some(Err(e.into())),
    })
}

fn fault(error: &Error) -> bool {
    let errno = error.io_error().and_then(io::Error::raw_os_error);
    errno == Some(rustix::io::Errno::FAULT.raw_os_error())
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = self.conn.poll_read(cx, buf);
        self.sends.look();
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Io { conn, windows, sends, .. } = &mut *self;
        windows.collect();
        let found = slices.iter().enumerate().find_map(|(i, s)| Some((i, windows.find(s)?)));
        if let (None, Conn::Tokio(plain)) = (&found, &mut *conn) {
            return plain.poll_send(cx, slices);
        }
        let sender = conn.sender()?;
        if let Some((_, (window, _))) = &found {
            if let Origin::Lease(lease) = &window.origin {
                // Its mapping is in hyper's hands: a writer must be able to end that.
                sender.sender().announce(lease);
            }
        }
        let sent = match found {
            Some((0, (window, range))) => {
                let flags = SendFlags::NONE.with_more(slices.len() > 1);
                ready!(sender.poll_send(cx, |sender| match &window.origin {
                    Origin::File(file) => sender.try_send_file(file, range.clone(), flags),
                    Origin::Lease(lease) => sender.try_send_lease(lease, range.clone(), flags),
                }))
            }
            // What comes before the first window: headers, which hyper reuses at once.
            before => {
                if let (Some((1, _)), [head, window, rest @ ..]) = (&before, slices) {
                    let flags = SendFlags::NONE.with_more(!rest.is_empty());
                    if let Some(sent) = ready!(poll_copy(sender, cx, head, window, flags, sends)) {
                        return Poll::Ready(sent);
                    }
                }
                let before = before.map_or(slices.len(), |(i, _)| i);
                let flags = SendFlags::NONE.with_more(before < slices.len());
                let slices = &slices[..before];
                let part = ready!(sender.poll_send(cx, |s| s.try_send_vectored(slices, flags)))?;
                return Poll::Ready(Ok(part.bytes));
            }
        };
        let part = sent?;
        sends.sent(part.ticket);
        sends.look();
        Poll::Ready(Ok(part.bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.conn.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Io { conn, sends, ending, .. } = &mut *self;
        let ending = match ending {
            Some(ending) => ending,
            None => {
                ready!(conn.poll_shutdown(cx))?;
                ending.insert(Ending::new())
            }
        };
        ending.poll_peer(conn, cx);
        if let Poll::Ready(drained) = conn.poll_drain(cx) {
            sends.look();
            if ending.heard {
                return Poll::Ready(drained.map_err(io::Error::from));
            }
        }
        ending.poll_latest(cx).map(Ok)
    }
}

impl Ending {
    fn new() -> Self {
        let latest = Instant::now() + DRAIN;
        Ending { latest, heard: false, timer: Box::pin(tokio::time::sleep(QUIET)) }
    }

    /// Throws away what the peer sends, until it ends its side, or stops.
    fn poll_peer(&mut self, conn: &mut Conn, cx: &mut Context<'_>) {
        while !self.heard {
            let mut bytes = [MaybeUninit::uninit(); 16 << 10];
            let mut bytes = ReadBuf::uninit(&mut bytes);
            match conn.poll_read(cx, &mut bytes) {
                Poll::Ready(Ok(())) if !bytes.filled().is_empty() => {
                    let quiet = (Instant::now() + QUIET).min(self.latest);
                    self.timer.as_mut().reset(quiet);
                }
                Poll::Ready(_) => self.heard = true,
                Poll::Pending => match self.timer.as_mut().poll(cx) {
                    Poll::Ready(()) => self.heard = true,
                    Poll::Pending => return,
                },
            }
        }
        // From here on it is for the releases.
        if self.timer.deadline() < self.latest {
            self.timer.as_mut().reset(self.latest);
        }
    }

    /// Whether it has taken as long as it may.
    fn poll_latest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.heard { self.timer.as_mut().poll(cx) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use sendfile2::Source;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::window::Window;

    /// What waits to read, another task than the one that writes, hears of what comes when tokio
    /// does not know the socket any more.
    #[tokio::test]
    async fn a_reader_goes_on_when_the_connection_becomes_a_sender() {
        const SIZE: u64 = 64 << 10;
        let file = tempfile::tempfile().expect("a file");
        file.set_len(SIZE).expect("its size");
        let source = Source::new(file).expect("it can be sent");
        let Some(mapped) = source.mapped(0..SIZE).expect("looked") else {
            println!("SKIP: files are not mapped here");
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = TcpStream::connect(listener.local_addr().expect("bound")).await;
        let (mut peer, (stream, _)) =
            (peer.expect("it listens"), listener.accept().await.expect("a connection"));
        let io = Io::new(stream, Options::new()).expect("TCP");
        assert!(io.sender().is_none(), "it has sent nothing");
        let (mut reader, mut writer) = tokio::io::split(io);
        let reading = tokio::spawn(async move { (reader.read_u8().await, reader) });
        // On this thread: it waits after that.
        tokio::task::yield_now().await;
        let (bytes, _) = Window::into_bytes(mapped, Origin::File(source));
        let sent = writer.write(&bytes).await.expect("sent");
        peer.read_exact(&mut vec![0; sent]).await.expect("it is there");
        peer.write_u8(7).await.expect("it reads");
        let read = tokio::time::timeout(QUIET * 10, reading).await;
        let (read, reader) = read.expect("it is woken").expect("no panic");
        assert_eq!(read.expect("read"), 7);
        assert!(reader.unsplit(writer).sender().is_some(), "it has sent from a file");
    }
}
