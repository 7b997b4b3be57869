//! A naive model of a ledger: a map with one entry for every id that was ever used.
//!
//! The model walks each range id by id and knows nothing of widening, of runs or of bounded memory.
//! The fuzz target `ledger_ops` includes this file too.

use std::collections::BTreeMap;

/// The state of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Id {
    /// A send in flight, and its token.
    Ours(usize),
    Application,
    Completed,
}

/// The consequence of a completed range for one of its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fact {
    Released { id: u32, token: usize },
    Application { id: u32 },
}

/// The naive ledger. At most a few thousand ids, so that none is used twice.
#[derive(Debug)]
pub(crate) struct Model {
    ids: BTreeMap<u32, Id>,
    /// `Some(first)` if the ids before `first` were the application's.
    before: Option<u32>,
    next: u32,
    issued: usize,
}

impl Model {
    pub(crate) fn new(starting_at: Option<u32>) -> Self {
        Model {
            ids: BTreeMap::new(),
            before: starting_at,
            next: starting_at.unwrap_or(0),
            issued: 0,
        }
    }

    pub(crate) fn next_id(&self) -> u32 {
        self.next
    }

    /// Sends made so far; the next one's token.
    pub(crate) fn issued(&self) -> usize {
        self.issued
    }

    pub(crate) fn issue(&mut self) {
        self.ids.insert(self.next, Id::Ours(self.issued));
        self.issued += 1;
        self.next = self.next.wrapping_add(1);
    }

    pub(crate) fn skip(&mut self, ids: u32) {
        for _ in 0..ids {
            self.ids.insert(self.next, Id::Application);
            self.next = self.next.wrapping_add(1);
        }
    }

    /// The facts of the range `lo..=hi` in its order, or `None` if one of its ids was never
    /// issued.
    pub(crate) fn complete(&mut self, lo: u32, hi: u32) -> Option<Vec<Fact>> {
        let future = self.next.wrapping_sub(1).wrapping_sub(hi) >= 1 << 31;
        let backwards = hi.wrapping_sub(lo) >= 1 << 31;
        if future || backwards {
            return None;
        }
        let mut facts = Vec::new();
        let mut id = lo;
        loop {
            match self.ids.get(&id) {
                Some(&Id::Ours(token)) => facts.push(Fact::Released { id, token }),
                Some(Id::Application) => facts.push(Fact::Application { id }),
                Some(Id::Completed) => {}
                None if self.is_before(id) => facts.push(Fact::Application { id }),
                None => return None,
            }
            if id == hi {
                break;
            }
            id = id.wrapping_add(1);
        }
        for fact in &facts {
            let (Fact::Released { id, .. } | Fact::Application { id }) = fact;
            // Ids from before the first one are not kept: they are the application's each time.
            if let Some(state) = self.ids.get_mut(id) {
                *state = Id::Completed;
            }
        }
        Some(facts)
    }

    fn is_before(&self, id: u32) -> bool {
        self.before.is_some_and(|first| (1..=1 << 31).contains(&first.wrapping_sub(id)))
    }

    /// The tokens in flight, in the order of their issue.
    pub(crate) fn in_flight(&self) -> Vec<usize> {
        let mut tokens: Vec<_> = self
            .ids
            .values()
            .filter_map(|id| if let Id::Ours(token) = id { Some(*token) } else { None })
            .collect();
        tokens.sort_unstable();
        tokens
    }
}
