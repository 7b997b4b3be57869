//! The program `sendfile2-server`, which `sendfile2 serve` runs.
#![forbid(unsafe_code)]

mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
// The modules below have them by `crate::`.
use sendfile2_command::{args, net, output, units};

/// The server of sendfile2
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
    Serve(args::serve::Args),
}

fn main() -> ExitCode {
    let Command::Serve(args) = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::usage_error(error),
    };
    output::exit_code(serve::run(&args))
}
