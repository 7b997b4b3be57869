//! Tables of what is stored, for how long, and what is not.
#![allow(clippy::unwrap_used)]

use http::HeaderName;

use super::super::MOST;
use super::*;

/// Sun, 06 Nov 1994 08:49:37 GMT.
const NOW: u64 = 784_111_777;
const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn map(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    headers
}

fn judge(
    status: u16,
    request: &[(&str, &str)],
    response: &[(&str, &str)],
) -> Result<Known, Refusal> {
    Exchange {
        method: &Method::GET,
        request: &map(request),
        status: StatusCode::from_u16(status).unwrap(),
        response: &map(response),
        times: Times { asked: NOW, answered: NOW },
    }
    .judge()
}

#[test]
fn what_is_not_stored() {
    let fresh = "max-age=9";
    let key = ("authorization", "x");
    let cc = |value| [("cache-control", value)];
    for (status, request, response, expected) in [
        (200, &[][..], &cc("max-age=9, no-store")[..], Some(Refusal::NoStore)),
        (200, &[], &cc("max-age=100, PRIVATE"), Some(Refusal::Private)),
        (200, &[], &cc("max-age=9, private=\"set-cookie\""), Some(Refusal::Private)),
        (200, &[], &cc("no-store, must-understand, max-age=9"), None),
        (599, &[], &cc("no-store, must-understand, max-age=9"), Some(Refusal::NoStore)),
        (599, &[], &cc("must-understand, max-age=9"), Some(Refusal::NoStore)),
        (599, &[], &cc(fresh), None),
        (500, &[], &cc(fresh), None),
        (304, &[], &cc(fresh), Some(Refusal::Status)),
        (103, &[], &cc(fresh), Some(Refusal::Status)),
        (200, &cc("no-store"), &cc(fresh), Some(Refusal::Request)),
        (200, &[key], &cc(fresh), Some(Refusal::Authorization)),
        (200, &[key], &cc("max-age=9, public"), None),
        (200, &[key], &cc("max-age=9, must-revalidate"), None),
        (200, &[key], &cc("s-maxage=9"), None),
        (200, &[key], &[("cdn-cache-control", "max-age=9")], Some(Refusal::Authorization)),
        (200, &[key], &[("cdn-cache-control", "max-age=9, public")], None),
        (200, &[], &[("cache-control", fresh), ("vary", "a, *")], Some(Refusal::Vary)),
        (200, &[], &[("cache-control", fresh), ("vary", "a")], None),
        (200, &[], &[], Some(Refusal::Useless)),
        (200, &[], &cc("max-age=0"), Some(Refusal::Useless)),
        (200, &[], &cc("no-cache, max-age=9"), Some(Refusal::Useless)),
        (200, &[], &[("etag", "\"a\"")], None),
        (200, &[], &cc("max-age=0, stale-if-error=9"), None),
        (
            206,
            &[],
            &[("cache-control", fresh), ("content-range", "bytes 0-1/3")],
            Some(Refusal::Part),
        ),
        (206, &[], &[("etag", "W/\"a\""), ("content-range", "bytes 0-1/3")], Some(Refusal::Part)),
        (206, &[], &[("etag", "\"a\""), ("content-range", "bytes 0-1/*")], Some(Refusal::Part)),
        (206, &[], &[("etag", "\"a\""), ("content-range", "bytes 0-1/3")], None),
    ] {
        let got = judge(status, request, response).err();
        assert_eq!(got, expected, "{status} {request:?} {response:?}");
    }
}

#[test]
fn how_long_it_is_fresh() {
    let later = "Sun, 06 Nov 1994 08:51:17 GMT";
    let before = "Sun, 06 Nov 1994 08:32:57 GMT";
    let long_before = "Sat, 01 Jan 1994 00:00:00 GMT";
    for (status, response, lifetime) in [
        (200, &[("cache-control", "max-age=7, s-maxage=9")][..], 9),
        (200, &[("cache-control", "max-age=99999999999"), ("expires", later)], MOST),
        (200, &[("expires", later)], 100),
        (200, &[("expires", later), ("date", DATE)], 100),
        (200, &[("expires", later), ("date", "nonsense")], 100),
        (200, &[("expires", later), ("date", later), ("etag", "\"a\"")], 0),
        (200, &[("expires", later), ("expires", later), ("etag", "\"a\"")], 0),
        (200, &[("expires", "0"), ("etag", "\"a\"")], 0),
        (200, &[("expires", before), ("cache-control", "max-age=9")], 9),
        (200, &[("cdn-cache-control", "max-age=5"), ("cache-control", "max-age=9")], 5),
        (200, &[("last-modified", before)], 100),
        (200, &[("last-modified", long_before)], 86_400),
        (404, &[("last-modified", before)], 100),
        (201, &[("last-modified", before)], 0),
        (599, &[("last-modified", before)], 0),
        (599, &[("last-modified", before), ("cache-control", "public")], 100),
        (200, &[("last-modified", later)], 0),
    ] {
        assert_eq!(
            judge(status, &[], response).unwrap().lifetime,
            lifetime,
            "{status} {response:?}"
        );
    }
}

#[test]
fn how_old_it_is() {
    let cc = ("cache-control", "max-age=4294967296");
    for (response, delay, age) in [
        (&[cc][..], 0, 0),
        (&[cc], 4, 4),
        (&[cc, ("date", "Sun, 06 Nov 1994 08:49:27 GMT")], 4, 10),
        (&[cc, ("date", "Sun, 06 Nov 1994 08:49:57 GMT")], 4, 4),
        (&[cc, ("age", "30")], 4, 34),
        (&[cc, ("age", "30, 90")], 0, 30),
        (&[cc, ("age", "0"), ("age", "90")], 0, 0),
        (&[cc, ("age", "18446744073709551615")], 4, MOST),
        (&[cc, ("age", "99999999999999999999999")], 4, MOST),
        (&[cc, ("age", "-5")], 0, 0),
        (&[cc, ("age", "5.0")], 0, 0),
        (&[cc, ("age", "x")], 0, 0),
        (&[cc, ("age", "30;a=b")], 0, 30),
        (&[cc, ("age", "10"), ("date", "Sun, 06 Nov 1994 08:49:07 GMT")], 4, 30),
    ] {
        let headers = map(response);
        let times = Times { asked: NOW - delay, answered: NOW };
        assert_eq!(freshness::initial_age(&headers, times), age, "{response:?}");
    }
}

#[test]
fn answers_to_post() {
    let judge = |response: &[(&str, &str)]| {
        let times = Times { asked: NOW, answered: NOW };
        let (request, response) = (HeaderMap::new(), map(response));
        let (method, status) = (&Method::POST, StatusCode::OK);
        let exchange = Exchange { method, request: &request, status, response: &response, times };
        assert_eq!(exchange.judge(), Err(Refusal::Method));
        exchange.judge_of_post().is_ok()
    };
    assert!(judge(&[("cache-control", "max-age=9")]));
    assert!(!judge(&[("etag", "\"a\""), ("last-modified", "Sun, 06 Nov 1994 08:32:57 GMT")]));
    assert!(!judge(&[("cache-control", "max-age=9, private")]));
}
