//! Slots that are overwritten while clients that stopped reading are being sent them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::Read;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use common::{By, Client, files, runtime, serve};
use sendfile2::Engine;
use sendfile2::guard::{GuardOptions, Overwrite};
use sendfile2_axum::FileBody;

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
