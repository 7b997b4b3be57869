//! `guest uml`: the patch series in user-mode Linux, a kernel that is an ordinary program.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use sendfile2_guest::{Plan, Step};

use super::initramfs::Initramfs;
use super::kernel::{self, Kernel, UML_DEBUG, UML_PLAIN};
use super::patches::SERIES;
use super::{cargo, console, leaks, pages, rwf_detach, series, stock, tables};

/// The patch series, in user-mode Linux: its tests, and a stress; and again with lockdep and kmemleak
///
/// Builds two kernels, the first some four minutes on two processors, the second longer; the cache
/// keeps them until a series or the configuration changes. The second also has `RWF_DETACH`, whose
/// tests run there, so that what is lost is found; and looks at what is sent. One processor, and no
/// network device: guest patched has both.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Leave the second kernel out, and report that, where it would have to be built from nothing
    #[arg(long)]
    cached: bool,
    /// Also compile after each patch of the series (some ten minutes, not cached)
    #[arg(long)]
    each: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    kernel::checkpatch(SERIES)?;
    if args.each {
        kernel::each(&UML_PLAIN, &["fs/", "net/core/", "net/ipv4/", "io_uring/"])?;
    }
    let plain = UML_PLAIN.build()?;
    tables::check(&plain.tree)?;
    guest("uml", &plain, |initramfs, directory| module(&plain, initramfs, directory))?;
    if args.cached && !UML_DEBUG.is_cached()? {
        return Ok(());
    }
    let debug = UML_DEBUG.build()?;
    guest("uml-debug", &debug, |initramfs, _| {
        let mut steps = vec![Step::setup("places", PLACES)];
        steps.extend(rwf_detach::selftest(initramfs, &debug, 1, "")?);
        steps.extend(pages::senders(&debug, UML_DEBUG.arch, initramfs)?);
        steps.push(leaks::none());
        steps.push(leaks::control(initramfs, &debug)?);
        Ok(steps)
    })
}

/// The directories for images of filesystems, and a namespace.
const PLACES: &str = "
mkdir -p /work /fs
mount -t tmpfs -o size=2g none /work
ip netns add peer
ip -n peer link set lo up
";

/// Puts the kernel module, and its tests, into the initramfs; returns how to run them beside the
/// series.
fn module(
    kernel: &Kernel,
    initramfs: &mut Initramfs,
    directory: &Path,
) -> anyhow::Result<Vec<Step>> {
    let copy = directory.join("module");
    std::fs::create_dir(&copy)?;
    let module = stock::build(&kernel.build, UML_PLAIN.arch, &copy)?;
    initramfs.copy(&module, stock::MODULE, 0o644);
    let built = cargo::programs(&["build", "--release", "--package", "kernel-tests"])?;
    initramfs.program(&cargo::program(&built, "kernel-tests")?.path, "/usr/bin/kernel-tests")?;
    let command = ["/usr/bin/kernel-tests", "--module", stock::MODULE, "--rounds", "5"];
    Ok(vec![Step::new("module", command).env(series::REQUIRED, "1").seconds(300)])
}

fn guest(
    label: &str,
    kernel: &Kernel,
    more: impl FnOnce(&mut Initramfs, &Path) -> anyhow::Result<Vec<Step>>,
) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let mut initramfs = super::initramfs()?;
    let mut steps = vec![Step::setup("network", "ip link set lo up")];
    steps.extend(series::steps(&mut initramfs, kernel)?);
    steps.extend(series::users(&mut initramfs, directory.path())?);
    steps.extend(more(&mut initramfs, directory.path())?);
    initramfs.plan(&Plan { modules: Vec::new(), steps })?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;

    let mut command = Command::new(&kernel.image);
    // The directories of the guest's memory, and of its control socket.
    command.env("TMPDIR", directory.path()).env("HOME", directory.path());
    command.arg("mem=1536M").arg(format!("initrd={}", archive.display()));
    command.args(["con=null", "con0=null,fd:1", "console=tty0", "panic=-1", "oops=panic"]);
    command.args(["printk.devkmsg=on", "log_buf_len=4M"]);
    let outcome = console::follow(&mut command, label, Duration::from_secs(3600))
        .context("user-mode Linux")?;
    outcome.verdict()
}
