//! `sendfile2 demo`: what the receiver gets when a file is overwritten while it is being sent.

mod case;
mod peer;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;
use indicatif::{ProgressBar, ProgressStyle};

use crate::netns::Place;
use crate::scratch::Scratch;
use crate::{output, units};
use case::Case;
use report::Report;

/// The longest that a single wait may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Show what arrives when a file is overwritten while it is being sent
///
/// Sends a file over TCP on this machine with plain sendfile(2) and with each engine of this
/// library. Each piece is overwritten, every byte of it, when the way of sending seems to allow it,
/// or at once where its pages are detached, and the receiver reads it only after that: bytes that it
/// then gets wrong, the kernel had not released.
///
/// Exits 0 if every engine was safe, and what was detached, and sendfile(2) was seen not to be, and
/// 1 if not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 demo                    8 MiB, in about a second
  sendfile2 demo --size 1G          more, in about a minute
  sendfile2 demo --dir /srv/data    on another filesystem
  sendfile2 demo --peer-netns /run/netns/peer --connect 10.0.0.1
                                    over what leads to a namespace of yours
  sendfile2 demo --json | jq '.rows[] | {way, wrong_bytes}'")]
pub(crate) struct Args {
    /// Bytes to send each way, or with K, M or G (4K to 16G)
    #[arg(long, default_value = "8M", value_parser = size)]
    size: u64,
    #[command(flatten)]
    place: Place,
    /// Directory for the file, which is gone afterwards [default: a disk, the current directory
    /// first]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Print one JSON object in place of the table
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<u64, String> {
    let size = units::size(text)?;
    if (4 << 10..=16 << 30).contains(&size) {
        Ok(size)
    } else {
        Err("must be between 4K and 16G".into())
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut file = Scratch::new(args.dir.as_deref(), args.size).context("demo")?;
    // Shown on standard error, where that is a terminal.
    let progress = ProgressBar::new(Case::all().count() as u64 * args.size).with_style(
        ProgressStyle::with_template("{bar:40} {binary_bytes}/{binary_total_bytes}  {msg}")?,
    );
    let place = args.place.namespace().context("demo")?;
    let mut outcomes = Vec::new();
    for case in Case::all() {
        progress.set_message(case.to_string());
        let outcome = case
            .measure(&mut file, place.as_ref(), &progress)
            .with_context(|| format!("demo: {case}"))?;
        outcomes.push((case, outcome));
        progress.set_position(outcomes.len() as u64 * args.size);
    }
    progress.finish_and_clear();
    let report = Report::new(outcomes, &file, place.is_some());
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string(&report)?))?;
    } else {
        output::print(&report.to_string())?;
    }
    report.verdict()
}
