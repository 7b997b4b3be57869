//! A process that runs: its program, and whether the shim is in it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sendfile2_sys::shim::Counted;

use super::executable::{Calls, Executable, SHIM, library_calls};

/// The mode in which the shim is in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Safe,
    Notify,
    Off,
}

/// A process that runs.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: u32,
    /// The path of its program, as the process sees it.
    pub(super) path: PathBuf,
    pub(super) executable: Executable,
    /// The mode of the shim, if the process has it loaded.
    pub(super) shim: Option<Mode>,
    /// The shim's counters, where its memory can be read.
    pub(super) counted: Option<Counted>,
    /// Whether it was started under `sendfile2 run`, and has a filter of system calls.
    pub(super) supervised: bool,
    /// Whether the program, or a library that is loaded, imports `sendfile`.
    pub(super) calls: Calls,
}

impl Process {
    pub(super) fn find(id: u32) -> anyhow::Result<Self> {
        let directory = PathBuf::from(format!("/proc/{id}"));
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let program = directory.join("exe");
        let path = std::fs::read_link(&program)
            .with_context(|| format!("there is no program to be seen of process {id}"))?;
        let file = File::open(&program).with_context(|| format!("{}", program.display()))?;
        let executable = Executable::of(file, &path)?;
        let maps = read("maps")?;
        let files = executable_files(&maps);
        let loaded = files.iter().any(|path| is_shim(path));
        let counted = loaded.then(|| counted(&directory, &maps)).flatten();
        let shim = match counted.and_then(|counted| Mode::of_number(counted.mode())) {
            // It knows itself; a program may have set variables since.
            Some(mode) => Some(mode),
            None if loaded => Some(mode(&read("environ")?)),
            None => None,
        };
        let environment = read("environ")?;
        let mut variables = environment.split(|byte| *byte == 0);
        let filtered =
            read("status")?.split(|byte| *byte == b'\n').any(|line| line == b"Seccomp:\t2");
        let supervised = filtered && variables.any(|it| it.starts_with(b"SENDFILE2_COOKIE="));
        let calls = match executable.calls {
            Calls::NotItself if files.iter().any(|path| calls(&directory, path)) => Calls::Yes,
            calls => calls,
        };
        Ok(Process { id, path, executable, shim, counted, supervised, calls })
    }

    /// Returns whether each `sendfile` that the process makes by its name is the shim's.
    pub(super) fn is_protected(&self) -> bool {
        !matches!(self.shim, None | Some(Mode::Off))
            && !self.executable.go
            && self.executable.libc.is_some()
    }
}

/// A mapping of a process, of a file: `ADDRESS-END PERMISSIONS OFFSET DEVICE INODE   PATH`.
struct Mapped<'a> {
    addresses: &'a [u8],
    permissions: &'a [u8],
    path: &'a Path,
}

fn mappings(maps: &[u8]) -> impl Iterator<Item = Mapped<'_>> {
    maps.split(|byte| *byte == b'\n').filter_map(|line| {
        let path = line.iter().position(|byte| *byte == b'/')?;
        let path = Path::new(OsStr::from_bytes(&line[path..]));
        let mut words = line.splitn(3, |byte| *byte == b' ');
        Some(Mapped { addresses: words.next()?, permissions: words.next()?, path })
    })
}

/// Returns the files of which the process has code mapped.
fn executable_files(maps: &[u8]) -> BTreeSet<PathBuf> {
    let executable = mappings(maps).filter(|mapped| mapped.permissions.contains(&b'x'));
    executable.map(|mapped| mapped.path.to_owned()).collect()
}

/// Reads the counters of the shim out of the process's memory; `None` where that is not allowed, or
/// they are of another version.
fn counted(process: &Path, maps: &[u8]) -> Option<Counted> {
    let memory = File::open(process.join("mem")).ok()?;
    let written = mappings(maps).filter(|it| is_shim(it.path) && it.permissions.starts_with(b"rw"));
    written.into_iter().find_map(|mapped| {
        let (start, end) = std::str::from_utf8(mapped.addresses).ok()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let length = u64::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        // The shim has a page or two of data.
        let mut bytes = vec![0; usize::try_from(length.min(1 << 20)).ok()?];
        memory.read_exact_at(&mut bytes, start).ok()?;
        Counted::find(&bytes)
    })
}

fn is_shim(path: &Path) -> bool {
    // One that was replaced meanwhile is "(deleted)".
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(SHIM.as_bytes()))
}

/// Returns whether a file that a process has mapped imports `sendfile`; the shim does not count.
fn calls(process: &Path, mapped: &Path) -> bool {
    let Ok(within) = mapped.strip_prefix("/") else { return false };
    !is_shim(mapped) && File::open(process.join("root").join(within)).is_ok_and(library_calls)
}

/// Returns the mode that the shim takes from these variables.
fn mode(environment: &[u8]) -> Mode {
    let mut variables = environment.split(|byte| *byte == 0);
    let value = variables.find_map(|variable| variable.strip_prefix(b"SENDFILE2_MODE="));
    match value.unwrap_or_default().trim_ascii().to_ascii_lowercase().as_slice() {
        b"notify" => Mode::Notify,
        b"off" => Mode::Off,
        _ => Mode::Safe,
    }
}

impl Mode {
    /// Returns the mode that the shim has by this number.
    fn of_number(number: u64) -> Option<Self> {
        [Mode::Safe, Mode::Notify, Mode::Off].into_iter().nth(usize::try_from(number).ok()?)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Safe => "safe",
            Mode::Notify => "notify",
            Mode::Off => "off",
        }
    }
}
