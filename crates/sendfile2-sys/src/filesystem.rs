//! Filesystems by their `f_type` (`fstatfs(2)`): names, and what is known of their page cache.

/// `f_type` of overlayfs.
pub const OVERLAYFS: u64 = 0x794c_7630;

/// `f_type` of tmpfs, and of memfds.
pub const TMPFS: u64 = 0x0102_1994;

/// `f_type` of ext2, ext3 and ext4.
pub const EXT: u64 = 0xef53;

/// `f_type` of XFS.
pub const XFS: u64 = 0x5846_5342;

/// `f_type` of btrfs.
pub const BTRFS: u64 = 0x9123_683e;

/// `f_type` of the local filesystems whose `pread` and mappings read the same page cache
/// (`linux/magic.h` and the filesystems' own headers), and their names.
const COHERENT: [(u64, &str); 13] = [
    (EXT, "ext2, ext3 or ext4"),
    (XFS, "xfs"),
    (BTRFS, "btrfs"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (TMPFS, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0xe0f5_e1e2, "erofs"),
    (0x7371_7368, "squashfs"),
    (0x4d44, "vfat"),
    (0x2011_bab0, "exfat"),
    (0x9660, "iso9660"),
    (0x1501_3346, "udf"),
];

/// Returns whether `pread` and mappings of the filesystem's files are known to read the same page
/// cache.
#[must_use]
pub fn is_coherent(magic: u64) -> bool {
    COHERENT.iter().any(|(known, _)| *known == magic)
}

/// Other filesystems that people meet, for their names only.
const OTHERS: [(u64, &str); 12] = [
    (OVERLAYFS, "overlayfs"),
    (0x6573_5546, "FUSE or virtiofs"),
    (0x6969, "NFS"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x2fc1_2fc1, "ZFS"),
    (0x9584_58f6, "hugetlbfs"),
    (0x9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x6465_6d61, "devtmpfs"),
];

/// Returns the name of the filesystem with this `f_type`, where it is known.
#[must_use]
pub fn name(magic: u64) -> Option<&'static str> {
    COHERENT.iter().chain(&OTHERS).find(|(known, _)| *known == magic).map(|(_, name)| *name)
}
