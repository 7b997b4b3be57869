//! `guest detach`: overwriting at once, over a network device that sends from the file's pages.

use std::time::Duration;

use anyhow::{Context, ensure};
use sendfile2_guest::{Plan, Step};
use serde_json::Value;

use super::console::Outcome;
use super::initramfs::{Initramfs, find};
use super::nic::{BUFFERS, DELAY, json, queue, scratch};
use super::qemu::{Disk, Machine, Network};
use super::{NETWORK, Stock, cargo};

/// Writers that detach, over a network device, on a stock kernel of Debian's
///
/// The tests of detaching on every filesystem that the kernel has, and the torture whose writers
/// detach, beside processes that are killed, with packets that are late and lost.
///
/// Exits 0 if no byte was wrong and nothing was left in flight, and the controls were seen to go
/// wrong; 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Version of the kernel
    #[arg(long, default_value = "6.12", value_parser = ["6.12", "6.1"])]
    kernel: String,
    /// Run less of everything, as every push is tried with
    #[arg(long)]
    short: bool,
    /// Only the steps whose names contain this; the results are not judged
    #[arg(long)]
    only: Option<String>,
    /// Seconds of each torture; 30, and 15 of a short run
    #[arg(long)]
    seconds: Option<u64>,
}

impl Args {
    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(if self.short { 15 } else { 30 })
    }

    /// The tests that are run, each with what its names contain.
    fn tests(&self) -> &'static [(&'static str, &'static str)] {
        if self.short { &SHORT } else { &TESTS }
    }

    /// The queues, each with the engines that are tortured behind it.
    fn queues(&self) -> &'static [(&'static str, &'static str, &'static [&'static str])] {
        if self.short { &SHORT_QUEUES } else { &QUEUES }
    }
}

/// The tests, of the library.
const TESTS: [(&str, &str); 5] =
    [("detach", ""), ("overwrite", ""), ("uncontrolled", ""), ("mapped", ""), ("between", "")];

/// The tests of a short run: what is in flight when it is overwritten, on each filesystem.
const SHORT: [(&str, &str); 2] = [("detach", "an_overwrite_changes"), ("between", "")];

/// The makers of filesystems; what is missing is skipped.
const MAKERS: [&str; 3] = ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"];

const QUEUES: [(&str, &str, &[&str]); 2] = [
    ("delay", DELAY, &["sendfile", "zerocopy", "copy", "uring"]),
    ("loss", "delay 2ms 1ms loss 1% limit 100000", &["sendfile", "zerocopy"]),
];
const SHORT_QUEUES: [(&str, &str, &[&str]); 1] =
    [("delay", DELAY, &["sendfile", "zerocopy", "uring"])];

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let stock = Stock::of(&format!("{}.", args.kernel))?;
    let disk = Disk::new(3 << 30)?;
    let mut initramfs = super::initramfs()?;
    let modules =
        ["vmxnet3", "virtio_pci", "virtio_blk", "sch_netem", "overlay", "loop", "xfs", "btrfs"];
    let modules = initramfs.modules(&stock.modules, &modules)?;
    for maker in MAKERS {
        add(&mut initramfs, maker)?;
    }
    let built = cargo::programs(&["build", "--release", "--package", "sendfile2-cli"])?;
    initramfs.program(&cargo::program(&built, "sendfile2")?.path, "/usr/bin/sendfile2")?;
    let tests = cargo::programs(&["test", "--no-run", "--package", "sendfile2"])?;
    let chosen = |name: &str| args.tests().iter().any(|(test, _)| *test == name);
    for test in tests.iter().filter(|test| chosen(&test.name)) {
        initramfs.program(&test.path, &format!("/tests/{}", test.name))?;
    }
    let mut steps = steps(args, &scratch(&tests)?);
    if let Some(part) = &args.only {
        steps.retain(|step| step.must || step.name.contains(part.as_str()));
    }
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "detach",
        kernel: &stock.image,
        initramfs: &archive,
        disk: Some(&disk),
        mebibytes: 1536,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(if args.short { 1200 } else { 5400 }),
    }
    .run()?;
    if args.only.is_some() {
        return outcome.verdict();
    }
    let told = tell(args, &outcome);
    outcome.verdict()?;
    told
}

/// Adds a program of Debian's, if it is here.
fn add(initramfs: &mut Initramfs, name: &str) -> anyhow::Result<()> {
    let Some(path) = find(name) else { return Ok(()) };
    let at = path.to_str().context("a tool with a strange name")?;
    initramfs.program(&path, at)
}

fn steps(args: &Args, scratch: &str) -> Vec<Step> {
    let mut steps = vec![
        Step::setup("network", NETWORK),
        Step::setup(
            "disk",
            format!(
                "mkdir -p /work\nmount -t ext4 /dev/vda /work\nmkdir -p {scratch}\n\
                 mount --bind /work {scratch}\nhead -c 1M /dev/zero > /work/probed"
            ),
        ),
        Step::new("probe", ["/usr/bin/sendfile2", "probe", "--file", "/work/probed"]),
    ];
    for (test, part) in args.tests() {
        let program = format!("/tests/{test}");
        let words = [&*program, "--nocapture", "--test-threads=1", part];
        steps.push(Step::new(format!("tests of {test}"), words).seconds(900));
    }
    steps.push(Step::setup("buffers", BUFFERS));
    let there = ["--peer-netns", "/run/netns/peer", "--connect", "10.8.0.1", "--dir", "/work"];
    let seconds = format!("{}s", args.seconds());
    let torture = |name: String, engine: &str, more: &[&str]| {
        let words = ["/usr/bin/sendfile2", "torture", "--json", "--engine", engine];
        // A server that starts overwrites all slots, which takes seconds here.
        let clients = if args.short { "12" } else { "40" };
        let size =
            ["--clients", clients, "--processes", "2", "--slots", "16", "--slot-size", "64K"];
        let words = [&words[..], &size, &["--duration", &seconds], more, &there].concat();
        Step::new(name, words).seconds(args.seconds() + 240)
    };
    for (name, options, engines) in args.queues() {
        steps.push(queue(name, options));
        steps.push(torture(control(name), "sendfile", &["--overwrite", "in-place"]));
        for engine in *engines {
            let more = ["--overwrite", "detach", "--faults", "client-kill,server-kill"];
            steps.push(torture(detaching(engine, name), engine, &more));
        }
    }
    steps
}

fn control(queue: &str) -> String {
    format!("control, {queue}")
}

fn detaching(engine: &str, queue: &str) -> String {
    format!("torture {engine}, {queue}")
}

/// Shows what was found, and checks that it proves what it should.
fn tell(args: &Args, outcome: &Outcome) -> anyhow::Result<()> {
    println!("\nwhat arrived wrong:");
    let mut wrong = Vec::new();
    for (queue, _, engines) in args.queues() {
        line(&control(queue), &json(outcome, &control(queue))?);
        for engine in *engines {
            let name = detaching(engine, queue);
            let row = json(outcome, &name)?;
            line(&name, &row);
            if number(&row, "wrong_blocks") + number(&row, "unknown_left") > 0 {
                wrong.push(name);
            } else if *engine != "copy" && number(&row, "detached") == 0 {
                wrong.push(format!("{name} (nothing was detached)"));
            }
        }
    }
    ensure!(wrong.is_empty(), "guest detach: {}", wrong.join("; "));
    Ok(())
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or(0)
}

fn line(name: &str, row: &Value) {
    let of = |field| number(row, field);
    println!(
        "  {name:26} {} blocks of {} responses, {} overwrites, {} ranges detached, {} left in flight, \
         COPIED {}",
        of("wrong_blocks"),
        of("responses"),
        of("overwrites"),
        of("detached"),
        of("unknown_left"),
        row["copied_share"].as_f64().map_or_else(|| "-".into(), |s| format!("{:.1} %", s * 100.0)),
    );
}
