//! `guest patched`: the patch series on several processors, with network devices.

use std::time::Duration;

use anyhow::ensure;
use sendfile2_guest::{Plan, Step};

use super::kernel::PATCHED;
use super::qemu::{Machine, Network};
use super::{NETWORK, nic, series};

/// The patch series, on two processors, with KASAN and lockdep, over network devices
///
/// Builds a kernel, some eight minutes on two processors, which the cache keeps until the series or
/// the configuration changes. Its tests run as root and as an ordinary user with a finite
/// memory limit, over e1000e, and those that a device matters to over vmxnet3, too.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do nothing, and report a skip, where a kernel would have to be built from nothing
    #[arg(long)]
    cached: bool,
    /// Run less of everything, as every push is tried with
    #[arg(long)]
    short: bool,
    /// Only the steps whose names contain this; the results are not judged
    #[arg(long)]
    only: Option<String>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.cached && !PATCHED.is_cached()? {
        return Ok(());
    }
    let kernel = PATCHED.build()?;
    for (label, network) in [("e1000e", Network::E1000e), ("vmxnet3", Network::Vmxnet3)] {
        let directory = tempfile::tempdir()?;
        let mut initramfs = super::initramfs()?;
        let mut steps = vec![Step::setup("network", NETWORK)];
        steps.extend(series::steps(&mut initramfs, &kernel)?);
        if network == Network::Vmxnet3 {
            steps.retain(|step| step.name == "network" || step.name == "devices");
        } else {
            steps.extend(series::users(&mut initramfs, directory.path())?);
            steps.extend(over_the_device());
        }
        if args.short {
            steps.retain(|step| step.must || SHORT.contains(&&*step.name));
            steps
                .iter_mut()
                .for_each(|step| step.env.push(("SENDFILE2_CALLS".into(), "1000".into())));
        }
        if let Some(part) = &args.only {
            steps.retain(|step| step.must || step.name.contains(part.as_str()));
        }
        initramfs.plan(&Plan { modules: Vec::new(), steps })?;
        let archive = directory.path().join("initramfs");
        initramfs.write(&archive)?;
        let outcome = Machine {
            label,
            kernel: &kernel.image,
            initramfs: &archive,
            disk: None,
            mebibytes: 2048,
            processors: 2,
            network,
            deterministic: false,
            append: "",
            patience: Duration::from_secs(if args.short { 1200 } else { 5400 }),
        }
        .run()?;
        outcome.verdict()?;
        if network == Network::E1000e && args.only.is_none() {
            let torture = nic::json(&outcome, "torture native")?;
            let copied = nic::copied("native", &torture);
            ensure!(copied.is_none(), "torture native: {}", copied.unwrap_or_default());
        }
    }
    Ok(())
}

/// The steps of a short run, some of each kind: the ids, and those for which a device matters.
const SHORT: [&str; 9] = [
    "selftest, as a user",
    "ids, as a user",
    "uring, as a user",
    "devices",
    "native, as a user",
    "libsendfile2: ids, as a user",
    "native, over the device",
    "torture sendfile",
    "torture native",
];

/// Returns the steps of the engine `native` where nothing copies for it; and the control.
fn over_the_device() -> Vec<Step> {
    let mut steps = vec![Step::setup("buffers", nic::BUFFERS), nic::queue("short", nic::DELAY)];
    for test in ["guard", "holds", "native", "release"] {
        let program = format!("/tests/{test}");
        let step = Step::new(format!("{test}, over the device"), series::without_a_disk(&program));
        steps.push(step.env("SENDFILE2_TEST_PEER", nic::PEER).seconds(900));
    }
    let there = ["--peer-netns", "/run/netns/peer", "--connect", "10.8.0.1", "--dir", "/tmp"];
    let command =
        |words: &[&'static str]| [&["/usr/bin/sendfile2"], words, &there, &["--json"]].concat();
    steps.push(Step::new("demo", command(&["demo", "--size", "2M"])).seconds(300));
    // Longer, so that the control is seen to go wrong however slow the machine is.
    steps.push(nic::queue("long", "delay 20ms limit 100000"));
    for engine in ["sendfile", "native"] {
        let words = ["torture", "--engine", engine, "--duration", "20s", "--clients", "10"];
        let words = [&words[..], &["--processes", "2", "--slot-size", "64K"]].concat();
        let words = [&words[..], &["--overwrite", nic::overwrite(engine)]].concat();
        steps.push(Step::new(format!("torture {engine}"), command(&words)).seconds(300));
    }
    steps
}
