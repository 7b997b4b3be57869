//! `sendfile2_pwrite` beside senders that nobody controls. Its control is in the library's
//! `tests/uncontrolled.rs`.
#![allow(clippy::unwrap_used)]

#[allow(unreachable_pub, missing_debug_implementations)]
#[path = "../../sendfile2/tests/common/peek.rs"]
mod peek;

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use peek::{LEN, Seen, beside};
use sendfile2_c::sendfile2_pwrite;

#[test]
fn what_they_have_handed_over_does_not_change() {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all_at(&vec![0; 8 * LEN], 0).unwrap();
    let overwrite = |new: &[u8]| {
        // SAFETY: the memory is `new`'s.
        #[expect(unsafe_code, reason = "a function of C")]
        let n = unsafe { sendfile2_pwrite(file.as_raw_fd(), new.as_ptr().cast(), LEN, 0, 0) };
        usize::try_from(n).map_err(|_| std::io::Error::last_os_error())
    };
    if let Err(why) = overwrite(&[0; LEN]) {
        println!("SKIP: here nothing is overwritten so: {why}");
        return;
    }
    let enough = |seen: &Seen| seen.overwrites >= 400 && seen.sends > 0;
    let seen = beside(&file, enough, |new, _| match overwrite(new) {
        Ok(n) => n == LEN,
        Err(why) => {
            assert_eq!(why.raw_os_error(), Some(libc::EBUSY), "{why}");
            false
        }
    });
    println!("{seen:?}");
    assert!(enough(&seen), "{seen:?}");
    assert_eq!(seen.changed, 0, "{seen:?}");
}
