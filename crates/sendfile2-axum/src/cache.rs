//! The files of a directory: found beneath it, and kept open.
//!
//! A kept file serves a request only if a `stat` of the path still tells the device, inode, size
//! and times of what was opened. Opening does not leave the directory: `openat2(2)` with
//! `RESOLVE_BENEATH`; and what the kernel has at hand is opened at once (`RESOLVE_CACHED`), the
//! rest off the event loop.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use quick_cache::sync::Cache;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use sendfile2::Source;
use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};
use tower_http::services::fs::{Backend, File, Metadata};

use crate::conditions::{self, Validators};
use crate::names::unescaped;
use crate::sys;

/// Files kept open, for each directory served, at most.
const KEPT: u64 = 1024;

/// The part of the descriptors that may be those of files that are kept open.
const SHARE: u64 = 4;

/// The files of a directory that are kept open.
type Kept = Cache<PathBuf, Arc<Open>>;

/// All of them, to make room in.
static CACHES: Mutex<Vec<Weak<Kept>>> = Mutex::new(Vec::new());

/// The number of files that a directory keeps open: in proportion to the limit of descriptors, so
/// that connections have the most.
fn kept() -> usize {
    let kept = sys::descriptors().map_or(KEPT, |limit| (limit / SHARE).clamp(1, KEPT));
    // It is no more than that.
    usize::try_from(kept).unwrap_or(usize::MAX)
}

/// Whether there are no descriptors left, of the process or of the machine.
pub(crate) fn is_exhausted(errno: Errno) -> bool {
    matches!(errno, Errno::MFILE | Errno::NFILE)
}

/// Closes the files that are only kept, where `error` says that there are no descriptors left.
/// Returns whether there were any, so that what has failed may be tried again: an accept, for example,
/// by a server that has no [`Listener`](crate::Listener).
#[must_use]
pub fn make_room(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(is_exhausted) && close_kept()
}

/// Closes the files that are only kept; whether there were any.
fn close_kept() -> bool {
    let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
    caches.retain(|cache| cache.strong_count() > 0);
    let caches: Vec<_> = caches.iter().filter_map(Weak::upgrade).collect();
    let mut room = false;
    for cache in caches {
        room |= !cache.is_empty();
        cache.clear();
    }
    room
}

/// A directory to serve from.
#[derive(Debug)]
pub(crate) struct Root {
    /// The path that the directory has been opened by.
    path: PathBuf,
    dir: Mutex<Dir>,
    resolve: ResolveFlags,
    cache: Arc<Kept>,
}

/// The directory that the path leads to.
#[derive(Debug)]
struct Dir {
    fd: Arc<OwnedFd>,
    id: (u64, u64),
    /// When it was looked whether the path still leads there.
    looked: Instant,
}

/// How long a path may lead to another directory before that is seen.
const FOLLOWED: Duration = Duration::from_secs(1);

impl Dir {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| forbidden("fstat", e))?;
        let id = About::of(&stat).id;
        Ok(Dir { fd: Arc::new(fd), id, looked: Instant::now() })
    }
}

/// An open file, as it was when it was looked at.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) source: Source,
    pub(crate) validators: Validators,
    about: About,
}

/// The stamp that tells whether a file is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct About {
    directory: bool,
    id: (u64, u64),
    pub(crate) len: u64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl About {
    #[allow(clippy::unnecessary_cast, reason = "the types differ between architectures")]
    fn of(stat: &Stat) -> Self {
        About {
            directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
            id: (stat.st_dev as u64, stat.st_ino as u64),
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// The file that a path leads to.
pub(crate) enum Found {
    File(Arc<Open>),
    Directory(About),
}

impl Found {
    fn about(&self) -> About {
        match self {
            Found::File(open) => open.about,
            Found::Directory(about) => *about,
        }
    }
}

impl Root {
    pub(crate) fn new(path: &Path, beneath: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let dir = Dir::open(&path)?;
        let resolve = if beneath {
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::NO_MAGICLINKS
        };
        // Each file needs these. What is forbidden shows now, and not as a file that is not there.
        rustix::fs::openat2(&*dir.fd, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(|e| forbidden("openat2", e))?;
        rustix::fs::fstatfs(&*dir.fd).map_err(|e| forbidden("fstatfs", e))?;
        let cache = Arc::new(Cache::new(kept()));
        let mut caches = CACHES.lock().unwrap_or_else(PoisonError::into_inner);
        caches.push(Arc::downgrade(&cache));
        Ok(Root { path, dir: Mutex::new(dir), resolve, cache })
    }

    /// The directory: a link to it may have been set to another one.
    fn dir(&self) -> Arc<OwnedFd> {
        let mut dir = self.dir.lock().unwrap_or_else(PoisonError::into_inner);
        if dir.looked.elapsed() >= FOLLOWED {
            dir.looked = Instant::now();
            let now = rustix::fs::stat(&self.path).map(|stat| About::of(&stat).id);
            if now.is_ok_and(|now| now != dir.id) {
                // One that cannot be opened takes no other one's place.
                match Dir::open(&self.path) {
                    Ok(now) => *dir = now,
                    Err(e) => tracing::warn!(path = %self.path.display(), "not followed: {e}"),
                }
            }
        }
        Arc::clone(&dir.fd)
    }

    /// Finds what is at `path` now, where that can be said without waiting for a disk.
    pub(crate) fn look(&self, path: &Path) -> Result<Found, Errno> {
        if let Some(open) = self.cache.get(path) {
            match rustix::fs::statat(&*self.dir(), path, AtFlags::empty()) {
                Ok(stat) if About::of(&stat) == open.about => return Ok(Found::File(open)),
                _ => drop(self.cache.remove(path)),
            }
        }
        self.open(path, ResolveFlags::CACHED)
    }

    /// Refuses what is no file and no directory, without opening it: that may do something to a
    /// device, or to whoever waits at a FIFO, and fails in as many ways as there are drivers.
    fn examine(&self, path: &Path, more: ResolveFlags) -> Result<(), Errno> {
        let (flags, mode) = (OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let there = rustix::fs::openat2(&*self.dir(), path, flags, mode, self.resolve | more)?;
        match FileType::from_raw_mode(rustix::fs::fstat(&there)?.st_mode) {
            FileType::RegularFile | FileType::Directory => Ok(()),
            _ => Err(Errno::NXIO),
        }
    }

    /// The number of files that are kept open at most.
    pub(crate) fn capacity(&self) -> usize {
        usize::try_from(self.cache.capacity()).unwrap_or(usize::MAX)
    }

    /// Opens it, if need be by closing what is only kept.
    fn open(&self, path: &Path, more: ResolveFlags) -> Result<Found, Errno> {
        loop {
            match self.try_open(path, more) {
                Err(errno) if is_exhausted(errno) && close_kept() => {}
                opened => return opened,
            }
        }
    }

    fn try_open(&self, path: &Path, more: ResolveFlags) -> Result<Found, Errno> {
        self.examine(path, more)?;
        // O_NONBLOCK: the open of a FIFO, which may be there by now, must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file =
            rustix::fs::openat2(&*self.dir(), path, flags, Mode::empty(), self.resolve | more)?;
        let stat = rustix::fs::fstat(&file)?;
        let about = About::of(&stat);
        if about.directory {
            return Ok(Found::Directory(about));
        }
        let source = Source::new(file).map_err(|e| {
            tracing::debug!(path = %path.display(), "{e}");
            Errno::ACCESS
        })?;
        let validators = Validators::of_stat(&stat);
        let open = Arc::new(Open { source, validators, about });
        self.cache.insert(path.to_owned(), Arc::clone(&open));
        Ok(Found::File(open))
    }

    async fn find(self: Arc<Self>, path: PathBuf) -> io::Result<Found> {
        if let Some(open) = found_before(&path) {
            return Ok(Found::File(open));
        }
        let found = match self.look(&path) {
            // EINVAL: a kernel before 5.12, which does not know RESOLVE_CACHED.
            Err(Errno::AGAIN | Errno::INVAL) => {
                let path = path.clone();
                let wait = move || self.open(&path, ResolveFlags::empty());
                tokio::task::spawn_blocking(wait).await?
            }
            found => found,
        };
        // What leads out of the directory is not there, and neither is a loop, or a socket.
        let found = found.map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO => {
                io::ErrorKind::NotFound.into()
            }
            errno => io::Error::from(errno),
        })?;
        if let Found::File(open) = &found {
            let _ = FOUND.try_with(|last| last.replace(Some((path, Arc::clone(open)))));
        }
        Ok(found)
    }
}

/// The error of a system call that each file needs, with its name: it is not about the directory.
fn forbidden(call: &str, errno: Errno) -> io::Error {
    let error = io::Error::from(errno);
    let why = match errno {
        Errno::PERM | Errno::NOSYS => " (too old a kernel, or a seccomp filter)",
        // About neither: there may be some again.
        errno if is_exhausted(errno) => return error,
        _ => "",
    };
    io::Error::new(error.kind(), format!("{call}(2), which every file needs: {error}{why}"))
}

tokio::task_local! {
    /// The file that the request that is being served has found last.
    static FOUND: RefCell<Option<(PathBuf, Arc<Open>)>>;
}

/// The file that this request has found at `path`: tower-http asks what a path is before it opens
/// it, and both are to be the same file.
fn found_before(path: &Path) -> Option<Arc<Open>> {
    let same = |(at, open): &(PathBuf, _)| (at == path).then(|| Arc::clone(open));
    FOUND.try_with(|last| last.borrow().as_ref().and_then(same)).ok().flatten()
}

/// Runs a request, and gives the last file that it found, and where, beside its result.
pub(crate) async fn watching<T>(
    request: impl Future<Output = T>,
) -> (T, Option<(PathBuf, Arc<Open>)>) {
    let watched = async {
        let result = request.await;
        (result, FOUND.with(RefCell::take))
    };
    FOUND.scope(RefCell::new(None), watched).await
}

impl Open {
    pub(crate) fn len(&self) -> u64 {
        self.about.len
    }
}

/// tower-http's way to our files.
#[derive(Debug, Clone)]
pub(crate) struct Files(pub(crate) Arc<Root>);

impl Backend for Files {
    type File = Opened;
    type Metadata = About;
    type OpenFuture = Pin<Box<dyn Future<Output = io::Result<Opened>> + Send>>;
    type MetadataFuture = Pin<Box<dyn Future<Output = io::Result<About>> + Send>>;

    fn open(&self, path: PathBuf) -> Self::OpenFuture {
        let root = Arc::clone(&self.0);
        Box::pin(async move {
            match root.find(unescaped(path)).await? {
                Found::File(open) => Ok(Opened(open.about)),
                Found::Directory(_) => Err(io::ErrorKind::NotFound.into()),
            }
        })
    }

    fn metadata(&self, path: PathBuf) -> Self::MetadataFuture {
        let root = Arc::clone(&self.0);
        Box::pin(async move { root.find(unescaped(path)).await.map(|found| found.about()) })
    }
}

impl Metadata for About {
    fn is_dir(&self) -> bool {
        self.directory
    }

    fn modified(&self) -> io::Result<SystemTime> {
        let time = conditions::time(self.modified);
        time.ok_or_else(|| io::Error::other("a time that HTTP has no date for"))
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// A stand-in for a file while tower-http decides on the response. Its body is not used.
#[derive(Debug)]
pub(crate) struct Opened(About);

impl File for Opened {
    type Metadata = About;
    type MetadataFuture<'a> = std::future::Ready<io::Result<About>>;

    fn metadata(&self) -> Self::MetadataFuture<'_> {
        std::future::ready(Ok(self.0))
    }
}

impl AsyncRead for Opened {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl AsyncSeek for Opened {
    fn start_seek(self: Pin<&mut Self>, _: io::SeekFrom) -> io::Result<()> {
        Ok(())
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Ok(0))
    }
}
