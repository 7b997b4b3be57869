//! `guest stock`: the module on Debian's stock kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use sendfile2_guest::{Plan, Step};

use super::initramfs::Initramfs;
use super::kernel::Arch;
use super::qemu::{Machine, Network};
use super::{NETWORK, Stock, cache, cargo};

/// The kernel module on Debian's stock kernel: its tests, and unloading under load
///
/// Builds the module with the kernel's own headers, which are downloaded.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Times that each race is tried
    #[arg(long, default_value_t = 200)]
    rounds: u32,
    /// Only the tests whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

/// The path of the module in the guest.
pub(super) const MODULE: &str = "/lib/modules/sendfile2.ko";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let stock = Stock::new()?;
    let mut initramfs = super::initramfs()?;
    module(&stock, &mut initramfs)?;
    let modules = initramfs.modules(&stock.modules, &["vmxnet3", "sch_netem", "sch_tbf", "tls"])?;
    let built = cargo::programs(&["build", "--release", "--package", "kernel-tests"])?;
    let program = &cargo::program(&built, "kernel-tests")?.path;
    initramfs.program(program, "/usr/bin/kernel-tests")?;
    let rounds = args.rounds.to_string();
    let command =
        ["/usr/bin/kernel-tests", "--module", MODULE, "--rounds", &rounds, "--only", &args.only];
    let steps = vec![Step::setup("network", NETWORK), Step::new("module", command).seconds(1500)];
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "stock",
        kernel: &stock.image,
        initramfs: &archive,
        disk: None,
        mebibytes: 1024,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(1800),
    }
    .run()?;
    outcome.verdict()
}

/// Builds the module for this kernel, and puts it where [`MODULE`] says.
pub(super) fn module(stock: &Stock, initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let copy = tempfile::tempdir()?;
    let module = build(&headers(&stock.release)?, Arch::X86, copy.path())?;
    initramfs.text(MODULE, std::fs::read(&module)?, 0o644);
    Ok(())
}

/// Finds the tree that modules for this kernel are built with.
pub(super) fn headers(release: &str) -> anyhow::Result<PathBuf> {
    // 6.12.9+deb12-cloud-amd64
    let (version, _) = release.split_once("-cloud").context("a strange name of a kernel")?;
    let packages = [
        format!("linux-headers-{release}"),
        format!("linux-headers-{version}-common"),
        format!("linux-kbuild-{version}"),
    ];
    let tree = format!("usr/src/linux-headers-{release}");
    let root = cache::together(&format!("linux-headers-{release}"), &packages, |new, at| {
        // The Makefile names the other package's files by where they would be installed.
        let makefile = new.join(&tree).join("Makefile");
        let text = std::fs::read_to_string(&makefile).context("Makefile")?;
        let sources = format!("{}/usr/src/", at.display());
        ensure!(text.contains("/usr/src/"), "the headers are laid out in another way");
        std::fs::write(&makefile, text.replace("/usr/src/", &sources))?;
        // With it, type information would be made for the module, which needs pahole.
        let _ = std::fs::remove_file(new.join(&tree).join("vmlinux"));
        Ok(())
    })?;
    Ok(root.join(tree))
}

/// Builds the module in a copy of its source; returns where it is.
pub(super) fn build(kernel: &Path, arch: Arch, copy: &Path) -> anyhow::Result<PathBuf> {
    built(kernel, arch, "kernel/module", "sendfile2.ko", copy)
}

/// Builds the module of a directory in a copy of it; returns where it is.
pub(super) fn built(
    kernel: &Path,
    arch: Arch,
    directory: &str,
    module: &str,
    copy: &Path,
) -> anyhow::Result<PathBuf> {
    let source = crate::root()?.join(directory);
    for entry in std::fs::read_dir(&source).with_context(|| source.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(copy).arg(format!("KDIR={}", kernel.display())).arg("modules");
    make.arg(format!("ARCH={}", arch.name()));
    cache::run(&mut make, "the module is built by make and gcc")?;
    Ok(copy.join(module))
}
