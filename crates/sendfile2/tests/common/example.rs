//! Examples that serve, run as their readers run them; the other crates' tests have it, too.
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations)]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

/// Only a hang passes it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// An example that serves, until this is dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// What it prints from then on. Kept, or it could not.
    pub printed: BufReader<ChildStdout>,
}

impl Server {
    /// Runs an example of the crate that is tested.
    pub fn start(name: &str, file: &Path) -> Self {
        // TARGET/PROFILE/deps/TEST
        let profile = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
        let program = profile.join("examples").join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        // Where cargo was told what to test, it has built no examples, and this may be an old one.
        let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        let fresh = written(&program) > written(&source.with_extension("rs"));
        assert!(fresh, "{program:?} is not built anew: `cargo build --examples` does it");
        let mut command = Command::new(program);
        command.arg("127.0.0.1:0").arg(file);
        Server::run(&mut command)
    }

    /// Runs a program that says first where it listens.
    pub fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        printed.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("listening on ").and_then(|at| at.parse().ok());
        let Some(address) = address else { panic!("{command:?}: {line:?}, {:?}", child.wait()) };
        Server { child, address, printed }
    }

    pub fn connect(&self) -> BufReader<TcpStream> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        BufReader::new(stream)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file that has a name.
pub fn named(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Fails for an example in `directory` that `tests`, the source of tests, do not run, or that is
/// too long to be read.
pub fn each_is_run_and_short(directory: &Path, tests: &str) {
    let entries = std::fs::read_dir(directory).unwrap();
    let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    assert!(!paths.is_empty());
    for path in paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(tests.contains(&format!("start(\"{name}\"")), "{path:?} is run by no test here");
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < 100, "{path:?} has {lines} lines");
    }
}
