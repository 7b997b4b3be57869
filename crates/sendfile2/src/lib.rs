//! The safe `sendfile(2)` for Linux: send files without a user-space copy, and know when they may
//! be overwritten.
//!
//! # Why
//! `sendfile(2)` returns when the file's pages are queued, not when they have left. What is written
//! to the file meanwhile is what the peer receives, and nothing tells when that ends: neither the
//! return of the call, nor the peer's acknowledgement (a peer on the same host has the very pages
//! in its receive queue). Whoever recycles space in a file, a cache or a log store, sends one
//! customer's bytes to another.
//!
//! This crate sends file ranges from a read-only mapping, by plain `send(2)` (the kernel copies
//! once) or with `MSG_ZEROCOPY` (the kernel sends the page cache's own pages and notifies their
//! release on the socket's error queue), keeps the account of the notifications, and says for each
//! send:
//!
//! * *released*: the network stack no longer references the file's pages, so that modifying them is
//!   safe. It says nothing of delivery.
//! * *acknowledged*: the peer's TCP has the bytes. It says nothing of the pages.
//!
//! # The one idea
//! A send holds something, and drops it when, and only when, the kernel has released it: a
//! [lease](guard::Lease) on a range of a file, or a [buffer](SendBuffer) that was handed over. A
//! [`Ticket`] only looks on. (A writer that has proved that the pages of a range have left the page
//! cache, and stay with the packets, need not wait for that: it [detaches](detach).) What cannot be accounted for stays held; it is *unknown*, never free.
//!
//! # How
//! ```no_run
//! use sendfile2::{SendFlags, Sender, Source};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), sendfile2::Error> {
//! # let socket = std::net::TcpStream::connect("192.0.2.1:80").unwrap();
//! let soon = Duration::from_secs(30);
//! let file = Source::open("segment")?;
//! let mut sender = Sender::new(socket)?;
//! let sent = sender.send_file(&file, 0..file.size()?, SendFlags::NONE, soon)?;
//! sent.ticket.wait_released(soon)?; // now it may be overwritten
//! sender.close(soon)?;
//! # Ok(())
//! # }
//! ```
//! Non-blocking at heart: `try_…` methods tell partial sends, would-block and kernel limits as
//! values ([`Sent`]), and [`Sender::reap`] reads notifications; the blocking forms are a thin layer
//! over them, each with a deadline. To overwrite a file in place while it is being sent, see
//! [`guard`].
//!
//! # Reading requests
//! A [`Sender`] owns its socket, and reads from it, too ([`Read`](std::io::Read)). A thread that
//! reads and answers by turns gives it to a reader, which lends it for sending:
//! ```no_run
//! use sendfile2::{SendFlags, Sender, Source};
//! use std::io::{BufRead, BufReader};
//! use std::time::Duration;
//!
//! # fn serve(stream: std::net::TcpStream, file: &Source) -> Result<(), Box<dyn std::error::Error>> {
//! let soon = Duration::from_secs(30);
//! stream.set_read_timeout(Some(soon))?; // as ever, before it is handed over
//! let mut connection = BufReader::new(Sender::new(stream)?);
//! let mut line = String::new();
//! while connection.read_line(&mut line)? > 0 {
//!     let end = line.trim_end().parse()?;
//!     connection.get_mut().send_file(file, 0..end, SendFlags::NONE, soon)?;
//!     line.clear();
//! }
//! connection.into_inner().close(soon)?;
//! # Ok(())
//! # }
//! ```
//! For one thread to read while another one sends, duplicate the socket before it is handed over,
//! and do nothing but read from the duplicate. It keeps the socket open: so end the stream by
//! [`Sender::close`] or [`Sender::shutdown`], also after an error, since dropping the sender does
//! not end it while the duplicate lives.
//! ```no_run
//! use sendfile2::{SendFlags, Sender, Source};
//! use std::io::{BufRead, BufReader};
//! use std::time::Duration;
//!
//! # fn serve(stream: std::net::TcpStream, file: &Source) -> Result<(), Box<dyn std::error::Error>> {
//! let soon = Duration::from_secs(30);
//! let requests = BufReader::new(stream.try_clone()?);
//! let mut sender = Sender::new(stream)?;
//! let (asks, asked) = std::sync::mpsc::channel();
//! std::thread::spawn(move || {
//!     for line in requests.lines().map_while(Result::ok) {
//!         if asks.send(line).is_err() {
//!             break; // nobody answers any more
//!         }
//!     }
//! });
//! for line in asked {
//!     sender.send_file(file, 0..line.parse()?, SendFlags::NONE, soon)?;
//! }
//! sender.close(soon)?;
//! # Ok(())
//! # }
//! ```
//! An `AsyncSender` (feature `tokio`) is an `AsyncRead`, and `into_split` gives the reading to
//! another task. A socket of a [`uring::Driver`] is read by its descriptor ([`AsFd`]). In
//! non-blocking mode a read fails with [`WouldBlock`](std::io::ErrorKind::WouldBlock), as on any
//! socket.
//!
//! [`AsFd`]: std::os::fd::AsFd
//!
//! The programs in `examples/` show all of these: servers by threads, by epoll, on tokio, by
//! `io_uring` and over UDP, and a file that is overwritten while it is sent.
//!
//! # What it does not do
//! * It does not wait for delivery unless asked to, and does not retransmit.
//! * It does not borrow sockets. A [`Sender`] owns its socket, since notifications that somebody
//!   else reads are lost, and a duplicate of the descriptor withholds the end of the stream.
//! * It does not protect a file from writers that it does not know of.
//! * It does not hide what it did: [`Ticket::choice`] tells the engine and the reason, and
//!   everything is traced with the `tracing` crate. Who listens may ask about what is sent: nothing
//!   is traced while anything is locked.
//!
//! # Features
//! | feature | by default | gives |
//! |---|---|---|
//! | `native` | yes | the engine [`native`](Engine::Native) |
//! | `tracing` | yes | events by the `tracing` crate |
//! | `uring` | yes | the engine [`uring`](Engine::Uring), module `uring`; for 64-bit targets |
//! | `tokio` | no | `AsyncSender` and the async forms of waits, module `tokio` |
//!
//! Without its feature an engine is still a name, and is refused with a reason that says so.
//!
//! # Fork
//! What a process has made is its own. A forked child has copies of its parent's senders, tickets,
//! guarded files, leases and drivers, and can do nothing with them: what would send, wait, write,
//! lease, abort or read notifications fails with [`Error::Forked`]
//! ([`guard::GuardedFile::try_lease`] gives `None`), and the status of a ticket is *unknown* if it
//! was not released before. What only looks (`in_flight`, counters) tells it of nothing, and waits
//! for nobody. If the child drops them, nothing is released, and nothing happens to
//! the connections. What it makes itself, of sockets of its own and of files that it opens, is its
//! own and has a reaper of its own; its leases and writes know of the parent's as little as those
//! of any other process.
//!
//! A child that keeps a socket of its parent's open withholds the end of the stream, and the reset
//! with which the death of the parent protects what is in flight under a lease of a file that cannot
//! be detached ([`Options::reset_on_exit`]): let it drop what it has, or `exec`. Fork where no other thread
//! uses the library, whose locks would stay locked in the child, and leave tokio's runtimes to the
//! parent.
//!
//! # Descriptors of its own
//! The library keeps some across calls: an epoll instance and an eventfd for each thread that has
//! waited and for the reaper, the ring and the epoll instance of a [`uring::Driver`]. Where a
//! program closes them under it (`closefrom`, `daemon`), nothing is taken for released, no wait is
//! busy, and nothing is written to what has their numbers then: a thread's wait fails once with
//! [`Error::Wait`], and the next one makes others; the reaper goes on by the clock; a driver fails
//! with [`Error::Wait`] or the send's own error. But a socket may be put into an epoll instance of
//! the program's that has the number of one of these. Sockets and files are not looked after so.
//!
//! Sources: `Documentation/networking/msg_zerocopy.rst`, sendfile(2), send(2), recv(2).
#![cfg(target_os = "linux")]
// On docs.rs each item says which feature it needs.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]
#![doc(test(attr(deny(warnings), allow(dead_code))))]

use sendfile2_sys as sys;

mod apart;
mod aside;
mod conn;
mod deadline;
pub mod detach;
mod engine;
mod error;
mod flags;
pub mod guard;
mod holder;
mod mtu;
#[cfg_attr(not(feature = "native"), path = "native/absent.rs")]
mod native;
mod not_detached;
mod park;
mod policy;
pub mod probe;
mod progress;
#[cfg_attr(not(feature = "uring"), expect(dead_code, reason = "only a driver queues"))]
mod queued;
pub mod reaper;
mod refusal;
mod send;
mod send_buffer;
mod sender;
mod socket;
mod source;
mod streams;
mod sync;
mod ticket;
#[cfg(feature = "tokio")]
pub mod tokio;
mod trace;
mod transfer;
#[cfg(feature = "uring")]
pub mod uring;
mod wait;

pub use conn::ErrorQueueMessage;
pub use deadline::Deadline;
pub use engine::{Choice, Engine, Limit, Reason, UnknownEngine};
pub use error::{Error, Unsuitable};
pub use flags::SendFlags;
pub use holder::InFlight;
pub use mtu::tcp_mtu_probing;
pub use progress::{Release, Status};
pub use refusal::{NativeUnavailable, Refusal, Unmappable};
pub use send_buffer::SendBuffer;
pub use sender::{IntoSocketError, Options, ReturnedSocket, Sender, Sent};
pub use socket::account::Counters;
pub use socket::acknowledged::Acknowledgement;
pub use socket::endpoint::peer_on_this_host;
pub use source::{Identity, Mapped, Source};
pub use sys::errqueue::{DecodeError, ExtendedError, Foreign};
pub use sys::ledger::{NotIssued, WindowFull};
pub use sys::op_table::Stray;
pub use sys::socket::{in_own_namespace, sent_by_tcp, unacknowledged};
pub use ticket::Ticket;
pub use transfer::{IncompleteSend, Transfer};

/// Compiles the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
