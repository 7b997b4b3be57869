//! Several origins: which of them are asked, and which are left alone.
#![allow(clippy::unwrap_used)]

mod origin;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use origin::{Origin, get, origins, response, until};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{HealthCheck, Limits, Timeouts};
use sendfile2_cache::store::{Options, Store};

fn cache(urls: &[&str]) -> Cache {
    let limit = Duration::from_secs(20);
    let timeouts = Timeouts { connect: limit, head: limit, stall: limit };
    let (path, interval) = ("/well?x".into(), Duration::from_millis(20));
    let check = HealthCheck { path, interval, fails: 3, passes: 2 };
    let options = Options { size: 64 << 20, region: 2 << 20, ..Options::default() };
    let (store, _) = Store::open(&options).unwrap();
    Cache::new(store, origins(urls, timeouts).checked(check), Limits::default())
}

#[tokio::test]
async fn an_origin_that_is_not_well_is_left_alone_until_it_is() {
    let well = Arc::new(AtomicBool::new(true));
    let told = Arc::clone(&well);
    let first = Origin::new(move |seen| {
        let status = if seen.path == "/well?x" && !told.load(SeqCst) { 503 } else { 200 };
        async move { response(status, &[("cache-control", "no-store")], "first") }
    })
    .await;
    let second = Origin::new(|seen| async move {
        response(200, &[("cache-control", "no-store")], format!("second {}", seen.path))
    })
    .await;
    let cache = cache(&[&first.url, &second.url]);
    let checks = tokio::spawn(cache.check_origins());
    let up = || cache.origins().iter().map(|origin| origin.up).collect::<Vec<_>>();
    let asked = async |cache: Cache| {
        let mut bodies = Vec::new();
        for _ in 0..4 {
            bodies.push(get(&cache, "/", &[]).await.body);
        }
        bodies.iter().filter(|body| *body == "first").count()
    };
    assert_eq!(up(), [true, true]);
    assert_eq!(asked(cache.clone()).await, 2);
    well.store(false, SeqCst);
    until(|| up() == [false, true]).await;
    let failed = first.seen().iter().filter(|seen| seen.path == "/well?x").count();
    assert!(failed >= 3, "{failed}");
    assert_eq!(asked(cache.clone()).await, 0);
    well.store(true, SeqCst);
    until(|| up() == [true, true]).await;
    assert_eq!(asked(cache.clone()).await, 2);
    let checked = first.seen().into_iter().find(|seen| seen.path == "/well?x").unwrap();
    assert_eq!(checked.header("user-agent"), Some("sendfile2"));
    assert_eq!(checked.header("host"), first.url.strip_prefix("http://"));
    // The task ends with the cache.
    drop(cache);
    checks.await.unwrap();
}

#[tokio::test]
async fn where_all_are_down_they_are_asked_nevertheless() {
    let origin = Origin::new(|seen| async move {
        response(if seen.path == "/well?x" { 500 } else { 200 }, &[], "answer")
    })
    .await;
    let cache = cache(&[&origin.url]);
    let _checks = tokio::spawn(cache.check_origins());
    until(|| !cache.origins()[0].up).await;
    assert_eq!(get(&cache, "/", &[]).await.body, "answer");
}
