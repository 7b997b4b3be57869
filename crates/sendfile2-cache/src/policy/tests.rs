//! Properties that hold for all responses, requests and times.
#![allow(clippy::unwrap_used)]

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A directive as it is written, with what it may be mistaken for.
fn directive() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("max-age"),
        Just("s-maxage"),
        Just("no-store"),
        Just("no-cache"),
        Just("private"),
        Just("public"),
        Just("must-revalidate"),
        Just("must-understand"),
        Just("immutable"),
        Just("stale-if-error"),
        Just("stale-while-revalidate"),
        Just("x"),
        Just("MAX-AGE"),
        Just("Private"),
    ];
    let argument = prop_oneof![
        3 => Just(String::new()),
        3 => any::<u32>().prop_map(|n| format!("={n}")),
        1 => Just("=99999999999999999999999".to_owned()),
        1 => "=[0-9a-z\"', \\\\-]{0,6}",
        1 => "=\"[a-z, =0-9]{0,8}\"",
    ];
    (name, argument, "[ \t]?,[ ,\t]{0,2}")
        .prop_map(|(name, argument, comma)| format!("{name}{argument}{comma}"))
}

fn field() -> impl Strategy<Value = (&'static str, String)> {
    let date = prop_oneof![
        Just("Sun, 06 Nov 1994 08:49:37 GMT".to_owned()),
        Just("Thu, 18 Aug 2050 02:01:18 GMT".to_owned()),
        "[A-Za-z0-9:, -]{0,30}",
    ];
    let control = || vec(directive(), 0..4).prop_map(|all| all.concat());
    prop_oneof![
        6 => control().prop_map(|value| ("cache-control", value)),
        1 => control().prop_map(|value| ("cdn-cache-control", value)),
        1 => "[0-9 ,;a-]{0,24}".prop_map(|value| ("age", value)),
        1 => date.clone().prop_map(|value| ("expires", value)),
        1 => date.clone().prop_map(|value| ("date", value)),
        1 => date.prop_map(|value| ("last-modified", value)),
        1 => "(W/)?\"[a-z]{0,2}\"|[a-z]{0,3}".prop_map(|value| ("etag", value)),
        1 => "[a-c*, ]{0,8}".prop_map(|value| ("vary", value)),
        1 => "bytes [0-9]{1,3}-[0-9]{1,3}/[0-9*]{1,3}".prop_map(|value| ("content-range", value)),
        1 => "[a-z]{1,3}".prop_map(|value| ("authorization", value)),
    ]
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    vec(field(), 0..6).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.append(HeaderName::from_static(name), value);
            }
        }
        headers
    })
}

fn times() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        700_000_000..900_000_000_u64,
        2_500_000_000..4_500_000_000_u64,
        Just(u64::MAX)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_stored_response_is_fresh_for_its_lifetime_and_no_longer(
        response in headers(), request in headers(), status in 100..600_u16,
        asked in times(), delay in 0..1000_u64, later in times(), more in 0..5_000_000_000_u64,
    ) {
        let times = Times { asked, answered: asked.saturating_add(delay) };
        let status = StatusCode::from_u16(status).unwrap();
        let exchange =
            Exchange { method: &Method::GET, request: &request, status, response: &response, times };
        let Ok(known) = exchange.judge() else { return Ok(()) };
        let control = ResponseControl::of(&response);
        prop_assert!(!control.private);
        prop_assert!(!control.no_store || control.must_understand);
        prop_assert!(known.age <= MOST && known.lifetime <= MOST);
        prop_assert_eq!(Known::of_state(&known.to_state()), Some(known));
        // It grows older, and never younger.
        prop_assert!(known.age_at(later) <= known.age_at(later.saturating_add(more)));
        let plain = RequestControl::default();
        let reuse = known.reuse(&plain, later);
        if reuse == Reuse::Fresh {
            prop_assert!(known.age_at(later) < known.lifetime && !control.no_cache);
        }
        if known.must_revalidate || known.no_cache {
            prop_assert!(matches!(reuse, Reuse::Fresh | Reuse::Validate));
        }
        // What a request demands makes nothing usable that is not, but `max-stale`.
        let demands = RequestControl { max_stale: None, ..RequestControl::of(&request) };
        if known.reuse(&demands, later) == Reuse::Fresh {
            prop_assert_eq!(reuse, Reuse::Fresh);
        }
    }

    #[test]
    fn directives_are_found_among_others(
        before in vec(directive(), 0..3), after in vec(directive(), 0..3),
        name in prop_oneof![Just("no-store"), Just("NO-STORE"), Just("No-Store=\"a, b\""), Just("no-store=x")],
    ) {
        // A quotation mark that is not closed must not hide what follows.
        let value = format!("{}{name},{}", before.concat(), after.concat());
        let hidden = before.concat().contains('"');
        let Ok(value) = HeaderValue::from_str(&value) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert("cache-control", value.clone());
        prop_assert!(hidden || ResponseControl::of(&headers).no_store, "{:?}", value);
        // In lines of their own nothing hides anything.
        headers.append("cache-control", HeaderValue::from_static("no-store"));
        prop_assert!(ResponseControl::of(&headers).no_store, "{:?}", headers);
    }

    #[test]
    fn heads_come_back(headers in headers(), id in ".{0,9}", cut in 0..300_usize) {
        let stored = Stored { id, status: StatusCode::OK, headers };
        let bytes = bytes::Bytes::from(stored.encode());
        let again = Stored::parse(&bytes).unwrap();
        prop_assert_eq!((&again.id, &again.headers), (&stored.id, &stored.headers));
        if cut <= bytes.len() {
            let cut = bytes.slice(..cut);
            let fields = Stored::parse(&cut).map(|part| part.headers.len());
            let fewer = fields.is_none_or(|fields| fields < stored.headers.len());
            prop_assert!(cut.len() == bytes.len() || fewer);
        }
    }

    #[test]
    fn a_304_changes_the_fields_that_it_has(stored in headers(), new in headers()) {
        let mut merged = stored.clone();
        merge(&mut merged, &new);
        let body = |name: &HeaderName| name.as_str().starts_with("content-");
        for name in new.keys().filter(|name| !body(name)) {
            let lines = |of: &HeaderMap| of.get_all(name).iter().cloned().collect::<Vec<_>>();
            prop_assert_eq!(lines(&merged), lines(&new));
        }
        for name in stored.keys().filter(|name| body(name)) {
            prop_assert_eq!(merged.get(name), stored.get(name));
        }
    }

    #[test]
    fn targets_stay_at_their_host(target in "/[a-z./?]{0,12}", reference in "[a-z:/.?#@]{0,16}") {
        if let Some(resolved) = resolved("h", &target, &reference) {
            prop_assert!(resolved.starts_with('/'), "{:?}", resolved);
            let path = resolved.split('?').next().unwrap();
            prop_assert!(!path.split('/').any(|segment| segment == ".."), "{:?}", resolved);
        }
    }

    #[test]
    fn parts_lie_in_their_whole(range in ".{0,30}", a in 0..50_u64, b in 0..50_u64) {
        let mut headers = HeaderMap::new();
        if let Ok(range) = HeaderValue::from_str(&range) {
            headers.insert("content-range", range);
        }
        if let Some(part) = Part::of(&headers) {
            prop_assert!(part.range.start < part.range.end && part.range.end <= part.whole);
        }
        let (old, new) = (Part { range: a..a + 9, whole: 99 }, Part { range: b..b + 9, whole: 99 });
        if let Some(both) = completes(&old, &new) {
            prop_assert_eq!(both.len(), 9 + a.abs_diff(b));
            prop_assert!(both.covers(&old.range) && both.covers(&new.range));
        }
    }
}
