//! The messages between the processes of a benchmark: a [`Role`], and then orders, each of which is
//! answered.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::memory::Object;
use crate::child;
use crate::method::Method;

/// The role of a child process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Role {
    Sender(SenderRole),
    Receiver {
        cpu: Option<usize>,
    },
    /// tower-http's server of a directory. First answer: its address.
    ServeDir {
        files: PathBuf,
        cpu: Option<usize>,
    },
    /// The origin of caches. First answer: its address.
    Origin {
        cpu: Option<usize>,
    },
    /// Many slow clients. Answers: `()` when all are connected, and after any order [`Crowded`].
    Crowd(Crowd),
    /// A process that reports by how much its own memory has grown.
    Memory(Object),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SenderRole {
    /// The number of the inherited descriptor of the file.
    pub(super) file: i32,
    pub(super) listen: IpAddr,
    /// The processor to stay on.
    pub(super) cpu: Option<usize>,
}

/// Clients that read a file at a steady rate, all at once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Crowd {
    pub(super) address: SocketAddr,
    pub(super) connections: usize,
    /// The size of the file in bytes, which is its name, too.
    pub(super) size: u64,
    /// Bytes a second of each.
    pub(super) rate: u64,
    pub(super) cpu: Option<usize>,
}

/// The outcome of such clients.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Crowded {
    /// Clients that got the whole file.
    pub(super) complete: usize,
    pub(super) wrong_bytes: u64,
    /// The first thing that went wrong.
    pub(super) failure: Option<String>,
    /// The time from the first request to the last byte.
    pub(super) seconds: f64,
}

/// An answer of a child; the error is the whole chain of causes.
pub(super) type Answer<T> = Result<T, String>;

/// The sender's first answer: the address that it listens at, and the settings of its network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) address: SocketAddr,
    pub(super) congestion_control: Option<String>,
    pub(super) tcp_wmem: Option<String>,
    pub(super) tcp_rmem: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum SenderOrder {
    /// Take that many connections for each of these methods. Answer: `()`.
    Accept { methods: Vec<Method>, streams: usize },
    /// Answer: [`Sent`].
    Send { method: Method, job: Job, timeout: Duration },
    /// Send the same number of bytes again and again, each time after the last was released and
    /// acknowledged. Answer: [`Delays`].
    Delay { method: Method, bytes: u64, times: u32, timeout: Duration },
}

/// The bytes to be sent, and how.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Job {
    /// Bytes in all, over all streams.
    pub(super) bytes: u64,
    /// Bytes that each call is given.
    pub(super) chunk: u64,
    /// The part of the file that is sent again and again.
    pub(super) size: u64,
    /// Drop the file from the page cache first.
    pub(super) cold: bool,
    /// Announce with each call that more follows, but for the end.
    pub(super) more: bool,
}

/// The work of the sender, which ends when everything is released.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sent {
    /// The time of the first call, on the clock `CLOCK_MONOTONIC`, in nanoseconds.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Nanoseconds of CPU.
    pub(super) cpu: u64,
    /// Calls that sent something.
    pub(super) sends: u64,
    /// Calls after which the kernel had a copy of the bytes, as far as it reports that; `None` for
    /// methods with which it does not.
    pub(super) copies: Option<u64>,
    /// The times that the sender gave up the processor, and below, that the processor was taken
    /// from it.
    pub(super) switches: u64,
    pub(super) preemptions: u64,
    /// Instructions of the sending thread outside the kernel, where they can be counted.
    pub(super) instructions: Option<u64>,
}

/// The delays from when the last byte was handed over, in nanoseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Delays {
    /// The times until the release; `None` for methods that never report it.
    pub(super) released: Option<Vec<u64>>,
    pub(super) acknowledged: Vec<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum ReceiverOrder {
    /// Make that many connections, in place of those there are. Answer: `()`.
    Connect { address: SocketAddr, streams: usize },
    /// Read so many bytes, from whichever connection. Answers: `()` at once, and [`Received`].
    Expect { bytes: u64, timeout: Duration },
}

/// The work of the receiver, until the last byte was read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Received {
    pub(super) end: u64,
    pub(super) cpu: u64,
}

/// Sends the answer to an order.
pub(super) fn answer<T: Serialize>(result: anyhow::Result<T>) {
    child::send(&result.map_err(|error| crate::output::whole(&error)));
}
