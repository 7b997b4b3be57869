//! Writes that begin behind the end of the file: what is between becomes zeroes, which no lease from
//! before is to see.
#![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

mod common;

use common::detachable::{LEN, fresh, made};
use common::filesystems::here;
use common::{assert_same, deadline, pattern, waiting};
use sendfile2::guard::{GuardedFile, Lease, TryWrite};

/// Where they write; what is between the end of the file and this is in nobody's range.
const AT: u64 = LEN + 500_000;

/// A way to write bytes at an offset.
type Way = (&'static str, fn(&GuardedFile, &[u8], u64));

const WAYS: &[Way] = &[
    ("write_at", |guard, data, at| guard.write_at(data, at, deadline()).unwrap()),
    ("write_at_abort", |guard, data, at| guard.write_at_abort(data, at, deadline()).unwrap()),
    ("try_write_at", |guard, data, at| {
        assert_eq!(guard.try_write_at(data, at).unwrap(), TryWrite::Written);
    }),
    ("write_with", |guard, data, at| {
        let range = at..at + data.len() as u64;
        guard.write_with(range, deadline(), |range| range.write_at(data, at)).unwrap();
    }),
    ("queue_writer", |guard, data, at| {
        let mut queued = guard.queue_writer(at..at + data.len() as u64).unwrap();
        queued.try_acquire().unwrap().unwrap().write_at(data, at).unwrap();
    }),
    #[cfg(feature = "tokio")]
    ("write_at_async", |guard, data, at| {
        runtime().block_on(guard.write_at_async(data.to_vec(), at)).unwrap();
    }),
    #[cfg(feature = "tokio")]
    ("exclusive_async", |guard, data, at| {
        let range = at..at + data.len() as u64;
        let range = runtime().block_on(guard.exclusive_async(range)).unwrap();
        range.write_at(data, at).unwrap();
    }),
];

#[cfg(feature = "tokio")]
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The bytes that a lease, or the file, has from `at` on, as one call reads them.
fn bytes(lease: &Lease, at: u64) -> Vec<u8> {
    let mut buffer = vec![1; 100];
    let read = lease.read_at(&mut buffer, at).unwrap();
    buffer.truncate(read);
    buffer
}

#[test]
fn a_lease_from_before_sees_no_zeroes() {
    let Some(file) = made(&here()) else { return };
    for (way, write) in WAYS {
        file.set_len(LEN).unwrap();
        let guard = fresh(&file);
        let lease = guard.try_lease(LEN - 10..LEN + (1 << 20)).unwrap();
        write(&guard, &[7; 100], AT);
        assert_same(&bytes(&lease, LEN - 10), &pattern(1, LEN - 10..LEN));
        for at in [LEN, LEN + 1, AT - 1, AT] {
            assert_same(&bytes(&lease, at), &[]);
        }
        // The control: they are there, for who leases them now.
        drop(lease);
        let now = guard.try_lease(LEN..AT + 100).unwrap();
        assert_same(&bytes(&now, LEN), &[0; 100]);
        assert_same(&bytes(&now, AT), &[7; 100]);
        assert_eq!(guard.counters().kept_aside, 0, "{way}");
    }
}

/// Where nothing is kept aside, such a lease is waited for.
#[test]
fn elsewhere_a_lease_of_what_is_between_is_in_the_way() {
    let guard = waiting(common::file(1, LEN));
    let lease = guard.try_lease(LEN..AT).unwrap();
    assert!(matches!(guard.try_write_at(&[7], AT).unwrap(), TryWrite::Blocked(_)));
    // But not for who writes no further than to the end.
    assert_eq!(guard.try_write_at(&[7], LEN - 1).unwrap(), TryWrite::Written);
    // Nor for who writes nothing.
    assert_eq!(guard.try_write_at(&[], AT).unwrap(), TryWrite::Written);
    drop(lease);
    assert_eq!(guard.try_write_at(&[7], AT).unwrap(), TryWrite::Written);
}

/// The end of the file was another one when the writer was queued.
#[test]
fn a_file_that_is_shortened_meanwhile_has_a_larger_gap() {
    let guard = waiting(common::file(1, LEN));
    let mut shortens = guard.queue_writer(0..u64::MAX).unwrap();
    let mut queued = guard.queue_writer(AT..AT + 1).unwrap();
    std::thread::scope(|threads| {
        let write_at = threads.spawn(|| guard.write_at(&[7], AT + 9, deadline()));
        while guard.writers() < 3 {
            std::thread::yield_now();
        }
        shortens.try_acquire().unwrap().unwrap().set_len(1000).unwrap();
        drop(shortens);
        let range = queued.try_acquire().unwrap().unwrap();
        assert_eq!(range.range(), LEN..AT + 1);
        let refused = range.write_at(&[7], AT).unwrap_err();
        assert!(
            matches!(&refused, sendfile2::Error::NotLeased { range } if *range == (1000..AT + 1)),
            "{refused}"
        );
        drop(queued);
        write_at.join().unwrap().unwrap();
    });
    assert_eq!(guard.source().size().unwrap(), AT + 10);
}
