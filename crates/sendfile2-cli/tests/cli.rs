//! The command as its users meet it.

use std::path::Path;
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

/// Returns standard error, which must be one line that begins with the command's name.
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
    let (plain, engines): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row["way"].as_str().expect("way").contains("(2)"));

    let when: Vec<_> = plain.iter().map(|row| &row["overwritten_at"]).collect();
    assert_eq!(when, ["return", "acked", "detached"]);
    for row in &plain[..2] {
        assert_eq!(row["bytes"], 1 << 20);
        assert!(row["micros_until_free"].is_null(), "{row}");
        assert!(row["writer_wait_micros"].is_u64(), "{row}");
        assert!(row["wrong_bytes"].as_u64() > Some(0), "{row}");
        assert_eq!(row["safe"], false, "{row}");
    }

    let names: Vec<_> = engines.iter().map(|row| &row["way"]).collect();
    let all: Vec<_> = sendfile2::Engine::ALL.iter().map(|engine| engine.name()).collect();
    assert_eq!(names, all);
    for row in engines.into_iter().chain([plain[2]]) {
        let detached = row["way"].as_str().expect("way").contains("sendfile");
        assert_eq!(row["overwritten_at"], if detached { "detached" } else { "released" });
        assert_eq!(row["wrong_bytes"], 0, "{row}");
        if row["refused"].is_string() {
            assert!(row["safe"].is_null(), "nothing is known of it: {row}");
            continue;
        }
        assert_eq!(row["bytes"], 1 << 20);
        assert_eq!(row["safe"], true, "{row}");
        assert_eq!(row["micros_until_free"].is_null(), detached, "{row}");
        assert!(row["writer_wait_micros"].is_u64(), "{row}");
        assert_eq!(row["engine_taken"].is_string(), row["way"] != "sendfile(2)", "{row}");
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

/// Its last piece may have too little in its last page to be detached.
#[test]
fn what_is_refused_in_the_middle_leaves_the_file_as_it_was() {
    let output = run(&["demo", "--size", "98404", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    assert!(rows.iter().any(|row| row["way"] == "copy" && row["safe"] == true), "{report}");
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
        &["bench", "cache", "--help"],
        &["bench", "crowd", "--help"],
        &["bench", "compare", "--help"],
        &["bench", "report", "--help"],
        &["torture", "--help"],
        &["write", "--help"],
        &["run", "--help"],
        &["serve", "--help"],
        &["cache", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let output = run(args);
        assert!(output.status.success(), "{args:?}");
        assert!(stdout(&output).contains("Examples:\n  sendfile2 "), "{args:?}");
    }
}

/// Runs a wrong command line, and returns the answer to it.
fn usage_error(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).expect("UTF-8")
}

#[test]
fn wrong_command_lines_are_answered_by_what_is_right() {
    for (args, said) in [
        (&["serve", ".", "--workers", "0"][..], "must be at least 1"),
        (&["serve", ".", "--max-connections", "0"], "must be at least 1"),
        (&["serve", ".", "--workers", "many"], "a whole number, at least 1"),
        (&["send", "file", "[::1]"], "the port is missing: give [::1]:PORT, such as [::1]:9000"),
        (
            &["send", "file", "2001:db8::1"],
            "in brackets, and a port behind them: [2001:db8::1]:9000",
        ),
        (&["send", "file", "host:"], "the port is missing: give host:PORT, such as host:9000"),
        (&["send", "file", "unix:@"], "give the abstract socket's name"),
        (&["send", "file", "host:1", "--port", "2"], "unexpected argument '--port'"),
        (&["send", "file", "host:1", "--ofset", "2"], "a similar argument exists: '--offset'"),
    ] {
        let text = usage_error(args);
        assert!(text.contains(said), "{args:?}: {text}");
        assert!(!text.contains("as a value") && !text.contains("non-zero"), "{text}");
    }
}

#[test]
fn standard_input_is_no_file_to_send() {
    let text = complaint(&run(&["send", "-", "127.0.0.1:1"]));
    assert!(text.contains("standard input") && text.contains("name of a file"), "{text}");
}

#[test]
fn an_encrypted_key_is_called_that() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let section = |name: &str, headers: &str| {
        format!("-----BEGIN {name}-----\n{headers}AAAA\n-----END {name}-----\n")
    };
    let cert = file("cert", &section("CERTIFICATE", ""));
    for (text, said) in [
        (section("ENCRYPTED PRIVATE KEY", ""), "is encrypted: decrypt it"),
        (
            section("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n"),
            "is encrypted: decrypt it",
        ),
        (section("CERTIFICATE", ""), "there is no private key"),
    ] {
        let key = file("key", &text);
        let args =
            ["serve", ".", "--listen", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
        let text = complaint(&run(&args));
        assert!(text.contains(said) && text.contains(&key), "{text}");
    }
}

#[test]
fn help_that_cannot_be_written_is_an_error() {
    let full = std::fs::File::create("/dev/full").expect("/dev/full");
    let output = sendfile2(&["--help"]).stdout(full).output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("standard output"));
}

/// Returns whether the command `wrapper` starts the program that follows it.
fn can(wrapper: &[&str], program: &str) -> bool {
    let tried = Command::new(wrapper[0]).args(&wrapper[1..]).args([program, "--version"]).output();
    let can = tried.as_ref().is_ok_and(|output| output.status.success());
    if !can {
        println!("SKIP: {} does not work here: {tried:?}", wrapper[0]);
    }
    can
}

/// Commands that end by themselves, whatever limit they meet.
fn short_commands(directory: &str) -> Vec<Vec<&str>> {
    let commands = "completions bash|probe|demo --size 64K|recv 203.0.113.9:1\
        |serve . --listen 203.0.113.9:1|serve . --listen 203.0.113.9:1 --workers 1\
        |bench compare a b|torture --duration 1s --clients 2 --writers 1 --processes 1\
        |send Cargo.toml 127.0.0.1:1 --engine copy|send Cargo.toml 127.0.0.1:1 --engine uring\
        |send Cargo.toml 127.0.0.1:1 --engine zerocopy|write Cargo.toml --at 1";
    let mut all: Vec<Vec<_>> =
        commands.split('|').map(|words| words.split_whitespace().collect()).collect();
    all.push(vec!["man", directory]);
    all
}

fn assert_no_panic(output: &Output, what: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("this needs the program") {
        // Where the tests of this package are built alone.
        println!("SKIP: {what}: {text}");
        return;
    }
    // Neither its own nor that of a process that it started.
    assert!(!text.contains("panicked"), "{what}: {text}");
    let code = output.status.code().unwrap_or_else(|| panic!("{what}: {output:?}"));
    assert!(code <= 1, "{what}: {output:?}");
    assert!(code == 0 || text.contains("sendfile2: "), "{what}: {output:?}");
}

#[test]
fn no_command_panics_where_descriptors_run_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = env!("CARGO_BIN_EXE_sendfile2");
    if !can(&["prlimit", "--nofile=64"], program) {
        return;
    }
    for limit in [4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 20, 32] {
        for args in short_commands(directory.path().to_str().expect("UTF-8")) {
            let mut command = Command::new("prlimit");
            command.arg(format!("--nofile={limit}")).arg(program).args(&args).stdin(Stdio::null());
            let output = command.output().expect("prlimit starts");
            assert_no_panic(&output, &format!("{limit} descriptors: {args:?}"));
        }
    }
}

#[test]
fn no_command_panics_where_threads_run_out() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    // Somebody without privileges, whom the limit holds for, can get at it here.
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("set");
    std::fs::write(path.join("Cargo.toml"), "a file").expect("written");
    let program = path.join("sendfile2");
    let built = Path::new(env!("CARGO_BIN_EXE_sendfile2"));
    std::fs::copy(built, &program).expect("copied");
    for name in ["sendfile2-server", "sendfile2-bench"] {
        if built.with_file_name(name).exists() {
            std::fs::copy(built.with_file_name(name), path.join(name)).expect("copied");
        }
    }
    let program = program.to_str().expect("UTF-8");
    let mut wrapper = vec!["prlimit", "--nproc=1000"];
    if rustix::process::geteuid().is_root() {
        let nobody = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all"];
        wrapper.splice(0..0, nobody.into_iter().chain(["--inh-caps=-all"]));
    }
    if !can(&wrapper, program) {
        return;
    }
    for limit in [1, 2, 3, 4, 6] {
        let limit = format!("--nproc={limit}");
        let [wrapper @ .., _] = &wrapper[..] else { panic!("words") };
        for args in short_commands(&format!("{}/man", path.display())) {
            // Whoever hangs is killed, and has failed.
            let mut command = Command::new("timeout");
            command
                .args(["--signal=KILL", "30"])
                .args(wrapper)
                .args([&limit, program])
                .args(&args)
                .current_dir(path);
            let output = command.stdin(Stdio::null()).output().expect("setpriv starts");
            assert_no_panic(&output, &format!("{limit}: {args:?}"));
        }
    }
}

#[test]
fn no_command_and_an_unknown_one_are_usage_errors() {
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["dance"]).status.code(), Some(2));
}

/// The command in a directory of its own, without the programs that it runs.
fn alone(directory: &Path) -> Command {
    let program = directory.join("sendfile2");
    std::fs::hard_link(env!("CARGO_BIN_EXE_sendfile2"), &program).expect("the same filesystem");
    let mut command = Command::new(program);
    command.env("PATH", "/nowhere");
    command
}

#[test]
fn serve_and_bench_become_the_programs_beside_the_command() {
    // The shell in place of each program: its first argument is a script in the current directory.
    // (What has just been written cannot be executed while another thread forks.)
    const SCRIPT: &str = "echo $$; printf '%s\\n' \"$0\" \"$@\"; exit 7";
    for (name, args, passed) in [
        ("sendfile2-server", ["serve", "a b", "--listen", ":0"], "serve\na b\n--listen\n:0\n"),
        ("sendfile2-bench", ["bench", "engines", "--time", "1m"], "engines\n--time\n1m\n"),
    ] {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut command = alone(directory.path());
        std::os::unix::fs::symlink("/bin/sh", directory.path().join(name)).expect("a link");
        let script = passed.lines().next().expect("a word");
        std::fs::write(directory.path().join(script), SCRIPT).expect("a file");
        command.current_dir(&directory);
        let child = command.args(args).stdout(Stdio::piped()).spawn().expect("it starts");
        let id = child.id();
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(stdout(&output), format!("{id}\n{passed}"), "the same process: it gets signals");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
    }
}

#[test]
fn a_program_that_is_missing_is_named_with_the_ways_to_get_it() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let program = alone(directory.path()).get_program().to_owned();
    for (name, args) in
        [("sendfile2-server", &["serve", "/tmp"][..]), ("sendfile2-bench", &["bench", "memory"])]
    {
        let output =
            Command::new(&program).args(args).env("PATH", "/nowhere").output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = complaint(&output);
        let build = format!("cargo build --release -p {name}");
        for word in [name, &build, &format!("cargo install {name}")] {
            assert!(text.contains(word), "{word}: {text}");
        }
        // A wrong command line is recognised all the same.
        let output = Command::new(&program).args(args).arg("--dance").output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&format!("Usage: sendfile2 {}", args[0])), "{text}");
    }
}

/// The packages that a package's program is made of.
fn packages(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--package", package])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{output:?}");
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    stdout(&output).lines().map(name).collect()
}

#[test]
fn the_command_is_built_without_what_only_the_server_and_the_benchmarks_need() {
    const OTHERS: [&str; 14] = [
        "axum",
        "h2",
        "hyper",
        "metrics-exporter-prometheus",
        "perf-event",
        "plotters",
        "procfs",
        "ring",
        "rustls",
        "sendfile2-axum",
        "tokio",
        "tokio-rustls",
        "tower",
        "tower-http",
    ];
    let own = packages("sendfile2-cli");
    assert!(own.iter().any(|package| package == "clap"), "{own:?}");
    let of_others: Vec<_> =
        OTHERS.iter().filter(|name| own.iter().any(|own| own == *name)).collect();
    assert!(of_others.is_empty(), "cargo run -- demo would build {of_others:?}");
    // None is misspelt.
    let programs = [packages("sendfile2-server"), packages("sendfile2-bench")].concat();
    let unknown: Vec<_> =
        OTHERS.iter().filter(|name| !programs.iter().any(|p| p == *name)).collect();
    assert!(unknown.is_empty(), "no program needs {unknown:?}");
}

#[test]
fn completions_are_generated_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        for word in ["demo", "--max-connections", "crowd", "--peer-netns"] {
            let word = if shell == "fish" { word.trim_start_matches("--") } else { word };
            assert!(stdout(&output).contains(word), "{shell}: {word}");
        }
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
        sendfile2-bench-cache.1
        sendfile2-bench-compare.1
        sendfile2-bench-crowd.1
        sendfile2-bench-engines.1
        sendfile2-bench-guard.1
        sendfile2-bench-http.1
        sendfile2-bench-latency.1
        sendfile2-bench-memory.1
        sendfile2-bench-report.1
        sendfile2-bench.1
        sendfile2-cache.1
        sendfile2-completions.1
        sendfile2-demo.1
        sendfile2-man.1
        sendfile2-probe.1
        sendfile2-recv.1
        sendfile2-run.1
        sendfile2-send.1
        sendfile2-serve.1
        sendfile2-torture.1
        sendfile2-write.1
        sendfile2.1";
    assert_eq!(pages, commands.split_whitespace().collect::<Vec<_>>());
    let page = std::fs::read_to_string(directory.join("sendfile2.1")).expect("readable");
    let (_, also) = page.split_once("SEE ALSO").expect("other pages are named");
    assert!(also.contains("sendfile2\\fR(3)") && also.contains("sendfile2\\fR(7)"), "{also}");
    let page = std::fs::read_to_string(directory.join("sendfile2-demo.1")).expect("readable");
    assert!(page.contains(".TH") && page.contains("\\-\\-size"), "{page}");
    let page = std::fs::read_to_string(directory.join("sendfile2-serve.1")).expect("readable");
    assert!(page.contains("\\-\\-tls\\-cert"), "{page}");
}

#[test]
fn man_pages_have_the_headings_of_man_pages() {
    let scratch = tempfile::tempdir().expect("a directory");
    let output = run(&["man", scratch.path().to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{output:?}");
    for entry in std::fs::read_dir(scratch.path()).expect("made") {
        let path = entry.expect("readable").path();
        let page = std::fs::read_to_string(&path).expect("readable");
        assert!(!page.contains("EXTRA") && !page.contains("Examples:"), "{path:?}: {page}");
        let (_, examples) = page.split_once(".SH EXAMPLES\n.nf\n").expect("examples");
        assert!(examples.contains("sendfile2 "), "{path:?}: {page}");
        assert!(
            page.contains(".SH SEE ALSO\n") && page.contains("\\fBsendfile2\\fR(7)"),
            "{path:?}"
        );
    }
    let page = std::fs::read_to_string(scratch.path().join("sendfile2.1")).expect("readable");
    assert!(page.contains(".SH EXIT STATUS\n0 if all went well"), "{page}");
    assert!(page.contains("\\fBsendfile2\\fR(3)"), "{page}");
}

#[test]
fn man_pages_that_cannot_be_written_are_an_error() {
    let output = run(&["man", "/proc/self/man"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("/proc/self/man"));
}
