//! The first process of a guest: mounts what every program expects, loads the modules, runs the
//! plan, reports what happens, and powers off.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, Signal, WaitOptions, getrlimit, setrlimit, wait};
use rustix::system::{RebootCommand, finit_module, reboot};
use sendfile2_guest::{End, Event, PLAN, Plan, Step, USER};

/// The flag of `finit_module(2)` for a file that is compressed.
const COMPRESSED: std::ffi::c_int = 4;

fn main() {
    // It kills everything and powers off: on a machine that is no guest it must not run.
    if std::process::id() != 1 {
        eprintln!("error: this is the init of guests; see cargo xtask guest --help");
        std::process::exit(2);
    }
    let told = start().map(|(kmsg, plan)| {
        let mut console = Console { kmsg };
        console.tell(&Event::Ready);
        for step in &plan.steps {
            let end = run(step, &mut console);
            if step.must && !end.ok() {
                console.tell(&Event::Broken(format!("{}: {end}", step.name)));
                return;
            }
        }
        console.tell(&Event::Done);
    });
    if let Err(error) = told {
        let broken = Event::Broken(format!("{error:#}"));
        match OpenOptions::new().write(true).open("/dev/kmsg") {
            Ok(kmsg) => Console { kmsg }.tell(&broken),
            Err(_) => println!("{}", broken.encode()),
        }
    }
    rustix::fs::sync();
    // Where it cannot, the end of init is a panic of the kernel, which ends the guest, too.
    let _ = reboot(RebootCommand::PowerOff);
}

/// Makes a machine of the bare kernel.
fn start() -> anyhow::Result<(File, Plan)> {
    let flags = MountFlags::empty();
    for (kind, at) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        std::fs::create_dir_all(at)?;
        // A filesystem that is mounted there already (with a root filesystem of the host's, say) is
        // good.
        match mount(kind, at, kind, flags, None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => return Err(error).context(format!("cannot mount {at}")),
        }
    }
    let kmsg = OpenOptions::new().write(true).open("/dev/kmsg").context("/dev/kmsg")?;
    for at in ["/tmp", "/run", "/dev/shm"] {
        std::fs::create_dir_all(at)?;
        mount("tmpfs", at, "tmpfs", flags, None).with_context(|| format!("cannot mount {at}"))?;
        std::fs::set_permissions(at, PermissionsExt::from_mode(0o1777))?;
    }
    let _ = symlink("/proc/self/fd", "/dev/fd");
    let home = format!("/tmp/{USER}");
    std::fs::create_dir_all(&home)?;
    chown(&home, Some(USER), Some(USER))?;

    // As many descriptors as a usual machine allows.
    let limit = Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    setrlimit(Resource::Nofile, limit).context("RLIMIT_NOFILE")?;

    let plan = std::fs::read_to_string(PLAN).context(PLAN)?;
    let plan: Plan = serde_json::from_str(&plan).context(PLAN)?;
    for module in &plan.modules {
        let file = File::open(module).with_context(|| module.clone())?;
        let how = if module.ends_with(".ko") { 0 } else { COMPRESSED };
        finit_module(&file, &CString::default(), how)
            .with_context(|| format!("cannot load {module}"))?;
    }
    Ok((kmsg, plan))
}

struct Console {
    kmsg: File,
}

impl Console {
    fn tell(&mut self, event: &Event) {
        // A write is a record. The host, which waits for it, has a deadline.
        let _ = self.kmsg.write_all(event.encode().as_bytes());
    }

    fn say(&mut self, line: &[u8]) {
        for event in Event::said(&String::from_utf8_lossy(line)) {
            self.tell(&event);
        }
    }
}

fn run(step: &Step, console: &mut Console) -> End {
    console.tell(&Event::Begin(step.name.clone()));
    let began = Instant::now();
    let end = attempt(step, console).unwrap_or_else(|error| {
        console.say(format!("{error:#}").as_bytes());
        End::NotStarted
    });
    // Nothing of a step disturbs the next one. (For process 1, this is everything else.)
    let _ = rustix::process::kill_process_group(rustix::process::Pid::INIT, Signal::KILL);
    let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    console.tell(&Event::End { end, millis });
    end
}

fn attempt(step: &Step, console: &mut Console) -> anyhow::Result<End> {
    let deadline = Instant::now() + Duration::from_secs(step.seconds);
    let (mut child, output) = spawn(step)?;
    let mut output = File::from(output);
    let mut rest = Vec::new();
    let mut late = false;
    loop {
        let exited = reap(&child);
        // All that was written before the end is there by now; a process that the step left behind
        // may keep the pipe open.
        while readable(&output, if exited.is_some() { 0 } else { 50 })? {
            let mut buffer = [0; 65_536];
            let n = output.read(&mut buffer)?;
            if n == 0 {
                // All have closed it; only the end is to be waited for.
                std::thread::sleep(Duration::from_millis(5));
                break;
            }
            rest.extend_from_slice(&buffer[..n]);
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                console.say(rest[..at].strip_suffix(b"\r").unwrap_or(&rest[..at]));
                rest.drain(..=at);
            }
            if Instant::now() > deadline {
                break;
            }
        }
        if let Some(status) = exited {
            if !rest.is_empty() {
                console.say(&rest);
            }
            return Ok(if late { End::Late } else { ended(status) });
        }
        if !late && Instant::now() > deadline {
            late = true;
            child.kill()?;
        }
    }
}

/// Takes in all processes that have ended: whom nobody else waits for is process 1's, and its id is taken
/// until then. Returns the status of this one, if it is among them.
fn reap(child: &Child) -> Option<ExitStatus> {
    let mut exited = None;
    while let Ok(Some((id, status))) = wait(WaitOptions::NOHANG) {
        if u32::try_from(id.as_raw_nonzero().get()) == Ok(child.id()) {
            exited = Some(ExitStatus::from_raw(status.as_raw()));
        }
    }
    exited
}

fn readable(output: &File, millis: i64) -> anyhow::Result<bool> {
    let fd = output.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 };
    match poll(&mut fds, Some(&patience)) {
        Ok(n) => Ok(n > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn spawn(step: &Step) -> anyhow::Result<(Child, std::os::fd::OwnedFd)> {
    let (output, input) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let [program, args @ ..] = &step.command[..] else { anyhow::bail!("the command is empty") };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(input.try_clone()?).stderr(input);
    let home = if step.ordinary { format!("/tmp/{USER}") } else { "/tmp".into() };
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("TMPDIR", &home).env("HOME", &home).current_dir(&home);
    command.envs(step.env.iter().map(|(name, value)| (name, value)));
    if step.ordinary {
        // This also leaves root's groups.
        command.uid(USER).gid(USER);
    }
    // The limit is inherited; root may raise it again.
    let own = getrlimit(Resource::Memlock);
    if let Some(bytes) = step.memlock {
        let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
        setrlimit(Resource::Memlock, limit).context("RLIMIT_MEMLOCK")?;
    }
    let child = command.spawn().with_context(|| format!("cannot run {program}"));
    setrlimit(Resource::Memlock, own).context("RLIMIT_MEMLOCK")?;
    Ok((child?, output))
}

fn ended(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Exit(code),
        (None, signal) => End::Signal(signal.unwrap_or(0)),
    }
}
