//! The access log: one line a request, when its answer begins.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::http::{Method, StatusCode, Uri, Version};
use metrics::counter;
use tokio::sync::mpsc;

/// The number of lines that wait while the reader of the log (`--access-log -`) pauses.
const LINES: usize = 4096;

/// The bytes that these lines have at most.
const BYTES: usize = 1 << 20;

/// The bytes of a URI that are shown.
const URI: usize = 2048;

/// The longest that the end waits for those lines.
const FLUSH: Duration = Duration::from_secs(2);

pub(super) struct Log {
    /// The lines, which a thread of their own writes, so that no writing stops the server; `None`
    /// is the end.
    lines: mpsc::Sender<Option<String>>,
    /// The bytes of those that wait.
    waiting: Arc<AtomicUsize>,
    dropped: AtomicU64,
}

/// A request, as the log shows it.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URI may have quotes, which would end it here, and bytes that are not ASCII.
        let uri = self.uri.to_string();
        let shown = &uri.as_bytes()[..uri.len().min(URI)];
        let cut = if shown.len() < uri.len() { "..." } else { "" };
        write!(f, "{} {}{cut} {:?}", self.method, shown.escape_ascii(), self.version)
    }
}

impl Log {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let to: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Box::new(file.with_context(|| format!("cannot write to {}", path.display()))?)
        };
        let (lines, written) = mpsc::channel(LINES);
        let waiting = Arc::<AtomicUsize>::default();
        std::thread::Builder::new()
            .name("access log".into())
            .spawn({
                let waiting = Arc::clone(&waiting);
                move || write_out(written, &waiting, to)
            })
            .context("cannot start the access log's thread")?;
        Ok(Log { lines, waiting, dropped: AtomicU64::new(0) })
    }

    /// Logs one line. `bytes` is the size of the answer's body, as far as it is known.
    pub(super) fn write(&self, peer: &str, asked: &Asked, status: StatusCode, bytes: Option<u64>) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let bytes = bytes.map_or("-".into(), |bytes| bytes.to_string());
        let status = status.as_u16();
        let line = format!("{peer} {now} \"{asked}\" {status} {bytes}\n");
        let bytes = line.len();
        let room = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes <= BYTES;
        if !room || self.lines.try_send(Some(line)).is_err() {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            counter!("sendfile2_log_lines_dropped_total").increment(1);
        }
    }

    /// Waits until the lines that are there are written, but not for ever; returns how many were
    /// dropped.
    pub(super) async fn finish(&self) -> u64 {
        let written = async {
            let _ = self.lines.send(None).await;
            self.lines.closed().await;
        };
        let _ = tokio::time::timeout(FLUSH, written).await;
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write_out(
    mut lines: mpsc::Receiver<Option<String>>,
    waiting: &AtomicUsize,
    to: Box<dyn Write + Send>,
) {
    let mut to = BufWriter::new(to);
    while let Some(Some(line)) = lines.blocking_recv() {
        // A disk that is full ends no service.
        let _ = to.write_all(line.as_bytes());
        waiting.fetch_sub(line.len(), Ordering::Relaxed);
        if lines.is_empty() {
            let _ = to.flush();
        }
    }
    let _ = to.flush();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_forges_no_line() {
        let asked = |uri: &[u8]| Asked {
            method: Method::GET,
            uri: Uri::try_from(uri).expect("a URI"),
            version: Version::HTTP_11,
        };
        assert_eq!(asked(b"/a?b=%20").to_string(), "GET /a?b=%20 HTTP/1.1");
        let forged = asked("/\" 200 1\u{85}".replace(' ', "{}").as_bytes()).to_string();
        assert_eq!(forged, r#"GET /\"{}200{}1\xc2\x85 HTTP/1.1"#);
        let long = asked("/".repeat(60_000).as_bytes()).to_string();
        assert_eq!(long, format!("GET {}... HTTP/1.1", "/".repeat(URI)));
    }
}
