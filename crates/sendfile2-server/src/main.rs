//! The program `sendfile2-server`, which `sendfile2 serve` and `sendfile2 cache` run.
#![forbid(unsafe_code)]

mod config;
mod serve;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
// The modules below have them by `crate::`.
use sendfile2_command::{args, net, output, units};

/// The servers of sendfile2
#[derive(Debug, Parser)]
#[command(
    name = "sendfile2-server",
    bin_name = "sendfile2",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<args::serve::Args>),
    Cache(Box<args::cache::Args>),
}

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    match config::Config::read(&line) {
        Ok(config) => output::exit_code(serve::run(config, line)),
        Err(config::Wrong::Usage(error)) => output::usage_error(error),
        Err(config::Wrong::File(error)) => output::exit_code(Err(error)),
    }
}
