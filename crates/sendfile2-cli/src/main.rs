//! The command `sendfile2`.

fn main() {}
