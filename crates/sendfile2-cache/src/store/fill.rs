//! A response that is being stored, and those who read it meanwhile.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::error::StoreError;
use super::hit::Hit;
use super::key::{Key, State};
use super::store::Store;

/// Bytes that a reader is given at most at a time.
const READ: usize = 64 << 10;

/// A response that is being stored. Dropped before [`finish`](Self::finish) it is given up, and its
/// readers fail.
#[derive(Debug)]
pub struct Fill {
    store: Store,
    key: Key,
    state: State,
    head: Vec<u8>,
    expected: Option<u64>,
    body: Vec<u8>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Clone, Default)]
struct Progress {
    bytes: Arc<Vec<u8>>,
    ended: Option<bool>,
}

impl Fill {
    pub(super) fn new(
        store: Store,
        key: Key,
        state: State,
        head: &[u8],
        expected: Option<u64>,
    ) -> Self {
        let (progress, _) = watch::channel(Progress::default());
        let head = head.to_vec();
        Fill { store, key, state, head, expected, body: Vec::new(), progress }
    }

    /// Adds bytes of the body. After an error it is of no use any more.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`]; [`StoreError::TooLarge`]; [`StoreError::Full`];
    /// [`StoreError::Io`]; [`StoreError::Guard`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let length = (self.body.len() + bytes.len()) as u64;
        if let Some(expected) = self.expected.filter(|expected| length > *expected) {
            return Err(StoreError::WrongLength { expected });
        }
        self.store.takes(self.head.len() as u64 + length)?;
        self.body.extend_from_slice(bytes);
        self.progress.send_modify(|p| p.bytes = Arc::new(self.body.clone()));
        Ok(())
    }

    /// A reader from the beginning of the body.
    #[must_use]
    pub fn reader(&self) -> FillReader {
        FillReader { progress: self.progress.subscribe(), at: 0, expected: self.expected }
    }

    /// Ends the body, and puts the response into the store in place of what was there under its key.
    ///
    /// # Errors
    /// [`StoreError::WrongLength`] if it is shorter than it was to be; [`StoreError::Banned`];
    /// as [`write`](Self::write).
    pub fn finish(self) -> Result<Hit, StoreError> {
        if let Some(expected) = self.expected.filter(|e| *e != self.body.len() as u64) {
            return Err(StoreError::WrongLength { expected });
        }
        let hit = self.store.put(self.key, self.state, &self.head, &self.body)?;
        self.progress.send_modify(|p| p.ended = Some(true));
        Ok(hit)
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.progress.send_modify(|p| p.ended = p.ended.or(Some(false)));
    }
}

/// A reader of a response that is being stored: it waits for what has not arrived yet. A clone
/// reads on from where this one is.
#[derive(Debug, Clone)]
pub struct FillReader {
    progress: watch::Receiver<Progress>,
    at: u64,
    expected: Option<u64>,
}

impl FillReader {
    /// The next bytes of the body, at most 64 KiB; empty at its end. Dropping the future loses
    /// nothing.
    ///
    /// # Errors
    /// [`StoreError::Abandoned`] if the response was given up; [`StoreError::Io`].
    pub async fn read(&mut self) -> Result<Bytes, StoreError> {
        let at = usize::try_from(self.at).unwrap_or(usize::MAX);
        let news = self.progress.wait_for(|p| p.bytes.len() > at || p.ended.is_some()).await;
        let news = news.map_err(|_| StoreError::Abandoned)?;
        if news.bytes.len() > at {
            let end = news.bytes.len().min(at + READ);
            let bytes = Bytes::copy_from_slice(&news.bytes[at..end]);
            self.at += bytes.len() as u64;
            return Ok(bytes);
        }
        if news.ended == Some(true) { Ok(Bytes::new()) } else { Err(StoreError::Abandoned) }
    }

    /// Sets where in the body the next read begins.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }

    /// The length of the body, as far as it is known: it was told, or it has ended.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        let progress = self.progress.borrow();
        self.expected.or((progress.ended == Some(true)).then_some(progress.bytes.len() as u64))
    }

    /// Waits for the end of the body, and returns its length.
    ///
    /// # Errors
    /// [`StoreError::Abandoned`].
    pub async fn ended(&mut self) -> Result<u64, StoreError> {
        let end = self.progress.wait_for(|p| p.ended.is_some()).await;
        let end = end.map_err(|_| StoreError::Abandoned)?;
        if end.ended == Some(true) { Ok(end.bytes.len() as u64) } else { Err(StoreError::Abandoned) }
    }
}
