//! The line that a program writes at its exit, where `SENDFILE2_REPORT` asks for it.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::COUNTERS;

/// The longest path that is reported to, with the zero at its end.
const LONGEST: usize = 4096;

const COMPLAINT: &[u8] =
    b"libsendfile2_preload: SENDFILE2_REPORT is neither stderr nor a path that begins with /\n";

/// The place that is reported to.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "there is one, and nothing here allocates")]
enum Place {
    Nowhere,
    /// Standard error, by its device and inode: a daemon closes it, and what has its number then is
    /// not written to.
    Stderr(libc::dev_t, libc::ino_t),
    /// The file of this path.
    File([u8; LONGEST]),
}

/// Written once, while the library is loaded; a program may overwrite its environment later.
struct Kept(UnsafeCell<Place>);

// SAFETY: it is written before any thread but the first is there, and only read after that.
unsafe impl Sync for Kept {}

static PLACE: Kept = Kept(UnsafeCell::new(Place::Nowhere));

/// Whether this is a child that was forked, and has executed no other program.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Remembers where to report to, and lets forked children count from 0 on.
pub(crate) fn prepare() {
    extern "C" fn forked() {
        FORKED.store(true, Ordering::Relaxed);
        COUNTERS.clear();
    }
    // SAFETY: the function only writes to atomics. Where it cannot be registered, children count on.
    let _ = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    // Nobody has a program with more privileges than his own write into a file of his choice.
    // SAFETY: it has no preconditions.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return;
    }
    // SAFETY: the name is a C string; nothing changes the environment while libraries load.
    let value = unsafe { libc::getenv(c"SENDFILE2_REPORT".as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: a variable of the environment is a C string.
    let place = place(unsafe { CStr::from_ptr(value) }.to_bytes()).unwrap_or_else(|| {
        write(libc::STDERR_FILENO, COMPLAINT);
        // Not by each program that this one starts again: for those it is not set.
        // SAFETY: the value is this process's own, and has at least one byte; nothing else looks at
        // the environment while libraries load.
        unsafe { *value = 0 };
        Place::Nowhere
    });
    // SAFETY: no other thread is there yet, and no reference to it.
    unsafe { *PLACE.0.get() = place };
}

/// Returns the place that a value of the variable names, if it names one.
fn place(value: &[u8]) -> Option<Place> {
    match value {
        [] => Some(Place::Nowhere),
        b"stderr" => {
            let stderr = standard_error().map(|(dev, ino)| Place::Stderr(dev, ino));
            Some(stderr.unwrap_or(Place::Nowhere))
        }
        path => absolute(path).map(Place::File),
    }
}

/// Returns the path with a zero at its end. It must begin at the root: the program, and those that it
/// starts, may change their directory.
fn absolute(path: &[u8]) -> Option<[u8; LONGEST]> {
    let mut whole = [0; LONGEST];
    // One zero is left.
    if !path.starts_with(b"/") || path.len() >= LONGEST {
        return None;
    }
    whole[..path.len()].copy_from_slice(path);
    Some(whole)
}

fn standard_error() -> Option<(libc::dev_t, libc::ino_t)> {
    // SAFETY: a stat is plain numbers, for which all zeroes is a value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: it writes one stat.
    let ret = unsafe { libc::fstat(libc::STDERR_FILENO, &raw mut stat) };
    (ret == 0).then_some((stat.st_dev, stat.st_ino))
}

/// The function that runs when the program ends by exit(3).
#[used]
#[unsafe(link_section = ".fini_array")]
static UNLOADED: extern "C" fn() = {
    extern "C" fn unloaded() {
        // SAFETY: it is only read since the library was loaded.
        let place = unsafe { &*PLACE.0.get() };
        let counted = COUNTERS.read();
        // A child that did nothing has nothing to say.
        if matches!(place, Place::Nowhere) || (FORKED.load(Ordering::Relaxed) && !counted.is_any())
        {
            return;
        }
        let mut name = [0_u8; 17];
        // SAFETY: it writes no more than 16 bytes; getpid has no preconditions.
        let process = unsafe {
            libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr());
            libc::getpid()
        };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let mut line = [0_u8; 512];
        let mut rest = &mut line[..];
        // It is long enough, or the end is lost.
        let _ = rest.write_all(b"sendfile2: ");
        let _ = rest.write_all(name);
        let _ = writeln!(rest, " ({process}): {counted}");
        let left = rest.len();
        let line = &line[..line.len() - left];
        match place {
            Place::Nowhere => {}
            Place::Stderr(dev, ino) => {
                if standard_error() == Some((*dev, *ino)) {
                    write(libc::STDERR_FILENO, line);
                }
            }
            Place::File(path) => append(path, line),
        }
    }
    unloaded
};

fn append(path: &[u8; LONGEST], line: &[u8]) {
    // Nothing that could make the program wait at its end, as a pipe that nobody reads.
    let flags = libc::O_WRONLY
        | libc::O_APPEND
        | libc::O_CREAT
        | libc::O_CLOEXEC
        | libc::O_NOCTTY
        | libc::O_NONBLOCK;
    // SAFETY: the path ends with a zero.
    let file = unsafe { libc::open(path.as_ptr().cast(), flags, 0o644) };
    if file >= 0 {
        write(file, line);
        // SAFETY: it is this function's own.
        unsafe { libc::close(file) };
    }
}

/// Writes a line at once. If it cannot be written, there is nobody to inform.
fn write(file: c_int, line: &[u8]) {
    // SAFETY: the line is that long.
    let _ = unsafe { libc::write(file, line.as_ptr().cast::<c_void>(), line.len()) };
}
