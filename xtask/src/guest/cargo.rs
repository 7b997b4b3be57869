//! Programs of this workspace, built for the guests.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde_json::Value;

/// A program that cargo built.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The name of the binary, or of the test; with the crate's before it where crates have tests of the
    /// same names.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Whether the program is made of tests.
    pub(super) test: bool,
}

/// Builds, and returns the programs: `arguments` are those of `cargo build` or `cargo test --no-run`.
pub(super) fn programs(arguments: &[&str]) -> anyhow::Result<Vec<Program>> {
    println!("$ cargo {}", arguments.join(" "));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(crate::root()?)
        .args(arguments)
        .args(["--locked", "--message-format=json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo {} failed", arguments.join(" "));
    Ok(read(&String::from_utf8_lossy(&output.stdout)))
}

/// Finds a program among them, by its name.
pub(super) fn program<'a>(programs: &'a [Program], name: &str) -> anyhow::Result<&'a Program> {
    let found = programs.iter().find(|program| program.name == name);
    found.with_context(|| format!("cargo built no program {name}"))
}

fn read(messages: &str) -> Vec<Program> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    messages
        .filter_map(|message| {
            let path = message.get("executable")?.as_str()?.into();
            let name = message["target"]["name"].as_str()?;
            // path+file:///crates/PACKAGE#0.2.0
            let package = message["package_id"].as_str()?.rsplit(['/', '#']).nth(1)?;
            let test = message["profile"]["test"].as_bool()?;
            let name = match package.strip_prefix("sendfile2-") {
                Some(package) if test => format!("{package}-{name}"),
                _ => name.to_owned(),
            };
            Some(Program { name, path, test })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_what_cargo_says() {
        let messages = r#"
            {"reason":"compiler-artifact","package_id":"path+file:///c/sendfile2#0.2.0","target":{"name":"lib"},"profile":{"test":false},"executable":null}
            {"reason":"compiler-artifact","package_id":"path+file:///c/sendfile2#0.2.0","target":{"name":"guard"},"profile":{"test":true},"executable":"/t/guard-1"}
            {"reason":"compiler-artifact","package_id":"path+file:///c/sendfile2-axum#0.2.0","target":{"name":"guard"},"profile":{"test":true},"executable":"/t/guard-2"}
            {"reason":"build-finished","success":true}"#;
        let program =
            |name: &str, path: &str| Program { name: name.into(), path: path.into(), test: true };
        let expected = [program("guard", "/t/guard-1"), program("axum-guard", "/t/guard-2")];
        assert_eq!(read(messages), expected);
    }
}
