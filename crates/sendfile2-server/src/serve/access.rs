//! The lines of the access log.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, Request, StatusCode, Version, header};
use jiff::Timestamp;
use serde::Serialize;

use crate::args::operation::LogFormat;

/// The longest that a field is; the rest of a longer one is not logged.
const LONGEST: usize = 2048;

/// The bytes of most lines.
const USUAL: usize = 256;

/// A line of a request whose answer has not ended.
pub(super) struct Line {
    /// Its part before the status, and the one behind the number of bytes.
    text: Vec<u8>,
    /// Where the second one begins.
    after: usize,
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
    /// Begins the line of a request that came `now`, of the client that sent it by a peer (`None`: a
    /// unix socket).
    pub(super) fn begin<B>(
        now: Instant,
        format: LogFormat,
        client: Option<IpAddr>,
        peer: Option<IpAddr>,
        request: &Request<B>,
    ) -> Self {
        let mut text = Vec::with_capacity(USUAL);
        let method = request.method().as_str();
        let version = version(request.version());
        let headers = request.headers();
        let after = match format {
            LogFormat::Combined => {
                name(&mut text, client);
                text.extend_from_slice(b" - - [");
                stamp(&mut text, now);
                text.extend_from_slice(b"] \"");
                escape(&mut text, method.as_bytes());
                text.push(b' ');
                escape(&mut text, written(request).as_bytes());
                text.push(b' ');
                text.extend_from_slice(version.as_bytes());
                text.extend_from_slice(b"\" ");
                let after = text.len();
                for name in [header::REFERER, header::USER_AGENT] {
                    text.extend_from_slice(b" \"");
                    escape(&mut text, headers.get(name).map_or(b"-", |value| value.as_bytes()));
                    text.push(b'"');
                }
                after
            }
            LogFormat::Json => {
                let field = |header| field(headers, header);
                let (host, authority) = (field(header::HOST), request.uri().authority());
                let host = host.or_else(|| Some(escaped(authority?.as_str().as_bytes())));
                let (referer, agent) = (field(header::REFERER), field(header::USER_AGENT));
                let name = |address| {
                    let mut text = Vec::new();
                    name(&mut text, address);
                    ascii(text)
                };
                let asked = Asked {
                    time: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
                    client: name(client),
                    peer: name(peer),
                    method,
                    uri: &escaped(written(request).as_bytes()),
                    version,
                    host: host.as_deref(),
                    referer: referer.as_deref(),
                    user_agent: agent.as_deref(),
                };
                // Texts, which are always JSON.
                let _ = serde_json::to_writer(&mut text, &asked);
                text.pop();
                text.len()
            }
        };
        Line { text, after, format }
    }

    /// Ends the line, behind `log`.
    pub(super) fn end(self, status: StatusCode, bytes: u64, took: Duration, log: &mut Vec<u8>) {
        let (before, after) = self.text.split_at(self.after);
        log.extend_from_slice(before);
        // A line is memory: nothing fails.
        let _ = match self.format {
            LogFormat::Combined => {
                number(log, status.as_u16().into());
                log.push(b' ');
                number(log, bytes);
                log.extend_from_slice(after);
                let took = took.saturating_add(Duration::from_micros(500));
                log.push(b' ');
                number(log, took.as_secs());
                let millis = took.subsec_millis();
                log.push(b'.');
                log.extend([100, 10, 1].map(|of| b"0123456789"[(millis / of % 10) as usize]));
                log.push(b'\n');
                Ok(())
            }
            LogFormat::Json => {
                let (status, seconds) = (status.as_u16(), took.as_secs_f64());
                writeln!(log, ",\"status\":{status},\"bytes\":{bytes},\"seconds\":{seconds:.6}}}")
            }
        };
    }
}

/// Writes the name of an address.
fn name(to: &mut Vec<u8>, address: Option<IpAddr>) {
    let _ = match address {
        Some(IpAddr::V4(address)) => {
            for (i, octet) in address.octets().into_iter().enumerate() {
                if i > 0 {
                    to.push(b'.');
                }
                number(to, octet.into());
            }
            Ok(())
        }
        Some(IpAddr::V6(address)) => write!(to, "{address}"),
        None => to.write_all(b"unix"),
    };
}

fn number(to: &mut Vec<u8>, number: u64) {
    to.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Writes the time that it is `now`, as the combined format has it, which is the same for a second.
fn stamp(to: &mut Vec<u8>, now: Instant) {
    thread_local! {
        /// The last one, and when it ends.
        static STAMP: RefCell<Option<(Instant, String)>> = const { RefCell::new(None) };
    }
    STAMP.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(end, _)| now >= *end) {
            let time = Timestamp::now();
            let of_second = u64::from(time.subsec_nanosecond().unsigned_abs());
            let end = now + Duration::from_nanos(1_000_000_000 - of_second);
            *last = Some((end, time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()));
        }
        to.extend_from_slice(last.as_ref().map_or(b"", |(_, text)| text.as_bytes()));
    });
}

/// Returns the target of a request, as it was written. With HTTP/2 every target has a host, which is
/// not what a log tells of a page.
fn written<B>(request: &Request<B>) -> Cow<'_, str> {
    let uri = request.uri();
    match uri.path_and_query() {
        Some(path) if uri.authority().is_none() || request.version() >= Version::HTTP_2 => {
            path.as_str().into()
        }
        _ => uri.to_string().into(),
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
    let mut text = Vec::new();
    escape(&mut text, said);
    ascii(text)
}

fn ascii(text: Vec<u8>) -> String {
    String::from_utf8(text).unwrap_or_default()
}

/// Writes what a client has said without what would end a field or a line.
fn escape(to: &mut Vec<u8>, said: &[u8]) {
    let said = &said[..said.len().min(LONGEST)];
    let plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\'' | b'\\');
    if said.iter().all(plain) {
        to.extend_from_slice(said);
    } else {
        to.extend(said.escape_ascii());
    }
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

    fn line(format: LogFormat, request: &Request<()>, took: Duration) -> String {
        let mut log = Vec::new();
        Line::begin(Instant::now(), format, None, None, request).end(
            StatusCode::OK,
            1,
            took,
            &mut log,
        );
        String::from_utf8(log).expect("UTF-8")
    }

    #[test]
    fn a_client_forges_no_line() {
        let request = request("/\"{}200{}1\u{85}".as_bytes(), b"\" \"x\" 0\xff\\");
        for format in [LogFormat::Combined, LogFormat::Json] {
            let line = line(format, &request, Duration::ZERO);
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
            let line = line(LogFormat::Combined, &request, Duration::ZERO);
            assert!(line.contains(&format!("\"GET {logged} HTTP/")), "{line}");
        }
    }

    #[test]
    fn a_field_is_cut() {
        let line = line(LogFormat::Combined, &request(&[b'/'; 9000], b""), Duration::ZERO);
        assert!(line.len() < 2 * LONGEST);
    }

    #[test]
    fn a_line_is_what_other_servers_write() {
        for (uri, address, took, expected) in [
            ("/a?b", "192.0.2.19", Duration::from_nanos(499_999), ("192.0.2.19", "/a?b", "0.000")),
            ("/", "2001:db8::1", Duration::from_micros(1500), ("2001:db8::1", "/", "0.002")),
            ("http://x:80/a?", "0.0.0.0", Duration::MAX / 2, ("0.0.0.0", "http://x:80/a?", "")),
            ("*", "10.100.0.255", Duration::from_millis(61_040), ("10.100.0.255", "*", "61.040")),
        ] {
            let (client, target, seconds) = expected;
            let request = request(uri.as_bytes(), b"it's");
            let mut log = Vec::new();
            let address = address.parse().ok();
            let line = Line::begin(Instant::now(), LogFormat::Combined, address, None, &request);
            line.end(StatusCode::NOT_FOUND, u64::MAX, took, &mut log);
            let log = String::from_utf8(log).expect("UTF-8");
            let (time, rest) = log.split_once(']').expect("a time");
            assert!(time.starts_with(&format!("{client} - - [")), "{log}");
            let bytes = u64::MAX;
            let fields = format!(r#" "GET {target} HTTP/1.1" 404 {bytes} "it\'s" "-" "#);
            let got = rest.strip_prefix(&fields).unwrap_or_else(|| panic!("{log}"));
            assert!(seconds.is_empty() || got == format!("{seconds}\n"), "{log}");
        }
    }
}
