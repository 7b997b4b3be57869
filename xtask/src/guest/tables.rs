//! The tables of system calls of every architecture, as the kernel's own scripts make them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::cache;

/// The number of sendfile2(2), and on alpha, where all newer ones are 110 higher.
pub(super) const NUMBER: u32 = 600;
const ON_ALPHA: u32 = 710;

/// Makes the headers of numbers and the tables of calls of each architecture from a tree with the
/// series, and checks that sendfile2(2) has one number in each header and one entry in each table,
/// which no other call has; for compat tasks, too.
pub(super) fn check(tree: &Path) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let (mut headers, mut tables) = (0, 0);
    for entry in std::fs::read_dir(tree.join("arch"))? {
        let path = entry?.path();
        let arch = path.file_name().and_then(|name| name.to_str()).context("a strange name")?;
        // User-mode Linux has those of x86.
        if !path.is_dir() || arch == "um" {
            continue;
        }
        let build = directory.path().join(arch);
        generate(tree, arch, &build)?;
        let number = if arch == "alpha" { ON_ALPHA } else { NUMBER };
        let mut found = (0, 0);
        for file in files(&build)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = std::fs::read_to_string(&file)?;
            let at = || file.strip_prefix(&build).unwrap_or(&file).display().to_string();
            if text.contains("SYSCALL(") {
                entry_of(&text, number).with_context(at)?;
                found.1 += 1;
            } else if name.starts_with("unistd") && text.contains("_mseal ") {
                number_of(&text, number).with_context(at)?;
                found.0 += 1;
            }
        }
        ensure!(found.0 > 0 && found.1 > 0, "{arch}: no header of numbers, or no table was made");
        headers += found.0;
        tables += found.1;
    }
    println!("sendfile2(2): once in each of {headers} headers of numbers and {tables} tables");
    Ok(())
}

/// Has the kernel make what it makes of the tables of an architecture; neither a compiler for that
/// nor a configuration is needed.
fn generate(tree: &Path, arch: &str, build: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(build)?;
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(tree).arg(format!("ARCH={arch}"));
    make.arg(format!("O={}", build.display()));
    make.args(["archheaders", "uapi-asm-generic", "asm-generic"]);
    // Makefiles ask this machine's compiler things that it does not know.
    make.stderr(Stdio::null());
    cache::run(&mut make, &format!("the headers of {arch} are made"))?;
    // These two make their tables only where they are configured.
    let script = match arch {
        "arm" => {
            "for abi in oabi eabi; do
                sh scripts/syscalltbl.sh --abis common,$abi arch/arm/tools/syscall.tbl \"$1/$abi.h\"
            done"
        }
        "s390" => {
            "cd arch/s390/kernel/syscalls
            sh ./syscalltbl -S < syscall.tbl > \"$1/table.h\""
        }
        _ => return Ok(()),
    };
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).arg(build).current_dir(tree);
    cache::run(&mut command, &format!("the table of {arch} is made"))
}

/// Returns the headers below a directory.
fn files(below: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(below)? {
        let entry = entry?;
        let path = entry.path();
        // Not through the link to the source.
        if entry.file_type()?.is_dir() {
            files.extend(self::files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "h") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Checks a header: `#define __NR_name number`, with or without a base that is added.
fn number_of(header: &str, number: u32) -> anyhow::Result<()> {
    let mut names: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for line in header.lines() {
        let Some((name, value)) =
            line.strip_prefix("#define __NR_").and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        let digits = value.trim_end_matches(')').rsplit(' ').next().unwrap_or_default();
        names.entry(digits.parse().with_context(|| line.to_owned())?).or_default().push(name);
    }
    let all = names.values().flatten().filter(|name| name.ends_with("sendfile2")).count();
    let own = names.get(&number).map(Vec::as_slice).unwrap_or_default();
    ensure!(
        all == 1 && own.len() == 1 && own[0].ends_with("sendfile2"),
        "{number} is the number of {own:?}; {all} numbers of sendfile2"
    );
    Ok(())
}

/// Checks a table: `__SYSCALL(number, native)`, or with the entry for compat tasks; on s390 they
/// are not numbered.
fn entry_of(table: &str, number: u32) -> anyhow::Result<()> {
    let is_entry = |line: &&str| {
        line.starts_with("__SYSCALL") || line.starts_with("SYSCALL(") || *line == "NI_SYSCALL"
    };
    let entries: Vec<_> = table.lines().filter(is_entry).collect();
    let own: Vec<_> = entries.iter().filter(|line| line.contains("sys_sendfile2")).collect();
    let numbered = format!("__SYSCALL({number}, sys_sendfile2)");
    let at = entries.iter().position(|line| *line == "SYSCALL(sys_sendfile2,sys_sendfile2)");
    let right = match at {
        Some(at) => at == number as usize,
        None => {
            let begins = format!("({number}, ");
            entries.iter().copied().filter(|line| line.contains(&begins)).eq([&*numbered])
        }
    };
    ensure!(right && own.len() == 1, "the entries of sendfile2 are {own:?}, not one at {number}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_sendfile2s_alone() {
        let header = |text: &str| number_of(&format!("#define __NR_mseal 462\n{text}\n"), 600);
        header("#define __NR_sendfile2 600\n#define __NR_syscalls 601").unwrap();
        header("#define __NR_sendfile 100\n#define __NR_compat32_sendfile2 600").unwrap();
        header("#define __NR_sendfile2 (__NR_Linux + 600)").unwrap();
        header("").unwrap_err();
        header("#define __NR_sendfile2 463").unwrap_err();
        header("#define __NR_sendfile2 600\n#define __NR_other 600").unwrap_err();
        header("#define __NR_sendfile2 600\n#define __NR_x_sendfile2 601").unwrap_err();
    }

    #[test]
    fn an_entry_is_the_native_one_for_compat_tasks_too() {
        let table = |text: &str| entry_of(text, 2);
        table("__SYSCALL(1, sys_a)\n__SYSCALL(2, sys_sendfile2)").unwrap();
        table("NI_SYSCALL\nSYSCALL(sys_b,sys_ni)\nSYSCALL(sys_sendfile2,sys_sendfile2)").unwrap();
        table("SYSCALL(sys_a,sys_a)\nSYSCALL(sys_sendfile2,sys_sendfile2)").unwrap_err();
        table("__SYSCALL(1, sys_sendfile2)").unwrap_err();
        table("__SYSCALL(2, sys_sendfile2)\n__SYSCALL(2, sys_a)").unwrap_err();
        table("__SYSCALL_WITH_COMPAT(2, sys_sendfile2, compat_sys_sendfile)").unwrap_err();
    }
}
