//! The patches in the checkout that kernels of guests are built with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::cache;

/// The directory of the series that notifies, in the checkout.
pub(super) const SERIES: &str = "kernel/patches/6.12";
/// The directory of the series of `RWF_DETACH`; it needs nothing of the other.
pub(super) const DETACH: &str = "kernel/patches/detach-6.12";
/// The patches that user-mode Linux needs beside the series, on some hosts; not part of it.
pub(super) const UML: &str = "kernel/patches/uml";

/// A patch of the checkout.
#[derive(Debug)]
pub(super) struct Patch {
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) text: Vec<u8>,
}

impl Patch {
    /// Returns the files that the patch changes, makes or removes.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix("+++ b/").or(line.strip_prefix("--- a/")))
    }

    /// Applies the patch to a tree.
    pub(super) fn apply(&self, tree: &Path) -> anyhow::Result<()> {
        let mut command = Command::new("patch");
        command.args(["-p1", "--fuzz=0", "--quiet", "--no-backup-if-mismatch", "-i"]);
        command.arg(&self.path).current_dir(tree);
        cache::run(&mut command, &format!("{} is to be applied", self.name))
    }
}

/// Reads the patches of a series, in their order; not its cover letter.
pub(super) fn series(directory: &str) -> anyhow::Result<Vec<Patch>> {
    let patches = patches_in(directory)?;
    ensure!(!patches.is_empty(), "{directory} has no patches");
    Ok(patches)
}

/// Reads the patches of a directory, in the order of their names; not a cover letter.
pub(super) fn patches_in(directory: &str) -> anyhow::Result<Vec<Patch>> {
    let directory = crate::root()?.join(directory);
    let mut patches = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if name.ends_with(".patch") && !name.starts_with("0000-") {
            let text = std::fs::read(&path)?;
            patches.push(Patch { name, path, text });
        }
    }
    patches.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(patches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_series_is_whole_and_in_order() {
        for directory in [SERIES, DETACH] {
            let series = series(directory).unwrap();
            for (i, patch) in series.iter().enumerate() {
                assert!(patch.name.starts_with(&format!("{:04}-", i + 1)), "{}", patch.name);
            }
            let cover = crate::root().unwrap().join(directory).join("0000-cover-letter.patch");
            let cover = std::fs::read_to_string(cover).unwrap();
            let (none, number) = if series.len() < 10 {
                ("0", series.len().to_string())
            } else {
                ("00", format!("{:02}", series.len()))
            };
            assert!(cover.contains(&format!(" {none}/{number}]")), "{directory}");
        }
    }
}
