//! An open file to send from: its identity, its size, and a mapping where a mapping tells the
//! truth.
//!
//! The bytes sent equal what `pread` on the descriptor would return. A mapping promises that only
//! on filesystems whose page cache serves both; elsewhere, and wherever there is doubt, the file
//! is read.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use rustix::fs::{FileType, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

pub(crate) use read::if_cached;

use crate::error::Error;
use crate::refusal::Unmappable;
use crate::sys::filesystem;
use crate::sys::mapping::{Mapping, Region};

/// Lets a write go to its offset though the open file has `O_APPEND` (Linux 6.9). rustix has no
/// name for it.
const RWF_NOAPPEND: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x20);

/// A file is mapped in windows of this many bytes; a smaller file as one.
const WINDOW: u64 = 1 << 30;

/// The bytes of mappings that are kept for the next send, over all sources. Page tables cost 2 MiB
/// for each GiB touched; the kernel allows 65,530 mappings a process (`vm.max_map_count`).
const KEPT_MAPPINGS: usize = 4096;
const KEPT_BYTES: u64 = 32 << 30;

/// The identity of a file, whatever name or descriptor led to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// `st_dev`; of a block device `st_rdev`, since nodes in several places may name it.
    pub dev: u64,
    /// `st_ino`; of a block device 0, which no file has.
    pub ino: u64,
}

/// An open file to send from; a cheap handle (clone it).
///
/// While a source lives, it may keep a read-only mapping of the file. That delays the end of an
/// `flock(2)` and the freeing of a deleted file's space until the source is dropped.
#[derive(Debug, Clone)]
pub struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: OwnedFd,
    nature: Nature,
    /// The mappings by window number; with the key in [`KEPT`].
    mappings: RwLock<BTreeMap<u64, (u64, Arc<Mapping>)>>,
}

/// The kind of a file, as far as sending from it goes by that.
#[derive(Debug, Clone, Copy)]
struct Nature {
    identity: Identity,
    block_device: bool,
    filesystem: u64,
    unmappable: Option<Unmappable>,
}

impl Nature {
    fn of(file: BorrowedFd<'_>) -> Result<Self, Error> {
        let flags = rustix::fs::fcntl_getfl(file).map_err(Error::file("fcntl", 0))?;
        if flags.contains(OFlags::PATH) {
            return Err(Error::unsuitable("the descriptor is O_PATH: open the file for reading"));
        }
        // O_RDONLY is 0, so the mode is compared and not tested by bits.
        let mode = flags & OFlags::RWMODE;
        if mode == OFlags::WRONLY {
            return Err(Error::unsuitable("it is open for writing only: open it for reading too"));
        }
        if flags.contains(OFlags::DIRECT) {
            return Err(Error::unsuitable("it is open with O_DIRECT: open it without"));
        }
        let stat = rustix::fs::fstat(file).map_err(Error::file("fstat", 0))?;
        let block_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            FileType::Directory => return Err(Error::unsuitable("it is a directory")),
            FileType::Fifo => return Err(Error::unsuitable("it is a pipe: copy from it instead")),
            FileType::Socket => return Err(Error::unsuitable("it is a socket")),
            FileType::CharacterDevice => {
                return Err(Error::unsuitable("it is a character device, which has no pages"));
            }
            _ => return Err(Error::unsuitable("it is no regular file, memfd or block device")),
        };
        let magic = rustix::fs::fstatfs(file).map_err(Error::file("fstatfs", 0))?.f_type;
        #[expect(clippy::cast_sign_loss, reason = "a magic number; 32 bits of it count")]
        let magic = (magic as u64) & 0xffff_ffff;
        let unmappable = if block_device || filesystem::is_coherent(magic) {
            None
        } else if magic == filesystem::OVERLAYFS {
            // A descriptor opened for writing has been copied up already.
            (mode == OFlags::RDONLY).then_some(Unmappable::Overlay)
        } else {
            Some(Unmappable::Filesystem(magic))
        };
        let identity = if block_device {
            Identity { dev: stat.st_rdev, ino: 0 }
        } else {
            Identity { dev: stat.st_dev, ino: stat.st_ino }
        };
        Ok(Nature { identity, block_device, filesystem: magic, unmappable })
    }

    /// Whether it is a block device, or on one of the known filesystems that keep pages of their
    /// own.
    fn is_coherent(&self) -> bool {
        self.block_device || filesystem::is_coherent(self.filesystem)
    }

    #[inline(always)]
    fn extent(&self, file: BorrowedFd<'_>) -> Result<Extent, Error> {
        if self.block_device {
            let size = crate::sys::mapping::block_device_size(file)
                .map_err(Error::file("ioctl(BLKGETSIZE64)", 0))?;
            return Ok(Extent { size, sparse: false });
        }
        let stat = rustix::fs::fstat(file).map_err(Error::file("fstat", 0))?;
        // Neither is negative for a regular file.
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        Ok(Extent { size, sparse: self.filesystem == filesystem::TMPFS && allocated < size })
    }
}

/// The kept mappings of all sources, oldest first.
static KEPT: Mutex<Kept> = Mutex::new(Kept { next: 0, bytes: 0, entries: BTreeMap::new() });

struct Kept {
    next: u64,
    bytes: u64,
    entries: BTreeMap<u64, (Weak<Inner>, u64, u64)>,
}

/// The properties of a file at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent {
    /// In bytes.
    pub(crate) size: u64,
    /// The file has holes, and is on tmpfs.
    pub(crate) sparse: bool,
}

/// The way in which a range of the file can be sent, right now. The range is clamped to the file.
#[derive(Debug)]
pub(crate) enum View {
    /// The mapping, which covers the range.
    Mapped(Arc<Mapping>, Range<u64>),
    /// Reading.
    Read(Unmappable, Range<u64>),
}

/// A piece of a file as it is mapped, for whoever passes addresses on to the kernel: see
/// [`Source::mapped`].
#[derive(Debug, Clone)]
pub struct Mapped {
    mapping: Arc<Mapping>,
    range: Range<u64>,
}

impl Mapped {
    /// The range of the file, in bytes.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// The address at which they are mapped, for as long as this or a clone of it lives.
    ///
    /// They are for the kernel to read, in a `send(2)`. Others may change them at any time; and
    /// where the file was truncated, the kernel answers EFAULT, but a program that reads them is
    /// killed by SIGBUS.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.region().map_or(std::ptr::null(), |region| region.as_ptr())
    }

    /// Whether all of it is in memory (`mincore(2)`, which says so, too, of files that the process
    /// neither owns nor may write).
    #[must_use]
    pub fn is_resident(&self) -> bool {
        self.region().is_some_and(Region::is_resident)
    }

    /// Reads what is not in memory, waiting for the disk (`MADV_POPULATE_READ`, Linux 5.14).
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or is not there any more.
    pub fn populate(&self) -> Result<(), Error> {
        let read = self.region().map_or(Ok(()), Region::read_in);
        read.map_err(Error::file("madvise(MADV_POPULATE_READ)", self.range.start))
    }

    fn region(&self) -> Option<Region<'_>> {
        self.mapping.region(self.range.clone())
    }
}

impl Source {
    /// The mapping of the front of `range`, as far as the file and one mapping reach; `None` where
    /// a mapping might not show what `pread` returns.
    ///
    /// # Errors
    /// [`Error::Truncated`] if the file ends at or before the start of the range; [`Error::File`].
    pub fn mapped(&self, range: Range<u64>) -> Result<Option<Mapped>, Error> {
        self.mapped_of(range, self.extent()?)
    }

    /// The same of a file with these properties.
    pub(crate) fn mapped_of(
        &self,
        range: Range<u64>,
        extent: Extent,
    ) -> Result<Option<Mapped>, Error> {
        match self.view(range, extent)? {
            View::Mapped(mapping, range) => Ok(Some(Mapped { mapping, range })),
            View::Read(..) => Ok(None),
        }
    }

    /// Opens the file at `path`, read-only.
    ///
    /// # Errors
    /// [`Error::Open`], and as [`new`](Self::new); they name the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = rustix::fs::open(
            path,
            // O_NONBLOCK: the open of a FIFO must not wait for a writer, only to be refused.
            OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        );
        let source = file.map_err(Error::file("open", 0)).and_then(Source::new);
        source.map_err(|e| e.of(path))
    }

    /// Takes an open file: a regular file, a memfd, or a block device, readable.
    ///
    /// # Errors
    /// [`Error::NotASource`] for anything else, and for descriptors opened with `O_PATH`,
    /// `O_WRONLY` or `O_DIRECT`; [`Error::File`] if the file cannot be asked.
    pub fn new(file: impl Into<OwnedFd>) -> Result<Self, Error> {
        let file = file.into();
        let nature = Nature::of(file.as_fd())?;
        Ok(Source(Arc::new(Inner { nature, mappings: RwLock::default(), file })))
    }

    /// The size of a file in bytes, and why it would be read and not mapped, if so: for those who
    /// keep no source. Allocates nothing, locks nothing, and maps nothing.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn examine(file: impl AsFd) -> Result<(u64, Option<Unmappable>), Error> {
        let nature = Nature::of(file.as_fd())?;
        let Extent { size, sparse } = nature.extent(file.as_fd())?;
        Ok((size, nature.unmappable.or(sparse.then_some(Unmappable::Sparse))))
    }

    /// The identity of the file.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.0.nature.identity
    }

    /// The size of the file now, in bytes.
    ///
    /// # Errors
    /// [`Error::File`] if `fstat(2)` fails.
    pub fn size(&self) -> Result<u64, Error> {
        Ok(self.extent()?.size)
    }

    /// The reason why the file is sent by `pread` and never from a mapping; `None` if it is mapped.
    /// (A mapped tmpfs file is read all the same while it has holes.)
    #[must_use]
    pub fn unmappable(&self) -> Option<Unmappable> {
        self.0.nature.unmappable
    }

    /// The name of the filesystem that the file is on, where it is known; `None` for a block
    /// device, which is its own.
    pub(crate) fn filesystem(&self) -> Option<String> {
        let magic = self.0.nature.filesystem;
        let name =
            || filesystem::name(magic).map_or_else(|| format!("type {magic:#x}"), Into::into);
        (!self.0.nature.block_device).then(name)
    }

    /// The reason why the file would be read now and not mapped, found by looking at its first
    /// byte.
    pub(crate) fn unmappable_now(&self) -> Result<Option<Unmappable>, Error> {
        match self.view(0..1, self.extent()?) {
            Ok(View::Mapped(..)) => Ok(None),
            Ok(View::Read(why, _)) => Ok(Some(why)),
            // An empty file.
            Err(Error::Truncated { .. }) => Ok(self.unmappable()),
            Err(e) => Err(e),
        }
    }

    /// The properties of the file now.
    #[inline(always)]
    pub(crate) fn extent(&self) -> Result<Extent, Error> {
        self.0.nature.extent(self.as_fd())
    }

    /// The way in which `want` can be sent, clamped to the size of the file and to one mapping.
    #[inline(always)]
    pub(crate) fn view(&self, want: Range<u64>, extent: Extent) -> Result<View, Error> {
        let Extent { size, sparse } = extent;
        if want.start >= size {
            return Err(Error::Truncated { at: size, wanted: want.start });
        }
        let range = want.start..want.end.min(size);
        let unmappable = self.0.nature.unmappable.or(sparse.then_some(Unmappable::Sparse));
        if let Some(why) = unmappable {
            return Ok(View::Read(why, range));
        }
        match self.mapping(range.start, range.end, size) {
            Ok(mapping) => {
                let end = range.end.min(mapping.range().end);
                Ok(View::Mapped(mapping, range.start..end))
            }
            Err(e) => {
                // One without a number: longer than this machine's addresses reach.
                let errno = e.raw_os_error().unwrap_or(Errno::NOMEM.raw_os_error());
                Ok(View::Read(Unmappable::Failed(errno), range))
            }
        }
    }

    /// The mapping of the window that `start` is in, reaching to `end` or to the window's end.
    #[inline(always)]
    fn mapping(&self, start: u64, end: u64, size: u64) -> std::io::Result<Arc<Mapping>> {
        let window = start / WINDOW;
        let base = window * WINDOW;
        let end = end.min(base + WINDOW);
        let mappings = self.0.mappings.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, mapping)) = mappings.get(&window) {
            if mapping.range().end >= end {
                return Ok(Arc::clone(mapping));
            }
        }
        drop(mappings);
        // Not mapped yet, or the file has grown.
        let mapping = Arc::new(Mapping::new(self.as_fd(), base..size.min(base + WINDOW))?);
        self.keep(window, &mapping);
        Ok(mapping)
    }

    fn keep(&self, window: u64, mapping: &Arc<Mapping>) {
        let bytes = mapping.range().end - mapping.range().start;
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.next += 1;
        let key = kept.next;
        kept.bytes += bytes;
        kept.entries.insert(key, (Arc::downgrade(&self.0), window, bytes));
        // Unmapped (and sources dropped, whose Drop locks) after unlocking.
        let mut dropped = Vec::new();
        let mut owners = Vec::new();
        while kept.entries.len() > KEPT_MAPPINGS || kept.bytes > KEPT_BYTES {
            let Some((oldest, (owner, window, bytes))) = kept.entries.pop_first() else { break };
            kept.bytes -= bytes;
            if let Some(owner) = owner.upgrade() {
                let mut mappings = owner.mappings.write().unwrap_or_else(PoisonError::into_inner);
                if mappings.get(&window).is_some_and(|(key, _)| *key == oldest) {
                    dropped.push(mappings.remove(&window));
                }
                drop(mappings);
                owners.push(owner);
            }
        }
        if kept.entries.contains_key(&key) {
            let mut mappings = self.0.mappings.write().unwrap_or_else(PoisonError::into_inner);
            if let Some((old, mapping)) = mappings.insert(window, (key, Arc::clone(mapping))) {
                if let Some((_, _, bytes)) = kept.entries.remove(&old) {
                    kept.bytes -= bytes;
                }
                dropped.push(Some((old, mapping)));
            }
        }
        drop(kept);
        drop(dropped);
        drop(owners);
    }

    /// Writes at `offset`, maybe a part. Whoever shares the open file can set `O_APPEND`, with
    /// which pwrite(2) appends: then it writes there all the same, or not at all.
    pub(crate) fn write_at(&self, data: &[u8], offset: u64) -> Result<usize, Error> {
        self.allowed(offset, data.len() as u64)?;
        let Inner { file, nature, .. } = &*self.0;
        // Overlayfs (tried on 6.18), and perhaps others that pass a write on to another file, do
        // not pass this on with it.
        let written = if nature.is_coherent() {
            let slice = [IoSlice::new(data)];
            let noappend = || rustix::io::pwritev2(file, &slice, offset, RWF_NOAPPEND);
            rustix::io::retry_on_intr(noappend)
        } else {
            Err(Errno::OPNOTSUPP)
        };
        let written = match written {
            // Or a kernel before 6.9, or a seccomp filter's answer.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let flags = rustix::fs::fcntl_getfl(file).map_err(Error::file("fcntl", offset))?;
                if flags.contains(OFlags::APPEND) {
                    return Err(Error::unsuitable(
                        "O_APPEND was set on it meanwhile, which ignores offsets: clear it (fcntl \
                         F_SETFL)",
                    ));
                }
                rustix::io::retry_on_intr(|| rustix::io::pwrite(file, data, offset))
            }
            written => written,
        };
        written.map_err(|e| self.failed("pwrite", offset, e))
    }

    /// Refuses what would reach behind `RLIMIT_FSIZE`, for which the kernel kills the process
    /// (SIGXFSZ).
    pub(crate) fn allowed(&self, offset: u64, len: u64) -> Result<(), Error> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
        match limit {
            Some(limit) if !self.0.nature.block_device && offset.saturating_add(len) > limit => {
                Err(Error::file("RLIMIT_FSIZE: writing", limit.max(offset))(Errno::FBIG))
            }
            _ => Ok(()),
        }
    }

    /// The error that the call `op` failed with. `O_DIRECT` wants aligned addresses; it was not
    /// there when the file was taken.
    fn failed(&self, op: &'static str, offset: u64, errno: Errno) -> Error {
        let flags = rustix::fs::fcntl_getfl(&self.0.file);
        if errno == Errno::INVAL && flags.is_ok_and(|flags| flags.contains(OFlags::DIRECT)) {
            return Error::unsuitable("O_DIRECT was set on it meanwhile: clear it (fcntl F_SETFL)");
        }
        Error::file(op, offset)(errno)
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mappings = self.mappings.get_mut().unwrap_or_else(PoisonError::into_inner);
        if mappings.is_empty() {
            return;
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, _) in mappings.values() {
            if let Some((_, _, bytes)) = kept.entries.remove(key) {
                kept.bytes -= bytes;
            }
        }
    }
}

mod disk;
mod read;
#[cfg(test)]
mod tests;
