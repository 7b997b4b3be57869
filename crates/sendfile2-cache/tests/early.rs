//! An origin that answers before it has read the request's body, and closes.
#![allow(clippy::unwrap_used)]

mod origin;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use origin::{Body, cache_of, futures_like};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::CacheBody;

/// The way in which the origin ends the connection.
#[derive(Clone, Copy)]
enum End {
    /// Closing it, which resets it, since something is unread.
    Reset,
    /// Ending its direction before.
    Shutdown,
}

/// Asks a cache by a POST without end, of which the origin reads the head and a byte. Then it answers
/// and is gone, and only when it is does more of the body come: whoever sends that has seen no answer
/// yet, and cannot write any more.
async fn post(answer: Vec<u8>, end: End) -> (Cache, Response<CacheBody>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let both = Arc::new(Barrier::new(2));
    let of_origin = Arc::clone(&both);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        stream.read_exact(&mut byte).unwrap();
        of_origin.wait();
        stream.write_all(&answer).unwrap();
        if matches!(end, End::Shutdown) {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        drop(stream);
        of_origin.wait();
    });
    let mut polls = 0;
    let stream = futures_like(move |cx| {
        polls += 1;
        match polls {
            2 => {
                // What came before is sent, and an answer looked for, before it is polled again.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            3 => {
                both.wait();
                both.wait();
            }
            _ => {}
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 1 << 16])))))
    });
    let request = Request::builder().method("POST").uri("/").header("host", "h");
    let request: Request<Body> = request.body(BodyExt::boxed(StreamBody::new(stream))).unwrap();
    let cache = cache_of(&[&url]);
    let response = cache.answer(request).await;
    (cache, response)
}

/// Larger than what is read at once.
fn large() -> String {
    "b".repeat(50_000)
}

fn with_length(status: &str) -> Vec<u8> {
    let body = large();
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_is_read_is_passed_on() {
    for status in ["413 Content Too Large", "401 Unauthorized", "307 Temporary Redirect", "200 OK"]
    {
        for end in [End::Reset, End::Shutdown] {
            let (cache, response) = post(with_length(status), end).await;
            assert_eq!(response.status().as_str(), &status[..3]);
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, large());
            assert!(cache.origins()[0].up);
        }
    }
    let chunked = "HTTP/1.1 413 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    let (_, response) = post(chunked.into(), End::Reset).await;
    assert_eq!(origin::read(response).await.body, "abcde");
}

/// The end of one whose length nobody says is the end of the connection, which a reset is not.
#[tokio::test]
async fn an_early_answer_without_a_length_is_whole_only_if_its_end_has_come() {
    let answer = format!("HTTP/1.1 413 x\r\nConnection: close\r\n\r\n{}", large());
    let (_, response) = post(answer.clone().into_bytes(), End::Shutdown).await;
    assert_eq!(response.status(), 413);
    assert_eq!(origin::read(response).await.body, large());
    let (_, response) = post(answer.into_bytes(), End::Reset).await;
    assert_eq!(response.status(), 413);
    let ended = response.into_body().collect().await;
    assert!(ended.is_err(), "{ended:?}");
}

/// One that is gone without an answer is an error at once, and so is one whose answer is not whole.
#[tokio::test]
async fn without_an_answer_a_broken_connection_is_told() {
    for end in [End::Reset, End::Shutdown] {
        for answer in ["", "HTTP/1.1 413 x\r\nContent-Le"] {
            let (_, response) = post(answer.into(), end).await;
            assert_eq!(response.status(), 502, "{answer}");
        }
        let (_, response) =
            post(b"HTTP/1.1 413 x\r\nContent-Length: 9\r\n\r\nabc".into(), end).await;
        assert_eq!(response.status(), 413);
        assert!(response.into_body().collect().await.is_err());
    }
}

/// The control: what the tests above rest on is so here. A write fails, and the answer can be read.
#[test]
fn control_writing_fails_before_the_answer_is_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut origin, _) = listener.accept().unwrap();
    client.write_all(b"ab").unwrap();
    origin.read_exact(&mut [0]).unwrap();
    origin.write_all(b"answer").unwrap();
    drop(origin);
    while client.write(&[0]).is_ok() {}
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}
