//! The facts that are kept of a stored response, in 24 bytes.

use crate::store::State;

/// The kind of a stored object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole response.
    Whole,
    /// A part of one (206).
    Part,
    /// No response: which fields of a request decide between the variants.
    Variants,
    /// No response: the variant that a language leads to.
    Language,
}

/// The facts of a stored response by which it is judged whether it may be sent, without its headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// The kind of object.
    pub kind: Kind,
    /// The status that it is sent with.
    pub status: u16,
    /// When it was received or validated, in seconds since 1970 (until the year 2106).
    pub received: u32,
    /// The age that it had then.
    pub age: u32,
    /// The age at which it becomes stale.
    pub lifetime: u32,
    /// The seconds for which it may be used stale while it is being validated.
    pub while_revalidate: u32,
    /// The seconds for which it may be used stale in place of an error, if that was said.
    pub if_error: Option<u32>,
    /// Whether it must be validated before each use.
    pub no_cache: bool,
    /// Whether it must not be used stale.
    pub must_revalidate: bool,
    /// Whether it does not change while it is fresh.
    pub immutable: bool,
    /// Whether it has something to be validated by.
    pub validator: bool,
}

const NO_CACHE: u8 = 1;
const MUST_REVALIDATE: u8 = 2;
const IMMUTABLE: u8 = 4;
const VALIDATOR: u8 = 8;
const IF_ERROR: u8 = 16;

impl Known {
    /// An object that is no response.
    #[must_use]
    pub fn other(kind: Kind, received: u64) -> Self {
        Known {
            kind,
            status: 0,
            received: u32::try_from(received).unwrap_or(u32::MAX),
            age: 0,
            lifetime: 0,
            while_revalidate: 0,
            if_error: None,
            no_cache: false,
            must_revalidate: false,
            immutable: false,
            validator: false,
        }
    }

    /// Its 24 bytes.
    #[must_use]
    pub fn to_state(&self) -> State {
        let mut state = State::default();
        let numbers = [
            self.received,
            self.age,
            self.lifetime,
            self.while_revalidate,
            self.if_error.unwrap_or_default(),
        ];
        for (slot, number) in state.chunks_exact_mut(4).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        state[20..22].copy_from_slice(&self.status.to_le_bytes());
        state[22] = match self.kind {
            Kind::Whole => 0,
            Kind::Part => 1,
            Kind::Variants => 2,
            Kind::Language => 3,
        };
        for (is, flag) in [
            (self.no_cache, NO_CACHE),
            (self.must_revalidate, MUST_REVALIDATE),
            (self.immutable, IMMUTABLE),
            (self.validator, VALIDATOR),
            (self.if_error.is_some(), IF_ERROR),
        ] {
            state[23] |= if is { flag } else { 0 };
        }
        state
    }

    /// Reads the 24 bytes; `None` if nothing here has written them.
    #[must_use]
    pub fn of_state(state: &State) -> Option<Self> {
        let (numbers, rest) = state.split_first_chunk::<20>()?;
        let number =
            |i: usize| numbers[4 * i..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let &[low, high, kind, flags] = rest else { return None };
        let is = |flag| flags & flag != 0;
        Some(Known {
            kind: match kind {
                0 => Kind::Whole,
                1 => Kind::Part,
                2 => Kind::Variants,
                3 => Kind::Language,
                _ => return None,
            },
            status: u16::from_le_bytes([low, high]),
            received: number(0),
            age: number(1),
            lifetime: number(2),
            while_revalidate: number(3),
            if_error: is(IF_ERROR).then(|| number(4)),
            no_cache: is(NO_CACHE),
            must_revalidate: is(MUST_REVALIDATE),
            immutable: is(IMMUTABLE),
            validator: is(VALIDATOR),
        })
    }
}
