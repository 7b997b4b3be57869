//! The programs that a chore needs: named before anything else is done, and installed if asked.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use super::cache;
use super::initramfs::find;

/// A program, or a file by its path, and Debian's package that has it.
pub(crate) type Need = (&'static str, &'static str);

/// Emulation.
pub(super) const QEMU: &[Need] = &[("qemu-system-x86_64", "qemu-system-x86")];

/// The root filesystem of a guest, of this machine's programs.
pub(super) const INITRAMFS: &[Need] = &[
    ("strip", "binutils"),
    ("ldd", "libc-bin"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("mount", "mount"),
    ("unshare", "util-linux"),
];

/// A disk.
pub(super) const DISK: &[Need] = &[("mkfs.ext4", "e2fsprogs"), ("losetup", "mount")];

/// Debian's kernels: their packages, fetched and unpacked.
pub(super) const STOCK: &[Need] =
    &[("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod")];

/// The kernel module.
pub(super) const MODULE: &[Need] = &[("make", "make"), ("gcc", "gcc")];

/// A kernel of Debian's source.
pub(super) const SOURCE: &[Need] = &[
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("patch", "patch"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("/usr/include/gelf.h", "libelf-dev"),
];

/// checkpatch.pl.
pub(super) const CHECKPATCH: &[Need] = &[("perl", "perl")];

/// Fails if one of them is missing, with the command that installs all that are; with `install`,
/// runs it. `who` needs them.
pub(crate) fn check(who: &str, needs: &[&[Need]], install: bool) -> anyhow::Result<()> {
    let missing = missing(needs, is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
    let words = [&["install", "--no-install-recommends"], &unique(&packages)[..]].concat();
    let root = rustix::process::geteuid().is_root();
    ensure!(
        install && root,
        "{who} needs {}, missing here: {}apt-get {}{}",
        programs.join(", "),
        if root { "" } else { "as root, " },
        words.join(" "),
        if root && !install { " (or give --install)" } else { "" },
    );
    println!("missing: {}", programs.join(", "));
    let mut command = Command::new("apt-get");
    command.arg("-qy").args(words).env("DEBIAN_FRONTEND", "noninteractive");
    cache::run(&mut command, "it installs what is missing; run `apt-get update` first")
}

fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { find(what).is_some() }
}

fn missing(needs: &[&[Need]], is_there: impl Fn(&str) -> bool) -> Vec<Need> {
    needs
        .iter()
        .flat_map(|needs| needs.iter())
        .filter(|(what, _)| !is_there(what))
        .copied()
        .collect()
}

/// Each package once, in the order in which they are named first.
fn unique<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut unique = Vec::new();
    for package in packages {
        if !unique.contains(package) {
            unique.push(*package);
        }
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_its_package_once() {
        let there = |what: &str| !matches!(what, "ip" | "tc" | "/usr/include/gelf.h");
        let missing = missing(&[QEMU, INITRAMFS, SOURCE], there);
        let (programs, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
        assert_eq!(programs, ["ip", "tc", "/usr/include/gelf.h"]);
        assert_eq!(unique(&packages), ["iproute2", "libelf-dev"]);
    }

    #[test]
    fn programs_are_found_by_name_and_files_by_path() {
        assert!(is_there("sh") && is_there("/bin/sh"));
        assert!(!is_there("no-such-program") && !is_there("/no/such/file"));
        check("it", &[&[("sh", "dash")]], false).unwrap();
        let error = check("it", &[&[("no-such-program", "a-package")]], false).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("no-such-program") && error.contains("a-package"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}
