//! The servers that are measured.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use sendfile2::Engine;

use super::super::clock;
use super::super::message::{self, Role};
use super::super::process::Process;
use super::spawn;
use crate::args::HttpServer;
use crate::child;
use crate::program;

/// A server that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) which: HttpServer,
    pub(crate) address: SocketAddr,
    process: procfs::process::Process,
    _running: Running,
}

#[derive(Debug)]
enum Running {
    Program { child: Child, _directory: Option<tempfile::TempDir> },
    Role { _process: Process },
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Running::Program { child, .. } = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Server {
    /// Serves `files` from one thread on `cpu`.
    pub(crate) fn start(
        which: HttpServer,
        files: &Path,
        engine: Engine,
        cpu: Option<usize>,
    ) -> anyhow::Result<Self> {
        let (address, pid, running) = match which {
            HttpServer::Ours => ours(files, engine, cpu)?,
            HttpServer::Nginx => nginx(files, cpu)?,
            HttpServer::ServeDir => {
                let role = Role::ServeDir { files: files.to_owned(), cpu };
                let mut process = Process::start(&[], &role)?;
                let address = process.recv()?;
                (address, process.id(), Running::Role { _process: process })
            }
        };
        let process = procfs::process::Process::new(i32::try_from(pid)?)?;
        Ok(Server { which, address, process, _running: running })
    }

    /// Returns the seconds of CPU that the server has used.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a run")]
    pub(crate) fn cpu(&self) -> anyhow::Result<f64> {
        let stat = self.process.stat().context("the server is gone")?;
        Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
    }

    /// Returns the bytes that the server has in memory.
    pub(crate) fn resident(&self) -> anyhow::Result<u64> {
        let status = self.process.status().context("the server is gone")?;
        Ok(status.vmrss.context("no VmRSS")? * 1024)
    }

    /// Asks for the file of that size.
    pub(super) fn get(&self, size: u64) -> anyhow::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET /{size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").context("no HTTP")?;
        let body = answer.split_off(head + 4);
        ensure!(
            answer.starts_with(b"HTTP/1.1 200 "),
            "it answered: {}",
            String::from_utf8_lossy(&answer).lines().next().unwrap_or_default()
        );
        Ok(body)
    }
}

fn ours(
    files: &Path,
    engine: Engine,
    cpu: Option<usize>,
) -> anyhow::Result<(SocketAddr, u32, Running)> {
    let mut command = program::command("sendfile2-server")?;
    command.arg("serve").arg(files).args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    // More than any crowd.
    command.args(["--max-connections", "32768"]);
    command.args(["--engine", engine.name()]).stderr(Stdio::piped());
    let mut child = spawn(&mut command, cpu)?;
    let (pid, stderr) = (child.id(), child.stderr.take().context("no standard error")?);
    let running = Running::Program { child, _directory: None };
    let mut line = String::new();
    BufReader::new(stderr).read_line(&mut line)?;
    let address = line.trim().strip_prefix("sendfile2: listening on ");
    let address = address.and_then(|address| address.parse().ok());
    Ok((address.with_context(|| format!("it said: {line}"))?, pid, running))
}

fn nginx(files: &Path, cpu: Option<usize>) -> anyhow::Result<(SocketAddr, u32, Running)> {
    let directory = tempfile::tempdir().context("cannot make a directory for nginx")?;
    // Free a moment ago; nginx fails if it is not any more.
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let (root, temp) = (files.display(), directory.path().display());
    let conf = format!(
        "daemon off; master_process off; pid {temp}/pid; error_log stderr crit;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; sendfile on; tcp_nopush on; open_file_cache max=1024;
            keepalive_requests 1000000000;
            client_body_temp_path {temp}/body; proxy_temp_path {temp}/proxy;
            fastcgi_temp_path {temp}/fastcgi; uwsgi_temp_path {temp}/uwsgi;
            scgi_temp_path {temp}/scgi;
            server {{ listen {address}; root {root}; }}
        }}"
    );
    let path = directory.path().join("nginx.conf");
    std::fs::write(&path, conf)?;
    let mut command = Command::new(program("nginx"));
    command.args(["-e", "stderr", "-c"]).arg(&path).stderr(Stdio::inherit());
    let child = spawn(&mut command, cpu)?;
    let pid = child.id();
    let mut running = Running::Program { child, _directory: Some(directory) };
    if let Running::Program { child, .. } = &mut running {
        listens("nginx", child, address)?;
    }
    Ok((address, pid, running))
}

/// Returns when a program that was started accepts connections.
pub(crate) fn listens(name: &str, child: &mut Child, address: SocketAddr) -> anyhow::Result<()> {
    let timeout = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(address).is_err() {
        if let Some(status) = child.try_wait()? {
            bail!("{name} does not start ({status})");
        }
        ensure!(Instant::now() < timeout, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Servers are not in every user's PATH.
pub(crate) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

/// tower-http's server, as a child of the benchmark: the `ServeDir` that axum's users take.
pub(crate) fn serve_dir(files: &Path, cpu: Option<usize>) -> anyhow::Result<()> {
    serve(axum::Router::new().fallback_service(tower_http::services::ServeDir::new(files)), cpu)
}

/// Serves from one thread, as a child of the benchmark, and answers it with the address.
pub(crate) fn serve(app: axum::Router, cpu: Option<usize>) -> anyhow::Result<()> {
    use axum::serve::ListenerExt;
    clock::pin(cpu)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    message::answer(Ok(listener.local_addr()?));
    let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
    std::thread::scope(|scope| {
        // Blocked in reading what never comes, until the parent is gone.
        std::thread::Builder::new()
            .spawn_scoped(scope, || runtime.block_on(async { axum::serve(listener, app).await }))
            .context("cannot start a thread for the server")?;
        let _ = child::recv::<()>();
        std::process::exit(0);
    })
}
