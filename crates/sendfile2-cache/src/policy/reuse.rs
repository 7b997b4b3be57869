//! Whether a stored response may be sent (RFC 9111, 4).

use super::control::RequestControl;
use super::freshness::MOST;
use super::known::Known;

/// The use that may be made of a stored response for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Send it.
    Fresh,
    /// Send it though it is stale, since its origin or the client allows it.
    Stale,
    /// Send it, and validate it meanwhile.
    WhileRevalidating,
    /// Validate it first: it is stale, or must be validated always.
    Validate,
    /// Validate it first, since the request says so.
    Asked,
}

impl Known {
    /// Returns the use that may be made of it at the time `now`, for a request with these directives.
    #[must_use]
    pub fn reuse(&self, request: &RequestControl, now: u64) -> Reuse {
        if self.no_cache {
            return Reuse::Validate;
        }
        if request.no_cache {
            return Reuse::Asked;
        }
        let (age, fresh_for) = (self.age_at(now), self.fresh_for(now));
        // An age counts whole seconds: one of 0 may be more than a `max-age` of 0.
        let too_old = request.max_age.is_some_and(|most| age > most || most == 0);
        if fresh_for > 0 {
            if too_old && !self.immutable {
                return Reuse::Asked;
            }
            let least = request.min_fresh.unwrap_or(0);
            return if fresh_for < i64::from(least) { Reuse::Asked } else { Reuse::Fresh };
        }
        if self.must_revalidate || too_old || request.min_fresh.is_some() {
            return Reuse::Validate;
        }
        let within = |seconds: u32| seconds > 0 && -fresh_for <= i64::from(seconds);
        if within(self.while_revalidate) {
            Reuse::WhileRevalidating
        } else if request.max_stale.is_some_and(within) {
            Reuse::Stale
        } else {
            Reuse::Validate
        }
    }

    /// Whether it may be sent, at the time `now`, in place of an error, where `default` is the time
    /// for which it may if nobody says how long.
    #[must_use]
    pub fn instead_of_error(&self, request: &RequestControl, now: u64, default: u32) -> bool {
        if self.no_cache || request.no_cache {
            return false;
        }
        let fresh_for = self.fresh_for(now);
        if fresh_for > 0 {
            return true;
        }
        let said = request.stale_if_error.into_iter().chain(self.if_error).max();
        let most = said.unwrap_or(default).min(MOST);
        !self.must_revalidate && most > 0 && -fresh_for <= i64::from(most)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Kind;
    use super::*;

    /// Received at the time 1000 with the age 5, fresh until 1095, usable until 1105.
    const KNOWN: Known = Known {
        kind: Kind::Whole,
        status: 200,
        received: 1000,
        age: 5,
        lifetime: 100,
        while_revalidate: 10,
        if_error: None,
        no_cache: false,
        must_revalidate: false,
        immutable: false,
        validator: true,
    };
    const PLAIN: RequestControl = RequestControl {
        no_cache: false,
        no_store: false,
        only_if_cached: false,
        max_age: None,
        max_stale: None,
        min_fresh: None,
        stale_if_error: None,
    };

    #[test]
    fn what_may_be_sent_when() {
        let strict = Known { must_revalidate: true, ..KNOWN };
        let always = Known { no_cache: true, ..KNOWN };
        let fixed = Known { immutable: true, ..KNOWN };
        let reload = RequestControl { no_cache: true, ..PLAIN };
        let zero = RequestControl { max_age: Some(0), ..PLAIN };
        let young = RequestControl { max_age: Some(10), ..PLAIN };
        let fresh = RequestControl { min_fresh: Some(50), ..PLAIN };
        let old = RequestControl { max_stale: Some(100), ..PLAIN };
        let any = RequestControl { max_stale: Some(MOST), ..PLAIN };
        for (known, request, now, expected) in [
            (KNOWN, PLAIN, 1000, Reuse::Fresh),
            (KNOWN, PLAIN, 900, Reuse::Fresh),
            (KNOWN, PLAIN, 1094, Reuse::Fresh),
            (KNOWN, PLAIN, 1095, Reuse::WhileRevalidating),
            (KNOWN, PLAIN, 1105, Reuse::WhileRevalidating),
            (KNOWN, PLAIN, 1106, Reuse::Validate),
            (KNOWN, PLAIN, u64::MAX, Reuse::Validate),
            (strict, PLAIN, 1094, Reuse::Fresh),
            (strict, any, 1095, Reuse::Validate),
            (always, PLAIN, 1000, Reuse::Validate),
            (always, any, 1000, Reuse::Validate),
            (KNOWN, reload, 1000, Reuse::Asked),
            (fixed, reload, 1000, Reuse::Asked),
            (KNOWN, zero, 1000, Reuse::Asked),
            (fixed, zero, 1000, Reuse::Fresh),
            (KNOWN, young, 1005, Reuse::Fresh),
            (KNOWN, young, 1006, Reuse::Asked),
            (KNOWN, fresh, 1045, Reuse::Fresh),
            (KNOWN, fresh, 1046, Reuse::Asked),
            (KNOWN, old, 1195, Reuse::Stale),
            (KNOWN, old, 1196, Reuse::Validate),
            (KNOWN, any, 1_000_000, Reuse::Stale),
        ] {
            assert_eq!(known.reuse(&request, now), expected, "{known:?} {request:?} {now}");
        }
    }

    #[test]
    fn what_may_stand_for_an_error() {
        let said = Known { if_error: Some(60), ..KNOWN };
        let strict = Known { must_revalidate: true, ..said };
        for (known, now, default, expected) in [
            (KNOWN, 1094, 0, true),
            (KNOWN, 1095, 0, false),
            (KNOWN, 1105, 10, true),
            (KNOWN, 1106, 10, false),
            (said, 1155, 0, true),
            (said, 1156, 100, false),
            (strict, 1095, 100, false),
            (Known { no_cache: true, ..KNOWN }, 1000, 100, false),
        ] {
            assert_eq!(known.instead_of_error(&PLAIN, now, default), expected, "{known:?} {now}");
        }
    }
}
