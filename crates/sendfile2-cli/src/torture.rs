//! `sendfile2 torture`: slots of a file are overwritten all the time while clients of every kind
//! receive them, and every block that arrives is checked.

mod block;
mod client;
mod disturb;
mod fault;
mod message;
mod parent;
mod process;
mod report;
mod server;
mod wire;
mod writer;

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueHint;
use clap::error::ErrorKind;
use indicatif::{ProgressBar, ProgressStyle};
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::{Engine, Source};

use crate::child;
use crate::netns::{Net, Place};
use crate::{output, scratch, send, units};
use block::BLOCK;
use disturb::Disturb;
use fault::{Fault, Faults};
use message::{Layout, Line, Overwrite, Role};
use parent::Parent;

/// Overwrite a file all the time while hundreds of clients receive it, and check every block
///
/// Clients (fast, slow, stalled, resetting and vanishing ones) fetch random ranges of random slots
/// of one file, while writers overwrite the slots with new generations. Every block of 512 bytes
/// says what it is, and every response which generation it brings, so that a client knows every
/// wrong block.
///
/// Overwriting in place is the control: slots are overwritten, as any program would do it, when the
/// call that sent them has returned. It must find wrong blocks, or the torture is too weak to prove
/// anything.
///
/// Exits 0 if every block was right and nothing is left in flight (for the control: if wrong blocks
/// were found), and 1 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 torture --engine zerocopy                half a minute
  sendfile2 torture --engine sendfile --overwrite in-place --duration 10s
                                                     the control: must find wrong blocks
  sendfile2 torture --duration 10m --faults all      with kill -9, EMFILE and small limits
  sendfile2 torture --engine sendfile --disturb all  beside readers, syncs, and other writers
  sendfile2 torture --peer-netns new                 over a veth pair, made for it
  sendfile2 torture --peer-netns /run/netns/peer --connect 10.0.0.1
                                                     with the clients in a namespace of yours
  sendfile2 torture --json | jq '{wrong_blocks, unknown_left}'")]
pub(crate) struct Args {
    /// Engine that sends the responses
    #[arg(long, default_value_t, value_parser = send::engine())]
    engine: Engine,
    /// How writers deal with what is still in flight
    #[arg(long, value_name = "HOW", value_enum, default_value_t)]
    overwrite: Overwrite,
    /// Punch holes into the file all the time, so that writers find blocks that are not allocated
    #[arg(long)]
    sparse: bool,
    /// The work of a process beside the server on the file meanwhile: a list, or all
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    disturb: Vec<Disturb>,
    /// Clients at a time
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5000))]
    clients: u32,
    /// Writers at a time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=500))]
    writers: u32,
    /// Time to run, for example 30s or 10m
    #[arg(long, default_value = "30s", value_parser = duration)]
    duration: Duration,
    /// Repeat the random choices of a run [default: a new seed, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// Processes that the clients are spread over
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    processes: u32,
    /// Slots of the file
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    slots: u32,
    /// Bytes of a slot, or with K or M; a multiple of 512
    #[arg(long, default_value = "256K", value_parser = slot_size)]
    slot_size: u32,
    /// Faults to bring about: none, all, or a list of client-kill, server-kill, emfile, memlock and
    /// optmem
    #[arg(long, value_name = "LIST", default_value = "none")]
    faults: Faults,
    #[command(flatten)]
    place: Place,
    /// Directory for the file, which is gone afterwards [default: a disk, the current directory
    /// first]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// Run as a child of a torture, which sends the role on standard input
    #[arg(long, hide = true)]
    role: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|e| format!("{e}: give 30s or 10m"))?;
    if (Duration::from_secs(1)..=Duration::from_secs(7 * 86_400)).contains(&duration) {
        Ok(duration)
    } else {
        Err("must be between 1s and 7d".into())
    }
}

fn slot_size(text: &str) -> Result<u32, String> {
    let size = units::size(text)?;
    if size % BLOCK as u64 != 0 {
        return Err(format!("must be a multiple of {BLOCK}"));
    }
    match u32::try_from(size) {
        Ok(size) if (4 << 10..=16 << 20).contains(&size) => Ok(size),
        _ => Err("must be between 4K and 16M".into()),
    }
}

impl Args {
    fn layout(&self) -> Layout {
        Layout { slots: self.slots, slot_size: self.slot_size }
    }

    /// Returns each way to disturb that was asked for, once.
    fn disturb(&self) -> Vec<Disturb> {
        let asked = |one: &Disturb| self.disturb.iter().any(|it| it == one || *it == Disturb::All);
        Disturb::EACH.into_iter().filter(asked).collect()
    }

    /// Ends the program with an error of the command line where the engine and the way to overwrite
    /// prove nothing together.
    fn check(&self) {
        let why = match (self.engine, self.overwrite) {
            (Engine::Sendfile, Overwrite::Wait) => {
                "--engine sendfile needs --overwrite detach: nobody tells when what it sent is \
                 released (or in-place, which is the control)\n"
            }
            (Engine::Copy | Engine::Auto, Overwrite::InPlace) => {
                "--overwrite in-place is the control of the engines that send the file's pages \
                 themselves: take it with --engine sendfile, zerocopy, uring or native\n"
            }
            _ => return,
        };
        clap::Error::raw(ErrorKind::ArgumentConflict, why).exit()
    }

    /// Returns the network to run in: for a fault that needs it, a namespace of its own.
    fn net(&self) -> anyhow::Result<Net> {
        match self.place.net().context("torture")? {
            Some(net) => Ok(net),
            None if self.faults.0.contains(&Fault::Optmem) => {
                Ok(Net::own_loopback().unwrap_or_else(|_| Net::loopback()))
            }
            None => Ok(Net::loopback()),
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.role {
        return run_role();
    }
    args.check();
    let net = args.net()?;
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..=u64::from(u32::MAX)));
    let (file, _) = scratch::place(args.dir.as_deref()).context("torture")?;
    let filesystem = scratch::filesystem(&file)?;
    let tail = disturb::tail(&args.disturb());
    file.set_len(args.layout().size() + tail)
        .context("torture: cannot set the size of the file")?;
    let not_detached = match args.overwrite {
        Overwrite::Detach => detach(&file).err().map(|why| output::whole(&why)),
        Overwrite::Wait | Overwrite::InPlace => None,
    };
    if let (Engine::Sendfile, Some(why)) = (args.engine, &not_detached) {
        bail!(
            "torture: the engine sendfile serves only files that can be detached, and those on \
             {filesystem} cannot: {why}: choose another directory with --dir"
        );
    }
    // Shown on standard error, where that is a terminal.
    let progress = ProgressBar::new(args.duration.as_secs())
        .with_style(ProgressStyle::with_template("{pos}/{len} s  {wide_msg}")?);
    let mut parent = Parent::new(args, file, &net, seed)?;
    let ran = parent.run(&progress);
    progress.finish_and_clear();
    let totals = std::mem::take(&mut parent.totals);
    // No process is left from here on.
    drop(parent);
    let report = totals.report(args, &net, seed, filesystem, not_detached);
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        output::print(&report.to_string())?;
    }
    ran.context("torture")?;
    report.verdict()
}

/// Tries whether the file can be detached.
fn detach(file: &File) -> anyhow::Result<()> {
    let source = Source::new(file.try_clone()?)?;
    let detached = Detacher::new(&source).and_then(|detacher| detacher.detach(&(0..1)));
    detached.map(drop).map_err(NotDetached::into)
}

/// The work of a process that this program started itself.
fn run_role() -> anyhow::Result<()> {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        child::send(&Line::Unexpected(panic.to_string()));
        told(panic);
    }));
    match child::recv().context("torture: --role is for the torture's own use")? {
        Role::Server(role) => server::run(&role),
        Role::Clients(role) => client::run(role),
        Role::Disturber(role) => disturb::run(&role),
    }
}
