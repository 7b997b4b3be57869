//! `guest pages`: pages of the page cache below TCP, on Debian's stock kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use sendfile2_guest::{Plan, Step};

use super::initramfs::{Initramfs, find};
use super::kernel::{Arch, Kernel};
use super::needs::Need;
use super::qemu::{Disk, Machine, Network};
use super::{NETWORK, Stock, cargo, leaks, stock};

/// Pages of the page cache below TCP: whether they are marked, and whether anything writes to them
///
/// Sends files by each way through what there is below TCP (encryption, tunnels, tc, netfilter,
/// tun, kernel TLS), with a module that looks at each packet, and compares the page cache with what
/// it was. docs/shared-pages.md has what was found.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

/// What is set up by programs that are in no other guest.
pub(super) const NEEDS: &[Need] = &[("nft", "nftables"), ("wg", "wireguard-tools")];

/// The path of the module that looks.
const LOOKS: &str = "/lib/modules/sendfile2_pages.ko";

/// The path of the program that sends.
const PROGRAM: &str = "/usr/bin/guest-pages";

/// The devices, and what the layers consist of.
const MODULES: [&str; 53] = [
    "vmxnet3",
    "virtio_pci",
    "virtio_blk",
    "veth",
    "tls",
    "tun",
    "dummy",
    "bridge",
    "8021q",
    "vxlan",
    "ip_gre",
    "macsec",
    "wireguard",
    "esp4",
    "ah4",
    "ipcomp",
    "xfrm_user",
    "deflate",
    "aesni-intel",
    "gcm",
    "ghash-clmulni-intel",
    "ghash-generic",
    "sha256-ssse3",
    "ctr",
    "cbc",
    "ccm",
    "authenc",
    "authencesn",
    "echainiv",
    "seqiv",
    "cls_matchall",
    "cls_bpf",
    "sch_ingress",
    "sch_tbf",
    "sch_netem",
    "act_csum",
    "act_pedit",
    "act_skbmod",
    "act_mirred",
    "act_bpf",
    "nf_tables",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_queue",
    "nfnetlink_queue",
    "nf_conntrack",
    "nf_nat",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "xfrm_algo",
    "xfrm_ipcomp",
    "af_alg",
];

/// A pair of virtual devices, of which one is in the namespace `peer`.
const VETH: &str = "
ip link add veth0 type veth peer name veth1 netns peer
ip addr add 10.9.0.1/24 dev veth0
ip link set veth0 up
ip -n peer addr add 10.9.0.2/24 dev veth1
ip -n peer link set veth1 up
";

/// The device of the module, the disk, and the place for a BPF program.
const MORE: &str = "
chmod 666 /dev/sendfile2
mkdir -p /work /tmp/bpf /dev/net
mount -t ext4 /dev/vda /work
mount -t bpf bpf /tmp/bpf
";

pub(super) fn run(_: &Args) -> anyhow::Result<()> {
    let stock = Stock::new()?;
    let disk = Disk::new(1 << 27)?;
    let mut initramfs = super::initramfs()?;
    let mut modules = initramfs.modules(&stock.modules, &MODULES)?;
    stock::module(&stock, &mut initramfs)?;
    modules.push(stock::MODULE.into());
    let headers = stock::headers(&stock.release)?;
    looks(&headers, Arch::X86, &mut initramfs)?;
    modules.push(LOOKS.into());
    let late = initramfs.modules(&stock.modules, &["esp4_offload"])?;
    let offload = late.last().context("esp4_offload is built into this kernel")?;
    for (tool, _) in NEEDS {
        let path = find(tool).with_context(|| format!("{tool} is missing"))?;
        initramfs.program(&path, path.to_str().context("a tool with a strange name")?)?;
    }
    program(&mut initramfs)?;
    let steps = vec![
        Step::setup("network", NETWORK),
        Step::setup("more of it", VETH),
        Step::setup("a disk", MORE),
        Step::new("senders", [PROGRAM, "senders", "/work"]).seconds(300),
        Step::new("layers", [PROGRAM, "layers", "/work", offload]).seconds(900),
    ];
    initramfs.plan(&Plan { modules, steps })?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("initramfs");
    initramfs.write(&archive)?;
    let outcome = Machine {
        label: "pages",
        kernel: &stock.image,
        initramfs: &archive,
        disk: Some(&disk),
        mebibytes: 1024,
        processors: 2,
        network: Network::Vmxnet3,
        deterministic: false,
        append: "",
        patience: Duration::from_secs(1500),
    }
    .run()?;
    outcome.verdict()
}

/// Builds the module that looks for a kernel, and puts it into the initramfs.
fn looks(kernel: &Path, arch: Arch, initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let copy = tempfile::tempdir()?;
    let module = stock::built(kernel, arch, "kernel/pages", "sendfile2_pages.ko", copy.path())?;
    initramfs.text(LOOKS, std::fs::read(module)?, 0o644);
    Ok(())
}

fn program(initramfs: &mut Initramfs) -> anyhow::Result<()> {
    let built = cargo::programs(&["build", "--package", "sendfile2-guest"])?;
    initramfs.program(&cargo::program(&built, "guest-pages")?.path, PROGRAM)
}

/// Puts the senders, and the module that looks, into the initramfs of a kernel of our own; returns
/// how to run them where a namespace `peer` is, after all else: the module's tap has the kernel copy
/// what notifies.
pub(super) fn senders(
    kernel: &Kernel,
    arch: Arch,
    initramfs: &mut Initramfs,
) -> anyhow::Result<Vec<Step>> {
    looks(&kernel.build, arch, initramfs)?;
    program(initramfs)?;
    leaks::insmod(initramfs)?;
    let more = format!("{VETH}mkdir /tmp/pages\nmount -t ramfs none /tmp/pages\ninsmod {LOOKS}");
    Ok(vec![
        Step::setup("what looks at packets", more),
        Step::new("pages: senders", [PROGRAM, "senders", "/tmp/pages"]).seconds(600),
    ])
}
