//! `guest rwf-detach`: the series that lets a write detach, on each filesystem that can.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use sendfile2_guest::{Plan, Step};

use super::initramfs::{Initramfs, find};
use super::kernel::{self, DETACH, DETACH_COUNT, Kernel};
use super::patches::DETACH as SERIES;
use super::qemu::{Disk, Machine, Network};
use super::{cache, cargo, nic};

/// `RWF_DETACH` of `pwritev2(2)`, on two processors, with KASAN and lockdep, on ext4, XFS and btrfs
///
/// Builds a kernel, some twelve minutes on two processors, which the cache keeps until the series or
/// the configuration changes. The series' selftest runs on each filesystem: whoever sends while
/// others overwrite, a model, stores through mappings; then the filesystem is checked.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only check the patches: checkpatch, and compiling what they touch after each; no guest
    #[arg(long)]
    pub(super) compile: bool,
    /// Count the instructions of writes, on a kernel without such checks
    #[arg(long, conflicts_with_all = ["compile", "seconds", "only"])]
    count: bool,
    /// Seconds of each race
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Only the filesystems whose names contain this
    #[arg(long, default_value = "")]
    only: String,
}

/// A filesystem, made and mounted in one of the ways that take other paths through the kernel.
struct Kind {
    name: &'static str,
    maker: &'static str,
    make: &'static str,
    mount: &'static str,
    check: &'static str,
}

impl Kind {
    const fn new(name: &'static str, [maker, make, mount, check]: [&'static str; 4]) -> Self {
        Kind { name, maker, make, mount, check }
    }

    /// Returns the line that makes and mounts it.
    fn made(&self) -> String {
        let Kind { maker, make, mount, .. } = self;
        format!(
            "truncate -s 512M /work/image\n{maker} {make} /work/image\n\
             mount -o {mount} /work/image /fs\nchmod 1777 /fs"
        )
    }
}

const KINDS: [Kind; 9] = [
    Kind::new("ext4", ["mkfs.ext4", "-q", "loop", "e2fsck -fn"]),
    Kind::new("ext4, 1 KiB", ["mkfs.ext4", "-q -b 1024", "loop", "e2fsck -fn"]),
    Kind::new("ext4, inline", ["mkfs.ext4", "-q -I 512 -O inline_data", "loop", "e2fsck -fn"]),
    Kind::new("ext4, allocated at once", ["mkfs.ext4", "-q", "loop,nodelalloc", "e2fsck -fn"]),
    Kind::new("xfs", ["mkfs.xfs", "-q", "loop", "xfs_repair -n"]),
    Kind::new("xfs, 1 KiB", ["mkfs.xfs", "-q -b size=1024", "loop", "xfs_repair -n"]),
    Kind::new("btrfs", ["mkfs.btrfs", "-q", "loop", "btrfs check"]),
    Kind::new("btrfs, in place", ["mkfs.btrfs", "-q", "loop,nodatacow", "btrfs check"]),
    Kind::new("btrfs, compressed", ["mkfs.btrfs", "-q", "loop,compress-force", "btrfs check"]),
];

/// Those of which writes are counted.
const COUNTED: [&str; 3] = ["ext4", "xfs", "btrfs"];

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    kernel::checkpatch(SERIES)?;
    if args.compile {
        return kernel::each(&DETACH, &[]);
    }
    if args.count {
        return count();
    }
    let kernel = DETACH.build()?;
    let directory = tempfile::tempdir()?;
    let disk = Disk::new(4 << 30)?;
    let mut initramfs = super::initramfs()?;
    let mut steps = vec![Step::setup(
        "disk",
        "ip link set lo up\nmkdir -p /work /fs\nmount -t ext4 /dev/vda /work",
    )];
    steps.extend(selftest(&mut initramfs, &kernel, args.seconds, &args.only)?);
    steps.extend(library(&mut initramfs)?);
    initramfs.plan(&Plan { modules: Vec::new(), steps })?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "rwf-detach",
        kernel: &kernel.image,
        initramfs: &archive,
        disk: Some(&disk),
        mebibytes: 2048,
        processors: 2,
        network: Network::E1000e,
        deterministic: false,
        // On a busy host the timer is late, and the kernel takes it for one that does not work.
        append: "no_timer_check",
        patience: Duration::from_secs(5400),
    }
    .run()?;
    outcome.verdict()
}

/// Puts the series' selftest into the initramfs; returns how to run it on each filesystem whose name
/// contains `only`, with its image in /work, mounted at /fs.
pub(super) fn selftest(
    initramfs: &mut Initramfs,
    kernel: &Kernel,
    seconds: u64,
    only: &str,
) -> anyhow::Result<Vec<Step>> {
    let test = kernel.build.join("rwf_detach");
    compile(kernel, &test)?;
    initramfs.program(&test, "/tests/rwf_detach")?;
    let mut steps = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.name.contains(only)) {
        let checker = kind.check.split(' ').next().unwrap_or_default();
        if !add(initramfs, kind.maker)? || !add(initramfs, checker)? {
            println!("SKIP: {}: {} or {checker} is missing", kind.name, kind.maker);
            continue;
        }
        steps.extend(on(kind, seconds));
    }
    Ok(steps)
}

/// Counts the instructions of writes. The disk is a file in memory: a disk's answers come in the
/// host's time.
fn count() -> anyhow::Result<()> {
    let kernel = DETACH_COUNT.build()?;
    let directory = tempfile::tempdir()?;
    let mut initramfs = super::initramfs()?;
    let built = cargo::programs(&["build", "--release", "--package", "sendfile2-guest"])?;
    let program = &cargo::program(&built, "guest-writes")?.path;
    initramfs.program(program, "/usr/bin/guest-writes")?;
    let mut steps = vec![Step::setup("disk", "mkdir -p /work /fs\nmount -t tmpfs none /work")];
    for kind in KINDS.iter().filter(|kind| COUNTED.contains(&kind.name)) {
        if !add(&mut initramfs, kind.maker)? {
            println!("SKIP: {}: {} is missing", kind.name, kind.maker);
            continue;
        }
        steps.push(Step::setup(format!("{}: made", kind.name), kind.made()).seconds(3600));
        let words = ["/usr/bin/guest-writes", "/fs", kind.name];
        steps.push(Step::new(kind.name, words).seconds(36_000));
        steps.push(Step::setup("gone", "umount /fs\nrm /work/image").seconds(3600));
    }
    initramfs.plan(&Plan { modules: Vec::new(), steps })?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "count",
        kernel: &kernel.image,
        initramfs: &archive,
        disk: None,
        mebibytes: 2048,
        processors: 1,
        network: Network::E1000e,
        deterministic: true,
        append: "",
        patience: Duration::from_secs(3600),
    }
    .run()?;
    outcome.verdict()
}

/// Returns the steps on a filesystem: made, tested as root and as a user, taken away, checked.
fn on(kind: &Kind, seconds: u64) -> Vec<Step> {
    let Kind { name, check, .. } = kind;
    let gone = format!("umount /fs\n{check} /work/image\nrm /work/image");
    let long = seconds.to_string();
    let test = |name: String, seconds: &str| {
        Step::new(name, ["/tests/rwf_detach", "-s", seconds, "/fs"]).seconds(900)
    };
    vec![
        Step::setup(format!("{name}: made"), kind.made()).seconds(600),
        test((*name).to_owned(), &long),
        test(format!("{name}, as a user"), "1").ordinary(),
        Step::setup(format!("{name}: checked"), gone).seconds(600),
    ]
}

/// Puts the library's test that it finds the flag, and uses it, into the initramfs; returns how to
/// run it. That nothing in flight changes, the selftest shows faster.
fn library(initramfs: &mut Initramfs) -> anyhow::Result<Vec<Step>> {
    let words = ["test", "--no-run", "--package", "sendfile2", "--test", "uncontrolled"];
    let tests = cargo::programs(&words)?;
    for kind in &KINDS {
        add(initramfs, kind.maker)?;
    }
    let at = "/tests/uncontrolled";
    initramfs.program(&cargo::program(&tests, "uncontrolled")?.path, at)?;
    let scratch = nic::scratch(&tests)?;
    let place = format!("mkdir -p {scratch}\nmount --bind /work {scratch}");
    Ok(vec![
        Step::setup("scratch", place),
        Step::new("the library", [at, "--nocapture", "where_the_kernel_detaches"]).seconds(1800),
    ])
}

/// Adds a program of Debian's; returns whether it is here.
fn add(initramfs: &mut Initramfs, name: &str) -> anyhow::Result<bool> {
    let Some(path) = find(name) else { return Ok(false) };
    let at = path.to_str().context("a tool with a strange name")?;
    initramfs.program(&path, at)?;
    Ok(true)
}

/// Compiles the selftest that the series brings.
fn compile(kernel: &Kernel, to: &Path) -> anyhow::Result<()> {
    let source = kernel.tree.join("tools/testing/selftests/filesystems/rwf_detach.c");
    let mut command = Command::new("cc");
    command.args(["-O2", "-Wall", "-Werror", "-pthread", "-o"]).arg(to).arg(source);
    cache::run(&mut command, "the series' selftest is compiled")
}
