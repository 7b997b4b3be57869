//! `sendfile2 torture` as its users meet it.

mod engines;

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
#[path = "../../sendfile2/tests/common/faults.rs"]
mod faults;

#[allow(dead_code, unreachable_pub, clippy::unwrap_used)]
#[path = "../../sendfile2/tests/common/filesystems.rs"]
mod filesystems;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use sendfile2::Engine;
use sendfile2::detach::Detacher;
use serde_json::Value;

fn run(args: &[&str]) -> Output {
    run_by(Command::new(env!("CARGO_BIN_EXE_sendfile2")), args)
}

fn run_by(mut command: Command, args: &[&str]) -> Output {
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
    reported(&run(&all))
}

fn reported(output: &Output) -> (Value, Option<i32>) {
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

/// How the file is used by others meanwhile: each kind was done, or it is said why not.
#[track_caller]
fn assert_disturbed(report: &Value) {
    for how in ["reads", "direct-reads", "writes", "fallocate", "syncs", "evict"] {
        let done = report["disturbed"][how].as_u64() > Some(0);
        assert!(done || report["skipped"][how].is_string(), "{how}: {report:#}");
    }
    for how in ["reads", "writes", "syncs", "evict"] {
        assert!(report["disturbed"][how].as_u64() > Some(0), "{how}: nothing is in its way");
    }
}

#[test]
fn beside_readers_syncs_and_other_writers() {
    for engine in ["sendfile", "zerocopy"] {
        if engine == "sendfile" && !detaches() {
            continue;
        }
        for more in [&["--disturb", "all"][..], &["--disturb", "all", "--sparse"]] {
            let (report, status) = torture(&[&["--engine", engine], more].concat());
            assert_safe(&report, status);
            assert_disturbed(&report);
        }
    }
    let (report, status) = torture(&["--engine", "zerocopy", "--disturb", "reads,syncs"]);
    assert_safe(&report, status);
    assert_eq!(report["disturbed"].as_object().map(serde_json::Map::len), Some(2));
}

/// Each time that the kernel could not take pages out, that was seen: it was tried again, or refused.
#[test]
fn every_fault_that_the_kernel_tells_is_seen() {
    for name in ["ext4", "ext4 with 1 KiB blocks", "xfs"] {
        let Some(filesystem) = filesystems::mounted(name) else { continue };
        let Some(faults) = faults::Faults::begin() else { return };
        let directory = filesystem.dir.to_str().expect("UTF-8");
        // Of two slots one has a page in which others write.
        let args = ["--engine", "sendfile", "--disturb", "all", "--sparse"];
        let small = ["--slots", "2", "--slot-size", "64K"];
        let (report, status) = torture_in(directory, &[&args[..], &small].concat());
        assert_safe(&report, status);
        let device = filesystem.dir.metadata().expect("a directory").dev();
        let faults = faults.on(device).expect("a trace");
        let seen = number(&report, "pages_stayed");
        println!("{name}: {faults} faults, pages stayed or came back {seen} times");
        assert!(faults <= seen, "{name}: {faults} faults, {seen} seen");
    }
}

#[test]
fn on_a_tmpfs_with_huge_pages_writers_wait() {
    let Some(tmpfs) = filesystems::mounted("tmpfs with huge pages") else { return };
    let directory = tmpfs.dir.to_str().expect("UTF-8");
    let args = ["--engine", "zerocopy", "--disturb", "reads,writes,evict", "--sparse"];
    let (report, status) = torture_in(directory, &args);
    assert_safe(&report, status);
    assert!(report["no_detaching"].is_string(), "{report:#}");
}

/// A control group with this much memory, which is gone when this is dropped.
struct Group {
    directory: std::path::PathBuf,
    /// The file that counts how often the limit was met.
    met: &'static str,
}

impl Group {
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("sendfile2-torture-{}", std::process::id());
        // Version 2, and 1.
        for (root, limit, met) in [
            ("/sys/fs/cgroup", "memory.high", "memory.events"),
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.failcnt"),
        ] {
            let directory = Path::new(root).join(&name);
            if std::fs::create_dir(&directory).is_err() {
                continue;
            }
            let group = Group { directory, met };
            // In no hierarchy of groups it is a directory as any other.
            let limit = std::fs::File::options().write(true).open(group.directory.join(limit));
            if limit.and_then(|mut limit| write!(limit, "{bytes}")).is_ok() {
                return Some(group);
            }
        }
        println!("SKIP: no control group with a limit of memory can be made");
        None
    }

    fn met(&self) -> u64 {
        let text = std::fs::read_to_string(self.directory.join(self.met)).expect("a counter");
        let line = text.lines().find(|line| line.starts_with("high ")).unwrap_or(&text);
        line.trim_start_matches("high ").trim().parse().expect("a number")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended may be counted for a moment yet.
        while std::fs::remove_dir(&self.directory)
            .is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
        {
            std::thread::yield_now();
        }
    }
}

/// The file is larger than all of the memory, so that its pages come and go.
#[test]
fn under_a_lack_of_memory() {
    if !detaches() {
        return;
    }
    for engine in ["sendfile", "zerocopy"] {
        let Some(group) = Group::new(96 << 20) else { return };
        let mut command = Command::new("sh");
        let script = "echo $$ > \"$1\"; shift; exec \"$@\"";
        command.args(["-ec", script, "sh"]).arg(group.directory.join("cgroup.procs"));
        command.arg(env!("CARGO_BIN_EXE_sendfile2"));
        let args = ["--engine", engine, "--slots", "512", "--clients", "24", "--processes", "2"];
        let more = ["--duration", "4s", "--json", "--dir", env!("CARGO_TARGET_TMPDIR")];
        let (report, status) = reported(&run_by(command, &[&args[..], &more].concat()));
        assert_safe(&report, status);
        assert!(group.met() > 0, "the memory was enough");
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
        (&["--disturb", "noise"], "direct-reads"),
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
