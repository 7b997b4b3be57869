//! `guest nic`: everything that sends, over a network device that sends from the file's pages.

use std::time::Duration;

use sendfile2_guest::{Plan, Step};

use super::qemu::{Machine, Network};
use super::{NETWORK, Stock};

/// The library, the demo and the torture, over a network device, on Debian's stock kernel
///
/// Two network devices on a hub, the second one in a namespace of its own: notifications come
/// late, and without COPIED. What is found here is the truth.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: &Args) -> anyhow::Result<()> {
    let stock = Stock::new()?;
    let mut initramfs = super::initramfs()?;
    let modules =
        initramfs.modules(&stock.modules, &["vmxnet3", "sch_netem", "sch_tbf", "veth"])?;
    let steps = vec![
        Step::setup("network", NETWORK),
        Step::new("devices", ["ip", "address"]),
        Step::new("who", ["/bin/sh", "-c", "cat /proc/self/status; prlimit"]).ordinary(),
    ];
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "nic",
        kernel: &stock.image,
        initramfs: &archive,
        mebibytes: 1024,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(600),
    }
    .run()?;
    outcome.verdict()
}
