//! The memory that the index takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::store::Key;
use crate::store::index::Entry;
use crate::store::layout::{Role, Sizes};
use crate::store::state::State;

thread_local! {
    static HEAP: Cell<isize> = const { Cell::new(0) };
}

/// Counts what a thread has on the heap.
struct Counting;

// SAFETY: it passes everything on to the system's.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = HEAP.try_with(|heap| heap.set(heap.get() + layout.size().cast_signed()));
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = HEAP.try_with(|heap| heap.set(heap.get() - layout.size().cast_signed()));
        // SAFETY: as the caller says.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As many as make a hash table just grow, and just not, and some between.
#[test]
fn the_index_takes_at_most_100_bytes_a_response() {
    let sizes = Sizes::of(4 << 30, 8 << 20).unwrap();
    for n in [57_344, 57_345, 80_000, 114_688, 114_689, 150_000_u32] {
        let mut state = State::new(sizes);
        let before = HEAP.get();
        for at in 0..n {
            let region = at / 1000;
            let (record, body_len, head_len) = (64, 4000, 300);
            state.insert(Entry {
                key: Key::of(&[&at.to_le_bytes()]),
                state: [0; 24],
                seq: u64::from(at),
                region,
                record,
                body_len,
                head_region: region,
                head_at: 5000,
                head_len,
                role: Role::Whole,
                hits: 0,
                verified: true,
            });
            if at % 1000 == 999 {
                state.region(region).slots.shrink_to_fit();
            }
        }
        let taken = usize::try_from(HEAP.get() - before).unwrap();
        let each = taken / n as usize;
        println!("{n} responses: {each} bytes each");
        assert!(taken <= 100 * n as usize, "{n} responses take {taken} bytes, {each} each");
    }
}
