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
/// nearly the same in every run, beside what they were (kernel/count.baseline).
///
/// Instructions underrate copying: one moves 8 bytes here, however far away they are. So the bytes
/// copied are shown beside them. The cost of a way on a real machine is measured by `sendfile2
/// bench`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Make these the figures that later ones are compared with
    #[arg(long)]
    save: bool,
}

/// The file of the figures that were found before.
const BASELINE: &str = "kernel/count.baseline";

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let counts = costs(&measure()?);
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
    // The device's work is done by a thread of its own, so that it can be counted.
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

/// The cost of one way, with calls of one size.
#[derive(Debug, PartialEq)]
struct Cost {
    way: String,
    size: u64,
    /// The sending thread's instructions of a call; below, its device's, and packets.
    thread: f64,
    device: f64,
    packets: f64,
    /// Instructions of a call, and the standard error of this mean over the connections.
    call: f64,
    error: f64,
    /// Bytes copied, of each byte sent.
    copied: f64,
}

impl Cost {
    fn a_mebibyte(&self) -> f64 {
        self.call * f64::from(1 << 20) / self.size as f64
    }
}

/// The costs of each way and size, in the order in which they were first counted.
fn costs(counts: &[Count]) -> Vec<Cost> {
    let mut costs: Vec<Cost> = Vec::new();
    for first in counts {
        if costs.iter().any(|cost| cost.way == first.way && cost.size == first.size) {
            continue;
        }
        let connections: Vec<_> =
            counts.iter().filter(|c| c.way == first.way && c.size == first.size).collect();
        let mean = |of: &dyn Fn(&Count) -> f64| {
            let values = connections.iter().map(|count| of(count) / count.calls.max(1) as f64);
            values.sum::<f64>() / connections.len() as f64
        };
        let thread = mean(&|count| count.thread as f64);
        let device = mean(&|count| count.device as f64);
        let call = thread + device;
        let squares = connections.iter().map(|count| {
            ((count.thread + count.device) as f64 / count.calls.max(1) as f64 - call).powi(2)
        });
        let others = connections.len().saturating_sub(1).max(1);
        costs.push(Cost {
            way: first.way.clone(),
            size: first.size,
            thread,
            device,
            packets: mean(&|count| count.packets as f64),
            call,
            error: (squares.sum::<f64>() / (others * connections.len()) as f64).sqrt(),
            copied: mean(&|count| count.copied as f64) / first.size as f64,
        });
    }
    costs
}

fn text(costs: &[Cost]) -> String {
    let mut text: String =
        "# cargo xtask guest count --save: way, bytes a call, instructions a call\n".into();
    for cost in costs {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {:.0}", cost.way, cost.size, cost.call);
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

fn table(costs: &[Cost], baseline: &Baseline) -> String {
    let mut table = format!(
        "instructions of the sending side\n{:>9}  {:10} {:>8} {:>6} {:>9} {:>8} {:>8} {:>8} {:>8} \
         {:>11} {:>13}\n",
        "a call of",
        "way",
        "a call",
        "+-",
        "baseline",
        "thread",
        "device",
        "packets",
        "a MiB",
        "of sendfile",
        "copied a MiB"
    );
    for cost in costs {
        let sendfile = costs.iter().find(|c| c.way == "sendfile" && c.size == cost.size);
        let ratio = sendfile.map_or_else(String::new, |s| format!("{:.3}", cost.call / s.call));
        let before = baseline.get(&(cost.way.clone(), cost.size));
        let before = before.map_or_else(|| "-".into(), u64::to_string);
        let _ = writeln!(
            table,
            "{:>5} KiB  {:10} {:>8.0} {:>6.0} {before:>9} {:>8.0} {:>8.0} {:>8.2} {:>8.0} \
             {ratio:>11} {:>9.0} KiB",
            cost.size >> 10,
            cost.way,
            cost.call,
            cost.error,
            cost.thread,
            cost.device,
            cost.packets,
            cost.a_mebibyte(),
            cost.copied * 1024.0,
        );
    }
    table
}

/// The instructions that a call by native may take beyond those of `sendfile(2)`.
const NATIVE: f64 = 5000.0;

/// Checks what must hold: sending by reference from a mapping takes fewer than `sendfile(2)` does
/// for calls that are not small, and by the module it takes few more, as far as the connections
/// differ.
fn verdict(costs: &[Cost]) -> anyhow::Result<()> {
    for size in [64 << 10, 1 << 20] {
        let of = |way: &str| {
            let found = costs.iter().find(|cost| cost.way == way && cost.size == size);
            found.with_context(|| format!("{way} was not counted with calls of {size} bytes"))
        };
        let (zerocopy, sendfile) = (of("zerocopy")?, of("sendfile")?);
        ensure!(
            zerocopy.call < sendfile.call,
            "guest count: in calls of {size} bytes zerocopy takes {:.0} instructions a MiB, \
             sendfile(2) {:.0}",
            zerocopy.a_mebibyte(),
            sendfile.a_mebibyte()
        );
    }
    for native in costs.iter().filter(|cost| cost.way == "native") {
        let sendfile = costs.iter().find(|c| c.way == "sendfile" && c.size == native.size);
        let sendfile = sendfile.context("sendfile(2) was not counted with each size")?;
        let error = native.error.hypot(sendfile.error);
        let more = native.call - sendfile.call;
        ensure!(
            more <= NATIVE + 2.0 * error,
            "guest count: a call of {} bytes by native takes {more:.0} (+- {error:.0}) \
             instructions more than by sendfile(2), beyond {NATIVE}",
            native.size
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(way: &str, size: u64, instructions: u64) -> Count {
        let device = instructions / 5;
        let thread = instructions - device;
        Count { way: way.into(), size, calls: 10, thread, device, packets: 20, copied: 0 }
    }

    #[test]
    fn what_is_saved_is_read_again() {
        let counts = [
            count("sendfile", 65_536, 1000),
            count("copy", 1 << 20, 20),
            count("sendfile", 65_536, 1010),
        ];
        let costs = costs(&counts);
        assert_eq!(costs.len(), 2);
        assert!((costs[0].call - 100.5).abs() < 1e-9, "{costs:?}");
        assert!((costs[0].error - 0.5).abs() < 1e-9, "{costs:?}");
        let baseline = parse(&text(&costs)).unwrap();
        assert_eq!(baseline[&("copy".to_owned(), 1 << 20)], 2);
        parse("sendfile 65536").unwrap_err();
        parse("sendfile x 1").unwrap_err();
        let table = table(&costs, &baseline);
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
        verdict(&costs(&at(999))).unwrap();
        verdict(&costs(&at(1000))).unwrap_err();
        verdict(&costs(&at(999)[..3])).unwrap_err();
        let native =
            |count_of| costs(&[&at(999)[..], &[count("native", 1 << 20, count_of)]].concat());
        verdict(&native(51_000)).unwrap();
        verdict(&native(51_010)).unwrap_err();
        let sendfiles = [count("sendfile", 1 << 20, 900), count("sendfile", 1 << 20, 1100)];
        verdict(&costs(&[&at(999)[..], &sendfiles, &[count("native", 1 << 20, 51_010)]].concat()))
            .unwrap();
    }
}
