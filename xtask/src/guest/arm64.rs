//! `guest arm64`: the patch series for another architecture, by a cross compiler.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::kernel::ARM64;
use super::needs::Need;
use super::tables::NUMBER;

/// The patch series for arm64: what it touches compiles, and both tables of calls have sendfile2(2)
///
/// Compiles those files alone, with Debian's cross compiler, and with tasks of 32 bits; each warning
/// is an error. No kernel is linked, and no guest runs.
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) const NEEDS: &[Need] =
    &[("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("readelf", "binutils")];

/// The objects with the tables, and the tables' names.
const TABLES: [(&str, &str); 2] = [
    ("arch/arm64/kernel/sys.o", "sys_call_table"),
    ("arch/arm64/kernel/sys32.o", "compat_sys_call_table"),
];

pub(super) fn run(_: &Args) -> anyhow::Result<()> {
    let kernel = ARM64.compile(&TABLES.map(|(object, _)| object))?;
    for (object, table) in TABLES {
        let said = readelf(&kernel.build.join(object))?;
        entry_of(&said, table).with_context(|| object.to_owned())?;
        println!("{object}: entry {NUMBER} of {table} is {ENTRY}, and no other");
    }
    Ok(())
}

/// Has readelf print an object's symbols and relocations.
fn readelf(object: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("readelf");
    command.args(["--wide", "--syms", "--relocs"]).arg(object).stdin(Stdio::null());
    let output = command.output().context("cannot run readelf (of binutils)")?;
    ensure!(output.status.success(), "readelf {}: {}", object.display(), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The address that the linker puts into the table.
const ENTRY: &str = "__arm64_sys_sendfile2";

/// Checks that the table has the entry at its number, and nowhere else.
fn entry_of(said: &str, table: &str) -> anyhow::Result<()> {
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let (mut begin, mut entries) = (None, Vec::new());
    for line in said.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            // 43: 0000000000000000  4808 OBJECT  GLOBAL DEFAULT    5 sys_call_table
            [_, value, _, "OBJECT", .., name] if name == table => begin = address(value),
            // 0000000000001340  0000003200000101 R_AARCH64_ABS64  0000000000000000 name + 0
            [at, _, "R_AARCH64_ABS64", _, ENTRY, "+", "0"] => entries.push(address(at)),
            _ => {}
        }
    }
    let begin = begin.with_context(|| format!("there is no {table}"))?;
    let right = begin + 8 * u64::from(NUMBER);
    ensure!(
        entries == [Some(right)],
        "{ENTRY} is at {entries:x?} of {table}, which is at {begin:#x}, not at {right:#x} alone"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMBOL: &str =
        "  43: 0000000000001000  4808 OBJECT  GLOBAL DEFAULT    5 sys_call_table\n";

    fn relocation(at: u64, name: &str) -> String {
        format!("{at:016x}  0000003200000101 R_AARCH64_ABS64  0000000000000000 {name} + 0\n")
    }

    #[test]
    fn the_entry_is_at_its_number_and_nowhere_else() {
        let check = |said: String| entry_of(&said, "sys_call_table");
        let (right, other) = (relocation(0x22c0, ENTRY), relocation(0x22b8, "__arm64_sys_x"));
        check(format!("{other}{right}{SYMBOL}")).unwrap();
        check(right.clone()).unwrap_err();
        check(format!("{SYMBOL}{other}")).unwrap_err();
        check(format!("{SYMBOL}{}", relocation(0x22b8, ENTRY))).unwrap_err();
        check(format!("{SYMBOL}{right}{}", relocation(0x22c8, ENTRY))).unwrap_err();
        check(format!("{SYMBOL}{}", relocation(0x22c0, "__arm64_sys_ni_syscall"))).unwrap_err();
    }
}
