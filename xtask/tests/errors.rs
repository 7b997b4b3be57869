//! An error is one line for whoever reads it, also where backtraces are asked for.
#![allow(missing_docs)]

use std::process::Command;

#[test]
fn an_error_is_one_sentence_without_a_backtrace() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["guest", "stock"])
        .env("RUST_BACKTRACE", "1")
        .env("XDG_CACHE_HOME", "/dev/null/no-directory")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert!(matches!(lines[..], [line] if line.starts_with("error: ")), "{said}");
}
