//! Releases of Rust from Debian's packages: the oldest one that is promised, and targets of which
//! no standard library is installed.
//!
//! The packages are only unpacked, in the cache, with the libraries that they need. The standard
//! library's source is among them, so that cargo can build it for any target (`-Zbuild-std`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::guest::cache;

/// Static programs.
pub(crate) const MUSL: &str = "x86_64-unknown-linux-musl";

/// Returns the directory of the standard library for a target, which is there if that is installed.
pub(crate) fn library(target: &str) -> anyhow::Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let output = command.args(["--print", "target-libdir", "--target", target]).output();
    Ok(String::from_utf8(output.context("rustc")?.stdout)?.trim().into())
}

/// A toolchain that is unpacked, and not installed.
#[derive(Debug)]
pub(crate) struct Toolchain {
    root: PathBuf,
    /// The directories of its shared libraries, as `LD_LIBRARY_PATH` has them.
    libraries: OsString,
}

impl Toolchain {
    /// Finds or downloads the release `version` (as "1.85"); `None` where the archive offers none.
    pub(crate) fn debian(version: &str) -> anyhow::Result<Option<Self>> {
        let Some(offered) = offered(version)? else { return Ok(None) };
        let root = cache::directory()?.join(format!("rust-{}", offered.replace('/', "-")));
        if !root.exists() {
            cache::make(&root, |new| unpack(&offered, new))?;
        }
        let mut libraries = Vec::new();
        shared_libraries(&root, &mut libraries)?;
        let libraries = std::env::join_paths(libraries)?;
        Ok(Some(Toolchain { root, libraries }))
    }

    /// Makes a command of its cargo, in `directory`, which builds into `target`.
    pub(crate) fn cargo(&self, directory: &Path, target: &Path) -> Command {
        let mut cargo = Command::new(self.root.join("usr/bin/cargo"));
        cargo.current_dir(directory).stdin(Stdio::null());
        // The variables that cargo has set for this program are of another toolchain.
        for name in ["RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER", "CARGO", "RUSTFLAGS"] {
            cargo.env_remove(name);
        }
        cargo.env("LD_LIBRARY_PATH", &self.libraries).env("CARGO_TARGET_DIR", target);
        cargo.env("RUSTC", self.root.join("usr/bin/rustc"));
        cargo.env("RUSTDOC", self.root.join("usr/bin/rustdoc"));
        cargo
    }

    /// Makes a command of [`cargo`](Self::cargo) for the target `triple`, whose standard library is
    /// built, too.
    pub(crate) fn cargo_for(
        &self,
        triple: &str,
        verb: &str,
        directory: &Path,
        target: &Path,
    ) -> anyhow::Result<Command> {
        let mut cargo = self.cargo(directory, target);
        // The release is a stable one, for which building the standard library is an experiment.
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.args([verb, "-Zbuild-std=std,panic_unwind,test", "--target", triple]);
        if triple == MUSL {
            let flags = format!("-Clink-self-contained=no -L{}", unwinder()?.display());
            cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_RUSTFLAGS", flags);
            cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "musl-gcc");
        }
        Ok(cargo)
    }
}

/// Makes the unwinder that Rust's standard library links for musl: gcc's, without what only glibc
/// has.
fn unwinder() -> anyhow::Result<PathBuf> {
    let at = cache::directory()?.join("musl-unwinder");
    if !at.exists() {
        cache::make(&at, |new| {
            let gcc = Command::new("gcc").arg("-print-file-name=libgcc_eh.a").output()?;
            let original = String::from_utf8(gcc.stdout)?;
            std::fs::copy(original.trim(), new.join("libunwind.a")).context(original)?;
            // Where it fails the unwinder asks dl_iterate_phdr(3).
            let stub = "int _dl_find_object(void *a, void *b) { (void)a; (void)b; return -1; }";
            std::fs::write(new.join("stub.c"), stub)?;
            let hint = "Debian has it in musl-tools";
            cache::run(Command::new("musl-gcc").current_dir(new).args(["-c", "stub.c"]), hint)?;
            cache::run(
                Command::new("ar").current_dir(new).args(["r", "libunwind.a", "stub.o"]),
                "Debian has it in binutils",
            )
        })?;
    }
    Ok(at)
}

/// Returns the newest version of the package that is this release.
fn offered(version: &str) -> anyhow::Result<Option<String>> {
    let mut apt = Command::new("apt-cache");
    let output = match apt.args(["madison", "rustc-web"]).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("apt-cache"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    // rustc-web | 1.85.0+dfsg3-1~deb12u3 | URL
    let mut versions = text.lines().filter_map(|line| Some(line.split('|').nth(1)?.trim()));
    let fits =
        |found: &&str| found.strip_prefix(version).is_some_and(|rest| rest.starts_with(['.', '+']));
    Ok(versions.find(fits).map(str::to_owned))
}

fn unpack(version: &str, new: &Path) -> anyhow::Result<()> {
    let debs = tempfile::tempdir_in(new)?;
    std::fs::create_dir(debs.path().join("partial"))?;
    let mut apt = Command::new("apt-get");
    apt.args(["-qy", "install", "--download-only", "--no-install-recommends"]);
    apt.arg("-o").arg(format!("Dir::Cache::archives={}", debs.path().display()));
    // apt's own user could not write there.
    apt.args(["-o", "APT::Sandbox::User=root"]);
    for package in ["rustc-web", "cargo-web", "libstd-rust-web-dev", "rust-web-src"] {
        apt.arg(format!("{package}={version}"));
    }
    println!("downloading Rust {version}, 150 MB");
    cache::run(&mut apt, "an old release of Rust is downloaded by Debian's apt-get")?;
    for deb in std::fs::read_dir(debs.path())? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|ending| ending == "deb") {
            cache::run(
                Command::new("dpkg-deb").arg("-x").arg(deb).arg(new),
                "packages are unpacked by Debian's dpkg-deb",
            )?;
        }
    }
    Ok(())
}

/// Finds the directories below `directory` that have shared libraries.
fn shared_libraries(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut has = false;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            // The compiler's source is large, and has none.
            if path.ends_with("usr/src") || path.ends_with("usr/share") {
                continue;
            }
            shared_libraries(&path, found)?;
        } else {
            has |= path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so"));
        }
    }
    if has {
        found.push(directory.to_owned());
    }
    Ok(())
}
