//! The file that is sent and overwritten.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;
use sendfile2::Source;
use tempfile::TempDir;

/// The number of bytes of content that are written at a time.
const CHUNK: u64 = 1 << 20;

/// A file without a name, so that it is gone with the process, however that ends.
#[derive(Debug)]
pub struct Scratch {
    /// The file, open for reading and writing.
    pub file: File,
    /// The source to send from, which is the same file.
    pub source: Source,
    /// The size of the file in bytes.
    pub size: u64,
    /// The directory in which it was made.
    pub directory: PathBuf,
    /// The type of that directory's filesystem.
    pub filesystem: String,
    /// The content that the file holds now.
    pub generation: Generation,
}

/// One of two contents, which differ in every byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// The content that a file is made with.
    A,
    /// The content that it is overwritten with.
    B,
}

impl Generation {
    /// The other one of the two.
    pub fn other(self) -> Self {
        match self {
            Generation::A => Generation::B,
            Generation::B => Generation::A,
        }
    }

    /// Fills `buffer` with what this content has at `offset`: noise that depends on the position,
    /// so that a byte in the wrong place is a wrong byte, too.
    pub fn fill(self, buffer: &mut [u8], offset: u64) {
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
    pub fn new(directory: Option<&Path>, size: u64) -> anyhow::Result<Self> {
        let (file, directory) = place(directory)?;
        let source = source(&file)?;
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
    pub fn overwrite(&self, content: &[u8], at: u64) -> anyhow::Result<()> {
        self.file.write_all_at(content, at).context("cannot overwrite the file")
    }
}

/// Files of known content, in a directory that is removed with this value.
#[derive(Debug)]
pub struct Files(TempDir);

impl Files {
    /// Makes a directory for them in `directory`.
    pub fn new(directory: &Path) -> anyhow::Result<Self> {
        let made = tempfile::tempdir_in(directory);
        made.map(Files)
            .with_context(|| format!("cannot make a directory in {}", directory.display()))
    }

    /// The directory that they are in.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Makes a file of `size` bytes, whose name is its size.
    pub fn add(&self, size: u64) -> anyhow::Result<()> {
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
pub fn pieces(size: u64, piece: u64) -> impl Iterator<Item = Range<u64>> {
    (0..size.div_ceil(piece)).map(move |i| i * piece..((i + 1) * piece).min(size))
}

/// The length of a piece, which is small.
pub fn len(piece: &Range<u64>) -> usize {
    usize::try_from(piece.end - piece.start).unwrap_or(usize::MAX)
}

/// Makes an empty file without a name, and returns it and its directory: `directory`; without one,
/// where a file is a file: on a disk, in the current directory if that is possible.
pub fn place(directory: Option<&Path>) -> anyhow::Result<(File, PathBuf)> {
    match directory {
        Some(directory) => Ok((create(directory)?, full(directory))),
        None => choose(),
    }
}

fn source(file: &File) -> anyhow::Result<Source> {
    let same = file.try_clone().context("cannot duplicate the file's descriptor")?;
    Ok(Source::new(same)?)
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
        let mapped = source(&file)?.unmappable().is_none();
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
pub fn filesystem(file: &File) -> anyhow::Result<String> {
    let id = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id;
    // The name of a mount point may be no UTF-8.
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    Ok(match mounted_type(&String::from_utf8_lossy(&mounts), id) {
        Some(name) => name.to_owned(),
        // No /proc, or a kernel before 5.8.
        None => format!("type {:#x}", rustix::fs::fstatfs(file)?.f_type),
    })
}

/// The filesystem type of the mount `id` in the text of `/proc/self/mountinfo`.
fn mounted_type(mounts: &str, id: u64) -> Option<&str> {
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').next().and_then(|first| first.parse().ok()) == Some(id))?;
    // Some optional fields, then a separator. Spaces within a field are escaped.
    mount.split(' ').skip_while(|field| *field != "-").nth(1)
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
    fn the_type_of_a_mount_is_found_behind_optional_fields() {
        let mounts = "22 1 0:20 / / rw,relatime - overlay overlay rw\n\
                      36 22 98:0 / /a\\040b rw shared:7 master:1 - ext4 /dev/root rw\n";
        assert_eq!(mounted_type(mounts, 22), Some("overlay"));
        assert_eq!(mounted_type(mounts, 36), Some("ext4"));
        assert_eq!(mounted_type(mounts, 2), None);
        assert_eq!(mounted_type("", 22), None);
    }

    #[test]
    fn pieces_cover_the_file() {
        let all: Vec<_> = pieces(10, 4).collect();
        assert_eq!(all, [0..4, 4..8, 8..10]);
        assert_eq!(pieces(4, 4).count(), 1);
    }
}
