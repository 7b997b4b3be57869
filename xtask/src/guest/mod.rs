//! `cargo xtask guest`: kernels in emulated machines, where zero copy is true.
//!
//! On loopback, and between namespaces of one machine, the kernel always makes a private copy, so
//! that a wrong implementation looks right there. In a guest a network device sends from the pages
//! of the file itself.

mod arm64;
pub(crate) mod cache;
mod cargo;
mod console;
mod count;
mod debug;
mod detach;
mod initramfs;
mod kernel;
mod leaks;
pub(crate) mod needs;
mod nic;
mod pages;
mod patched;
mod patches;
mod qemu;
mod run;
mod rwf_detach;
mod series;
mod stock;
mod tables;
mod uml;

use std::path::PathBuf;

use clap::Subcommand;

/// Run tests in guests: other kernels, and a network device that makes zero copy true
///
/// Guests are emulated in software, and need neither rights nor a network. Kernels are Debian's
/// packages, which apt downloads; they are kept in `$XDG_CACHE_HOME/sendfile2` (`~/.cache/sendfile2`).
/// docs/guests.md says what each guest proves, and how long it takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Install Debian's packages that are missing; for root
    #[arg(long, global = true)]
    install: bool,
    #[command(subcommand)]
    guest: Guest,
}

#[derive(Debug, Subcommand)]
enum Guest {
    Nic(nic::Args),
    Run(run::Args),
    Detach(detach::Args),
    Stock(stock::Args),
    Pages(pages::Args),
    Count(count::Args),
    Debug(debug::Args),
    Uml(uml::Args),
    Patched(patched::Args),
    Arm64(arm64::Args),
    RwfDetach(rwf_detach::Args),
}

impl Guest {
    fn needs(&self) -> Vec<&'static [needs::Need]> {
        use needs::{CHECKPATCH, DISK, INITRAMFS, MODULE, QEMU, SOURCE, STOCK};
        match self {
            Guest::Nic(_) => vec![QEMU, INITRAMFS, STOCK, MODULE, DISK],
            Guest::Detach(_) | Guest::Run(_) => vec![QEMU, INITRAMFS, STOCK, DISK],
            Guest::Stock(_) | Guest::Count(_) => vec![QEMU, INITRAMFS, STOCK, MODULE],
            Guest::Pages(_) => vec![QEMU, INITRAMFS, STOCK, MODULE, DISK, pages::NEEDS],
            Guest::Debug(_) | Guest::Patched(_) => vec![QEMU, INITRAMFS, SOURCE],
            Guest::Uml(_) => vec![INITRAMFS, SOURCE, CHECKPATCH, DISK, leaks::NEEDS],
            Guest::Arm64(_) => vec![SOURCE, arm64::NEEDS],
            Guest::RwfDetach(args) if args.compile => vec![SOURCE, CHECKPATCH],
            Guest::RwfDetach(_) => vec![QEMU, INITRAMFS, SOURCE, CHECKPATCH, DISK],
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Before minutes of building and downloading, not after.
    needs::check("this guest", &args.guest.needs(), args.install)?;
    match &args.guest {
        Guest::Nic(args) => nic::run(args),
        Guest::Run(args) => run::run(args),
        Guest::Detach(args) => detach::run(args),
        Guest::Stock(args) => stock::run(args),
        Guest::Pages(args) => pages::run(args),
        Guest::Count(args) => count::run(args),
        Guest::Debug(args) => debug::run(args),
        Guest::Uml(args) => uml::run(args),
        Guest::Patched(args) => patched::run(args),
        Guest::Arm64(args) => arm64::run(args),
        Guest::RwfDetach(args) => rwf_detach::run(args),
    }
}

/// Debian's stock kernel.
#[derive(Debug)]
struct Stock {
    image: PathBuf,
    modules: initramfs::Modules,
    release: String,
}

impl Stock {
    fn new() -> anyhow::Result<Self> {
        Self::of("6.12.")
    }

    /// Finds the newest whose version begins so.
    fn of(version: &str) -> anyhow::Result<Self> {
        let package = cache::newest(&format!("linux-image-{version}"), "-cloud-amd64")?;
        println!("kernel: {} {}", package.name, package.version);
        let release = package.name.trim_start_matches("linux-image-").to_owned();
        let image = package.root.join(format!("boot/vmlinuz-{release}"));
        let modules = initramfs::Modules::new(&package.root, &release)?;
        Ok(Stock { image, modules, release })
    }
}

/// The two devices on the hub: eth0 here, with 10.8.0.1 and `fd08::1`; eth1 with 10.8.0.2 and
/// `fd08::2` in the namespace `peer`.
const NETWORK: &str = "
ip link set lo up
ip netns add peer
ip link set eth1 netns peer
ip addr add 10.8.0.1/24 dev eth0
ip addr add fd08::1/64 dev eth0 nodad
ip link set eth0 up
ip -n peer link set lo up
ip -n peer addr add 10.8.0.2/24 dev eth1
ip -n peer addr add fd08::2/64 dev eth1 nodad
ip -n peer link set eth1 up
";

/// Builds the init of guests, and an initramfs with it.
fn initramfs() -> anyhow::Result<initramfs::Initramfs> {
    let built = cargo::programs(&["build", "--package", "sendfile2-guest"])?;
    initramfs::Initramfs::new(&cargo::program(&built, "guest-init")?.path)
}
