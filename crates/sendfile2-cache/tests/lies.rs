//! Origins whose answers are not what they say, and clients who would have others get theirs.
#![allow(clippy::unwrap_used)]

mod origin;

use http_body_util::BodyExt;
use origin::{Origin, cache_of, get, read, request, response, until};
use sendfile2_cache::Cache;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// An origin that answers each request by these bytes, whatever they are.
async fn raw(answer: &'static str) -> Cache {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await? == 0 {
                        return Ok(());
                    }
                }
                stream.write_all(answer.as_bytes()).await
            });
        }
    });
    cache_of(&[&url])
}

#[tokio::test]
async fn a_length_beside_chunks_does_not_count() {
    let cache = raw("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\
         transfer-encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n")
    .await;
    for hit in [false, true] {
        let answer = get(&cache, "/", &[]).await;
        assert_eq!((answer.is_hit(), &*answer.body), (hit, "0123456789"));
        assert!(matches!(answer.header("content-length"), "" | "10"), "{answer:?}");
    }
    // One that only passes.
    let cache = raw("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n\
         a\r\n0123456789\r\n0\r\n\r\n")
    .await;
    let answer = get(&cache, "/", &[]).await;
    assert_eq!((&*answer.body, answer.header("content-length")), ("0123456789", ""));
}

#[tokio::test]
async fn a_length_that_is_said_twice_is_said_once() {
    for twice in ["content-length: 3, 3", "content-length: 3\r\ncontent-length: 3"] {
        let answer = format!("HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n{twice}\r\n\r\nabc");
        let cache = raw(answer.leak()).await;
        for hit in [false, true] {
            let answer = get(&cache, "/", &[]).await;
            let lengths: Vec<_> = answer
                .headers
                .get_all("content-length")
                .iter()
                .map(|len| len.to_str().unwrap())
                .collect();
            assert_eq!((answer.is_hit(), lengths), (hit, vec!["3"]));
        }
    }
}

#[tokio::test]
async fn another_protocol_is_not_passed_to_a_client_who_did_not_ask() {
    let cache =
        raw("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    assert_eq!(get(&cache, "/", &[]).await.status, 502);
    assert_eq!(origin::ask(&cache, "POST", "/", &[]).await.status, 502);
}

/// An answer about the fields of one request is not for others.
#[tokio::test]
async fn an_answer_to_a_range_that_is_none_is_nobody_elses() {
    let origin = Origin::new(|seen| async move {
        let fields = [("cache-control", "max-age=60"), ("content-range", "bytes */4")];
        match seen.header("range") {
            Some(_) => response(416, &fields, "none"),
            None => response(200, &fields[..1], "body"),
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    assert_eq!(get(&cache, "/", &[("range", "bytes=9-")]).await.status, 416);
    let answer = get(&cache, "/", &[]).await;
    assert_eq!((answer.status.as_u16(), &*answer.body), (200, "body"));
}

/// A field that `Connection` names does not reach the origin: the answer is not the one for its value.
#[tokio::test]
async fn a_field_that_connection_names_decides_nothing() {
    let origin = Origin::new(|seen| async move {
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        response(200, &fields, seen.header("accept-language").unwrap_or("none").to_owned())
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    let german = ("accept-language", "de");
    let hidden = get(&cache, "/", &[german, ("connection", "accept-language")]).await;
    assert_eq!(hidden.body, "none");
    assert_eq!(get(&cache, "/", &[german]).await.body, "de");
}

#[tokio::test]
async fn what_proxies_say_is_not_taken_away_by_connection() {
    let origin = Origin::new(|_| async { response(200, &[], "") }).await;
    let cache = cache_of(&[&origin.url]);
    let names = "x-forwarded-for, x-forwarded-host, forwarded, x-other";
    let fields = [
        ("x-forwarded-for", "192.0.2.1"),
        ("x-forwarded-host", "h"),
        ("forwarded", "for=192.0.2.1"),
        ("x-other", "1"),
        ("connection", names),
    ];
    get(&cache, "/", &fields).await;
    let seen = &origin.seen()[0];
    assert!(fields[..3].iter().all(|(name, value)| seen.header(name) == Some(value)), "{seen:?}");
    assert_eq!(seen.header("x-other"), None);
}

/// An answer that was stored without regard to a field is not that of the field's other values.
#[tokio::test]
async fn an_answer_that_begins_to_vary_is_asked_for_anew() {
    let origin = Origin::new(|seen| async move {
        let vary = [("etag", "\"x\""), ("cache-control", "max-age=60"), ("vary", "x-user")];
        let user = seen.header("x-user").unwrap_or("nobody").to_owned();
        match (seen.number, seen.header("if-none-match")) {
            (0, _) => response(200, &[("etag", "\"x\""), ("cache-control", "no-cache")], user),
            (_, Some(_)) => response(304, &vary, ""),
            (_, None) => response(200, &vary, user),
        }
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for user in ["a", "b", "c"] {
        assert_eq!(get(&cache, "/", &[("x-user", user)]).await.body, user);
    }
}

/// A part of another length than it says is not put together with what comes behind it.
#[tokio::test]
async fn a_part_of_another_length_is_cut_off() {
    for lie in ["AB", "ABCDEF"] {
        let origin = Origin::new(move |seen| async move {
            let second = seen.header("range") == Some("bytes=4-7");
            let range = if second { "bytes 4-7/8" } else { "bytes 0-3/8" };
            let fields =
                [("etag", "\"x\""), ("cache-control", "max-age=60"), ("content-range", range)];
            if second {
                return response(206, &fields, "4567");
            }
            let (pieces, mut answer) = origin::streaming(&fields);
            *answer.status_mut() = http::StatusCode::PARTIAL_CONTENT;
            pieces.send(lie).unwrap();
            answer
        })
        .await;
        let cache = cache_of(&[&origin.url]);
        assert_eq!(get(&cache, "/", &[("range", "bytes=4-7")]).await.body, "4567");
        let answer = cache.answer(request("GET", "/", &[("range", "bytes=0-3")])).await;
        let ended = answer.into_body().collect().await;
        assert!(ended.is_err(), "{ended:?}");
        until(|| cache.filling() == 0).await;
        // What was there is.
        let answer = read(cache.answer(request("GET", "/", &[("range", "bytes=4-7")])).await).await;
        assert_eq!((answer.is_hit(), &*answer.body), (true, "4567"));
    }
}

/// Codings of a connection that nobody here undoes: what is inside is not what would be passed on.
#[tokio::test]
async fn a_body_in_another_coding_is_not_taken_for_a_plain_one() {
    for coding in ["gzip, chunked", "gzip\r\ntransfer-encoding: chunked", "chunked, chunked"] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ntransfer-encoding: {coding}\r\n\r\n\
             3\r\nabc\r\n0\r\n\r\n"
        );
        let cache = raw(answer.leak()).await;
        assert_eq!(get(&cache, "/", &[]).await.status, 502, "{coding}");
    }
    let cache = raw("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(get(&cache.await, "/", &[]).await.body, "abc");
    let origin = Origin::new(|_| async { response(200, &[], "x") }).await;
    let cache = cache_of(&[&origin.url]);
    for (codings, status) in [
        (&["gzip, chunked"][..], 501),
        (&["gzip", "chunked"], 501),
        (&["chunked, chunked"], 501),
        (&["CHUNKED"], 200),
    ] {
        let fields: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
        let answer = origin::ask(&cache, "POST", "/", &fields).await;
        assert_eq!(answer.status.as_u16(), status, "{codings:?}");
    }
    assert_eq!(origin.count(), 1);
}

/// Clients of HTTP/2 send cookies in pieces (RFC 9113, 8.2.3).
#[tokio::test]
async fn cookies_are_one_field() {
    let origin = Origin::new(|seen| async move {
        let cookies = seen.headers.get_all("cookie").iter().count();
        let fields = [("cache-control", "max-age=60"), ("vary", "cookie")];
        let said = seen.headers.get("cookie").map_or("", |said| said.to_str().unwrap());
        response(200, &fields, format!("{cookies} {said}"))
    })
    .await;
    let cache = cache_of(&[&origin.url]);
    for (cookies, hit, body) in [
        (&["a=1", "b=2"][..], false, "1 a=1; b=2"),
        (&["a=1; b=2"], true, "1 a=1; b=2"),
        (&["a=1,b=2"], false, "1 a=1,b=2"),
        (&[], false, "0 "),
    ] {
        let fields: Vec<_> = cookies.iter().map(|cookie| ("cookie", *cookie)).collect();
        let answer = get(&cache, "/", &fields).await;
        assert_eq!((answer.is_hit(), &*answer.body), (hit, body), "{cookies:?}");
    }
    let fields = [("cookie", "a=1"), ("cookie", "b=2")];
    assert_eq!(origin::ask(&cache, "POST", "/", &fields).await.body, "1 a=1; b=2");
}
