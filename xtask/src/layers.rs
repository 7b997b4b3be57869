//! `cargo xtask layers`: the uses of the library's modules of each other, and a check that no arrow
//! runs up.
//!
//! A room is a module at the top of `crates/sendfile2/src`; a module uses only rooms that stand
//! above its own in [`ROOMS`], and what is in its own room. No modules use each other in a circle,
//! within a room either, and none has more than [`LONGEST`] lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use syn::visit::{self, Visit};

/// The rooms of the library, lowest layer first.
const ROOMS: &[&str] = &[
    "sync",
    "apart",
    "aside",
    "trace",
    "flags",
    "deadline",
    "refusal",
    "engine",
    "not_detached",
    "error",
    "policy",
    "streams",
    "native",
    "park",
    "progress",
    "queued",
    "source",
    "detach",
    "socket",
    "mtu",
    "holder",
    "wait",
    "ticket",
    "transfer",
    "send_buffer",
    "conn",
    "send",
    "reaper",
    "guard",
    "uring",
    "sender",
    "tokio",
    "probe",
];

/// The most lines a file of the library has.
const LONGEST: usize = 500;

/// Show which modules of the library use which, and fail where one uses what stands above it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print each arrow, too
    #[arg(long)]
    arrows: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let graph = Graph::read(&crate::root()?.join("crates/sendfile2/src"))?;
    if args.arrows {
        for (from, to) in graph.arrows() {
            println!("{from} -> {to}");
        }
    }
    let up = graph.upward(ROOMS);
    for (from, to) in &up {
        println!("up: {from} -> {to}");
    }
    let circles = graph.circles();
    for circle in &circles {
        println!("circle: {}", circle.iter().cloned().collect::<Vec<_>>().join(", "));
    }
    for (module, lines) in graph.lines.iter().filter(|(_, lines)| **lines > LONGEST) {
        println!("long: {module} has {lines} lines, {LONGEST} are the most");
    }
    let unknown: Vec<_> = graph.rooms().filter(|room| !ROOMS.contains(&&**room)).collect();
    ensure!(unknown.is_empty(), "no floor is known of the rooms {unknown:?}: add them to ROOMS");
    let longest = graph.lines.values().max().copied().unwrap_or(0);
    println!(
        "{} modules, {} arrows, {} run up, {} circles, the longest file has {longest} lines",
        graph.lines.len(),
        graph.arrows().count(),
        up.len(),
        circles.len(),
    );
    ensure!(
        up.is_empty() && circles.is_empty() && longest <= LONGEST,
        "the library's modules are tied together (see above)"
    );
    Ok(())
}

/// Modules by their path within the crate (`uring::driver`), and what they use.
#[derive(Debug, Default)]
struct Graph {
    uses: BTreeMap<String, BTreeSet<String>>,
    lines: BTreeMap<String, usize>,
}

impl Graph {
    fn read(src: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        find(src, &mut files)?;
        let mut graph = Graph::default();
        let mut raw = Vec::new();
        for file in files {
            let within = file.strip_prefix(src)?.with_extension("");
            let mut module: Vec<_> =
                within.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") {
                module.pop();
            }
            // The crate's root names everything, and tests may use everything.
            if module == ["lib"] || module.iter().any(|part| part == "tests") {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
            let mut paths = Paths { module: module.clone(), found: Vec::new() };
            paths.visit_file(&parsed);
            graph.lines.insert(module.join("::"), text.lines().count());
            raw.push((module.join("::"), paths.found));
        }
        for (from, found) in raw {
            let uses: BTreeSet<_> = found
                .iter()
                .filter_map(|path| graph.module(path))
                .filter(|to| *to != from)
                .collect();
            graph.uses.insert(from, uses);
        }
        Ok(graph)
    }

    /// Returns the module that a path names, or that has what it names.
    fn module(&self, path: &[String]) -> Option<String> {
        let longest = (1..=path.len()).rev().map(|len| path[..len].join("::"));
        longest.into_iter().find(|name| self.lines.contains_key(name))
    }

    fn arrows(&self) -> impl Iterator<Item = (&String, &String)> {
        self.uses.iter().flat_map(|(from, uses)| uses.iter().map(move |to| (from, to)))
    }

    fn rooms(&self) -> impl Iterator<Item = String> {
        let rooms: BTreeSet<_> = self.lines.keys().map(|module| room(module).to_owned()).collect();
        rooms.into_iter()
    }

    /// The arrows to a room that stands higher.
    fn upward(&self, rooms: &[&str]) -> Vec<(String, String)> {
        let floor = |module: &str| rooms.iter().position(|known| *known == room(module));
        self.arrows()
            .filter(|(from, to)| floor(to) > floor(from))
            .map(|(from, to)| (from.clone(), to.clone()))
            .collect()
    }

    /// Sets of modules each of which reaches each other.
    fn circles(&self) -> Vec<BTreeSet<String>> {
        let reach: BTreeMap<_, _> = self.lines.keys().map(|m| (m.clone(), self.reach(m))).collect();
        let mut circles = BTreeSet::new();
        for module in self.lines.keys().filter(|m| reach[*m].contains(*m)) {
            let back = |other: &&String| reach[*other].contains(module);
            circles.insert(reach[module].iter().filter(back).cloned().collect::<BTreeSet<_>>());
        }
        circles.into_iter().collect()
    }

    fn reach(&self, from: &str) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        let mut next = vec![from.to_owned()];
        while let Some(module) = next.pop() {
            for to in self.uses.get(&module).into_iter().flatten() {
                if reached.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        reached
    }
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or(module)
}

fn find(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// The paths of a module's code that begin in its crate, from the crate's root on.
struct Paths {
    module: Vec<String>,
    found: Vec<Vec<String>>,
}

impl Paths {
    /// Notes a path, if it is one within the crate.
    fn note(&mut self, path: &[String]) {
        let (first, rest) = match path.split_first() {
            Some((first, rest)) => (first.as_str(), rest),
            None => return,
        };
        let base = match first {
            "crate" => Vec::new(),
            "self" => self.module.clone(),
            "super" => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            _ => return,
        };
        let whole = [base, rest.to_vec()].concat();
        if first == "super" && rest.first().is_some_and(|part| part == "super") {
            let up = self.module[..self.module.len().saturating_sub(2)].to_vec();
            self.found.push([up, rest[1..].to_vec()].concat());
        } else {
            self.found.push(whole);
        }
    }

    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) if name.ident == "self" => self.note(before),
            syn::UseTree::Name(name) => self.note(&with(&name.ident)),
            syn::UseTree::Rename(rename) if rename.ident == "self" => self.note(before),
            syn::UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            syn::UseTree::Glob(_) => self.note(before),
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(before, tree);
                }
            }
        }
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|name| name == "test")
    })
}

impl<'a> Visit<'a> for Paths {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let parts: Vec<_> = path.segments.iter().map(|part| part.ident.to_string()).collect();
        if parts.len() > 1 {
            self.note(&parts);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(files: &[(&str, &str)]) -> Graph {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Graph::read(directory.path()).unwrap()
    }

    #[test]
    fn arrows_that_run_up_are_seen() {
        let graph = graph(&[
            ("low.rs", "use crate::high::Thing;"),
            ("high/mod.rs", "mod part; use crate::low::{self, Other};"),
            ("high/part.rs", "fn f() -> crate::low::Other { super::super::low::f() }"),
        ]);
        let up = graph.upward(&["low", "high"]);
        assert_eq!(up, [("low".to_owned(), "high".to_owned())]);
        assert_eq!(graph.upward(&["high", "low"]).len(), 2);
        assert_eq!(graph.circles().len(), 1);
    }

    #[test]
    fn what_runs_down_only_is_no_circle() {
        let graph = graph(&[
            ("low.rs", "pub struct Other;"),
            ("high/mod.rs", "mod part; use self::part::Part; use crate::low::Other;"),
            (
                "high/part.rs",
                "use crate::low::Other;\n#[cfg(test)] mod tests { use super::super::X; }",
            ),
            ("high/tests.rs", "use super::*; use crate::high::part;"),
        ]);
        assert!(graph.circles().is_empty(), "{graph:?}");
        assert!(graph.upward(&["low", "high"]).is_empty());
    }

    #[test]
    fn the_library_runs_down() {
        run(&Args { arrows: false }).unwrap();
    }
}
