//! The packages for crates.io: what is in each is all that its user has.
//!
//! They are unpacked into a workspace of their own, where they find each other by `[patch]`, since
//! none of them need be on crates.io, and are built, tested and documented there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

/// The fields that every package has.
const FILES: [&str; 4] = ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// A package that is to be published.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    library: bool,
}

/// The packages, unpacked.
pub(crate) struct Packages {
    target: PathBuf,
    directory: PathBuf,
    packages: Vec<Package>,
}

impl Packages {
    /// Packs what is to be published in the checkout, and unpacks it anew below `target`.
    pub(crate) fn unpack(
        root: &Path,
        target: &Path,
        show: impl Fn(&mut Command) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let packages = published(root)?;
        let mut pack = Command::new("cargo");
        // A change that is not committed is tried, too. What is packed is built below.
        pack.current_dir(root).args(["package", "--locked", "--allow-dirty", "--no-verify"]);
        pack.arg("--target-dir").arg(target);
        show(pack.args(packages.iter().flat_map(|package| ["-p", &package.name])))?;

        let directory = target.join("packages");
        if directory.exists() {
            std::fs::remove_dir_all(&directory)?;
        }
        std::fs::create_dir_all(&directory)?;
        let mut manifest = String::from("[workspace]\nresolver = \"3\"\nmembers = [\"*-*.*.*\"]\n");
        manifest.push_str("\n[patch.crates-io]\n");
        for package in &packages {
            let name = package.directory();
            let mut tar = Command::new("tar");
            tar.arg("-xzf").arg(target.join(format!("package/{name}.crate")));
            show(tar.arg("-C").arg(&directory))?;
            manifest.push_str(&format!("{} = {{ path = \"{name}\" }}\n", package.name));
        }
        std::fs::write(directory.join("Cargo.toml"), manifest)?;
        // The versions that were tested.
        std::fs::copy(root.join("Cargo.lock"), directory.join("Cargo.lock"))?;
        Ok(Packages { target: target.join("packages-built"), directory, packages })
    }

    /// Fails where one lacks a file that it must have, or has a README that leads out of it.
    pub(crate) fn check_files(&self) -> anyhow::Result<()> {
        for package in &self.packages {
            let at = self.directory.join(package.directory());
            for file in FILES {
                ensure!(at.join(file).is_file(), "{} has no {file}", package.name);
            }
            let readme = std::fs::read_to_string(at.join("README.md"))?;
            let dead = dead(markdown_links(&readme), &at);
            ensure!(dead.is_empty(), "{}: links of README.md lead nowhere: {dead:?}", package.name);
        }
        Ok(())
    }

    /// Returns the commands that check each by itself, with no more features than it asks for, and
    /// try the examples of the libraries.
    pub(crate) fn checks(&self) -> Vec<Command> {
        let mut commands = Vec::new();
        for package in &self.packages {
            commands.push(self.cargo(&["check", "--quiet", "-p", &package.name]));
        }
        let mut examples = self.cargo(&["test", "--quiet", "--doc", "--all-features"]);
        examples.args(self.libraries().flat_map(|package| ["-p", &package.name]));
        commands.push(examples);
        commands
    }

    /// Returns the command that makes the libraries' pages as docs.rs does, without the nightly
    /// compiler's marks.
    pub(crate) fn docs(&self) -> Command {
        let mut doc = self.cargo(&["doc", "--quiet", "--no-deps", "--lib", "--all-features"]);
        doc.args(self.libraries().flat_map(|package| ["-p", &package.name]));
        doc.env("RUSTDOCFLAGS", "-D warnings");
        doc
    }

    /// Fails where a page of a library leads to something that is not there.
    pub(crate) fn check_docs(&self) -> anyhow::Result<()> {
        let pages = self.target.join("doc");
        for package in self.libraries() {
            let directory = pages.join(package.name.replace('-', "_"));
            let mut count = 0;
            check_pages(&directory, &mut count)?;
            ensure!(count > 0, "{} has no pages", directory.display());
        }
        Ok(())
    }

    fn libraries(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|package| package.library)
    }

    fn cargo(&self, arguments: &[&str]) -> Command {
        let mut cargo = Command::new("cargo");
        // The lock file of the checkout also has what is not published.
        cargo.current_dir(&self.directory).args(arguments).arg("--offline");
        cargo.env("CARGO_TARGET_DIR", &self.target).env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo
    }
}

impl Package {
    fn directory(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// Finds the packages that may be published: those without `publish = false`.
fn published(root: &Path) -> anyhow::Result<Vec<Package>> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(root).args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let output = cargo.output().context("cargo metadata")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo knows no packages")?;
    let read = |package: &Value| {
        let targets = package["targets"].as_array()?;
        let library = targets.iter().any(|target| target["kind"][0] == "lib");
        let text = |key: &str| Some(package[key].as_str()?.to_owned());
        Some(Package { name: text("name")?, version: text("version")?, library })
    };
    let publishable = packages.iter().filter(|package| package["publish"].is_null());
    publishable.map(|package| read(package).context("a package without a name")).collect()
}

/// Returns the links of a Markdown text, and its pictures, but for those in blocks of code.
fn markdown_links(text: &str) -> Vec<&str> {
    let mut code = false;
    let mut links = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        links.extend(between(line, "](", ')'));
        links.extend(between(line, "src=\"", '"'));
        links.extend(between(line, "href=\"", '"'));
        if line.starts_with('[') {
            links.extend(line.split_once("]: ").map(|(_, target)| target.trim()));
        }
    }
    links
}

/// Returns what stands between `open` and the next `close`.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| Some(rest.split_once(close)?.0)).collect()
}

/// Returns those links to files, as seen from `directory`, that are not there.
fn dead<'a>(links: impl IntoIterator<Item = &'a str>, directory: &Path) -> Vec<&'a str> {
    let elsewhere = ["http:", "https:", "mailto:", "data:", "javascript:", "#"];
    let links = links.into_iter().filter(|link| !elsewhere.iter().any(|e| link.starts_with(e)));
    links
        .filter(|link| {
            let file = link.split(['#', '?']).next().unwrap_or_default();
            !directory.join(file).exists()
        })
        .collect()
}

/// Checks the links of all pages below a directory, and counts the pages.
fn check_pages(directory: &Path, count: &mut usize) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            check_pages(&path, count)?;
        } else if path.extension().is_some_and(|ending| ending == "html") {
            let page = std::fs::read_to_string(&path)?;
            let mut links = between(&page, "href=\"", '"');
            links.extend(between(&page, " src=\"", '"'));
            // Not those that a script puts together, nor the names of items in the documentation
            // of dependencies' traits: rustdoc itself looks for the items that ours name.
            links.retain(|link| link.contains(['/', '.']) && !link.contains('$'));
            let dead = dead(links, directory);
            if !dead.is_empty() {
                bail!("{}: links lead nowhere: {dead:?}", path.display());
            }
            *count += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_files_that_are_not_there_are_dead() {
        let readme = "[a](LICENSE-MIT) ![p](docs/x.svg)\n```sh\n[no](code)\n```\n\
                      [web](https://docs.rs/sendfile2) [up](#here) <img src=\"y.png\">\n[r]: docs/z.md\n";
        let here = tempfile::tempdir().unwrap();
        std::fs::write(here.path().join("LICENSE-MIT"), "").unwrap();
        let found = dead(markdown_links(readme), here.path());
        assert_eq!(found, ["docs/x.svg", "y.png", "docs/z.md"]);
    }

    #[test]
    fn a_page_with_a_dead_link_is_found() {
        let here = tempfile::tempdir().unwrap();
        let page = here.path().join("index.html");
        std::fs::write(&page, "<a href=\"index.html#top\">").unwrap();
        let mut count = 0;
        check_pages(here.path(), &mut count).unwrap();
        assert_eq!(count, 1);
        std::fs::write(&page, "<a href=\"docs/module.md\">").unwrap();
        let error = check_pages(here.path(), &mut count).unwrap_err();
        assert!(error.to_string().contains("docs/module.md"), "{error}");
    }

    /// The README of the checkout is no part of a package; what it shows is compiled as part of
    /// the library's own.
    #[test]
    fn the_examples_of_the_readme_are_in_the_readme_of_the_library() {
        let root = crate::root().unwrap();
        let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
        let library = std::fs::read_to_string(root.join("crates/sendfile2/README.md")).unwrap();
        let examples = between(&readme, "```rust,no_run\n", '`');
        assert!(!examples.is_empty());
        for example in examples {
            assert!(library.contains(example), "not in crates/sendfile2/README.md:\n{example}");
        }
    }
}
