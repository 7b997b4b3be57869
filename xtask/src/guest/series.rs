//! The tests that are run on a kernel with the patch series, whatever it runs in.

use std::path::Path;
use std::process::Command;

use sendfile2_guest::Step;

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use super::{cache, cargo};

/// The variable that makes the tests fail, and not skip, where the series is not found.
pub(super) const REQUIRED: &str = "SENDFILE2_SERIES";

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
            let step = step.env(REQUIRED, "1").seconds(1200);
            steps.push(if ordinary { step.ordinary() } else { step });
        }
    }
    Ok(steps)
}

/// Puts what uses the series into the initramfs: the library's tests, the commands, and the tests of
/// libsendfile2, which is installed below a directory. Returns how to run them: without a
/// device, as an ordinary user where they may be.
pub(super) fn users(initramfs: &mut Initramfs, installed: &Path) -> anyhow::Result<Vec<Step>> {
    let tests = cargo::programs(&["test", "--no-run", "--package", "sendfile2"])?;
    let tests: Vec<_> =
        tests.into_iter().filter(|test| test.test && USING.contains(&&*test.name)).collect();
    let scratch = super::nic::scratch(&tests)?;
    // Files must be where the tests were compiled to put them; not in tmpfs, from which files with
    // holes are sent in another way.
    let script = format!("mkdir -p {scratch}\nmount -t ramfs -o mode=1777 none {scratch}");
    let mut steps = vec![Step::setup("scratch", script)];
    for test in &tests {
        let at = format!("/tests/{}", test.name);
        initramfs.program(&test.path, &at)?;
        let step = Step::new(format!("{}, as a user", test.name), without_a_disk(&at));
        steps.push(step.ordinary().env("RUST_TEST_THREADS", "2").seconds(900));
    }

    crate::install::run(&crate::install::Args::libraries(installed.to_owned()))?;
    let packages = ["--package", "sendfile2-cli", "--package", "msg_zerocopy"];
    let built = cargo::programs(&[&["build", "--release"], &packages[..]].concat())?;
    for command in ["sendfile2", "msg_zerocopy"] {
        let program = &cargo::program(&built, command)?.path;
        initramfs.program(program, &format!("/usr/bin/{command}"))?;
    }
    let probe = "sendfile2 probe\nsendfile2 probe | grep -q 'native  *available: sendfile2(2)'";
    steps.push(Step::setup("probe", probe));
    let sources = crate::root()?.join("crates/sendfile2-c/tests/c");
    for name in ["semantics", "ids", "memlock", "queue", "sync", "overlay"] {
        let program = installed.join(name);
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O1", "-o"]).arg(&program);
        command
            .arg(sources.join(name).with_extension("c"))
            .arg("-I")
            .arg(installed.join("include"));
        command.arg(installed.join("lib/libsendfile2.a")).args(crate::install::PRIVATE);
        cache::run(&mut command, &format!("{name}.c is compiled"))?;
        let at = format!("/tests/c/{name}");
        initramfs.program(&program, &at)?;
        let step = match name {
            // Peers that are not on this host, by their addresses.
            "sync" => Step::new("libsendfile2: sync", ["unshare", "--net", "sh", "-ec", SYNC]),
            "overlay" => {
                Step::new("libsendfile2: overlay", ["unshare", "--mount", "sh", "-ec", OVERLAY])
            }
            _ => Step::new(format!("libsendfile2: {name}, as a user"), [at.as_str()]).ordinary(),
        };
        // One of them sends 2 GiB.
        steps.push(step.env("TEST_DIR", "/tmp").seconds(1200));
    }
    let lower: Vec<u8> = (0..5000_u32)
        .map(u32::to_le_bytes)
        .map(|[a, b, ..]| a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ 0x5a)
        .collect();
    initramfs.text("/tests/c/lower", lower, 0o644);

    let script = std::fs::read(crate::root()?.join("crates/msg_zerocopy/msg_zerocopy.sh"))?;
    initramfs.text("/tests/msg_zerocopy.sh", script, 0o755);
    let file = "head -c 3000000 /dev/urandom > /tmp/file\n\
                /tests/msg_zerocopy.sh 4 tcp -v -f /tmp/file > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }\n\
                cat /tmp/said\ngrep -q 'sendfile2: the system call' /tmp/said\n\
                /tests/msg_zerocopy.sh 6 udp -f /tmp/file";
    steps.push(Step::new("msg_zerocopy -f", ["sh", "-ec", file]).seconds(300));
    Ok(steps)
}

/// The library's tests that are about engines, and need neither a disk nor a gigabyte.
const USING: [&str; 11] = [
    "content",
    "death",
    "files",
    "guard",
    "holds",
    "limits",
    "mtu_probing",
    "native",
    "notices",
    "release",
    "threads",
];

/// Returns the command of a test of the library, without what ramfs cannot do: holes.
pub(super) fn without_a_disk(program: &str) -> [&str; 4] {
    [program, "--nocapture", "--skip", "set_len_and_punching_wait_for_what_they_touch"]
}

const SYNC: &str = "ip link set lo up
ip addr add 10.9.0.1/32 dev lo
ip addr add 10.9.0.2/32 dev lo
exec /tests/c/sync";

const OVERLAY: &str = "mkdir -p /tmp/o
mount -t tmpfs none /tmp/o
cd /tmp/o
mkdir lower upper work merged
cp /tests/c/lower lower
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged
exec /tests/c/overlay merged";

/// Compiles the selftest that the series brings.
fn compile(kernel: &Kernel, to: &Path) -> anyhow::Result<()> {
    let selftests = kernel.tree.join("tools/testing/selftests");
    let mut command = Command::new("cc");
    command.args(["-O2", "-Wall", "-Werror", "-o"]).arg(to);
    command.arg("-I").arg(&selftests).arg(selftests.join("net/sendfile_zc.c"));
    cache::run(&mut command, "the series' selftest is compiled")
}
