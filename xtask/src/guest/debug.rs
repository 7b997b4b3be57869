//! `guest debug`: the module on a kernel that checks itself, without the patch series.

use std::time::Duration;

use sendfile2_guest::{Plan, Step};

use super::kernel::DEBUG;
use super::qemu::{Machine, Network};
use super::{NETWORK, cargo, stock};

/// The kernel module on a kernel for two processors, with KASAN and lockdep
///
/// Builds a kernel, some eight minutes on two processors, which the cache keeps until its
/// configuration changes. Debian has none with KASAN. The tests are those of guest stock; nothing
/// may be reported after init has begun.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Times that each race is tried
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
    /// Only the tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let kernel = DEBUG.build()?;
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("module");
    std::fs::create_dir(&copy)?;
    let module = stock::build(&kernel.build, DEBUG.arch, &copy)?;
    let mut initramfs = super::initramfs()?;
    initramfs.copy(&module, stock::MODULE, 0o644);
    let built = cargo::programs(&["build", "--release", "--package", "kernel-tests"])?;
    initramfs.program(&cargo::program(&built, "kernel-tests")?.path, "/usr/bin/kernel-tests")?;
    let (rounds, only) = (args.rounds.to_string(), args.only.as_str());
    let command = ["/usr/bin/kernel-tests", "--module", stock::MODULE, "--rounds", &rounds];
    let command = command.into_iter().chain(["--only", only]);
    let steps = vec![Step::setup("network", NETWORK), Step::new("module", command).seconds(3000)];
    initramfs.plan(&Plan { modules: Vec::new(), steps })?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "debug",
        kernel: &kernel.image,
        initramfs: &archive,
        disk: None,
        mebibytes: 2048,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(3600),
    }
    .run()?;
    outcome.verdict()
}
