//! The ledger, behaviour by behaviour, and against a naive model.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::collection::vec;
use proptest::prelude::*;

use self::model::{Fact, Model};
use super::*;

mod model;

/// Returns the consequences of completing one range.
fn complete<H>(ledger: &mut Ledger<H>, lo: u32, hi: u32) -> Result<Vec<Done<H>>, NotIssued> {
    let mut out = Vec::new();
    ledger.complete(lo, hi, false, &mut out).map(|()| out)
}

fn released(id: u64, held: char) -> Done<char> {
    Done::Released { id, held, copied: false }
}

fn application(lo: u32, hi: u32) -> Done<char> {
    Done::Application { lo, hi, copied: false }
}

/// A ledger from id 0 that holds the letters of `held`, one a send; a digit is a skip.
fn ledger(held: &str) -> Ledger<char> {
    fill(Ledger::new(), held)
}

fn fill(mut ledger: Ledger<char>, held: &str) -> Ledger<char> {
    for c in held.chars() {
        match c.to_digit(10) {
            Some(ids) => ledger.skip(ids),
            None => {
                ledger.issue(c);
            }
        }
    }
    ledger
}

/// The letters of the sends in flight, oldest first.
fn in_flight(ledger: &Ledger<char>) -> String {
    ledger.iter().map(|(_, held)| held).collect()
}

#[test]
fn ids_start_at_zero_and_count_up() {
    let mut ledger = Ledger::new();
    assert_eq!((ledger.issue('a'), ledger.issue('b')), (0, 1));
    assert_eq!(ledger.next_id(), 2);
}

#[test]
fn ids_start_where_the_application_said() {
    let mut ledger = Ledger::starting_at(7);
    assert_eq!(ledger.next_id(), 7);
    assert_eq!(narrow(ledger.issue('a')), 7);
}

#[test]
fn the_id_after_the_last_is_zero_and_widens_to_more() {
    let mut ledger = Ledger::starting_at(u32::MAX);
    let (last, zero) = (ledger.issue('a'), ledger.issue('b'));
    assert_eq!((narrow(last), narrow(zero), ledger.next_id()), (u32::MAX, 0, 1));
    assert_eq!(zero, last + 1);
}

#[test]
fn a_skip_moves_the_next_id_and_holds_nothing() {
    let ledger = ledger("a3b");
    assert_eq!(ledger.next_id(), 5);
    assert_eq!(ledger.in_flight(), 2);
}

#[test]
fn a_skip_of_none_changes_nothing() {
    let ledger = ledger("a0");
    assert_eq!((ledger.next_id(), ledger.entries.len()), (1, 1));
}

#[test]
fn iter_gives_the_oldest_first_with_widened_ids() {
    let ledger = ledger("a2bc");
    assert_eq!(ledger.iter().collect::<Vec<_>>(), [(0, &'a'), (3, &'b'), (4, &'c')]);
}

#[test]
fn a_completion_releases_its_send_and_no_other() {
    let mut ledger = ledger("abc");
    assert_eq!(complete(&mut ledger, 1, 1), Ok(vec![released(1, 'b')]));
    assert_eq!(in_flight(&ledger), "ac");
    assert_eq!(ledger.in_flight(), 2);
}

#[test]
fn a_coalesced_range_releases_all_its_sends_in_order() {
    let mut ledger = ledger("abcd");
    let done = complete(&mut ledger, 1, 3);
    assert_eq!(done, Ok(vec![released(1, 'b'), released(2, 'c'), released(3, 'd')]));
    assert_eq!(in_flight(&ledger), "a");
}

#[test]
fn ranges_may_come_youngest_first() {
    let mut ledger = ledger("abcd");
    assert_eq!(complete(&mut ledger, 2, 3), Ok(vec![released(2, 'c'), released(3, 'd')]));
    assert_eq!(complete(&mut ledger, 0, 1), Ok(vec![released(0, 'a'), released(1, 'b')]));
}

#[test]
fn a_range_named_twice_is_passed_over() {
    let mut ledger = ledger("abc");
    complete(&mut ledger, 0, 1).unwrap();
    assert_eq!(complete(&mut ledger, 0, 1), Ok(vec![]));
    assert_eq!(in_flight(&ledger), "c");
}

#[test]
fn a_range_over_completed_ids_releases_the_others() {
    let mut ledger = ledger("abcd");
    complete(&mut ledger, 1, 2).unwrap();
    assert_eq!(complete(&mut ledger, 0, 3), Ok(vec![released(0, 'a'), released(3, 'd')]));
}

#[test]
fn a_range_across_the_wrap_releases_both_sides() {
    let mut ledger = Ledger::starting_at(u32::MAX - 1);
    let ids: Vec<_> = "abcd".chars().map(|c| ledger.issue(c)).collect();
    let done = complete(&mut ledger, u32::MAX, 0);
    assert_eq!(done, Ok(vec![released(ids[1], 'b'), released(ids[2], 'c')]));
    assert_eq!(in_flight(&ledger), "ad");
}

#[test]
fn a_send_from_before_the_wrap_is_released_after_it() {
    let mut ledger = fill(Ledger::starting_at(u32::MAX), "a999b");
    let id = ledger.iter().next().unwrap().0;
    assert_eq!(complete(&mut ledger, u32::MAX, u32::MAX), Ok(vec![released(id, 'a')]));
}

#[test]
fn copied_is_handed_on() {
    let mut ledger = ledger("a2");
    let mut out = Vec::new();
    ledger.complete(0, 1, true, &mut out).unwrap();
    assert_eq!(
        out,
        [
            Done::Released { id: 0, held: 'a', copied: true },
            Done::Application { lo: 1, hi: 1, copied: true }
        ]
    );
}

#[test]
fn consequences_are_appended() {
    let mut ledger = ledger("ab");
    let mut out = Vec::new();
    ledger.complete(1, 1, false, &mut out).unwrap();
    ledger.complete(0, 0, false, &mut out).unwrap();
    assert_eq!(out, [released(1, 'b'), released(0, 'a')]);
}

#[test]
fn the_applications_ids_are_split_off() {
    let mut ledger = ledger("a3b");
    let done = complete(&mut ledger, 0, 4);
    assert_eq!(done, Ok(vec![released(0, 'a'), application(1, 3), released(4, 'b')]));
}

#[test]
fn of_an_applications_run_only_the_range_is_handed_over() {
    let mut ledger = ledger("9");
    assert_eq!(complete(&mut ledger, 3, 5), Ok(vec![application(3, 5)]));
    assert_eq!(complete(&mut ledger, 0, 8), Ok(vec![application(0, 2), application(6, 8)]));
}

#[test]
fn a_range_that_ends_inside_an_applications_run_leaves_its_rest() {
    let mut ledger = ledger("a4b");
    assert_eq!(complete(&mut ledger, 0, 2), Ok(vec![released(0, 'a'), application(1, 2)]));
    assert_eq!(complete(&mut ledger, 3, 5), Ok(vec![application(3, 4), released(5, 'b')]));
}

#[test]
fn an_applications_id_is_handed_over_once() {
    let mut ledger = ledger("3");
    complete(&mut ledger, 1, 1).unwrap();
    assert_eq!(complete(&mut ledger, 1, 1), Ok(vec![]));
}

#[test]
fn an_applications_run_across_the_wrap_keeps_the_kernels_ids() {
    let mut ledger = fill(Ledger::starting_at(u32::MAX), "3");
    assert_eq!(complete(&mut ledger, u32::MAX, 1), Ok(vec![application(u32::MAX, 1)]));
}

#[test]
fn adjoining_skips_are_one_entry() {
    let ledger = ledger("123");
    assert_eq!((ledger.entries.len(), ledger.next_id()), (1, 6));
}

#[test]
fn a_skip_does_not_bring_back_a_completed_id() {
    let mut ledger = ledger("3");
    complete(&mut ledger, 2, 2).unwrap();
    ledger.skip(1);
    assert_eq!(complete(&mut ledger, 0, 3), Ok(vec![application(0, 1), application(3, 3)]));
}

#[test]
fn an_id_before_the_first_is_the_applications() {
    let mut ledger = fill(Ledger::starting_at(5), "a");
    assert_eq!(complete(&mut ledger, 2, 4), Ok(vec![application(2, 4)]));
    assert_eq!(in_flight(&ledger), "a");
}

#[test]
fn a_range_over_the_first_id_is_split_there() {
    let mut ledger = fill(Ledger::starting_at(5), "a");
    let id = ledger.iter().next().unwrap().0;
    assert_eq!(complete(&mut ledger, 3, 5), Ok(vec![application(3, 4), released(id, 'a')]));
}

#[test]
fn an_id_before_the_first_may_lie_before_the_wrap() {
    let mut ledger = fill(Ledger::starting_at(1), "a");
    assert_eq!(complete(&mut ledger, u32::MAX, 0), Ok(vec![application(u32::MAX, 0)]));
}

#[test]
fn an_id_before_the_first_of_a_new_socket_was_never_issued() {
    let mut ledger = ledger("abc");
    let error = NotIssued { lo: u32::MAX, hi: 1, next: 3 };
    assert_eq!(complete(&mut ledger, u32::MAX, 1), Err(error));
    assert_eq!(in_flight(&ledger), "abc");
}

#[test]
fn an_id_that_was_never_issued_is_reported_with_the_next_one() {
    let mut ledger = ledger("ab");
    assert_eq!(complete(&mut ledger, 2, 2), Err(NotIssued { lo: 2, hi: 2, next: 2 }));
}

#[test]
fn no_id_of_an_empty_ledger_was_issued() {
    let mut ledger = Ledger::<char>::new();
    assert!(complete(&mut ledger, 0, 0).is_err());
}

#[test]
fn a_range_that_was_issued_only_in_part_releases_nothing() {
    let mut ledger = ledger("a2b");
    let mut out = Vec::new();
    assert!(ledger.complete(0, 4, false, &mut out).is_err());
    assert!(out.is_empty());
    assert_eq!(in_flight(&ledger), "ab");
    assert_eq!(complete(&mut ledger, 1, 2), Ok(vec![application(1, 2)]));
}

#[test]
fn a_range_from_high_to_low_is_not_issued() {
    let mut ledger = ledger("abcd");
    assert!(complete(&mut ledger, 3, 1).is_err());
    assert_eq!(in_flight(&ledger), "abcd");
}

#[test]
fn the_whole_range_of_ids_is_not_issued() {
    let mut ledger = fill(Ledger::starting_at(2), "ab");
    assert!(complete(&mut ledger, 4, 3).is_err());
    assert!(complete(&mut ledger, 0, u32::MAX).is_err());
    assert_eq!(in_flight(&ledger), "ab");
}

#[test]
fn half_a_turn_away_nothing_is_issued() {
    for first in [Ledger::new(), Ledger::starting_at(0), Ledger::starting_at(u32::MAX)] {
        let mut ledger = fill(first, "ab");
        let far = ledger.next_id().wrapping_add((1 << 31) - 1);
        assert!(complete(&mut ledger, far, far).is_err(), "{ledger:?}");
        assert_eq!(in_flight(&ledger), "ab");
    }
}

#[test]
fn a_turn_later_a_backwards_range_is_still_not_issued() {
    let mut ledger = Ledger::new();
    for _ in 0..5 {
        let lo = ledger.next_id();
        ledger.skip(1 << 30);
        complete(&mut ledger, lo, lo + ((1 << 30) - 1)).unwrap();
    }
    let mut ledger = fill(ledger, "ab");
    let last = ledger.next_id() - 1;
    assert!(complete(&mut ledger, last, last - 1).is_err());
    assert_eq!(in_flight(&ledger), "ab");
}

#[test]
fn a_range_from_more_than_half_a_turn_before_the_first_id_is_not_issued() {
    let mut ledger = Ledger::<char>::starting_at(0);
    assert!(complete(&mut ledger, 1 << 31, u32::MAX).is_ok());
    assert!(complete(&mut ledger, (1 << 31) - 1, u32::MAX - 1).is_err());
}

/// The spare capacity, in entries, that may be kept beyond what is in flight.
const SLACK: usize = 128;

#[test]
#[cfg_attr(miri, ignore = "a million sends are too many for Miri")]
fn memory_does_not_grow_with_what_was_sent() {
    let mut ledger = Ledger::starting_at(u32::MAX - 1000);
    for _ in 0..1_000_000 {
        let id = narrow(ledger.issue(()));
        complete(&mut ledger, id, id).unwrap();
    }
    assert_eq!(ledger.in_flight(), 0);
    assert!(ledger.entries.capacity() <= SLACK, "{}", ledger.entries.capacity());
}

#[test]
#[cfg_attr(miri, ignore = "a million sends are too many for Miri")]
fn memory_does_not_grow_behind_an_oldest_id_that_is_stuck() {
    let mut ledger = Ledger::starting_at(u32::MAX - 1000);
    let stuck = narrow(ledger.issue(()));
    for _ in 0..1_000_000 {
        let id = narrow(ledger.issue(()));
        complete(&mut ledger, id, id).unwrap();
    }
    assert_eq!(ledger.in_flight(), 1);
    assert!(ledger.entries.capacity() <= SLACK, "{}", ledger.entries.capacity());
    assert_eq!(complete(&mut ledger, stuck, stuck).unwrap().len(), 1);
}

#[test]
#[cfg_attr(miri, ignore = "a hundred thousand sends are too many for Miri")]
fn memory_of_a_burst_is_given_back() {
    let mut ledger = Ledger::new();
    for _ in 0..100_000 {
        ledger.issue(());
    }
    for id in 0..100_000 {
        complete(&mut ledger, id, id).unwrap();
    }
    assert!(ledger.entries.capacity() <= SLACK, "{}", ledger.entries.capacity());
}

#[test]
fn a_skip_of_a_billion_ids_takes_one_entry() {
    let mut ledger = Ledger::starting_at(u32::MAX - 1000);
    ledger.skip(1 << 30);
    assert_eq!(ledger.entries.len(), 1);
    let hi = ledger.next_id().wrapping_sub(1);
    assert_eq!(
        complete(&mut ledger, u32::MAX - 1000, hi),
        Ok(vec![application(u32::MAX - 1000, hi)])
    );
    assert!(ledger.entries.is_empty());
}

#[test]
fn completions_in_a_long_run_leave_only_its_pieces() {
    let mut ledger = Ledger::<char>::new();
    ledger.skip(1 << 30);
    for id in (0..1000).step_by(2) {
        complete(&mut ledger, id, id).unwrap();
    }
    assert_eq!(ledger.entries.len(), 500);
    complete(&mut ledger, 0, 1000).unwrap();
    assert_eq!(ledger.entries.len(), 1);
}

#[test]
fn there_is_room_for_less_than_half_a_turn() {
    let ledger = Ledger::<char>::new();
    assert_eq!(ledger.room((1 << 31) - 1), Ok(()));
    assert_eq!(ledger.room(1 << 31), Err(WindowFull));
}

#[test]
fn the_oldest_id_in_flight_takes_room() {
    let mut ledger = ledger("a");
    assert_eq!(ledger.room((1 << 31) - 2), Ok(()));
    assert_eq!(ledger.room((1 << 31) - 1), Err(WindowFull));
    complete(&mut ledger, 0, 0).unwrap();
    assert_eq!(ledger.room((1 << 31) - 1), Ok(()));
}

#[test]
fn an_applications_id_in_flight_takes_room() {
    let ledger = ledger("1");
    assert_eq!(ledger.room((1 << 31) - 1), Err(WindowFull));
}

#[test]
fn younger_completions_make_no_room() {
    let mut ledger = ledger("a");
    ledger.skip((1 << 31) - 2);
    complete(&mut ledger, 1, (1 << 31) - 2).unwrap();
    assert_eq!(ledger.room(1), Err(WindowFull));
}

#[test]
fn with_all_room_taken_the_oldest_is_still_told_apart() {
    for first in [0, 1 << 31, u32::MAX] {
        let mut ledger = fill(Ledger::starting_at(first), "a");
        let id = ledger.iter().next().unwrap().0;
        ledger.skip((1 << 31) - 2);
        assert_eq!(complete(&mut ledger, first, first), Ok(vec![released(id, 'a')]));
    }
}

#[test]
fn with_all_room_taken_one_range_may_name_everything() {
    for first in [0, 1 << 31, u32::MAX] {
        let mut ledger = fill(Ledger::starting_at(first), "a");
        let id = ledger.iter().next().unwrap().0;
        ledger.skip((1 << 31) - 2);
        let hi = ledger.next_id().wrapping_sub(1);
        let done = vec![released(id, 'a'), application(first.wrapping_add(1), hi)];
        assert_eq!(complete(&mut ledger, first, hi), Ok(done));
    }
}

/// Counts the drops of each token.
#[derive(Debug, Clone, Default)]
struct Drops(Rc<RefCell<Vec<u32>>>);

#[derive(Debug)]
struct Token {
    number: usize,
    drops: Drops,
}

impl Drops {
    fn token(&self) -> Token {
        let mut counts = self.0.borrow_mut();
        counts.push(0);
        Token { number: counts.len() - 1, drops: self.clone() }
    }

    fn counts(&self) -> Vec<u32> {
        self.0.borrow().clone()
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.drops.0.borrow_mut()[self.number] += 1;
    }
}

#[test]
fn what_is_held_is_let_go_of_by_the_receiver_of_the_release() {
    let drops = Drops::default();
    let mut ledger = Ledger::new();
    ledger.issue(drops.token());
    let done = complete(&mut ledger, 0, 0).unwrap();
    assert_eq!(drops.counts(), [0]);
    drop(done);
    assert_eq!(drops.counts(), [1]);
}

#[test]
fn a_dropped_ledger_never_lets_go_of_what_was_in_flight() {
    let drops = Drops::default();
    let mut ledger = Ledger::new();
    ledger.issue(drops.token());
    ledger.issue(drops.token());
    complete(&mut ledger, 0, 0).unwrap();
    drop(ledger);
    assert_eq!(drops.counts(), [1, 0]);
}

/// One step of a random history of a ledger. Ranges are relative to the next id.
#[derive(Debug, Clone)]
enum Op {
    Issue,
    Skip(u32),
    /// A range that begins so many ids before the next one (or after it), and is `span` ids long.
    Complete {
        back: i32,
        span: u32,
        copied: bool,
    },
    /// The range completed last, once more.
    Repeat,
    /// A range of any two ids.
    Wild {
        lo: u32,
        hi: u32,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Issue),
        2 => (0u32..20).prop_map(Op::Skip),
        6 => (-3i32..60, 0u32..20, any::<bool>())
            .prop_map(|(back, span, copied)| Op::Complete { back, span, copied }),
        1 => Just(Op::Repeat),
        1 => (-5i32..5, -200i32..5).prop_map(|(hi, span)| Op::Wild {
            lo: u32::from_ne_bytes(hi.wrapping_sub(span).to_ne_bytes()),
            hi: u32::from_ne_bytes(hi.to_ne_bytes()),
        }),
    ]
}

fn start() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![
        Just(None),
        Just(Some(0)),
        (0u32..100).prop_map(|k| Some(u32::MAX - k)),
        (0u32..100).prop_map(|k| Some((1 << 31) - 50 + k)),
        any::<u32>().prop_map(Some),
    ]
}

/// The consequences, one fact an id, in the model's terms.
fn facts(done: &[Done<Token>]) -> Vec<Fact> {
    let mut facts = Vec::new();
    for done in done {
        match done {
            Done::Released { id, held, .. } => {
                facts.push(Fact::Released { id: narrow(*id), token: held.number });
            }
            Done::Application { lo, hi, .. } => {
                let span = hi.wrapping_sub(*lo);
                facts.extend((0..=span).map(|i| Fact::Application { id: lo.wrapping_add(i) }));
            }
        }
    }
    facts
}

fn is_copied<H>(done: &Done<H>) -> bool {
    let (Done::Released { copied, .. } | Done::Application { copied, .. }) = done;
    *copied
}

/// Miri is slow.
const CASES: u32 = if cfg!(miri) { 4 } else { 500 };
const OPS: usize = if cfg!(miri) { 20 } else { 200 };

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) })]

    #[test]
    fn it_does_what_the_naive_model_does(start in start(), ops in vec(op(), 0..OPS)) {
        let drops = Drops::default();
        let mut model = Model::new(start);
        let mut ledger = start.map_or_else(Ledger::new, Ledger::starting_at);
        let mut last = (model.next_id(), model.next_id(), false);
        let mut before = None;
        for op in ops {
            match op {
                Op::Issue => {
                    let id = ledger.issue(drops.token());
                    prop_assert_eq!(narrow(id), model.next_id());
                    prop_assert!(before < Some(id), "widened ids only rise");
                    before = Some(id);
                    model.issue();
                    continue;
                }
                Op::Skip(ids) => {
                    ledger.skip(ids);
                    model.skip(ids);
                    continue;
                }
                Op::Complete { back, span, copied } => {
                    let lo = model.next_id().wrapping_sub(u32::from_ne_bytes(back.to_ne_bytes()));
                    last = (lo, lo.wrapping_add(span), copied);
                }
                Op::Repeat => {}
                Op::Wild { lo, hi } => last = (lo, hi, false),
            }
            let (lo, hi, copied) = last;
            let mut out = Vec::new();
            let got = ledger.complete(lo, hi, copied, &mut out);
            prop_assert!(out.iter().all(|done| is_copied(done) == copied));
            match model.complete(lo, hi) {
                Some(expected) => {
                    prop_assert_eq!(got, Ok(()));
                    prop_assert_eq!(facts(&out), expected);
                }
                None => {
                    prop_assert_eq!(got, Err(NotIssued { lo, hi, next: model.next_id() }));
                    prop_assert!(out.is_empty());
                }
            }
            drop(out);

            let in_flight: Vec<_> = ledger.iter().map(|(_, token)| token.number).collect();
            prop_assert_eq!(ledger.next_id(), model.next_id());
            prop_assert_eq!(ledger.in_flight(), in_flight.len());
            prop_assert_eq!(&in_flight, &model.in_flight());
            for (token, count) in drops.counts().into_iter().enumerate() {
                prop_assert_eq!(count, u32::from(!in_flight.contains(&token)), "token {}", token);
            }
        }
        let counts = drops.counts();
        prop_assert_eq!(counts.len(), model.issued());
        drop(ledger);
        prop_assert_eq!(drops.counts(), counts, "what is in flight is never dropped");
    }

    #[test]
    fn any_partition_in_any_order_releases_everything_once(
        start in start(),
        lengths in vec(1u32..9, 1..40),
        order in any::<proptest::sample::Index>(),
        backwards in any::<bool>(),
    ) {
        let mut ledger = start.map_or_else(Ledger::new, Ledger::starting_at);
        let mut ranges = Vec::new();
        for length in lengths {
            let lo = ledger.next_id();
            for _ in 0..length {
                ledger.issue(());
            }
            ranges.push((lo, ledger.next_id().wrapping_sub(1), length as usize));
        }
        let at = order.index(ranges.len());
        ranges.rotate_left(at);
        if backwards {
            ranges.reverse();
        }
        for (lo, hi, length) in ranges {
            prop_assert_eq!(complete(&mut ledger, lo, hi).unwrap().len(), length);
        }
        prop_assert!(ledger.entries.is_empty());
    }
}
