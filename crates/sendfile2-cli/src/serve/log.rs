//! The access log: one line a request, when its answer begins.

use std::fs::OpenOptions;
use std::io::{self, LineWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use axum::http::{Method, StatusCode, Uri, Version};

pub(super) struct Log(Mutex<Box<dyn Write + Send>>);

/// What was asked.
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
}

impl Log {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let to: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = OpenOptions::new().create(true).append(true).open(path);
            Box::new(LineWriter::new(
                file.with_context(|| format!("cannot write to {}", path.display()))?,
            ))
        };
        Ok(Log(Mutex::new(to)))
    }

    /// `bytes` is the size of the answer's body, as far as it is known.
    pub(super) fn write(&self, peer: &str, asked: &Asked, status: StatusCode, bytes: Option<u64>) {
        let now = humantime::format_rfc3339_seconds(SystemTime::now());
        let bytes = bytes.map_or("-".into(), |bytes| bytes.to_string());
        let Asked { method, uri, version } = asked;
        let status = status.as_u16();
        // A URI has no quotes or control characters: its parser refuses them.
        let line = format!("{peer} {now} \"{method} {uri} {version:?}\" {status} {bytes}\n");
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that is full ends no service.
        let _ = to.write_all(line.as_bytes());
    }
}
