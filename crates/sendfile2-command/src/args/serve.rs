//! The arguments of `sendfile2 serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueHint;

use super::operation::{self, Operation};
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
    #[command(flatten)]
    #[allow(missing_docs)] // They would be the command's.
    pub operation: Operation,
    /// Time for which a small file that was looked at counts as unchanged: for so long one that was
    /// replaced may still be sent. 0 looks at it for each request
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = units::duration_or_zero)]
    pub file_validity: Duration,
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

fn in_environment(arg: clap::Arg) -> clap::Arg {
    operation::in_environment(ENVIRONMENT, arg)
}
