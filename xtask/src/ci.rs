//! `cargo xtask ci`: all that must hold before a change lands, step by step.
//!
//! `.ci/run` and the workflows in `.github` run these steps; what a machine lacks, `.ci/run`
//! installs. A step that cannot run says so in a line `SKIP: reason`, and all such lines are
//! printed again at the end.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use crate::guest::cache;
use crate::packages::Packages;
use crate::rust::{MUSL, Toolchain};

/// Run the steps of continuous integration, all of them if none is named
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The steps to run, in this order
    #[arg(value_enum)]
    steps: Vec<Step>,
}

/// A part of what must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// cargo fmt --check
    Format,
    /// clippy without warnings
    Lints,
    /// The library's modules: no arrow up, no circle, no long file
    Layers,
    /// The README's test command
    Tests,
    /// The lease table by loom, over the interleavings of its threads
    Loom,
    /// The parts that do no I/O by Miri, which sees undefined behaviour
    Miri,
    /// rustdoc without warnings
    Docs,
    /// The packages for crates.io: what is in them, their examples and their links
    Packages,
    /// The demo
    Demo,
    /// Torture of each engine for some seconds, and its control
    Torture,
    /// checkpatch on the kernel module
    KernelStyle,
    /// The module, and a network device that makes zero copy true, on a stock kernel in a guest
    Guests,
    /// The fuzz targets still compile
    Fuzz,
    /// The Python wheel: built, installed in a venv of its own, its types and tests
    Python,
    /// The oldest Rust that is promised
    Msrv,
    /// Other targets: musl (with tests), aarch64, 32 bits
    Targets,
    /// Every combination of the library's features
    Features,
    /// The libraries' public interfaces are those of docs/api
    Api,
    /// Licences, sources and advisories of dependencies
    Dependencies,
    /// The patch series, in kernels of its own
    Series,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let steps = if args.steps.is_empty() { Step::value_variants() } else { &args.steps };
    let mut ci = Ci { root: crate::root()?, target: target()?, skips: BTreeSet::new() };
    let began = Instant::now();
    for step in steps {
        let value = step.to_possible_value().context("a step without a name")?;
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        println!("\n==> {}: {help} (after {} s)", value.get_name(), began.elapsed().as_secs());
        ci.step(*step).with_context(|| format!("the step {} failed", value.get_name()))?;
    }
    println!("\n==> done after {} s", began.elapsed().as_secs());
    for reason in &ci.skips {
        println!("SKIPPED: {reason}");
    }
    Ok(())
}

struct Ci {
    root: PathBuf,
    target: PathBuf,
    skips: BTreeSet<String>,
}

impl Ci {
    fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Format => self.cargo("fmt --all --check"),
            Step::Lints => {
                self.cargo("clippy --workspace --all-targets -- -D warnings")?;
                // The target that only `cargo bench` builds.
                let bench = "clippy -p sendfile2-bench --features criterion --bench core";
                self.cargo(&format!("{bench} -- -D warnings"))
            }
            Step::Layers => self.cargo("xtask layers"),
            Step::Tests => self.tests(),
            Step::Loom => self.loom(),
            Step::Miri => self.miri(),
            Step::Docs => {
                let mut doc = self.command("cargo", "doc --workspace --no-deps");
                show(doc.env("RUSTDOCFLAGS", "-D warnings"))
            }
            Step::Packages => self.packages(),
            Step::Demo => self.cargo("run --release -- demo --json"),
            Step::Torture => self.torture(),
            Step::KernelStyle => self.kernel_style(),
            Step::Guests => self.guests(),
            Step::Fuzz => self.cargo("check --manifest-path fuzz/Cargo.toml"),
            Step::Python => self.python(),
            Step::Msrv => self.msrv(),
            Step::Targets => self.targets(),
            Step::Features => self.features(),
            Step::Api => self.watch(&mut self.command("cargo", "xtask api --check")),
            Step::Dependencies => self.dependencies(),
            Step::Series => self.series(),
        }
    }

    fn skip(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        println!("SKIP: {reason}");
        self.skips.insert(reason);
    }

    /// Makes a command in the checkout; its arguments are separated by blanks.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).args(arguments.split_whitespace()).stdin(Stdio::null());
        command
    }

    fn cargo(&self, arguments: &str) -> anyhow::Result<()> {
        show(&mut self.command("cargo", arguments))
    }

    /// Runs a command, shows what it prints, and keeps the reasons of what it skipped.
    fn watch(&mut self, command: &mut Command) -> anyhow::Result<()> {
        announce(command);
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let mut child = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
        // Or the pipe would not end.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut lines = BufReader::new(std::fs::File::from(reader));
        let mut line = Vec::new();
        let mut out = std::io::stdout();
        while lines.read_until(b'\n', &mut line)? > 0 {
            out.write_all(&line)?;
            let text = String::from_utf8_lossy(&line);
            if let Some((_, reason)) = text.split_once("SKIP: ") {
                self.skips.insert(reason.trim_end().to_owned());
            }
            line.clear();
        }
        let status = child.wait()?;
        ensure!(status.success(), "{:?}: {status}", command.get_program());
        Ok(())
    }

    /// Runs the tests by the README's command. What a test prints is shown, so that no test is
    /// skipped in silence.
    fn tests(&mut self) -> anyhow::Result<()> {
        let readme = std::fs::read_to_string(self.root.join("README.md"))?;
        let line = readme.lines().find_map(|line| line.trim().strip_prefix("cargo test"));
        let line = line.context("README.md has no line that begins with `cargo test`")?;
        let arguments = line.split('#').next().unwrap_or_default();
        let mut test = self.command("cargo", &format!("test {arguments}"));
        self.watch(test.env("RUST_TEST_NOCAPTURE", "1"))
    }

    fn packages(&self) -> anyhow::Result<()> {
        let packages = Packages::unpack(&self.root, &self.target, show)?;
        packages.check_files()?;
        for mut check in packages.checks() {
            show(&mut check)?;
        }
        show(&mut packages.docs())?;
        packages.check_docs()
    }

    fn loom(&self) -> anyhow::Result<()> {
        let arguments = "test --release -p sendfile2 --lib guard::table::tests::model";
        let mut test = self.command("cargo", arguments);
        test.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", self.target.join("loom"));
        show(&mut test)
    }

    /// Runs the tests of what does no I/O by Miri, of which the rest knows too few system calls.
    fn miri(&mut self) -> anyhow::Result<()> {
        let nightly = "run nightly cargo miri";
        let mut ask = self.command("rustup", &format!("{nightly} --version"));
        if !ask.output().is_ok_and(|output| output.status.success()) {
            self.skip("Miri: rustup has no nightly Rust with the components miri and rust-src");
            return Ok(());
        }
        for (package, tests) in [
            ("sendfile2-sys", "ledger:: op_table:: recover::"),
            ("sendfile2", "guard::table:: guard::intervals:: policy::"),
        ] {
            let mut test =
                self.command("rustup", &format!("{nightly} test -p {package} --lib -- {tests}"));
            // It is slow. proptest asks for the working directory; what may be in flight is leaked.
            test.env("PROPTEST_CASES", "4")
                .env("MIRIFLAGS", "-Zmiri-disable-isolation -Zmiri-ignore-leaks");
            self.watch(test.env("CARGO_TARGET_DIR", self.target.join("miri")))?;
        }
        Ok(())
    }

    fn torture(&mut self) -> anyhow::Result<()> {
        self.cargo("build --release")?;
        let program = self.target.join("release/sendfile2");
        let torture = |arguments: &str| {
            show(&mut self.command(&program, &format!("torture --json {arguments}")))
        };
        torture("--engine zerocopy --duration 20s --faults all")?;
        torture("--engine auto --duration 10s")?;
        torture("--engine zerocopy --duration 10s --overwrite wait")?;
        torture("--engine sendfile --duration 5s --overwrite in-place")?;
        // Of a file beside the one that is tortured.
        let mut probe = self.command(&program, "probe --json --file Cargo.toml");
        let probe = probe.stderr(Stdio::inherit()).output()?;
        let probe: serde_json::Value = serde_json::from_slice(&probe.stdout)?;
        let engines = probe["engines"].as_array().context("probe names no engines")?;
        let uring = engines.iter().find(|engine| engine["engine"] == "uring");
        let uring = uring.context("probe says nothing of the engine uring")?;
        let detaches = &probe["file"]["detaches"];
        let mut skipped = Vec::new();
        if uring["state"] == "available" {
            torture("--engine uring --duration 10s")?;
        } else {
            skipped.push(format!("torture of the engine uring: {uring}"));
        }
        if detaches["state"] == "yes" {
            torture("--engine sendfile --duration 10s --faults all")?;
        } else {
            skipped.push(format!("torture of the engine sendfile: {}", detaches["why"]));
        }
        skipped.into_iter().for_each(|reason| self.skip(reason));
        Ok(())
    }

    fn kernel_style(&mut self) -> anyhow::Result<()> {
        let checkpatch = cache::directory()?.join("checkpatch/checkpatch.pl");
        if !checkpatch.exists() || !have("perl") {
            self.skip("the style of the kernel module: perl or checkpatch.pl is missing");
            return Ok(());
        }
        let mut perl = self.command("perl", "");
        perl.arg(checkpatch).args(["--no-tree", "--strict", "--quiet", "--file"]);
        perl.args(
            ["sendfile2.c", "sendfile2_module.h", "Makefile"].map(|f| format!("kernel/module/{f}")),
        );
        perl.args(["sendfile2_pages.c", "Makefile"].map(|f| format!("kernel/pages/{f}")));
        show(&mut perl)
    }

    /// Returns whether one of these programs is missing; then skips `what`.
    fn lacks(&mut self, what: &str, programs: &[&str]) -> bool {
        let lacking: Vec<_> = programs.iter().copied().filter(|p| !have(p)).collect();
        if !lacking.is_empty() {
            self.skip(format!("{what}: this machine lacks {}", lacking.join(" ")));
        }
        !lacking.is_empty()
    }

    fn guests(&mut self) -> anyhow::Result<()> {
        let needs = ["qemu-system-x86_64", "mkfs.ext4", "depmod", "make", "apt-get"];
        if self.lacks("guests", &needs) {
            return Ok(());
        }
        self.cargo("xtask guest stock --rounds 20")?;
        if !self.lacks("guest pages", &["nft", "wg"]) {
            self.cargo("xtask guest pages")?;
        }
        self.cargo("xtask guest nic --short")?;
        self.cargo("xtask guest detach --short")
    }

    fn series(&mut self) -> anyhow::Result<()> {
        let needs =
            ["make", "gcc", "flex", "bison", "bc", "patch", "xz", "perl", "strip", "apt-get"];
        let for_guests = ["insmod", "mkfs.ext4", "losetup"];
        let needs = [&needs[..], &for_guests].concat();
        if self.lacks("the patch series", &needs) {
            return Ok(());
        }
        let mut uml = self.command("cargo", "xtask guest uml --cached");
        self.watch(&mut uml)?;
        if !self.lacks("the patch series for arm64", &["aarch64-linux-gnu-gcc", "readelf"]) {
            self.cargo("xtask guest arm64")?;
        }
        // Its kernel takes a quarter of an hour, and its guest as long: by hand.
        self.cargo("xtask guest rwf-detach --compile")?;
        if !self.lacks("guest patched", &["qemu-system-x86_64"]) {
            let mut patched = self.command("cargo", "xtask guest patched --cached --short");
            self.watch(&mut patched)?;
        }
        Ok(())
    }

    /// Installs the wheel as its users do, and runs its tests.
    fn python(&mut self) -> anyhow::Result<()> {
        let mut venv = self.command("python3", "-c");
        if !venv.arg("import ensurepip").status().is_ok_and(|status| status.success()) {
            self.skip("the Python wheel: this machine lacks python3, or its module venv");
            return Ok(());
        }
        let manifest = "--manifest-path bindings/python/Cargo.toml";
        self.cargo(&format!("fmt {manifest} --check"))?;
        let target = self.target.join("python");
        let mut clippy = self.command("cargo", &format!("clippy {manifest} -- -D warnings"));
        show(clippy.env("CARGO_TARGET_DIR", &target))?;

        let venv = target.join("venv");
        show(self.command("python3", "-m venv --clear").arg(&venv))?;
        let python = venv.join("bin/python");
        let install = "-m pip install --quiet --disable-pip-version-check ./bindings/python[test]";
        let mut pip = self.command(&python, install);
        // Not optimised it is built in half the time.
        pip.env("MATURIN_PEP517_ARGS", "--profile dev").env("CARGO_TARGET_DIR", &target);
        show(&mut pip)?;
        let package = self.root.join("bindings/python");
        let cache = target.join("mypy");
        let mut types = self.command(&python, "-m mypy --strict python tests --cache-dir");
        show(types.arg(cache).current_dir(&package))?;
        let mut tests = self.command(&python, "-m pytest -p no:cacheprovider");
        self.watch(tests.env("PYTHONDONTWRITEBYTECODE", "1").current_dir(&package))
    }

    /// Checks that the oldest Rust that is promised compiles the library. Debian has old releases
    /// of Rust beside its own. The packages are only unpacked.
    fn msrv(&mut self) -> anyhow::Result<()> {
        let version = env!("CARGO_PKG_RUST_VERSION");
        let Some(rust) = Toolchain::debian(version)? else {
            self.skip(format!("Rust {version} not tried: no package rustc-web of it is offered"));
            return Ok(());
        };
        let mut check = rust.cargo(&self.root, &self.target.join("msrv"));
        show(check.args(["check", "--locked", "--workspace", "--lib", "--bins"]))
    }

    /// Checks the libraries for other targets; runs the tests where this machine can.
    fn targets(&mut self) -> anyhow::Result<()> {
        let libraries = "-p sendfile2-sys -p sendfile2 -p sendfile2-axum --all-features";
        for (triple, packages) in [
            ("aarch64-unknown-linux-gnu", libraries),
            ("aarch64-unknown-linux-musl", libraries),
            (
                "i686-unknown-linux-gnu",
                "-p sendfile2-sys -p sendfile2 --no-default-features \
                 --features sendfile2/native,sendfile2/tokio,sendfile2/tracing",
            ),
            (MUSL, "--workspace --lib --bins"),
        ] {
            self.for_target(triple, "check", packages)?;
        }
        if self.lacks("the tests for musl", &["musl-gcc"]) {
            return Ok(());
        }
        // Where cargo is told what to test, it builds no examples, which a test runs.
        self.for_target(MUSL, "build", "-p sendfile2 --all-features --examples")?;
        self.for_target(MUSL, "test", "-p sendfile2-sys -p sendfile2 --all-features --lib --tests")
    }

    /// Runs cargo for a target, with the standard library that is installed, or one that is built.
    fn for_target(&mut self, triple: &str, verb: &str, arguments: &str) -> anyhow::Result<()> {
        let mut ask = self.command("rustc", &format!("--print target-libdir --target {triple}"));
        let directory = String::from_utf8(ask.output()?.stdout)?;
        if Path::new(directory.trim()).is_dir() {
            return self.cargo(&format!("{verb} --target {triple} {arguments}"));
        }
        let version = env!("CARGO_PKG_RUST_VERSION");
        let Some(rust) = Toolchain::debian(version)? else {
            self.skip(format!("{triple} not tried: neither rustup nor Debian offers its library"));
            return Ok(());
        };
        let mut cargo = rust.cargo_for(triple, verb, &self.root, &self.target.join("targets"))?;
        self.watch(cargo.args(arguments.split_whitespace()))
    }

    fn features(&mut self) -> anyhow::Result<()> {
        if !have("cargo-hack") {
            self.cargo("install --locked cargo-hack --version ^0.6")?;
        }
        // A warning fails, which other flags than those of the other steps say: in a directory of
        // its own.
        let strict = |arguments: &str| {
            let mut cargo = self.command("cargo", arguments);
            cargo.env("RUSTFLAGS", "-D warnings");
            show(cargo.env("CARGO_TARGET_DIR", self.target.join("features")))
        };
        for package in ["sendfile2-sys", "sendfile2"] {
            let powerset = format!("hack check --feature-powerset --quiet -p {package}");
            strict(&format!("{powerset} --no-dev-deps"))?;
            strict(&format!("{powerset} --lib --profile test"))?;
        }
        // What a library without any says of itself, and all tests that need none.
        strict("check -p sendfile2 --no-default-features --all-targets")?;
        strict("test -p sendfile2 --no-default-features --lib --test features")
    }

    fn dependencies(&mut self) -> anyhow::Result<()> {
        if !have("cargo-deny") {
            self.cargo("install --locked cargo-deny --version ^0.20")?;
        }
        self.cargo("deny check bans licenses sources")?;
        let fetched = show(&mut self.command("timeout", "120 cargo deny fetch db"));
        match fetched {
            Ok(()) => self.cargo("deny check advisories"),
            Err(_) => {
                self.skip("advisories not checked: the RustSec database could not be fetched");
                Ok(())
            }
        }
    }
}

fn announce(command: &Command) {
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    let words: Vec<_> =
        std::iter::once(command.get_program().to_string_lossy()).chain(arguments).collect();
    println!("$ {}", words.join(" "));
}

fn show(command: &mut Command) -> anyhow::Result<()> {
    announce(command);
    let program = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("cannot run {program:?}"))?;
    if !status.success() {
        bail!("{program:?}: {status}");
    }
    Ok(())
}

fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(program).is_file())
}

fn target() -> anyhow::Result<PathBuf> {
    let root = crate::root()?;
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    Ok(set.map_or_else(|| root.join("target"), |target| Path::new(&root).join(target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workflow_has_every_step() {
        let path = crate::root().unwrap().join(".github/workflows/ci.yml");
        let workflow = std::fs::read_to_string(path).unwrap();
        let named: BTreeSet<&str> = workflow
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("step: ["))
            .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '-'))
            .collect();
        for step in Step::value_variants() {
            let value = step.to_possible_value().unwrap();
            assert!(named.contains(value.get_name()), "no job runs the step {}", value.get_name());
        }
    }
}
