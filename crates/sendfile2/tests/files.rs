//! What the file does meanwhile: it grows, shrinks, has holes, lies on overlayfs.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{assert_same, deadline, file, pattern, read, sender, source};
use rustix::fs::MemfdFlags;
use sendfile2::{Engine, Error, Reason, Refusal, SendFlags, Source, Unmappable};

#[test]
fn a_range_past_the_end_is_sent_up_to_the_end_and_then_an_error() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let file = file(1, 10_000);
        let stopped =
            sender.send_file(&source(&file), 100..20_000, SendFlags::NONE, deadline()).unwrap_err();
        assert!(
            matches!(stopped.error, Error::Truncated { at: 10_000, wanted: 10_000 }),
            "{stopped}"
        );
        assert_eq!(stopped.transfer.bytes, 9_900);
        assert_same(&read(&mut rx, 9_900), &pattern(1, 100..10_000));
        sender.close(deadline()).unwrap();
        assert!(common::ends(&mut rx), "bytes from behind the end");
    }
}

#[test]
fn a_truncated_file_is_sent_up_to_its_new_end() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let file = file(1, 1 << 20);
        let source = source(&file);
        sender.send_file(&source, 0..1 << 20, SendFlags::NONE, deadline()).unwrap();
        read(&mut rx, 1 << 20);
        file.set_len(70_001).unwrap();
        let stopped =
            sender.send_file(&source, 0..1 << 20, SendFlags::NONE, deadline()).unwrap_err();
        assert!(matches!(stopped.error, Error::Truncated { at: 70_001, .. }), "{stopped}");
        assert_same(&read(&mut rx, 70_001), &pattern(1, 0..70_001));
    }
}

#[test]
fn a_grown_file_is_sent_to_its_new_end() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let file = file(1, 1000);
        let source = source(&file);
        sender.send_file(&source, 0..1000, SendFlags::NONE, deadline()).unwrap();
        for len in [1001, 4096, 4097, 100_000, 3 << 20] {
            file.write_all_at(&pattern(1, 0..len), 0).unwrap();
            let expected = pattern(1, 0..len);
            let reader = std::thread::spawn({
                let mut rx = rx.try_clone().unwrap();
                move || read(&mut rx, 1000 + len as usize - if len == 1001 { 0 } else { 1000 })
            });
            let sent = sender.send_file(&source, 0..len, SendFlags::NONE, deadline()).unwrap();
            assert_eq!(sent.bytes, len);
            let got = reader.join().unwrap();
            assert_same(&got[got.len() - len as usize..], &expected);
        }
        drop(sender);
        assert!(common::ends(&mut rx));
    }
}

/// While another thread shrinks and grows the file, every byte received is the file's or a NUL
/// (shrinking zeroes up to the end of the folio), and nothing worse than an error happens.
#[test]
fn truncation_in_mid_send_is_an_error_and_no_signal() {
    for engine in common::engines() {
        let (tx, mut rx) = common::tcp();
        let mut sender = sender(tx, engine);
        let len = 1 << 20;
        let file = file(1, len);
        let source = source(&file);
        let expected = pattern(1, 0..len);
        let mut round = || {
            let result = sender.send_file(&source, 0..len, SendFlags::NONE, deadline());
            let bytes = match result {
                Ok(sent) => sent.bytes,
                Err(stopped) => {
                    assert!(matches!(stopped.error, Error::Truncated { .. }), "{stopped}");
                    stopped.transfer.bytes
                }
            };
            let got = read(&mut rx, bytes as usize);
            let foreign = got.iter().zip(&expected).filter(|(g, e)| g != e && **g != 0).count();
            assert_eq!(foreign, 0, "{engine}: bytes from elsewhere");
            bytes
        };
        let (mut truncated, mut times) = (0, 0);
        while (truncated == 0 || times < 25) && times < 10_000 {
            times += 1;
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        file.set_len(5000).unwrap();
                        file.write_all_at(&expected, 0).unwrap();
                    }
                });
                let _stop = common::SetOnDrop(&stop);
                truncated += (0..8).filter(|_| round() < len).count();
            });
            assert_eq!(round(), len, "{engine}: the file is whole again");
        }
        assert!(truncated > 0, "{engine}: no send met a truncation: this proves nothing");
    }
}

#[test]
fn what_cannot_be_a_source_is_refused_with_the_reason() {
    let directory = File::open("/").unwrap();
    let (pipe, _w) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    for (fd, reason) in [
        (directory.as_fd(), "directory"),
        (pipe.as_fd(), "pipe"),
        (null.as_fd(), "character device"),
        (write_only.as_fd(), "writing only"),
    ] {
        let error = Source::new(fd.try_clone_to_owned().unwrap()).unwrap_err();
        assert!(matches!(error, Error::NotASource(_)), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let error = Source::open("/nonexistent").unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

#[test]
fn a_sparse_memfd_is_read_and_stays_sparse() {
    let memfd = File::from(rustix::fs::memfd_create("sparse", MemfdFlags::CLOEXEC).unwrap());
    memfd.set_len(64 << 20).unwrap();
    memfd.write_all_at(&pattern(1, 0..5000), 1 << 20).unwrap();
    let before = rustix::fs::fstat(&memfd).unwrap().st_blocks;
    let (tx, mut rx) = common::tcp();
    let mut auto = sender(tx, Engine::Auto);
    let source = source(&memfd);
    let reader = std::thread::spawn(move || read(&mut rx, 4 << 20));
    let sent = auto.send_file(&source, 0..4 << 20, SendFlags::NONE, deadline()).unwrap();
    let refused = Refusal::File(Unmappable::Sparse);
    assert_eq!(sent.ticket.choice().reason, Reason::Refused(refused));
    let got = reader.join().unwrap();
    assert_same(&got[1 << 20..(1 << 20) + 5000], &pattern(1, 0..5000));
    assert_eq!(
        got.iter().filter(|b| **b != 0).count(),
        pattern(1, 0..5000).iter().filter(|b| **b != 0).count()
    );
    assert_eq!(rustix::fs::fstat(&memfd).unwrap().st_blocks, before, "sending allocated the holes");
    let (tx, _rx) = common::tcp();
    let error =
        sender(tx, Engine::Zerocopy).try_send_file(&source, 0..4096, SendFlags::NONE).unwrap_err();
    assert!(matches!(error, Error::Refused { reason, .. } if reason == refused), "{error}");
}

#[test]
fn a_full_memfd_is_mapped() {
    let memfd = File::from(rustix::fs::memfd_create("full", MemfdFlags::CLOEXEC).unwrap());
    memfd.write_all_at(&pattern(1, 0..100_001), 0).unwrap();
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    sender.send_file(&source(&memfd), 0..100_001, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, 100_001), &pattern(1, 0..100_001));
}

/// After a copy-up, `pread` on an old read-only descriptor and a mapping of it disagree on
/// overlayfs. What is sent is what `pread` says.
#[test]
fn on_overlayfs_what_is_sent_is_what_pread_returns() {
    let name = "on_overlayfs_what_is_sent_is_what_pread_returns";
    let mount = "mount -t tmpfs none /tmp && cd /tmp && mkdir l u w m && \
                 mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m";
    if common::role().is_none() {
        if common::can("no overlayfs here", &[&common::UNSHARE[..], &["sh", "-c", mount]].concat())
        {
            common::run_as(&common::UNSHARE, name, "inside");
        }
        return;
    }
    let len = 100_000;
    common::sh("mount -t tmpfs none /tmp && cd /tmp && mkdir l u w m && ip link set lo up");
    std::fs::write("/tmp/l/f", pattern(1, 0..len)).unwrap();
    common::sh("cd /tmp && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m");
    let old = File::open("/tmp/m/f").unwrap();
    let source = Source::new(old.try_clone().unwrap()).unwrap();
    assert_eq!(source.unmappable(), Some(Unmappable::Overlay));
    let (tx, mut rx) = common::tcp();
    let mut auto = sender(tx, Engine::Auto);
    auto.send_file(&source, 0..len, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, len as usize), &pattern(1, 0..len));
    // The copy-up.
    let writer = File::options().read(true).write(true).open("/tmp/m/f").unwrap();
    writer.write_all_at(&pattern(!1, 0..len), 0).unwrap();
    let mut says = vec![0; len as usize];
    old.read_exact_at(&mut says, 0).unwrap();
    auto.send_file(&source, 0..len, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, len as usize), &says);
    // A descriptor open for writing is the copy itself, and is mapped.
    let source = Source::new(writer).unwrap();
    assert_eq!(source.unmappable(), None);
    let (tx, mut rx) = common::tcp();
    sender(tx, Engine::Zerocopy).send_file(&source, 0..len, SendFlags::NONE, deadline()).unwrap();
    assert_same(&read(&mut rx, len as usize), &pattern(!1, 0..len));
}

#[test]
fn a_block_device_is_sent_up_to_its_size() {
    let find = "losetup --find";
    if !common::can("no loop device", &["sh", "-c", find]) {
        return;
    }
    let mut backing = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    backing.write_all(&pattern(1, 0..1 << 20)).unwrap();
    let attach = ["losetup", "--find", "--show"];
    let output = std::process::Command::new(attach[0])
        .args(&attach[1..])
        .arg(backing.path())
        .output()
        .unwrap();
    if !output.status.success() {
        println!("SKIP: no loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
        return;
    }
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let source = Source::open(&device).unwrap();
    common::sh(&format!("losetup --detach {device}")); // when it is closed
    assert_eq!(source.size().unwrap(), 1 << 20);
    let reader = std::thread::spawn(move || read(&mut rx, 1 << 20));
    let stopped = sender.send_file(&source, 0..2 << 20, SendFlags::NONE, deadline()).unwrap_err();
    assert!(matches!(stopped.error, Error::Truncated { .. }), "{stopped}");
    assert_same(&reader.join().unwrap(), &pattern(1, 0..1 << 20));
}

#[test]
fn more_files_than_mappings_are_kept() {
    // The bound of the kept mappings is passed; each file is still sent right.
    let (tx, mut rx) = common::tcp();
    let mut sender = sender(tx, Engine::Zerocopy);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut sources = Vec::new();
    for i in 0..4200_u32 {
        let path = dir.path().join(i.to_string());
        std::fs::write(&path, i.to_le_bytes()).unwrap();
        sources.push(Source::open(path).unwrap());
    }
    for round in 0..2 {
        for (i, source) in sources.iter().enumerate() {
            sender.send_file(source, 0..4, SendFlags::NONE, deadline()).unwrap();
            let got = read(&mut rx, 4);
            assert_eq!(got, u32::try_from(i).unwrap().to_le_bytes(), "round {round}");
        }
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let kept = maps.lines().filter(|l| l.contains(dir.path().to_str().unwrap())).count();
    assert!((1..=4096).contains(&kept), "{kept} mappings are kept");
    drop(sources);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let kept = maps.lines().filter(|l| l.contains(dir.path().to_str().unwrap())).count();
    assert_eq!(kept, 0, "mappings of closed files are kept");
}
