//! `guest patched`: the patch series on several processors, with network devices.

use std::time::Duration;

use sendfile2_guest::{Plan, Step};

use super::kernel::{self, PATCHED};
use super::qemu::{Machine, Network};
use super::{NETWORK, series};

/// The patch series, on two processors, with KASAN and lockdep, over network devices
///
/// Builds a kernel, some eight minutes on two processors, which the cache keeps until the series or
/// the configuration changes. Its tests run as root and as an ordinary user with a finite
/// memory limit, over e1000e, and those that a device matters to over vmxnet3, too.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Do nothing where a kernel would have to be built: say that it is skipped
    #[arg(long)]
    cached: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.cached && !kernel::all_cached(&[PATCHED])? {
        return Ok(());
    }
    let kernel = PATCHED.build()?;
    for (label, network) in [("e1000e", Network::E1000e), ("vmxnet3", Network::Vmxnet3)] {
        let mut initramfs = super::initramfs()?;
        let mut steps = vec![Step::setup("network", NETWORK)];
        steps.extend(series::steps(&mut initramfs, &kernel)?);
        if network == Network::Vmxnet3 {
            steps.retain(|step| step.name == "network" || step.name == "devices");
        }
        initramfs.plan(&Plan { modules: Vec::new(), steps })?;
        let directory = tempfile::tempdir()?;
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
            patience: Duration::from_secs(1800),
        }
        .run()?;
        outcome.verdict()?;
    }
    Ok(())
}
