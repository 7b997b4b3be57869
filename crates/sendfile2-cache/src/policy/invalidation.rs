//! The targets that a change at the origin makes invalid (RFC 9111, 4.4).

use http::uri::Uri;
use http::{HeaderMap, Method, StatusCode, header};

/// Whether a request with this method changes nothing at the origin.
#[must_use]
pub fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The targets (path and query) at `authority` that an answer makes invalid, where its request's
/// target was this one: itself, and what `Location` and `Content-Location` name of the same host.
/// None if the request changed nothing.
#[must_use]
pub fn invalidated(
    method: &Method,
    authority: &str,
    target: &str,
    status: StatusCode,
    response: &HeaderMap,
) -> Vec<String> {
    if is_safe(method) || !(status.is_success() || status.is_redirection()) {
        return Vec::new();
    }
    let mut all = vec![target.to_owned()];
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        // Some servers write a path as it is, with bytes beyond ASCII.
        let named = response.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        all.extend(named.and_then(|named| resolved(authority, target, named)));
    }
    all.dedup();
    all
}

/// The target at `authority`, which does not name its scheme's own port, that a reference means, seen
/// from a target there; `None` if it is another host's.
#[must_use]
pub fn resolved(authority: &str, target: &str, reference: &str) -> Option<String> {
    let reference = reference.trim().split('#').next().unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default();
    let full = match reference {
        "" => target.to_owned(),
        // A path has a colon only behind its first slash.
        _ if reference.split(['/', '?']).next().is_some_and(|first| first.contains(':')) => {
            let uri: Uri = reference.parse().ok()?;
            return of_authority(&uri, authority);
        }
        _ if reference.starts_with("//") => {
            let uri: Uri = format!("http:{reference}").parse().ok()?;
            return of_authority(&uri, authority);
        }
        _ if reference.starts_with('/') => reference.to_owned(),
        _ if reference.starts_with('?') => format!("{path}{reference}"),
        _ => {
            let directory = path.rfind('/').map_or("/", |at| &path[..=at]);
            format!("{directory}{reference}")
        }
    };
    Some(without_dots(&full))
}

fn of_authority(uri: &Uri, authority: &str) -> Option<String> {
    let named = uri.authority()?.as_str();
    let of_scheme = match uri.scheme_str()? {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    let bare = named.strip_suffix(of_scheme).unwrap_or(named);
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    bare.eq_ignore_ascii_case(authority).then(|| without_dots(target))
}

/// A target without the segments `.` and `..`.
fn without_dots(target: &str) -> String {
    let (path, query) = match target.find('?') {
        Some(at) => target.split_at(at),
        None => (target, ""),
    };
    let mut segments = Vec::new();
    for (i, segment) in path.split('/').enumerate().skip(1) {
        let last = i == path.matches('/').count();
        match segment {
            "." if last => segments.push(""),
            ".." => {
                segments.pop();
                if last {
                    segments.push("");
                }
            }
            "." => {}
            segment => segments.push(segment),
        }
    }
    format!("/{}{query}", segments.join("/"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_at_the_same_host() {
        for (reference, expected) in [
            ("", Some("/a/b?q")),
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("x", Some("/a/x")),
            ("./x", Some("/a/x")),
            ("../x", Some("/x")),
            ("../../../x/.", Some("/x/")),
            ("x/..", Some("/a/")),
            ("?y", Some("/a/b?y")),
            ("http://h/x", Some("/x")),
            ("HTTP://H:80/x", Some("/x")),
            ("https://h:443/x", Some("/x")),
            ("http://h", Some("/")),
            ("//h/x", Some("/x")),
            ("//other/x", None),
            ("http://other/x", None),
            ("http://h:81/x", None),
            ("ftp://h/x", None),
            ("mailto:x", None),
        ] {
            assert_eq!(resolved("h", "/a/b?q", reference).as_deref(), expected, "{reference}");
        }
        // The port of HTTP is another one's with TLS.
        assert_eq!(resolved("h:80", "/a", "http://h:80/x"), None);
        assert_eq!(resolved("h:80", "/a", "https://h:80/x").as_deref(), Some("/x"));
    }

    #[test]
    fn only_changes_that_were_made_invalidate() {
        let mut headers = HeaderMap::new();
        headers.insert(header::LOCATION, "/new".parse().unwrap());
        headers.insert(header::CONTENT_LOCATION, "http://other/x".parse().unwrap());
        let of = |method: &str, status| {
            let (method, status) = (method.parse().unwrap(), StatusCode::from_u16(status).unwrap());
            invalidated(&method, "h", "/a", status, &headers)
        };
        assert_eq!(of("POST", 201), ["/a", "/new"]);
        assert_eq!(of("M-SEARCH", 303), ["/a", "/new"]);
        assert!(of("POST", 500).is_empty() && of("DELETE", 404).is_empty());
        assert!(of("GET", 200).is_empty() && of("OPTIONS", 200).is_empty());
    }
}
