//! The patches in the checkout that kernels of guests are built with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::cache;

/// The directory of the series, in the checkout.
pub(super) const SERIES: &str = "kernel/patches/6.12";
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

/// Reads the patches of the series, in their order; not its cover letter.
pub(super) fn series() -> anyhow::Result<Vec<Patch>> {
    let patches = patches_in(SERIES)?;
    ensure!(!patches.is_empty(), "{SERIES} has no patches");
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
    fn the_series_is_whole_and_in_order() {
        let series = series().unwrap();
        for (i, patch) in series.iter().enumerate() {
            assert!(patch.name.starts_with(&format!("{:04}-", i + 1)), "{}", patch.name);
        }
        let cover = crate::root().unwrap().join(SERIES).join("0000-cover-letter.patch");
        let cover = std::fs::read_to_string(cover).unwrap();
        let last = series.last().unwrap();
        assert!(cover.contains(&format!("00/{:02}]", series.len())), "{}", last.name);
    }
}
