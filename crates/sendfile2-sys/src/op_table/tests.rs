use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const MORE: Completion = Completion::Answer { more: true };
const LAST: Completion = Completion::Answer { more: false };
const COPIED: Completion = Completion::Notification { copied: true };
const FREED: Completion = Completion::Notification { copied: false };

#[test]
fn in_either_order_it_is_handed_back_once_with_the_second() {
    for (first, second, copied) in [(MORE, COPIED, true), (FREED, MORE, false)] {
        let mut slots = Slots::default();
        let key = slots.insert("lease");
        assert_eq!(slots.complete(key, first), Ok(Step::Kept));
        assert_eq!(slots.get_mut(key), Some(&mut "lease"));
        assert_eq!(slots.complete(key, second), Ok(Step::Done { kept: "lease", copied }));
        assert_eq!(slots.complete(key, second), Err(Stray { key }));
        assert!(slots.is_empty());
    }
}

#[test]
fn an_answer_that_announces_nothing_ends_it() {
    let mut slots = Slots::default();
    let key = slots.insert(());
    assert_eq!(slots.complete(key, LAST), Ok(Step::Done { kept: (), copied: false }));
}

#[test]
fn a_late_completion_is_not_taken_for_that_of_the_next_operation() {
    let mut slots = Slots::default();
    let old = slots.insert("old");
    slots.complete(old, LAST).unwrap();
    let new = slots.insert("new");
    assert_eq!(slots.complete(old, COPIED), Err(Stray { key: old }));
    assert_eq!(slots.complete(old, MORE), Err(Stray { key: old }));
    assert_eq!(slots.complete(new, MORE), Ok(Step::Kept));
    assert_eq!(slots.complete(new, MORE), Err(Stray { key: new }), "a second answer");
}

/// The second, naive implementation: a map from all keys there ever were.
#[derive(Default)]
struct Naive(BTreeMap<u64, (u32, Vec<Completion>, bool)>);

impl Naive {
    fn complete(&mut self, key: u64, completion: Completion) -> Result<Step<u32>, Stray> {
        let kind = |c: &Completion| matches!(c, Completion::Answer { .. });
        let Some((kept, seen, over)) = self.0.get_mut(&key) else { return Err(Stray { key }) };
        if *over || seen.iter().any(|c| kind(c) == kind(&completion)) {
            return Err(Stray { key });
        }
        seen.push(completion);
        *over = seen.contains(&LAST) || seen.len() == 2;
        let copied = seen.contains(&COPIED);
        Ok(if *over { Step::Done { kept: *kept, copied } } else { Step::Kept })
    }
}

proptest! {
    #[test]
    fn agrees_with_the_naive_model(
        ops in prop::collection::vec((0_usize..24, 0_u8..6), 1..200),
    ) {
        let (mut slots, mut naive) = (Slots::default(), Naive::default());
        let mut keys = Vec::new();
        for (which, op) in ops {
            let completion = match op {
                0 | 1 => {
                    let value = u32::try_from(keys.len()).unwrap();
                    let key = slots.insert(value);
                    prop_assert!(naive.0.insert(key, (value, vec![], false)).is_none(), "{key:#x}");
                    keys.push(key);
                    continue;
                }
                2 => MORE,
                3 => LAST,
                4 => COPIED,
                _ => FREED,
            };
            // The latest are the likeliest; some never existed.
            let key = keys.iter().rev().nth(which).copied().unwrap_or(which as u64);
            prop_assert_eq!(slots.complete(key, completion), naive.complete(key, completion));
            let under_way = naive.0.values().filter(|(_, _, over)| !over).count();
            prop_assert_eq!(slots.len(), under_way);
            prop_assert_eq!(slots.iter().count(), under_way);
        }
    }
}
