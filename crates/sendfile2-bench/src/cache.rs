//! `sendfile2 bench cache`.

mod client;
mod server;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::http::{Sample, Wrk, serve};
use super::message::Role;
use super::process::Process;
use super::result::{CacheRow, Figure, Rows, Skipped};
use super::rounds::{self, Limits};
use super::stats::Median;
use super::test_bed::TestBed;
use crate::args::{self, CacheServer};
use crate::scratch::{Files, Generation};
use crate::units;
use client::{Asked, Load};
use server::{Place, Server};

/// The longest that --quick may measure.
const QUICK: Duration = Duration::from_secs(20);

/// The store in which all that is hit fits.
const ROOMY: u64 = 1 << 30;

/// The store in which not all fits, and the bodies in it: hot ones, and as many others as it is asked
/// for.
const TIGHT: u64 = 128 << 20;
const BODY: u64 = 64 << 10;
const HOT: u64 = 128;

/// The bodies of those that are stored before the restart.
const SMALL: u64 = 1 << 10;

pub(super) fn run(args: &args::Cache) -> anyhow::Result<()> {
    let limits = Limits { width: 0.0, deadline: args.common.deadline(QUICK) };
    let mut bed = TestBed::new(&args.common, 1 << 20)?;
    let wrk = Wrk::find(bed.processors.receiver)?;
    let files = Files::new(&bed.directory)?;
    let mut origin = Process::start(&[], &Role::Origin { cpu: bed.processors.receiver })?;
    let address: SocketAddr = origin.recv()?;
    let (sender, clients) = (bed.processors.sender, bed.processors.receiver);
    let place = |size| Place { origin: address, directory: files.path(), size, cpu: sender };
    let (servers, skipped) = start(&args.server, &place(ROOMY))?;
    let there: Vec<_> = servers.iter().map(|server| server.which).collect();
    let progress = rounds::progress(&limits)?;
    let moved = || progress.set_position(progress.elapsed().as_secs());
    let mut rows = Vec::new();
    for (done, &size) in args.size.iter().enumerate() {
        progress.set_message(format!("hits of {}", units::bytes(size)));
        for server in &servers {
            check(server, size).with_context(|| server.which.to_string())?;
        }
        let limits = limits.share(args.size.len() + 1 - done);
        let measured = in_rounds(&servers, &limits, |server| {
            moved();
            let path = format!("/{size}");
            wrk.run(server.address, &path, args.connections, || server.cpu())
        })?;
        rows.extend(hits(&measured, size, args.connections));
    }
    drop(servers);
    progress.set_message("hits and misses");
    let (servers, _) = start(&there, &place(TIGHT))?;
    rows.extend(misses(&servers, &limits, args.connections, clients, moved)?);
    drop(servers);
    progress.finish_and_clear();
    let objects = args.objects.unwrap_or(if args.common.quick { 10_000 } else { 1_000_000 });
    if objects > 0 {
        let lasting =
            there.iter().filter(|which| matches!(which, CacheServer::Ours | CacheServer::Nginx));
        for &which in lasting {
            let place = place(u64::from(objects) * 4096 + ROOMY);
            rows.push(restart(which, &place, objects, clients).with_context(|| which.to_string())?);
        }
    }
    drop(origin);
    bed.skip(skipped);
    bed.finish(Rows::Cache(rows), &args.common)
}

/// Starts those that are there; says why the others are not.
fn start(which: &[CacheServer], place: &Place<'_>) -> anyhow::Result<(Vec<Server>, Vec<Skipped>)> {
    let (mut servers, mut skipped) = (Vec::new(), Vec::new());
    for &which in which {
        match Server::start(which, place) {
            Ok(server) => servers.push(server),
            Err(error) if which == CacheServer::Ours => {
                return Err(error.context(which.to_string()));
            }
            Err(error) => {
                skipped
                    .push(Skipped { what: which.to_string(), why: crate::output::whole(&error) });
            }
        }
    }
    ensure!(!servers.is_empty(), "there is no cache to measure");
    Ok((servers, skipped))
}

/// Checks that a body comes as it is from the origin, and the second time from the store.
fn check(server: &Server, size: u64) -> anyhow::Result<()> {
    let mut client = client::Client::connect(server.address)?;
    for expected in [false, true] {
        let mut body = Vec::new();
        let hit = client.get(&format!("/{size}"), Some(&mut body))?;
        ensure!(
            body == body_of(size),
            "what arrived of {} is not what the origin sent",
            units::bytes(size)
        );
        ensure!(hit || !expected, "what was asked for twice is no hit");
    }
    Ok(())
}

fn body_of(size: u64) -> Vec<u8> {
    let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
    Generation::A.fill(&mut body, 0);
    body
}

type Measured<S> = Vec<(CacheServer, Vec<S>)>;

/// Takes a sample of each server, again and again, in an order of chance.
fn in_rounds<S>(
    servers: &[Server],
    limits: &Limits,
    sample: impl Fn(&Server) -> anyhow::Result<S>,
) -> anyhow::Result<Measured<S>> {
    let mut measured: Measured<S> =
        servers.iter().map(|server| (server.which, Vec::new())).collect();
    let mut longest = Duration::ZERO;
    while longest.is_zero() || Instant::now() + longest < limits.deadline {
        let begin = Instant::now();
        let mut round: Vec<_> = servers.iter().zip(&mut measured).collect();
        fastrand::shuffle(&mut round);
        for (server, (which, samples)) in round {
            samples.push(sample(server).with_context(|| which.to_string())?);
        }
        longest = longest.max(begin.elapsed());
    }
    Ok(measured)
}

/// Returns the samples of the nginx that is better by this figure, the less of which is better.
fn reference<S>(measured: &Measured<S>, of: impl Fn(&S) -> f64) -> Option<&[S]> {
    let nginx = measured
        .iter()
        .filter(|(which, _)| matches!(which, CacheServer::Nginx | CacheServer::NginxCopy));
    let median = |samples: &[S]| Median::of(samples.iter().map(&of)).value;
    let best = nginx.min_by(|(_, a), (_, b)| median(a).total_cmp(&median(b)));
    best.map(|(_, samples)| samples.as_slice())
}

fn hits(
    measured: &Measured<Sample>,
    size: u64,
    connections: u32,
) -> impl Iterator<Item = CacheRow> {
    let reference = reference(measured, Sample::server_cpu_of_request);
    measured.iter().map(move |(which, samples)| {
        let figure = |of: fn(&Sample) -> f64| Some(Figure::of(samples, reference, of));
        CacheRow {
            server: which.to_string(),
            load: "hits".into(),
            size,
            connections,
            requests_per_s: figure(Sample::requests_per_s),
            server_cpu_us_per_request: figure(Sample::server_cpu_of_request),
            total_cpu_us_per_request: figure(Sample::total_cpu_of_request),
            rounds: samples.len(),
            ..CacheRow::default()
        }
    })
}

/// Measures hits while a quarter of the requests miss, in stores that are full.
fn misses(
    servers: &[Server],
    limits: &Limits,
    connections: u32,
    cpu: Option<usize>,
    moved: impl Fn(),
) -> anyhow::Result<impl Iterator<Item = CacheRow>> {
    // No server is asked for the same twice, though all of them have the same origin.
    let next = AtomicU64::new(0);
    let new = || Asked::New(format!("/{BODY}?new={}", next.fetch_add(1, Ordering::Relaxed)));
    let hot = |n: u64| Asked::Hot(format!("/{BODY}?hot={n}"));
    let mixed = |n: u64| if n % 4 == 3 { new() } else { hot(fastrand::u64(..HOT)) };
    for server in servers {
        // Until it is full, and somewhat beyond; then those that are hit.
        let many = TIGHT / BODY * 3 / 2;
        let hot = |n: u64| (n < many + HOT).then(|| hot(n - many));
        client::run(
            server.address,
            connections,
            cpu,
            |n| {
                if n < many { Some(new()) } else { hot(n) }
            },
        )
        .with_context(|| server.which.to_string())?;
        moved();
    }
    let measured = in_rounds(servers, limits, |server| {
        let (before, begin) = (server.cpu()?, Instant::now());
        let end = begin + Duration::from_secs(1);
        let load = client::run(server.address, connections, cpu, |n| {
            (Instant::now() < end).then(|| mixed(n))
        })?;
        moved();
        Ok(Mixed { seconds: begin.elapsed().as_secs_f64(), cpu: server.cpu()? - before, load })
    })?;
    let rows: Vec<_> = {
        let reference = reference(&measured, Mixed::p99);
        measured
            .iter()
            .map(|(which, samples)| {
                let figure = |of: fn(&Mixed) -> f64| Some(Figure::of(samples, reference, of));
                CacheRow {
                    server: which.to_string(),
                    load: "misses".into(),
                    size: BODY,
                    connections,
                    requests_per_s: figure(Mixed::requests_per_s),
                    server_cpu_us_per_request: figure(Mixed::cpu_of_request),
                    p99_us: figure(Mixed::p99),
                    hit_share: Some(Median::of(samples.iter().map(Mixed::hit_share)).value),
                    rounds: samples.len(),
                    ..CacheRow::default()
                }
            })
            .collect()
    };
    Ok(rows.into_iter())
}

/// A measurement of hits and misses.
struct Mixed {
    seconds: f64,
    cpu: f64,
    load: Load,
}

#[expect(clippy::cast_precision_loss, reason = "a sample is short")]
impl Mixed {
    fn requests_per_s(&self) -> f64 {
        self.load.requests as f64 / self.seconds
    }

    fn cpu_of_request(&self) -> f64 {
        self.cpu * 1e6 / self.load.requests as f64
    }

    fn hit_share(&self) -> f64 {
        self.load.hits.len() as f64 / self.load.requests as f64
    }

    fn p99(&self) -> f64 {
        self.load.hits.value_at_quantile(0.99) as f64 / 1e3
    }
}

/// Stores many objects, kills the server, and takes the time until it answers from its store again.
#[expect(clippy::cast_precision_loss, reason = "memory of a server")]
fn restart(
    which: CacheServer,
    place: &Place<'_>,
    objects: u32,
    cpu: Option<usize>,
) -> anyhow::Result<CacheRow> {
    let mut server = Server::start(which, place)?;
    let empty = server.anonymous()?;
    let begin = Instant::now();
    let path = |n: u64| format!("/{SMALL}?object={n}");
    let objects = u64::from(objects);
    client::run(server.address, 32, cpu, |n| (n < objects).then(|| Asked::New(path(n))))?;
    let fill = begin.elapsed();
    let took = server.restart(place, |address| {
        let mut client = client::Client::connect(address)?;
        // The last ones may be lost, and some had to give way.
        let hit = (0..objects.min(1000)).find_map(|n| match client.get(&path(n), None) {
            Ok(false) => None,
            other => Some(other),
        });
        ensure!(hit.transpose()?.is_some(), "nothing that was stored is there");
        Ok(())
    })?;
    // An index in a shared zone is not of its anonymous memory.
    let each = server.anonymous()?.saturating_sub(empty) as f64 / objects as f64;
    Ok(CacheRow {
        server: which.to_string(),
        load: "restart".into(),
        size: SMALL,
        connections: 32,
        rounds: 1,
        objects: Some(objects),
        fill_s: Some(fill.as_secs_f64()),
        first_hit_s: Some(took.as_secs_f64()),
        bytes_per_object: (which == CacheServer::Ours).then_some(each),
        ..CacheRow::default()
    })
}

/// The origin, as a child of the benchmark: answers `/SIZE` by as many bytes.
pub(super) fn origin(cpu: Option<usize>) -> anyhow::Result<()> {
    use axum::extract::Path;
    use axum::http::StatusCode;
    let answer = async |Path(size): Path<u64>| {
        if size > 4 << 20 {
            return Err(StatusCode::NOT_FOUND);
        }
        let headers =
            [("cache-control", "max-age=86400"), ("content-type", "application/octet-stream")];
        Ok((headers, [("etag", format!("\"{size}\""))], body_of(size)))
    };
    serve(axum::Router::new().route("/{size}", axum::routing::get(answer)), cpu)
}

/// Returns a directory of its own in `directory`, for one server.
fn own(directory: &Path) -> anyhow::Result<tempfile::TempDir> {
    tempfile::tempdir_in(directory)
        .with_context(|| format!("cannot make a directory in {}", directory.display()))
}
