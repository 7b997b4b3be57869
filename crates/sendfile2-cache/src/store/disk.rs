//! The file of a store: opening it, making it, and all reads and writes of it.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{
    Access, FallocateFlags, FlockOperation, OFlags, access, fallocate, fdatasync, flock, fstatfs,
    ftruncate,
};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use sendfile2::Source;
use sendfile2::guard::{GuardOptions, GuardedFile, Lease};

use super::error::StoreError;
use super::layout::{SUPERBLOCK, Secret, Sizes, read_superblock, superblock};
use super::options::Options;

/// A region is waited for so long where what is leased of it can be neither detached nor kept aside.
/// Then its clients are cut off, and it is waited for once more, before another one is taken.
const PATIENCE: Duration = Duration::from_secs(2);

/// The number of tmpfs in statfs(2).
const TMPFS: rustix::fs::FsWord = 0x0102_1994;

/// The way in which a region was made free to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cleared {
    /// Whether it was erased; else it was detached, or waited for.
    pub(super) erased: bool,
    /// Leases that were ended for it.
    pub(super) revoked: u64,
}

/// The file of a store, which nobody else has open as one.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) file: GuardedFile,
    pub(super) sizes: Sizes,
    pub(super) secret: Secret,
    /// A file that is in memory as a whole, whose filesystem cannot tell.
    pub(super) in_memory: bool,
    /// The lock is this one's: leases keep the other for longer than the store is there.
    _lock: File,
    #[cfg(test)]
    pub(super) log: super::tests::power::Log,
}

impl Disk {
    /// Opens the store, or makes one; tells whether it was made.
    pub(super) fn open(options: &Options) -> Result<(Self, bool), StoreError> {
        let (lock, file) = opened(options)?;
        let path = options.path.clone().unwrap_or_else(|| PathBuf::from("a temporary file"));
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
            Errno::WOULDBLOCK => StoreError::InUse(path.clone()),
            errno => StoreError::io("flock")(errno),
        })?;
        let (size, _) = Source::examine(&file)?;
        let device = lock.metadata().map_err(StoreError::io("stat"))?.file_type().is_block_device();
        let known = known(&file, path, device, size)?;
        let empty = known.is_none();
        let (sizes, secret) = match known {
            Some(known) => known,
            None => make(&file, options, device.then_some(size))?,
        };
        if !device && size < sizes.size() {
            // Made, and killed before it was as large as it was to be; or cut.
            ftruncate(&file, sizes.size()).map_err(StoreError::io("ftruncate"))?;
        }
        let guard = GuardOptions::new();
        // Nobody has been sent anything of a file that was empty.
        let guard = if empty && !device { guard.nothing_exposed() } else { guard };
        let in_memory = fstatfs(&file).is_ok_and(|at| at.f_type == TMPFS);
        let file = guard.guard(file)?;
        let disk = Disk {
            file,
            sizes,
            secret,
            in_memory,
            _lock: lock,
            #[cfg(test)]
            log: super::tests::power::Log::default(),
        };
        Ok((disk, empty))
    }

    /// Says whether a store could be opened so, and changes nothing.
    pub(super) fn check(options: &Options) -> Result<(), StoreError> {
        let may_write = |dir: &Path| {
            let wanted = Access::WRITE_OK | Access::EXEC_OK;
            access(dir, wanted).map_err(StoreError::io("open"))
        };
        let Some(path) = &options.path else {
            wanted(options)?;
            return may_write(&std::env::temp_dir());
        };
        let Some(device) = is_device(path)? else {
            wanted(options)?;
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            return may_write(dir.unwrap_or(Path::new(".")));
        };
        // Whoever has it open has a device for himself, and goes on.
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(StoreError::io("open"))?;
        let (size, _) = Source::examine(&file)?;
        match known(&file, path.clone(), device, size)? {
            None if device => Sizes::of(size, options.region).map(drop).map_err(StoreError::Sizes),
            None => wanted(options).map(drop),
            Some(_) => Ok(()),
        }
    }

    pub(super) fn read(&self, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
        match read_up_to(&self.file, &mut bytes, range.start)? {
            read if read < bytes.len() => Err(StoreError::io("pread")(Errno::IO)),
            _ => Ok(bytes),
        }
    }

    /// Reads what nobody has leased, if that takes no waiting for the disk. Whether it was being erased
    /// meanwhile is for the caller to know.
    pub(super) fn read_now(&self, range: Range<u64>) -> Option<Vec<u8>> {
        if self.in_memory {
            return self.read(range).ok();
        }
        let len = usize::try_from(range.end - range.start).ok()?;
        let mut bytes = Vec::with_capacity(len);
        let read = self.file.source().try_read_behind(&mut bytes, len, range.start).ok()??;
        // A part of it only: the rest is not in the page cache.
        (read == len).then_some(bytes)
    }

    /// Reads what was leased, as [`read_leased`], if that takes no waiting for the disk.
    pub(super) fn read_leased_now(
        &self,
        lease: &Lease,
        range: Range<u64>,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        if self.in_memory {
            return read_leased(lease, range).map(Some);
        }
        let len = usize::try_from(range.end - range.start).unwrap_or(0);
        let mut bytes = Vec::with_capacity(len);
        // A part of it only: the rest is not in the page cache.
        let read = lease.try_read_behind(&mut bytes, len, range.start)?;
        Ok(read.filter(|read| *read == len).map(|_| bytes))
    }

    /// Reads a part at least of what is being stored; `None` if that may take waiting for the disk.
    pub(super) fn try_read_at(
        &self,
        bytes: &mut [u8],
        at: u64,
    ) -> Result<Option<usize>, StoreError> {
        let mut slices = [IoSliceMut::new(bytes)];
        let mut read = || preadv2(&self.file, &mut slices, at, ReadWriteFlags::NOWAIT);
        match rustix::io::retry_on_intr(&mut read) {
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            read => read.map(Some).map_err(StoreError::io("preadv2")),
        }
    }

    /// Writes where nobody has a lease, or the guard deals with those.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        self.file.write_at(bytes, at, PATIENCE)?;
        #[cfg(test)]
        self.log.write(at, bytes);
        Ok(())
    }

    pub(super) fn sync(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        let done = self.log.len();
        rustix::io::retry_on_intr(|| fdatasync(&self.file)).map_err(StoreError::io("fdatasync"))?;
        #[cfg(test)]
        self.log.synced(done);
        Ok(())
    }

    /// Makes a region one that may be filled, whoever is being sent what is in it. Who has not taken
    /// that in time, and cannot have it kept aside, is cut off: else the slowest would have the store
    /// to themselves.
    pub(super) fn clear(&self, region: u32) -> Result<Cleared, StoreError> {
        let range = self.region(region);
        let mut revoked = 0;
        let erased = match self.take(&range) {
            Err(sendfile2::Error::Deadline(_)) => {
                let mut queued = self.file.queue_writer(range.clone())?;
                revoked = queued.blocked_by().len() as u64;
                queued.abort_blockers()?;
                drop(queued);
                // What they have in flight is to be released, and what is mapped to be dropped.
                self.take(&range)?
            }
            taken => taken?,
        };
        #[cfg(test)]
        if erased {
            self.log.erase(range);
        }
        Ok(Cleared { erased, revoked })
    }

    /// Waits for a region, and erases it if that is possible; tells whether it was.
    fn take(&self, range: &Range<u64>) -> Result<bool, sendfile2::Error> {
        match self.file.erase(range.clone(), PATIENCE) {
            Ok(()) => Ok(true),
            // It would be in the way of the other, too.
            Err(why @ sendfile2::Error::Deadline(_)) => Err(why),
            Err(_) => self.file.write_with(range.clone(), PATIENCE, |_| Ok(false)),
        }
    }

    /// Bytes that are kept aside for clients.
    pub(super) fn kept_aside(&self) -> u64 {
        self.file.counters().kept_aside
    }

    pub(super) fn region(&self, region: u32) -> Range<u64> {
        let start = self.sizes.start(region);
        start..start + u64::from(self.sizes.region)
    }
}

/// Reads what was leased.
pub(super) fn read_leased(lease: &Lease, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
    let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let mut done = 0;
    while done < bytes.len() {
        match lease.read_at(&mut bytes[done..], range.start + done as u64)? {
            0 => return Err(StoreError::io("pread")(Errno::IO)),
            read => done += read,
        }
    }
    Ok(bytes)
}

fn read_up_to(
    file: impl std::os::fd::AsFd,
    bytes: &mut [u8],
    at: u64,
) -> Result<usize, StoreError> {
    let mut done = 0;
    while done < bytes.len() {
        match pread(&file, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(StoreError::io("pread")(errno)),
        }
    }
    Ok(done)
}

/// Two descriptors of the file that are not duplicates: one for the lock.
fn opened(options: &Options) -> Result<(File, File), StoreError> {
    let Some(path) = &options.path else {
        wanted(options)?;
        let file = tempfile::NamedTempFile::new().map_err(StoreError::io("open"))?;
        let lock = open(file.path(), false)?;
        return Ok((lock, file.into_file()));
    };
    let found = is_device(path)?;
    if found.is_none() {
        // None is made for what is wrong.
        wanted(options)?;
    }
    Ok((open(path, found == Some(true))?, open(path, false)?))
}

/// The sizes of a store that is to be made in a file.
fn wanted(options: &Options) -> Result<Sizes, StoreError> {
    Sizes::of(options.size, options.region).map_err(StoreError::Sizes)
}

/// Whether it is a block device, and no file; `None` if there is nothing.
fn is_device(path: &Path) -> Result<Option<bool>, StoreError> {
    let kind = match std::fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(StoreError::io("stat")(e)),
    };
    let why = match kind {
        _ if kind.is_file() || kind.is_block_device() => return Ok(Some(kind.is_block_device())),
        _ if kind.is_dir() => "it is a directory",
        _ if kind.is_char_device() => "it is a character device",
        _ if kind.is_fifo() => "it is a pipe",
        _ => "it is a socket",
    };
    Err(StoreError::NotAStore { path: path.to_owned(), why: why.into() })
}

/// The store that there is; `None` if there is nothing.
fn known(
    file: &File,
    path: PathBuf,
    device: bool,
    size: u64,
) -> Result<Option<(Sizes, Secret)>, StoreError> {
    let empty = if device { is_blank(file, size)? } else { size == 0 };
    if empty {
        return Ok(None);
    }
    let mut block = vec![0; SUPERBLOCK];
    let read = read_up_to(file, &mut block, 0)?;
    match read_superblock(&block[..read]) {
        Ok((sizes, _)) if device && size < sizes.size() => {
            let why = format!("the device has {size} bytes, and {} are its", sizes.size());
            Err(StoreError::NotAStore { path, why })
        }
        Ok(known) => Ok(Some(known)),
        Err(why) => Err(StoreError::NotAStore { path, why }),
    }
}

fn open(path: &Path, device: bool) -> Result<File, StoreError> {
    // O_EXCL: not a device that has a filesystem mounted.
    let exclusive = if device { OFlags::EXCL.bits() } else { 0 };
    let flags = i32::try_from(exclusive).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(!device).truncate(false).custom_flags(flags);
    options.open(path).map_err(StoreError::io("open"))
}

/// Whether a device has nothing in its beginning and at its end, where whoever uses it says so.
fn is_blank(file: &File, size: u64) -> Result<bool, StoreError> {
    let len = size.min(2 << 20);
    for at in [0, size - len] {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_up_to(file, &mut bytes, at)?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes a store of an empty file. Its space is taken before it says that it is one, so that a full
/// disk leaves it empty.
fn make(
    file: &File,
    options: &Options,
    device: Option<u64>,
) -> Result<(Sizes, Secret), StoreError> {
    let size = device.unwrap_or(options.size);
    let sizes = Sizes::of(size, options.region).map_err(StoreError::Sizes)?;
    let mut secret = [0; 32];
    rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
        .map_err(StoreError::io("getrandom"))?;
    let secret = Secret(secret);
    if device.is_none() {
        let allocate = || fallocate(file, FallocateFlags::KEEP_SIZE, 0, sizes.size());
        match rustix::io::retry_on_intr(allocate) {
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => {
                // What it has taken all the same.
                let _ = ftruncate(file, 0);
                return Err(StoreError::io("fallocate")(errno));
            }
        }
    }
    let block = superblock(&sizes, &secret);
    let mut done = 0;
    while done < block.len() {
        done += rustix::io::pwrite(file, &block[done..], done as u64)
            .map_err(StoreError::io("pwrite"))?;
    }
    if device.is_none() {
        ftruncate(file, sizes.size()).map_err(StoreError::io("ftruncate"))?;
    }
    rustix::fs::fsync(file).map_err(StoreError::io("fsync"))?;
    Ok((sizes, secret))
}
