//! The arguments of `sendfile2 serve`.

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ValueEnum, ValueHint};
use sendfile2::Engine;

use crate::net::Address;
use crate::units;

/// The beginning of the environment variables' names.
pub const ENVIRONMENT: &str = "SENDFILE2_SERVE_";

/// Serve the files beneath a directory by HTTP, without a copy where that is possible
///
/// HTTP/1 over plain TCP sends from the files' own pages. HTTP/2 and TLS read the files. No request
/// leaves the directory, also not by a symbolic link. A directory is answered with its index.html.
///
/// SIGTERM and SIGINT end it when the requests in progress are answered; a second one at once.
/// SIGHUP reads the configuration, the certificates and the directory anew, and opens the log
/// again; no connection is lost, and what is wrong leaves all as it was. SIGUSR1 opens the log again.
///
/// Each option is also a variable of the environment, and a key of the configuration file. The
/// command line comes before the environment, and that before the file.
#[derive(Debug, clap::Args)]
#[command(mut_args = in_environment, after_help = "\
The environment: an option's name in capitals, with _ for -, behind SENDFILE2_SERVE_, such as
SENDFILE2_SERVE_ACCESS_LOG=- or SENDFILE2_SERVE_LISTEN=:80,[::1]:81.

Examples:
  sendfile2 serve public                                    on 127.0.0.1:8080
  sendfile2 serve public --listen :80 --admin 127.0.0.1:9090
  sendfile2 serve public --listen :443 --tls-cert chain.pem --tls-key key.pem
  sendfile2 serve --config serve.toml --check               say whether it is right
  curl localhost:9090/metrics                               what it does, for Prometheus")]
pub struct Args {
    /// The directory; in a file the key "dir"
    #[arg(value_hint = ValueHint::DirPath)]
    pub dir: Option<PathBuf>,
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
    /// Time for which a small file that was looked at counts as unchanged: for so long one that was
    /// replaced may still be sent. 0 looks at it for each request
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::duration_or_zero)]
    pub file_validity: Duration,
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
    /// Cache-Control of files whose name, or path if there is a slash in it, is like PATTERN
    /// ("*.{js,css}=max-age=3600"); the first one that fits counts; may be given several times
    #[arg(long, value_name = "PATTERN=VALUE", value_delimiter = '\n')]
    pub cache_control: Vec<String>,
    /// Header of the answers to paths that are like PATTERN ("*=X-Frame-Options: DENY"); all that
    /// fit are set; may be given several times
    #[arg(long, value_name = "PATTERN=NAME: VALUE", value_delimiter = '\n')]
    pub header: Vec<String>,
    /// Origin, a scheme and a host, whose pages may read the answers (CORS), or * for all; may be
    /// given several times
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub cors: Vec<String>,
    /// File, beneath the directory, that is the page of answers with the status 404
    #[arg(long, value_name = "FILE")]
    pub not_found_page: Option<String>,
    /// File, beneath the directory, that is answered, with 200, to paths that there are not: for
    /// applications of one page
    #[arg(long, value_name = "FILE", conflicts_with = "not_found_page")]
    pub fallback: Option<String>,
    /// Send FILE.zst, FILE.br or FILE.gz in place of FILE to clients that take it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub precompressed: bool,
    /// Encoding of text files, which Content-Type names; "" names none
    #[arg(long, value_name = "NAME", default_value = "utf-8")]
    pub charset: String,
    /// Serve files and directories whose names begin with a dot; else only .well-known is served
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub dotfiles: bool,
    /// List directories that have no index.html
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub list_directories: bool,
    /// Follow symbolic links also where they lead out of the directory
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub follow_links_out: bool,
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

/// Gives an option its environment variable.
fn in_environment(arg: clap::Arg) -> clap::Arg {
    // What is asked of one run is no configuration.
    if arg.get_id() == "check" {
        return arg;
    }
    let name = format!("{ENVIRONMENT}{}", arg.get_id().as_str().to_uppercase());
    arg.env(name).hide_env(true)
}
