//! Sizes and times as people write and read them.

use std::num::{IntErrorKind, ParseIntError};
use std::str::FromStr;
use std::time::Duration;

/// Reads a size: bytes, or with a suffix K, M, G (powers of 1024), also as KiB or KB.
pub fn size(text: &str) -> Result<u64, String> {
    parse_size::Config::new().with_binary().parse_size(text).map_err(|e| {
        format!("{e}: give a number of bytes, or one with K, M or G, such as 64K or 8M")
    })
}

/// Reads bytes a second: a size, maybe with "/s" behind it.
pub fn rate(text: &str) -> Result<u64, String> {
    match size(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("must be at least 1 byte a second".into()),
        rate => Ok(rate),
    }
}

/// Reads a number of things, at least one.
pub(crate) fn some<T: FromStr<Err = ParseIntError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: ParseIntError| match e.kind() {
        IntErrorKind::Zero => "must be at least 1".into(),
        _ => format!("{e}: give a whole number, at least 1"),
    })
}

/// Reads a time, such as 30s or 1m30s.
pub fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than nothing".into()),
        // So far away that clocks can still count it.
        Ok(time) if time > Duration::from_secs(1 << 32) => {
            Err("must be less than a century".into())
        }
        Ok(time) => Ok(time),
        Err(e) => Err(format!("{e}: give a number with ms, s, m or h, such as 500ms or 30s")),
    }
}

/// Parses a time, which may be nothing: `0`.
///
/// # Errors
/// As [`duration`].
pub fn duration_or_zero(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Ok(Duration::ZERO),
        _ => duration(text),
    }
}

/// Formats a time as people read it: `30s`.
pub fn time(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// Returns a time in microseconds.
pub fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Formats a size in the largest unit that keeps it readable: `8 MiB`, `1.5 GiB`, `100 B`.
pub fn bytes(n: u64) -> String {
    let text = indicatif::BinaryBytes(n).to_string();
    // "8.00 MiB" is exactly 8 MiB, and said so.
    text.replace(".00 ", " ")
}

/// Formats a number of streams: `1 stream`, `32 streams`.
pub fn streams(n: u32) -> String {
    if n == 1 { "1 stream".into() } else { format!("{n} streams") }
}

/// Formats a time given in microseconds, with three digits at most.
pub fn micros(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} µs"),
        1_000..1_000_000 => decimals(n, 1_000, "ms"),
        _ => decimals(n, 1_000_000, "s"),
    }
}

fn decimals(n: u64, unit: u64, name: &str) -> String {
    let tenths = (n + unit / 20) / (unit / 10);
    if tenths < 1_000 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", tenths / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(size("100"), Ok(100));
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("8M"), Ok(8 << 20));
        assert_eq!(size("8MiB"), Ok(8 << 20));
        assert_eq!(size("1.5G"), Ok(3 << 29));
        for wrong in ["", "eight", "8X", "-1", "99999999999G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_and_times_need_to_be_something() {
        assert_eq!(rate("1M/s"), Ok(1 << 20));
        assert_eq!(rate("100"), Ok(100));
        assert!(rate("0").is_err() && rate("fast").is_err());
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(time(Duration::from_millis(1500)), "1s 500ms");
        for wrong in ["", "0s", "30", "soon", "1000y"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_short() {
        assert_eq!(micros(0), "0 µs");
        assert_eq!(micros(999), "999 µs");
        assert_eq!(micros(1_000), "1.0 ms");
        assert_eq!(micros(43_960), "44.0 ms");
        assert_eq!(micros(321_400), "321 ms");
        assert_eq!(micros(2_500_000), "2.5 s");
    }
}
