//! The command `sendfile2`.
#![forbid(unsafe_code)]

mod demo;
mod generate;
mod probe;
mod recv;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod run;
mod send;
mod torture;
mod write;

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
// The modules below have them by `crate::`.
use sendfile2_command::{
    args, child, connection, method, net, netns, output, program, scratch, units,
};

/// Send files without a copy, and know when they may be overwritten.
///
/// sendfile(2) returns while the kernel still reads the file's pages: a file that is overwritten
/// then arrives changed. sendfile2 reports when the kernel has released it.
#[derive(Debug, Parser)]
#[command(name = "sendfile2", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sendfile2 demo                      overwrite files while they are sent
  sendfile2 demo --json | jq .rows    the same, for programs
  sendfile2 probe                     what this machine allows, and why
  sendfile2 recv :9000 -o copy        receive a file here ...
  sendfile2 send disk.img host:9000   ... and send it there
  sendfile2 write slab --at 0 < slot  overwrite what a server may be sending
  sendfile2 run ./server              run a program, and make its sendfile(2) safe
  sendfile2 serve public              serve files by HTTP
  sendfile2 cache --origin http://a   answer for another server, from a file
  sendfile2 torture --engine zerocopy overwrite a file while hundreds of clients receive it
  sendfile2 bench engines --quick     what each way of sending costs
  sendfile2 help demo                 what a command does

Exit status: 0 if all went well, 1 if something failed, 2 if the command line was wrong or names a
command whose program is not installed; of run, the program's.";

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Args),
    Bench(args::bench::Args),
    Probe(probe::Args),
    Send(send::Args),
    Serve(Box<args::serve::Args>),
    Cache(Box<args::cache::Args>),
    Recv(recv::Args),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Run(run::Args),
    Write(write::Args),
    Torture(torture::Args),
    Completions(generate::Completions),
    Man(generate::Man),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return output::usage_error(error),
    };
    let done = match command {
        Command::Demo(args) => demo::run(&args),
        Command::Bench(_) => return execute("sendfile2-bench", 2),
        Command::Probe(args) => probe::run(&args),
        Command::Send(args) => send::run(&args),
        Command::Serve(_) | Command::Cache(_) => return execute("sendfile2-server", 1),
        Command::Recv(args) => recv::run(&args),
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        Command::Run(args) => return run::run(&args),
        Command::Write(args) => write::run(&args),
        Command::Torture(args) => torture::run(&args),
        Command::Completions(args) => generate::completions(&args),
        Command::Man(args) => generate::man(&args),
    };
    output::exit_code(done)
}

/// Becomes the program `name`, with this one's arguments from number `first` on. Returns only where
/// that is impossible, with the status of a command that there is not.
fn execute(name: &'static str, first: usize) -> ExitCode {
    let error = match program::command(name) {
        Ok(mut program) => {
            let error = program.args(std::env::args_os().skip(first)).exec();
            anyhow::Error::new(error).context(format!("cannot run {name}"))
        }
        Err(missing) => missing.into(),
    };
    output::report_error(&error);
    ExitCode::from(2)
}
