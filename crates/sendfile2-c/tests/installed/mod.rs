//! The files that `cargo xtask install` installs, and C programs that use them.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The root of the checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

pub fn xtask(arguments: &[&str]) -> Output {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    Command::new(cargo).current_dir(root()).arg("xtask").args(arguments).output().unwrap()
}

/// The directory in which all of it is kept, and taken from, if it is set: for guests, which have neither
/// cargo nor a compiler.
pub fn kept() -> Option<PathBuf> {
    std::env::var_os("SENDFILE2_TEST_COMPILED").map(PathBuf::from)
}

/// The directory that everything is installed below, made once for each test program.
pub fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let exe = std::env::current_exe().unwrap();
        // Without cargo's hash.
        let name = exe.file_stem().unwrap().to_str().unwrap();
        let name = name.rsplit_once('-').map_or(name, |(name, _)| name);
        let own = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed").join(name);
        let prefix = kept().unwrap_or(own);
        if kept().is_some() && prefix.join("lib").exists() {
            return prefix;
        }
        let output = xtask(&["install", "--only-libraries", "--prefix", prefix.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        prefix
    })
}

/// Runs a command, shows what it prints, and panics unless it succeeds.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    text
}

/// Returns the words that pkg-config prints for the installed library.
pub fn pkg_config(arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(arguments).arg("sendfile2");
    match command.output() {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(Into::into).collect()
        }
        Ok(output) => panic!("pkg-config: {}", String::from_utf8_lossy(&output.stderr)),
        // The words that pkg-config would print.
        Err(_) => {
            let file = prefix().join("lib/pkgconfig/sendfile2.pc");
            let description = std::fs::read_to_string(file).unwrap();
            let private = description.lines().find_map(|line| line.strip_prefix("Libs.private: "));
            let mut all = vec![
                format!("-I{}", prefix().join("include").display()),
                format!("-L{}", prefix().join("lib").display()),
                "-lsendfile2".into(),
            ];
            if arguments.contains(&"--static") {
                all.extend(private.unwrap().split_whitespace().map(Into::into));
            }
            all
        }
    }
}

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"];

/// Compiles a C program of one file.
pub fn compile(source: &Path) -> PathBuf {
    compile_all(&[source])
}

/// Compiles a C program against the installed library, as its users do; the program, which has the
/// name of the first file.
pub fn compile_all(sources: &[&Path]) -> PathBuf {
    // Once: a program that runs cannot be written.
    static COMPILED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    let program = directory.join(sources[0].file_stem().unwrap());
    if compiled.contains(&program) || (kept().is_some() && program.exists()) {
        return program;
    }
    run(Command::new("cc")
        .args(["-std=gnu11", "-g"])
        .args(STRICT)
        .arg("-o")
        .arg(&program)
        .args(sources)
        .args(pkg_config(&["--cflags", "--libs"]))
        // check.h, also for the tests of the shim.
        .arg("-I")
        .arg(root().join("crates/sendfile2-c/tests/c"))
        .arg("-lpthread"));
    compiled.push(program.clone());
    program
}

/// A command that runs a program with the installed library.
pub fn installed(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    command.env("TEST_DIR", env!("CARGO_TARGET_TMPDIR"));
    command
}
