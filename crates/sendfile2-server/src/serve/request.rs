//! The requests that are refused.

use std::net::Ipv6Addr;

use axum::http::{Request, Version, header};

/// Returns whether the request tells its host as RFC 9112, section 3.2, demands: once, validly, and
/// always with HTTP/1.1.
pub(super) fn tells_its_host<B>(request: &Request<B>) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => is_plain(host.as_bytes()) || host.to_str().is_ok_and(is_host),
        _ => false,
    }
}

/// Returns whether it is a host as most are, which is found out at once.
fn is_plain(host: &[u8]) -> bool {
    let end = host.iter().position(|byte| !(byte.is_ascii_alphanumeric() || b"-.".contains(byte)));
    let (name, port) = host.split_at(end.unwrap_or(host.len()));
    !name.is_empty()
        && matches!(port, [] | [b':', ..])
        && port.iter().skip(1).all(u8::is_ascii_digit)
}

/// `uri-host [ ":" port ]`, of RFC 3986. It may be empty.
fn is_host(value: &str) -> bool {
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    match value.strip_prefix('[') {
        Some(rest) => rest.split_once(']').is_some_and(|(address, port)| {
            let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
            address.parse::<Ipv6Addr>().is_ok() && port.is_some_and(digits)
        }),
        None => {
            let (name, port) = value.split_once(':').unwrap_or((value, ""));
            is_name(name) && digits(port)
        }
    }
}

/// `*( unreserved / pct-encoded / sub-delims )`.
fn is_name(name: &str) -> bool {
    let mut parts = name.split('%');
    let plain =
        |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&b));
    let hex = |s: &str| s.len() >= 2 && s.bytes().take(2).all(|b| b.is_ascii_hexdigit());
    parts.next().is_none_or(plain) && parts.all(|part| hex(part) && plain(part))
}

#[cfg(test)]
mod tests {
    use super::{is_host, is_plain};

    #[test]
    fn hosts_are_known_by_their_grammar() {
        for host in ["", "x", "x:80", "x:", "a_b.example", "a%41", "[::1]", "[::1]:80", "1.2.3.4:5"]
        {
            assert!(is_host(host), "{host}");
        }
        for host in [
            "a b", "x:y", "x/", "a@b", "http://x", "[::1", "[x]", "[::1]x", "[::1]]", "%4", "ü",
            "a:1:2",
        ] {
            assert!(!is_host(host) && !is_plain(host.as_bytes()), "{host}");
        }
    }
}
