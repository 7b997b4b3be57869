//! The program `sendfile2-bench`, which `sendfile2 bench` runs: measures the cost of each method of
//! sending.
#![forbid(unsafe_code)]

mod bench_conn;
mod cache;
mod clock;
mod compare;
mod crowd;
mod engines;
mod guard;
mod http;
mod latency;
mod machine;
mod memory;
mod message;
mod poll;
mod process;
mod receiver;
mod report;
mod result;
mod ring;
mod rounds;
mod sender;
mod stats;
mod table;
mod test_bed;
mod waits;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use sendfile2_command::args::bench as args;
// Re-exported for the modules below, which name them `crate::…`.
use sendfile2_command::{child, method, netns, output, program, scratch, units};

use message::Role;

/// Measure what each method of sending costs, and compare results
#[derive(Debug, Parser)]
#[command(
    name = "sendfile2-bench",
    bin_name = "sendfile2 bench",
    version,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Bench(args::Command),
    /// Run as a child of a benchmark, which sends the role on standard input
    #[command(hide = true)]
    Role,
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::usage_error(error),
    };
    let done = match &command {
        Command::Bench(command) => run(command),
        Command::Role => run_role(),
    };
    output::exit_code(done)
}

fn run(command: &args::Command) -> anyhow::Result<()> {
    match command {
        args::Command::Engines(args) => engines::run(args).context("bench engines"),
        args::Command::Latency(args) => latency::run(args).context("bench latency"),
        args::Command::Guard(args) => guard::run(args).context("bench guard"),
        args::Command::Memory(args) => memory::run(args).context("bench memory"),
        args::Command::Http(args) => http::run(args).context("bench http"),
        args::Command::Cache(args) => cache::run(args).context("bench cache"),
        args::Command::Crowd(args) => crowd::run(args).context("bench crowd"),
        args::Command::Compare(args) => compare::run(args).context("bench compare"),
        args::Command::Report(args) => report::run(args).context("bench report"),
    }
}

/// Does the work of a child process: reads its role from the parent, and answers when it is done.
fn run_role() -> anyhow::Result<()> {
    let role = child::recv().context("sendfile2-bench role is for its own use")?;
    let done = match role {
        Role::Sender(role) => sender::run(&role),
        Role::Receiver { cpu } => receiver::run(cpu),
        Role::ServeDir { files, cpu } => http::serve_dir(&files, cpu),
        Role::Origin { cpu } => cache::origin(cpu),
        Role::Crowd(role) => crowd::clients(&role),
        Role::Memory(object) => {
            message::answer(memory::measure(object));
            Ok(())
        }
    };
    if let Err(error) = done {
        message::answer::<()>(Err(error));
    }
    Ok(())
}
