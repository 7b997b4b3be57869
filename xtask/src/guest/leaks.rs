//! The search for memory that a kernel lost.

use anyhow::Context;
use sendfile2_guest::Step;

use super::initramfs::{Initramfs, find};
use super::kernel::Kernel;
use super::needs::Need;

/// The program that loads a module when its turn comes.
pub(super) const NEEDS: &[Need] = &[("insmod", "kmod")];

/// kmemleak takes memory that is younger than five seconds for in use, and finds the rest in two
/// scans.
const SCAN: &str = "
mount -t debugfs none /sys/kernel/debug 2>/dev/null || test -e /sys/kernel/debug/kmemleak
echo scan > /sys/kernel/debug/kmemleak
sleep 6
echo scan > /sys/kernel/debug/kmemleak
";

/// Returns the step that fails where anything was lost; for the end.
pub(super) fn none() -> Step {
    let none = "leaks=$(cat /sys/kernel/debug/kmemleak)\necho \"$leaks\"\ntest -z \"$leaks\"";
    Step::setup("what the kernel lost", format!("{SCAN}{none}")).seconds(300)
}

/// Puts the kernel's own module that loses memory into the initramfs; returns the step that fails
/// where that is not found. What comes later finds it, too.
pub(super) fn control(initramfs: &mut Initramfs, kernel: &Kernel) -> anyhow::Result<Step> {
    const MODULE: &str = "/lib/modules/kmemleak-test.ko";
    initramfs.copy(&kernel.build.join("samples/kmemleak/kmemleak-test.ko"), MODULE, 0o644);
    insmod(initramfs)?;
    // What both say would be taken for a report. The function that lost it is gone by then.
    let script = format!(
        "dmesg -n 5\ninsmod {MODULE}\n{SCAN}
        dmesg -n 7\nhead -n 5 /sys/kernel/debug/kmemleak
        echo of insmod: $(grep -c 'comm \"insmod\"' /sys/kernel/debug/kmemleak)
        grep -q 'comm \"insmod\"' /sys/kernel/debug/kmemleak"
    );
    Ok(Step::setup("what a module lost is found", script).seconds(300))
}

/// Puts the program that loads modules into the initramfs.
pub(super) fn insmod(initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let path = find("insmod").context("insmod is missing: install kmod")?;
    initramfs.program(&path, "/usr/sbin/insmod")
}
