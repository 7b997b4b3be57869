//! A page that shows a store: its regions as a picture, and its counters.

use std::fmt::Write as _;

use axum::response::{Html, IntoResponse};
use sendfile2_cache::proxy::OriginState;
use sendfile2_cache::store::{Counters, RegionState, Store};
use serde_json::{Value, json};

use crate::units;

/// The seconds after which a browser asks again.
const REFRESH: &str = "2";

/// Cells of the picture at most: of more regions, each has several.
const CELLS: usize = 4096;
const COLUMNS: usize = 64;

/// Answers with the page.
pub(super) fn page(store: &Store, origins: &[OriginState]) -> impl IntoResponse + use<> {
    (
        [("refresh", REFRESH), ("cache-control", "no-store")],
        Html(html(store.counters(), &store.regions(), origins)),
    )
}

/// Returns the counters and the regions as JSON.
pub(super) fn json(store: &Store, origins: &[OriginState]) -> String {
    let now = store.counters();
    let regions: Vec<Value> = store.regions().iter().map(region).collect();
    let origins: Vec<Value> =
        origins.iter().map(|origin| json!({ "url": origin.url, "up": origin.up })).collect();
    let all = json!({
        "objects": now.objects, "bytes": now.bytes, "capacity": now.capacity, "hits": now.hits,
        "misses": now.misses, "stored": now.stored, "evicted": now.evicted,
        "reinserted": now.reinserted, "recycled": now.recycled, "erased": now.erased,
        "failed": now.failed, "bans": now.bans, "damaged": now.damaged, "revoked": now.revoked,
        "kept_aside": now.kept_aside, "regions": regions, "origins": origins,
    });
    format!("{all}\n")
}

fn region(region: &RegionState) -> Value {
    json!({
        "state": state(region), "generation": region.generation, "used": region.used,
        "live": region.live, "objects": region.objects, "useful": region.useful,
    })
}

fn state(region: &RegionState) -> &'static str {
    match region {
        RegionState { failed: true, .. } => "failed",
        RegionState { open: true, .. } => "open",
        RegionState { used: 0, .. } => "free",
        _ => "full",
    }
}

fn html(now: Counters, regions: &[RegionState], origins: &[OriginState]) -> String {
    let each = regions.len().div_ceil(CELLS).max(1);
    let rows = regions.len().div_ceil(each).div_ceil(COLUMNS);
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>sendfile2 cache</title>\n\
         <style>body{{font:14px sans-serif;margin:2em}}.free{{fill:#ddd}}.open{{fill:#27c}}\
         .full{{fill:#283}}.failed{{fill:#c22}}</style>\n\
         <p>{} responses, {} of {}; {} hits, {} misses; {} stored, {} evicted, {} kept by moving; \
         {} regions overwritten, {} failed; {} damaged; {} bans\n\
         <svg role=\"img\" aria-label=\"regions\" width=\"{}\" height=\"{}\">\n",
        now.objects,
        units::bytes(now.bytes),
        units::bytes(now.capacity),
        now.hits,
        now.misses,
        now.stored,
        now.evicted,
        now.reinserted,
        now.recycled,
        now.failed,
        now.damaged,
        now.bans,
        COLUMNS * 14,
        rows * 14,
    );
    let capacity = now.capacity.checked_div(regions.len() as u64).unwrap_or(0);
    for (i, cell) in regions.chunks(each).enumerate() {
        let kind = ["failed", "open", "full"]
            .into_iter()
            .find(|kind| cell.iter().any(|region| state(region) == *kind))
            .unwrap_or("free");
        let (live, objects) = cell
            .iter()
            .fold((0, 0), |(live, objects), r| (live + r.live, objects + u64::from(r.objects)));
        let room = capacity * cell.len() as u64;
        // A full one of which little is left is pale.
        let percent = if kind == "full" { 25 + 75 * live / room.max(1) } else { 100 };
        let _ = writeln!(
            page,
            "<rect class=\"{kind}\" x=\"{}\" y=\"{}\" width=\"12\" height=\"12\" \
             fill-opacity=\"{}%\"><title>{}: {kind}, {objects} responses, {} of {}</title></rect>",
            i % COLUMNS * 14,
            i / COLUMNS * 14,
            percent.min(100),
            i * each,
            units::bytes(live),
            units::bytes(room),
        );
    }
    let origins = origins.iter().map(|origin| match origin {
        OriginState { up: true, url, .. } => format!("{url} is up"),
        OriginState { url, .. } => format!("<b>{url} is down</b>"),
    });
    let origins = origins.collect::<Vec<_>>().join(", ");
    let _ = writeln!(page, "</svg>\n<p>origins: {origins}");
    page.push_str(
        "<p>grey: free; blue: being filled; green: full, the paler the less of it is stored \
         still; red: failed. <a href=\"/cache.json\">JSON</a></html>\n",
    );
    page
}
