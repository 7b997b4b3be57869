//! The contents that `sendfile2 cache` serves: the answers of other servers.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;

use anyhow::{Context, anyhow};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use metrics::{counter, gauge};
use sendfile2_cache::Cache;
use sendfile2_cache::proxy::{Choice, HealthCheck, Limits, OriginError, Origins, Timeouts};
use sendfile2_cache::store::{Admission, Options, Store, StoreError};

use super::limits::FORWARDED_FOR;
use crate::args::cache::{Args, Choose};
use crate::config::{self, Config, What};
use crate::{output, units};

/// Opens the store that the options name, and says what is in it; `None` where files are served, and
/// where the options are only checked.
pub(super) fn store(config: &Config) -> anyhow::Result<Option<Store>> {
    let What::Cache(args) = &config.what else { return Ok(None) };
    // No store is made for what is wrong.
    config::agree(config)?;
    origins(config, args)?;
    let admission = if args.second_request { Admission::SecondRequest } else { Admission::Always };
    let (path, size) = (args.store.clone(), args.size);
    let options = Options { path, size, admission, ..Options::default() };
    if args.operation.check {
        return Store::check(&options).map(|()| None).map_err(|e| no_store(config, args, e));
    }
    let (store, opened) = Store::open(&options).map_err(|e| no_store(config, args, e))?;
    match &args.store {
        None => output::note(&format!(
            "sendfile2: keeps up to {} in a temporary file; --store makes it last",
            units::bytes(args.size)
        )),
        Some(path) if opened.made => {
            output::note(&format!("sendfile2: made the store {}", path.display()));
        }
        Some(path) => output::note(&format!(
            "sendfile2: {} has {} responses",
            path.display(),
            opened.recovered
        )),
    }
    for dropped in &opened.dropped {
        let what = dropped.region.map_or("bans".into(), |region| format!("region {region}"));
        output::note(&format!("sendfile2: dropped from the store: {what}: {}", dropped.why));
    }
    Ok(Some(store))
}

/// Says why there is no store, by which option, and of which file.
fn no_store(config: &Config, args: &Args, error: StoreError) -> anyhow::Error {
    let (store, size) = (config.place("store", 0), config.place("size", 0));
    let dir = std::env::temp_dir();
    let name = match &args.store {
        Some(path) => path.display().to_string(),
        None => format!("a temporary file in {} (TMPDIR, or give --store)", dir.display()),
    };
    let device = args.store.as_ref().and_then(|path| path.metadata().ok());
    let device = device.is_some_and(|found| found.file_type().is_block_device());
    let context = match &error {
        StoreError::Sizes(_) if device => format!("{store}: {name}"),
        StoreError::Sizes(why) => return anyhow!("{size}: {why}"),
        StoreError::NotAStore { .. } | StoreError::InUse(_) => {
            return anyhow!("{store}: {error}: give another file");
        }
        StoreError::Io { op: "fallocate", .. } => {
            format!("{size}: no room for {} in {name}", units::bytes(args.size))
        }
        StoreError::Io { op: "open", cause } if cause.kind() == ErrorKind::NotFound => {
            format!("{store}: its directory is not there: {name}")
        }
        _ => format!("{store}: cannot read and write {name}"),
    };
    anyhow::Error::from(error).context(context)
}

fn origins(config: &Config, args: &Args) -> anyhow::Result<Origins> {
    let uris = args.origin.iter().enumerate().map(|(i, origin)| {
        let wrong = |_| OriginError::NotOne(origin.clone());
        origin.parse::<Uri>().map_err(wrong).with_context(|| config.place("origin", i))
    });
    let uris: Vec<_> = uris.collect::<Result<_, _>>()?;
    let timeouts = Timeouts {
        connect: args.connect_timeout,
        head: args.answer_timeout,
        stall: args.origin_stall_timeout,
    };
    let choice = match args.choose {
        Choose::RoundRobin => Choice::RoundRobin,
        Choose::Hash => Choice::Hash,
    };
    let origins = Origins::new(&uris, choice, timeouts).map_err(|e| {
        let is_it = |uri: &Uri| matches!(&e, OriginError::NotOne(it) if *it == uri.to_string());
        let (at, e) = match uris.iter().position(is_it) {
            Some(at) => (at, OriginError::NotOne(args.origin[at].clone())),
            None => (0, e),
        };
        anyhow::Error::from(e).context(config.place("origin", at))
    })?;
    let Some(path) = args.health_path.clone() else { return Ok(origins) };
    anyhow::ensure!(
        path.starts_with('/') && path.parse::<PathAndQuery>().is_ok(),
        "{}: {path:?} is no path: give one such as /health",
        config.place("health-path", 0)
    );
    let (interval, fails, passes) =
        (args.health_interval, args.health_fails.get(), args.health_passes.get());
    Ok(origins.checked(HealthCheck { path, interval, fails, passes }))
}

/// Makes the cache of the options, in the place of the one `before`; without a store it has one of
/// its own, which nobody uses.
pub(super) fn cache(
    config: &Config,
    args: &Args,
    store: Option<&Store>,
    before: Option<&Cache>,
) -> anyhow::Result<Cache> {
    let origins = origins(config, args)?;
    let limits = Limits {
        stale_if_error: u32::try_from(args.stale_if_error.as_secs()).unwrap_or(u32::MAX),
        request_body: args.max_request_body,
        ..Limits::default()
    };
    if let Some(before) = before {
        return Ok(before.renewed(origins, limits));
    }
    let store = match store {
        Some(store) => store.clone(),
        None => {
            let options = Options { size: 64 << 20, region: 2 << 20, ..Options::default() };
            Store::open(&options)?.0
        }
    };
    Ok(Cache::new(store, origins, limits))
}

/// The field that says who the client is.
const TELLS_CLIENT: HeaderName = HeaderName::from_static(FORWARDED_FOR);

/// Whether a field is one by which some origins answer as if for another target.
fn is_of_target(name: &str) -> bool {
    matches!(name, "x-original-url" | "x-rewrite-url" | "x-original-host" | "x-host")
}

/// Whether a field is one by which some origins take a request for one of another method.
fn is_of_method(name: &str) -> bool {
    matches!(name, "x-http-method-override" | "x-http-method" | "x-method-override")
}

/// Tells an origin who the client is. What a client says of that, and of what it asks for, counts only
/// where it is a proxy that is trusted: the answer is for others, too.
pub(super) fn forwarded<B>(request: &mut Request<B>, peer: Option<HeaderValue>, trusted: bool) {
    let gets = matches!(*request.method(), Method::GET | Method::HEAD);
    let headers = request.headers_mut();
    if !trusted {
        let told = |name: &HeaderName| {
            // Where variables are made of fields, as for CGI, these two are one.
            let name = match name.as_str() {
                name if name.contains('_') => Cow::Owned(name.replace('_', "-")),
                name => Cow::Borrowed(name),
            };
            name == "forwarded"
                || name.starts_with("x-forwarded-")
                || is_of_target(&name)
                || gets && is_of_method(&name)
        };
        let names: Vec<_> = headers.keys().filter(|name| told(name)).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
    if let Some(address) = peer {
        headers.append(TELLS_CLIENT, address);
    }
}

/// Puts what the store counts into the metrics.
#[expect(clippy::cast_precision_loss, reason = "metrics are numbers of this kind")]
pub(super) fn measure(store: &Store) {
    let now = store.counters();
    for (name, value) in [
        ("sendfile2_cache_objects", now.objects),
        ("sendfile2_cache_bytes", now.bytes),
        ("sendfile2_cache_capacity_bytes", now.capacity),
        ("sendfile2_cache_bans", now.bans),
        ("sendfile2_cache_kept_aside_bytes", now.kept_aside),
    ] {
        gauge!(name).set(value as f64);
    }
    for (name, value) in [
        ("sendfile2_cache_stored_total", now.stored),
        ("sendfile2_cache_evicted_total", now.evicted),
        ("sendfile2_cache_reinserted_total", now.reinserted),
        ("sendfile2_cache_regions_recycled_total", now.recycled),
        ("sendfile2_cache_leases_revoked_total", now.revoked),
        ("sendfile2_cache_damaged_total", now.damaged),
    ] {
        counter!(name).absolute(value);
    }
}

/// Puts the state of the origins into the metrics.
pub(super) fn measure_origins(cache: &Cache) {
    for origin in cache.origins() {
        gauge!("sendfile2_cache_origin_up", "origin" => origin.url).set(f64::from(origin.up));
    }
}
