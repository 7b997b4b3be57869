//! The notification ids that are in flight, and what each of them holds.
//!
//! The kernel numbers the zerocopy sends of a socket with a `u32` that wraps, and reports their
//! completion as inclusive ranges of these ids: coalesced, in any order, now and then twice. The
//! ledger widens the ids to `u64`, maps them to what the send holds, and hands that back when, and
//! only when, the kernel has named the id. It does no I/O, takes no lock, and knows nothing of
//! sockets.
//!
//! Source: `Documentation/networking/msg_zerocopy.rst`, "Notification Parsing".

use std::collections::VecDeque;

/// The size of the window of serial-number arithmetic, which distinguishes ids: no id may stay in
/// flight while more than this many younger ones are issued.
const WINDOW: u64 = 1 << 31;

/// The sends in flight on one socket, oldest first.
///
/// Memory grows with the number of sends in flight, never with the number of sends made. Dropping it
/// forgets, and does not drop, what the sends in flight hold.
#[derive(Debug)]
pub struct Ledger<H> {
    /// The entries, sorted by id; disjoint.
    entries: VecDeque<Entry<H>>,
    /// The first id this ledger could have issued.
    first: u64,
    /// Whether the application issued the ids before `first`; it gave us the next one.
    before: bool,
    /// The id of the next zerocopy send.
    next: u64,
    held: usize,
}

#[derive(Debug)]
enum Entry<H> {
    Ours { id: u64, held: H },
    Application { lo: u64, hi: u64 },
}

impl<H> Entry<H> {
    fn lo(&self) -> u64 {
        match self {
            Entry::Ours { id, .. } => *id,
            Entry::Application { lo, .. } => *lo,
        }
    }

    fn hi(&self) -> u64 {
        match self {
            Entry::Ours { id, .. } => *id,
            Entry::Application { hi, .. } => *hi,
        }
    }
}

/// One consequence of a completion notification.
#[derive(Debug, PartialEq, Eq)]
pub enum Done<H> {
    /// A send of this ledger was released; dropping `held` drops what the send held.
    Released {
        /// The widened notification id.
        id: u64,
        /// The value that the send held.
        held: H,
        /// The kernel flagged the notification `SO_EE_CODE_ZEROCOPY_COPIED`.
        copied: bool,
    },
    /// Ids (inclusive, as the kernel counts them) that the application used itself.
    Application {
        /// The first id of the range.
        lo: u32,
        /// The last id of the range; below `lo` where the range wraps.
        hi: u32,
        /// The kernel flagged the notification `SO_EE_CODE_ZEROCOPY_COPIED`.
        copied: bool,
    },
}

/// A notification named an id that was never issued. Nothing was released for it.
///
/// Somebody else sends with `MSG_ZEROCOPY` on this socket without saying so, or a BPF sockmap makes
/// several sends of one; from here on no id of the socket can be attributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel reported notification ids {lo}..={hi}, but the next id was to be {next}: \
     something else sends with MSG_ZEROCOPY on this socket; let it say so \
     (Sender::application_sends), or keep it off"
)]
pub struct NotIssued {
    /// `ee_info` of the notification.
    pub lo: u32,
    /// `ee_data` of the notification.
    pub hi: u32,
    /// The id that the next send would have got.
    pub next: u32,
}

/// The oldest id in flight is 2³¹ ids behind: a new one could not be distinguished from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the oldest send in flight is 2^31 notification ids old: wait for it or abort")]
pub struct WindowFull;

impl<H> Default for Ledger<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H> Ledger<H> {
    /// The ledger of a socket on which no zerocopy send was made yet.
    #[must_use]
    pub fn new() -> Self {
        Ledger { entries: VecDeque::new(), first: 0, before: false, next: 0, held: 0 }
    }

    /// The ledger of a socket whose next zerocopy send will get the id `next`; those before it
    /// were the application's.
    #[must_use]
    pub fn starting_at(next: u32) -> Self {
        // One turn ahead, so that the application's ids before `next` fit below.
        let next = u64::from(next) + (1 << 32);
        Ledger { entries: VecDeque::new(), first: next, before: true, next, held: 0 }
    }

    /// Checks that another `ids` ids can be issued and still be distinguished from the oldest in
    /// flight.
    pub fn room(&self, ids: u32) -> Result<(), WindowFull> {
        let oldest = self.entries.front().map_or(self.next, Entry::lo);
        if self.next - oldest + u64::from(ids) < WINDOW { Ok(()) } else { Err(WindowFull) }
    }

    /// Records a successful zerocopy send and returns its id, widened.
    ///
    /// To be called under the lock that the send was made under; ask [`room`](Self::room) before
    /// the send.
    pub fn issue(&mut self, held: H) -> u64 {
        let id = self.next;
        self.next += 1;
        self.held += 1;
        self.entries.push_back(Entry::Ours { id, held });
        id
    }

    /// Records that the application itself made `ids` zerocopy sends; ask [`room`](Self::room)
    /// before they are made.
    pub fn skip(&mut self, ids: u32) {
        if ids == 0 {
            return;
        }
        let (lo, hi) = (self.next, self.next + u64::from(ids) - 1);
        self.next = hi + 1;
        match self.entries.back_mut() {
            Some(Entry::Application { hi: last, .. }) if *last + 1 == lo => *last = hi,
            _ => self.entries.push_back(Entry::Application { lo, hi }),
        }
    }

    /// Takes one notification, `lo` to `hi` inclusive, and appends its consequences to `out`.
    ///
    /// Ids that were completed before are passed over: the kernel may name one twice.
    ///
    /// # Errors
    /// [`NotIssued`] if any id of the range was never issued; then nothing is released.
    pub fn complete(
        &mut self,
        lo: u32,
        hi: u32,
        copied: bool,
        out: &mut Vec<Done<H>>,
    ) -> Result<(), NotIssued> {
        let (lo, hi) = self.widen(lo, hi)?;
        if lo < self.first {
            out.push(Done::Application {
                lo: narrow(lo),
                hi: narrow(hi.min(self.first - 1)),
                copied,
            });
        }
        let from = self.entries.partition_point(|e| e.hi() < lo);
        let to = self.entries.partition_point(|e| e.lo() <= hi);
        // An application's run may reach over either end of the range; what is over stays.
        let mut rest_front = None;
        let mut rest_back = None;
        let to = to.max(from);
        out.reserve(to - from);
        for entry in self.entries.drain(from..to) {
            match entry {
                Entry::Ours { id, held } => {
                    self.held -= 1;
                    out.push(Done::Released { id, held, copied });
                }
                Entry::Application { lo: l, hi: h } => {
                    if l < lo {
                        rest_front = Some(Entry::Application { lo: l, hi: lo - 1 });
                    }
                    if h > hi {
                        rest_back = Some(Entry::Application { lo: hi + 1, hi: h });
                    }
                    out.push(Done::Application {
                        lo: narrow(l.max(lo)),
                        hi: narrow(h.min(hi)),
                        copied,
                    });
                }
            }
        }
        for rest in [rest_back, rest_front].into_iter().flatten() {
            self.entries.insert(from, rest);
        }
        if self.entries.capacity() > 64 && self.entries.len() < self.entries.capacity() / 4 {
            self.entries.shrink_to(self.entries.capacity() / 2);
        }
        Ok(())
    }

    /// Returns what the last of the sends in flight among `lo` to `hi` holds.
    ///
    /// # Errors
    /// As [`complete`](Self::complete).
    pub fn last_of(&self, lo: u32, hi: u32) -> Result<Option<&H>, NotIssued> {
        let (lo, hi) = self.widen(lo, hi)?;
        let end = self.entries.partition_point(|e| e.lo() <= hi);
        let within = self.entries.range(..end).rev().take_while(|e| e.hi() >= lo);
        Ok(within.into_iter().find_map(|e| match e {
            Entry::Ours { held, .. } => Some(held),
            Entry::Application { .. } => None,
        }))
    }

    /// Releases all sends in flight, though no notification named all of their ids; `out` is as for
    /// [`complete`](Self::complete). The application's own ids stay in flight.
    pub fn complete_all(&mut self, out: &mut Vec<Done<H>>) {
        self.held = 0;
        for entry in std::mem::take(&mut self.entries) {
            match entry {
                Entry::Ours { id, held } => out.push(Done::Released { id, held, copied: false }),
                application @ Entry::Application { .. } => self.entries.push_back(application),
            }
        }
    }

    fn widen(&self, lo: u32, hi: u32) -> Result<(u64, u64), NotIssued> {
        let refuse = NotIssued { lo, hi, next: narrow(self.next) };
        // Both by their distance back from the next id.
        let back = u64::from(narrow(self.next).wrapping_sub(1).wrapping_sub(hi));
        let span = u64::from(hi.wrapping_sub(lo));
        if back >= WINDOW || span >= WINDOW {
            return Err(refuse);
        }
        let lowest = if self.before { self.first.saturating_sub(WINDOW) } else { self.first };
        let lo = self.next.checked_sub(1 + back + span).filter(|lo| *lo >= lowest);
        lo.map(|lo| (lo, lo + span)).ok_or(refuse)
    }

    /// Returns the id that the next zerocopy send on the socket will get.
    #[must_use]
    pub fn next_id(&self) -> u32 {
        narrow(self.next)
    }

    /// Returns the number of sends in flight, the application's own not counted.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.held
    }

    /// Iterates over what the sends in flight hold, oldest first, with their widened ids.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &H)> {
        self.entries.iter().filter_map(|e| match e {
            Entry::Ours { id, held } => Some((*id, held)),
            Entry::Application { .. } => None,
        })
    }
}

impl<H> Drop for Ledger<H> {
    /// Forgets what the sends in flight hold, and does not drop it: nothing will read their
    /// notifications any more.
    fn drop(&mut self) {
        self.entries.drain(..).for_each(std::mem::forget);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the kernel counts modulo 2^32")]
fn narrow(id: u64) -> u32 {
    id as u32
}

#[cfg(test)]
mod tests;
