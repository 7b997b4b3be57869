//! The facts about a program's file by which it is decided what can protect its `sendfile`.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use object::elf::{FileHeader32, FileHeader64};
use object::read::elf::{ElfFile, FileHeader, ProgramHeader};
use object::read::{Object, ReadCache};
use object::{Architecture, Endianness, FileKind};

/// The name that the shim's file begins with, wherever it is installed.
pub(crate) const SHIM: &str = "libsendfile2_preload.so";

/// The standard library of a program that is linked dynamically.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Libc {
    Glibc,
    Musl,
    /// One that is not known here.
    Other,
}

/// Whether a file calls `sendfile(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Calls {
    /// A program that imports the function.
    Yes,
    /// A program that does not import the function; libraries that it loads may.
    NotItself,
    /// A program without imports to tell by, or that need not import what it calls.
    Unknown,
}

/// Why the preload shim does not take hold of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uncovered {
    Static,
    Go,
    Libc(Libc),
    Privileged,
    Architecture,
}

/// A program's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Executable {
    /// The standard library, of a program that is linked dynamically; none for one that is linked
    /// statically.
    pub(super) libc: Option<Libc>,
    pub(super) go: bool,
    /// Whether the program gets more privileges than who starts it has (setuid, setgid, file
    /// capabilities): the dynamic linker then ignores a library that is preloaded by its path.
    pub(super) privileged: bool,
    /// Whether the program is made for this machine's architecture, as the shim is.
    pub(super) native: bool,
    pub(super) calls: Calls,
}

/// A program, or the one that runs it where it is a script.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    /// The interpreter, if the program is a script.
    pub(super) interpreter: Option<PathBuf>,
    pub(super) executable: Executable,
}

impl Program {
    /// Examines the program of this name, which is looked for in `PATH` if it has no slash.
    pub(super) fn find(name: &Path) -> anyhow::Result<Self> {
        let path = in_path(name).with_context(|| format!("there is no {}", name.display()))?;
        let mut file = open(&path)?;
        let interpreter = interpreter(&mut file, &path)?;
        let executable = match &interpreter {
            Some(interpreter) => Executable::of(open(interpreter)?, interpreter)?,
            None => Executable::of(file, &path)?,
        };
        Ok(Program { path, interpreter, executable })
    }
}

/// Returns the value of `LD_PRELOAD` with which a program, and all that it starts, can be run: one that
/// is linked with another libc than a shim that it finds does not begin. `None` if there is none.
pub(crate) fn preload(name: &Path) -> Option<OsString> {
    if let Some(shim) = shim(Libc::Glibc) {
        // `$ORIGIN` is the directory of the program, to glibc; musl looks for a file of this name, and
        // goes on without it.
        let mut path = OsString::from("$ORIGIN");
        path.push("/..".repeat(DEEPEST));
        path.push(shim);
        return Some(path);
    }
    let libc = Program::find(name).ok().and_then(|program| program.executable.libc);
    shim(Libc::Musl).filter(|_| matches!(libc, None | Some(Libc::Musl))).map(Into::into)
}

/// The levels of directories that a program may be below and still find the shim.
const DEEPEST: usize = 64;

/// Returns the path of the shim for programs of this libc, if it is where it is installed: in the
/// libraries beside the directory of this program. A path with a blank or a colon cannot be preloaded,
/// nor one with a dollar sign.
pub(super) fn shim(libc: Libc) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let prefix = own.parent()?.parent()?;
    let of_libc = |name| format!("lib/{}-linux-{name}", std::env::consts::ARCH);
    // Debian's package has it in a directory of its own, as it has no version.
    let debian = of_libc("gnu/sendfile2");
    let directories = ["lib".into(), "lib64".into(), of_libc("gnu"), debian, of_libc("musl")];
    let mut shims = directories.iter().map(|directory| prefix.join(directory).join(SHIM));
    shims.find(|shim| {
        !shim.as_os_str().as_bytes().iter().any(|byte| b" \t\n:$".contains(byte))
            && File::open(shim).is_ok_and(|file| Libc::of_library(file) == Some(libc))
    })
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    if !file.metadata().is_ok_and(|it| it.is_file()) {
        bail!("{} is not a file", path.display());
    }
    Ok(file)
}

/// Returns the path of a program as execvp(3) would find it. Daemons are also found by who has no
/// `sbin` in `PATH`.
fn in_path(name: &Path) -> Option<PathBuf> {
    if name.as_os_str().as_bytes().contains(&b'/') {
        return Some(name.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|directory| directory.join(name)).find(|program| {
        program.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    })
}

/// Returns the interpreter that a script names in its first line; of `/usr/bin/env NAME`, NAME.
fn interpreter(file: &mut File, path: &Path) -> anyhow::Result<Option<PathBuf>> {
    // The kernel looks at no more.
    let mut first = Vec::new();
    file.take(256).read_to_end(&mut first).with_context(|| format!("{}", path.display()))?;
    let Some(line) = first.strip_prefix(b"#!") else { return Ok(None) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    let named = Path::new(words.next().context("a script without an interpreter")?);
    let of_env = words.find(|word| !word.starts_with('-') && !word.contains('='));
    let interpreter = match of_env {
        Some(name) if named.ends_with("env") => Path::new(name),
        _ => named,
    };
    in_path(interpreter)
        .with_context(|| format!("{}: there is no {}", path.display(), interpreter.display()))
        .map(Some)
}

impl Executable {
    /// Examines a file, of which the name is only told in errors.
    pub(super) fn of(file: File, path: &Path) -> anyhow::Result<Self> {
        let privileged = is_privileged(&file);
        let data = ReadCache::new(file);
        let facts = match FileKind::parse(&data) {
            Ok(FileKind::Elf64) => facts::<FileHeader64<Endianness>>(&data),
            Ok(FileKind::Elf32) => facts::<FileHeader32<Endianness>>(&data),
            _ => bail!("{} is no program of Linux (ELF)", path.display()),
        };
        let it = facts.with_context(|| format!("cannot read the program {}", path.display()))?;
        Ok(Executable { privileged, ..it })
    }

    /// Returns why the shim does not take hold of the program; `None` if it does.
    pub(super) fn uncovered(&self) -> Option<Uncovered> {
        match self.libc {
            _ if self.go => Some(Uncovered::Go),
            None => Some(Uncovered::Static),
            _ if !self.native => Some(Uncovered::Architecture),
            Some(libc) if libc != Libc::Glibc && shim(libc).is_none() => {
                Some(Uncovered::Libc(libc))
            }
            _ if self.privileged => Some(Uncovered::Privileged),
            _ => None,
        }
    }
}

impl Libc {
    /// Returns the libc that a library is linked with: only glibc's functions have versions. `None` for
    /// what is no library of this machine.
    fn of_library(file: File) -> Option<Self> {
        let data = ReadCache::new(file);
        let file = ElfFile::<FileHeader64<Endianness>, _>::parse(&data).ok()?;
        let imports = file.imports().ok().filter(|_| file.architecture() == NATIVE)?;
        let glibc = imports.iter().any(|import| import.library().starts_with(b"libc.so."));
        Some(if glibc { Libc::Glibc } else { Libc::Musl })
    }

    /// Returns the library to which a dynamic linker belongs.
    fn of(linker: &[u8]) -> Self {
        let name = linker.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if name.starts_with(b"ld-musl-") {
            Libc::Musl
        } else if name.starts_with(b"ld-linux") || name.starts_with(b"ld64.so") {
            Libc::Glibc
        } else {
            Libc::Other
        }
    }
}

/// Returns whether the file raises the privileges of who executes it.
fn is_privileged(file: &File) -> bool {
    const SETUID_OR_SETGID: u32 = 0o6000;
    let mode = file.metadata().map_or(0, |it| it.permissions().mode());
    let mut value = [0_u8; 64];
    mode & SETUID_OR_SETGID != 0
        || rustix::fs::fgetxattr(file, "security.capability", &mut value).is_ok_and(|len| len > 0)
}

fn facts<H: FileHeader<Endian = Endianness>>(data: &ReadCache<File>) -> object::Result<Executable> {
    let header = H::parse(data)?;
    let endian = header.endian()?;
    let mut libc = None;
    let mut go = false;
    for segment in header.program_headers(endian, data)? {
        if let Some(linker) = segment.interpreter(endian, data)? {
            libc = Some(Libc::of(linker));
        }
        // "Go\0": the build id, which `strip` leaves.
        if let Some(mut notes) = segment.notes(endian, data)? {
            while let Some(note) = notes.next()? {
                go |= note.name() == b"Go";
            }
        }
    }
    let file = ElfFile::<H, _>::parse(data)?;
    go |= file.section_by_name(".go.buildinfo").is_some();
    let calls = match libc {
        // Go makes its system calls itself, however it is linked.
        _ if go => Calls::Unknown,
        None => Calls::Unknown,
        Some(_) if imports_sendfile(&file)? => Calls::Yes,
        Some(_) => Calls::NotItself,
    };
    let native = file.architecture() == NATIVE;
    Ok(Executable { libc, go, privileged: false, native, calls })
}

/// The architecture of this program.
const NATIVE: Architecture = if cfg!(target_arch = "x86_64") {
    Architecture::X86_64
} else if cfg!(target_arch = "aarch64") {
    Architecture::Aarch64
} else if cfg!(target_arch = "riscv64") {
    Architecture::Riscv64
} else {
    Architecture::Unknown
};

fn imports_sendfile<'data>(file: &impl Object<'data>) -> object::Result<bool> {
    let imports = file.imports()?;
    Ok(imports.iter().any(|import| matches!(import.name(), b"sendfile" | b"sendfile64")))
}

/// Returns whether a library imports `sendfile`; `false` for what is no such file.
pub(super) fn library_calls(file: File) -> bool {
    let data = ReadCache::new(file);
    match FileKind::parse(&data) {
        Ok(FileKind::Elf64) => ElfFile::<FileHeader64<Endianness>, _>::parse(&data)
            .is_ok_and(|file| imports_sendfile(&file).unwrap_or(false)),
        Ok(FileKind::Elf32) => ElfFile::<FileHeader32<Endianness>, _>::parse(&data)
            .is_ok_and(|file| imports_sendfile(&file).unwrap_or(false)),
        _ => false,
    }
}

impl fmt::Display for Libc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Libc::Glibc => "glibc",
            Libc::Musl => "musl",
            Libc::Other => "an unknown libc",
        })
    }
}

impl Calls {
    pub(super) fn name(self) -> &'static str {
        match self {
            Calls::Yes => "yes",
            Calls::NotItself => "not itself",
            Calls::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Calls::Yes => "yes",
            Calls::NotItself => "not itself; a library that it loads later may",
            Calls::Unknown => "unknown: it would call the kernel without a name to be seen",
        })
    }
}

impl fmt::Display for Uncovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uncovered::Static => f.write_str("it is linked statically: nothing can be preloaded"),
            Uncovered::Go => {
                f.write_str("Go makes system calls itself, also where it is linked dynamically")
            }
            Uncovered::Libc(libc) => {
                write!(
                    f,
                    "it is linked with {libc}, and no shim for that is installed beside this command"
                )
            }
            Uncovered::Privileged => f.write_str(
                "it is setuid, setgid or has file capabilities: the dynamic linker then ignores \
                 LD_PRELOAD with a path",
            ),
            Uncovered::Architecture => f.write_str("it is made for another architecture"),
        }
    }
}

impl fmt::Display for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let linked = match self.libc {
            Some(libc) => format!("dynamically, with {libc}"),
            None => "statically".into(),
        };
        writeln!(f, "  {:<20} {linked}{}", "linked", if self.go { ", by Go" } else { "" })?;
        if self.privileged {
            writeln!(f, "  {:<20} setuid, setgid or file capabilities", "privileges")?;
        }
        Ok(())
    }
}
