//! Answers that are given at once are those that the service gives.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::files;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use sendfile2::Options;
use sendfile2_axum::{Io, ServeBody, ServeDir, ZeroCopyLayer};
use tower::ServiceExt;

type Parts = (StatusCode, HeaderMap, Vec<u8>);

fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

async fn asked(service: &ServeDir, request: Request<()>) -> Parts {
    parts(service.clone().oneshot(request).await.unwrap()).await
}

async fn parts(response: Response<ServeBody>) -> Parts {
    let (head, body) = response.into_parts();
    (head.status, head.headers, body.collect().await.unwrap().to_bytes().into())
}

fn at_once(service: &ServeDir, request: &Request<()>) -> Option<Parts> {
    let (head, body) = service.at_once(request)?.into_parts();
    Some((head.status, head.headers, body.into()))
}

/// Every method, path and kind of header, in every combination: what is answered at once is what
/// the service answers, and that is plain requests for small files, all of them.
#[tokio::test]
async fn they_are_what_the_service_answers() {
    let dir = files();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    write("page.css", "plain");
    write("page.css.gz", "zipped");
    write("sub/index.html", "the index");
    write("a b", "a space");
    let service = ServeDir::new(dir.path()).unwrap();
    let zipping = service.clone().precompressed();
    let (_, known, _) = asked(&service, request("GET", "/page.css", &[])).await;
    let known = |name| known[name].to_str().unwrap().to_owned();
    let (tag, date) = (known("etag"), known("last-modified"));
    let small = ["/page.css", "/page%2ecss", "/page.css?v=1", "/sub/", "/a%20b", "/0", "/16383"];
    let large = ["/16384", "/1048577"];
    let others = ["/sub", "/none", "/../page.css", "/page.css/", "/%00"];
    let plain: &[&[_]] =
        &[&[], &[("host", "x"), ("accept", "*/*")], &[("cache-control", "no-cache")]];
    let conditional: &[&[_]] = &[
        &[("range", "bytes=1-2")],
        &[("range", "bytes=99999999-")],
        &[("if-none-match", &tag)],
        &[("if-none-match", "\"other\""), ("if-modified-since", &date)],
        &[("if-modified-since", &date)],
        &[("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT")],
        &[("if-match", "\"other\"")],
        &[("range", "bytes=1-2"), ("if-range", &tag)],
        &[("range", "bytes=1-2"), ("if-range", "\"other\"")],
    ];
    let encoded: &[&[_]] =
        &[&[("accept-encoding", "gzip")], &[("accept-encoding", "identity;q=0")]];
    let headers: Vec<_> = [plain, conditional, encoded].concat();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let layer = ZeroCopyLayer::of(&Io::new(stream, Options::new()).unwrap());
    let (mut at_once_count, mut mapped_count) = (0, 0);
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PURGE"] {
        for path in small.iter().chain(&large).chain(&others) {
            for headers in &headers {
                for (service, zips) in [(&service, false), (&zipping, true)] {
                    let request = || request(method, path, headers);
                    let expected = asked(service, request()).await;
                    let got = at_once(service, &request());
                    let plain = plain.contains(headers) || (encoded.contains(headers) && !zips);
                    let awaited = method == "GET" && small.contains(path) && plain;
                    assert_eq!(got.is_some(), awaited, "{method} {path} {headers:?} {zips}");
                    if let Some(got) = got {
                        assert_eq!(got, expected, "{method} {path} {headers:?} {zips}");
                        at_once_count += 1;
                    }
                    let mapped = service.mapped_at_once(&request(), &layer);
                    let awaited = awaited || (method == "GET" && large.contains(path) && plain);
                    assert_eq!(mapped.is_some(), awaited, "{method} {path} {headers:?} {zips}");
                    if let Some(mapped) = mapped {
                        let got = parts(mapped).await;
                        assert_eq!(got, expected, "{method} {path} {headers:?} {zips}");
                        mapped_count += 1;
                    }
                }
            }
        }
    }
    let each = plain.len() * 2 + encoded.len();
    assert_eq!(at_once_count, small.len() * each);
    assert_eq!(mapped_count, (small.len() + large.len()) * each);
    let mut http2 = request("GET", large[0], &[]);
    assert!(service.mapped_at_once(&http2, &layer).is_some());
    *http2.version_mut() = Version::HTTP_2;
    assert!(service.mapped_at_once(&http2, &layer).is_none(), "HTTP/2 reads");
}

/// A file that is not what it was is the service's affair.
#[tokio::test]
async fn not_for_a_file_that_has_changed() {
    let dir = files();
    let path = dir.path().join("changes");
    let service = ServeDir::new(dir.path()).unwrap();
    let plain = || request("GET", "/changes", &[]);
    let changes: [&dyn Fn(); 5] = [
        &|| std::fs::write(&path, "longer than before").unwrap(),
        &|| std::fs::write(&path, "shorter").unwrap(),
        &|| std::fs::File::options().write(true).open(&path).unwrap().set_len(3).unwrap(),
        &|| {
            std::fs::write(dir.path().join("new"), "another file").unwrap();
            std::fs::rename(dir.path().join("new"), &path).unwrap();
        },
        &|| std::fs::remove_file(&path).unwrap(),
    ];
    std::fs::write(&path, "at first").unwrap();
    for (i, change) in changes.iter().enumerate() {
        let before = asked(&service, plain()).await;
        assert_eq!(at_once(&service, &plain()), Some(before), "before change {i}");
        change();
        assert_eq!(at_once(&service, &plain()), None, "after change {i}");
    }
    assert_eq!(asked(&service, plain()).await.0, StatusCode::NOT_FOUND);
}

/// Where a look is valid for a time, a file that was replaced is sent for no longer, and one whose
/// length has changed not at all.
#[tokio::test(start_paused = true)]
async fn a_look_is_valid_for_its_time() {
    let dir = files();
    let path = dir.path().join("changes");
    let replace = |text| {
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
    };
    let looking = ServeDir::new(dir.path()).unwrap();
    // With files of its own: where one service looks, those that share them know.
    let service = ServeDir::new(dir.path()).unwrap().validity(Duration::from_secs(1));
    let plain = || request("GET", "/changes", &[]);
    let body = |service| at_once(service, &plain()).map(|(_, _, body)| body);
    replace("first");
    for service in [&looking, &service] {
        asked(service, plain()).await;
        assert_eq!(body(service).unwrap(), b"first");
    }
    replace("other");
    assert_eq!(body(&looking), None, "the control: each request looks");
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(body(&service).unwrap(), b"first", "it was looked at less than a second ago");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(body(&service), None, "a second ago");
    assert_eq!(asked(&service, plain()).await.2, b"other");
    assert_eq!(body(&service).unwrap(), b"other");
    // Written in place.
    std::fs::write(&path, "again").unwrap();
    assert_eq!(body(&service).unwrap(), b"again");
    for text in ["longer than before", "cut"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(body(&service), None, "{text}");
        assert_eq!(asked(&service, plain()).await.2, text.as_bytes());
        assert_eq!(body(&service).unwrap(), text.as_bytes());
    }
    // Whatever makes the service look makes it known.
    replace("new");
    assert_eq!(asked(&service, request("HEAD", "/changes", &[])).await.0, StatusCode::OK);
    assert_eq!(body(&service), None);
}
