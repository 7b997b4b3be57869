//! `sendfile2 probe`: what this machine allows, and why.

mod executable;
mod process;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::ValueHint;
use sendfile2::probe::{Availability, Destination, Detaches, File, IoUring, Machine};
use sendfile2::{Sender, probe};
use sendfile2_sys::shim::{Count, Counted};
use serde_json::{Value, json};

pub(crate) use self::executable::preload;
use self::executable::{Executable, Program, SHIM, shim};
use self::process::Process;
use crate::net::{self, Address};
use crate::output;

/// The timeout of connecting to the destination.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Show what this machine allows, engine by engine, and why
///
/// Each engine is tried, and not guessed from the kernel's version: zerocopy by one byte over a
/// connection of its own on loopback. With a destination, the command connects to it, shows which
/// engine auto would take for sends of which size, and resets the connection without sending
/// anything. With a file, it shows whether the file would be mapped or read. With a program, or a
/// process that runs, it shows whether its sendfile(2) is made safe, by what, or why not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 probe                        the machine
  sendfile2 probe example.org:9000       and what auto would do for that destination
  sendfile2 probe --file disk.img        and how that file would be sent
  sendfile2 probe --program nginx        whether the preload shim takes hold of a program
  sendfile2 probe --pid 4711             and whether it is in a process that runs
  sendfile2 probe --json | jq '.engines[] | {engine, state}'")]
pub(crate) struct Args {
    /// A destination to connect to, or unix:PATH, or unix:@NAME (an abstract socket)
    #[arg(value_name = "HOST:PORT", value_parser = net::destination)]
    destination: Option<Address>,
    /// A file that is to be sent
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// A program whose sendfile(2) is to be safe; looked for in PATH if it has no slash
    #[arg(long, value_name = "PROGRAM", value_hint = ValueHint::CommandName)]
    program: Option<PathBuf>,
    /// A process that runs
    #[arg(long, value_name = "PID", conflicts_with = "program")]
    pid: Option<u32>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let file = match &args.file {
        None => None,
        Some(path) => {
            let source = output::open(path)?;
            Some((path, probe::file(&source)?, probe::detaches(&source)))
        }
    };
    let destination = match &args.destination {
        None => None,
        Some(address) => {
            let sender = Sender::new(address.connect(CONNECT_TIMEOUT)?)
                .with_context(|| format!("cannot send to {address}"))?;
            Some((address, probe::destination(&sender)))
        }
    };
    let program = args.program.as_deref().map(Program::find).transpose()?;
    let process = args.pid.map(Process::find).transpose()?;
    let machine = probe::machine();
    let advice: Vec<String> = machine
        .advice()
        .into_iter()
        .chain(file.as_ref().and_then(|(_, file, _)| file.advice()))
        .map(|advice| advice.to_string())
        .collect();

    if args.json {
        let report = json!({
            "kernel": machine.kernel,
            "engines": engines(&machine),
            "limits": limits(&machine),
            "io_uring": io_uring(machine.io_uring),
            "user_namespaces": machine.user_namespaces,
            "destination": destination.map(|(address, d)| as_json_destination(address, &d)),
            "file": file.map(|(path, f, d)| as_json_file(&path.display().to_string(), &f, &d)),
            "program": program.as_ref().map(as_json_program),
            "process": process.as_ref().map(as_json_process),
            "advice": advice,
        });
        return output::print(&format!("{report}\n"));
    }
    let mut text = machine.to_string();
    if let Some((address, destination)) = destination {
        text += &format!("\nDestination {address}\n{destination}");
    }
    if let Some((path, file, detaches)) = file {
        text += &format!("\nFile {}\n{file}", path.display());
        text += &format!("  {:<20} {detaches}\n", "detaches");
    }
    if let Some(program) = program {
        text += &of_program(&program);
    }
    if let Some(process) = process {
        text += &of_process(&process);
    }
    text += "\nAdvice\n";
    if advice.is_empty() {
        text += "  nothing needs to be changed\n";
    }
    for advice in advice {
        let options = textwrap::Options::new(output::width())
            .initial_indent("  - ")
            .subsequent_indent("    ");
        text += &textwrap::fill(&advice, options);
        text.push('\n');
    }
    output::print(&text)
}

/// The protection of a program that cannot have the shim.
const WITHOUT_THE_SHIM: &str = "`sendfile2 run`, where the kernel can (Linux 5.19); or switch sendfile off \
    in its configuration, or overwrite by `sendfile2 write` or sendfile2_pwrite(3), which harm nothing \
    that is in flight";

/// The line of a section, wrapped.
fn line(name: &str, text: &str) -> String {
    let options = textwrap::Options::new(output::width().max(60))
        .initial_indent("  ")
        .subsequent_indent("                       ");
    textwrap::fill(&format!("{name:<20} {text}"), options) + "\n"
}

fn of_program(program: &Program) -> String {
    let path = program.path.display();
    let mut text = format!("\nProgram {path}\n");
    if let Some(interpreter) = &program.interpreter {
        text += &line("a script, run by", &interpreter.display().to_string());
    }
    text += &program.executable.to_string();
    text += &line("calls sendfile", &program.executable.calls.to_string());
    match program.executable.uncovered() {
        None => {
            let shim = shim_of(&program.executable);
            text + &line("protected by", &format!("the shim: LD_PRELOAD={shim} {path}"))
        }
        Some(why) => {
            text + &line("the shim", &format!("does not take hold: {why}"))
                + &line("protected by", WITHOUT_THE_SHIM)
        }
    }
}

/// The shim for a program that it takes hold of; its name, where it is not beside this command.
fn shim_of(executable: &Executable) -> String {
    executable.libc.and_then(shim).map_or(SHIM.into(), |path| path.display().to_string())
}

fn of_process(process: &Process) -> String {
    let mut text = format!("\nProcess {} ({})\n", process.id, process.path.display());
    text += &process.executable.to_string();
    text += &line("calls sendfile", &process.calls.to_string());
    text += &line(
        "the shim",
        &process.shim.map_or("not loaded".into(), |mode| format!("loaded, mode {}", mode.name())),
    );
    if let Some(counted) = &process.counted {
        text += &line("so far", &counted.to_string());
    }
    let protected = match (process.is_protected(), process.executable.uncovered()) {
        (true, _) => "by the shim".into(),
        _ if process.supervised => "by `sendfile2 run`".into(),
        (false, Some(why)) => format!("no: {why}. Start it again by {WITHOUT_THE_SHIM}"),
        (false, None) if process.shim.is_some() => {
            "no: SENDFILE2_MODE is off; start it again without that".into()
        }
        (false, None) => {
            format!("no: start it again with LD_PRELOAD={}", shim_of(&process.executable))
        }
    };
    text + &line("protected", &protected)
}

fn as_json_executable(executable: &Executable) -> Value {
    let uncovered = executable.uncovered();
    json!({
        "linked": if executable.libc.is_some() { "dynamically" } else { "statically" },
        // null: not known of what is linked statically.
        "libc": executable.libc.map(|libc| libc.to_string()),
        "go": executable.go,
        "privileged": executable.privileged,
        "shim_takes_hold": uncovered.is_none(),
        "why_not": uncovered.map(|why| why.to_string()),
    })
}

fn as_json_program(program: &Program) -> Value {
    json!({
        "path": program.path.display().to_string(),
        // null: it is no script.
        "interpreter": program.interpreter.as_ref().map(|path| path.display().to_string()),
        "executable": as_json_executable(&program.executable),
        "calls_sendfile": program.executable.calls.name(),
    })
}

fn as_json_process(process: &Process) -> Value {
    json!({
        "pid": process.id,
        "path": process.path.display().to_string(),
        "executable": as_json_executable(&process.executable),
        "calls_sendfile": process.calls.name(),
        // null: it is not loaded.
        "shim": process.shim.map(process::Mode::name),
        // null: it is not loaded, or its memory cannot be read.
        "counted": process.counted.as_ref().map(as_json_counted),
        "supervised": process.supervised,
        "protected": process.is_protected() || process.supervised,
    })
}

fn as_json_counted(counted: &Counted) -> Value {
    json!({
        "safe": counted.of(Count::Safe),
        "safe_bytes": counted.of(Count::SafeBytes),
        "notified": counted.of(Count::Notified),
        "notified_bytes": counted.of(Count::NotifiedBytes),
        "passed_on_off": counted.of(Count::Off),
        "passed_on_no_socket": counted.of(Count::NoSocket),
        "passed_on_no_pages": counted.of(Count::NoPages),
        "failed": counted.of(Count::Failed),
    })
}

fn engines(machine: &Machine) -> Vec<Value> {
    let engine = |state: &probe::EngineState| {
        let (name, why) = match &state.availability {
            Availability::Available(how) => ("available", how),
            Availability::Refused(why) => ("refused", why),
            Availability::Untried(why) => ("untried", why),
            // A state that is newer than this program: its text says all.
            other => return json!({ "engine": state.engine.name(), "why": other.to_string() }),
        };
        json!({ "engine": state.engine.name(), "state": name, "why": why })
    };
    machine.engines.iter().map(engine).collect()
}

fn limits(machine: &Machine) -> Value {
    let limits = &machine.limits;
    json!({
        // null: unlimited.
        "memlock_soft": limits.memlock.soft,
        "memlock_hard": limits.memlock.hard,
        "memlock_lifted": limits.memlock.lifted,
        // null: unknown.
        "optmem_max": limits.optmem_max,
        "wmem_max": limits.wmem_max,
        "tcp_wmem": limits.tcp_wmem,
        "tcp_mtu_probing": limits.tcp_mtu_probing,
    })
}

fn io_uring(state: IoUring) -> &'static str {
    match state {
        IoUring::Allowed => "allowed",
        IoUring::Group => "group",
        IoUring::Disabled => "disabled",
        _ => "unknown",
    }
}

fn as_json_destination(address: &Address, destination: &Destination) -> Value {
    let auto: Vec<_> = destination
        .auto
        .iter()
        .map(|(bytes, choice)| {
            json!({
                "from_bytes": bytes.start(),
                // null: no end.
                "to_bytes": Some(*bytes.end()).filter(|end| *end != u64::MAX),
                "engine": choice.engine.name(),
                "why": choice.reason.to_string(),
            })
        })
        .collect();
    json!({
        "address": address.to_string(),
        "socket": destination.socket,
        "own": destination.own.map(|own| own.to_string()),
        "peer": destination.peer.map(|peer| peer.to_string()),
        "peer_on_this_host": destination.peer_on_this_host,
        "mtu": destination.mtu,
        // null: it can serve the destination.
        "zerocopy_refused": destination.zerocopy_refused.map(|why| why.to_string()),
        "native_refused": destination.native_refused.map(|why| why.to_string()),
        "auto": auto,
    })
}

fn as_json_file(path: &str, file: &File, detaches: &Detaches) -> Value {
    let (state, means) = match detaches {
        Detaches::Yes(means) => ("yes", Some(means)),
        Detaches::Untried(means) => ("untried", means.as_ref()),
        Detaches::No(_) => ("no", None),
        // New states say in words what they are.
        _ => ("unknown", None),
    };
    json!({
        "path": path,
        "size": file.size,
        "filesystem": file.filesystem,
        "mapped": file.unmappable.is_none(),
        "detaches": {
            "state": state,
            "why": detaches.to_string(),
            // null: not known, or there are none.
            "by": means.map(|means| if means.clone { "clone" } else { "direct" }),
            "unit": means.map(|means| means.unit),
            "proof": means.map(|means| means.proof.to_string()),
        },
        "why_read": file.unmappable.map(|why| why.to_string()),
    })
}
