//! The lines of the access log.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, Request, StatusCode, Version, header};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::serve::LogFormat;

/// The longest that a field is; the rest of a longer one is not logged.
const LONGEST: usize = 2048;

/// A line of a request whose answer has not ended.
pub(super) struct Line {
    /// Its part before the status.
    before: String,
    /// Its part behind the number of bytes.
    after: String,
    format: LogFormat,
}

/// The part of a line that is known before the answer, as JSON has it.
#[derive(Serialize)]
struct Asked<'a> {
    time: String,
    client: String,
    peer: String,
    method: &'a str,
    uri: &'a str,
    version: &'a str,
    host: Option<&'a str>,
    referer: Option<&'a str>,
    user_agent: Option<&'a str>,
}

impl Line {
    /// Begins the line of a request, of the client that sent it by a peer (`None`: a unix socket).
    pub(super) fn begin<B>(
        format: LogFormat,
        client: Option<IpAddr>,
        peer: Option<IpAddr>,
        request: &Request<B>,
    ) -> Self {
        let now = Timestamp::now();
        let name = |address: Option<IpAddr>| address.map_or("unix".into(), |it| it.to_string());
        // With HTTP/2 every target has a host, which is not what a log tells of a page.
        let path = request.uri().path_and_query().filter(|_| request.version() >= Version::HTTP_2);
        let uri = path.map_or_else(|| request.uri().to_string(), ToString::to_string);
        let uri = escaped(uri.as_bytes());
        let field = |header| field(request.headers(), header);
        let referer = field(header::REFERER);
        let agent = field(header::USER_AGENT);
        let method = request.method().as_str();
        let version = version(request.version());
        let (before, after) = match format {
            LogFormat::Combined => {
                let method = escaped(method.as_bytes());
                let time = now.strftime("%d/%b/%Y:%H:%M:%S +0000");
                let dash = |field: Option<String>| field.unwrap_or_else(|| "-".into());
                (
                    format!("{} - - [{time}] \"{method} {uri} {version}\" ", name(client)),
                    format!(" \"{}\" \"{}\"", dash(referer), dash(agent)),
                )
            }
            LogFormat::Json => {
                let host = field(header::HOST).or_else(|| {
                    request
                        .uri()
                        .authority()
                        .map(|authority| escaped(authority.as_str().as_bytes()))
                });
                let asked = Asked {
                    time: now.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
                    client: name(client),
                    peer: name(peer),
                    method,
                    uri: &uri,
                    version,
                    host: host.as_deref(),
                    referer: referer.as_deref(),
                    user_agent: agent.as_deref(),
                };
                // Texts, which are always JSON.
                let mut before = serde_json::to_string(&asked).unwrap_or_else(|_| "{".into());
                before.pop();
                (before, String::new())
            }
        };
        Line { before, after, format }
    }

    /// Ends the line.
    pub(super) fn end(self, status: StatusCode, bytes: u64, took: Duration) -> String {
        let Line { before: mut line, after, format } = self;
        let (status, seconds) = (status.as_u16(), took.as_secs_f64());
        // A line is memory: nothing fails.
        let _ = match format {
            LogFormat::Combined => writeln!(line, "{status} {bytes}{after} {seconds:.3}"),
            LogFormat::Json => {
                writeln!(line, ",\"status\":{status},\"bytes\":{bytes},\"seconds\":{seconds:.6}}}")
            }
        };
        line
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP",
    }
}

fn field(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| escaped(value.as_bytes()))
}

/// Returns what a client has said without what would end a field or a line.
fn escaped(said: &[u8]) -> String {
    said[..said.len().min(LONGEST)].escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &[u8], referer: &[u8]) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = axum::http::Uri::try_from(uri).expect("a URI");
        let referer = axum::http::HeaderValue::from_bytes(referer).expect("a value");
        request.headers_mut().insert(header::REFERER, referer);
        request
    }

    #[test]
    fn a_client_forges_no_line() {
        let request = request("/\"{}200{}1\u{85}".as_bytes(), b"\" \"x\" 0\xff\\");
        for format in [LogFormat::Combined, LogFormat::Json] {
            let line = Line::begin(format, None, None, &request);
            let line = line.end(StatusCode::OK, 1, Duration::ZERO);
            assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
            assert!(line.is_ascii(), "{line}");
            if format == LogFormat::Combined {
                assert!(
                    line.contains(r#""GET /\"{}200{}1\xc2\x85 HTTP/1.1" 200 1 "\" "#),
                    "{line}"
                );
            } else {
                let read: serde_json::Value = serde_json::from_str(&line).expect("JSON");
                assert_eq!(read["uri"], "/\\\"{}200{}1\\xc2\\x85");
                assert_eq!(read["referer"], r#"\" \"x\" 0\xff\\"#);
                assert_eq!(read["client"], "unix");
            }
        }
    }

    #[test]
    fn a_target_of_http2_is_logged_as_one_of_http1() {
        for (version, uri, logged) in [
            (Version::HTTP_2, "https://example.org/a?b", "/a?b"),
            (Version::HTTP_11, "/a?b", "/a?b"),
            (Version::HTTP_11, "http://example.org/a", "http://example.org/a"),
            (Version::HTTP_11, "*", "*"),
        ] {
            let mut request = request(uri.as_bytes(), b"");
            *request.version_mut() = version;
            let line = Line::begin(LogFormat::Combined, None, None, &request);
            assert!(line.before.contains(&format!("\"GET {logged} HTTP/")), "{}", line.before);
        }
    }

    #[test]
    fn a_field_is_cut() {
        let line = Line::begin(LogFormat::Combined, None, None, &request(&[b'/'; 9000], b""));
        assert!(line.end(StatusCode::OK, 1, Duration::ZERO).len() < 2 * LONGEST);
    }
}
