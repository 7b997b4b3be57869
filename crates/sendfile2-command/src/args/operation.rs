//! The arguments that the servers share: how they are run, whatever they serve.

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ValueEnum, ValueHint};
use sendfile2::Engine;

use crate::net::Address;
use crate::units;

// Without a documentation comment, which would be taken for the command's.
#[allow(missing_docs)]
#[derive(Debug, clap::Args)]
pub struct Operation {
    /// Read options from this file (TOML), by their names: listen = [":80"]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Say whether the configuration is right, and serve nothing
    #[arg(long)]
    pub check: bool,
    /// Address to listen on: HOST:PORT, :PORT for every address of this host, or unix:PATH; may be
    /// given several times. It speaks TLS if there is a certificate [default: 127.0.0.1:8080, or
    /// the sockets that systemd gives]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub listen: Vec<Address>,
    /// Address to listen on without TLS, beside those that speak it; may be given several times
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    pub listen_http: Vec<Address>,
    /// Redirect what comes by --listen-http to HTTPS at this port of the same host (443 if none is
    /// given), but for /.well-known/acme-challenge/
    #[arg(
        long, value_name = "PORT", num_args = 0..=1, require_equals = true,
        default_missing_value = "443", value_parser = units::some::<NonZeroU16>
    )]
    pub redirect_https: Option<NonZeroU16>,
    /// Speak TLS, with this chain of certificates (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
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
    /// Connections of one address at a time (IPv6: of a /64); more are closed at once [default: no
    /// limit]
    #[arg(long, value_name = "N", value_parser = units::some::<NonZeroU32>)]
    pub max_connections_per_address: Option<NonZeroU32>,
    /// Requests a second of one address (IPv6: of a /64), and as many at once; more are answered
    /// 429 [default: no limit]
    #[arg(long, value_name = "N", value_parser = units::some::<NonZeroU32>)]
    pub max_requests_per_address: Option<NonZeroU32>,
    /// Network of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8, or unix for those
    /// by unix sockets; may be given several times
    #[arg(long, value_name = "NETWORK", value_delimiter = ',')]
    pub trusted_proxy: Vec<String>,
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
    /// Write a line for each request to this file, when it is answered; - is standard output
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub access_log: Option<PathBuf>,
    /// Form of these lines: combined, as of other servers, with the seconds behind it, or json
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub access_log_format: LogFormat,
}

/// The form of the access log's lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// The combined format of Apache and nginx, with the seconds that the answer took behind it.
    #[default]
    Combined,
    /// An object of JSON a line.
    Json,
}

/// Gives an option its environment variable, whose name begins so.
#[must_use]
pub fn in_environment(prefix: &str, arg: clap::Arg) -> clap::Arg {
    // What is asked of one run is no configuration.
    if arg.get_id() == "check" {
        return arg;
    }
    let name = format!("{prefix}{}", arg.get_id().as_str().to_uppercase());
    // "invalid value '-1' for '--size'" says more than "unexpected argument '-1'".
    arg.env(name).hide_env(true).allow_negative_numbers(true)
}
