//! `sendfile2 probe` of programs and processes.
#![allow(clippy::unwrap_used)]

mod programs;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use programs::Kind;
use serde_json::Value;

fn probe(args: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
    let output = command.arg("probe").args(args).arg("--json").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn of_program(path: &Path) -> Value {
    probe(&["--program", path.to_str().unwrap()])["program"].clone()
}

#[test]
fn each_kind_of_program_is_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, linked, libc, go, calls, why_not) in [
        (Kind::Dynamic, "dynamically", "glibc", false, "yes", None),
        (Kind::Static, "statically", "", false, "unknown", Some("linked statically")),
        (Kind::StaticMusl, "statically", "", false, "unknown", Some("linked statically")),
        (Kind::DynamicMusl, "dynamically", "musl", false, "yes", Some("linked with musl")),
        (Kind::Go, "statically", "", true, "unknown", Some("Go makes system calls itself")),
    ] {
        let Some(path) = kind.compile("waits", directory.path()) else { continue };
        let program = of_program(&path);
        let executable = &program["executable"];
        assert_eq!(executable["linked"], linked, "{kind:?}: {program}");
        assert_eq!(executable["libc"].as_str().unwrap_or_default(), libc, "{kind:?}: {program}");
        assert_eq!(executable["go"], go, "{kind:?}: {program}");
        assert_eq!(executable["privileged"], false, "{kind:?}: {program}");
        assert_eq!(program["calls_sendfile"], calls, "{kind:?}: {program}");
        assert_eq!(executable["shim_takes_hold"], why_not.is_none(), "{kind:?}: {program}");
        let told = executable["why_not"].as_str().unwrap_or_default();
        assert!(told.contains(why_not.unwrap_or_default()), "{kind:?}: {program}");
    }
}

#[test]
fn a_stripped_go_program_is_one_still() {
    let directory = tempfile::tempdir().unwrap();
    let Some(path) = Kind::Go.compile("waits", directory.path()) else { return };
    let stripped = directory.path().join("stripped");
    let mut strip = Command::new("objcopy");
    strip.args(["--strip-all", "--strip-section-headers"]).arg(&path).arg(&stripped);
    if !strip.output().is_ok_and(|output| output.status.success()) {
        println!("SKIP: this objcopy keeps section headers; only the symbols are stripped");
        let done = Command::new("strip").arg(&path).arg("-o").arg(&stripped).status();
        assert!(done.unwrap().success());
    }
    assert_eq!(of_program(&stripped)["executable"]["go"], true);
}

#[test]
fn a_setuid_program_is_not_covered() {
    let directory = tempfile::tempdir().unwrap();
    let path = Kind::Dynamic.compile("waits", directory.path()).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)).unwrap();
    let program = of_program(&path);
    assert_eq!(program["executable"]["privileged"], true, "{program}");
    assert_eq!(program["executable"]["shim_takes_hold"], false, "{program}");
}

#[test]
fn a_script_is_as_its_interpreter() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("script");
    for (line, interpreter) in [("#!/bin/sh -e\n", "/bin/sh"), ("#!/usr/bin/env -S cat\n", "/cat")]
    {
        std::fs::write(&path, line).unwrap();
        let program = of_program(&path);
        assert!(program["interpreter"].as_str().unwrap().ends_with(interpreter), "{program}");
        assert_eq!(program["executable"]["linked"], "dynamically", "{program}");
        assert_eq!(program["calls_sendfile"], "not itself", "{program}");
    }
}

#[test]
fn what_is_no_program_is_refused_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("text");
    std::fs::write(&path, "no program").unwrap();
    for (path, said) in [
        (path.to_str().unwrap(), "is no program of Linux"),
        ("no-such-program", "there is no no-such-program"),
        ("/", "is not a file"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendfile2"));
        let output = command.args(["probe", "--program", path]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(said) && text.contains(path), "{text}");
    }
}

/// Returns what `probe --pid` says of a program that runs with these variables.
fn running(program: &Path, variables: &[(&str, &str)]) -> Value {
    let mut command = Command::new(program);
    command.env_remove("LD_PRELOAD").envs(variables.iter().copied());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "-1\n", "{program:?}");
    let process = probe(&["--pid", &child.id().to_string()])["process"].clone();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    process
}

/// The shim's place is taken by a library of its name: what is looked at is whether it is loaded.
#[test]
fn a_process_that_has_the_shim_is_told_from_one_that_has_not() {
    let directory = tempfile::tempdir().unwrap();
    let shim = directory.path().join("libsendfile2_preload.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-x", "c", "/dev/null", "-o"]).arg(&shim);
    assert!(cc.status().unwrap().success());
    let shim = shim.to_str().unwrap();
    let path = Kind::Dynamic.compile("waits", directory.path()).unwrap();
    for (variables, mode, protected) in [
        (&[][..], None, false),
        (&[("LD_PRELOAD", shim)], Some("safe"), true),
        (&[("LD_PRELOAD", shim), ("SENDFILE2_MODE", " Notify")], Some("notify"), true),
        (&[("LD_PRELOAD", shim), ("SENDFILE2_MODE", "off")], Some("off"), false),
    ] {
        let process = running(&path, variables);
        assert_eq!(process["shim"].as_str(), mode, "{process}");
        assert_eq!(process["protected"], protected, "{process}");
        assert_eq!(process["calls_sendfile"], "yes", "{process}");
    }
    for kind in [Kind::Static, Kind::StaticMusl, Kind::Go] {
        let Some(path) = kind.compile("waits", directory.path()) else { continue };
        let process = running(&path, &[("LD_PRELOAD", shim)]);
        assert!(process["shim"].is_null(), "{kind:?}: {process}");
        assert_eq!(process["protected"], false, "{kind:?}: {process}");
    }
}

#[test]
fn the_shim_is_found_wherever_it_is_installed() {
    let multiarch = format!("lib/{}-linux-gnu", std::env::consts::ARCH);
    let debian = format!("{multiarch}/sendfile2");
    for at in ["lib", "lib64", &multiarch, &debian] {
        let prefix = tempfile::tempdir().unwrap();
        let own = prefix.path().join("bin/sendfile2");
        let shim = prefix.path().join(at).join("libsendfile2_preload.so");
        for file in [&own, &shim] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        }
        std::fs::copy(env!("CARGO_BIN_EXE_sendfile2"), &own).unwrap();
        let mut cc = Command::new("cc");
        // It is told by its libc.
        let source = prefix.path().join("shim.c");
        std::fs::write(&source, "int puts(const char *); int f(void) { return puts(\"\"); }")
            .unwrap();
        cc.args(["-shared", "-fPIC", "-o"]).args([&shim, &source]);
        assert!(cc.status().unwrap().success());
        let told = Command::new(&own).args(["probe", "--program", "ls"]).output().unwrap();
        let told: String = String::from_utf8_lossy(&told.stdout).split_whitespace().collect();
        assert!(told.contains(&format!("LD_PRELOAD={}", shim.display())), "{at}: {told}");
    }
}

/// The function is imported by the interpreter's library, or by the interpreter.
#[test]
fn a_library_that_calls_sendfile_counts_for_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let library = directory.path().join("libcalls.so");
    let source = directory.path().join("calls.c");
    std::fs::write(
        &source,
        "int sendfile(int, int, long *, long);\n\
        int calls(void) { return sendfile(-1, -1, 0, 0); }\n",
    )
    .unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-w"]).arg(&source).arg("-o").arg(&library);
    assert!(cc.status().unwrap().success());
    let mut command = Command::new("sleep");
    command.arg("600").env("LD_PRELOAD", &library);
    let mut child = command.spawn().unwrap();
    // Until the library is loaded.
    let calls = (0..10_000).any(|_| {
        let process = probe(&["--pid", &child.id().to_string()])["process"].clone();
        process["calls_sendfile"] == "yes"
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(calls);
}
