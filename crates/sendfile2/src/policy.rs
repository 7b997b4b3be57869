//! The policy of [`Engine::Auto`], as one readable function.

use crate::engine::{Choice, Engine, Reason, WORTH_A_NOTIFICATION};
use crate::refusal::Refusal;

/// After how many copies a connection whose zerocopy sends came back COPIED tries one again.
const TRY_AGAIN: u32 = 256;

/// The kind of bytes that are to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    Memory,
    File,
    /// Bytes of a file that detaches, under a lease, on a stream that `sendfile(2)` does not block.
    Detachable,
}

/// The facts that are known before a send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation {
    /// Bytes that are to be sent.
    pub(crate) bytes: u64,
    /// Whether zerocopy could serve the send.
    pub(crate) zerocopy: Result<(), Refusal>,
    /// Whether, where it could not, `native` could.
    pub(crate) native: bool,
    /// The peer's address is this host's.
    pub(crate) peer_on_this_host: bool,
    /// Most of the recent zerocopy sends came back COPIED.
    pub(crate) mostly_copied: bool,
    /// Sends made since the last zerocopy send.
    pub(crate) since_zerocopy: u32,
    /// `sendfile(2)` could serve it: it is leased of a file that detaches, and many streams are busy
    /// so.
    pub(crate) sendfile: bool,
}

/// Chooses the engine that a send takes, with the reason.
pub(crate) fn choose(s: &Situation) -> Choice {
    let copy = |reason| Choice { engine: Engine::Copy, reason };
    // Where the kernel copies all the same, at delivery or at the send.
    let local = |reason| {
        if s.sendfile {
            return Choice { engine: Engine::Sendfile, reason: Reason::ManyStreams };
        }
        copy(reason)
    };
    // What zerocopy cannot serve (mostly for RLIMIT_MEMLOCK, which is not charged for native) goes
    // by native, and the choice says why not by zerocopy.
    let (engine, large) = match s.zerocopy {
        Ok(()) => (Engine::Zerocopy, Reason::Large),
        Err(reason) if s.native => (Engine::Native, Reason::Refused(reason)),
        Err(reason) if s.bytes < WORTH_A_NOTIFICATION => return copy(Reason::Refused(reason)),
        Err(reason) => return local(Reason::Refused(reason)),
    };
    if s.bytes < WORTH_A_NOTIFICATION {
        return copy(Reason::Small);
    }
    // The kernel copies when it delivers to a socket of its own, later and at more cost than
    // send() does: 1.2 to 2 times the CPU, at every size.
    if s.peer_on_this_host {
        return local(Reason::PeerOnThisHost);
    }
    // A veth or a tap that is no local address shows itself by this only. One COPIED proves
    // nothing (a linearised segment flags a whole call), so the share decides; and routes change.
    if s.mostly_copied {
        if s.since_zerocopy >= TRY_AGAIN {
            return Choice { engine, reason: Reason::TriedAgain };
        }
        return local(Reason::MostlyCopied);
    }
    Choice { engine, reason: large }
}

/// Whether the recent zerocopy sends of a connection came back COPIED.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Recent {
    /// One bit a notification, the latest lowest; set if COPIED.
    copied: u32,
    seen: u32,
}

impl Recent {
    /// The completions from which on the share means something.
    const ENOUGH: u32 = 8;

    pub(crate) fn note(&mut self, copied: bool) {
        self.copied = self.copied << 1 | u32::from(copied);
        self.seen = self.seen.saturating_add(1);
    }

    pub(crate) fn mostly_copied(self) -> bool {
        let window = self.seen.min(u32::BITS);
        window >= Self::ENOUGH && self.copied.count_ones() * 2 > window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::Refusal;

    #[test]
    fn policy_as_a_table() {
        let plain = Situation {
            bytes: 1 << 20,
            zerocopy: Ok(()),
            native: false,
            peer_on_this_host: false,
            mostly_copied: false,
            since_zerocopy: 0,
            sendfile: false,
        };
        let leased = Situation { sendfile: true, ..plain };
        let unix = Refusal::Socket("unix");
        let limit = Refusal::Memlock(4096);
        let limited = Situation { zerocopy: Err(limit), native: true, ..plain };
        #[rustfmt::skip]
        let table = [
            (plain,                                                Engine::Zerocopy, Reason::Large),
            (Situation { bytes: 16 << 10, ..plain },               Engine::Zerocopy, Reason::Large),
            (Situation { bytes: (16 << 10) - 1, ..plain },         Engine::Copy, Reason::Small),
            (Situation { peer_on_this_host: true, ..plain },       Engine::Copy, Reason::PeerOnThisHost),
            (Situation { mostly_copied: true, ..plain },           Engine::Copy, Reason::MostlyCopied),
            (Situation { mostly_copied: true, since_zerocopy: TRY_AGAIN, ..plain },
                                                                   Engine::Zerocopy, Reason::TriedAgain),
            (Situation { peer_on_this_host: true, since_zerocopy: TRY_AGAIN, ..plain },
                                                                   Engine::Copy, Reason::PeerOnThisHost),
            (Situation { zerocopy: Err(unix), ..plain },           Engine::Copy, Reason::Refused(unix)),
            (leased,                                               Engine::Zerocopy, Reason::Large),
            (Situation { bytes: 100, ..leased },                   Engine::Copy, Reason::Small),
            (Situation { peer_on_this_host: true, ..leased },      Engine::Sendfile, Reason::ManyStreams),
            (Situation { mostly_copied: true, ..leased },          Engine::Sendfile, Reason::ManyStreams),
            (Situation { zerocopy: Err(unix), ..leased },          Engine::Sendfile, Reason::ManyStreams),
            (Situation { bytes: 100, zerocopy: Err(unix), ..leased }, Engine::Copy, Reason::Refused(unix)),
            (Situation { native: true, ..plain },                  Engine::Zerocopy, Reason::Large),
            (limited,                                              Engine::Native, Reason::Refused(limit)),
            (Situation { native: false, ..limited },               Engine::Copy, Reason::Refused(limit)),
            (Situation { bytes: 100, ..limited },                  Engine::Copy, Reason::Small),
            (Situation { peer_on_this_host: true, ..limited },     Engine::Copy, Reason::PeerOnThisHost),
            (Situation { mostly_copied: true, ..limited },         Engine::Copy, Reason::MostlyCopied),
            (Situation { mostly_copied: true, since_zerocopy: TRY_AGAIN, ..limited },
                                                                   Engine::Native, Reason::TriedAgain),
        ];
        for (situation, engine, why) in table {
            assert_eq!(choose(&situation), Choice { engine, reason: why }, "{situation:?}");
        }
    }

    #[test]
    fn one_copied_proves_nothing() {
        let mut recent = Recent::default();
        recent.note(true);
        assert!(!recent.mostly_copied());
        for _ in 0..7 {
            recent.note(true);
        }
        assert!(recent.mostly_copied());
        for _ in 0..8 {
            recent.note(false);
        }
        assert!(!recent.mostly_copied(), "half is not most");
    }
}
