//! Filesystems to try files on: the one that the checkout is on, tmpfs, and, where this is root,
//! others in files of their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A directory on some filesystem, which is gone when this is dropped.
pub struct Filesystem {
    pub name: &'static str,
    pub dir: PathBuf,
    mounted: Vec<PathBuf>,
    device: Option<Disk>,
    /// Dropped after the mounts are gone.
    _image: TempDir,
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        for mount in self.mounted.iter().rev() {
            // Also where a file on it is still open.
            let unmounted = Command::new("umount").arg("-l").arg(mount).status();
            if !unmounted.is_ok_and(|status| status.success()) {
                eprintln!("{} stays mounted", mount.display());
            }
        }
    }
}

/// Those that a test may expect direct I/O of, and that it takes pages out.
pub const DETACHING: [&str; 6] = [
    "ext4",
    "ext4 with 1 KiB blocks",
    "ext4 with bigalloc",
    "xfs",
    "btrfs",
    "btrfs without checksums",
];

/// All that can be had here; what cannot is said as a skip.
pub fn filesystems() -> Vec<Filesystem> {
    let mut all = vec![here(), tmpfs()];
    all.extend(DETACHING.iter().filter_map(|name| mounted(name)));
    all.extend(overlay());
    all
}

/// The one that the checkout is on.
pub fn here() -> Filesystem {
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    unmounted("here", image)
}

pub fn tmpfs() -> Filesystem {
    let image = TempDir::new_in("/dev/shm").unwrap();
    unmounted("tmpfs", image)
}

fn unmounted(name: &'static str, image: TempDir) -> Filesystem {
    let dir = image.path().into();
    Filesystem { name, dir, mounted: Vec::new(), device: None, _image: image }
}

fn at(mounted: PathBuf, mut filesystem: Filesystem) -> Filesystem {
    filesystem.dir.clone_from(&mounted);
    filesystem.mounted.push(mounted);
    filesystem
}

/// A directory with a block device of `size` bytes, by the name of `file`.
pub fn block_device(size: u64) -> Option<Filesystem> {
    let device = loop_device(size)?;
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::os::unix::fs::symlink(&device.dir, image.path().join("file")).unwrap();
    let mut filesystem = unmounted("a block device", image);
    filesystem.device = Some(device);
    Some(filesystem)
}

fn skip(name: &str, why: &str) -> Option<Filesystem> {
    println!("SKIP: {name}: {why}");
    None
}

/// One of [`DETACHING`], or another one that is known here, made anew in a file, or in memory.
pub fn mounted(name: &'static str) -> Option<Filesystem> {
    match name {
        "tmpfs with huge pages" => return in_memory(name, "huge=always"),
        "tmpfs of 8 MiB" => return in_memory(name, "size=8m,huge=never"),
        _ => {}
    }
    let (program, arguments, options): (_, &[&str], _) = match name {
        // Small ones have blocks of 1 KiB unless told otherwise.
        "ext4" => ("mkfs.ext4", &["-q", "-F", "-b", "4096"], "loop"),
        "ext4 with 1 KiB blocks" => ("mkfs.ext4", &["-q", "-F", "-b", "1024"], "loop"),
        "ext4 with data=journal" => ("mkfs.ext4", &["-q", "-F"], "loop,data=journal"),
        "ext4 with bigalloc" => ("mkfs.ext4", &["-q", "-F", "-O", "bigalloc"], "loop"),
        "ext3" => ("mkfs.ext3", &["-q", "-F", "-b", "4096"], "loop"),
        "xfs" => ("mkfs.xfs", &["-q", "-f"], "loop"),
        "btrfs" => ("mkfs.btrfs", &["-q", "-f"], "loop"),
        "btrfs without checksums" => ("mkfs.btrfs", &["-q", "-f"], "loop,nodatasum"),
        _ => panic!("no filesystem is called {name}"),
    };
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (disk, dir) = (image.path().join("image"), image.path().join("mounted"));
    std::fs::File::create(&disk).unwrap().set_len(320 << 20).unwrap();
    std::fs::create_dir(&dir).unwrap();
    let mut mkfs = Command::new(program);
    mkfs.args(arguments).arg(&disk).env("PATH", path());
    if let Err(why) = run(&mut mkfs) {
        return skip(name, &why);
    }
    let mut mount = Command::new("mount");
    mount.args(["-o", options]).arg(&disk).arg(&dir);
    if let Err(why) = run(&mut mount) {
        return skip(name, &why);
    }
    Some(at(dir, unmounted(name, image)))
}

fn in_memory(name: &'static str, options: &str) -> Option<Filesystem> {
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = image.path().join("mounted");
    std::fs::create_dir(&dir).unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&dir);
    if let Err(why) = run(&mut mount) {
        return skip(name, &why);
    }
    Some(at(dir, unmounted(name, image)))
}

/// A block device of its own, whose path `dir` is, until this is dropped.
pub struct Disk {
    pub name: &'static str,
    pub dir: PathBuf,
    _image: TempDir,
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(why) = run(Command::new("losetup").env("PATH", path()).arg("-d").arg(&self.dir))
        {
            eprintln!("{} stays: {why}", self.dir.display());
        }
    }
}

pub fn loop_device(len: u64) -> Option<Disk> {
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = image.path().join("image");
    std::fs::File::create(&disk).unwrap().set_len(len).unwrap();
    let mut losetup = Command::new("losetup");
    losetup.args(["-f", "--show"]).arg(&disk).env("PATH", path());
    match losetup.output() {
        Ok(output) if output.status.success() => {
            let dir = String::from_utf8_lossy(&output.stdout).trim().into();
            Some(Disk { name: "a loop device", dir, _image: image })
        }
        other => {
            println!("SKIP: a loop device: {other:?}");
            None
        }
    }
}

/// An overlay over two directories of the filesystem that the checkout is on.
pub fn overlay() -> Option<Filesystem> {
    let image = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = |name: &str| {
        let dir = image.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        dir
    };
    let (lower, upper, work, merged) = (dir("lower"), dir("upper"), dir("work"), dir("merged"));
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged);
    if let Err(why) = run(&mut mount) {
        return skip("overlayfs", &why);
    }
    Some(at(merged, unmounted("overlayfs", image)))
}

fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{}: {e}", Path::new(command.get_program()).display()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().next().unwrap_or("it failed").to_owned())
}
