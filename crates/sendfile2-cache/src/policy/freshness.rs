//! How old a response is, and how long it is fresh (RFC 9111, 4.2).

use http::{HeaderMap, HeaderName, header};

use super::control::ResponseControl;
use super::date::parse_date;
use super::known::Known;

/// The largest number of seconds: what is larger counts as this.
pub const MOST: u32 = 1 << 31;

/// The longest for which a response is taken for fresh that does not say how long it is.
const HEURISTIC: u64 = 86_400;

/// The times of a request and its response, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// When the request was sent.
    pub asked: u64,
    /// When the response's headers were there.
    pub answered: u64,
}

pub(super) fn clamped(seconds: u64) -> u32 {
    u32::try_from(seconds).map_or(MOST, |seconds| seconds.min(MOST))
}

/// The age of a response when it was received.
pub(super) fn initial_age(headers: &HeaderMap, times: Times) -> u32 {
    let date = single_date(headers, &header::DATE).unwrap_or(times.answered);
    let apparent = times.answered.saturating_sub(date);
    let delay = times.answered.saturating_sub(times.asked);
    let corrected = age_field(headers).saturating_add(delay);
    clamped(apparent.max(corrected))
}

/// The first value of `Age`; 0 if it is no number.
fn age_field(headers: &HeaderMap) -> u64 {
    let Some(line) = headers.get(header::AGE) else { return 0 };
    let first = line.as_bytes().split(|byte| matches!(byte, b',' | b';')).next();
    let digits = first.unwrap_or_default().trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    digits.iter().fold(0, |n: u64, digit| {
        n.saturating_mul(10).saturating_add(u64::from(digit - b'0')).min(u64::from(MOST))
    })
}

/// The date of a field that has exactly one line.
pub(super) fn single_date(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(line), None) => parse_date(line),
        _ => None,
    }
}

/// The seconds for which the response says that it is fresh; `None` if it does not say.
pub(super) fn explicit(
    control: &ResponseControl,
    headers: &HeaderMap,
    answered: u64,
) -> Option<u32> {
    let by_control = control.s_maxage.or(control.max_age);
    if control.targeted || by_control.is_some() || !headers.contains_key(header::EXPIRES) {
        return by_control;
    }
    // One that cannot be read, or several, are as good as one in the past.
    let Some(expires) = single_date(headers, &header::EXPIRES) else { return Some(0) };
    let date = single_date(headers, &header::DATE).unwrap_or(answered);
    Some(clamped(expires.saturating_sub(date)))
}

/// The seconds for which a response is taken for fresh that does not say: a tenth of the time for
/// which it had not changed.
pub(super) fn heuristic(headers: &HeaderMap, answered: u64) -> u32 {
    let Some(modified) = single_date(headers, &header::LAST_MODIFIED) else { return 0 };
    let date = single_date(headers, &header::DATE).unwrap_or(answered);
    clamped((date.saturating_sub(modified) / 10).min(HEURISTIC))
}

impl Known {
    /// Its age at the time `now`.
    #[must_use]
    pub fn age_at(&self, now: u64) -> u32 {
        let resident = now.saturating_sub(u64::from(self.received));
        clamped(resident.saturating_add(u64::from(self.age)))
    }

    /// The seconds for which it is fresh at the time `now`; less than 0 if it is stale.
    #[must_use]
    pub fn fresh_for(&self, now: u64) -> i64 {
        i64::from(self.lifetime) - i64::from(self.age_at(now))
    }
}
