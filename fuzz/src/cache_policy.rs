//! Any fields of a request and a response: what the policy of the cache makes of them.
//!
//! Input: the status (2 bytes, little-endian), the seconds from the request to the answer (2 bytes), those
//! until the next request (4 bytes), and lines: those that begin with `<` are of the request, the others
//! of the response.

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use sendfile2_cache::policy::{
    Exchange, Known, MOST, RequestControl, ResponseControl, Reuse, Stored, Times, Vary, merge,
};

/// Judges the exchange, and compares with what a reader makes of it that knows commas only.
///
/// # Panics
/// If what is forbidden there was allowed, or if something contradicts itself.
pub fn run(data: &[u8]) {
    let Some((status, rest)) = data.split_first_chunk() else { return };
    let Some((delay, rest)) = rest.split_first_chunk() else { return };
    let Some((later, rest)) = rest.split_first_chunk() else { return };
    let Ok(status) = StatusCode::from_u16(u16::from_le_bytes(*status)) else { return };
    let (mut request, mut response) = (HeaderMap::new(), HeaderMap::new());
    for line in rest.split(|byte| *byte == b'\n') {
        let (to, line) = match line.strip_prefix(b"<") {
            Some(line) => (&mut request, line),
            None => (&mut response, line),
        };
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            to.append(name, value);
        }
    }
    let asked = 1_000_000_000;
    let times = Times { asked, answered: asked + u64::from(u16::from_le_bytes(*delay)) };
    let now = times.answered + u64::from(u32::from_le_bytes(*later));
    let control = ResponseControl::of(&response);
    let judged =
        Exchange { method: &Method::GET, request: &request, status, response: &response, times }
            .judge();

    let targeted = response.contains_key("cdn-cache-control");
    let plain = |word: &str| {
        response.get_all("cache-control").iter().any(|line| {
            let text = String::from_utf8_lossy(line.as_bytes()).to_lowercase();
            !text.contains('"') && text.split(',').any(|element| element.trim() == word)
        })
    };
    for (word, seen) in [("private", control.private), ("no-store", control.no_store)] {
        assert!(targeted || !plain(word) || seen, "{word} was missed");
    }
    assert!(!control.private || judged.is_err(), "it is for one user");
    let vary = Vary::of(&response);
    assert!(vary.is_some() || judged.is_err(), "nothing says what it depends on");
    if let Some(vary) = vary {
        assert_eq!(vary.values(&request, None), vary.values(&request.clone(), None));
    }

    let stored = Stored { id: "h/".into(), status, headers: response.clone() };
    let again = Stored::parse(&stored.encode().into()).expect("it comes back");
    assert_eq!(again.headers, response);
    let mut merged = response.clone();
    merge(&mut merged, &request);

    let Ok(known) = judged else { return };
    assert_eq!(Known::of_state(&known.to_state()), Some(known));
    let (age, lifetime) = (known.age_at(now), known.lifetime);
    assert!(age <= MOST && lifetime <= MOST);
    match known.reuse(&RequestControl::of(&request), now) {
        Reuse::Fresh => assert!(age < lifetime && !known.no_cache),
        Reuse::Stale | Reuse::WhileRevalidating => assert!(!known.must_revalidate),
        Reuse::Validate | Reuse::Asked => {}
    }
}
