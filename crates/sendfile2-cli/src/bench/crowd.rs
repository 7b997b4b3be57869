//! `sendfile2 bench crowd`.

use std::cell::RefCell;
use std::io::BufRead;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use rustix::process::{Resource, Rlimit};
use sendfile2::Engine;
use tokio::net::{TcpSocket, TcpStream};

use super::bed::Bed;
use super::http::{Server, Which};
use super::message::{self, Crowd, Crowded, Role};
use super::process::Process;
use super::result::{CrowdRow, Rows};
use super::{Common, clock};
use crate::scratch::{Files, Generation};
use crate::units;

/// Serve many slow clients at once: what they get, and what they cost
///
/// Clients connect to "sendfile2 serve" with one worker, all of them, then ask for a file, and read
/// it at a steady rate. Fails if a client does not get all of it, or gets a wrong byte.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server needs a descriptor a client. Where the hard limit is lower, root may raise it, and this does.

Examples:
  sendfile2 bench crowd                   10,000 clients
  sendfile2 bench crowd --connections 1000 --engine zerocopy --json")]
pub(super) struct Args {
    /// Clients
    #[arg(long, value_name = "NUMBER", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=28_000))]
    connections: u32,
    /// Bytes of the file (4K to 64M)
    #[arg(long, default_value = "1M", value_parser = size)]
    size: u64,
    /// Bytes a second that each client reads
    #[arg(long, default_value = "50K", value_parser = units::rate)]
    rate: u64,
    /// How files are sent: auto, copy or zerocopy
    #[arg(long, default_value_t)]
    engine: Engine,
    #[command(flatten)]
    common: Common,
}

fn size(text: &str) -> Result<u64, String> {
    super::between(text, 4 << 10, 64 << 20, "4K and 64M")
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let connections = args.connections as usize;
    descriptors(u64::from(args.connections) + 200)?;
    let bed = Bed::new(&args.common, 1 << 20)?;
    let files = Files::new(&bed.directory)?;
    files.add(args.size)?;
    let server = Server::start(Which::Ours, files.path(), args.engine, bed.processors.sender)?;
    let role = Crowd {
        address: server.address,
        connections,
        size: args.size,
        rate: args.rate,
        cpu: bed.processors.receiver,
    };
    let before = server.resident()?;
    let mut clients = Process::start(&[], &Role::Crowd(role))?;
    clients.hear::<()>().context("the clients")?;
    let (idle, cpu, start) = (server.resident()?, server.cpu()?, Instant::now());
    clients.say(&())?;
    let (done, peak) = std::thread::scope(|scope| {
        let done = scope.spawn(|| clients.hear::<Crowded>().context("the clients"));
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

/// The clients, as a child of the benchmark.
pub(super) fn clients(role: &Crowd, orders: &mut impl BufRead) -> anyhow::Result<()> {
    clock::pin(role.cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let all = tokio::task::LocalSet::new();
    let mut expected = vec![0; usize::try_from(role.size)?];
    Generation::A.fill(&mut expected, 0);
    let shared = Rc::new(Shared { expected, buffer: RefCell::new(vec![0; 64 << 10]) });
    let streams = runtime.block_on(connect(role))?;
    message::answer(Ok(()));
    if orders.read_line(&mut String::new())? == 0 {
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
        // What a client has not read is to wait with the server.
        socket.set_recv_buffer_size(32 << 10)?;
        let stream = socket.connect(role.address).await;
        streams.push(stream.with_context(|| format!("cannot connect client {n}"))?);
    }
    Ok(streams)
}

/// What all clients use: only one at a time does anything.
struct Shared {
    expected: Vec<u8>,
    buffer: RefCell<Vec<u8>>,
}

impl Shared {
    /// What there is, as far as it fits into the buffer and is at most `most` bytes: whether that
    /// is as many, what of it is wrong; nothing if there is nothing.
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

/// How often a client reads.
const TICK: Duration = Duration::from_millis(500);

/// Gives the number of wrong bytes.
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
