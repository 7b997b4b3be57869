//! `guest run`: what makes programs safe from outside, and the servers, on kernels that others run.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use sendfile2_guest::{Plan, Step};

use super::cargo::{self, Program};
use super::initramfs::Initramfs;
use super::nic::scratch;
use super::qemu::{Disk, Machine, Network};
use super::{Stock, cache};

/// `sendfile2 run`, the preload shim, the HTTP server and the cache, on a stock kernel of Debian's
///
/// The tests of these, one program of tests after another. What the programs in the guest lack is
/// skipped, and said.
///
/// Exits 0 if all tests passed; 1 if not.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Version of the kernel
    #[arg(long, default_value = "6.12", value_parser = ["6.12", "6.1"])]
    kernel: String,
    /// Only the tests whose steps' names contain this
    #[arg(long)]
    only: Option<String>,
    /// Only the tests whose own names contain this
    #[arg(long, default_value = "")]
    test: String,
}

/// The packages whose tests are run.
const PACKAGES: [&str; 5] =
    ["sendfile2-cli", "sendfile2-preload", "sendfile2-axum", "sendfile2-server", "sendfile2-cache"];

/// The commands that the tests run.
const COMMANDS: [&str; 2] = ["sendfile2", "sendfile2-server"];

/// The programs of tests that are run.
const TESTS: [&str; 14] = [
    "cli-run",
    "preload-preload",
    "axum-serve",
    "axum-content",
    "axum-ending",
    "axum-leases",
    "server-serve",
    "server-cache",
    "cache-store",
    "cache-answers",
    "cache-ranges",
    "cache-large",
    "cache-faults",
    "cache-kill",
];

/// Programs that tests run, if they are here, where the tests look for them; `objdump` reads the shim's
/// symbols.
const PROGRAMS: [&str; 9] = [
    "/usr/sbin/nginx",
    "/usr/sbin/haproxy",
    "/usr/bin/caddy",
    "/usr/bin/curl",
    "/usr/bin/h2load",
    "/usr/bin/objdump",
    "/usr/bin/openssl",
    PYTHON,
    "/usr/bin/strace",
];

/// Debian's Python.
const PYTHON: &str = "/usr/bin/python3";

/// The places of files that these programs need.
const FILES: [&str; 2] = ["/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf"];

/// The place of what the tests compile, in the guest, and the variable that says so.
const COMPILED: &str = "/compiled";
const VARIABLE: &str = "SENDFILE2_TEST_COMPILED";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let stock = Stock::of(&format!("{}.", args.kernel))?;
    let disk = Disk::new(3 << 30)?;
    let mut initramfs = super::initramfs()?;
    let modules = initramfs
        .modules(&stock.modules, &["virtio_pci", "virtio_blk", "overlay", "loop", "tls"])?;
    let mut words = vec!["test", "--no-run"];
    words.extend(PACKAGES.iter().flat_map(|package| ["--package", package]));
    let (mut tests, programs): (Vec<_>, Vec<_>) =
        cargo::programs(&words)?.into_iter().partition(|program| program.test);
    tests.retain(|test| TESTS.contains(&&*test.name));
    tests.sort_by_key(|test| TESTS.iter().position(|name| *name == test.name));
    if let Some(part) = &args.only {
        tests.retain(|test| test.name.contains(part.as_str()));
    }
    let compiled = tempfile::tempdir()?;
    for test in &tests {
        initramfs.program(&test.path, &format!("/tests/{}", test.name))?;
        compile(test, compiled.path())?;
    }
    // The tests know the programs that they run by their paths.
    for program in programs.iter().filter(|program| COMMANDS.contains(&&*program.name)) {
        let at = program.path.to_str().context("a strange target directory")?;
        initramfs.program(&program.path, at)?;
    }
    initramfs.tree(compiled.path(), COMPILED)?;
    for program in PROGRAMS.iter().filter(|program| Path::new(program).exists()) {
        initramfs.program(Path::new(program), program)?;
    }
    for file in FILES.iter().map(Path::new).filter(|file| file.exists()) {
        initramfs.copy(file, file.to_str().context("a strange name")?, 0o644);
    }
    python(&mut initramfs)?;
    let loader = format!("/lib/ld-musl-{}.so.1", std::env::consts::ARCH);
    if Path::new(&loader).exists() {
        initramfs.copy(Path::new(&loader), &loader, 0o755);
    }
    let steps = steps(args, &tests, &scratch(&tests)?);
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "run",
        kernel: &stock.image,
        initramfs: &archive,
        disk: Some(&disk),
        mebibytes: 3072,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(3600),
    }
    .run()?;
    for step in &outcome.steps {
        println!("  {:32} {:>6} s  {}", step.name, step.millis / 1000, step.end);
        for line in step.lines.iter().filter(|line| line.contains("SKIP: ")) {
            println!("    {line}");
        }
    }
    outcome.verdict()
}

/// Lets a program of tests compile what it needs in the guest.
fn compile(test: &Program, into: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(&test.path);
    command.args(["--ignored", "--exact", "--nocapture", "compiled_for_a_guest"]);
    cache::run(command.env(VARIABLE, into), "it compiles what the guest needs")
}

/// Adds the library of Debian's Python, if it is here.
fn python(initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let mut command = Command::new(PYTHON);
    command.args(["-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]);
    let Ok(output) = command.output() else { return Ok(()) };
    ensure!(output.status.success(), "{PYTHON} does not run");
    let library = String::from_utf8(output.stdout)?.trim().to_owned();
    initramfs.tree(Path::new(&library), &library)
}

fn steps(args: &Args, tests: &[Program], scratch: &str) -> Vec<Step> {
    let mut steps = vec![
        Step::setup("network", "ip link set lo up"),
        Step::setup("disk", format!("mkdir -p {scratch}\nmount -t ext4 /dev/vda {scratch}")),
    ];
    for test in tests {
        let program = format!("/tests/{}", test.name);
        let words = [&*program, "--nocapture", "--test-threads=1", &args.test];
        steps.push(Step::new(&test.name, words).env(VARIABLE, COMPILED).seconds(1200));
    }
    steps
}
