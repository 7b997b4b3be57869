//! Dates, as leniently as their meaning allows.

use http::HeaderValue;

const DAYS: [(&str, &str); 7] = [
    ("Mon", "Monday"),
    ("Tue", "Tuesday"),
    ("Wed", "Wednesday"),
    ("Thu", "Thursday"),
    ("Fri", "Friday"),
    ("Sat", "Saturday"),
    ("Sun", "Sunday"),
];

/// Reads a date in one of HTTP's three forms, in seconds since 1970; `None` if it is none.
///
/// The case of its letters does not matter, and neither does whether the day of the week is the
/// right one: both are what real origins get wrong, and the date is clear all the same.
#[must_use]
pub fn parse_date(value: &HeaderValue) -> Option<u64> {
    let text = value.to_str().ok()?.trim_matches([' ', '\t']);
    let mut plain = String::with_capacity(text.len());
    let mut first = true;
    for letter in text.chars() {
        plain.push(if first { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() });
        first = !letter.is_ascii_alphabetic();
    }
    if let Some(rest) = plain.strip_suffix(" Gmt") {
        plain = format!("{rest} GMT");
    }
    let end = plain.find(|letter: char| !letter.is_ascii_alphabetic())?;
    let (day, rest) = plain.split_at(end);
    DAYS.iter().find(|(short, long)| day == *short || day == *long)?;
    // httpdate takes a date only with its right day.
    DAYS.iter().find_map(|(short, long)| {
        let date = format!("{}{rest}", if day.len() == 3 { short } else { long });
        let time = httpdate::parse_http_date(&date).ok()?;
        time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_by_what_they_mean() {
        let read = |text: &str| HeaderValue::from_str(text).ok().and_then(|v| parse_date(&v));
        let expected = Some(2_544_400_878);
        for text in [
            "Thu, 18 Aug 2050 02:01:18 GMT",
            " Thu, 18 Aug 2050 02:01:18 GMT\t",
            "THU, 18 AUG 2050 02:01:18 gMT",
            "Mon, 18 Aug 2050 02:01:18 GMT",
            "Thursday, 18-Aug-50 02:01:18 GMT",
            "sunday, 18-aug-50 02:01:18 gmt",
            "Thu Aug 18 02:01:18 2050",
            "Tue Aug 18 02:01:18 2050",
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(read("Thu Aug  8 02:01:18 2050"), Some(2_543_536_878));
        for text in [
            "0",
            "-1",
            "",
            "Xyz, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 31 Feb 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 25:01:18 GMT",
            "Thu, 18 Aug 1950 02:01:18 GMT",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
