//! The access log: lines on their way to where they are written.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use metrics::{Counter, counter};
use tokio::sync::Notify;

use crate::output::Seldom;

/// The bytes of the lines that wait while the reader of the log (`--access-log -`) pauses, at most.
const BYTES: usize = 1 << 20;

/// The time for which lines gather before the next ones are written, unless the half of those bytes
/// are there sooner: to wake the thread for each costs more than a small answer. In it far fewer
/// than so many lines come.
const GATHER: Duration = Duration::from_millis(5);

/// The longest that the end waits for those lines, and another target for those before it.
const FLUSH: Duration = Duration::from_secs(2);

/// Where lines are written.
pub(super) type Target = Box<dyn Write + Send>;

/// The writer is a thread of its own, so that no writing stops the server.
pub(super) struct Log(Arc<Shared>);

struct Shared {
    waits: Mutex<Waits>,
    /// For the thread: there is something to write.
    more: Condvar,
    /// For those who wait for the thread: it has taken what waited, or has ended.
    taken: Notify,
    lost: Lost,
}

/// The work that waits for the thread.
#[derive(Default)]
struct Waits {
    text: Vec<u8>,
    lines: u64,
    turn: Option<Turn>,
    /// The thread waits for the first line, and is to be woken for it.
    idle: bool,
    ends: bool,
    ended: bool,
}

/// Lines from here on go elsewhere.
struct Turn {
    /// The bytes that go where they went before, and the lines that they are.
    before: (usize, u64),
    /// `None`: nowhere.
    target: Option<Target>,
}

impl Waits {
    fn is_urgent(&self) -> bool {
        self.text.len() >= BYTES / 2 || self.turn.is_some() || self.ends
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waits> {
        // Nothing panics while holding it.
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the thread has made it so, for a time; returns whether it has.
    async fn until(&self, done: impl Fn(&Waits) -> bool) -> bool {
        let done = async {
            loop {
                let mut taken = pin!(self.taken.notified());
                taken.as_mut().enable();
                if done(&self.lock()) {
                    return;
                }
                taken.await;
            }
        };
        tokio::time::timeout(FLUSH, done).await.is_ok()
    }
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
        let counter = counter!("sendfile2_log_lines_dropped_total");
        let shared = Arc::new(Shared {
            waits: Mutex::default(),
            more: Condvar::new(),
            taken: Notify::new(),
            lost: Lost { lines: AtomicU64::new(0), counter, told: Seldom::default() },
        });
        let of_thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("access log".into())
            .spawn(move || work(&of_thread, time, target))
            .context("cannot start the access log's thread")?;
        Ok(Log(shared))
    }

    /// Logs one line, which `line` puts behind those that wait.
    pub(super) fn write(&self, line: impl FnOnce(&mut Vec<u8>)) {
        let mut waits = self.0.lock();
        let before = waits.text.len();
        line(&mut waits.text);
        if waits.text.len() > BYTES {
            waits.text.truncate(before);
            drop(waits);
            self.0.lost.lose(1, "its reader is too slow");
            return;
        }
        waits.lines += 1;
        let half = before < BYTES / 2 && waits.is_urgent();
        if std::mem::take(&mut waits.idle) || half {
            drop(waits);
            self.0.more.notify_one();
        }
    }

    /// Writes the lines from here on to another target; `false` where those before it cannot be
    /// written meanwhile, and all stays as it was.
    pub(super) async fn turn(&self, target: Option<Target>) -> bool {
        {
            let mut waits = self.0.lock();
            let before = (waits.text.len(), waits.lines);
            waits.turn = Some(Turn { before, target });
        }
        self.0.more.notify_one();
        self.0.until(|waits| waits.turn.is_none()).await || self.0.lock().turn.take().is_none()
    }

    /// Waits until the lines that are there are written, but not for ever; returns how many were
    /// lost.
    pub(super) async fn finish(&self) -> u64 {
        self.0.lock().ends = true;
        self.0.more.notify_one();
        self.0.until(|waits| waits.ended).await;
        self.0.lost.lines.load(Ordering::Relaxed)
    }
}

fn work(shared: &Shared, gather: Duration, mut target: Option<Target>) {
    let write = |text: &[u8], lines: u64, target: &mut Option<Target>| {
        if let (Some(target), 1..) = (target, lines) {
            // A disk that is full ends no service.
            if let Err(e) = target.write_all(text).and_then(|()| target.flush()) {
                shared.lost.lose(lines, &e.to_string());
            }
        }
    };
    let mut text = Vec::new();
    loop {
        let mut waits = shared.lock();
        while waits.text.is_empty() && !waits.is_urgent() {
            waits.idle = true;
            waits = shared.more.wait(waits).unwrap_or_else(PoisonError::into_inner);
        }
        waits.idle = false;
        std::mem::swap(&mut text, &mut waits.text);
        let (lines, turn, ends) = (std::mem::take(&mut waits.lines), waits.turn.take(), waits.ends);
        drop(waits);
        shared.taken.notify_waiters();
        let mut before = (0, 0);
        if let Some(turn) = turn {
            before = turn.before;
            write(&text[..before.0], before.1, &mut target);
            target = turn.target;
        }
        write(&text[before.0..], lines - before.1, &mut target);
        text.clear();
        if ends {
            break;
        }
        let waits = shared.lock();
        let urgent = |waits: &mut Waits| !waits.is_urgent();
        drop(shared.more.wait_timeout_while(waits, gather, urgent));
    }
    shared.lock().ended = true;
    shared.taken.notify_waiters();
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
        let write = |line: &str| log.write(|text| text.extend_from_slice(line.as_bytes()));
        write("the first\n");
        assert_eq!(next().unwrap(), "the first\n".len(), "at once");
        // As many as make the half, beyond which the thread takes them.
        let half = (BYTES / 2).div_ceil(LINE);
        for _ in 0..half {
            write(&"x".repeat(LINE));
        }
        let mut left = half * LINE;
        while left > 0 {
            left -= next().unwrap();
        }
        write("the last\n");
        assert_eq!(log.finish().await, 0, "lines are lost");
        assert_eq!(next().unwrap(), "the last\n".len(), "at the end");
        assert!(written.recv().is_err(), "the thread has ended");
    }

    /// A target whose writes wait until they are let go.
    struct Waits(std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>);

    impl Write for Waits {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_turn_to_another_target_or_stay_where_they_were() {
        let (begins, begun) = std::sync::mpsc::channel();
        let (go, goes) = std::sync::mpsc::channel();
        let log = Log::new(Some(Box::new(Waits(begins, goes)))).unwrap();
        let line = |text: &'static str| log.write(|to| to.extend_from_slice(text.as_bytes()));
        line("old\n");
        begun.recv().unwrap();
        let (tells, written) = std::sync::mpsc::channel();
        assert!(!log.turn(Some(Box::new(Tells(tells)))).await, "who waits writes nothing");
        assert!(written.recv().is_err(), "it is let go");
        line("stays\n");
        let (tells, written) = std::sync::mpsc::channel();
        let (turned, ()) = tokio::join!(log.turn(Some(Box::new(Tells(tells)))), async {
            line("turns\n");
            // Of the first two pieces.
            go.send(()).unwrap();
            go.send(()).unwrap();
        });
        assert!(turned, "all is written");
        assert_eq!(log.finish().await, 0, "lines are lost");
        assert_eq!(written.recv().unwrap(), "turns\n".len());
        assert!(begun.recv().is_ok() && begun.recv().is_err(), "one piece each");
    }
}
