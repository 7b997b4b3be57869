//! The caches that are measured.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use procfs::process::Process;
use rustix::process::{Pid, Signal, kill_process_group};

use super::super::http::{listens, program, spawn};
use super::own;
use crate::args::CacheServer;

/// The place of a cache: what it asks, where its store is and how large that is, and its processor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) origin: SocketAddr,
    pub(super) directory: &'a Path,
    pub(super) size: u64,
    pub(super) cpu: Option<usize>,
}

/// A cache that runs. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) which: CacheServer,
    pub(super) address: SocketAddr,
    child: Child,
    /// The store.
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Server {
    pub(super) fn start(which: CacheServer, place: &Place<'_>) -> anyhow::Result<Self> {
        let directory = own(place.directory)?;
        let (address, child) = launch(which, place, directory.path())?;
        Ok(Server { which, address, child, directory })
    }

    /// Kills it with all its processes, and starts it again; returns the time from then until `ready`
    /// is satisfied.
    pub(super) fn restart(
        &mut self,
        place: &Place<'_>,
        ready: impl Fn(SocketAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<Duration> {
        self.kill();
        let begin = Instant::now();
        (self.address, self.child) = launch(self.which, place, self.directory.path())?;
        ready(self.address)?;
        Ok(begin.elapsed())
    }

    fn kill(&mut self) {
        // It has a group of its own.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }

    /// Its processes: the one that was started, and those that this one has started.
    fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let own = i32::try_from(self.child.id())?;
        let all = procfs::process::all_processes()?.flatten();
        let family = all.filter(|process| {
            process.pid == own || process.stat().is_ok_and(|stat| stat.ppid == own)
        });
        let family: Vec<_> = family.collect();
        ensure!(family.iter().any(|process| process.pid == own), "the server is gone");
        Ok(family)
    }

    /// Returns the seconds of CPU that the server has used.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a run")]
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for process in self.processes()? {
            let stat = process.stat().context("the server is gone")?;
            ticks += stat.utime + stat.stime;
        }
        Ok(ticks as f64 / procfs::ticks_per_second() as f64)
    }

    /// Returns the bytes of anonymous memory that the server has.
    pub(super) fn anonymous(&self) -> anyhow::Result<u64> {
        let mut bytes = 0;
        for process in self.processes()? {
            bytes += process.status()?.rssanon.context("no RssAnon")? * 1024;
        }
        Ok(bytes)
    }
}

fn launch(
    which: CacheServer,
    place: &Place<'_>,
    directory: &Path,
) -> anyhow::Result<(SocketAddr, Child)> {
    match which {
        CacheServer::Ours => ours(place, directory),
        CacheServer::Nginx => nginx(place, directory, "on"),
        CacheServer::NginxCopy => nginx(place, directory, "off"),
        CacheServer::Varnish => varnish(place, directory),
    }
}

/// Starts a program in a group of its own.
fn grouped(command: &mut Command, cpu: Option<usize>) -> anyhow::Result<Child> {
    use std::os::unix::process::CommandExt;
    spawn(command.process_group(0), cpu)
}

fn ours(place: &Place<'_>, directory: &Path) -> anyhow::Result<(SocketAddr, Child)> {
    let mut command = crate::program::command("sendfile2-server")?;
    command.args(["cache", "--origin", &format!("http://{}", place.origin), "--store"]);
    command.arg(directory.join("store")).args(["--size", &place.size.to_string()]);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]).stderr(Stdio::piped());
    let mut child = grouped(&mut command, place.cpu)?;
    let mut lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    let mut said = String::new();
    let address = lines.find_map(|line| {
        said = line.ok()?;
        said.strip_prefix("sendfile2: listening on ")?.parse().ok()
    });
    let Some(address) = address else {
        let _ = child.kill();
        let _ = child.wait();
        anyhow::bail!("it said: {said}");
    };
    Ok((address, child))
}

/// Free a moment ago; who is to listen there fails if it is not any more.
fn free() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn nginx(
    place: &Place<'_>,
    directory: &Path,
    sendfile: &str,
) -> anyhow::Result<(SocketAddr, Child)> {
    let address = free()?;
    let (temp, origin) = (directory.display(), place.origin);
    // Root's worker would be somebody who may not read the directory.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    // 8000 keys are a megabyte.
    let (size, keys) = (place.size, 16 + (place.size >> 12 >> 12));
    let conf = format!(
        "daemon off; {user} worker_processes 1; pid {temp}/pid; error_log stderr crit;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; sendfile {sendfile}; tcp_nopush off; open_file_cache max=1024;
            keepalive_requests 1000000000;
            client_body_temp_path {temp}/body; proxy_temp_path {temp}/proxy;
            fastcgi_temp_path {temp}/fastcgi; uwsgi_temp_path {temp}/uwsgi;
            scgi_temp_path {temp}/scgi;
            proxy_cache_path {temp}/cache levels=1:2 keys_zone=bench:{keys}m max_size={size}
                inactive=1d use_temp_path=off manager_files=1000 manager_sleep=10ms;
            upstream origin {{ server {origin}; keepalive 64; }}
            server {{
                listen {address};
                location / {{
                    proxy_pass http://origin; proxy_http_version 1.1;
                    proxy_set_header Connection \"\"; proxy_cache bench;
                    add_header X-Cache $upstream_cache_status;
                }}
            }}
        }}"
    );
    let path = directory.join("nginx.conf");
    std::fs::write(&path, conf)?;
    let mut command = Command::new(program("nginx"));
    command.args(["-e", "stderr", "-c"]).arg(&path).stderr(Stdio::inherit());
    waited("nginx", grouped(&mut command, place.cpu)?, address)
}

fn varnish(place: &Place<'_>, directory: &Path) -> anyhow::Result<(SocketAddr, Child)> {
    let address = free()?;
    let (ip, port) = (place.origin.ip(), place.origin.port());
    let vcl = format!(
        "vcl 4.1;
        backend default {{ .host = \"{ip}\"; .port = \"{port}\"; }}
        sub vcl_deliver {{
            if (obj.hits > 0) {{ set resp.http.X-Cache = \"HIT\"; }}
        }}"
    );
    let path = directory.join("bench.vcl");
    std::fs::write(&path, vcl)?;
    let mut command = Command::new(program("varnishd"));
    command.arg("-F").arg("-n").arg(directory.join("work")).arg("-f").arg(&path);
    command.args(["-j", "none", "-a", &address.to_string()]);
    command.args(["-s", &format!("malloc,{}", place.size)]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = grouped(&mut command, place.cpu)?;
    waited("varnishd", child, address)
}

/// Waits until it listens; ends it if it does not.
fn waited(
    name: &str,
    mut child: Child,
    address: SocketAddr,
) -> anyhow::Result<(SocketAddr, Child)> {
    if let Err(error) = listens(name, &mut child, address) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok((address, child))
}
