//! `sendfile2 bench http`.

mod server;
mod wrk;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::clock;
use super::result::{Figure, HttpRow, Rows, Skipped};
use super::rounds::{self, Limits};
use super::test_bed::TestBed;
use crate::args::{self, HttpServer};
use crate::scratch::Files;
use crate::units;
pub(super) use server::{Server, listens, program, serve, serve_dir};
pub(super) use wrk::{Sample, Wrk};

/// The longest that --quick may measure.
const QUICK: Duration = Duration::from_secs(25);

/// The server that the others are compared with.
const REFERENCE: HttpServer = HttpServer::Nginx;

pub(super) fn run(args: &args::Http) -> anyhow::Result<()> {
    let limits = Limits { width: 0.0, deadline: args.common.deadline(QUICK) };
    let mut bed = TestBed::new(&args.common, 1 << 20)?;
    let wrk = Wrk::find(bed.processors.receiver)?;
    let files = Files::new(&bed.directory)?;
    for &size in &args.size {
        files.add(size)?;
    }
    let mut servers = Vec::new();
    for &which in &args.server {
        match Server::start(which, files.path(), args.engine, bed.processors.sender) {
            Ok(server) => servers.push(server),
            Err(error) if which == HttpServer::Ours => return Err(error.context(which.to_string())),
            Err(error) => {
                bed.skip([Skipped { what: which.to_string(), why: crate::output::whole(&error) }]);
            }
        }
    }
    ensure!(!servers.is_empty(), "there is no server to measure");
    let progress = rounds::progress(&limits)?;
    let mut rows = Vec::new();
    for (done, &size) in args.size.iter().enumerate() {
        progress.set_message(units::bytes(size));
        for server in &servers {
            check(server, files.path(), size).with_context(|| server.which.to_string())?;
        }
        let limits = limits.share(args.size.len() - done);
        let connections = args.connections.unwrap_or(if size < 16 << 20 { 32 } else { 4 });
        let measured = measure(&wrk, &servers, connections, size, &limits, || {
            progress.set_position(progress.elapsed().as_secs());
        });
        rows.extend(row(&measured?, connections, size));
    }
    drop(servers);
    progress.finish_and_clear();
    bed.finish(Rows::Http(rows), &args.common)
}

/// Checks that the server sends the file, and lets it fill its caches with it.
fn check(server: &Server, files: &Path, size: u64) -> anyhow::Result<()> {
    let expected = std::fs::read(files.join(size.to_string()))?;
    let got = server.get(size)?;
    ensure!(got == expected, "what arrived of a file of {} is not the file", units::bytes(size));
    Ok(())
}

type Measured = Vec<(HttpServer, Vec<Sample>)>;

fn measure(
    wrk: &Wrk,
    servers: &[Server],
    connections: u32,
    size: u64,
    limits: &Limits,
    progress: impl Fn(),
) -> anyhow::Result<Measured> {
    let mut measured: Measured = servers.iter().map(|server| (server.which, Vec::new())).collect();
    let mut longest = Duration::ZERO;
    while longest.is_zero() || Instant::now() + longest < limits.deadline {
        let begin = Instant::now();
        let mut round: Vec<_> = servers.iter().zip(&mut measured).collect();
        fastrand::shuffle(&mut round);
        for (server, (which, samples)) in round {
            let path = format!("/{size}");
            let sample = wrk.run(server.address, &path, connections, || server.cpu());
            let sample = sample.with_context(|| format!("{which}, {}", units::bytes(size)))?;
            samples.push(sample);
            progress();
        }
        longest = longest.max(begin.elapsed());
    }
    Ok(measured)
}

fn row(measured: &Measured, connections: u32, size: u64) -> impl Iterator<Item = HttpRow> {
    let reference = measured.iter().find(|(which, _)| *which == REFERENCE).map(|(_, s)| s);
    measured.iter().map(move |(which, samples)| {
        let figure = |of: fn(&Sample) -> f64| Figure::of(samples, reference.map(Vec::as_slice), of);
        HttpRow {
            server: which.to_string(),
            size,
            connections,
            requests_per_s: figure(Sample::requests_per_s),
            gb_per_s: figure(Sample::gb_per_s),
            server_cpu_s_per_gb: figure(Sample::server_cpu),
            total_cpu_s_per_gb: figure(Sample::total_cpu),
            rounds: samples.len(),
        }
    })
}

/// Starts a command that runs another program, to stay on a processor.
pub(super) fn spawn(
    command: &mut std::process::Command,
    cpu: Option<usize>,
) -> anyhow::Result<std::process::Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    // A child is where its parent was.
    let before = rustix::thread::sched_getaffinity(None)?;
    clock::pin(cpu)?;
    let child = command.spawn();
    rustix::thread::sched_setaffinity(None, &before)?;
    child.map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => {
            // Names of Debian's packages.
            let package = if program == "varnishd" { "varnish" } else { &program };
            anyhow::anyhow!(
                "there is no program {program} here (Debian: apt-get install {package})"
            )
        }
        _ => anyhow::Error::new(e).context(format!("cannot start {program}")),
    })
}
