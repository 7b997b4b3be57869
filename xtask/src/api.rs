//! The libraries' public interfaces, as lists in `docs/api`: a change of one is seen in a diff.
//!
//! They are made by cargo-public-api, of what rustdoc says in JSON. The format of that changes from
//! release to release, so that both have a version that is fixed here: the oldest Rust that is
//! promised, and the tool that reads its format.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::guest::cache;
use crate::rust::Toolchain;

/// The release of cargo-public-api that reads what Rust 1.85 writes.
const TOOL: &str = "0.42.0";

/// The libraries. What sendfile2 exports of sendfile2-sys is listed there.
const LIBRARIES: [&str; 3] = ["sendfile2-sys", "sendfile2", "sendfile2-axum"];

/// Write the lists of the libraries' public interfaces, docs/api, anew
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Write nothing, and fail if they are not up to date
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let root = crate::root()?;
    let version = env!("CARGO_PKG_RUST_VERSION");
    let Some(rust) = Toolchain::debian(version)? else {
        println!("SKIP: public interfaces: no package rustc-web of Rust {version} is offered");
        return Ok(());
    };
    let tool = tool()?;
    let target = root.join("target/api");
    let mut changed = Vec::new();
    for library in LIBRARIES {
        let mut rustdoc = rust.cargo(&root, &target);
        // It is a stable release, for which JSON is an experiment.
        rustdoc.env("RUSTC_BOOTSTRAP", "1");
        rustdoc.args(["rustdoc", "--quiet", "--locked", "--lib", "--all-features", "-p", library]);
        rustdoc.args([
            "--",
            "-Zunstable-options",
            "--output-format",
            "json",
            "--cap-lints",
            "allow",
        ]);
        let status = rustdoc.status().context("cargo rustdoc")?;
        ensure!(status.success(), "rustdoc of {library}: {status}");

        let json = target.join(format!("doc/{}.json", library.replace('-', "_")));
        // Without what the compiler derives or adds by itself.
        let mut list = Command::new(&tool);
        list.args(["public-api", "--color", "never", "-sss", "--rustdoc-json"]).arg(json);
        let output = list.stderr(Stdio::inherit()).output().context("cargo-public-api")?;
        ensure!(output.status.success(), "the list of {library}: {}", output.status);
        let path = root.join(format!("docs/api/{library}.txt"));
        let new = String::from_utf8(output.stdout)?;
        ensure!(!new.is_empty(), "the list of {library} is empty");
        let old = std::fs::read_to_string(&path).unwrap_or_default();
        if old == new {
            continue;
        }
        changed.push(library);
        if args.check {
            differences(&old, &new);
        } else {
            std::fs::write(&path, new).with_context(|| path.display().to_string())?;
        }
    }
    ensure!(
        !args.check || changed.is_empty(),
        "the public interface of {changed:?} is not the one of docs/api: if that is meant, run `cargo \
         xtask api`, and tell it in CHANGELOG.md; what is gone breaks programs, and needs a new \
         version (CONTRIBUTING.md)"
    );
    Ok(())
}

/// Shows what is gone, and what is new.
fn differences(old: &str, new: &str) {
    let missing = |from: &str, of: &str, sign| {
        let there: std::collections::HashSet<_> = of.lines().collect();
        for line in from.lines().filter(|line| !there.contains(line)) {
            println!("{sign}{line}");
        }
    };
    missing(old, new, '-');
    missing(new, old, '+');
}

/// Returns the path of cargo-public-api, built if it is not in the cache.
fn tool() -> anyhow::Result<std::path::PathBuf> {
    let at = cache::directory()?.join(format!("cargo-public-api-{TOOL}"));
    if !at.exists() {
        cache::make(&at, |new: &Path| {
            let mut install = Command::new("cargo");
            install.args(["install", "--quiet", "--locked", "cargo-public-api", "--version", TOOL]);
            install.arg("--root").arg(new);
            cache::run(&mut install, "it comes from crates.io")
        })?;
    }
    Ok(at.join("bin/cargo-public-api"))
}
