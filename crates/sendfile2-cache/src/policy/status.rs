//! `Cache-Status` (RFC 9211): how an answer came about.

use std::fmt::Write;

use http::{HeaderValue, StatusCode};

/// How an answer came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Whether it was sent without asking the origin.
    pub hit: bool,
    /// Why the origin was asked: `uri-miss`, `vary-miss`, `stale`, `request`, `partial`, `method` or
    /// `bypass`.
    pub fwd: Option<&'static str>,
    /// The origin's status, where the answer's is another one.
    pub fwd_status: Option<StatusCode>,
    /// The seconds for which it is fresh; less than 0 if it is stale.
    pub ttl: Option<i64>,
    /// Whether the origin's answer was stored.
    pub stored: bool,
    /// Whether another request had asked for it already.
    pub collapsed: bool,
    /// The reason why it was not stored.
    pub detail: Option<&'static str>,
}

impl CacheStatus {
    /// The field's value.
    #[must_use]
    pub fn value(&self) -> HeaderValue {
        // Longer than the longest but for details.
        let mut text = String::with_capacity(64);
        text += "sendfile2";
        if self.hit {
            text += "; hit";
        }
        if let Some(fwd) = self.fwd {
            text += "; fwd=";
            text += fwd;
        }
        if let Some(status) = self.fwd_status {
            // Writing to a text does not fail.
            let _ = write!(text, "; fwd-status={}", status.as_u16());
        }
        if let Some(ttl) = self.ttl {
            text += "; ttl=";
            text += itoa::Buffer::new().format(ttl);
        }
        if self.stored {
            text += "; stored";
        }
        if self.collapsed {
            text += "; collapsed";
        }
        if let Some(detail) = self.detail {
            let _ = write!(text, "; detail={detail}");
        }
        // It is of letters, digits and a few signs.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("sendfile2"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_happened() {
        let hit = CacheStatus { hit: true, ttl: Some(-4), ..CacheStatus::default() };
        assert_eq!(hit.value(), "sendfile2; hit; ttl=-4");
        let miss = CacheStatus {
            fwd: Some("stale"),
            fwd_status: Some(StatusCode::NOT_MODIFIED),
            stored: true,
            collapsed: true,
            detail: Some("private"),
            ..CacheStatus::default()
        };
        let expected = "sendfile2; fwd=stale; fwd-status=304; stored; collapsed; detail=private";
        assert_eq!(miss.value(), expected);
    }
}
