//! Any bytes as what happens to a ledger.
//!
//! Input: 0 for a new ledger, or another byte and the first id (4 bytes, little-endian); then
//! operations of a byte (its highest bit is the notification's COPIED) and their arguments.

use sendfile2_sys::ledger::{Done, Ledger};

use self::model::{Fact, Model};

#[path = "../../crates/sendfile2-sys/src/ledger/tests/model.rs"]
mod model;

/// Does the operations to a ledger and to the naive model, and compares.
///
/// # Panics
/// If the two differ.
pub fn run(data: &[u8]) {
    let mut input = data.iter().copied();
    let mut byte = || input.next();
    let start = match byte() {
        None => return,
        Some(0) => None,
        Some(_) => {
            let mut id = [0; 4];
            id.fill_with(|| byte().unwrap_or(0));
            Some(u32::from_le_bytes(id))
        }
    };
    let mut model = Model::new(start);
    let mut ledger = start.map_or_else(Ledger::new, Ledger::starting_at);
    let mut released = 0;
    let mut last = (0, 0);
    while let Some(op) = byte() {
        let copied = op & 0x80 != 0;
        let mut argument = || u32::from(byte().unwrap_or(0));
        match op & 0x7f {
            0..32 => {
                let id = ledger.issue(model.issued());
                assert_eq!(narrow(id), model.next_id());
                model.issue();
                continue;
            }
            32..48 => {
                let ids = argument();
                ledger.skip(ids);
                model.skip(ids);
                continue;
            }
            // So far before the next id, or a little after it; so many ids.
            48..80 => {
                let lo = model.next_id().wrapping_add(8).wrapping_sub(argument());
                last = (lo, lo.wrapping_add(argument()));
            }
            // Any first id, and a short range, forwards or backwards.
            80..96 => {
                let id = [argument(), argument(), argument(), argument()];
                let lo = id.iter().fold(0, |id, byte| id << 8 | byte);
                last = (lo, lo.wrapping_add(argument()).wrapping_sub(argument()));
            }
            // The last range again.
            _ => {}
        }
        let (lo, hi) = last;
        let mut out = Vec::new();
        let got = ledger.complete(lo, hi, copied, &mut out);
        let expected = model.complete(lo, hi);
        assert_eq!(got.is_ok(), expected.is_some(), "{lo}..={hi} of {ledger:?}");
        let facts = facts(&out, copied);
        released += facts.iter().filter(|fact| matches!(fact, Fact::Released { .. })).count();
        assert_eq!(facts, expected.unwrap_or_default(), "nothing else, and nothing on an error");
        assert_eq!(ledger.next_id(), model.next_id());
        assert_eq!(ledger.in_flight(), model.issued() - released);
    }
    let in_flight: Vec<_> = ledger.iter().map(|(_, token)| *token).collect();
    assert_eq!(in_flight, model.in_flight());
}

/// The consequences, id by id.
fn facts(done: &[Done<usize>], expected: bool) -> Vec<Fact> {
    let mut facts = Vec::new();
    for done in done {
        match *done {
            Done::Released { id, held, copied } => {
                assert_eq!(copied, expected);
                facts.push(Fact::Released { id: narrow(id), token: held });
            }
            Done::Application { lo, hi, copied } => {
                assert_eq!(copied, expected);
                let span = hi.wrapping_sub(lo);
                facts.extend((0..=span).map(|i| Fact::Application { id: lo.wrapping_add(i) }));
            }
        }
    }
    facts
}

fn narrow(id: u64) -> u32 {
    u32::try_from(id & u64::from(u32::MAX)).expect("32 bits are left")
}
