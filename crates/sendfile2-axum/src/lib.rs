//! Zero-copy files from stock axum and hyper, with releases told by the kernel.
//!
//! # Why
//! Rust's HTTP servers copy files through user space, because a body is bytes in memory. A file's
//! mapping is memory, too, and hyper hands the very addresses of a body's data to the connection's
//! vectored writes: whoever finds the addresses there knows the file, and can send from it without
//! a copy. This crate does, without a fork of anything:
//!
//! ```no_run
//! use sendfile2_axum::{Listener, ServeDir};
//!
//! # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
//! let app = axum::Router::new()
//!     .fallback_service(ServeDir::new("public")?);
//! let listener = Listener::bind("0.0.0.0:8080".parse()?).await?; // in place of tokio's
//! sendfile2_axum::serve(listener, app).await?; // in place of axum's
//! # Ok(())
//! # }
//! ```
//! * [`ServeDir`] and [`ServeFile`] are tower-http's, with open files that are kept, and bodies of
//!   ours.
//! * [`FileBody`] is such a body, for handlers of your own: a range of a file, or of a lease of a
//!   [`GuardedFile`](sendfile2::guard::GuardedFile), which stays leased until the kernel has
//!   released it. It *reads* the file, and so is fit for HTTP/2, TLS and compression.
//! * [`serve()`] is [`axum::serve()`] on a [`Listener`], of TCP or of unix sockets. Its connections
//!   find mapped bytes, send them by the engine that pays, and drop them when the kernel has
//!   released them. Around the app on each is a [`ZeroCopyLayer`], which makes mapped bodies of
//!   those that nothing has touched.
//! * [`Io`] and [`ZeroCopyLayer::of`] are the same for hyper-util's builders.
//!
//! # Mapped bytes
//! A mapping shows what others write to the file, and what is cut off it is gone from the mapping:
//! the kernel answers EFAULT, but a program that reads such a byte is killed by SIGBUS. So mapped
//! bytes must be read by nobody but the kernel: bodies are mapped by a layer that is made for one
//! of our connections, and outermost there, on HTTP/1. An app knows nothing of it: where it is
//! served beneath TLS, by HTTP/2 or on another listener, its bodies are read. The layer does not
//! turn a body in place but puts a new one where the old one was: whatever was around that is gone,
//! and is not handed mapped bytes. It leaves alone what shows traces of having been touched.
//!
//! ## A `&[u8]` over memory that changes
//! is at odds with the rules of Rust's references: the compiler may assume that the bytes stay the
//! same while the reference lives. [`bytes::Bytes`] is made of one all the same. What may go wrong
//! goes wrong where the bytes are *read* by compiled code, which then may see two values for one
//! byte. Ours are not read: hyper takes the slice's address and length, divides and advances it,
//! and gives it to `writev(2)`, where the kernel reads memory of the process like any other
//! process's. No load of a mapped byte is in the program, so that no assumption about one can be
//! wrong. This is an argument about what hyper and this crate do, not a guarantee of the language.
#![cfg(target_os = "linux")]
#![deny(unsafe_code)]

mod answer;
mod body;
mod cache;
mod conditions;
mod conn;
mod fallback;
mod heads;
mod io;
mod layer;
mod listener;
mod names;
mod range;
mod serve;
mod stats;
mod sys;
mod unread;
mod window;

pub use body::FileBody;
pub use cache::make_room;
pub use conditions::Validators;
pub use fallback::NoFallback;
pub use io::Io;
pub use layer::{MappedBody, ZeroCopy, ZeroCopyFuture, ZeroCopyLayer};
pub use listener::{Connection, ConnectionFuture, Listener, ZeroCopyConnections, serve};
pub use serve::{ServeBody, ServeDir, ServeFile, ServeFuture};
pub use stats::{in_flight, outstanding};
pub use unread::{TellsUnread, TellsUnreadFuture, Unread};

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
