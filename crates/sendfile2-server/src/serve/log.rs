//! The access log: lines on their way to where they are written.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use anyhow::Context;
use metrics::{Counter, counter};
use tokio::sync::mpsc;

use crate::output::Seldom;

/// The number of lines that wait while the reader of the log (`--access-log -`) pauses.
const LINES: usize = 4096;

/// The bytes that these lines have at most.
const BYTES: usize = 1 << 20;

/// The most bytes that are written at a time.
const PIECE: usize = 64 << 10;

/// The time for which lines gather before the next ones are written, unless the half of those bytes
/// are there sooner: to wake the thread for each costs more than a small answer. In it far fewer
/// than so many lines come.
const GATHER: Duration = Duration::from_millis(5);

/// The longest that the end waits for those lines, and another target for those before it.
const FLUSH: Duration = Duration::from_secs(2);

/// Where lines are written.
pub(super) type Target = Box<dyn Write + Send>;

pub(super) struct Log {
    /// The work of a thread of its own, so that no writing stops the server.
    to_do: mpsc::Sender<ToDo>,
    thread: Thread,
    /// The bytes of the lines that wait.
    waiting: Arc<AtomicUsize>,
    lost: Arc<Lost>,
}

enum ToDo {
    Write(String),
    /// Lines from here on go elsewhere; `None`: nowhere.
    Turn(Option<Target>),
    End,
}

/// The lines that could not be written, and who is told so.
struct Lost {
    lines: AtomicU64,
    counter: Counter,
    told: Seldom,
}

impl Lost {
    fn lose(&self, lines: u64, why: &str) {
        let all = self.lines.fetch_add(lines, Ordering::Relaxed) + lines;
        self.counter.increment(lines);
        self.told.note(&format!("sendfile2: {all} lines of the access log are lost by now: {why}"));
    }
}

/// Opens where lines are written: a file, which grows, or - for standard output.
pub(super) fn open(path: &Path) -> anyhow::Result<Target> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdout()));
    }
    let file = options(path).create(true).append(true).open(path);
    Ok(Box::new(file.with_context(|| format!("cannot write to {}", path.display()))?))
}

/// Opens a FIFO to read from it, too: else that would wait until somebody else does.
fn options(path: &Path) -> OpenOptions {
    let mut options = OpenOptions::new();
    let fifo = path.metadata().is_ok_and(|it| it.file_type().is_fifo());
    options.read(fifo);
    options
}

/// Says whether lines can be written there, and makes no log that another user could not write to.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write to {}", path.display());
    match options(path).append(true).open(path) {
        _ if path == Path::new("-") => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().filter(|it| !it.as_os_str().is_empty());
            directory.unwrap_or(Path::new(".")).metadata().map(drop).with_context(cannot)
        }
        opened => opened.map(drop).with_context(cannot),
    }
}

impl Log {
    pub(super) fn new(target: Option<Target>) -> anyhow::Result<Self> {
        Log::gathering(GATHER, target)
    }

    fn gathering(time: Duration, target: Option<Target>) -> anyhow::Result<Self> {
        let (to_do, done) = mpsc::channel(LINES);
        let counter = counter!("sendfile2_log_lines_dropped_total");
        let lost = Arc::new(Lost { lines: AtomicU64::new(0), counter, told: Seldom::default() });
        let waiting = Arc::<AtomicUsize>::default();
        let of_thread = (Arc::clone(&lost), Arc::clone(&waiting));
        let thread = std::thread::Builder::new()
            .name("access log".into())
            .spawn(move || work(done, time, target, &of_thread.0, &of_thread.1))
            .context("cannot start the access log's thread")?;
        Ok(Log { to_do, thread: thread.thread().clone(), waiting, lost })
    }

    /// Logs one line.
    pub(super) fn write(&self, line: String) {
        let bytes = line.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let now = before + bytes;
        if now > BYTES || self.to_do.try_send(ToDo::Write(line)).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.lost.lose(1, "its reader is too slow");
        }
        if before < BYTES / 2 && now >= BYTES / 2 {
            self.thread.unpark();
        }
    }

    /// Writes the lines from here on to another target; `false` where those before it cannot be
    /// written meanwhile, and all stays as it was.
    pub(super) async fn turn(&self, target: Option<Target>) -> bool {
        let sent = self.to_do.send(ToDo::Turn(target));
        let sent = tokio::time::timeout(FLUSH, sent).await.is_ok_and(|sent| sent.is_ok());
        self.thread.unpark();
        sent
    }

    /// Waits until the lines that are there are written, but not for ever; returns how many were
    /// lost.
    pub(super) async fn finish(&self) -> u64 {
        let written = async {
            let _ = self.to_do.send(ToDo::End).await;
            self.thread.unpark();
            self.to_do.closed().await;
        };
        let _ = tokio::time::timeout(FLUSH, written).await;
        self.lost.lines.load(Ordering::Relaxed)
    }
}

fn work(
    mut to_do: mpsc::Receiver<ToDo>,
    gather: Duration,
    mut target: Option<Target>,
    lost: &Lost,
    waiting: &AtomicUsize,
) {
    let (mut piece, mut lines) = (Vec::new(), 0);
    let flush = |piece: &mut Vec<u8>, lines: &mut u64, target: &mut Option<Target>| {
        if let (Some(target), 1..) = (target, *lines) {
            // A disk that is full ends no service.
            if let Err(e) = target.write_all(piece).and_then(|()| target.flush()) {
                lost.lose(*lines, &e.to_string());
            }
        }
        piece.clear();
        *lines = 0;
    };
    while let Some(next) = to_do.blocking_recv() {
        match next {
            ToDo::Write(line) => {
                waiting.fetch_sub(line.len(), Ordering::Relaxed);
                piece.extend_from_slice(line.as_bytes());
                lines += 1;
            }
            ToDo::Turn(other) => {
                flush(&mut piece, &mut lines, &mut target);
                target = other;
            }
            ToDo::End => break,
        }
        if piece.len() >= PIECE {
            flush(&mut piece, &mut lines, &mut target);
        } else if to_do.is_empty() {
            flush(&mut piece, &mut lines, &mut target);
            std::thread::park_timeout(gather);
        }
    }
    flush(&mut piece, &mut lines, &mut target);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A target that tells what was written at a time.
    struct Tells(std::sync::mpsc::Sender<usize>);

    impl Write for Tells {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(bytes.len());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_gather_and_none_is_lost_for_that() {
        const LINE: usize = 24 << 10;
        let (tells, written) = std::sync::mpsc::channel();
        let next = || written.recv_timeout(Duration::from_secs(20));
        let day = Duration::from_secs(24 * 60 * 60);
        let log = Log::gathering(day, Some(Box::new(Tells(tells)))).unwrap();
        log.write("the first\n".into());
        assert_eq!(next().unwrap(), "the first\n".len(), "at once");
        // As many as make the half, beyond which the thread takes them.
        let half = (BYTES / 2).div_ceil(LINE);
        for _ in 0..half {
            log.write("x".repeat(LINE));
        }
        let mut left = half * LINE;
        while left > 0 {
            left -= next().unwrap();
        }
        log.write("the last\n".into());
        assert_eq!(log.finish().await, 0, "lines are lost");
        assert_eq!(next().unwrap(), "the last\n".len(), "at the end");
        assert!(written.recv().is_err(), "the thread has ended");
    }
}
