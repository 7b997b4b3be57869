//! A cache of slots in one file, by axum: `GET /SLOT` sends a slot of 65,536 bytes, without a copy
//! in user space, and `PUT /SLOT` overwrites it in place: who is being sent it gets what it was.
//!
//! ```sh
//! truncate -s 1M slots && cargo run -p sendfile2-axum --example axum_slot -- 127.0.0.1:4000 slots
//! ```
use std::error::Error;
use std::ops::Range;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use bytes::Bytes;
use sendfile2::guard::GuardedFile;
use sendfile2_axum::{FileBody, Listener};
use tokio::time::timeout;

const SLOT: u64 = 65_536;
/// An answer is given after so long. A client that keeps a slot from being overwritten for longer
/// loses its connection.
const PATIENCE: Duration = Duration::from_secs(30);

type Refusal = (StatusCode, String);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, path] = &arguments[..] else {
        return Err("usage: axum_slot ADDRESS FILE".into());
    };
    // Nobody but this program may write to it: the guard knows only who goes through it.
    let cache = GuardedFile::open(path)?;
    let app = Router::new().route("/{slot}", get(send).put(overwrite)).with_state(cache);
    let listener = Listener::bind(address.parse()?).await;
    let listener = listener.map_err(|e| format!("cannot listen at {address}: {e}"))?;
    println!("listening on {}", axum::serve::Listener::local_addr(&listener)?);
    sendfile2_axum::serve(listener, app).await?;
    Ok(())
}

async fn send(
    State(cache): State<GuardedFile>,
    Path(slot): Path<u64>,
) -> Result<FileBody, Refusal> {
    let range = bytes_of(&cache, slot)?;
    // Before the first byte, and for all of them: so the answer is of one generation.
    let lease = timeout(PATIENCE, cache.lease_async(range.clone())).await.map_err(unavailable)?;
    // The body keeps the lease, and what is in flight of it when it is gone.
    FileBody::leased(lease.map_err(unavailable)?, range).map_err(unavailable)
}

async fn overwrite(
    State(cache): State<GuardedFile>,
    Path(slot): Path<u64>,
    new: Bytes,
) -> Result<StatusCode, Refusal> {
    let range = bytes_of(&cache, slot)?;
    if new.len() as u64 != SLOT {
        return Err((StatusCode::BAD_REQUEST, format!("a slot has {SLOT} bytes\n")));
    }
    // Waits for what is being sent of the slot, or detaches it; and from now on no lease of it is
    // granted until it is written. If this client goes away meanwhile, the slot is overwritten as a
    // whole, or not at all.
    cache.write_at_abort_async(new, range.start, PATIENCE).await.map_err(unavailable)?;
    Ok(StatusCode::NO_CONTENT)
}

fn bytes_of(cache: &GuardedFile, slot: u64) -> Result<Range<u64>, Refusal> {
    let slots = cache.source().size().map_err(unavailable)? / SLOT;
    if slot < slots {
        Ok(slot * SLOT..(slot + 1) * SLOT)
    } else {
        Err((StatusCode::NOT_FOUND, format!("there are {slots} slots\n")))
    }
}

fn unavailable(error: impl Error) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}
