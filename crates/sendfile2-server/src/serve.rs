//! `sendfile2 serve` and `sendfile2 cache`: the files beneath a directory, or what other servers answer, by
//! HTTP.

mod access;
mod admin;
mod body;
mod cached;
mod connection;
mod events;
mod limits;
mod listing;
mod log;
mod meters;
mod needs;
mod picture;
mod purge;
mod reload;
mod request;
mod rules;
mod site;
mod sockets;
mod streams;
mod timeouts;
mod tls;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sd_notify::NotifyState;
use sendfile2::Engine;
use sendfile2::probe::{self, Availability};
use sendfile2_cache::store::Store;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::Config;
use crate::net::Address;
use crate::{output, units};
use connection::Server;
use log::Log;
use meters::Meters;
use reload::Running;
use site::Site;
use sockets::{Given, Opened};

/// The longest that the end waits for answers that are being stored and that nobody reads any more.
const FILLS: Duration = Duration::from_secs(5);

/// The longest that the end waits for releases.
const DRAIN: Duration = Duration::from_secs(5);

pub(crate) fn run(config: Config, line: Vec<OsString>) -> anyhow::Result<()> {
    let given = Given::all()?;
    needs::check()?;
    // Before the site, which keeps a part of them.
    let descriptors = descriptors();
    let store = cached::store(&config)?;
    let site = Site::new(&config, store.as_ref(), None)?;
    let args = config.operation();
    let allowed = allowed(descriptors, site.kept_files());
    let connections = args.max_connections.get().min(allowed);
    let listeners = sockets::addresses(args, sockets::serve(&given)).len() + given.len();
    let room = |connections| usize::try_from(connections).unwrap_or(usize::MAX) >= listeners;
    anyhow::ensure!(
        room(args.max_connections.get()),
        "each of {listeners} listeners needs a connection to accept: give --max-connections \
         {listeners} or more"
    );
    anyhow::ensure!(
        room(allowed),
        "each of {listeners} listeners needs a connection to accept, and the limit of descriptors \
         (ulimit -Hn) allows {allowed}"
    );
    if args.check {
        let checked = args.access_log.as_deref().map(log::check).transpose();
        checked.with_context(|| config.place("access-log", 0))?;
        return output::print("the configuration is right\n");
    }
    let mut runtime = match args.workers {
        Some(NonZeroUsize::MIN) => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            workers.map(|workers| builder.worker_threads(workers.get()));
            builder
        }
    };
    let runtime = build(runtime.enable_all()).context("cannot start the runtime")?;
    let done = runtime.block_on(serve(config, line, connections, (site, store), given));
    // Threads that still read a file are not waited for; sends without a copy are, since it is the
    // process that keeps an eye on them.
    runtime.shutdown_background();
    if let Err(e) = sendfile2::reaper::drain(Instant::now() + DRAIN) {
        output::note(&format!("sendfile2: {e}"));
    }
    done
}

/// Builds a runtime, or ends the process: where a thread cannot be started tokio panics, and while
/// that unwinds waits for ever for the threads that it has started already.
fn build(builder: &mut tokio::runtime::Builder) -> std::io::Result<tokio::runtime::Runtime> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let cause = payload.downcast_ref::<String>().map(String::as_str);
        let cause = cause.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("panic");
        output::report_error(&anyhow::anyhow!(
            "cannot start the runtime (ulimit -u and -n, or fewer --workers, or a seccomp filter): \
             {cause}"
        ));
        std::process::exit(1);
    }));
    let runtime = builder.build();
    // Its threads find out whether they may wait for sockets only when they do.
    let waited = runtime.as_ref().map_or(Ok(()), |runtime| {
        runtime.block_on(async {
            let (mut here, mut there) = tokio::net::UnixStream::pair()?;
            let write = async {
                tokio::task::yield_now().await;
                here.write_all(&[0]).await
            };
            let mut byte = [0];
            tokio::try_join!(write, there.read_exact(&mut byte)).map(drop)
        })
    });
    std::panic::set_hook(hook);
    waited.and(runtime)
}

/// Refuses an engine by which no file could be sent: clients would get headers and nothing else.
fn usable<'a>(engine: Engine, listen: impl Iterator<Item = &'a Address>) -> anyhow::Result<()> {
    anyhow::ensure!(
        engine != Engine::Uring,
        "a server's connections do not send by uring: give --engine auto, copy or zerocopy"
    );
    anyhow::ensure!(
        engine != Engine::Sendfile,
        "a server's files are not leased, and sendfile sends nothing else: give --engine auto, copy \
         or zerocopy"
    );
    if !matches!(engine, Engine::Zerocopy | Engine::Native) {
        return Ok(());
    }
    for address in listen {
        anyhow::ensure!(
            !address.is_unix(),
            "{address}: unix sockets do not send by {engine}: give --engine auto or copy"
        );
    }
    for state in probe::machine().engines {
        if let (true, Availability::Refused(why)) = (state.engine == engine, state.availability) {
            anyhow::bail!("{engine} is not to be had here: {why}; give --engine auto or copy");
        }
    }
    Ok(())
}

/// Raises the limit of descriptors as far as it goes, and returns it; `None` if there is none.
fn descriptors() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let current = limit.current;
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => limit.maximum,
        Err(e) => {
            output::note(&format!("sendfile2: cannot raise the limit of descriptors: {e}"));
            current
        }
    }
}

/// Returns the number of connections that so many descriptors allow, beside the files that are kept
/// open, as many again that are sent and not kept any more, and what else the process has.
fn allowed(descriptors: Option<u64>, kept: usize) -> u32 {
    const OTHERS: u64 = 64;
    let Some(descriptors) = descriptors else { return u32::MAX };
    let connections = descriptors.saturating_sub(2 * kept as u64 + OTHERS).max(descriptors / 3);
    u32::try_from(connections).unwrap_or(u32::MAX)
}

/// The signals that end the server.
struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

fn listen_for(kind: SignalKind, name: &str) -> anyhow::Result<Signal> {
    signal(kind).with_context(|| format!("cannot listen for {name}"))
}

/// Tells systemd, if it waits to be told.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        output::note(&format!("sendfile2: cannot notify systemd (NOTIFY_SOCKET): {e}"));
    }
}

async fn serve(
    config: Config,
    line: Vec<OsString>,
    connections: u32,
    (site, store): (Site, Option<Store>),
    given: Vec<Given>,
) -> anyhow::Result<()> {
    let mut ends = Ends {
        terminate: listen_for(SignalKind::terminate(), "SIGTERM")?,
        interrupt: listen_for(SignalKind::interrupt(), "SIGINT")?,
    };
    let mut hangup = listen_for(SignalKind::hangup(), "SIGHUP")?;
    let mut user1 = listen_for(SignalKind::user_defined1(), "SIGUSR1")?;
    let args = config.operation();
    let log = args.access_log.as_deref().map(log::open).transpose();
    let log = log.with_context(|| config.place("access-log", 0))?;
    let of_systemd = sockets::serve(&given);
    let opened = Opened::new(args, given)?;
    let recorder = opened.admin.is_some().then(admin::record).transpose()?;
    let server = Server::new(connections, site, Log::new(log)?, Meters::new());
    if store.is_some() {
        events::tell();
    }
    server.site.load().check_origins();
    let admin = opened.admin.zip(recorder).map(|((address, listener), recorder)| {
        output::note(&format!("sendfile2: metrics and health on {address}"));
        admin::start(listener, recorder, args, (Arc::clone(&server), store))
    });
    let wanted = args.max_connections.get();
    let mut running = Running::new(Arc::clone(&server), config, line, of_systemd);
    for listener in opened.listeners {
        running.listen(listener);
    }
    // After the addresses, which others wait for.
    if connections < wanted {
        output::note(&format!(
            "sendfile2: the limit of descriptors (ulimit -Hn) allows {connections} connections, \
             not {wanted}; more wait"
        ));
    }
    tell(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            () = ends.recv() => break,
            // What is waited for, a disk or a name's address, may never come.
            _ = hangup.recv() => tokio::select! {
                () = ends.recv() => break,
                () = running.reload() => {}
            },
            _ = user1.recv() => tokio::select! {
                () = ends.recv() => break,
                () = running.reopen() => {}
            },
            ended = running.listener_ends() => ended.context("a listener has ended")?,
        }
    }
    tell(&[NotifyState::Stopping]);
    // From here on connections are refused.
    running.stop_listening().await;
    output::note("sendfile2: ending");
    let ending = Instant::now();
    let site = server.site.load_full();
    let finish = async {
        let left = server.finish(site.grace).await;
        if let (0, Some(cache)) = (left, site.cache()) {
            let longest = FILLS.min(site.grace.saturating_sub(ending.elapsed()));
            // What is not there by then is not stored.
            let _ = tokio::time::timeout(longest, cache.filled()).await;
        }
        left
    };
    let left = tokio::select! {
        left = finish => left,
        // A second signal means that its sender does not want to wait.
        () = ends.recv() => server.left(),
    };
    if let Some(admin) = admin {
        // Its socket's path goes with it.
        admin.abort();
        let _ = admin.await;
    }
    if left > 0 {
        output::note(&format!(
            "sendfile2: {left} connections were cut off after {}",
            units::time(ending.elapsed())
        ));
    }
    let dropped = server.finish_log().await;
    if dropped > 0 {
        output::note(&format!(
            "sendfile2: {dropped} lines of the access log were dropped: they could not be written"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn connections_leave_descriptors_for_files() {
        assert_eq!(allowed(None, 1024), u32::MAX);
        assert_eq!(allowed(Some(20_000), 1024), 17_888);
        assert_eq!(allowed(Some(1024), 256), 448);
        assert_eq!(allowed(Some(100), 25), 33);
    }
}
