//! The file that is sent and overwritten.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use procfs::FromRead;
use procfs::process::MountInfos;
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;
use sendfile2::Source;
use tempfile::TempDir;

/// Content is written this many bytes at a time.
const CHUNK: u64 = 1 << 20;

/// A file without a name, so that it is gone with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) file: File,
    pub(crate) source: Source,
    pub(crate) size: u64,
    pub(crate) directory: PathBuf,
    pub(crate) filesystem: String,
    /// What the file holds now.
    pub(crate) generation: Generation,
}

/// Which of two contents: they differ in every byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Generation {
    A,
    B,
}

impl Generation {
    pub(crate) fn other(self) -> Self {
        match self {
            Generation::A => Generation::B,
            Generation::B => Generation::A,
        }
    }

    /// Fills `buffer` with what this content has at `offset`: noise that depends on the position,
    /// so that a byte in the wrong place is a wrong byte, too.
    pub(crate) fn fill(self, buffer: &mut [u8], offset: u64) {
        let flip = if self == Generation::A { 0 } else { u64::MAX };
        let mut word = offset / 8;
        let mut skip = usize::from(offset.to_le_bytes()[0] % 8);
        let mut rest = buffer;
        while !rest.is_empty() {
            let noise = (splitmix(word) ^ flip).to_le_bytes();
            let n = rest.len().min(8 - skip);
            rest[..n].copy_from_slice(&noise[skip..skip + n]);
            rest = &mut rest[n..];
            skip = 0;
            word += 1;
        }
    }
}

/// The n-th number of the generator `SplitMix64`.
fn splitmix(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Scratch {
    /// Makes a file of `size` bytes in `directory`; without one, where a file is a file: on a disk,
    /// in the current directory if that is possible.
    pub(crate) fn new(directory: Option<&Path>, size: u64) -> anyhow::Result<Self> {
        let (file, directory) = place(directory)?;
        let source = Source::new(file.try_clone()?)?;
        let filesystem = filesystem(&file)?;
        let scratch =
            Scratch { file, source, size, directory, filesystem, generation: Generation::A };
        write(&scratch.file, size).with_context(|| {
            format!(
                "cannot write {} into {} (choose a smaller --size, or another directory with --dir)",
                crate::units::bytes(size),
                scratch.directory.display()
            )
        })?;
        Ok(scratch)
    }

    /// Overwrites the file in place, as any other program would: the page cache changes at once.
    pub(crate) fn overwrite(&self, content: &[u8], at: u64) -> anyhow::Result<()> {
        self.file.write_all_at(content, at).context("cannot overwrite the file")
    }
}

/// Files of known content in a directory that is gone in the end.
#[derive(Debug)]
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Self> {
        let made = tempfile::tempdir_in(directory);
        made.map(Files)
            .with_context(|| format!("cannot make a directory in {}", directory.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a file of `size` bytes, named by that.
    pub(crate) fn add(&self, size: u64) -> anyhow::Result<()> {
        let path = self.path().join(size.to_string());
        let made = File::create(&path).and_then(|file| write(&file, size));
        made.with_context(|| {
            format!("cannot write {} (choose another directory with --dir)", path.display())
        })
    }
}

fn write(file: &File, size: u64) -> io::Result<()> {
    // Asks for the space first: a full disk shows before minutes of writing.
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
        Err(e) => return Err(e.into()),
    }
    let mut buffer = Vec::new();
    for piece in pieces(size, CHUNK) {
        buffer.resize(len(&piece), 0);
        Generation::A.fill(&mut buffer, piece.start);
        file.write_all_at(&buffer, piece.start)?;
    }
    Ok(())
}

/// `0..size` in pieces of `piece` bytes; the last may be shorter.
pub(crate) fn pieces(size: u64, piece: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(piece)).map(move |i| i * piece..((i + 1) * piece).min(size))
}

/// The length of a piece, which is small.
pub(crate) fn len(piece: &Range<u64>) -> usize {
    usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX)
}

/// An empty file without a name in `directory`; without one, where a file is a file: on a disk, in
/// the current directory if that is possible. Also says where that is.
pub(crate) fn place(directory: Option<&Path>) -> anyhow::Result<(File, PathBuf)> {
    match directory {
        Some(directory) => Ok((create(directory)?, full(directory))),
        None => choose(),
    }
}

fn create(directory: &Path) -> anyhow::Result<File> {
    tempfile::tempfile_in(directory).with_context(|| {
        format!(
            "cannot create a file in {} (choose a directory that you may write to with --dir)",
            directory.display()
        )
    })
}

/// The first directory whose files can be mapped and are on a disk; else the first that can be
/// written to at all.
fn choose() -> anyhow::Result<(File, PathBuf)> {
    let candidates = [PathBuf::from("."), std::env::temp_dir(), PathBuf::from("/var/tmp")];
    let mut first = None;
    for directory in &candidates {
        let Ok(file) = create(directory) else { continue };
        let directory = full(directory);
        let mapped = Source::new(file.try_clone()?)?.unmappable().is_none();
        if mapped && !in_memory(&file)? {
            return Ok((file, directory));
        }
        first.get_or_insert((file, directory));
    }
    match first {
        Some(found) => Ok(found),
        None => bail!(
            "cannot create a file in the current directory, in {} or in /var/tmp: choose a \
             directory that you may write to with --dir",
            candidates[1].display()
        ),
    }
}

/// The path to be shown.
fn full(directory: &Path) -> PathBuf {
    directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf())
}

fn in_memory(file: &File) -> anyhow::Result<bool> {
    Ok(["tmpfs", "ramfs"].contains(&filesystem(file)?.as_str()))
}

/// The type of the filesystem that `file` is on, as mount(8) names it.
pub(crate) fn filesystem(file: &File) -> anyhow::Result<String> {
    let id = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    let mounts = MountInfos::from_file("/proc/self/mountinfo");
    let mount = mounts.ok().and_then(|mounts| {
        mounts.0.into_iter().find(|mount| u64::try_from(mount.mnt_id).is_ok_and(|m| m == id))
    });
    Ok(match mount {
        Some(mount) => mount.fs_type,
        // No /proc, or a kernel before 5.8.
        None => format!("type {:#x}", rustix::fs::fstatfs(file)?.f_type),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_contents_differ_in_every_byte() {
        let (mut a, mut b) = (vec![0; 5000], vec![0; 5000]);
        Generation::A.fill(&mut a, 13);
        Generation::B.fill(&mut b, 13);
        assert!(a.iter().zip(&b).all(|(a, b)| a != b));
    }

    #[test]
    fn content_depends_on_the_position_only() {
        let mut whole = vec![0; 100];
        Generation::A.fill(&mut whole, 0);
        for start in 0..90 {
            let mut part = vec![0; 10];
            Generation::A.fill(&mut part, start as u64);
            assert_eq!(part, whole[start..start + 10], "from {start}");
        }
    }

    #[test]
    fn pieces_cover_the_file() {
        let all: Vec<_> = pieces(10, 4).collect();
        assert_eq!(all, [0..4, 4..8, 8..10]);
        assert_eq!(pieces(4, 4).count(), 1);
    }
}
