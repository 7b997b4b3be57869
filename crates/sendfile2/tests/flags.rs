//! What others do to an open file, or to the process, between the guard's construction and a
//! write: flags set by `F_SETFL`, limits, a full disk.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

use common::{assert_same, deadline, file, pattern, read, sender};
use rustix::fs::OFlags;
use sendfile2::guard::{GuardedFile, TryWrite};
use sendfile2::{Engine, Error, SendFlags, Source};

const LEN: u64 = 64 << 10;

fn guarded(file: &File) -> GuardedFile {
    GuardedFile::new(file.try_clone().unwrap()).unwrap()
}

/// By another descriptor of the same open file, as another process might.
fn set_flags(file: &File, flags: OFlags) {
    let now = rustix::fs::fcntl_getfl(file).unwrap();
    rustix::fs::fcntl_setfl(file, now | flags).unwrap();
    assert!(rustix::fs::fcntl_getfl(file).unwrap().contains(flags), "{flags:?} is not to be set");
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// What the file is after `new` was written to its front, or refused.
fn assert_written_or_refused(file: &File, written: Result<(), Error>, new: &[u8]) {
    let mut expected = pattern(1, 0..LEN);
    match written {
        Ok(()) => expected[..new.len()].copy_from_slice(new),
        Err(Error::NotASource(why)) => assert!(why.to_string().contains("O_APPEND"), "{why}"),
        Err(e) => panic!("{e}"),
    }
    assert_same(&content(file), &expected);
}

#[test]
fn a_write_goes_to_its_offset_though_o_append_was_set_meanwhile() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    set_flags(&file, OFlags::APPEND);
    assert_written_or_refused(&file, guard.write_at(b"new", 0, deadline()), b"new");
    let tried = guard.try_write_at(b"new", 0).map(|tried| assert_eq!(tried, TryWrite::Written));
    assert_written_or_refused(&file, tried, b"new");
}

/// The control: pwrite(2) appends.
#[test]
fn control_pwrite_appends_then() {
    let file = file(1, LEN);
    set_flags(&file, OFlags::APPEND);
    file.write_all_at(b"new", 0).unwrap();
    assert_same(&content(&file), &[pattern(1, 0..LEN), b"new".to_vec()].concat());
}

/// Where the kernel cannot be told to ignore the flag, nothing is written.
#[test]
fn where_the_kernel_lacks_noappend_a_write_is_refused() {
    let name = "where_the_kernel_lacks_noappend_a_write_is_refused";
    if common::role().is_none() {
        return common::run_as(&[], name, "old");
    }
    for errno in [libc::EOPNOTSUPP, libc::ENOSYS] {
        // In a thread of its own: a filter lasts as long as its thread.
        let old = move || {
            forbid(libc::SYS_pwritev2, errno);
            let file = file(1, LEN);
            let guard = guarded(&file);
            guard.write_at(b"new", 0, deadline()).unwrap();
            let expected = content(&file);
            assert_same(&expected[..4], &[b"new", &pattern(1, 3..4)[..]].concat());
            set_flags(&file, OFlags::APPEND);
            let error = guard.write_at(b"two", 0, deadline()).unwrap_err();
            assert!(error.to_string().contains("O_APPEND"), "{error}");
            assert_same(&content(&file), &expected);
        };
        std::thread::spawn(old).join().unwrap();
    }
}

fn forbid(call: libc::c_long, errno: i32) {
    use seccompiler::{SeccompAction, SeccompFilter};
    let filter = SeccompFilter::new(
        [(call, vec![])].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Overlayfs passes writes on without `RWF_NOAPPEND`.
#[test]
fn on_overlayfs_nothing_is_appended_either() {
    let name = "on_overlayfs_nothing_is_appended_either";
    let mount = "mount -t tmpfs none /tmp && cd /tmp && mkdir l u w m && \
                 mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m";
    if !common::inside(name, mount) {
        return;
    }
    common::sh(mount);
    std::fs::write("/tmp/m/f", pattern(1, 0..LEN)).unwrap();
    let file = File::options().read(true).write(true).open("/tmp/m/f").unwrap();
    let guard = guarded(&file);
    set_flags(&file, OFlags::APPEND);
    assert_written_or_refused(&file, guard.write_at(b"new", 0, deadline()), b"new");
}

/// `O_DIRECT` wants aligned addresses. What cannot be read or written is told, with the reason.
#[test]
fn o_direct_that_was_set_meanwhile_is_told() {
    let file = file(1, LEN);
    let guard = guarded(&file);
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Auto);
    if rustix::fs::fcntl_setfl(&file, OFlags::DIRECT).is_err() {
        println!("SKIP: no O_DIRECT on the filesystem of the target directory");
        return;
    }
    match guard.write_at(b"new", 1, deadline()) {
        // Some filesystems write such data through the page cache.
        Ok(()) => assert_same(&content(&file)[1..4], b"new"),
        Err(e) => {
            assert!(matches!(e, Error::NotASource(_)), "{e}");
            assert!(e.to_string().contains("O_DIRECT"), "{e}");
        }
    }
    // A mapping does not go by the flag.
    sender.send_file(guard.source(), 10..LEN, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, LEN as usize - 10), &pattern(1, 10..LEN));
}

/// The kernel would write what fits under `RLIMIT_FSIZE`, and then kill the process.
#[test]
fn a_limit_of_the_size_of_files_is_an_error_and_no_signal() {
    let name = "a_limit_of_the_size_of_files_is_an_error_and_no_signal";
    if common::role().is_none() {
        return common::run_as(&[], name, "limited");
    }
    let file = file(1, LEN);
    // Or nothing behind the limit could be detached.
    let guard = common::waiting(file.try_clone().unwrap());
    let limit = LEN / 2;
    lower_limit(limit);
    let new = pattern(!1, 0..LEN);
    let too_large = |written: Result<(), Error>| {
        let error = written.unwrap_err();
        assert_eq!(error.io_error().unwrap().kind(), ErrorKind::FileTooLarge, "{error}");
        assert!(error.to_string().contains("RLIMIT_FSIZE"), "{error}");
    };
    too_large(guard.write_at(b"x", limit, deadline()));
    too_large(guard.write_at(&new[..2], limit - 1, deadline()));
    too_large(guard.try_write_at(&new, 0).map(|_| ()));
    too_large(guard.set_len(LEN + 1, deadline()));
    assert_same(&content(&file), &pattern(1, 0..LEN));
    // What stays below is possible, and so is shrinking, wherever it ends.
    guard.write_at(&new[..2], limit - 2, deadline()).unwrap();
    guard.set_len(limit + 1, deadline()).unwrap();
    guard.punch_hole(limit - 2..LEN, deadline()).unwrap();
}

fn lower_limit(limit: u64) {
    let limit = rustix::process::Rlimit { current: Some(limit), maximum: None };
    rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
}

/// The control: pwrite(2) kills.
#[test]
fn control_pwrite_behind_the_limit_kills() {
    let name = "control_pwrite_behind_the_limit_kills";
    if common::role().is_some() {
        let file = file(1, LEN);
        lower_limit(LEN / 2);
        drop(file.write_all_at(b"x", LEN / 2));
        return;
    }
    let status = common::child(&[], name, "limited").status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGXFSZ), "{status}");
}

#[test]
fn on_a_full_disk_the_error_says_how_far_it_came() {
    let name = "on_a_full_disk_the_error_says_how_far_it_came";
    let mount = "mount -t tmpfs -o size=128k none /tmp";
    if !common::inside(name, mount) {
        return;
    }
    common::sh(mount);
    std::fs::write("/tmp/f", b"old").unwrap();
    let guard = GuardedFile::open("/tmp/f").unwrap();
    let new = pattern(1, 0..1 << 20);
    let error = guard.write_at(&new, 1, deadline()).unwrap_err();
    let Error::File { offset, cause, .. } = &error else { panic!("{error}") };
    assert_eq!(cause.kind(), ErrorKind::StorageFull);
    assert!((2..1 << 20).contains(offset), "{error}");
    let written = std::fs::read("/tmp/f").unwrap();
    assert_same(&written, &[b"o", &new[..*offset as usize - 1]].concat());
    // Nobody is kept out by what failed.
    assert!(guard.try_lease(0..1 << 20).is_some());
    assert_eq!(guard.writers(), 0);
}

/// Where the file is read and not mapped, reading goes by the flag.
#[test]
fn a_source_that_is_read_tells_of_o_direct() {
    let name = "a_source_that_is_read_tells_of_o_direct";
    let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("o-direct");
    let dir = target.display();
    let mount = format!(
        "mkdir -p {dir}/lower {dir}/rw && cd {dir} && mount -t tmpfs none rw && \
         mkdir rw/u rw/w rw/m && \
         mount -t overlay o -o lowerdir=lower,upperdir=rw/u,workdir=rw/w rw/m"
    );
    if !common::inside(name, &mount) {
        return;
    }
    std::fs::create_dir_all(target.join("lower")).unwrap();
    std::fs::write(target.join("lower/f"), pattern(1, 0..LEN)).unwrap();
    common::sh(&mount);
    let file = File::open(target.join("rw/m/f")).unwrap();
    let source = Source::new(file.try_clone().unwrap()).unwrap();
    assert!(source.unmappable().is_some());
    if rustix::fs::fcntl_setfl(file.as_fd(), OFlags::DIRECT).is_err() {
        println!("SKIP: no O_DIRECT on overlayfs here");
        return;
    }
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Copy);
    match sender.send_file(&source, 1..LEN, SendFlags::NONE, deadline()) {
        Ok(_) => assert_same(&read(&mut rx, LEN as usize - 1), &pattern(1, 1..LEN)),
        Err(e) => assert!(e.to_string().contains("O_DIRECT"), "{e}"),
    }
}
