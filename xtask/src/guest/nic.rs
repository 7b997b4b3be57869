//! `guest nic`: everything that sends, over a network device that sends from the file's pages.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use sendfile2_guest::{Plan, Step};
use serde_json::Value;

use super::cargo::{self, Program};
use super::console::Outcome;
use super::qemu::{Disk, Machine, Network};
use super::{NETWORK, Stock, stock};

/// The library, the demo, the torture and a benchmark over a network device, on Debian's kernel
///
/// Two network devices on a hub, the second one in a namespace of its own: notifications come
/// late, and without COPIED. What is found here is the truth.
///
/// Exits 0 if no byte was wrong, nothing was copied or left in flight, and the controls were seen to
/// go wrong; 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Run less of everything, as every push is tried with
    #[arg(long)]
    short: bool,
    /// Only the steps whose names contain this; the results are not judged
    #[arg(long)]
    only: Option<String>,
}

/// The address and the namespace at which the tests find the peer.
pub(super) const PEER: &str = "10.8.0.2@/run/netns/peer";

/// The engines that send from the file's pages, and the control's name in sendfile2.
const ENGINES: [&str; 3] = ["zerocopy", "uring", "native"];
const CONTROL: &str = "sendfile";

/// The program that all is run by, and the one that it runs for a benchmark; each of a package.
const COMMAND: (&str, &str) = ("sendfile2", "sendfile2-cli");
const BENCH: (&str, &str) = ("sendfile2-bench", "sendfile2-bench");

/// A packet of which a part is acknowledged before the device has given it back is copied by the
/// kernel, which flags the whole call; more than this share of calls is no zero copy.
const COPIED: f64 = 0.1;

/// The tests of a short run: those about releases, the library's and the HTTP server's.
const SHORT: [&str; 9] =
    ["content", "death", "ending", "guard", "holds", "races", "release", "threads", "uring"];

/// The setting of socket buffers as large as those of loopback grow by themselves.
pub(super) const BUFFERS: &str =
    "for which in wmem rmem; do echo 8388608 > /proc/sys/net/core/${which}_max; done";

/// The queueing discipline that delays packets: the device reads the pages when it is given a
/// packet, so only a queue makes that late.
pub(super) const DELAY: &str = "delay 1ms limit 100000";

/// The queueing disciplines that the tests of late and lost packets are run with.
const QUEUES: [(&str, &str); 3] = [
    ("delay", "delay 20ms limit 100000"),
    ("loss", "delay 2ms 1ms loss 1% limit 100000"),
    ("reorder", "delay 4ms reorder 20% 50% limit 100000"),
];

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let stock = Stock::new()?;
    let disk = Disk::new(1 << 30)?;
    let mut initramfs = super::initramfs()?;
    let modules =
        ["vmxnet3", "virtio_pci", "virtio_blk", "sch_netem", "sch_tbf", "veth", "overlay"];
    let mut modules = initramfs.modules(&stock.modules, &[&modules[..], &["tls"]].concat())?;
    stock::module(&stock, &mut initramfs)?;
    modules.push(stock::MODULE.into());
    // A short run has no benchmark.
    let commands = if args.short { &[COMMAND][..] } else { &[COMMAND, BENCH] };
    for (command, package) in commands {
        let built = cargo::programs(&["build", "--release", "--package", package])?;
        let program = &cargo::program(&built, command)?.path;
        initramfs.program(program, &format!("/usr/bin/{command}"))?;
    }
    let packages = ["--package", "sendfile2", "--package", "sendfile2-axum"];
    let tests: Vec<_> = cargo::programs(&[&["test", "--no-run"], &packages[..]].concat())?
        .into_iter()
        // The seeds of the fuzz targets are not in the guest, and need no network; nor are the
        // examples, which listen on loopback.
        .filter(|program| program.test && program.name != "fuzz_corpus")
        .filter(|program| !program.name.ends_with("examples"))
        .collect();
    for test in &tests {
        initramfs.program(&test.path, &format!("/tests/{}", test.name))?;
    }
    let scratch = scratch(&tests)?;
    let mut steps = steps(args, &tests, &scratch);
    if let Some(part) = &args.only {
        steps.retain(|step| step.must || step.name.contains(part.as_str()));
    }
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "nic",
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
    let told = tell(&outcome);
    outcome.verdict()?;
    told
}

/// Returns the directory that the tests were compiled to put their files in.
pub(super) fn scratch(tests: &[Program]) -> anyhow::Result<String> {
    let first = tests.first().context("cargo built no tests")?;
    // TARGET/debug/deps/TEST
    let target = first.path.ancestors().nth(3).map(|target| target.join("tmp"));
    target
        .as_deref()
        .and_then(Path::to_str)
        .map(str::to_owned)
        .context("a strange target directory")
}

fn steps(args: &Args, tests: &[Program], scratch: &str) -> Vec<Step> {
    let mut steps = vec![
        Step::setup("network", NETWORK),
        // The question is what a user can do with it, not who may.
        Step::setup("the module's device", "chmod 666 /dev/sendfile2"),
        Step::setup(
            "disk",
            format!(
                "mkdir -p /work\nmount -t ext4 /dev/vda /work\nchmod 1777 /work\n\
                 mkdir -p {scratch}\nmount --bind /work {scratch}"
            ),
        ),
    ];
    // A test for which no network is set takes this host as its place.
    for test in tests.iter().filter(|_| !args.short) {
        let program = format!("/tests/{}", test.name);
        // One by one: the tests of a user share its RLIMIT_MEMLOCK.
        let words = [&*program, "--nocapture", "--test-threads=1"];
        let step = Step::new(format!("{}, as a user", test.name), words);
        steps.push(step.ordinary().seconds(600));
    }
    steps.push(Step::setup("buffers", BUFFERS));
    steps.push(queue("short", DELAY));
    let chosen = |test: &&Program| !args.short || SHORT.contains(&&*test.name);
    for test in tests.iter().filter(|test| test.name != "nic").filter(chosen) {
        let program = format!("/tests/{}", test.name);
        let step = Step::new(format!("{}, over the device", test.name), [&*program, "--nocapture"]);
        steps.push(step.env("SENDFILE2_TEST_PEER", PEER).seconds(600));
    }
    for (name, options) in &QUEUES {
        steps.push(queue(name, options));
        let words = ["/tests/nic", "--nocapture", "--test-threads=1"];
        let mut step = Step::new(format!("nic, with {name}"), words);
        if *name != "delay" {
            step = step.env("SENDFILE2_TEST_LOSSY", "1");
        }
        steps.push(step.env("SENDFILE2_TEST_PEER", PEER).seconds(600));
    }
    steps.push(queue("short, again", DELAY));
    let there = ["--peer-netns", "/run/netns/peer", "--connect", "10.8.0.1", "--dir", "/work"];
    let command = |words: &[&'static str]| -> Vec<&'static str> {
        [&["/usr/bin/sendfile2"], words, &there, &["--json"]].concat()
    };
    let size = if args.short { "2M" } else { "16M" };
    steps.push(Step::new("demo", command(&["demo", "--size", size])).seconds(300));
    for engine in [CONTROL, "copy", "auto"].into_iter().chain(ENGINES) {
        let duration = if args.short { "6s" } else { "30s" };
        let words = ["torture", "--engine", engine, "--duration", duration, "--clients", "40"];
        let words = [&words[..], &["--processes", "2", "--slot-size", "64K"]].concat();
        let words = [&words[..], &["--overwrite", overwrite(engine)]].concat();
        steps.push(Step::new(format!("torture {engine}"), command(&words)).seconds(300));
    }
    if !args.short {
        // An emulated machine does not show the cost; but it shows that every way works. (With
        // eight at once nothing moved for longer than it waits, by sendfile(2).)
        let words = ["bench", "engines", "--quick", "--size", "16M", "--streams", "1"];
        steps.push(Step::new("bench", command(&words)).seconds(600));
    }
    steps
}

/// The question is whether releases can be trusted; the control trusts the return of the call.
pub(super) fn overwrite(engine: &str) -> &'static str {
    if engine == CONTROL { "in-place" } else { "wait" }
}

pub(super) fn queue(name: &str, options: &str) -> Step {
    let script = format!(
        "for at in '' '-n peer'; do d=0; [ -z \"$at\" ] || d=1; \
         tc $at qdisc replace dev eth$d root netem {options}; done; tc -s qdisc show dev eth0"
    );
    Step::setup(format!("queue: {name}"), script)
}

/// Shows what was found, engine by engine, and checks that it proves what it should.
fn tell(outcome: &Outcome) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    println!("\nwhat arrived wrong, and what share of the zerocopy sends was COPIED:");
    for row in json(outcome, "demo")?["rows"].as_array().context("the demo told no rows")? {
        let (way, when) = (text(row, "way"), text(row, "overwritten_at"));
        let name = format!("demo: {way}, overwritten when {when}");
        let bad = row["wrong_bytes"].as_u64().context("no wrong_bytes")?;
        let bytes = row["bytes"].as_u64().context("no bytes")?;
        line(&name, &format!("{bad} of {bytes} bytes"), row);
        wrong.extend(copied(way, row).map(|why| format!("{name}: {why}")));
        if ENGINES.contains(&way) && bytes == 0 {
            wrong.push(format!("{name}: nothing was sent"));
        }
    }
    for engine in [CONTROL, "copy", "auto"].into_iter().chain(ENGINES) {
        let name = format!("torture {engine}");
        let row = json(outcome, &name)?;
        let of = |field: &str| row[field].as_u64().unwrap_or(u64::MAX);
        let (bad, left) = (of("wrong_blocks"), of("unknown_left"));
        let responses = of("responses");
        let said = format!("{bad} blocks of {responses} responses, {left} left in flight");
        line(&name, &said, &row);
        // (A request of io_uring whose bytes all went into a packet that the one before it began
        // is reported as copied, Linux 6.10 and later.)
        if engine != "uring" {
            wrong.extend(copied(engine, &row).map(|why| format!("{name}: {why}")));
        }
    }
    ensure!(wrong.is_empty(), "guest nic: {}", wrong.join("; "));
    Ok(())
}

fn line(name: &str, said: &str, row: &Value) {
    let share = row["copied_share"].as_f64();
    let share = share.map_or_else(|| "-".into(), |share| format!("{:.2} %", share * 100.0));
    println!("  {name:48} {said:44} {share:>8}");
}

/// Returns the reason why this is no zero copy, if it should be.
pub(super) fn copied(engine: &str, row: &Value) -> Option<String> {
    if !ENGINES.contains(&engine) {
        return None;
    }
    match row["copied_share"].as_f64() {
        Some(share) if share <= COPIED => None,
        Some(share) => Some(format!("{:.0} % of its sends were copied", share * 100.0)),
        None => Some("it made no zerocopy send".into()),
    }
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or("?")
}

/// Returns the object that a step printed.
pub(super) fn json(outcome: &Outcome, name: &str) -> anyhow::Result<Value> {
    let step = outcome.step(name)?;
    let Some(line) = step.lines.iter().rev().find(|line| line.starts_with('{')) else {
        bail!("{name} told no results");
    };
    serde_json::from_str(line).with_context(|| format!("{name}: {line}"))
}
