//! What is run on a kernel with the patch series, whatever it runs in.

use std::path::Path;
use std::process::Command;

use sendfile2_guest::Step;

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::{cache, cargo};

/// Says to the tests that the series is there: where it is not found, they fail and do not skip.
const REQUIRED: &str = "SENDFILE2_SERIES";

/// Puts the tests into the initramfs; returns how to run them: as root, and as an ordinary user with
/// a finite `RLIMIT_MEMLOCK`.
pub(super) fn steps(initramfs: &mut Initramfs, kernel: &Kernel) -> anyhow::Result<Vec<Step>> {
    let selftest = kernel.build.join("sendfile_zc");
    compile(kernel, &selftest)?;
    initramfs.program(&selftest, "/tests/sendfile_zc")?;

    let mut steps = vec![
        Step::new("selftest", ["/tests/sendfile_zc"]).seconds(300),
        Step::new("selftest, as a user", ["/tests/sendfile_zc"]).ordinary().seconds(300),
    ];
    for test in cargo::programs(&["test", "--no-run", "--package", "series-tests"])? {
        if !test.test {
            continue;
        }
        let at = format!("/tests/{}", test.name);
        initramfs.program(&test.path, &at)?;
        for ordinary in [false, true] {
            let name = format!("{}{}", test.name, if ordinary { ", as a user" } else { "" });
            let step = Step::new(name, [at.as_str(), "--nocapture", "--test-threads=1"]);
            let step = step.env(REQUIRED, "1").seconds(600);
            steps.push(if ordinary { step.ordinary() } else { step });
        }
    }
    Ok(steps)
}

/// The selftest that the series brings.
fn compile(kernel: &Kernel, to: &Path) -> anyhow::Result<()> {
    let selftests = kernel.tree.join("tools/testing/selftests");
    let mut command = Command::new("cc");
    command.args(["-O2", "-Wall", "-Werror", "-o"]).arg(to);
    command.arg("-I").arg(&selftests).arg(selftests.join("net/sendfile_zc.c"));
    cache::run(&mut command, "the series' selftest is compiled")
}
