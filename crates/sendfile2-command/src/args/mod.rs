//! The arguments of the commands that are programs of their own.
//!
//! They are here so that `sendfile2` has them, too: its help, manual pages and completions cover all
//! commands, and a wrong command line is reported the same way, whether the program is there or not.

pub mod bench;
pub mod cache;
pub mod operation;
pub mod serve;
