//! The arguments of `sendfile2 cache`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ValueEnum, ValueHint};

use super::operation::{self, Operation};
use crate::units;

/// The beginning of the environment variables' names.
pub const ENVIRONMENT: &str = "SENDFILE2_CACHE_";

/// Answer for other servers by HTTP, from a file that keeps what they have answered
///
/// What may be kept, and for how long, is what RFC 9111 says of a shared cache. Bodies are sent from
/// the file's own pages, while it is overwritten: what is being sent stays as it was.
///
/// SIGTERM, SIGINT, SIGHUP and SIGUSR1 do what they do to sendfile2 serve, and so do the options that
/// both have. Each option is also a variable of the environment, and a key of the configuration
/// file. The command line comes before the environment, and that before the file.
#[derive(Debug, clap::Args)]
#[command(mut_args = in_environment, after_help = "\
The environment: an option's name in capitals, with _ for -, behind SENDFILE2_CACHE_, such as
SENDFILE2_CACHE_ORIGIN=http://10.0.0.1:8080,http://10.0.0.2:8080.

Examples:
  sendfile2 cache --origin http://127.0.0.1:3000            on 127.0.0.1:8080, in a temporary file
  sendfile2 cache --origin https://example.org --store /var/cache/sendfile2 --size 10G
  sendfile2 cache --origin http://a --origin http://b --choose hash --listen :80
  curl -sI localhost:8080 | grep -i cache-status            hit, or why not")]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)] // They would be the command's.
    pub operation: Operation,
    /// Server that is asked for what is not kept, by http or https, without a path; may be given
    /// several times
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub origin: Vec<String>,
    /// How one of several origins is chosen
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    pub choose: Choose,
    /// Check each origin by a GET of this path, and leave those alone that do not pass: an answer of
    /// 200 to 399 passes
    #[arg(long, value_name = "PATH")]
    pub health_path: Option<String>,
    /// Time from one check to the next, in which one has to be answered
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::duration,
        requires = "health_path")]
    pub health_interval: Duration,
    /// Failed checks in a row by which an origin is down
    #[arg(long, value_name = "N", default_value = "3", value_parser = units::some::<NonZeroU32>,
        requires = "health_path")]
    pub health_fails: NonZeroU32,
    /// Passed checks in a row by which it is up again
    #[arg(long, value_name = "N", default_value = "2", value_parser = units::some::<NonZeroU32>,
        requires = "health_path")]
    pub health_passes: NonZeroU32,
    /// File, or block device, that keeps what was answered [default: a temporary file, which goes
    /// with the process]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub store: Option<PathBuf>,
    /// Size of the store; one that exists keeps its own
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = units::size)]
    pub size: u64,
    /// Keep an answer only when it is asked for a second time
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = false, default_missing_value = "true")]
    pub second_request: bool,
    /// Time until a connection to an origin is there
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::duration)]
    pub connect_timeout: Duration,
    /// Time from a request to an origin, or the last of its body, until its answer begins
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration)]
    pub answer_timeout: Duration,
    /// Time for which nothing of an origin's answer may come
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = units::duration)]
    pub origin_stall_timeout: Duration,
    /// Time for which a stale answer stands for one that no origin gives, where nothing says how
    /// long, or that it must not; 0 is never
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = units::duration_or_zero)]
    pub stale_if_error: Duration,
    /// Longest body of a request
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = units::size)]
    pub max_request_body: u64,
}

/// How one of several origins is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Choose {
    /// One after the other
    #[default]
    RoundRobin,
    /// The same one for the same target
    Hash,
}

fn in_environment(arg: clap::Arg) -> clap::Arg {
    operation::in_environment(ENVIRONMENT, arg)
}
