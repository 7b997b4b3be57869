//! Building and installing: libraries, header, pkg-config file, commands, manual pages.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

/// The interface of libsendfile2.so: a change that old programs do not survive raises it.
const SONAME: &str = "libsendfile2.so.1";

/// Build, and install what C programs and users need below PREFIX
///
/// The libraries, the header, the pkg-config file, the commands and the manual pages.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Prefix that it will be used below
    #[arg(long, default_value = "/usr/local")]
    prefix: PathBuf,
    /// Put before the prefix while installing, for packages
    #[arg(long)]
    destdir: Option<PathBuf>,
    /// Only the libraries, the header, the pkg-config file and the pages that are written by hand
    #[arg(long)]
    only_libraries: bool,
    /// Also the shim for programs that are linked with musl, below lib/ARCHITECTURE-linux-musl; needs the
    /// target (rustup target add) and musl-gcc
    #[arg(long)]
    musl: bool,
}

const SHIM: &str = "libsendfile2_preload.so";

/// The target of programs that are linked with musl.
const MUSL: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-musl"
} else {
    "x86_64-unknown-linux-musl"
};

/// The programs of the command `sendfile2`, each of a package.
pub(crate) const COMMAND: [(&str, &str); 3] = [
    ("sendfile2", "sendfile2-cli"),
    ("sendfile2-server", "sendfile2-server"),
    ("sendfile2-bench", "sendfile2-bench"),
];

impl Args {
    /// Returns the arguments that install only the libraries, to use them from there.
    pub(crate) fn libraries(prefix: PathBuf) -> Self {
        Args { prefix, destdir: None, only_libraries: true, musl: false }
    }

    /// Returns the arguments that install all below `destdir`, for packages.
    pub(crate) fn packaged(prefix: PathBuf, destdir: PathBuf) -> Self {
        Args { prefix, destdir: Some(destdir), only_libraries: false, musl: false }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let root = crate::root()?;
    ensure!(args.prefix.is_absolute(), "--prefix must be an absolute path");
    let built = build(&root, &["sendfile2-c", "sendfile2-preload"], None)?.join("release");
    let to = Tree::new(args)?;
    let room = root.join("crates/sendfile2-c");

    let archive = built.join("libsendfile2_c.a");
    // Its symbols are what it is linked by.
    to.stripped(&archive, "lib/libsendfile2.a", 0o644, "--strip-debug")?;
    let version = env!("CARGO_PKG_VERSION");
    let file = format!("libsendfile2.so.{version}");
    let map = room.join("libsendfile2.map");
    link(cc(), &archive, &map, Some(SONAME), &to.path("lib")?.join(&file), &PRIVATE)?;
    to.symlink(&file, &format!("lib/{SONAME}"))?;
    to.symlink(SONAME, "lib/libsendfile2.so")?;
    to.file(&room.join("include/sendfile2.h"), "include/sendfile2.h", 0o644)?;
    let shim = root.join("crates/sendfile2-preload/libsendfile2_preload.map");
    let at = to.path("lib")?.join(SHIM);
    link(cc(), &built.join("libsendfile2_preload.a"), &shim, None, &at, &PRIVATE)?;
    if args.musl {
        // The shim has its own: a musl system need not have libgcc_s.so, from which it would come.
        let unwinder = unwinder_for_musl()?;
        let target = build(&root, &["sendfile2-preload"], Some(MUSL))?;
        let archive = target.join(MUSL).join("release/libsendfile2_preload.a");
        let at = to.path(format!("lib/{}-linux-musl", std::env::consts::ARCH))?.join(SHIM);
        link("musl-gcc".into(), &archive, &shim, None, &at, &[unwinder])
            .context("Debian has musl-gcc in musl-tools")?;
    }
    if !args.only_libraries {
        // Apart from the libraries: cargo gives all that it builds at once the features of each.
        let packages = COMMAND.map(|(_, package)| package);
        build(&root, &[&packages[..], &["msg_zerocopy"]].concat(), None)?;
        for command in COMMAND.map(|(command, _)| command).into_iter().chain(["msg_zerocopy"]) {
            to.stripped(&built.join(command), &format!("bin/{command}"), 0o755, "--strip-all")?;
        }
        let pages = to.path("share/man/man1")?;
        run_command(Command::new(built.join("sendfile2")).arg("man").arg(pages))?;
    }
    let prefix = args.prefix.display();
    let description = format!(
        "prefix={prefix}\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\n\
         Name: sendfile2\n\
         Description: The safe sendfile(2)\n\
         Version: {version}\n\
         Libs: -L${{libdir}} -lsendfile2\n\
         Libs.private: {}\n\
         Cflags: -I${{includedir}}\n",
        PRIVATE.join(" ")
    );
    to.text(&description, "lib/pkgconfig/sendfile2.pc")?;
    manual(&root, &to)?;
    println!("installed below {}", to.0.display());
    if args.destdir.is_none() {
        if let Some(hint) = unknown_to_the_linker(&args.prefix.join("lib")) {
            println!("{hint}");
        }
    }
    Ok(())
}

/// Returns what remains to be done for programs to find libsendfile2.so, if anything does.
fn unknown_to_the_linker(libraries: &Path) -> Option<String> {
    let ldconfig = |arguments: &[&str]| {
        // Not everybody has /sbin in PATH.
        let output = ["ldconfig", "/sbin/ldconfig"].iter().find_map(|program| {
            Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()
        });
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let here = libraries.display().to_string();
    let library = libraries.join(SONAME).display().to_string();
    if ldconfig(&["-p"])?.lines().any(|line| line.ends_with(&format!("=> {library}"))) {
        return None;
    }
    // The directories that it looks into: "DIRECTORY: (the file that names it)".
    let directories = ldconfig(&["-v", "-N", "-X"])?;
    let mut directories = directories.lines().filter_map(|line| line.split_once(": ("));
    Some(if directories.any(|(directory, _)| directory == here) {
        format!("run `ldconfig` as root, so that programs find {SONAME}")
    } else {
        format!(
            "the dynamic linker does not look into {here}: link programs with -Wl,-rpath,{here}, or \
             run them with LD_LIBRARY_PATH={here}"
        )
    })
}

/// Installs the manual pages that are written by hand, and a link for each function.
fn manual(root: &Path, to: &Tree) -> anyhow::Result<()> {
    for page in [
        "crates/sendfile2-c/man/sendfile2.3",
        "crates/sendfile2-c/man/sendfile2.7",
        "crates/sendfile2-c/man/sendfile2_pwrite.3",
        "crates/msg_zerocopy/man/msg_zerocopy.1",
    ] {
        let (_, name) = page.rsplit_once('/').context("no file name")?;
        let (_, section) = name.rsplit_once('.').context("no section")?;
        to.file(&root.join(page), &format!("share/man/man{section}/{name}"), 0o644)?;
    }
    let exported = std::fs::read_to_string(root.join("crates/sendfile2-c/libsendfile2.map"))?;
    let functions = exported.lines().filter_map(|line| line.trim().strip_suffix(';'));
    for function in functions.filter(|name| name.starts_with("sendfile2_")) {
        let page = match function {
            "sendfile2_pwrite" => continue,
            "sendfile2_pwrite_unit" => "sendfile2_pwrite.3",
            _ => "sendfile2.3",
        };
        to.symlink(page, &format!("share/man/man3/{function}.3"))?;
    }
    Ok(())
}

/// The libraries that Rust's standard library needs (`rustc --print native-static-libs`), but for
/// libgcc: which one it is depends on `-static`, and compilers add it themselves.
pub(crate) const PRIVATE: [&str; 5] = ["-lpthread", "-lrt", "-lm", "-ldl", "-lc"];

/// Builds packages in release mode, for this machine or another target; returns the directory that
/// everything is built below.
fn build(root: &Path, packages: &[&str], target: Option<&str>) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.current_dir(root).args(["build", "--release", "--locked", "--quiet"]);
    command.args(packages.iter().flat_map(|package| ["--package", package]));
    command.args(target.iter().flat_map(|target| ["--target", target]));
    run_command(&mut command)?;
    let metadata = Command::new(&cargo)
        .current_dir(root)
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout)?;
    let target =
        metadata["target_directory"].as_str().context("cargo knows no target directory")?;
    Ok(target.into())
}

/// Returns the unwinder that comes with Rust's standard library for musl.
fn unwinder_for_musl() -> anyhow::Result<PathBuf> {
    let library = crate::rust::library(MUSL)?.join("self-contained/libunwind.a");
    ensure!(library.exists(), "no {}: run `rustup target add {MUSL}`", library.display());
    Ok(library)
}

fn cc() -> OsString {
    std::env::var_os("CC").unwrap_or_else(|| "cc".into())
}

/// Makes a shared library from a static one. (rustc's own shared libraries come with a version
/// script of rustc's, beside which another one has no effect.)
fn link(
    cc: OsString,
    archive: &Path,
    map: &Path,
    soname: Option<&str>,
    to: &Path,
    libraries: &[impl AsRef<OsStr>],
) -> anyhow::Result<()> {
    let mut command = Command::new(cc);
    command.arg("-shared").arg("-o").arg(to);
    let mut script = OsString::from("-Wl,--version-script=");
    script.push(map);
    command.arg(script);
    if let Some(soname) = soname {
        command.arg(format!("-Wl,-soname,{soname}"));
    }
    command.arg("-Wl,--whole-archive").arg(archive).arg("-Wl,--no-whole-archive");
    command.args(["-Wl,--gc-sections", "-Wl,--as-needed", "-Wl,-z,defs", "-Wl,-z,relro,-z,now"]);
    command.args(["-Wl,--strip-all"]);
    run_command(command.args(libraries))
}

fn run_command(command: &mut Command) -> anyhow::Result<()> {
    let status =
        command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// The directory that things are installed below.
struct Tree(PathBuf);

impl Tree {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let mut tree = args.destdir.clone().unwrap_or_default().into_os_string();
        tree.push(&args.prefix);
        Ok(Tree(std::path::absolute(tree)?))
    }

    /// Returns a directory in it, made if it is missing.
    fn path(&self, directory: impl AsRef<OsStr>) -> anyhow::Result<PathBuf> {
        let path = self.0.join(Path::new(directory.as_ref()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Makes a file beside its place, and renames it into that: a program that runs keeps what it
    /// has open or mapped.
    fn place(&self, at: &str, put: impl Fn(&Path) -> std::io::Result<()>) -> anyhow::Result<()> {
        let path = self.0.join(at);
        let directory = path.parent().context("no directory")?;
        self.path(directory)?;
        let new = tempfile::Builder::new().make_in(directory, put)?;
        new.persist(&path).with_context(|| path.display().to_string())?;
        Ok(())
    }

    fn file(&self, from: &Path, at: &str, mode: u32) -> anyhow::Result<()> {
        self.place(at, |new| {
            std::fs::copy(from, new)?;
            std::fs::set_permissions(new, PermissionsExt::from_mode(mode))
        })
        .with_context(|| from.display().to_string())
    }

    /// Installs a file without what only debuggers read; whole, where there is no strip(1).
    fn stripped(&self, from: &Path, at: &str, mode: u32, how: &str) -> anyhow::Result<()> {
        let strip = std::env::var_os("STRIP").unwrap_or_else(|| "strip".into());
        self.place(at, |new| {
            let status = Command::new(&strip).arg(how).arg("-o").arg(new).arg(from).status();
            if !status.is_ok_and(|status| status.success()) {
                eprintln!("{} is installed as it was built: no {strip:?}", from.display());
                std::fs::copy(from, new)?;
            }
            std::fs::set_permissions(new, PermissionsExt::from_mode(mode))
        })
        .with_context(|| from.display().to_string())
    }

    fn text(&self, text: &str, at: &str) -> anyhow::Result<()> {
        self.place(at, |new| {
            std::fs::write(new, text)?;
            std::fs::set_permissions(new, PermissionsExt::from_mode(0o644))
        })
    }

    fn symlink(&self, target: &str, at: &str) -> anyhow::Result<()> {
        self.place(at, |new| std::os::unix::fs::symlink(target, new))
    }
}
