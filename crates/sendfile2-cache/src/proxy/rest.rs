//! The rest of a body that the store does not take: it goes past the store, to all who read the body.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};

/// The pieces that a reader may be behind the fastest one: about a MiB.
const PIECES: usize = 16;

/// The longest that readers wait for slower ones, in all.
const PATIENCE: Duration = Duration::from_secs(2);

/// The rest of a body, if it comes to that, and its readers.
#[derive(Debug)]
pub(super) struct Rest {
    /// `None` when it has begun: nobody joins any more.
    joined: Mutex<Option<Vec<mpsc::Sender<Bytes>>>>,
    /// From which byte on.
    from: watch::Sender<Option<u64>>,
    /// A reader has taken a piece, or is gone.
    taken: Notify,
    end: OnceLock<End>,
    /// The reason for which the body broke off.
    why: OnceLock<String>,
}

/// The end of a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The body was as long as this.
    Whole(u64),
    /// The origin has sent no more.
    Broken,
}

/// A reader's share in the rest.
#[derive(Debug)]
pub(super) struct Joined {
    rest: Arc<Rest>,
    /// As long as the reader may read what is stored.
    from: Option<watch::Receiver<Option<u64>>>,
    pieces: mpsc::Receiver<Bytes>,
}

/// The next of a reader.
#[derive(Debug)]
pub(super) enum Next {
    Piece(Bytes),
    End,
    /// Others have gone on without this reader.
    LeftBehind,
}

/// The rest that has begun, for the one who hands it on.
#[derive(Debug)]
pub(super) struct Past {
    rest: Arc<Rest>,
    readers: Vec<mpsc::Sender<Bytes>>,
    patience: Duration,
}

impl Rest {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Rest {
            joined: Mutex::new(Some(Vec::new())),
            from: watch::Sender::new(None),
            taken: Notify::new(),
            end: OnceLock::new(),
            why: OnceLock::new(),
        })
    }

    fn joined(&self) -> MutexGuard<'_, Option<Vec<mpsc::Sender<Bytes>>>> {
        self.joined.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the readers; `None` if the rest has begun.
    pub(super) fn join(self: &Arc<Self>) -> Option<Joined> {
        let mut joined = self.joined();
        let readers = joined.as_mut()?;
        if readers.len() == readers.capacity() {
            readers.retain(|reader| !reader.is_closed());
        }
        let (reader, pieces) = mpsc::channel(PIECES);
        readers.push(reader);
        let from = Some(self.from.subscribe());
        drop(joined);
        Some(Joined { rest: Arc::clone(self), from, pieces })
    }

    /// Begins the rest at this byte.
    pub(super) fn begin(self: &Arc<Self>, from: u64) -> Past {
        let readers = self.joined().take().unwrap_or_default();
        self.from.send_replace(Some(from));
        Past { rest: Arc::clone(self), readers, patience: PATIENCE }
    }

    /// Says why the body breaks off, before it does.
    pub(super) fn breaks_off(&self, why: &io::Error) {
        let _ = self.why.set(why.to_string());
    }
}

impl Joined {
    /// Waits until the rest begins at this byte. Dropping the future loses nothing.
    pub(super) async fn begins(&mut self, at: u64) {
        let begun = match &mut self.from {
            Some(from) => from.wait_for(|from| *from == Some(at)).await.is_ok(),
            None => true,
        };
        if !begun {
            std::future::pending::<()>().await;
        }
    }

    /// The byte at which the rest begins, if it has begun; and nothing is read from the store any
    /// more.
    pub(super) fn leave_store(&mut self) -> Option<u64> {
        self.from = None;
        *self.rest.from.borrow()
    }

    /// The next piece, for a reader that has read as far as this.
    pub(super) async fn next(&mut self, at: u64) -> io::Result<Next> {
        if let Some(piece) = self.pieces.recv().await {
            self.rest.taken.notify_one();
            return Ok(Next::Piece(piece));
        }
        match self.rest.end.get() {
            Some(End::Broken) => Err(io::ErrorKind::UnexpectedEof.into()),
            Some(End::Whole(end)) if *end == at => Ok(Next::End),
            _ => Ok(Next::LeftBehind),
        }
    }

    /// The reason for which the body broke off, if it did.
    pub(super) fn why(&self) -> Option<&str> {
        self.rest.why.get().map(String::as_str)
    }

    /// Whether the origin has broken it off.
    pub(super) fn is_broken(&self) -> bool {
        self.rest.end.get() == Some(&End::Broken)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.pieces.close();
        self.rest.taken.notify_one();
    }
}

impl Past {
    /// Hands a piece to all readers who are not left behind.
    pub(super) async fn send(&mut self, piece: Bytes) -> io::Result<()> {
        self.wait_for_room().await;
        self.readers.retain(|reader| reader.try_send(piece.clone()).is_ok());
        if self.readers.is_empty() { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Waits until there is room for all; or, where only some have room, until the others have been
    /// waited for long enough.
    async fn wait_for_room(&mut self) {
        loop {
            self.readers.retain(|reader| !reader.is_closed());
            let full = self.readers.iter().filter(|reader| reader.capacity() == 0).count();
            if full == 0 {
                return;
            }
            let taken = self.rest.taken.notified();
            if full == self.readers.len() {
                // A client that takes nothing for too long is its server's affair.
                taken.await;
                continue;
            }
            let began = Instant::now();
            let waited = tokio::time::timeout(self.patience, taken).await;
            self.patience = self.patience.saturating_sub(began.elapsed());
            if waited.is_err() {
                return;
            }
        }
    }

    /// Whether nobody who is to get the rest reads what is stored any more.
    pub(super) fn has_left_store(&self) -> bool {
        self.patience.is_zero() || self.rest.from.receiver_count() == 0
    }

    pub(super) fn end(self, length: u64) {
        let _ = self.rest.end.set(End::Whole(length));
    }
}

impl Drop for Past {
    fn drop(&mut self) {
        // Unless it has ended. The readers look when their channels end, behind this.
        let _ = self.rest.end.set(End::Broken);
    }
}
