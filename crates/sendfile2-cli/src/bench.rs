//! `sendfile2 bench`: what each way of sending costs, so that strangers can repeat it.

mod bed;
mod clock;
mod compare;
mod crowd;
mod engines;
mod guard;
mod http;
mod latency;
mod line;
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
mod way;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Subcommand, ValueHint};

use crate::units;
use message::Role;

/// Measure what each way of sending costs, and compare results
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  sendfile2 bench engines --quick    each engine against sendfile(2), in half a minute
  sendfile2 bench help engines       how it measures, and what can be chosen"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Engines(Box<engines::Args>),
    Latency(latency::Args),
    Guard(guard::Args),
    Memory(memory::Args),
    Http(http::Args),
    Crowd(crowd::Args),
    Compare(compare::Args),
    Report(report::Args),
    /// Run as a child of a benchmark, which says on standard input as what
    #[command(hide = true)]
    Role,
}

/// What all that measure have in common.
#[derive(Debug, clap::Args)]
struct Common {
    /// How long to measure at most, such as 30s or 10m [default: 3m]
    #[arg(long, value_parser = units::duration)]
    time: Option<Duration>,
    /// Less, and in less than 40 seconds
    #[arg(long, conflicts_with = "time")]
    quick: bool,
    /// Where to put the file, which is gone afterwards [default: a disk, the current directory
    /// first]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Write the results to a file, for compare and report
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    save: Option<PathBuf>,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

impl Common {
    /// When to stop, given how long --quick takes.
    fn deadline(&self, quick: Duration) -> Instant {
        let default = if self.quick { quick } else { Duration::from_secs(180) };
        Instant::now() + self.time.unwrap_or(default)
    }
}

fn between(text: &str, low: u64, high: u64, words: &str) -> Result<u64, String> {
    let size = units::size(text)?;
    if (low..=high).contains(&size) { Ok(size) } else { Err(format!("must be between {words}")) }
}

fn percent(text: &str) -> Result<f64, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("give a number of percent, more than 0 and at most 100".into()),
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Engines(args) => engines::run(args).context("bench engines"),
        Command::Latency(args) => latency::run(args).context("bench latency"),
        Command::Guard(args) => guard::run(args).context("bench guard"),
        Command::Memory(args) => memory::run(args).context("bench memory"),
        Command::Http(args) => http::run(args).context("bench http"),
        Command::Crowd(args) => crowd::run(args).context("bench crowd"),
        Command::Compare(args) => compare::run(args).context("bench compare"),
        Command::Report(args) => report::run(args).context("bench report"),
        Command::Role => child(),
    }
}

/// What a process does that this program started itself.
fn child() -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut role = String::new();
    input.read_line(&mut role)?;
    let role = serde_json::from_str(&role).context("bench role is for bench's own use")?;
    let done = match role {
        Role::Sender(role) => sender::run(&role, &mut input),
        Role::Receiver { cpu } => receiver::run(cpu, &mut input),
        Role::ServeDir { files, cpu } => http::serve_dir(&files, cpu, &mut input),
        Role::Crowd(role) => crowd::clients(&role, &mut input),
        Role::Memory(what) => {
            message::answer(memory::measure(what));
            Ok(())
        }
    };
    if let Err(error) = done {
        message::answer::<()>(Err(error));
    }
    Ok(())
}
