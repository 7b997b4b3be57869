//! `sendfile2 bench crowd`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::process::{Resource, Rlimit};
use tokio::net::{TcpSocket, TcpStream};

use super::clock;
use super::http::Server;
use super::message::{self, Crowd, Crowded, Role};
use super::process::Process;
use super::result::{CrowdRow, Rows};
use super::test_bed::TestBed;
use crate::args::{self, HttpServer};
use crate::child;
use crate::scratch::{Files, Generation};

pub(super) fn run(args: &args::Crowd) -> anyhow::Result<()> {
    let connections = args.connections as usize;
    descriptors(u64::from(args.connections) + 200)?;
    let bed = TestBed::new(&args.common, 1 << 20)?;
    let files = Files::new(&bed.directory)?;
    files.add(args.size)?;
    let server = Server::start(HttpServer::Ours, files.path(), args.engine, bed.processors.sender)?;
    let role = Crowd {
        address: server.address,
        connections,
        size: args.size,
        rate: args.rate,
        cpu: bed.processors.receiver,
    };
    let before = server.resident()?;
    let mut clients = Process::start(&[], &Role::Crowd(role))?;
    clients.recv::<()>().context("the clients")?;
    let (idle, cpu, start) = (server.resident()?, server.cpu()?, Instant::now());
    clients.send(&())?;
    let (done, peak) = std::thread::scope(|scope| {
        let done = std::thread::Builder::new()
            .spawn_scoped(scope, || clients.recv::<Crowded>().context("the clients"))
            .context("cannot start a thread for the clients")?;
        let mut peak = idle;
        while !done.is_finished() {
            peak = peak.max(server.resident()?);
            std::thread::sleep(Duration::from_millis(100));
        }
        let done = done.join().map_err(|_| anyhow!("the clients' thread panicked"))??;
        anyhow::Ok((done, peak))
    })?;
    let share = (server.cpu()? - cpu) / start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "memory of a server")]
    let each = |now: u64| now.saturating_sub(before) as f64 / connections as f64;
    let row = CrowdRow {
        engine: args.engine.name().into(),
        connections,
        size: args.size,
        rate: args.rate,
        complete: done.complete,
        wrong_bytes: done.wrong_bytes,
        seconds: done.seconds,
        resident_bytes_per_connection: each(peak),
        resident_bytes_per_idle_connection: each(idle),
        server_cpu_share: share,
    };
    drop(server);
    bed.finish(Rows::Crowd(vec![row]), &args.common)?;
    if let Some(failure) = done.failure {
        return Err(anyhow!(failure).context("a client failed"));
    }
    ensure!(done.wrong_bytes == 0, "{} wrong bytes arrived", done.wrong_bytes);
    Ok(())
}

/// Lets this process and its children have that many descriptors.
fn descriptors(wanted: u64) -> anyhow::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= wanted);
    let maximum = if enough(limit.maximum) { limit.maximum } else { Some(wanted) };
    let raised = Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).with_context(|| {
        format!(
            "this needs {wanted} descriptors: raise the limit (ulimit -Hn), or take fewer clients"
        )
    })
}

/// Runs the clients, as a child of the benchmark.
pub(super) fn clients(role: &Crowd) -> anyhow::Result<()> {
    clock::pin(role.cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = tokio::task::LocalSet::new();
    let mut expected = vec![0; usize::try_from(role.size)?];
    Generation::A.fill(&mut expected, 0);
    let shared = Rc::new(Shared { expected, buffer: RefCell::new(vec![0; 64 << 10]) });
    let streams = runtime.block_on(connect(role))?;
    message::answer(Ok(()));
    if child::recv::<()>().is_none() {
        return Ok(());
    }
    let start = Instant::now();
    let outcome = all.block_on(&runtime, async {
        let mut tasks = tokio::task::JoinSet::new();
        for (n, stream) in streams.into_iter().enumerate() {
            tasks.spawn_local(client(stream, n, role.clone(), Rc::clone(&shared)));
        }
        let mut outcome = Crowded { complete: 0, wrong_bytes: 0, failure: None, seconds: 0.0 };
        while let Some(ended) = tasks.join_next().await {
            match ended? {
                Ok(wrong) => {
                    outcome.complete += 1;
                    outcome.wrong_bytes += wrong;
                }
                Err(error) => drop(outcome.failure.get_or_insert(crate::output::whole(&error))),
            }
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        anyhow::Ok(outcome)
    });
    message::answer(outcome);
    Ok(())
}

async fn connect(role: &Crowd) -> anyhow::Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for n in 0..role.connections {
        let socket = TcpSocket::new_v4()?;
        // Bytes that a client has not read are to wait with the server.
        socket.set_recv_buffer_size(32 << 10)?;
        let stream = socket.connect(role.address).await;
        streams.push(stream.with_context(|| format!("cannot connect client {n}"))?);
    }
    Ok(streams)
}

/// The things that all clients use: only one at a time does anything.
struct Shared {
    expected: Vec<u8>,
    buffer: RefCell<Vec<u8>>,
}

impl Shared {
    /// Reads what there is, as far as it fits into the buffer and is at most `most` bytes.
    async fn read(&self, stream: &TcpStream, most: usize) -> anyhow::Result<Vec<u8>> {
        loop {
            stream.readable().await?;
            let mut buffer = self.buffer.borrow_mut();
            let most = most.min(buffer.len());
            match stream.try_read(&mut buffer[..most]) {
                Ok(0) => return Err(anyhow!("the server ended the connection")),
                Ok(n) => return Ok(buffer[..n].to_vec()),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

/// The interval at which a client reads.
const TICK: Duration = Duration::from_millis(500);

/// Runs one client; returns the number of wrong bytes.
async fn client(
    stream: TcpStream,
    n: usize,
    role: Crowd,
    shared: Rc<Shared>,
) -> anyhow::Result<u64> {
    let request = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", role.size);
    ensure!(stream.try_write(request.as_bytes())? == request.len(), "a request does not fit");
    let mut head = Vec::new();
    let body = loop {
        head.extend(shared.read(&stream, 4096).await?);
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            break head.split_off(end + 4);
        }
    };
    let length = format!("content-length: {}\r\n", role.size);
    let head = String::from_utf8_lossy(&head);
    ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains(&length), "the answer is {head}");
    let wrong = |got: &[u8], at: usize| {
        let expected = &shared.expected[at..at + got.len()];
        if got == expected { 0 } else { got.iter().zip(expected).filter(|(a, b)| a != b).count() }
    };
    let (mut wrong_bytes, mut at) = (wrong(&body, 0), body.len());
    let turn = usize::try_from(role.rate / 2)?;
    // Not all in the same moment.
    let first = TICK.mul_f64((n % 1000) as f64 / 1000.0);
    let mut clock = tokio::time::interval_at(tokio::time::Instant::now() + first, TICK);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while at < shared.expected.len() {
        clock.tick().await;
        let end = (at + turn.max(1)).min(shared.expected.len());
        while at < end {
            let got = shared.read(&stream, end - at).await?;
            wrong_bytes += wrong(&got, at);
            at += got.len();
        }
    }
    Ok(wrong_bytes as u64)
}
