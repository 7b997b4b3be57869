//! The promises of the kernel module, each a test. Runs in a guest, as root: loads the module if
//! its path is given, runs itself anew as an ordinary user for what must work for one, and does
//! what needs root itself. The last line has the outcome; so does the exit status.

mod errors;
mod ids;
mod lab;
mod log;
mod release;
mod ring;
mod send;
mod shared;
mod sys;
mod unload;
mod wait;

use std::os::unix::process::CommandExt;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context;
use clap::Parser;
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};
use sendfile2_sys::module::Device;

/// Tests of the kernel module; see the module's page in docs.
#[derive(Debug, Parser)]
struct Options {
    /// The module to load first (and again and again); without it, the one that is loaded is tried,
    /// and stays
    #[arg(long, value_name = "SENDFILE2.KO")]
    module: Option<PathBuf>,
    /// Times that each race is tried
    #[arg(long, default_value_t = 1000)]
    rounds: u32,
    /// Only the tests whose names contain this
    #[arg(long, value_name = "PART", default_value = "")]
    only: String,
    /// Be the process that is to be killed
    #[arg(long, hide = true)]
    victim: Option<ring::Victim>,
}

/// The outcome of a test, unless it panicked.
enum Done {
    Passed,
    Skipped(String),
}

/// The function of a test, which fails by a panic.
#[derive(Debug, Clone, Copy)]
enum Run {
    Plain(fn()),
    With(fn(&Options)),
    MaySkip(fn() -> Done),
}

impl Run {
    fn run(self, options: &Options) -> Done {
        match self {
            Run::Plain(test) => test(),
            Run::With(test) => test(options),
            Run::MaySkip(test) => return test(),
        }
        Done::Passed
    }
}

/// The name and the function of a test.
type Test = (&'static str, Run);

#[derive(Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Tally {
    fn run(&mut self, tests: &[Test], options: &Options) {
        for (name, test) in tests.iter().filter(|(name, _)| name.contains(&options.only)) {
            println!("test {name} ...");
            match catch_unwind(std::panic::AssertUnwindSafe(|| test.run(options))) {
                Ok(Done::Passed) => {
                    self.passed += 1;
                    println!("test {name} ok");
                }
                Ok(Done::Skipped(why)) => {
                    self.skipped += 1;
                    println!("SKIP: {name}: {why}");
                }
                Err(_) => {
                    self.failed += 1;
                    println!("test {name} FAILED");
                }
            }
        }
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    if let Some(victim) = options.victim {
        victim.run();
    }
    let mut tally = Tally::default();
    if geteuid().is_root() {
        as_root(&options, &mut tally)?;
    } else {
        for part in [send::TESTS, errors::TESTS, ids::TESTS, release::TESTS, wait::TESTS] {
            tally.run(part, &options);
        }
        tally.run(ring::TESTS, &options);
        tally.run(shared::TESTS, &options);
    }
    let Tally { passed, failed, skipped } = tally;
    println!("kernel-tests: {passed} passed, {failed} failed, {skipped} skipped");
    // Where only some are asked for, there may be none for this user.
    let any = passed > 0 || !options.only.is_empty();
    Ok(if failed == 0 && any { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_root(options: &Options, tally: &mut Tally) -> anyhow::Result<()> {
    let log = log::Log::begin();
    if let Some(module) = &options.module {
        unload::load(module).with_context(|| module.display().to_string())?;
    }
    // The tests are about what a program may do with the open device, not about who may open it.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(Device::PATH, mode).context(Device::PATH)?;

    tally.run(errors::ROOT_TESTS, options);
    println!("as an ordinary user, with RLIMIT_MEMLOCK at 8 MiB:");
    let mut user = Command::new("/proc/self/exe");
    user.args(["--rounds", &options.rounds.to_string(), "--only", &options.only]);
    user.uid(1000).gid(1000);
    let limit = Rlimit { current: Some(8 << 20), maximum: Some(8 << 20) };
    setrlimit(Resource::Memlock, limit).context("RLIMIT_MEMLOCK")?;
    if user.status()?.success() {
        tally.passed += 1;
    } else {
        tally.failed += 1;
    }
    println!("as root:");
    if options.module.is_some() {
        tally.run(unload::TESTS, options);
    } else {
        println!("SKIP: unloading: no --module was given");
        tally.skipped += 1;
    }
    match log.complaints() {
        Ok(complaints) if complaints.is_empty() => tally.passed += 1,
        Ok(complaints) => {
            tally.failed += 1;
            println!("test the kernel's log is silent FAILED:\n{}", complaints.join("\n"));
        }
        Err(e) => {
            tally.skipped += 1;
            println!("SKIP: the kernel's log: {e}");
        }
    }
    Ok(())
}
