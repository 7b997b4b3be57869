//! The command as its users meet it.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn sendfile2(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
    command.args(args).env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
    command
}

fn run(args: &[&str]) -> Output {
    sendfile2(args).output().expect("the command starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Standard error, which must be one line that says who speaks.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert!(text.starts_with("sendfile2: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn the_demo_shows_wrong_bytes_for_sendfile_and_none_for_the_engines() {
    let output = run(&["demo", "--size", "1M", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output).lines().count(), 1, "one object");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(report["kernel"].is_string() && report["filesystem"].is_string(), "{report}");

    let rows = report["rows"].as_array().expect("rows");
    let (controls, engines): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row["way"].as_str().expect("way").contains("sendfile"));

    let when: Vec<_> = controls.iter().map(|row| &row["overwritten_at"]).collect();
    assert_eq!(when, ["return", "acked"]);
    for row in controls {
        assert_eq!(row["bytes"], 1 << 20);
        assert!(row["micros_until_free"].is_null(), "{row}");
        assert!(row["writer_wait_micros"].is_u64(), "{row}");
        assert!(row["wrong_bytes"].as_u64() > Some(0), "{row}");
        assert_eq!(row["safe"], false, "{row}");
    }

    let names: Vec<_> = engines.iter().map(|row| &row["way"]).collect();
    let all: Vec<_> = sendfile2::Engine::ALL.iter().map(|engine| engine.name()).collect();
    assert_eq!(names, all);
    for row in engines {
        assert_eq!(row["overwritten_at"], "released");
        assert_eq!(row["wrong_bytes"], 0, "{row}");
        if row["refused"].is_string() {
            assert!(row["safe"].is_null(), "nothing is known of it: {row}");
            continue;
        }
        assert_eq!(row["bytes"], 1 << 20);
        assert_eq!(row["safe"], true, "{row}");
        assert!(row["micros_until_free"].is_u64(), "{row}");
        assert!(row["writer_wait_micros"].is_u64(), "{row}");
        assert!(row["engine_taken"].is_string(), "{row}");
        if row["zerocopy_sends"].as_u64() > Some(0) {
            assert_eq!(row["copied_share"], 1.0, "on loopback: {row}");
        }
    }
}

#[test]
fn a_size_that_is_no_multiple_of_a_page_is_sent_to_the_last_byte() {
    let output = run(&["demo", "--size", "100001", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert!(report["rows"].as_array().expect("rows").iter().any(|row| row["bytes"] == 100_001));
}

#[test]
fn the_table_has_no_colours_where_there_is_no_terminal() {
    let output = run(&["demo", "--size", "64K"]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(!text.contains('\x1b'), "{text}");
    for expected in ["sendfile(2)", "UNSAFE", "zerocopy", "SAFE", "on loopback", "elsewhere"] {
        assert!(text.to_lowercase().contains(&expected.to_lowercase()), "{expected}: {text}");
    }
    assert!(output.stderr.is_empty(), "no progress where there is no terminal");
}

#[test]
fn wrong_sizes_are_usage_errors_that_say_what_is_right() {
    for (wrong, said) in [("eight", "64K or 8M"), ("0", "between 4K and 16G"), ("1T", "16G")] {
        let output = run(&["demo", "--size", wrong]);
        assert_eq!(output.status.code(), Some(2), "{wrong}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("--size") && text.contains(said), "{wrong}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    // Read-only for root, too.
    for directory in ["/sys", "/proc/self", "/nowhere"] {
        let output = run(&["demo", "--dir", directory]);
        assert_eq!(output.status.code(), Some(1), "{directory}");
        let text = complaint(&output);
        assert!(text.contains(directory) && text.contains("--dir"), "{text}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = sendfile2(&["demo", "--size", "64K"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let full = std::fs::File::create("/dev/full").expect("/dev/full");
    let output = sendfile2(&["completions", "bash"]).stdout(full).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("standard output"));
}

#[test]
fn help_has_examples_for_every_command() {
    for args in [
        &["--help"][..],
        &["demo", "--help"],
        &["bench", "--help"],
        &["bench", "engines", "--help"],
        &["bench", "latency", "--help"],
        &["bench", "guard", "--help"],
        &["bench", "memory", "--help"],
        &["bench", "http", "--help"],
        &["bench", "crowd", "--help"],
        &["bench", "compare", "--help"],
        &["bench", "report", "--help"],
        &["torture", "--help"],
        &["serve", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output = run(args);
        assert!(output.status.success(), "{args:?}");
        assert!(stdout(&output).contains("Examples:\n  sendfile2 "), "{args:?}");
    }
}

#[test]
fn no_command_and_an_unknown_one_are_usage_errors() {
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["dance"]).status.code(), Some(2));
}

#[test]
fn completions_are_generated_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        assert!(stdout(&output).contains("demo"), "{shell}");
    }
}

#[test]
fn man_pages_are_generated_for_every_command() {
    let scratch = tempfile::tempdir().expect("a directory");
    let directory = scratch.path().join("man1");
    let output = run(&["man", directory.to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    let mut pages: Vec<_> = std::fs::read_dir(&directory)
        .expect("made")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
        .collect();
    pages.sort();
    // One a line, so that a command is a line.
    let commands = "
        sendfile2-bench-compare.1
        sendfile2-bench-crowd.1
        sendfile2-bench-engines.1
        sendfile2-bench-guard.1
        sendfile2-bench-http.1
        sendfile2-bench-latency.1
        sendfile2-bench-memory.1
        sendfile2-bench-report.1
        sendfile2-bench.1
        sendfile2-completions.1
        sendfile2-demo.1
        sendfile2-man.1
        sendfile2-probe.1
        sendfile2-recv.1
        sendfile2-send.1
        sendfile2-serve.1
        sendfile2-torture.1
        sendfile2.1";
    assert_eq!(pages, commands.split_whitespace().collect::<Vec<_>>());
    let page = std::fs::read_to_string(directory.join("sendfile2-demo.1")).expect("readable");
    assert!(page.contains(".TH") && page.contains("\\-\\-size"), "{page}");
}

#[test]
fn man_pages_that_cannot_be_written_are_an_error() {
    let output = run(&["man", "/proc/self/man"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("/proc/self/man"));
}
