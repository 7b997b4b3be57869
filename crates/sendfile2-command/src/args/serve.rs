//! The arguments of `sendfile2 serve`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;
use sendfile2::Engine;

use crate::net::Address;
use crate::units;

/// Serve the files beneath a directory by HTTP, without a copy where that is possible
///
/// HTTP/1 over plain TCP sends from the files' own pages. HTTP/2 and TLS read the files. No request
/// leaves the directory, also not by a symbolic link. A directory is answered with its index.html,
/// and never listed. SIGTERM and SIGINT end it when the requests in progress are answered; a second
/// one at once.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 serve public                                    on 127.0.0.1:8080
  sendfile2 serve public --listen :80 --admin 127.0.0.1:9090
  sendfile2 serve public --listen :443 --tls-cert chain.pem --tls-key key.pem
  curl localhost:9090/metrics                               what it does, for Prometheus")]
pub struct Args {
    /// The directory
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Address to listen on: HOST:PORT, :PORT for every address of this host, or unix:PATH; may be
    /// given several times
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: Vec<Address>,
    /// Speak TLS, with this chain of certificates (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", value_hint = ValueHint::FilePath)]
    pub tls_key: Option<PathBuf>,
    /// Way in which files are sent where they are not read: auto, copy or zerocopy
    #[arg(long, default_value_t)]
    pub engine: Engine,
    /// Threads that serve connections [default: one a processor]
    #[arg(long, value_name = "N", value_parser = units::some::<NonZeroUsize>)]
    pub workers: Option<NonZeroUsize>,
    /// Connections at a time; more wait until they are accepted
    #[arg(long, value_name = "N", default_value = "16384", value_parser = units::some::<NonZeroU32>)]
    pub max_connections: NonZeroU32,
    /// Time that a client may take for a request's headers (or the TLS handshake), also counted
    /// from the end of the answer before
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration)]
    pub header_timeout: Duration,
    /// Time for which nothing at all may come or go on a connection
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = units::duration)]
    pub idle_timeout: Duration,
    /// Time for which a client may read nothing of what is ready for it
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub stall_timeout: Duration,
    /// Time that requests in progress may take after SIGTERM
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub grace: Duration,
    /// Serve /metrics (for Prometheus) and /health here
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<Address>,
    /// Write a line for each request to this file; - is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub access_log: Option<PathBuf>,
    /// Follow symbolic links also where they lead out of the directory
    #[arg(long)]
    pub follow_links_out: bool,
}
