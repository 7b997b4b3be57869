//! `libsendfile2` as C programs meet it: installed, compiled against, linked, run.
#![allow(clippy::unwrap_used)]

mod installed;

use std::path::Path;
use std::process::Command;

use installed::{compile, installed, pkg_config, prefix, root, run, xtask};

/// Compiles and runs `tests/c/NAME.c`.
fn c_test(name: &str) -> String {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name);
    run(&mut installed(compile(&source.with_extension("c"))))
}

#[test]
fn every_rule_of_sendfile_holds() {
    let cases = c_test("semantics");
    assert!(cases.lines().count() > 30, "too few cases ran");
}

#[test]
fn each_call_that_sends_uses_one_id() {
    c_test("ids");
}

#[test]
fn where_no_call_has_one_id_it_is_refused() {
    c_test("sockmap");
}

#[test]
fn a_call_larger_than_memlock_is_cut_short() {
    c_test("memlock");
}

#[test]
fn the_queue_object_tells_what_is_released() {
    c_test("queue");
}

#[test]
fn an_overwrite_changes_nothing_that_is_in_flight() {
    c_test("pwrite");
}

/// Runs `script` in namespaces of its own, with `$0` the program; says why where that cannot be.
fn unshared(namespaces: &str, directory: &Path, needs: &str, program: &Path) {
    let unshare = |script: &str| {
        let mut command = installed("unshare");
        command.args(["--user", "--map-root-user", namespaces, "sh", "-ec", script]);
        command.arg(program).current_dir(directory);
        command
    };
    match unshare(needs).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("SKIP: {needs}: {}", String::from_utf8_lossy(&output.stderr).trim());
            return;
        }
        Err(e) => {
            println!("SKIP: {needs}: unshare: {e}");
            return;
        }
    }
    run(&mut unshare(&format!("{needs}; exec \"$0\" merged")));
}

#[test]
fn synchronous_sends_are_released_at_return() {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/sync.c"));
    let addresses = "ip link set lo up; ip addr add 10.9.0.1/32 dev lo; \
                     ip addr add 10.9.0.2/32 dev lo";
    unshared("--net", Path::new("."), addresses, &program);
}

#[test]
fn what_a_mapping_would_show_wrongly_is_refused() {
    let program = compile(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/overlay.c"));
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for layer in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(directory.path().join(layer)).unwrap();
    }
    let pattern = |at: u32| {
        let [a, b, ..] = at.to_le_bytes();
        a.wrapping_mul(31) ^ b.wrapping_mul(17) ^ 0x5a
    };
    let bytes: Vec<u8> = (0..5000).map(pattern).collect();
    std::fs::write(directory.path().join("lower/lower"), bytes).unwrap();
    let mount = "mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged";
    unshared("--mount", directory.path(), mount, &program);
}

#[test]
fn the_header_is_what_the_source_says() {
    let output = xtask(&["header", "--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_header_is_c11_and_cxx17() {
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    let empty = "#include <sendfile2.h>\n#include <sendfile2.h>\n#include <fcntl.h>\n\
                 ssize_t (*f)(int, int, loff_t *, size_t, int) = sendfile2;\n";
    for (compiler, standard, file) in [
        ("cc", "-std=c11", "header11.c"),
        ("cc", "-std=gnu11", "header.c"),
        ("c++", "-std=c++17", "header.cc"),
    ] {
        let source = directory.join(file);
        std::fs::write(&source, empty).unwrap();
        run(Command::new(compiler)
            .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"])
            .arg("-I")
            .arg(prefix().join("include"))
            .arg(source));
    }
}

#[test]
fn beside_the_modules_header_it_is_c99() {
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    let (ours, modules) = ("#include <sendfile2.h>\n", "#include \"sendfile2_module.h\"\n");
    for (compiler, standard) in [("cc", "-std=c99"), ("cc", "-std=gnu11"), ("c++", "-std=c++17")] {
        for (name, text) in [("1", format!("{ours}{modules}")), ("2", format!("{modules}{ours}"))] {
            let end = if compiler == "cc" { "c" } else { "cc" };
            let source = directory.join(format!("both{name}{standard}.{end}"));
            let use_of_both = "int both(const struct timespec *);\n\
                 int both(const struct timespec *at) { struct sendfile2_args args; \
                 args.state = SENDFILE2_RELEASED; return sendfile2_queue_wait(0, args.state, at); }\n";
            std::fs::write(&source, text + use_of_both).unwrap();
            run(Command::new(compiler)
                .args([standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"])
                .arg("-I")
                .arg(prefix().join("include"))
                .arg("-I")
                .arg(root().join("kernel/module"))
                .arg(source));
        }
    }
}

/// The names that the header declares.
fn declared() -> Vec<String> {
    let header = std::fs::read_to_string(prefix().join("include/sendfile2.h")).unwrap();
    let mut names: Vec<String> = header
        .lines()
        .filter_map(|line| line.split_once('(').map(|(before, _)| before))
        .filter(|before| !before.starts_with([' ', '/', '#']))
        .filter_map(|before| before.rsplit([' ', '*']).next().map(Into::into))
        .collect();
    names.sort();
    assert!(names.contains(&"sendfile2".into()), "{names:?}");
    names
}

#[test]
fn the_library_exports_what_the_header_declares_by_version() {
    let library = prefix().join("lib/libsendfile2.so");
    let symbols = run(Command::new("objdump").arg("-T").arg(&library));
    let mut exported: Vec<String> = symbols
        .lines()
        .filter(|line| line.contains(" g    DF .text"))
        .map(|line| {
            let [.., version, name] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            assert_eq!(version, "SENDFILE2_0.2", "{name}");
            name.to_owned()
        })
        .collect();
    exported.sort();
    assert_eq!(exported, declared());
    let dynamic = run(Command::new("objdump").arg("-p").arg(&library));
    let soname = dynamic.lines().find(|line| line.contains("SONAME")).unwrap();
    assert!(soname.ends_with(" libsendfile2.so.1"), "{soname}");
}

#[test]
fn a_program_is_linked_statically() {
    let directory = prefix().join("tests");
    std::fs::create_dir_all(&directory).unwrap();
    let source = directory.join("static.c");
    std::fs::write(
        &source,
        "#include <errno.h>\n#include <sendfile2.h>\n\
         int main(void) { return !(sendfile2(-1, -1, 0, 1, SENDFILE_ZC) == -1 && errno == EBADF); }\n",
    )
    .unwrap();
    // As a whole; and with the library alone, where no shared one is beside it.
    let alone = prefix().join("tests/alone");
    std::fs::create_dir_all(&alone).unwrap();
    std::fs::copy(prefix().join("lib/libsendfile2.a"), alone.join("libsendfile2.a")).unwrap();
    for (name, how) in
        [("static", &["-static"][..]), ("static-pie", &["-static-pie"]), ("not", &[])]
    {
        let program = directory.join(name);
        run(Command::new("cc")
            .args(how)
            .arg("-o")
            .arg(&program)
            .arg(&source)
            .arg("-L")
            .arg(&alone)
            .args(pkg_config(&["--static", "--cflags", "--libs"])));
        // Without the shared library's directory.
        run(&mut Command::new(&program));
    }
}

#[test]
fn what_is_installed_is_stripped() {
    for file in ["libsendfile2.a", "libsendfile2.so", "libsendfile2_preload.so"] {
        let path = prefix().join("lib").join(file);
        let sections = run(Command::new("objdump").arg("-h").arg(&path));
        assert!(sections.contains(".text") && !sections.contains(".debug_line"), "{file}");
    }
}

#[test]
fn the_manual_pages_refer_to_pages_that_there_are() {
    let manual = prefix().join("share/man");
    for section in ["man3", "man7"] {
        for entry in std::fs::read_dir(manual.join(section)).unwrap() {
            let path = entry.unwrap().path();
            let page = std::fs::read_to_string(&path).unwrap();
            let (_, also) = page.split_once("SEE ALSO").unwrap_or_else(|| panic!("{path:?}"));
            // References to pages of ours; each section of sendfile2 but the page's own is named.
            let referred: Vec<String> = also
                .lines()
                .filter_map(|line| {
                    let line = line.replace("\\fB", ".Xr ").replace("\\fR(", " ").replace(')', "");
                    let mut words = line.trim_end_matches([',', ' ']).split(' ').map(String::from);
                    let (xr, name, section) = (words.next()?, words.next()?, words.next()?);
                    (xr == ".Xr" && name.contains("sendfile2")).then(|| format!("{name}.{section}"))
                })
                .collect();
            assert!(!referred.is_empty(), "{path:?}");
            for page in referred {
                let (_, section) = page.rsplit_once('.').unwrap();
                // The command makes its own.
                assert!(
                    section == "1" || manual.join(format!("man{section}/{page}")).exists(),
                    "{path:?}: {page}"
                );
            }
        }
    }
    for (page, others) in [("man3/sendfile2.3", ["1", "7"]), ("man7/sendfile2.7", ["1", "3"])] {
        let text = std::fs::read_to_string(manual.join(page)).unwrap();
        let also = text.split_once("SEE ALSO").unwrap().1;
        for section in others {
            assert!(also.contains(&format!("sendfile2 {section}")), "{page}: {section}");
        }
    }
}

#[test]
fn where_the_dynamic_linker_does_not_look_it_is_said() {
    // Elsewhere, as the other tests use what is there.
    let elsewhere = prefix().join("tests/elsewhere");
    let output = xtask(&["install", "--prefix", elsewhere.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let library = format!("LD_LIBRARY_PATH={}", elsewhere.join("lib").display());
    assert!(said.contains(&library), "{said}");
}
