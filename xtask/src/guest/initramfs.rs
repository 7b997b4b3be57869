//! The root filesystem of a guest: programs with their shared libraries, kernel modules, a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use sendfile2_guest::{PLAN, Plan};

/// The programs that the tests and the steps use, at the same paths in the guest as here.
const TOOLS: [&str; 34] = [
    "sh", "ip", "tc", "unshare", "nsenter", "mount", "umount", "true", "cat", "echo", "ls",
    "sleep", "mkdir", "rm", "chmod", "touch", "stat", "sysctl", "env", "timeout", "truncate",
    "dmesg", "prlimit", "test", "setpriv", "losetup", "head", "cp", "grep", "dirname", "mktemp",
    "mkfifo", "kill", "gzip",
];

#[derive(Debug, Default)]
pub(super) struct Initramfs {
    /// The entries by their absolute path, so that directories come before what is in them.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    Directory(u32),
    Text(Vec<u8>, u32),
    Copy(PathBuf, u32),
    Stripped(PathBuf),
    Device(u32, u32),
}

impl Initramfs {
    /// Makes one that has the mount points, the init, and the tools that this machine has.
    pub(super) fn new(init: &Path) -> anyhow::Result<Self> {
        let mut new = Initramfs::default();
        for at in ["/dev", "/proc", "/sys", "/tmp", "/run", "/etc"] {
            new.directory(at, 0o755);
        }
        // Before devtmpfs is mounted, the runtime of init needs them.
        new.entries.insert("/dev/console".into(), Entry::Device(5, 1));
        new.entries.insert("/dev/null".into(), Entry::Device(1, 3));
        new.text(
            "/etc/passwd",
            "root:x:0:0::/tmp:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n",
            0o644,
        );
        new.text("/etc/group", "root:x:0:\nuser:x:1000:\n", 0o644);
        new.program(init, "/init")?;
        for tool in TOOLS {
            if let Some(path) = find(tool) {
                let name = path.to_str().context("a tool with a strange name")?.to_owned();
                new.program(&path, &name)?;
            }
        }
        Ok(new)
    }

    /// Adds a directory, with those that it is in.
    pub(super) fn directory(&mut self, at: &str, mode: u32) {
        self.parents(at);
        self.entries.insert(at.into(), Entry::Directory(mode));
    }

    pub(super) fn text(&mut self, at: &str, text: impl Into<Vec<u8>>, mode: u32) {
        self.parents(at);
        self.entries.insert(at.into(), Entry::Text(text.into(), mode));
    }

    pub(super) fn copy(&mut self, from: &Path, at: &str, mode: u32) {
        self.parents(at);
        self.entries.insert(at.into(), Entry::Copy(from.to_owned(), mode));
    }

    /// Adds all files of a directory, as they are.
    pub(super) fn tree(&mut self, from: &Path, at: &str) -> anyhow::Result<()> {
        self.directory(at, 0o755);
        for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let at = format!("{at}/{}", name.context("a file with a strange name")?);
            let metadata = std::fs::metadata(&path).with_context(|| path.display().to_string())?;
            if metadata.is_dir() {
                self.tree(&path, &at)?;
            } else {
                self.copy(&path, &at, metadata.permissions().mode() & 0o777);
            }
        }
        Ok(())
    }

    /// Adds a program, without its debugging information, and the shared libraries that it needs.
    pub(super) fn program(&mut self, from: &Path, at: &str) -> anyhow::Result<()> {
        self.parents(at);
        self.entries.insert(at.into(), Entry::Stripped(from.to_owned()));
        for library in libraries(from)? {
            let at = library.to_str().context("a library with a strange name")?.to_owned();
            self.copy(&library, &at, 0o755);
        }
        Ok(())
    }

    /// Adds modules of the unpacked package of a kernel, each with what it depends on; returns
    /// where they are, in the order to load them in. Modules that are built into the kernel are
    /// left out.
    pub(super) fn modules(
        &mut self,
        modules: &Modules,
        names: &[&str],
    ) -> anyhow::Result<Vec<String>> {
        let mut paths = Vec::new();
        for module in modules.order(names)? {
            let at = format!("/lib/modules/{}", module.rsplit('/').next().unwrap_or(&module));
            self.copy(&modules.directory.join(&module), &at, 0o644);
            paths.push(at);
        }
        Ok(paths)
    }

    pub(super) fn plan(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.text(PLAN, serde_json::to_vec(plan)?, 0o644);
        Ok(())
    }

    fn parents(&mut self, at: &str) {
        for (i, _) in at.match_indices('/').skip(1) {
            self.entries.entry(at[..i].into()).or_insert(Entry::Directory(0o755));
        }
    }

    /// Writes the archive that the kernel unpacks.
    pub(super) fn write(&self, to: &Path) -> anyhow::Result<()> {
        let file = File::create(to).with_context(|| to.display().to_string())?;
        let mut out = BufWriter::new(file);
        for (path, entry) in &self.entries {
            self.entry(&mut out, path.trim_start_matches('/'), entry)
                .with_context(|| format!("cannot put {path} into {}", to.display()))?;
        }
        trailer(out)?.flush().with_context(|| to.display().to_string())
    }

    fn entry(&self, out: &mut impl Write, name: &str, entry: &Entry) -> anyhow::Result<()> {
        let new = Builder::new(name).nlink(1);
        let (builder, content) = match entry {
            Entry::Directory(mode) => {
                (new.mode(*mode).set_mode_file_type(ModeFileType::Directory).nlink(2), Vec::new())
            }
            Entry::Text(text, mode) => {
                (new.mode(*mode).set_mode_file_type(ModeFileType::Regular), text.clone())
            }
            Entry::Copy(from, mode) => (
                new.mode(*mode).set_mode_file_type(ModeFileType::Regular),
                std::fs::read(from).with_context(|| from.display().to_string())?,
            ),
            Entry::Stripped(from) => {
                (new.mode(0o755).set_mode_file_type(ModeFileType::Regular), stripped(from)?)
            }
            Entry::Device(major, minor) => (
                new.mode(0o666)
                    .set_mode_file_type(ModeFileType::Char)
                    .rdev_major(*major)
                    .rdev_minor(*minor),
                Vec::new(),
            ),
        };
        let size = u32::try_from(content.len()).context("it is larger than 4 GiB")?;
        let mut writer = builder.write(&mut *out, size);
        writer.write_all(&content)?;
        writer.finish()?;
        Ok(())
    }
}

/// The modules of a kernel.
#[derive(Debug)]
pub(super) struct Modules {
    directory: PathBuf,
    dependencies: Dependencies,
}

impl Modules {
    /// Reads the modules of an unpacked package, or of a tree that modules were installed into, for
    /// this release.
    pub(super) fn new(root: &Path, release: &str) -> anyhow::Result<Self> {
        // depmod looks there, wherever the package has them.
        let lib = root.join("lib");
        if !lib.exists() {
            std::os::unix::fs::symlink("usr/lib", &lib)?;
        }
        let directory = lib.join("modules").join(release);
        let list = directory.join("modules.dep");
        if !list.exists() {
            let depmod = find("depmod").context("depmod is missing: install kmod")?;
            super::cache::run(Command::new(depmod).arg("-b").arg(root).arg(release), "of kmod")?;
        }
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let builtin = read(&directory.join("modules.builtin"))?;
        let dependencies = Dependencies::parse(&read(&list)?, &builtin);
        Ok(Modules { directory, dependencies })
    }

    fn order(&self, names: &[&str]) -> anyhow::Result<Vec<String>> {
        self.dependencies.order(names)
    }
}

/// The content of modules.dep and modules.builtin.
#[derive(Debug)]
struct Dependencies {
    /// The modules by name: each one's path, and the paths of those that it needs.
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
}

/// The name of a module, by its path.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

impl Dependencies {
    fn parse(dependencies: &str, builtin: &str) -> Self {
        let modules = dependencies.lines().filter_map(|line| {
            let (path, needs) = line.split_once(':')?;
            let needs = needs.split_whitespace().map(str::to_owned).collect();
            Some((module_name(path), (path.to_owned(), needs)))
        });
        Dependencies {
            modules: modules.collect(),
            builtin: builtin.lines().map(module_name).collect(),
        }
    }

    /// The paths of all that are needed, none before those that it needs.
    fn order(&self, names: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut order = Vec::new();
        for name in names {
            self.add(&module_name(name), &mut order, 0)?;
        }
        Ok(order)
    }

    fn add(&self, name: &str, order: &mut Vec<String>, depth: u32) -> anyhow::Result<()> {
        let Some((path, needs)) = self.modules.get(name) else {
            if self.builtin.contains(name) {
                return Ok(());
            }
            bail!("the kernel has no module {name}");
        };
        ensure!(depth < 100, "the modules need each other in a circle ({name})");
        if order.contains(path) {
            return Ok(());
        }
        for need in needs {
            self.add(&module_name(need), order, depth + 1)?;
        }
        if !order.contains(path) {
            order.push(path.clone());
        }
        Ok(())
    }
}

/// A program, in the directories where Debian has them.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let directories = ["/bin", "/usr/bin", "/sbin", "/usr/sbin"];
    directories.iter().map(|at| Path::new(at).join(name)).find(|path| path.exists())
}

/// The shared libraries that a program needs, and the one that loads them.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .context("cannot run ldd (of libc-bin)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() || said.contains("not a dynamic executable"),
        "ldd {}: {}",
        program.display(),
        said.trim()
    );
    ldd(&text).with_context(|| format!("a library of {} is missing", program.display()))
}

/// Reads what ldd prints.
fn ldd(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        ensure!(!line.ends_with("not found"), "{line}");
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        let path = path.split_once(" (").map_or(path, |(path, _)| path);
        if path.starts_with('/') {
            found.push(PathBuf::from(path));
        }
    }
    Ok(found)
}

/// The content of a program without what only debuggers read: a tenth, of a test.
fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let file = tempfile::NamedTempFile::new()?;
    let status = Command::new("strip")
        .args(["--strip-debug", "-o"])
        .arg(file.path())
        .arg(program)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("cannot run strip (of binutils)")?;
    // A script is no object; it is taken as it is.
    let path = if status.success() { file.path() } else { program };
    std::fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/a.ko.xz: kernel/b.ko.xz kernel/c-d.ko.xz\nkernel/b.ko.xz: kernel/c-d.ko.xz\n\
                       kernel/c-d.ko.xz:\nkernel/x.ko: kernel/y.ko\nkernel/y.ko: kernel/x.ko\n";

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let all = Dependencies::parse(DEP, "kernel/fs/ext4/ext4.ko\n");
        let order = all.order(&["a", "c_d", "ext4", "b"]).unwrap();
        assert_eq!(order, ["kernel/c-d.ko.xz", "kernel/b.ko.xz", "kernel/a.ko.xz"]);
        assert_eq!(all.order(&["c-d"]).unwrap(), ["kernel/c-d.ko.xz"]);
        assert!(all.order(&["vmxnet3"]).unwrap_err().to_string().contains("vmxnet3"));
        assert!(all.order(&["x"]).unwrap_err().to_string().contains("circle"));
    }

    #[test]
    fn what_ldd_says_is_understood() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = ldd(text).unwrap();
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(ldd("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert!(ldd("\tlibnone.so.1 => not found\n").is_err());
    }

    #[test]
    fn the_archive_has_what_was_put_into_it() {
        let mut initramfs = Initramfs::default();
        initramfs.text("/a/b/file", "content", 0o600);
        initramfs.directory("/dev", 0o755);
        initramfs.entries.insert("/dev/null".into(), Entry::Device(1, 3));
        let file = tempfile::NamedTempFile::new().unwrap();
        initramfs.write(file.path()).unwrap();

        let mut input: Box<dyn std::io::Read> = Box::new(file.reopen().unwrap());
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(input).unwrap();
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut content = String::new();
            std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
            seen.push((name, mode, device, content));
            input = reader.finish().unwrap();
        }
        let expected = [
            ("a", 0o040_755, (0, 0), ""),
            ("a/b", 0o040_755, (0, 0), ""),
            ("a/b/file", 0o100_600, (0, 0), "content"),
            ("dev", 0o040_755, (0, 0), ""),
            ("dev/null", 0o020_666, (1, 3), ""),
        ];
        let expected = expected.map(|(name, mode, device, content)| {
            (name.to_owned(), mode, device, content.to_owned())
        });
        assert_eq!(seen, expected);
    }
}
