//! What is handed out: Debian packages, static programs, the list of what is in them, checksums.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

use crate::guest::{cache, needs};
use crate::install;
use crate::rust::{self, MUSL};

/// Build what is handed out, in target/dist/files: Debian packages, static programs, an SBOM, checksums
///
/// For Debian on 64-bit PCs. It takes some minutes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install what is missing: Debian's packages, and Rust's library for static programs; for root
    #[arg(long)]
    install: bool,
    /// Try what was built in a clean Debian, made by debootstrap (packaging/try); for root
    #[arg(long = "try")]
    attempt: bool,
}

/// The Debian packages, and the static programs.
const BUILD: &[needs::Need] = &[
    ("dpkg-buildpackage", "dpkg-dev"),
    ("dh", "debhelper"),
    ("dh_dkms", "dh-dkms"),
    ("gcc", "gcc"),
    ("musl-gcc", "musl-tools"),
    ("strip", "binutils"),
    ("tar", "tar"),
    ("gzip", "gzip"),
];

/// The trial.
const TRY: &[needs::Need] =
    &[("debootstrap", "debootstrap"), ("lintian", "lintian"), ("python3", "python3")];

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The release of cargo-cyclonedx, which the makers of the format keep.
const SBOM: &str = "0.5.9";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Before minutes of building, not after.
    ensure!(cfg!(target_arch = "x86_64"), "it builds for x86_64 only, on such a machine");
    let needs: &[&[_]] = if args.attempt { &[BUILD, TRY] } else { &[BUILD] };
    needs::check("cargo xtask dist", needs, args.install)?;
    library(args.install)?;
    ensure!(
        !args.attempt || rustix::process::geteuid().is_root(),
        "--try is for root: it needs chroot"
    );

    let root = crate::root()?;
    let epoch = epoch(&root)?;
    // Beside what cargo's profile `dist` builds.
    let dist = root.join("target/dist/files");
    let dist = Dist { root, dist, epoch, began: Instant::now() };
    if dist.dist.exists() {
        std::fs::remove_dir_all(&dist.dist)?;
    }
    std::fs::create_dir_all(&dist.dist)?;
    dist.packages()?;
    dist.programs()?;
    dist.sbom()?;
    dist.step("checksums");
    dist.shell("sha256sum -- * > SHA256SUMS && cat SHA256SUMS")?;
    if args.attempt {
        dist.step("the trial in a clean Debian");
        let mut attempt = Command::new(dist.root.join("packaging/try"));
        cache::run(attempt.arg(&dist.dist), "what it says last failed")?;
    }
    dist.step(&format!("done: {}", dist.dist.display()));
    Ok(())
}

/// Fails unless Rust's standard library for static programs is there; with `install`, installs it.
fn library(install: bool) -> anyhow::Result<()> {
    if rust::library(MUSL)?.is_dir() {
        return Ok(());
    }
    ensure!(
        install,
        "cargo xtask dist needs Rust's library for {MUSL}, missing here: rustup target add {MUSL} \
         (or give --install)"
    );
    let mut rustup = Command::new("rustup");
    cache::run(rustup.args(["target", "add", MUSL]), "it installs Rust's library, from the network")
}

/// Returns the time that is written into what is built: of the last commit, if nobody says another.
fn epoch(root: &Path) -> anyhow::Result<String> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        ensure!(
            epoch.parse::<u64>().is_ok(),
            "SOURCE_DATE_EPOCH is no number of seconds: {epoch:?}"
        );
        return Ok(epoch);
    }
    let mut git = Command::new("git");
    let told = git.current_dir(root).args(["log", "-1", "--format=%ct"]).output();
    let told = told.ok().filter(|told| told.status.success());
    let told = told.context("no git and no SOURCE_DATE_EPOCH say what time this is built for")?;
    Ok(String::from_utf8(told.stdout)?.trim().to_owned())
}

struct Dist {
    root: PathBuf,
    /// The directory of what is handed out.
    dist: PathBuf,
    epoch: String,
    began: Instant,
}

impl Dist {
    fn step(&self, what: &str) {
        println!("==> {what} (after {} s)", self.began.elapsed().as_secs());
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root).env("SOURCE_DATE_EPOCH", &self.epoch);
        command
    }

    fn shell(&self, script: &str) -> anyhow::Result<()> {
        let mut shell = self.command("sh");
        cache::run(shell.args(["-euc", script]).current_dir(&self.dist), script)
    }

    /// Builds the Debian packages, of what `cargo xtask install` installs.
    fn packages(&self) -> anyhow::Result<()> {
        self.step("libraries, programs and pages");
        let work = self.dist.join("build/sendfile2");
        std::fs::create_dir_all(&work)?;
        install::run(&install::Args::packaged("/usr".into(), work.join("tree")))?;
        self.step("Debian packages");
        let log = std::fs::File::create(self.dist.join("build/log"))?;
        let mut build = self.command("bash");
        build.arg(self.root.join("packaging/debian/build")).arg(VERSION).current_dir(&work);
        build.env("ROOT", &self.root).stdout(log.try_clone()?).stderr(log);
        let hint = format!("its log is {}", self.dist.join("build/log").display());
        cache::run(&mut build, &hint)?;
        self.shell("mv build/*.deb . && rm -r build")
    }

    /// Builds the programs of the command, which need nothing of the machine they run on.
    fn programs(&self) -> anyhow::Result<()> {
        self.step("static programs");
        let target = self.root.join("target");
        let mut cargo = self.command("cargo");
        cargo
            .args(["build", "--release", "--locked", "--target", MUSL, "--target-dir"])
            .arg(&target);
        for (_, package) in install::COMMAND {
            cargo.args(["--package", package]);
        }
        cache::run(&mut cargo, "crates that are not here yet come from crates.io")?;
        let name = format!("sendfile2-{VERSION}-{MUSL}");
        let directory = self.dist.join(&name);
        std::fs::create_dir_all(&directory)?;
        for (program, _) in install::COMMAND {
            let built = target.join(MUSL).join("release").join(program);
            let mut strip = self.command("strip");
            cache::run(strip.arg("-o").arg(directory.join(program)).arg(built), "of binutils")?;
        }
        for file in [
            "LICENSE-MIT",
            "LICENSE-APACHE",
            "CHANGELOG.md",
            "crates/sendfile2-server/systemd/serve.toml",
        ] {
            let from = self.root.join(file);
            let to = directory.join(from.file_name().context("no file name")?);
            std::fs::copy(&from, to).context(file)?;
        }
        let tar = "tar --sort=name --owner=0 --group=0 --numeric-owner --mode=go-w,a+r";
        self.shell(&format!(
            "{tar} --mtime=@$SOURCE_DATE_EPOCH -c {name} | gzip -n9 > {name}.tar.gz && rm -r {name}"
        ))
    }

    /// Lists the crates that the programs and the libraries are made of.
    ///
    /// With the features of the whole workspace, as cargo resolves them for it: some more than are
    /// linked, none fewer. They are the same for glibc.
    fn sbom(&self) -> anyhow::Result<()> {
        self.step("SBOM");
        let tool = cache::directory()?.join(format!("cargo-cyclonedx-{SBOM}"));
        if !tool.exists() {
            cache::make(&tool, |new: &Path| {
                let mut install = Command::new("cargo");
                install.args(["install", "--locked", "cargo-cyclonedx", "--version", SBOM]);
                cache::run(install.arg("--root").arg(new), "it comes from crates.io")
            })?;
        }
        // It writes beside the manifest of each package of the workspace: of a copy, whose path is in
        // what it writes.
        self.shell(&format!(
            "mkdir build
            tar -C '{}' --exclude=target --exclude=.git -c . | tar -xC build",
            self.root.display()
        ))?;
        let copy = self.dist.join("build");
        let mut list = self.command("cargo");
        list.current_dir(&copy).args(["cyclonedx", "--quiet", "--format", "json"]);
        list.args(["--no-build-deps", "--target", MUSL, "--override-filename", "sbom"]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(tool.join("bin")).chain(std::env::split_paths(&path));
        cache::run(list.env("PATH", std::env::join_paths(paths)?), "it lists the dependencies")?;
        let handed_out = ["sendfile2-c", "sendfile2-preload", "msg_zerocopy"];
        for package in install::COMMAND.map(|(_, package)| package).into_iter().chain(handed_out) {
            let from = copy.join("crates").join(package).join("sbom.json");
            let text =
                std::fs::read_to_string(&from).with_context(|| from.display().to_string())?;
            let text = text.replace(&format!("file://{}", copy.display()), "file:///sendfile2");
            std::fs::write(self.dist.join(format!("{package}-{VERSION}.cdx.json")), text)?;
        }
        std::fs::remove_dir_all(copy)?;
        Ok(())
    }
}
