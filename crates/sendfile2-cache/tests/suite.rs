//! The public suite for caches in its state of 2020 (`http-cache-tests` 0.4.5 of npm), against a list
//! of what differs from what it expects, and why. It takes half a minute.
#![allow(clippy::unwrap_used)]

mod origin;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use origin::cache_of;

/// A number that cannot be read is no age, and of several the first counts: RFC 9111 has it so since
/// 2022.
const AGE: &str = "RFC 9111, 5.1, ignores it, or takes the first";
/// The suite takes an answer of the cache's own, 502, for one from the store.
const NOT_STORED: &str = "it is an error of the cache's own, and nothing stale";
const SURROGATE: &str = "Surrogate-Control is of no standard: CDN-Cache-Control came in its place";
const LENGTHS: &str = "its lengths do not fit";

const DIFFERENT: &[(&str, &str)] = &[
    ("age-parse-nonnumeric", AGE),
    ("age-parse-negative", AGE),
    ("age-parse-float", AGE),
    ("age-parse-prefix-twoline", AGE),
    ("age-parse-dup-0", AGE),
    ("age-parse-dup-0-twoline", AGE),
    ("age-parse-dup-old", AGE),
    ("stale-close-must-revalidate", NOT_STORED),
    ("stale-close-proxy-revalidate", NOT_STORED),
    ("stale-close-no-cache", NOT_STORED),
    ("stale-close-s-maxage=2", NOT_STORED),
    ("conditional-lm-fresh-no-lm", "its Date, which counts, is later (RFC 9111, 4.3.2)"),
    ("304-etag-update-response-Content-MD5", "RFC 9111, 3.2, replaces it"),
    ("304-etag-update-response-ETag", "a 304 with another tag is about another response (4.3.4)"),
    ("partial-store-partial-reuse-partial", LENGTHS),
    ("partial-store-partial-reuse-partial-byterange", LENGTHS),
    ("partial-store-partial-reuse-partial-absent", LENGTHS),
    ("partial-store-partial-reuse-partial-suffix", LENGTHS),
    ("partial-store-partial-complete", "it has no strong entity tag"),
    ("surrogate-max-age", SURROGATE),
    ("surrogate-max-age-max", SURROGATE),
    ("surrogate-max-age-max-plus", SURROGATE),
    ("surrogate-max-age-me-target", SURROGATE),
    ("surrogate-max-age-extension", SURROGATE),
    ("surrogate-max-age-case-insensitive", SURROGATE),
    ("surrogate-max-age-expires", SURROGATE),
    ("surrogate-max-age-cc-max-age-invalid-expires", SURROGATE),
    ("surrogate-max-age-0-expires", SURROGATE),
    ("surrogate-max-age-short-cc-max-age", SURROGATE),
    ("surrogate-max-age-long-cc-max-age", SURROGATE),
    ("surrogate-no-store-cc-fresh", SURROGATE),
    ("surrogate-fresh-cc-nostore", SURROGATE),
];

/// Says which tests of what is required or optimal failed, and how many there are.
const TELL: &str = "
import fs from 'fs'
import tests from './tests/index.mjs'
import surrogate from './tests/surrogate-control.mjs'
const results = JSON.parse(fs.readFileSync(0))
let count = 0
for (const suite of [...tests, surrogate]) for (const test of suite.tests) {
  if (test.kind === 'check' || test.browser_only) continue
  count++
  const result = results[test.id]
  if (result !== true) console.log(test.id + '\\t' + (result && result[1]))
}
console.log('count\\t' + count)
";

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, dir: &Path, args: &[&str]) -> Result<Output, String> {
    let output = Command::new(program).current_dir(dir).args(args).output();
    let output = output.map_err(|e| format!("there is no {program} here: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Fetches the suite into a directory, with the one package that it needs.
fn fetch(dir: &Path) -> Result<(), String> {
    run("node", dir, &["--version"])?;
    run("npm", dir, &["pack", "--silent", "http-cache-tests@0.4.5"])?;
    run("tar", dir, &["xzf", "http-cache-tests-0.4.5.tgz", "--strip-components=1"])?;
    // It names more, of which it uses one.
    std::fs::remove_file(dir.join("package.json")).map_err(|e| e.to_string())?;
    let flags = ["install", "--silent", "--no-save", "--ignore-scripts", "node-fetch@2"];
    run("npm", dir, &flags).map(drop)
}

fn node(dir: &Path, script: &str) -> Command {
    let mut node = Command::new("node");
    node.current_dir(dir).args(["--no-warnings", script]);
    for of in ["config", "package_config"] {
        // Empty, or it runs the test of that name.
        node.env(format!("npm_{of}_id"), "");
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn the_suite_of_2020_finds_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    if let Err(why) = fetch(dir.path()) {
        println!("SKIP: the suite cannot be fetched: {why}");
        return;
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = node(dir.path(), "server/server.mjs");
    server.env("npm_config_protocol", "http").env("npm_config_port", port.to_string());
    server.env("npm_config_pidfile", dir.path().join("pid")).stdout(Stdio::null());
    let _server = Killed(server.spawn().unwrap());
    let origin = format!("127.0.0.1:{port}");
    origin::until(|| std::net::TcpStream::connect(&origin).is_ok()).await;

    let cache = cache_of(&[&format!("http://{origin}")]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let http = hyper::server::conn::http1::Builder::new();
            let service = TowerToHyperService::new(cache.clone());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    let mut suite = node(dir.path(), "cli.mjs");
    suite.env("npm_config_base", base);
    let results = tokio::task::spawn_blocking(move || suite.output().unwrap()).await.unwrap();
    assert!(results.status.success(), "{}", String::from_utf8_lossy(&results.stderr));

    std::fs::write(dir.path().join("tell.mjs"), TELL).unwrap();
    let results_file = dir.path().join("results.json");
    std::fs::write(&results_file, results.stdout).unwrap();
    let mut tell = node(dir.path(), "tell.mjs");
    let told = tell.stdin(std::fs::File::open(results_file).unwrap()).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let text = String::from_utf8(told.stdout).unwrap();
    let mut failed: BTreeMap<_, _> =
        text.lines().filter_map(|line| line.split_once('\t')).collect();
    assert_eq!(failed.remove("count"), Some("260"));
    let expected: BTreeMap<_, _> = DIFFERENT.iter().copied().collect();
    for (test, why) in &failed {
        assert!(expected.contains_key(test), "{test}: {why}");
    }
    for (test, why) in expected {
        assert!(failed.contains_key(test), "{test} is as it wants now; it was not, as {why}");
    }
}
