//! `sendfile2 torture` as its users meet it.

mod engines;

use std::process::{Command, Output};

use sendfile2::Engine;
use sendfile2::detach::Detacher;
use serde_json::Value;

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
    command.arg("torture").args(args).output().expect("the command starts")
}

/// Makes a short run with few clients; returns the JSON it prints, and its exit status.
fn torture(args: &[&str]) -> (Value, Option<i32>) {
    torture_in(env!("CARGO_TARGET_TMPDIR"), args)
}

fn torture_in(directory: &str, args: &[&str]) -> (Value, Option<i32>) {
    let mut all = vec!["--clients", "24", "--processes", "3", "--writers", "4"];
    if !args.contains(&"--duration") {
        all.extend(["--duration", "3s"]);
    }
    all.extend(["--json", "--dir", directory]);
    all.extend(args);
    let output = run(&all);
    let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "one object: {output:?}");
    let report = serde_json::from_str(&text).expect("JSON");
    println!("{report:#}\n{}", String::from_utf8_lossy(&output.stderr));
    (report, output.status.code())
}

fn number(report: &Value, field: &str) -> u64 {
    report[field].as_u64().unwrap_or_else(|| panic!("{field}: {report:#}"))
}

#[track_caller]
fn assert_safe(report: &Value, status: Option<i32>) {
    assert_eq!(number(report, "wrong_blocks"), 0);
    assert_eq!(number(report, "unknown_left"), 0);
    assert_eq!(report["unexpected"], serde_json::json!([]));
    assert_eq!(status, Some(0));
    for field in ["responses", "bytes", "overwrites"] {
        assert!(number(report, field) > 0, "{field}");
    }
    for field in ["p50", "p90", "p99", "max"] {
        assert!(report["writer_wait_micros"][field].is_u64(), "{field}");
    }
    assert!(report["rss_first_mb"].is_f64() && report["rss_last_mb"].is_f64());
}

/// Whether files in the directory of the tests can be detached.
fn detaches() -> bool {
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
    file.set_len(4096).expect("a page");
    let source = sendfile2::Source::new(file).expect("a source");
    let detached = Detacher::new(&source).and_then(|detacher| detacher.detach(&(0..1)));
    if let Err(why) = &detached {
        println!("SKIP: here nothing is detached: {why}");
    }
    detached.is_ok()
}

#[test]
fn every_engine_delivers_every_block_right_and_leaves_nothing() {
    for engine in engines::here() {
        if engine == Engine::Sendfile && !detaches() {
            continue;
        }
        let (report, status) = torture(&["--engine", engine.name()]);
        assert_safe(&report, status);
        assert_eq!(report["engine"], engine.name());
        assert_eq!(report["overwrite"], "detach");
    }
}

#[test]
fn by_sendfile_whatever_was_sent_is_detached_also_where_blocks_are_new() {
    if !detaches() {
        return;
    }
    for more in [&[][..], &["--sparse"], &["--faults", "server-kill"]] {
        let (report, status) = torture(&[&["--engine", "sendfile"], more].concat());
        assert_safe(&report, status);
        assert!(number(&report, "detached") > 0);
        assert!(report["choices"]["sendfile: asked for"].as_u64() > Some(0));
    }
}

#[test]
fn where_nothing_is_detached_sendfile_is_refused_and_the_others_wait() {
    let output = run(&["--engine", "sendfile", "--dir", "/dev/shm"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("tmpfs cannot") && text.contains("--dir"), "{text}");
    assert!(output.stdout.is_empty());
    let (report, status) = torture_in("/dev/shm", &["--engine", "zerocopy"]);
    assert_safe(&report, status);
    assert_eq!(number(&report, "detached"), 0);
    assert!(report["no_detaching"].is_string() && number(&report, "writers_waited") > 0);
}

#[test]
fn by_zerocopy_writers_wait_and_stalled_clients_are_aborted() {
    let (report, status) = torture(&["--engine", "zerocopy", "--overwrite", "wait"]);
    assert_safe(&report, status);
    for field in ["zerocopy_sends", "writers_waited", "aborts"] {
        assert!(number(&report, field) > 0, "{field}");
    }
    // Loopback copies whatever it delivers; what an abort throws away was never copied.
    let copied = report["copied_share"].as_f64().unwrap_or_default();
    assert!(copied > 0.5, "{copied} on loopback");
}

#[test]
fn the_control_finds_wrong_blocks() {
    for engine in ["sendfile", "zerocopy"] {
        let (report, status) = torture(&["--engine", engine, "--overwrite", "in-place"]);
        assert!(number(&report, "wrong_blocks") > 0);
        assert!(report["wrong_samples"].as_array().is_some_and(|samples| !samples.is_empty()));
        assert!(report["first_wrong_after_s"].is_f64());
        assert_eq!(number(&report, "detached"), 0);
        assert_eq!(status, Some(0), "the control does what it is for");
    }
}

#[test]
fn faults_are_counted_or_skipped_with_the_reason() {
    let (report, status) =
        torture(&["--engine", "zerocopy", "--duration", "6s", "--faults", "all"]);
    assert_safe(&report, status);
    for fault in ["client-kill", "server-kill", "emfile", "memlock", "optmem"] {
        let counted = report["faults"][fault].as_u64() > Some(0);
        assert!(counted || report["skipped"][fault].is_string(), "{fault}");
    }
    for fault in ["client-kill", "server-kill", "emfile"] {
        assert!(report["faults"][fault].as_u64() > Some(0), "{fault}: nothing is in its way");
    }
}

#[test]
fn clients_in_another_namespace() {
    let veth = "ip link set lo up && ip link add v0 type veth";
    let can = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-ec", veth])
        .output();
    if !can.is_ok_and(|output| output.status.success()) {
        println!("SKIP: no network namespaces or no veth here");
        return;
    }
    let (report, status) = torture(&["--engine", "zerocopy", "--peer-netns", "new"]);
    assert_safe(&report, status);
    assert_eq!(report["network"], "veth");
}

#[test]
fn a_seed_is_told_and_taken() {
    let (report, _) = torture(&["--seed", "42", "--duration", "1s", "--engine", "copy"]);
    assert_eq!(report["seed"], 42);
}

#[test]
fn the_table_says_what_the_object_says() {
    let output = run(&["--duration", "1s", "--clients", "8", "--engine", "copy"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    for row in ["Wrong blocks  0", "Unknown left  0", "Responses", "Aborts", "seed"] {
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed(&text).contains(&squeezed(row)), "{row}: {text}");
    }
    assert!(!text.contains('\x1b') && output.stderr.is_empty());
}

#[test]
fn wrong_arguments_are_usage_errors_that_say_what_is_right() {
    for (args, said) in [
        (&["--engine", "teleport"][..], "zerocopy"),
        (&["--engine", "teleport"], "sendfile"),
        (&["--duration", "soon"], "30s or 10m"),
        (&["--duration", "1ms"], "between 1s"),
        (&["--clients", "0"], "1..=5000"),
        (&["--slot-size", "1000"], "multiple of 512"),
        (&["--faults", "fire"], "server-kill"),
        (&["--overwrite", "never"], "in-place"),
        (&["--engine", "sendfile", "--overwrite", "wait"], "--overwrite detach"),
        (&["--engine", "copy", "--overwrite", "in-place"], "--engine sendfile"),
        (&["--peer-netns", "elsewhere"], "/run/netns/"),
        (&["--peer-netns", "1"], "--connect"),
        (&["--connect", "10.0.0.1"], "--peer-netns"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said), "{args:?}: {text}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_named() {
    let output = run(&["--dir", "/proc/self"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.starts_with("sendfile2: torture: ") && text.contains("/proc/self"), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
