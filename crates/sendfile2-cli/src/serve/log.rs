//! The access log: one line a request, when its answer begins.

use std::fmt;
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

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URI may have quotes, which would end it here, and bytes that are not ASCII.
        let uri = self.uri.to_string();
        write!(f, "{} {} {:?}", self.method, uri.as_bytes().escape_ascii(), self.version)
    }
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
        let status = status.as_u16();
        let line = format!("{peer} {now} \"{asked}\" {status} {bytes}\n");
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that is full ends no service.
        let _ = to.write_all(line.as_bytes());
    }
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
    }
}
