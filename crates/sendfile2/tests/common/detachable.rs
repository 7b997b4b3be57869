//! Files that can be detached, guarded and sent.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;

use sendfile2::Sender;
use sendfile2::detach::Detacher;
use sendfile2::guard::{GuardOptions, GuardedFile};

use super::filesystems::{Filesystem, block_device, here, mounted};
use super::{deadline, pattern};

/// The bytes of [`made`].
pub const LEN: u64 = 4 << 20;

/// The file of `pattern(1)` on this filesystem, if it can be detached there.
pub fn made(filesystem: &Filesystem) -> Option<File> {
    let path = filesystem.dir.join("file");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.unwrap();
    file.write_all_at(&pattern(1, 0..LEN), 0).unwrap();
    let detacher = Detacher::new(&super::source(&file));
    if let Err(why) = detacher.and_then(|detacher| detacher.detach(&(0..1))) {
        println!("SKIP: {}: {why}", filesystem.name);
        return None;
    }
    Some(file)
}

/// Files that can be detached.
pub fn files() -> Vec<(Filesystem, File)> {
    let all = ["ext4", "xfs", "btrfs"].into_iter().filter_map(mounted);
    let all = all.chain(block_device(LEN)).chain([here()]);
    all.filter_map(|f| made(&f).map(|file| (f, file))).collect()
}

pub fn fresh(file: &File) -> GuardedFile {
    GuardOptions::new().nothing_exposed().guard(file.try_clone().unwrap()).unwrap()
}

/// What the peer receives after the end of the stream.
pub fn rest(mut peer: TcpStream, sender: Sender) -> Vec<u8> {
    let reading = std::thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).map(|_| got)
    });
    sender.close(deadline()).unwrap();
    reading.join().unwrap().unwrap()
}
