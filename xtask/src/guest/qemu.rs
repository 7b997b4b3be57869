//! A guest in QEMU, emulated in software.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::console::{self, Outcome};
use super::initramfs::find;

/// A machine, and what it boots.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The mark before each of its lines.
    pub(super) label: &'a str,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    pub(super) disk: Option<&'a Disk>,
    pub(super) mebibytes: u32,
    pub(super) processors: u32,
    pub(super) network: Network,
    /// Whether each run has the same instructions: one processor, and time is counted in
    /// instructions.
    pub(super) deterministic: bool,
    /// More words of the kernel's command line.
    pub(super) append: &'a str,
    /// The time after which the machine is killed, and has failed.
    pub(super) patience: Duration,
}

/// Two network devices, eth0 and eth1, joined by a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// The device that Debian's stock kernel knows. It sends from the very pages, and cuts large
    /// packets itself.
    Vmxnet3,
    /// A device of the same kind, for kernels that have its driver.
    E1000e,
}

impl Network {
    fn device(self) -> &'static str {
        match self {
            Network::Vmxnet3 => "vmxnet3",
            Network::E1000e => "e1000e",
        }
    }
}

/// A disk, /dev/vda, with an empty ext4 on it: there, other than on a tmpfs, a file is a file.
#[derive(Debug)]
pub(super) struct Disk(tempfile::NamedTempFile);

impl Disk {
    pub(super) fn new(bytes: u64) -> anyhow::Result<Self> {
        let mkfs = find("mkfs.ext4").context("mkfs.ext4 is missing: install e2fsprogs")?;
        let file = tempfile::NamedTempFile::new()?;
        file.as_file().set_len(bytes)?;
        super::cache::run(Command::new(mkfs).arg("-q").arg(file.path()), "of e2fsprogs")?;
        Ok(Disk(file))
    }
}

fn program() -> anyhow::Result<PathBuf> {
    find("qemu-system-x86_64").context("qemu-system-x86_64 is missing")
}

impl Machine<'_> {
    /// Runs the machine to its end.
    pub(super) fn run(&self) -> anyhow::Result<Outcome> {
        let outcome = console::follow(&mut self.command()?, self.label, self.patience)?;
        if outcome.ready() {
            return Ok(outcome);
        }
        // About one boot in thirty of Debian's kernel with two emulated processors dies while the
        // kernel patches its own code.
        println!("{}: the kernel did not come to init; once more", self.label);
        console::follow(&mut self.command()?, self.label, self.patience)
    }

    fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new(program()?);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-machine", "q35", "-m", &format!("{}M", self.mebibytes)]);
        command.args(["-smp", &self.processors.to_string()]);
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        if let Some(disk) = self.disk {
            let file = disk.0.path().to_str().context("a strange name of a temporary file")?;
            // A comma in a value is written twice.
            let file = file.replace(',', ",,");
            command.args(["-drive", &format!("if=virtio,format=raw,cache=unsafe,file={file}")]);
        }
        let device = self.network.device();
        for (id, address) in [("a", "52:54:00:00:00:01"), ("b", "52:54:00:00:00:02")] {
            command.args(["-netdev", &format!("hubport,id={id},hubid=0")]);
            command.args(["-device", &format!("{device},netdev={id},mac={address}")]);
        }
        let mut append = "console=ttyS0 panic=-1 oops=panic printk.devkmsg=on log_buf_len=4M \
                          net.ifnames=0 nowatchdog rcupdate.rcu_cpu_stall_suppress=1"
            .to_owned();
        if self.deterministic {
            command.args(["-accel", "tcg,thread=single", "-cpu", "qemu64", "-seed", "1"]);
            command.args(["-icount", "shift=0,sleep=off,align=off"]);
            command.args(["-rtc", "base=2024-01-01T00:00:00,clock=vm"]);
            append += " nokaslr norandmaps";
        } else {
            command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
        }
        append += " ";
        append += self.append;
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        command.args(["-append", &append]);
        Ok(command)
    }
}
