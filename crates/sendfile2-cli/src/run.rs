//! `sendfile2 run`: a program whose every `sendfile(2)` to a socket is safe.
//!
//! The process becomes the program, so that its id, exit status, signals, terminal and job control are as
//! without it. Beside it go on two others, of a session of their own: the [supervisor], which answers
//! the calls that the shim does not take, and its [guardian].

mod call;
mod guardian;
mod supervisor;

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use clap::ValueHint;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;
use sendfile2_sys::daemon::{self, Slot};
use sendfile2_sys::seccomp;
use sendfile2_sys::thread::Thread;

use self::supervisor::{Supervisor, kernel_is_since};
use crate::output;
use crate::probe;

/// The most calls that are answered at a time.
const CALLS: usize = 1 << 16;

/// The supervisor's words to the program's side.
const READY: u8 = 1;
const REFUSED: u8 = 0;

/// The exit statuses of programs that run others, as of env(1): what went wrong before the program
/// began.
const FAILED: u8 = 125;
const CANNOT_BE_EXECUTED: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Run a program, and make every sendfile(2) of it safe
///
/// Each sendfile(2) from a file to a socket, by the program and all that it starts, is safe when it
/// returns: the kernel has its own copy of the bytes. The preload shim does that where it takes hold;
/// all other calls, of static programs, of Go, of programs that were started anew without their
/// environment, are answered by a process beside the program, by a filter of system calls (seccomp,
/// Linux 5.19).
///
/// The program is this process: its exit status, signals, terminal and job control are as without it.
/// Who is not root gives up setuid programs and file capabilities (`no_new_privs`) for it and all that it
/// starts, and the filter costs each system call 15 to 56 ns.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sendfile2 run caddy file-server --listen :8080
  sendfile2 run --report nginx -g 'daemon off;'
  sendfile2 run --report=/var/log/sendfile2 ./static-server 9000

Exit status: the program's; 125 if it could not be protected, 126 if it cannot be executed, 127 if
there is no such program. In these cases nothing was run.")]
pub(crate) struct Args {
    /// Write at the end what became of the calls: to standard error, or to a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        default_missing_value = "stderr", value_hint = ValueHint::FilePath)]
    report: Option<PathBuf>,
    /// The program and its arguments
    #[arg(value_name = "PROGRAM", required = true, trailing_var_arg = true,
        allow_hyphen_values = true, value_hint = ValueHint::CommandWithArguments)]
    program: Vec<OsString>,
}

/// Returns only if the program could not be run.
pub(crate) fn run(args: &Args) -> ExitCode {
    let name = args.program[0].to_string_lossy();
    let (error, status) = match prepare(args) {
        Err(error) => (error.context(format!("cannot protect {name}")), FAILED),
        Ok(environment) => {
            let program = args.program.iter().map(|word| c_string(word.clone()));
            let errno = match program.collect::<anyhow::Result<Vec<_>>>() {
                Ok(program) => daemon::execute(&program, &environment),
                // The operating system cannot have given such an argument.
                Err(_) => Errno::INVAL,
            };
            let status = if errno == Errno::NOENT { NOT_FOUND } else { CANNOT_BE_EXECUTED };
            (anyhow::Error::new(errno).context(format!("cannot run {name}")), status)
        }
    };
    output::report_error(&error);
    ExitCode::from(status)
}

/// Starts the supervisor, and lets it answer this process's calls from now on; returns the environment
/// to run the program in.
fn prepare(args: &Args) -> anyhow::Result<Vec<CString>> {
    yama()?;
    let report = args.report.as_deref().map(absolute).transpose()?;
    if let Some(report) = report.as_deref().filter(|report| !is_stderr(report)) {
        let opened = append_to(report).map(drop);
        opened.with_context(|| format!("cannot report to {}", report.display()))?;
    }
    let cookie = fastrand::u64(1..);
    let environment = environment(args, report.as_deref(), cookie)?;
    let slots = daemon::slots(CALLS).context("no memory")?;
    let own = rustix::process::getpid();
    let (mut ours, theirs) = UnixStream::pair().context("cannot make sockets")?;
    // A process between the two ends at once, so that the supervisor is no child of the program.
    let between = daemon::fork(vec![theirs.into()], |given| {
        u8::from(
            daemon::fork(given, |given| supervise(given, own, slots, report.as_deref())).is_err(),
        )
    })
    .context("cannot start a process")?;
    ensure!(between.succeeds(), "cannot start a process");
    let mut id = [0; 4];
    ours.read_exact(&mut id).context("the supervisor has ended")?;
    if let Some(id) = Pid::from_raw(i32::from_ne_bytes(id)) {
        daemon::allow_to_look(id);
    }
    let listener = seccomp::listen(cookie).map_err(refusal)?;
    send(&ours, listener.as_fd()).context("the supervisor has ended")?;
    let mut ready = [0];
    ours.read_exact(&mut ready).context("the supervisor has ended")?;
    ensure!(
        ready == [READY],
        "it cannot be looked into: pidfd_getfd(2) or process_vm_readv(2) is forbidden, as in containers \
         without CAP_SYS_PTRACE"
    );
    Ok(environment)
}

/// Refuses where Yama lets nobody look into the program; says so where it protects the program only.
fn yama() -> anyhow::Result<()> {
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";
    let scope = std::fs::read_to_string(SCOPE).ok().and_then(|text| text.trim().parse().ok());
    match scope.unwrap_or(0_u8) {
        0 => {}
        1 | 2 if may_look_into_all() => {}
        1 => output::note(&format!(
            "sendfile2: {SCOPE} is 1: processes that the program forks are not protected, their sendfile \
             fails, unless root starts it"
        )),
        scope => bail!("{SCOPE} is {scope}: its processes cannot be looked into"),
    }
    Ok(())
}

fn may_look_into_all() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_PTRACE))
}

fn refusal(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::BUSY => anyhow!(
            "another process answers system calls of this one: a container's, or another `sendfile2 \
             run`, which protects whatever it runs already"
        ),
        Errno::INVAL => {
            anyhow!("the kernel cannot do it: Linux 5.19 is needed, with seccomp filters")
        }
        errno => anyhow::Error::new(errno).context("no filter of system calls"),
    }
}

/// The supervisor's process.
fn supervise(
    given: Vec<OwnedFd>,
    program: Pid,
    slots: &'static [Slot],
    report: Option<&Path>,
) -> u8 {
    let Some(socket) = given.into_iter().next() else { return 1 };
    match try_to_supervise(socket.into(), program, slots, report) {
        Ok(()) => 0,
        Err(error) => {
            output::report_error(&error.context("supervisor"));
            1
        }
    }
}

fn try_to_supervise(
    mut socket: UnixStream,
    program: Pid,
    slots: &'static [Slot],
    report: Option<&Path>,
) -> anyhow::Result<()> {
    daemon::ignore_requests_to_end();
    // The signals of the program's terminal are not for it.
    let _ = rustix::process::setsid();
    let nothing = File::options().read(true).write(true).open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdin(&nothing)?;
    rustix::stdio::dup2_stdout(&nothing)?;
    let to_stderr = report.is_some_and(is_stderr);
    let _ = std::env::set_current_dir("/");
    // A call needs two, and many may wait.
    let most = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    let own = rustix::process::getpid().as_raw_nonzero().get();
    socket.write_all(&own.to_ne_bytes())?;
    // Nothing comes where the program's side had no filter, and has told so.
    let Some(listener) = receive(&socket)? else { return Ok(()) };
    if !can_look_into(program, slots) {
        socket.write_all(&[REFUSED])?;
        return Ok(());
    }
    let process = rustix::process::pidfd_open(program, PidfdFlags::empty())?;
    let mut supervisor = Supervisor::new(listener, slots)?;
    if !to_stderr {
        rustix::stdio::dup2_stderr(&nothing)?;
    }
    socket.write_all(&[READY])?;
    drop(socket);
    if to_stderr && !kernel_is_since((6, 11)) {
        // The listener tells the end when the program has been waited for; and who waits for it may want
        // the end of its standard error first.
        supervisor.serve(Some(&process))?;
        let _ = std::io::stderr().write_all(line(&supervisor).as_bytes());
        rustix::stdio::dup2_stderr(&nothing)?;
        return Ok(supervisor.serve(None)?);
    }
    drop((nothing, process));
    supervisor.serve(None)?;
    match report {
        None => {}
        Some(_) if to_stderr => {
            let _ = std::io::stderr().write_all(line(&supervisor).as_bytes());
        }
        Some(report) => append_to(report)?.write_all(line(&supervisor).as_bytes())?,
    }
    Ok(())
}

/// Returns the line of a report.
fn line(supervisor: &Supervisor) -> String {
    format!("sendfile2: {}\n", supervisor.tally)
}

/// Returns whether this process may do with the program what each call needs. Both have the same memory
/// still.
fn can_look_into(program: Pid, memory: &[Slot]) -> bool {
    let Ok(id) = u32::try_from(program.as_raw_nonzero().get()) else { return false };
    let Ok(thread) = Thread::open(id) else { return false };
    // A descriptor that nobody has: who may not look is told so first.
    let files = thread.duplicate(i32::MAX).map(drop);
    let address = memory.as_ptr().addr() as u64;
    files == Err(Errno::BADF) && thread.read(address).is_ok()
}

fn is_stderr(report: &Path) -> bool {
    report == Path::new("stderr")
}

fn append_to(report: &Path) -> std::io::Result<File> {
    // Neither does a pipe that nobody reads hold it up, nor is a terminal taken over.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let flags = i32::from_ne_bytes(flags.to_ne_bytes());
    File::options().append(true).create(true).custom_flags(flags).open(report)
}

fn send(socket: &UnixStream, listener: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener];
    ensure!(control.push(SendAncillaryMessage::ScmRights(&descriptors)), "no space");
    let byte = [IoSlice::new(&[1])];
    rustix::net::sendmsg(socket, &byte, &mut control, SendFlags::empty())?;
    Ok(())
}

fn receive(socket: &UnixStream) -> anyhow::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut bytes = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut messages = control.drain();
    Ok(messages.find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

/// Returns the file to report to, from the root on.
fn absolute(report: &Path) -> anyhow::Result<PathBuf> {
    if is_stderr(report) {
        return Ok(report.to_owned());
    }
    std::path::absolute(report).context("there is no current directory")
}

/// Returns the environment of the program: this one's, and what the shim needs.
fn environment(args: &Args, report: Option<&Path>, cookie: u64) -> anyhow::Result<Vec<CString>> {
    let mut variables: Vec<_> = std::env::vars_os()
        .filter(|(name, value)| match name.as_bytes() {
            b"SENDFILE2_COOKIE" => false,
            b"SENDFILE2_REPORT" => report.is_none(),
            // `off` would be safe by the supervisor, and slow.
            b"SENDFILE2_MODE" => value.eq_ignore_ascii_case("notify"),
            _ => true,
        })
        .collect();
    if let Some(report) = report {
        variables.push(("SENDFILE2_REPORT".into(), report.into()));
    }
    if let Some(mut all) = probe::preload(Path::new(&args.program[0])) {
        let others = variables.iter().position(|(name, _)| name == "LD_PRELOAD");
        let others = others.map(|at| variables.swap_remove(at).1).unwrap_or_default();
        if !others.is_empty() {
            all.push(":");
            all.push(others);
        }
        variables.push(("LD_PRELOAD".into(), all));
    }
    // `probe --pid` knows by it, too, who is protected.
    variables.push(("SENDFILE2_COOKIE".into(), format!("{cookie:016x}").into()));
    let strings = variables.into_iter().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        c_string(variable)
    });
    strings.collect()
}

fn c_string(string: OsString) -> anyhow::Result<CString> {
    match CString::new(string.into_vec()) {
        Ok(string) => Ok(string),
        Err(_) => bail!("a zero byte in an argument or a variable"),
    }
}
