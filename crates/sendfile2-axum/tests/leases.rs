//! Slots that are overwritten while clients that stopped reading are being sent them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, Method};
use axum::routing::get;
use common::{By, Client, files, runtime, serve};
use sendfile2::Engine;
use sendfile2::guard::{GuardOptions, Overwrite};
use sendfile2_axum::{FileBody, Validators};

const LEN: u64 = 16 << 20;

/// At the writer's deadline a body that stands in its way ends, read or mapped; and where the file
/// detaches, one that is read does not.
#[test]
fn a_client_that_stops_reading_holds_no_writer_up() {
    let dir = files();
    let path = dir.path().join("slot");
    for overwrite in [Overwrite::Wait, Overwrite::Detach] {
        for by in [
            By::Stock,
            By::Read(Engine::Zerocopy),
            By::Ours(Engine::Copy),
            By::Ours(Engine::Zerocopy),
        ] {
            std::fs::write(&path, vec![1; LEN as usize]).unwrap();
            let slot = GuardOptions::new().overwrite(overwrite).open(&path).unwrap();
            let guard = slot.clone();
            let send = move || async move {
                let lease = slot.lease_async(0..LEN).await.unwrap();
                FileBody::leased(lease, 0..LEN).unwrap()
            };
            let address = serve(by, Router::new().route("/", get(send)));
            let mut stalled = Client::new(address);
            stalled.ask("GET", "/", "");
            assert_eq!(stalled.head().header("content-length"), LEN.to_string());
            runtime().block_on(async {
                let soon = Duration::from_millis(500);
                let written = guard.write_at_abort_async(vec![2; LEN as usize], 0, soon).await;
                written.unwrap_or_else(|e| panic!("{overwrite:?} {by:?}: {e}"));
            });
            let got = Client::new(address).get("/");
            assert!(!got.cut && got.body.iter().all(|byte| *byte == 2), "{overwrite:?} {by:?}");
            let mut rest = Vec::new();
            let _ = (&mut stalled.0).take(LEN).read_to_end(&mut rest);
            let wrong = rest.iter().filter(|byte| **byte != 1).count();
            assert_eq!(wrong, 0, "{overwrite:?} {by:?}: of {} bytes", rest.len());
            let whole = rest.len() as u64 == LEN;
            match (overwrite, by) {
                (Overwrite::Wait, _) => assert!(!whole, "{by:?}: nobody was in the way"),
                _ => println!("{overwrite:?} {by:?}: {} bytes of the old generation", rest.len()),
            }
        }
    }
}

/// A body of several leases is sent as one, and so is a part of it across their borders; each lease
/// ends when its bytes are sent, and not with the body.
#[test]
fn several_leases_are_one_body() {
    let dir = files();
    let path = dir.path().join("slots");
    let bytes: Vec<u8> = (0..2 * LEN).map(|at| (at % 251) as u8).collect();
    std::fs::write(&path, &bytes).unwrap();
    // The last one is more than sockets take that nobody reads.
    let pieces = [30 << 20..31 << 20, 0..100, 9 << 20..9 << 20, 1 << 20..29 << 20];
    let expected: Vec<u8> =
        pieces.iter().flat_map(|at| &bytes[at.start as usize..at.end as usize]).copied().collect();
    for by in [By::Stock, By::Read(Engine::Zerocopy), By::Ours(Engine::Zerocopy)] {
        let slots = GuardOptions::new().overwrite(Overwrite::Detach).open(&path).unwrap();
        let (guard, pieces) = (slots.clone(), pieces.clone());
        let send = move |method: Method, asked: HeaderMap| async move {
            let piece = |at: &std::ops::Range<u64>| {
                FileBody::leased(slots.try_lease([at.clone()]).unwrap(), at.clone()).unwrap()
            };
            let first = piece(&pieces[0]);
            let body = pieces[1..].iter().fold(first, |body, next| body.followed_by(&piece(next)));
            body.answer(&method, &asked, &Validators::new().etag("a"))
        };
        let address = serve(by, Router::new().route("/", get(send)));
        let whole = Client::new(address).get("/");
        assert!(!whole.cut && whole.body == expected, "{by:?}: {} bytes", whole.body.len());
        let border = 1 << 20;
        for (from, to) in [(border - 10, border + 10), (border + 50, border + 150), (7, 8 << 20)] {
            let mut client = Client::new(address);
            client.ask("GET", "/", &format!("range: bytes={from}-{}\r\n", to - 1));
            let head = client.head();
            assert_eq!(head.header("content-length"), (to - from).to_string(), "{by:?}");
            let mut part = vec![0; to - from];
            client.0.read_exact(&mut part).unwrap();
            assert!(part == expected[from..to], "{by:?}: {from} to {to}");
        }
        // A client that takes the first bytes only.
        let mut stalled = Client::new(address);
        stalled.ask("GET", "/", "");
        stalled.head();
        let mut got = vec![0; 2 << 20];
        stalled.0.read_exact(&mut got).unwrap();
        assert!(got == expected[..got.len()], "{by:?}");
        let held = |at: u64| guard.in_flight().iter().any(|held| held.range.contains(&at));
        // The kernel may tell later that they are released.
        while held(30 << 20) || held(50) {
            assert!(held(28 << 20), "{by:?}: not all of it can have been sent");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(held(28 << 20), "{by:?}: the last one is still to be sent");
    }
}

/// Somebody who does not ask the guard shortens the file while a body of it is sent: it is closed
/// short, and the server lives, though a lease asks for the file's size only once.
#[test]
fn a_file_truncated_past_its_guard_ends_the_body() {
    const SHORT: u64 = (6 << 20) + 40_961;
    let dir = files();
    let path = dir.path().join("slot");
    for by in [By::Stock, By::Ours(Engine::Copy), By::Ours(Engine::Zerocopy)] {
        std::fs::write(&path, vec![1; LEN as usize]).unwrap();
        let slot = GuardOptions::new().open(&path).unwrap();
        let send = move || async move {
            let lease = slot.lease_async(0..LEN).await.unwrap();
            FileBody::leased(lease, 0..LEN).unwrap()
        };
        let alive = get(|| async { "alive" });
        let address = serve(by, Router::new().route("/", get(send)).route("/alive", alive));
        let mut client = Client::new(address);
        client.ask("GET", "/", "");
        assert_eq!(client.head().header("content-length"), LEN.to_string());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(SHORT).unwrap();
        let mut body = Vec::new();
        let _ = (&mut client.0).take(LEN).read_to_end(&mut body);
        assert!((body.len() as u64) < LEN, "{by:?}: not closed");
        let valid = body.len().min(SHORT as usize);
        assert!(body[..valid].iter().all(|byte| *byte == 1), "{by:?}");
        assert_eq!(Client::new(address).get("/alive").body, b"alive", "{by:?}");
    }
}
