//! `guest count`: the instructions of each way of sending.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, ensure};
use sendfile2_guest::{Count, Plan, Step};

use super::qemu::{Machine, Network};
use super::{NETWORK, Stock, stock};

/// Count the instructions of each way of sending, per call and per MiB
///
/// On Debian's stock kernel, over a network device: those of the sending thread and of its device,
/// the same in every run, beside what they were (kernel/count.baseline).
///
/// Instructions underrate copying: one moves 8 bytes here, however far away they are. So what was
/// copied is told beside them. What a way costs on a real machine, `sendfile2 bench` tells.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Make these the figures that later ones are compared with
    #[arg(long)]
    save: bool,
}

/// Where the figures are that were found before.
const BASELINE: &str = "kernel/count.baseline";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let counts = measure()?;
    let path = crate::root()?.join(BASELINE);
    let baseline = match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).with_context(|| path.display().to_string())?,
        Err(_) => BTreeMap::new(),
    };
    print!("\n{}", table(&counts, &baseline));
    println!(
        "An instruction copies 8 bytes here: copying costs more than these figures say.\n\
         uring calls a request copied also if its bytes all went into a packet that the one before\n\
         it began (Linux 6.10 and later)."
    );
    if args.save {
        std::fs::write(&path, text(&counts)).with_context(|| path.display().to_string())?;
        println!("saved in {BASELINE}");
    }
    verdict(&counts)
}

fn measure() -> anyhow::Result<Vec<Count>> {
    let stock = Stock::new()?;
    let mut initramfs = super::initramfs()?;
    let mut modules = initramfs.modules(&stock.modules, &["vmxnet3"])?;
    stock::module(&stock, &mut initramfs)?;
    modules.push(stock::MODULE.into());
    let built = super::cargo::programs(&["build", "--release", "--package", "sendfile2-guest"])?;
    let program = &super::cargo::program(&built, "guest-count")?.path;
    initramfs.program(program, "/usr/bin/guest-count")?;
    // What a device is told of is handled by a thread of its own, so that it can be counted.
    let threads = "for device in eth0 eth1; do echo 1 > /sys/class/net/$device/threaded; done";
    // No connection begins with what an earlier one has learnt.
    let metrics = "for at in '' 'ip netns exec peer'; do \
                   $at sysctl -w net.ipv4.tcp_no_metrics_save=1; done";
    let steps = vec![
        Step::setup("threads", threads),
        Step::setup("network", NETWORK),
        Step::setup("metrics", metrics),
        Step::new("count", ["/usr/bin/guest-count", "/run/netns/peer", "10.8.0.2", "/tmp/file"])
            .seconds(36_000),
    ];
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "count",
        kernel: &stock.image,
        initramfs: &archive,
        disk: None,
        mebibytes: 1024,
        processors: 1,
        network: Network::Vmxnet3,
        deterministic: true,
        // The tests of the kernel's cryptography go on for seconds.
        append: "cryptomgr.notests",
        patience: Duration::from_secs(1800),
    }
    .run()?;
    outcome.verdict()?;
    let lines = &outcome.step("count")?.lines;
    let lines = lines.iter().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| line.clone())).collect()
}

/// Instructions per call, by way and size.
type Baseline = BTreeMap<(String, u64), u64>;

fn per_call(count: &Count) -> u64 {
    count.instructions / count.calls.max(1)
}

fn per_mebibyte(count: &Count) -> u64 {
    let bytes = count.calls.saturating_mul(count.size).max(1);
    u64::try_from(u128::from(count.instructions) * (1 << 20) / u128::from(bytes))
        .unwrap_or(u64::MAX)
}

fn text(counts: &[Count]) -> String {
    let mut text: String =
        "# cargo xtask guest count --save: way, bytes a call, instructions a call\n".into();
    for count in counts {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {}", count.way, count.size, per_call(count));
    }
    text
}

fn parse(text: &str) -> anyhow::Result<Baseline> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [way, size, count] = words[..] else { anyhow::bail!("what is {line:?}?") };
            Ok(((way.to_owned(), size.parse()?), count.parse()?))
        })
        .collect()
}

fn table(counts: &[Count], baseline: &Baseline) -> String {
    let head = ["a call of", "way", "a call", "baseline", "a MiB", "of sendfile", "copied a MiB"];
    let mut table = format!(
        "instructions of the sending side\n{:>9}  {:10} {:>10} {:>10} {:>12} {:>12} {:>13}\n",
        head[0], head[1], head[2], head[3], head[4], head[5], head[6]
    );
    for count in counts {
        let of = |way: &str| counts.iter().find(|c| c.way == way && c.size == count.size);
        let ratio = of("sendfile").map_or_else(String::new, |sendfile| {
            format!("{:.3}", count.instructions as f64 / sendfile.instructions as f64)
        });
        let before = baseline.get(&(count.way.clone(), count.size));
        let before = before.map_or_else(|| "-".into(), u64::to_string);
        let copied = u128::from(count.copied) * (1 << 10)
            / u128::from(count.calls.saturating_mul(count.size).max(1));
        let _ = writeln!(
            table,
            "{:>5} KiB  {:10} {:>10} {before:>10} {:>12} {ratio:>12} {copied:>9} KiB",
            count.size >> 10,
            count.way,
            per_call(count),
            per_mebibyte(count),
        );
    }
    table
}

/// So many instructions a call may take by native beyond those of `sendfile(2)`.
const NATIVE: u64 = 5000;

/// What must hold: sending by reference from a mapping takes fewer than `sendfile(2)` does for
/// calls that are not small, and by the module it takes few more.
fn verdict(counts: &[Count]) -> anyhow::Result<()> {
    for size in [64 << 10, 1 << 20] {
        let of = |way: &str| {
            let found = counts.iter().find(|count| count.way == way && count.size == size);
            found.with_context(|| format!("{way} was not counted with calls of {size} bytes"))
        };
        let (zerocopy, sendfile) = (of("zerocopy")?, of("sendfile")?);
        ensure!(
            per_mebibyte(zerocopy) < per_mebibyte(sendfile),
            "guest count: in calls of {size} bytes zerocopy takes {} instructions a MiB, \
             sendfile(2) {}",
            per_mebibyte(zerocopy),
            per_mebibyte(sendfile)
        );
    }
    for native in counts.iter().filter(|count| count.way == "native") {
        let sendfile = counts.iter().find(|c| c.way == "sendfile" && c.size == native.size);
        let most = sendfile.map_or(0, per_call) + NATIVE;
        ensure!(
            per_call(native) <= most,
            "guest count: a call of {} bytes by native takes {} instructions, more than {most}",
            native.size,
            per_call(native)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(way: &str, size: u64, instructions: u64) -> Count {
        Count { way: way.into(), size, calls: 10, instructions, copied: 0 }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let counts = [count("sendfile", 65_536, 1005), count("copy", 1 << 20, 20)];
        let baseline = parse(&text(&counts)).unwrap();
        assert_eq!(baseline[&("sendfile".to_owned(), 65_536)], 100);
        assert_eq!(baseline[&("copy".to_owned(), 1 << 20)], 2);
        parse("sendfile 65536").unwrap_err();
        parse("sendfile x 1").unwrap_err();
        let table = table(&counts, &baseline);
        assert!(table.contains("1608"), "{table}");
    }

    #[test]
    fn zerocopy_must_take_fewer() {
        let at = |zerocopy| {
            [
                count("sendfile", 64 << 10, 100),
                count("zerocopy", 64 << 10, 90),
                count("sendfile", 1 << 20, 1000),
                count("zerocopy", 1 << 20, zerocopy),
            ]
        };
        verdict(&at(999)).unwrap();
        verdict(&at(1000)).unwrap_err();
        verdict(&at(999)[..3]).unwrap_err();
        let native = |count_of| [&at(999)[..], &[count("native", 1 << 20, count_of)]].concat();
        verdict(&native(51_000)).unwrap();
        verdict(&native(51_010)).unwrap_err();
    }
}
