//! `sendfile2 serve`: the files beneath a directory, by HTTP.

mod admin;
mod connection;
mod log;
mod request;
mod streams;
mod timeouts;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use sendfile2::Engine;
use sendfile2::probe::{self, Availability};
use sendfile2_axum::ServeDir;
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::args::serve::Args;
use crate::net::{self, Address};
use crate::{output, units};
use connection::Server;

/// The longest that the end waits for releases.
const DRAIN: Duration = Duration::from_secs(5);

/// The number of connections that may wait until they are accepted; the standard library's 128 are
/// less than a burst of clients. The kernel takes at most net.core.somaxconn.
const BACKLOG: i32 = 4096;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    usable(args.engine, &args.listen)?;
    let descriptors = descriptors();
    let dir = if args.follow_links_out { ServeDir::follow_links_out } else { ServeDir::new };
    // It keeps files open by the limit of descriptors.
    let dir = dir(&args.dir).with_context(|| format!("cannot open {}", args.dir.display()))?;
    let allowed = allowed(descriptors, dir.kept_files());
    let connections = args.max_connections.get().min(allowed);
    let listeners = args.listen.len();
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
    let mut runtime = match args.workers {
        Some(NonZeroUsize::MIN) => tokio::runtime::Builder::new_current_thread(),
        workers => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            workers.map(|workers| builder.worker_threads(workers.get()));
            builder
        }
    };
    let runtime = build(runtime.enable_all()).context("cannot start the runtime")?;
    let done = runtime.block_on(serve(args, connections, dir));
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
            "cannot start the runtime (ulimit -u and -n, or fewer --workers): {cause}"
        ));
        std::process::exit(1);
    }));
    let runtime = builder.build();
    std::panic::set_hook(hook);
    runtime
}

/// Refuses an engine by which no file could be sent: clients would get headers and nothing else.
fn usable(engine: Engine, listen: &[Address]) -> anyhow::Result<()> {
    anyhow::ensure!(
        engine != Engine::Uring,
        "a server's connections do not send by uring: give --engine auto, copy or zerocopy"
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

async fn serve(args: &Args, connections: u32, dir: ServeDir) -> anyhow::Result<()> {
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(tls(cert, key)?),
        _ => None,
    };
    let mut stop = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let log = args.access_log.as_deref().map(log::Log::open).transpose()?;
    let admin = args.admin.as_ref().map(|address| admin::start(address, args)).transpose()?;
    let server = Server::new(args, connections, dir, tls, log);
    let mut listening = tokio::task::JoinSet::new();
    for address in &args.listen {
        let listener = address.listen()?;
        output::note(&format!("sendfile2: listening on {}", listener.address()?));
        listening.spawn(Arc::clone(&server).accept(asynchronous(listener)?));
    }
    // After the addresses, which others wait for.
    if connections < args.max_connections.get() {
        output::note(&format!(
            "sendfile2: the limit of descriptors (ulimit -Hn) allows {connections} connections, \
             not {}; more wait",
            args.max_connections
        ));
    }
    tokio::select! {
        _ = stop.recv() => {}
        _ = interrupt.recv() => {}
        // They only end when they panic.
        Some(ended) = listening.join_next() => ended.context("a listener has ended")?,
    }
    // From here on connections are refused.
    listening.shutdown().await;
    output::note("sendfile2: ending");
    let ending = Instant::now();
    let left = tokio::select! {
        left = server.finish(args.grace) => left,
        // A second signal means that its sender does not want to wait.
        _ = stop.recv() => server.left(),
        _ = interrupt.recv() => server.left(),
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
            "sendfile2: {dropped} lines of the access log were dropped: its reader was too slow"
        ));
    }
    Ok(())
}

/// A listener of tokio's.
enum Listening {
    Tcp(tokio::net::TcpListener),
    /// A unix listener, with the owner of its path, which removes the path in the end.
    Unix(
        tokio::net::UnixListener,
        #[allow(dead_code, reason = "it is there to be dropped")] net::Listener,
    ),
}

fn asynchronous(listener: net::Listener) -> anyhow::Result<Listening> {
    let made = || match &listener {
        net::Listener::Tcp(tcp) => {
            let tcp = tcp.try_clone()?;
            rustix::net::listen(&tcp, BACKLOG)?;
            tcp.set_nonblocking(true)?;
            Ok::<_, std::io::Error>((Some(tokio::net::TcpListener::from_std(tcp)?), None))
        }
        net::Listener::Unix(unix, _) => {
            let unix = unix.try_clone()?;
            rustix::net::listen(&unix, BACKLOG)?;
            unix.set_nonblocking(true)?;
            Ok((None, Some(tokio::net::UnixListener::from_std(unix)?)))
        }
    };
    match made().context("cannot give the listener to the runtime")? {
        (Some(tcp), _) => Ok(Listening::Tcp(tcp)),
        (_, Some(unix)) => Ok(Listening::Unix(unix, listener)),
        (None, None) => anyhow::bail!("no listener"),
    }
}

fn tls(cert: &std::path::Path, key: &std::path::Path) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates from {}", cert.display()))?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in {}", cert.display());
    let name = key.display();
    let pem = std::fs::read(key).with_context(|| format!("cannot read {name}"))?;
    // In the section's name, or in a header of the older kind.
    anyhow::ensure!(
        !pem.windows(9).any(|word| word == b"ENCRYPTED"),
        "the private key in {name} is encrypted: decrypt it into a file that only you can read \
         (umask 077; openssl pkey -in {name} -out decrypted.pem)"
    );
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| match e {
        PemError::NoItemsFound => anyhow::anyhow!("there is no private key (PEM) in {name}"),
        e => anyhow::Error::from(e).context(format!("cannot read a private key from {name}")),
    })?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("the certificate and the key do not make a TLS server")?;
    config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    Ok(TlsAcceptor::from(Arc::new(config)))
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
