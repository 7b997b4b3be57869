//! The programs of the command that are run by it: `sendfile2-server`, `sendfile2-bench`.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that is neither beside this one nor in `PATH`.
#[derive(Debug, thiserror::Error)]
#[error(
    "this needs the program {name}, which is neither beside {beside} nor in PATH: \
     `cargo build --release -p {name}` builds it in a checkout, `cargo install {name}` installs it"
)]
pub struct Missing {
    name: &'static str,
    /// The path of this program.
    beside: String,
}

/// Returns a command that runs the program `name`: the one beside this program, else one in `PATH`.
///
/// # Errors
///
/// There is no such program.
pub fn command(name: &'static str) -> Result<Command, Missing> {
    let own = std::env::current_exe();
    let beside = own.as_ref().ok().and_then(|own| own.parent());
    let path = std::env::var_os("PATH").unwrap_or_default();
    match find(name, beside, &path) {
        Some(program) => Ok(Command::new(program)),
        None => {
            let beside = own.map_or("sendfile2".into(), |own| own.display().to_string());
            Err(Missing { name, beside })
        }
    }
}

/// Finds an executable file in a directory, else in those of `path`.
fn find(name: &str, directory: Option<&Path>, path: &OsStr) -> Option<PathBuf> {
    let directories = directory.map(Path::to_owned).into_iter().chain(std::env::split_paths(path));
    directories.map(|directory| directory.join(name)).find(|program| {
        program.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_beside_this_one_is_taken_before_those_in_path() {
        let [here, first, second] = [(); 3].map(|()| tempfile::tempdir().expect("a directory"));
        let make = |directory: &Path, mode| {
            let program = directory.join("it");
            std::fs::write(&program, "").expect("a file");
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(&program, mode).expect("its owner's");
        };
        let path = std::env::join_paths([first.path(), second.path()]).expect("no colon");
        let found = || find("it", Some(here.path()), &path);
        assert_eq!(found(), None);
        std::fs::create_dir(here.path().join("it")).expect("a directory");
        make(first.path(), 0o644);
        make(second.path(), 0o755);
        assert_eq!(found(), Some(second.path().join("it")), "neither a directory nor a text");
        make(first.path(), 0o755);
        assert_eq!(found(), Some(first.path().join("it")));
        std::fs::remove_dir(here.path().join("it")).expect("empty");
        make(here.path(), 0o755);
        assert_eq!(found(), Some(here.path().join("it")));
    }
}
