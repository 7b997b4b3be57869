//! `sendfile2 bench` as its users meet it. What is measured depends on the machine, so nothing here
//! asserts on a time or a speed.

#[path = "../../sendfile2-cli/tests/engines/mod.rs"]
mod engines;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2-bench"));
    command.args(args).output().expect("the command starts")
}

#[track_caller]
fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        println!("{line}");
    }
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[track_caller]
fn fail(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(text.starts_with("sendfile2: bench") && text.lines().count() == 1, "{text}");
    text
}

/// Measures with `args` and prints JSON.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.extend(["--json", "--dir", env!("CARGO_TARGET_TMPDIR")]);
    let text = succeed(&all);
    assert_eq!(text.lines().count(), 1, "one object");
    serde_json::from_str(&text).expect("JSON")
}

fn rows(result: &Value) -> &[Value] {
    result["rows"].as_array().expect("rows")
}

#[track_caller]
fn number(row: &Value, field: &str) -> f64 {
    let number = row[field].as_f64().unwrap_or_else(|| panic!("{field}: {row}"));
    assert!(number.is_finite() && number >= 0.0, "{field}: {row}");
    number
}

/// The paths that were measured; where namespaces are forbidden, veth is not among them.
fn paths(result: &Value) -> Vec<&str> {
    let skipped = result["skipped"].as_array().expect("skipped");
    for skipped in skipped {
        println!("SKIP: {}: {}", skipped["what"], skipped["why"]);
    }
    let veth = skipped.iter().any(|skipped| skipped["what"] == "veth");
    if veth { vec!["lo"] } else { vec!["lo", "veth"] }
}

const WAYS: [(&str, bool); 3] = [("sendfile", false), ("splice", false), ("read+write", true)];

/// The engine `sendfile`.
const LEASED: &str = "sendfile+lease";

/// One stream over loopback, and a file of 1 MiB in calls of 64 KiB.
const ONE: [&str; 11] =
    ["engines", "--path", "lo", "--streams", "1", "--chunk", "64K", "--size", "1M", "--time", "3s"];

/// All methods, and whether they report the release, or need none.
fn methods() -> Vec<(&'static str, bool)> {
    let name = |engine: sendfile2::Engine| match engine {
        // There is no other way to send by it.
        sendfile2::Engine::Sendfile => LEASED,
        _ => engine.name(),
    };
    let engines = engines::here().into_iter().map(|engine| (name(engine), true));
    WAYS.into_iter().chain(engines).collect()
}

#[test]
fn engines_are_measured_in_every_setting() {
    let result = json(&["engines", "--quick"]);
    assert_eq!(result["bench"], "engines");
    let mut expected = 0;
    for path in paths(&result) {
        for (streams, chunk) in [(1, 65_536), (1, 1_048_576), (32, 65_536), (32, 1_048_576)] {
            for (method, safe) in methods() {
                expected += 1;
                let found: Vec<_> = rows(&result)
                    .iter()
                    .filter(|row| row["path"] == path && row["streams"] == streams)
                    .filter(|row| row["chunk"] == chunk && row["engine"] == method)
                    .collect();
                let [row] = found[..] else {
                    panic!("{path} {streams} {chunk} {method}: {found:?}")
                };
                assert_eq!(row["safe"], safe, "{row}");
                assert_eq!(row["size"], 64 << 20, "{row}");
                for field in [
                    "gb_per_s",
                    "sender_cpu_s_per_gb",
                    "total_cpu_s_per_gb",
                    "throughput_ratio",
                    "sender_cpu_ratio",
                    "total_cpu_ratio",
                    "memory_copy_share",
                    "bytes_per_send",
                    "rounds",
                ] {
                    assert!(number(row, field) > 0.0, "{field}: {row}");
                }
                assert!(number(row, "bytes_per_send") <= f64::from(chunk), "{row}");
                match method {
                    "sendfile" => {
                        for ratio in ["throughput_ratio", "sender_cpu_ratio", "total_cpu_ratio"] {
                            assert_eq!(row[ratio], 1.0, "{row}");
                        }
                        assert!(row["copied_share"].is_null(), "it does not say: {row}");
                    }
                    "splice" | LEASED => {
                        assert!(row["copied_share"].is_null(), "it does not say: {row}");
                    }
                    // Nothing that stays on one machine is zero copy.
                    _ => assert_eq!(row["copied_share"], 1.0, "{row}"),
                }
            }
        }
    }
    assert_eq!(rows(&result).len(), expected);
    for field in ["kernel", "cpu", "filesystem"] {
        assert!(result["machine"][field].is_string(), "{field}: {result}");
    }
    for field in ["memory_copy_gb_per_s", "cached_copy_gb_per_s", "processors"] {
        assert!(number(&result["machine"], field) > 0.0, "{field}");
    }
}

#[test]
fn what_the_library_chooses_under_a_lease_is_measured_where_it_is_named() {
    let result = json(&[&ONE[..], &["--engine", "auto+lease"]].concat());
    let measured: Vec<_> = rows(&result).iter().map(|row| row["engine"].clone()).collect();
    assert_eq!(measured, ["sendfile", "auto+lease"]);
}

#[test]
fn a_file_that_was_dropped_from_the_cache_is_measured_or_refused() {
    let more = ["--cold", "--json", "--dir", env!("CARGO_TARGET_TMPDIR")];
    let output = run(&[&ONE[..], &more].concat());
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains("stays in the page cache"), "{text}");
        println!("SKIP: cold: {text}");
        return;
    }
    let result: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(rows(&result).len(), methods().len());
    assert!(rows(&result).iter().all(|row| row["cold"] == true), "{result}");
}

#[test]
fn a_file_in_pieces_of_which_each_says_that_more_follows() {
    let result = json(&[
        "engines",
        "--more",
        "--path",
        "lo",
        "--streams",
        "1,2",
        "--chunk",
        "64K",
        "--size",
        "1M",
        "--time",
        "6s",
    ]);
    // Bytes that were held back came in the end, or there would be no row.
    assert_eq!(rows(&result).len(), 2 * methods().len());
    assert!(rows(&result).iter().all(|row| row["more"] == true), "{result}");
}

#[test]
fn memory_is_never_cold() {
    if !Path::new("/dev/shm").is_dir() {
        println!("SKIP: no /dev/shm");
        return;
    }
    let text = fail(&[&ONE[..], &["--cold", "--dir", "/dev/shm"]].concat());
    assert!(text.contains("stays in the page cache"), "{text}");
}

#[test]
fn latency_tells_released_from_acknowledged() {
    let result = json(&["latency", "--sends", "40", "--size", "64K", "--time", "10s"]);
    for path in paths(&result) {
        // Nobody tells when what was sent by sendfile(2) is released.
        for (method, safe) in methods().into_iter().filter(|(method, _)| *method != LEASED) {
            for until in ["released", "acknowledged"] {
                let row = rows(&result).iter().find(|row| {
                    row["path"] == path && row["engine"] == method && row["until"] == until
                });
                let Some(row) = row else {
                    assert!(!safe && until == "released", "{path} {method} {until}: {result}");
                    continue;
                };
                assert!(safe || until == "acknowledged", "nobody says so: {row}");
                assert!(number(row, "sends") > 0.0, "{row}");
                let percentiles = ["p50", "p90", "p99", "p99.9", "max"];
                let times = percentiles.map(|percentile| number(row, percentile));
                assert!(times.is_sorted(), "{row}");
            }
        }
    }
}

#[test]
fn the_guard_is_compared_with_unguarded_sends() {
    let result = json(&["guard", "--time", "4s"]);
    let what = |row: &Value| row["what"].as_str().expect("what").to_owned();
    let kind = |kind| rows(&result).iter().filter(|row| what(row).starts_with(kind)).count();
    assert_eq!(kind("lease "), 2);
    assert_eq!(kind("send "), 2 * 2 * engines::here().len());
    assert_eq!(kind("write "), 4);
    for row in rows(&result) {
        assert!(number(row, "nanoseconds") > 0.0, "{row}");
        let compared = what(row).contains("+lease") || what(row).contains("stalled");
        assert_eq!(row["ratio"].is_f64(), compared, "{row}");
    }
}

#[test]
fn memory_is_told_a_connection_a_send_and_a_lease() {
    let result = json(&["memory"]);
    let skipped = result["skipped"].as_array().expect("skipped").len();
    paths(&result);
    assert_eq!(rows(&result).len() + skipped, 3, "{result}");
    for row in rows(&result) {
        assert!(number(row, "bytes") > 0.0 && number(row, "number") > 0.0, "{row}");
    }
}

/// Returns whether the server is there that "bench http" and "bench crowd" run: cargo has built it
/// if all of the workspace is tested.
fn have_server() -> bool {
    let own = Path::new(env!("CARGO_BIN_EXE_sendfile2-bench"));
    let built = own.with_file_name("sendfile2-server").exists();
    if !built {
        println!("SKIP: sendfile2-server is not built (cargo build -p sendfile2-server)");
    }
    built
}

#[test]
fn http_servers_are_measured_beside_each_other() {
    if !have_server() {
        return;
    }
    let there = |program: &str| Command::new(program).arg("-v").output().is_ok();
    if !there("wrk") {
        println!("SKIP: there is no wrk here");
        assert!(fail(&["http", "--time", "1s"]).contains("apt-get install wrk"));
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let saved = directory.path().join("http.json");
    let saved = saved.to_str().expect("UTF-8");
    let result = json(&["http", "--size", "4K,1M", "--time", "8s", "--save", saved]);
    let skipped = result["skipped"].as_array().expect("skipped");
    let nginx = !skipped.iter().any(|skipped| skipped["what"] == "nginx");
    if !nginx {
        println!("SKIP: {skipped:?}");
    }
    let servers = ["sendfile2", "nginx", "ServeDir"].into_iter().filter(|s| nginx || *s != "nginx");
    for (server, size) in servers.flat_map(|server| [(server, 4096), (server, 1 << 20)]) {
        let row = rows(&result).iter().find(|r| r["server"] == server && r["size"] == size);
        let row = row.unwrap_or_else(|| panic!("{server} {size}: {result}"));
        for figure in ["requests_per_s", "gb_per_s", "server_cpu_s_per_gb", "total_cpu_s_per_gb"] {
            assert!(number(&row[figure], "value") > 0.0, "{figure}: {row}");
            assert_eq!(row[figure]["ratio"].is_f64(), nginx, "{figure}: {row}");
            assert!(server != "nginx" || row[figure]["ratio"] == 1.0, "{figure}: {row}");
        }
    }
    assert!(succeed(&["compare", saved, saved]).contains("\n0 of "));
    let page = directory.path().join("page.md");
    succeed(&["report", saved, "-o", page.to_str().expect("UTF-8")]);
}

#[test]
fn caches_are_measured_beside_each_other() {
    if !have_server() {
        return;
    }
    if Command::new("wrk").arg("-v").output().is_err() {
        println!("SKIP: there is no wrk here");
        assert!(fail(&["cache", "--time", "1s"]).contains("apt-get install wrk"));
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let saved = directory.path().join("cache.json");
    let saved = saved.to_str().expect("UTF-8");
    let some = ["cache", "--size", "4K", "--time", "8s", "--objects", "500", "--save", saved];
    let result = json(&some);
    let skipped = result["skipped"].as_array().expect("skipped");
    for skipped in skipped {
        println!("SKIP: {}: {}", skipped["what"], skipped["why"]);
    }
    let there = |server: &str| !skipped.iter().any(|skipped| skipped["what"] == server);
    let row = |server: &str, load: &str| {
        rows(&result).iter().find(|row| row["server"] == server && row["load"] == load)
    };
    for server in ["sendfile2", "nginx", "nginx-copy", "varnish"] {
        for load in ["hits", "misses"] {
            assert_eq!(row(server, load).is_some(), there(server), "{server} {load}: {result}");
            let Some(row) = row(server, load) else { continue };
            let last = if load == "hits" { "total_cpu_us_per_request" } else { "p99_us" };
            for figure in ["requests_per_s", "server_cpu_us_per_request", last] {
                assert!(number(&row[figure], "value") > 0.0, "{figure}: {row}");
                let nginx = there("nginx") || there("nginx-copy");
                assert_eq!(row[figure]["ratio"].is_f64(), nginx, "{figure}: {row}");
            }
            // A quarter was asked for the first time.
            let hits = row["hit_share"].as_f64();
            assert!(hits.is_none_or(|hits| hits > 0.0 && hits < 0.8), "{row}");
        }
        let lasts = there(server) && ["sendfile2", "nginx"].contains(&server);
        assert_eq!(row(server, "restart").is_some(), lasts, "{server}: {result}");
        let Some(row) = row(server, "restart") else { continue };
        assert!(number(row, "first_hit_s") > 0.0 && number(row, "fill_s") > 0.0, "{row}");
        assert_eq!(row["objects"], 500, "{row}");
    }
    assert!(succeed(&["compare", saved, saved]).contains("\n0 of "));
    let page = directory.path().join("page.html");
    succeed(&["report", saved, "-o", page.to_str().expect("UTF-8")]);
}

#[test]
fn a_crowd_of_slow_clients_gets_everything() {
    if !have_server() {
        return;
    }
    for engine in ["auto", "zerocopy"] {
        let args = ["crowd", "--connections", "200", "--size", "300K", "--rate", "200K"];
        let result = json(&[&args[..], &["--engine", engine]].concat());
        let [row] = rows(&result) else { panic!("{result}") };
        assert_eq!((&row["complete"], &row["wrong_bytes"]), (&200.into(), &0.into()), "{row}");
        number(row, "resident_bytes_per_connection");
        number(row, "server_cpu_share");
    }
}

/// A result with one setting, in a file of its own.
fn saved(directory: &Path) -> (PathBuf, Value) {
    let path = directory.join("engines.json");
    let saved = path.to_str().expect("UTF-8");
    let more = ["--save", saved, "--dir", env!("CARGO_TARGET_TMPDIR")];
    let text = succeed(&[&ONE[..], &more].concat());
    for words in
        ["release known", "NO ", "COPIED", "Nothing that stays on one machine is zero copy"]
    {
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains('\x1b'), "no colours where there is no terminal");
    let mut result: Value =
        serde_json::from_str(&std::fs::read_to_string(&path).expect("saved")).expect("JSON");
    // Enough rounds are a matter of time.
    for row in result["rows"].as_array_mut().expect("rows") {
        let value = number(row, "gb_per_s");
        row["ci"]["gb_per_s"] = serde_json::json!([value * 0.9, value * 1.1]);
    }
    write(&path, &result);
    (path, result)
}

fn write(path: &Path, result: &Value) {
    std::fs::write(path, result.to_string()).expect("writable");
}

#[test]
fn compare_finds_what_changed_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let (before, mut result) = saved(directory.path());
    let before = before.to_str().expect("UTF-8");
    let compare = |after: &str| -> Value {
        serde_json::from_str(&succeed(&["compare", before, after, "--json"])).expect("JSON")
    };

    assert_eq!(compare(before)["changed"], serde_json::json!([]));
    let text = succeed(&["compare", before, before]);
    for words in ["Of what can be compared nothing changed beyond noise", "too few rounds"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // Where nothing has an interval, it is not known whether anything changed.
    let mut short = result.clone();
    for row in short["rows"].as_array_mut().expect("rows") {
        row["ci"]["gb_per_s"] = Value::Null;
    }
    let path = directory.path().join("short.json");
    write(&path, &short);
    let text = succeed(&["compare", before, path.to_str().expect("UTF-8")]);
    assert!(text.starts_with("Nothing can be said.\n0 of 0 figures changed; "), "{text}");

    // Twice as fast, and by a little more than nothing.
    for (row, factor) in result["rows"].as_array_mut().expect("rows").iter_mut().zip([2.0, 1.1]) {
        let value = number(row, "gb_per_s") * factor;
        row["gb_per_s"] = value.into();
        row["ci"]["gb_per_s"] = serde_json::json!([value * 0.9, value * 1.1]);
    }
    let after = directory.path().join("after.json");
    write(&after, &result);
    let after = after.to_str().expect("UTF-8");
    let comparison = compare(after);
    let [change] = &comparison["changed"].as_array().expect("changed")[..] else {
        panic!("one row and one figure: {comparison}")
    };
    assert_eq!(change["figure"], "GB/s");
    assert_eq!(change["better"], true);
    assert!((number(change, "change") - 1.0).abs() < 1e-6, "{change}");
    assert!(change["what"].as_str().expect("what").contains("sendfile"), "{change}");
    let text = succeed(&["compare", after, before]);
    assert!(text.contains("WORSE") && text.contains("-50.0 %"), "{text}");

    // A row that only one of them has.
    result["rows"].as_array_mut().expect("rows").pop();
    write(Path::new(after), &result);
    assert_eq!(compare(after)["only_before"].as_array().map(Vec::len), Some(1));
}

#[test]
fn reports_need_nothing_else_and_have_every_row() {
    let directory = tempfile::tempdir().expect("a directory");
    let (engines, mut result) = saved(directory.path());
    let engines = engines.to_str().expect("UTF-8");
    let latency = directory.path().join("latency.json");
    let latency = latency.to_str().expect("UTF-8");
    succeed(&[
        "latency",
        "--path",
        "lo",
        "--size",
        "64K",
        "--sends",
        "40",
        "--time",
        "5s",
        "--save",
        latency,
        "--dir",
        env!("CARGO_TARGET_TMPDIR"),
    ]);
    let page = |name: &str| {
        let out = directory.path().join(name);
        succeed(&["report", engines, latency, "-o", out.to_str().expect("UTF-8")]);
        std::fs::read_to_string(out).expect("written")
    };

    let html = page("report.html");
    let elsewhere = html.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "href=", "@import", "url("] {
        assert!(!elsewhere.contains(word), "{word}");
    }
    assert!(html.contains("prefers-color-scheme: dark"));
    // Throughput against CPU, ratio by call, and two latency curves.
    assert!(html.matches("<svg width=\"500\"").count() == 4, "plots");
    let cells = |row: &str| row.matches("<td").count();
    assert_eq!(html.lines().filter(|line| cells(line) == 15).count(), methods().len());
    // Once for its costs, and once or twice for its times, unless its release is never reported.
    let least = |method: &str| if method == "sendfile+lease" { 1 } else { 2 };
    for (method, _) in methods() {
        let word = format!(">{method}</td>");
        assert!(html.matches(&word).count() >= least(method), "{method}");
    }
    assert_eq!(html.matches(">NO</td>").count(), 4, "two methods in two tables");

    let markdown = page("report.md");
    for (method, _) in methods() {
        let rows = markdown.matches(&format!("| {method} ")).count();
        assert!(rows >= least(method), "{method}: {markdown}");
    }
    assert!(!markdown.contains("<svg"));

    // The text in a result may come from anywhere.
    result["rows"][0]["path"] = "<script>alert(1)</script>".into();
    write(Path::new(engines), &result);
    assert!(!page("report.html").contains("<script"));
}

#[test]
fn files_that_are_no_results_are_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("writable");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (good, result) = saved(directory.path());
    let good = good.to_str().expect("UTF-8");
    let mut newer = result.clone();
    newer["version"] = 99.into();
    let newer = path("newer.json", &newer.to_string());
    let cut = path("cut.json", &result.to_string()[..500]);
    let foreign = path("foreign.json", "{\"rows\": [1, 2, 3]}");
    let empty = path("empty.json", "");
    let out = directory.path().join("out.html");
    let out = out.to_str().expect("UTF-8");
    for (wrong, said) in [
        (&cut[..], "not a result of sendfile2 bench"),
        (&foreign, "not a result of sendfile2 bench"),
        (&empty, "not a result of sendfile2 bench"),
        (&newer, "format 99"),
        ("/nowhere.json", "cannot open"),
    ] {
        for text in [fail(&["compare", good, wrong]), fail(&["report", wrong, "-o", out])] {
            assert!(text.contains(wrong) && text.contains(said), "{text}");
        }
    }
    assert!(!Path::new(out).exists(), "nothing half-finished is left");

    let memory = directory.path().join("memory.json");
    let memory = memory.to_str().expect("UTF-8");
    succeed(&["memory", "--save", memory, "--dir", env!("CARGO_TARGET_TMPDIR")]);
    assert!(fail(&["compare", good, memory]).contains("give two of the same"));
    assert!(fail(&["compare", memory, memory]).contains("no confidence intervals"));
}

#[test]
fn wrong_arguments_are_usage_errors_that_say_what_is_right() {
    for (args, said) in [
        (&["engines", "--engine", "mail"][..], "read+write"),
        (&["engines", "--chunk", "1"], "between 4K and 16M"),
        (&["engines", "--path", "eth0"], "there are lo and veth"),
        (&["engines", "--ci", "0"], "percent"),
        (&["http", "--server", "apache"], "nginx"),
        (&["cache", "--server", "squid"], "varnish"),
        (&["crowd", "--connections", "0"], "1..=28000"),
        (&["engines", "--quick", "--time", "1m"], "cannot be used with"),
        (&["report", "a.json", "-o", "a.pdf"], ".html or .md"),
        (&["report", "-o", "a.html"], "RESULT"),
        (&["engines", "--dance"], "Usage: sendfile2 bench engines"),
        (&[], "Usage: sendfile2 bench"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(said), "{args:?}: {text}");
    }
    let text = fail(&["engines", "--chunk", "1M", "--size", "64K"]);
    assert!(text.contains("larger than every --size"), "{text}");
}
