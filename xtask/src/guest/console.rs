//! Following a guest's console: the lines to show, and what became of the plan.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sendfile2_guest::{End, Event};

/// The record of a guest's run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The steps that ended, in their order.
    pub(super) steps: Vec<Ran>,
    /// The kernel's reports of its own faults after init began.
    pub(super) reports: Vec<String>,
    /// The reason why the guest did not come to its end.
    pub(super) broken: Option<String>,
    done: bool,
    ready: bool,
    running: Option<Ran>,
    partial: String,
    boot: Vec<String>,
}

/// A step, after it ended.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) name: String,
    pub(super) end: End,
    pub(super) millis: u64,
    /// The lines that the step printed.
    pub(super) lines: Vec<String>,
}

/// The time without a line after which is said that the guest still runs.
const SILENCE: Duration = Duration::from_secs(30);

/// Starts a command that is a guest with its console on standard output, and follows it to its
/// end, or to the deadline.
pub(super) fn follow(
    command: &mut Command,
    label: &str,
    patience: Duration,
) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + patience;
    let program = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut guest = Guest(child.with_context(|| format!("cannot start the guest: {program}"))?);
    let output = guest.0.stdout.take().context("no output")?;
    let (sender, lines) = mpsc::channel();
    std::thread::Builder::new().name("console".into()).spawn(move || read(output, &sender))?;
    let mut outcome = Outcome::default();
    let began = Instant::now();
    println!("{label}: booting");
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left.min(SILENCE)) {
            Ok(line) => {
                if let Some(line) = outcome.line(&line) {
                    println!("{label}| {line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if left > SILENCE => {
                let at = outcome.running.as_ref().map_or("its boot", |step| step.name.as_str());
                println!("{label}: still at {at}, {} s after the start", began.elapsed().as_secs());
            }
            Err(RecvTimeoutError::Timeout) => {
                outcome.broken = Some(format!("it was killed after {} s", patience.as_secs()));
                return Ok(outcome.ended(label));
            }
        }
    }
    let status = guest.0.wait()?;
    if !status.success() && outcome.broken.is_none() {
        outcome.broken = Some(format!("{program} ended with {status}"));
    }
    Ok(outcome.ended(label))
}

/// The guest's process: it ends with this program.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(output: impl Read, lines: &mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    while matches!(output.read_until(b'\n', &mut line), Ok(1..)) {
        let text = String::from_utf8_lossy(&line);
        if lines.send(text.trim_end().to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}

impl Outcome {
    /// Takes in a line of the console; returns what is to be shown.
    fn line(&mut self, line: &str) -> Option<String> {
        let event = match Event::decode(line) {
            None => {
                if !self.ready {
                    self.boot.push(line.to_owned());
                    return None;
                }
                if is_report(line) {
                    self.reports.push(line.to_owned());
                }
                return (!line.is_empty()).then(|| line.to_owned());
            }
            Some(Err(error)) => {
                self.broken = Some(format!("the console garbled an event ({error}): {line}"));
                return Some(line.to_owned());
            }
            Some(Ok(event)) => event,
        };
        match event {
            Event::Ready => {
                self.ready = true;
                Some(format!("up ({} lines of booting not shown)", self.boot.len()))
            }
            Event::Begin(name) => {
                let shown = format!("==> {name}");
                let end = End::NotStarted;
                self.running = Some(Ran { name, end, millis: 0, lines: Vec::new() });
                Some(shown)
            }
            Event::Said { text, more } => {
                self.partial += &text;
                if more {
                    return None;
                }
                let line = std::mem::take(&mut self.partial);
                if let Some(step) = &mut self.running {
                    step.lines.push(line.clone());
                }
                Some(line)
            }
            Event::End { end, millis } => {
                let Some(mut step) = self.running.take() else {
                    self.broken = Some("a step ended that had not begun".into());
                    return None;
                };
                step.end = end;
                step.millis = millis;
                let shown = format!("--> {}: {end} ({:.1} s)", step.name, seconds(millis));
                self.steps.push(step);
                Some(shown)
            }
            Event::Done => {
                self.done = true;
                None
            }
            Event::Broken(why) => {
                let shown = format!("broken: {why}");
                self.broken = Some(why);
                Some(shown)
            }
        }
    }

    fn ended(mut self, label: &str) -> Self {
        if let Some(step) = self.running.take() {
            let at = format!("during the step {:?}", step.name);
            let why = self.broken.take();
            self.broken = Some(why.map_or(format!("it ended {at}"), |why| format!("{why}, {at}")));
            self.steps.push(step);
        }
        if !self.done && self.broken.is_none() {
            self.broken = Some("it ended before its plan did".into());
        }
        // Where it never came so far, the boot says why.
        if !self.ready {
            for line in &self.boot {
                println!("{label}| {line}");
            }
        }
        self
    }

    /// A step by its name.
    pub(super) fn step(&self, name: &str) -> anyhow::Result<&Ran> {
        let found = self.steps.iter().find(|step| step.name == name);
        found.with_context(|| format!("the guest ran no step {name:?}"))
    }

    /// Returns whether init began.
    pub(super) fn ready(&self) -> bool {
        self.ready
    }

    /// Fails unless all is well: every step passed, the kernel reported nothing, the plan is done.
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        wrong.extend(self.broken.clone());
        for step in self.steps.iter().filter(|step| !step.end.ok()) {
            wrong.push(format!("{}: {}", step.name, step.end));
        }
        wrong.extend(self.reports.iter().map(|report| format!("the kernel reported: {report}")));
        if wrong.is_empty() {
            return Ok(());
        }
        bail!("the guest failed:\n  {}", wrong.join("\n  "));
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

/// Returns whether the kernel complains in this line.
fn is_report(line: &str) -> bool {
    // Behind the time.
    let said = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once("] "));
    let said = said.map_or(line, |(_, said)| said).trim_start();
    // The first part of a line may be what a machine calls itself, as in "watchdog: BUG".
    [
        "BUG:",
        "WARNING:",
        "Oops",
        "general protection fault",
        "KASAN:",
        "UBSAN:",
        "KCSAN:",
        "INFO: task",
        "INFO: rcu",
        "INFO: possible",
        "INFO: trying to register",
        "INFO: lockdep",
        "Kernel panic",
        "kmemleak:",
        "unregister_netdevice:",
        "refcount_t:",
        "list_add corruption",
        "list_del corruption",
        "watchdog: BUG",
        "rcu: INFO",
        "DEBUG_LOCKS_WARN_ON",
        "Unable to handle",
        "Out of memory",
        "Internal error",
    ]
    .iter()
    .any(|begin| said.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(events: &[&str]) -> Outcome {
        let mut outcome = Outcome::default();
        for line in events {
            let _ = outcome.line(line);
        }
        outcome.ended("test")
    }

    fn said(event: &Event) -> String {
        format!("[    1.000000] {}", event.encode())
    }

    fn step(name: &str, end: End) -> [String; 3] {
        let long = Event::said(&"x".repeat(400)).iter().map(said).collect::<Vec<_>>().join("\n");
        [said(&Event::Begin(name.into())), long, said(&Event::End { end, millis: 5 })]
    }

    fn run(steps: &[[String; 3]], rest: &[String]) -> Outcome {
        let mut lines = vec![said(&Event::Ready)];
        lines.extend(steps.iter().flatten().flat_map(|text| text.lines().map(str::to_owned)));
        lines.extend_from_slice(rest);
        heard(&lines.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn a_guest_that_did_all_passes() {
        let outcome = run(&[step("a", End::Exit(0))], &[said(&Event::Done)]);
        outcome.verdict().unwrap();
        assert_eq!(outcome.step("a").unwrap().lines, ["x".repeat(400)]);
        assert!(outcome.step("b").is_err());
    }

    #[test]
    fn whatever_goes_wrong_fails_it() {
        let done = said(&Event::Done);
        let failed =
            run(&[step("a", End::Exit(1)), step("b", End::Exit(0))], std::slice::from_ref(&done));
        assert!(failed.verdict().unwrap_err().to_string().contains("a: failed: exit status 1"));
        for end in [End::Signal(9), End::Late, End::NotStarted] {
            run(&[step("a", end)], std::slice::from_ref(&done)).verdict().unwrap_err();
        }
        // A guest that ends in mid-step, before the plan does, or before anything.
        run(&[], &[said(&Event::Begin("a".into()))]).verdict().unwrap_err();
        run(&[step("a", End::Exit(0))], &[]).verdict().unwrap_err();
        heard(&[]).verdict().unwrap_err();
        heard(&["[ 0.1] Kernel panic - not syncing"]).verdict().unwrap_err();
        let told = run(&[], &[said(&Event::Broken("no module".into()))]);
        assert!(told.verdict().unwrap_err().to_string().contains("no module"));
        let torn = said(&Event::Done);
        run(&[], &[torn[..torn.len() - 2].to_owned(), done]).verdict().unwrap_err();
    }

    #[test]
    fn what_the_kernel_reports_after_init_counts() {
        let done = said(&Event::Done);
        let bad = "[    9.1] BUG: KASAN: slab-use-after-free in a+0x1/0x2".to_owned();
        run(&[], &[bad.clone(), done.clone()]).verdict().unwrap_err();
        let early = heard(&[&bad, &said(&Event::Ready), &done]);
        early.verdict().unwrap();
        for line in ["[    2.1] eth0: intr type 3", "[ 1.0] Warning: unmaintained", "BUGS"] {
            run(&[], &[line.to_owned(), done.clone()]).verdict().unwrap();
        }
        assert!(is_report("[   10.1] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2"));
        assert!(is_report("BUG: unable to handle page fault"));
    }
}
