//! Kernels of our own: Debian's source, with the patch series or without, built for a guest.
//!
//! In the cache each kernel has a tree of its own, with its build inside: so make compiles only what
//! a change of the series or of the configuration touches. A mark says of which series and
//! configuration the build is.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::cache;
use super::patches::{DETACH as DETACH_SERIES, Patch, SERIES, UML, patches_in, series};

/// The package of the source.
const SOURCE: &str = "linux-source-6.12";
/// The directory of the fragments of configurations.
const CONFIG: &str = "kernel/config";

/// A kernel that can be built.
#[derive(Debug)]
pub(super) struct Recipe {
    /// The name of the kernel in the cache and in messages.
    pub(super) name: &'static str,
    /// The architecture, as make knows it.
    pub(super) arch: Arch,
    /// The patch series that the kernel has, by their directories.
    pub(super) series: &'static [&'static str],
    /// The fragments of its configuration, in `kernel/config`.
    pub(super) fragments: &'static [&'static str],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arch {
    Uml,
    X86,
    Arm64,
}

impl Arch {
    pub(super) fn name(self) -> &'static str {
        match self {
            Arch::Uml => "um",
            Arch::X86 => "x86_64",
            Arch::Arm64 => "arm64",
        }
    }

    /// Returns make's target, and the path of its result.
    fn target(self) -> (&'static str, &'static str) {
        match self {
            Arch::Uml => ("linux", "linux"),
            Arch::X86 => ("bzImage", "arch/x86/boot/bzImage"),
            Arch::Arm64 => ("Image", "arch/arm64/boot/Image"),
        }
    }

    /// Returns what the names of the compiler and its tools begin with.
    fn cross(self) -> &'static str {
        match self {
            Arch::Uml | Arch::X86 => "",
            Arch::Arm64 => "aarch64-linux-gnu-",
        }
    }
}

/// User-mode Linux with the series; it can load the kernel module beside it.
pub(super) const UML_PLAIN: Recipe = Recipe {
    name: "uml",
    arch: Arch::Uml,
    series: &[SERIES],
    fragments: &["common", "uml", "modules"],
};

/// User-mode Linux with both series, which checks itself.
pub(super) const UML_DEBUG: Recipe = Recipe {
    name: "uml-debug",
    arch: Arch::Uml,
    series: &[SERIES, DETACH_SERIES],
    fragments: &["common", "uml", "checks", "kmemleak", "leaks", "modules", "pages", "filesystems"],
};

/// A kernel for several processors, with the series, which checks itself.
pub(super) const PATCHED: Recipe = Recipe {
    name: "patched",
    arch: Arch::X86,
    series: &[SERIES],
    fragments: &["common", "x86", "checks", "x86-debug"],
};

/// A kernel for several processors, without the series, which checks itself; for the module.
pub(super) const DEBUG: Recipe = Recipe {
    name: "debug",
    arch: Arch::X86,
    series: &[],
    fragments: &["common", "x86", "checks", "x86-debug", "modules"],
};

/// A kernel for several processors, with `RWF_DETACH` and disks' filesystems, which checks itself.
pub(super) const DETACH: Recipe = Recipe {
    name: "detach",
    arch: Arch::X86,
    series: &[DETACH_SERIES],
    fragments: &["common", "x86", "checks", "x86-debug", "disk", "filesystems"],
};

/// The series for arm64, of which only parts are compiled: no guest runs it.
pub(super) const ARM64: Recipe =
    Recipe { name: "arm64", arch: Arch::Arm64, series: &[SERIES], fragments: &["common", "arm64"] };

/// The same as fast as it can be, to count the instructions of its writes.
pub(super) const DETACH_COUNT: Recipe = Recipe {
    name: "detach-count",
    arch: Arch::X86,
    series: &[DETACH_SERIES],
    fragments: &["common", "x86", "disk", "filesystems", "count"],
};

/// A kernel that is built.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: PathBuf,
    /// The source, with its patches.
    pub(super) tree: PathBuf,
    /// The directory that it was built in: for modules.
    pub(super) build: PathBuf,
}

impl Recipe {
    /// Builds the kernel, unless the cache has it.
    pub(super) fn build(&self) -> anyhow::Result<Kernel> {
        let source = Source::new()?;
        let kernel = self.kernel(&source, self.name);
        let (patches, config) = (self.patches()?, self.config()?);
        let from = made_from(&patches, &config);
        let cached = || {
            let cached = kernel.is_made_from(&from);
            if cached {
                println!("kernel {}: {} (from the cache)", self.name, kernel.build.display());
            }
            cached
        };
        if cached() {
            return Ok(kernel);
        }
        let _alone = lock()?;
        // Somebody else may have built it meanwhile.
        if cached() {
            return Ok(kernel);
        }
        println!(
            "kernel {}: building in {}: 3 to 8 minutes on two processors, less if it was built before",
            self.name,
            kernel.build.display()
        );
        source.sync(&kernel.tree, &patches)?;
        std::fs::create_dir_all(&kernel.build)?;
        let _ = std::fs::remove_file(kernel.mark());
        self.configure(&kernel, &config)?;
        make(&kernel, self.arch, &[self.arch.target().0])?;
        if config.contains("\nCONFIG_MODULES=y\n") {
            make(&kernel, self.arch, &["modules"])?;
        }
        std::fs::write(kernel.mark(), from)?;
        Ok(kernel)
    }

    /// Compiles what the kernel's series touches, and these objects, and links nothing; each warning
    /// is an error.
    pub(super) fn compile(&self, objects: &[&str]) -> anyhow::Result<Kernel> {
        let source = Source::new()?;
        let kernel = self.kernel(&source, self.name);
        let patches = self.patches()?;
        let _alone = lock()?;
        source.sync(&kernel.tree, &patches)?;
        self.some(&kernel, &touched(&patches), objects)?;
        Ok(kernel)
    }

    /// Configures a tree, and compiles some objects, each warning being an error.
    fn some(
        &self,
        kernel: &Kernel,
        touched: &BTreeSet<String>,
        more: &[&str],
    ) -> anyhow::Result<()> {
        std::fs::create_dir_all(&kernel.build)?;
        self.configure(kernel, &self.config()?)?;
        let mut all = vec!["KCFLAGS=-Werror"];
        all.extend(touched.iter().map(String::as_str));
        all.extend(more);
        make(kernel, self.arch, &all)
    }

    /// Returns whether the kernel was built before, so that [`build`](Self::build) compiles no more
    /// than what has changed since; else prints that it is skipped.
    pub(super) fn is_cached(&self) -> anyhow::Result<bool> {
        let source = Source::cached()?;
        let cached = source.is_some_and(|source| self.kernel(&source, self.name).image.exists());
        if !cached {
            println!(
                "SKIP: the kernel {} was never built here, which takes minutes: cargo xtask guest \
                 without --cached does",
                self.name
            );
        }
        Ok(cached)
    }

    fn patches(&self) -> anyhow::Result<Vec<Patch>> {
        let mut patches = Vec::new();
        for directory in self.series {
            patches.extend(series(directory)?);
        }
        if self.arch == Arch::Uml {
            patches.extend(patches_in(UML)?);
        }
        Ok(patches)
    }

    fn kernel(&self, source: &Source, name: &str) -> Kernel {
        let tree = PathBuf::from(format!("{}-{name}", source.pristine.display()));
        // Inside the tree, and named so, kbuild refers to the source by a relative path.
        let build = tree.join("build");
        Kernel { image: build.join(self.arch.target().1), tree, build }
    }

    fn config(&self) -> anyhow::Result<String> {
        let directory = crate::root()?.join(CONFIG);
        let mut config = String::new();
        for fragment in self.fragments {
            let path = directory.join(format!("{fragment}.config"));
            config += &read(&path)?;
        }
        Ok(config)
    }

    fn configure(&self, kernel: &Kernel, config: &str) -> anyhow::Result<()> {
        let asked = kernel.build.join("asked.config");
        std::fs::write(&asked, config)?;
        let variable = format!("KCONFIG_ALLCONFIG={}", asked.display());
        make(kernel, self.arch, &[&variable, "allnoconfig"])?;
        let missing = missing(config, &read(&kernel.build.join(".config"))?);
        ensure!(
            missing.is_empty(),
            "kernel {}: its configuration cannot have {}: see {CONFIG}",
            self.name,
            missing.join(", ")
        );
        Ok(())
    }
}

impl Kernel {
    /// Returns the path of a file that is written when all is done: its content identifies what the
    /// kernel was made from.
    fn mark(&self) -> PathBuf {
        self.build.join("made-from")
    }

    fn is_made_from(&self, what: &str) -> bool {
        std::fs::read_to_string(self.mark()).is_ok_and(|made| made == what)
    }
}

fn made_from(patches: &[Patch], config: &str) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(config.as_bytes());
    for patch in patches {
        hash.update(&patch.text);
    }
    hash.finalize().to_hex().to_string()
}

/// Returns the lines that were asked for and are not there.
fn missing<'a>(asked: &'a str, got: &str) -> Vec<&'a str> {
    let has = |line: &str| got.lines().any(|own| own == line);
    let mut missing = Vec::new();
    for line in asked.lines().map(str::trim) {
        let wanted = line.starts_with("CONFIG_") && !has(line);
        // An option that depends on one that is off is not mentioned at all.
        let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
        if wanted || unset.is_some_and(|name| has(&format!("{name}=y"))) {
            missing.push(line);
        }
    }
    missing
}

/// Compiles what the recipe's series touches, or these targets of make, after each of its patches.
pub(super) fn each(recipe: &Recipe, targets: &[&str]) -> anyhow::Result<()> {
    let source = Source::new()?;
    let series = recipe.patches()?;
    println!("compiling after each of {} patches: up to 10 minutes", series.len());
    let objects = if targets.is_empty() { touched(&series) } else { BTreeSet::new() };
    let _alone = lock()?;
    let kernel = recipe.kernel(&source, &format!("{}-each", recipe.name));
    for (last, patch) in series.iter().enumerate() {
        println!("{}", patch.name);
        source.sync(&kernel.tree, &series[..=last])?;
        recipe
            .some(&kernel, &objects, targets)
            .with_context(|| format!("{} does not compile", patch.name))?;
    }
    Ok(())
}

/// Returns the objects of the kernel's files that a series touches.
fn touched(series: &[Patch]) -> BTreeSet<String> {
    let files = series.iter().flat_map(Patch::files).filter_map(|file| file.strip_suffix(".c"));
    files.filter(|file| !file.starts_with("tools/")).map(|file| format!("{file}.o")).collect()
}

/// Checks that checkpatch finds nothing in any patch of a series.
pub(super) fn checkpatch(directory: &str) -> anyhow::Result<()> {
    let tree = Source::new()?.pristine;
    let mut said = String::new();
    let series = series(directory)?;
    for patch in &series {
        let output = Command::new(tree.join("scripts/checkpatch.pl"))
            .current_dir(&tree)
            .args(["--strict", "--quiet", "--no-summary"])
            .arg(&patch.path)
            .stdin(Stdio::null())
            .output()
            .context("cannot run checkpatch.pl")?;
        if !output.status.success() || !output.stdout.is_empty() {
            let text = String::from_utf8_lossy(&output.stdout);
            writeln!(said, "{}:\n{}", patch.name, text.trim())?;
        }
    }
    ensure!(said.is_empty(), "checkpatch.pl --strict is not content:\n{said}");
    println!("checkpatch --strict: nothing to say of {} patches", series.len());
    Ok(())
}

/// The source, as Debian has it, unpacked.
#[derive(Debug)]
struct Source {
    pristine: PathBuf,
}

impl Source {
    fn new() -> anyhow::Result<Self> {
        let package = cache::download(SOURCE)?;
        let source = Source::of(&package)?;
        if !source.pristine.exists() {
            println!("unpacking {}: half a minute, 1.7 GB", package.display());
            cache::make(&source.pristine, |new| unpack(&package, new))?;
        }
        Ok(source)
    }

    /// Finds the source that is there without a download.
    fn cached() -> anyhow::Result<Option<Self>> {
        let Ok(entries) = std::fs::read_dir(cache::directory()?.join("debs")) else {
            return Ok(None);
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(&format!("{SOURCE}_")) {
                let source = Source::of(&path)?;
                if source.pristine.exists() {
                    return Ok(Some(source));
                }
            }
        }
        Ok(None)
    }

    fn of(package: &Path) -> anyhow::Result<Self> {
        let file = package.file_name().and_then(|name| name.to_str()).context("no name")?;
        let version = file.split('_').nth(1).context("a package without a version")?;
        Ok(Source { pristine: cache::directory()?.join(format!("linux-{version}")) })
    }

    /// Makes a tree that is the source with these patches, of whatever is there. Files that are
    /// right already keep their times, and make what was made of them.
    fn sync(&self, tree: &Path, patches: &[Patch]) -> anyhow::Result<()> {
        if !tree.exists() {
            // A copy that shares its files: what changes one must replace it.
            let parent = tree.parent().context("no directory")?;
            let new = tempfile::Builder::new().prefix(".new-").tempdir_in(parent)?;
            let copy = new.path().join("copy");
            let mut command = Command::new("cp");
            command.arg("-al").arg(&self.pristine).arg(&copy);
            cache::run(&mut command, "a copy of the source")?;
            std::fs::rename(copy, tree)?;
        }
        // The files that differ from the source are remembered, to be undone.
        let list = tree.join("patched-files");
        let before = std::fs::read_to_string(&list).unwrap_or_default();
        let mut touched: BTreeSet<&str> = before.lines().collect();
        let now: BTreeSet<&str> = patches.iter().flat_map(Patch::files).collect();
        touched.extend(&now);
        std::fs::write(&list, touched.iter().map(|file| format!("{file}\n")).collect::<String>())?;

        let fresh = tempfile::tempdir()?;
        for file in &touched {
            let (from, to) = (self.pristine.join(file), fresh.path().join(file));
            std::fs::create_dir_all(to.parent().context("no directory")?)?;
            if from.exists() {
                std::fs::copy(&from, &to).with_context(|| from.display().to_string())?;
            }
        }
        patches.iter().try_for_each(|patch| patch.apply(fresh.path()))?;
        for file in &touched {
            let (right, is) = (std::fs::read(fresh.path().join(file)).ok(), tree.join(file));
            if std::fs::read(&is).ok() == right {
                continue;
            }
            if is.exists() {
                std::fs::remove_file(&is)?;
            }
            if right.is_some() {
                std::fs::create_dir_all(is.parent().context("no directory")?)?;
                std::fs::copy(fresh.path().join(file), &is)?;
            }
        }
        std::fs::write(&list, now.iter().map(|file| format!("{file}\n")).collect::<String>())?;
        Ok(())
    }
}

fn unpack(package: &Path, new: &Path) -> anyhow::Result<()> {
    let name = format!("./usr/src/{SOURCE}.tar.xz");
    let script =
        r#"dpkg-deb --fsys-tarfile "$1" | tar -xO "$2" | tar -xJ --strip-components=1 -C "$3""#;
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "unpack"]);
    command.arg(package).arg(name).arg(new);
    cache::run(&mut command, "the source is unpacked by dpkg-deb, tar and xz")
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Takes the lock of builds: two at a time would take as long each; and they may be of the same
/// kernel.
fn lock() -> anyhow::Result<File> {
    let file = File::create(cache::directory()?.join("kernel-build.lock"))?;
    let how = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&file, how).is_err() {
        println!("waiting for another build of a kernel");
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    }
    Ok(file)
}

/// Runs make, shows how far it is, and its output if it fails. All of it is in `make.log`.
fn make(kernel: &Kernel, arch: Arch, targets: &[&str]) -> anyhow::Result<()> {
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let mut log = File::options().create(true).append(true).open(kernel.build.join("make.log"))?;
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new("nice");
    command.args(["make", &format!("-j{jobs}"), &format!("ARCH={}", arch.name())]);
    command.arg(format!("CROSS_COMPILE={}", arch.cross()));
    command.arg("-C").arg(&kernel.tree).arg("O=build").args(targets);
    // The kernel is the same for every user and host that builds it.
    command.env("KBUILD_BUILD_USER", "sendfile2").env("KBUILD_BUILD_HOST", "guest");
    command.stdin(Stdio::null()).stderr(input.try_clone()?).stdout(input);
    let mut child = command.spawn().context("cannot run make")?;
    // The command holds the ends of the pipe that are to be written to.
    drop(command);
    let mut last = VecDeque::new();
    let (mut steps, mut told) = (0, Instant::now());
    for line in BufReader::new(File::from(output)).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        std::io::Write::write_all(&mut log, format!("{line}\n").as_bytes())?;
        steps += 1;
        last.push_back(line);
        if last.len() > 40 {
            last.pop_front();
        }
        if told.elapsed() > Duration::from_secs(20) {
            told = Instant::now();
            println!("  {steps} steps after {} s", began.elapsed().as_secs());
        }
    }
    let status = child.wait()?;
    if !status.success() {
        for line in last {
            println!("  {line}");
        }
        bail!("make {} failed: {status}", targets.join(" "));
    }
    println!("  make {}: {} s", targets.join(" "), began.elapsed().as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_lacks_is_named() {
        let asked = "# comment\nCONFIG_NET=y\nCONFIG_INET=y\n# CONFIG_SLUB_TINY is not set\n\
                     # CONFIG_GONE is not set\n";
        assert_eq!(missing(asked, "CONFIG_NET=y\nCONFIG_INET=y\n"), Vec::<&str>::new());
        assert_eq!(missing(asked, "CONFIG_NET=y\n# CONFIG_INET is not set\n"), ["CONFIG_INET=y"]);
        let got = "CONFIG_NET=y\nCONFIG_INET=y\nCONFIG_SLUB_TINY=y\n";
        assert_eq!(missing(asked, got), ["# CONFIG_SLUB_TINY is not set"]);
    }
}
