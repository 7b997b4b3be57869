//! The messages between the processes of the torture: a [`Role`], and then orders; the children send
//! lines.
//!
//! Children count from one line to the next, and not from their start, so that little is lost when
//! one is killed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::block::Wrong;
use super::disturb::Disturb;
use crate::method::Method;

/// The interval at which children report.
pub(super) const EVERY: Duration = Duration::from_millis(250);

/// The role of a child process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Role {
    Server(ServerRole),
    Clients(ClientsRole),
    Disturber(DisturberRole),
}

/// The way in which writers deal with what is still in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Overwrite {
    /// Take its pages out of the page cache, and write at once; where that cannot be, wait
    #[default]
    Detach,
    /// Wait until the kernel has released it
    Wait,
    /// Write to the pages that are sent, as soon as the call has returned: the control
    InPlace,
}

/// The file: where its slots are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layout {
    pub(super) slots: u32,
    /// The number of bytes of each slot.
    pub(super) slot_size: u32,
}

impl Layout {
    /// Slots begin one block into a page, so that neighbours share pages, but no byte.
    const BASE: u64 = 512;

    /// Returns the offset in the file of byte `at` of a slot.
    pub(super) fn offset(self, slot: u32, at: u32) -> u64 {
        Self::BASE + u64::from(slot) * u64::from(self.slot_size) + u64::from(at)
    }

    /// Returns the slots that are overwritten most and that stalled and slow clients avoid: there a
    /// writer that waits is mostly let in by a release, and not by an abort.
    pub(super) fn busy(self) -> std::ops::Range<u32> {
        0..self.slots.div_ceil(2)
    }

    /// The size of the file.
    pub(super) fn size(self) -> u64 {
        self.offset(self.slots, 0)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ServerRole {
    /// The number of the inherited descriptor of the file.
    pub(super) file: i32,
    pub(super) layout: Layout,
    pub(super) listen: SocketAddr,
    /// The engine; all sends are under leases, but for those of the control.
    pub(super) method: Method,
    pub(super) overwrite: Overwrite,
    pub(super) sparse: bool,
    pub(super) writers: u32,
    /// The number of clients to expect.
    pub(super) clients: u32,
    /// The number of servers that ran on the file before.
    pub(super) life: u32,
    pub(super) seed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ClientsRole {
    pub(super) connect: SocketAddr,
    pub(super) layout: Layout,
    pub(super) clients: u32,
    pub(super) seed: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct DisturberRole {
    /// The number of the inherited descriptor of the file.
    pub(super) file: i32,
    pub(super) layout: Layout,
    pub(super) disturb: Vec<Disturb>,
    pub(super) seed: u64,
}

/// An order of the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// Use up all descriptors for a while.
    Emfile,
    /// Set `net.core.optmem_max` of the child's network namespace.
    Optmem(u32),
    /// Come to an end in good order, and say what is left.
    Stop,
}

/// A reply of a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Line {
    /// The server listens here.
    Listening(SocketAddr),
    Server(ServerTally),
    Clients(ClientsTally),
    /// A wrong block, not counted in a tally.
    Wrong(Wrong),
    /// Something that must not happen.
    Unexpected(String),
    /// The work of a disturber since its last line, by name.
    Disturbed(BTreeMap<String, u64>),
    /// A fault was brought about.
    Fault(String),
    /// A fault could not be brought about.
    NoFault {
        name: String,
        why: String,
    },
    /// The last line of a server that was stopped.
    Left {
        unknown: u64,
    },
}

/// The deeds of a server since its last line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ServerTally {
    /// The memory of the process now, in bytes.
    pub(super) rss: u64,
    /// Slots overwritten.
    pub(super) overwrites: u64,
    /// Writers that waited for a lease.
    pub(super) waits: u64,
    /// Writers whose deadline passed.
    pub(super) deadlines: u64,
    /// Writers that did not wait and found a lease in the way.
    pub(super) in_the_way: u64,
    /// Connections aborted for a writer.
    pub(super) aborts: u64,
    /// Ranges detached for a writer, tries that failed, and the time that both took.
    pub(super) detached: u64,
    pub(super) not_detached: u64,
    /// Times that pages were found in the page cache after they had been taken out.
    pub(super) pages_stayed: u64,
    pub(super) detaching: Duration,
    /// Writers that were refused a range that could not be detached.
    pub(super) refused: u64,
    /// Zerocopy sends released, and of these, COPIED.
    pub(super) released: u64,
    pub(super) copied: u64,
    /// Responses by the engine that sent them, and why it was taken.
    pub(super) choices: BTreeMap<String, u64>,
    /// Responses that ended early, by the reason.
    pub(super) ended: BTreeMap<String, u64>,
    /// The times that writers took for an overwrite, in microseconds, each with its count.
    pub(super) writer_micros: Vec<(u64, u64)>,
}

/// The deeds of clients since their last line.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct ClientsTally {
    pub(super) connections: u64,
    /// Connections that could not be made: no server.
    pub(super) refused: u64,
    /// Responses received to the end.
    pub(super) responses: u64,
    /// Responses of which a part was received and checked.
    pub(super) cut: u64,
    /// Responses of which a part was received, and which ended with a reset.
    pub(super) resets: u64,
    /// Times that nothing came for too long.
    pub(super) timeouts: u64,
    pub(super) bytes: u64,
    pub(super) wrong: u64,
}
