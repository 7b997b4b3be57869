//! The porting guide's examples, compiled, run, and overtaken: before they are wrong, after they
//! are not. And the manual pages.
#![allow(clippy::unwrap_used)]

mod installed;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use installed::{compile_all, installed, prefix, root, run};

/// The examples of the guide, by name.
fn examples() -> BTreeMap<String, String> {
    let guide = std::fs::read_to_string(root().join("docs/porting.md")).unwrap();
    let mut examples = BTreeMap::new();
    for part in guide.split("<!-- example: ").skip(1) {
        let (name, rest) = part.split_once(" -->").unwrap();
        let (_, code) = rest.split_once("```c\n").unwrap();
        let (code, _) = code.split_once("```").unwrap();
        examples.insert(name.to_owned(), code.to_owned());
    }
    examples
}

#[test]
fn the_guides_servers_before_and_after() {
    let examples = examples();
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    assert_eq!(examples.len(), 6);
    for (name, code) in examples {
        let server = directory.join(format!("{name}.c"));
        std::fs::write(&server, code).unwrap();
        let harness = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/porting.c");
        let program = compile_all(&[&server, &harness]);
        let (_, when) = name.rsplit_once('_').unwrap();
        print!("{name}: ");
        run(installed(program).arg(when));
    }
}

#[test]
fn the_manual_pages_are_sound() {
    let pages =
        ["man1/msg_zerocopy.1", "man3/sendfile2.3", "man3/sendfile2_pwrite.3", "man7/sendfile2.7"];
    let manual = prefix().join("share/man");
    for page in pages {
        let path = manual.join(page);
        assert!(path.exists(), "{page} is not installed");
        match Command::new("mandoc").args(["-T", "lint", "-W", "warning"]).arg(&path).output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && said.is_empty(), "{said}");
            }
            Err(e) => println!("SKIP: manual pages not linted: mandoc: {e}"),
        }
    }
    // Each function has its page, by name; each constant is on the first one.
    let header = std::fs::read_to_string(prefix().join("include/sendfile2.h")).unwrap();
    let page = std::fs::read_to_string(manual.join("man3/sendfile2.3")).unwrap();
    let words: std::collections::BTreeSet<&str> =
        header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let mut functions = 0;
    for word in words {
        let link = manual.join(format!("man3/{word}.3"));
        if header.contains(&format!("{word}(")) && word.starts_with("sendfile2") {
            functions += 1;
            let page = std::fs::read_to_string(link);
            let page = page.unwrap_or_else(|e| panic!("no manual page {word}(3): {e}"));
            assert!(page.contains(word), "{word} is not in {word}(3)");
        }
        if header.contains(&format!("#define {word} ")) {
            assert!(page.contains(word), "{word} is not in sendfile2(3)");
        }
    }
    assert_eq!(functions, 11);
}
