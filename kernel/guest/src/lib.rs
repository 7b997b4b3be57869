//! The messages between the host and a guest: the host gives a [`Plan`], which lies in the
//! initramfs as `/plan.json`; the guest answers with [`Event`]s on its console, one a line.
//!
//! The console is the kernel's, too. So that no line is torn, the guest writes them to `/dev/kmsg`.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// The path of the plan in the guest.
pub const PLAN: &str = "/plan.json";

/// The id of the user that is not root.
pub const USER: u32 = 1000;

/// The work of a guest: load the modules, run the steps one after another, and power off.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Paths of modules in the guest, in the order in which they are to be loaded.
    pub modules: Vec<String>,
    /// The steps to run.
    pub steps: Vec<Step>,
}

/// One command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The name of the step in the results.
    pub name: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Variables of the environment, beside `PATH`, `HOME` and `TMPDIR`.
    pub env: Vec<(String, String)>,
    /// Whether [`USER`] runs the step, and not root.
    pub ordinary: bool,
    /// `RLIMIT_MEMLOCK` in bytes; without it, the one that the kernel gives (8 MiB).
    pub memlock: Option<u64>,
    /// The seconds after which the step is killed, and has failed.
    pub seconds: u64,
    /// Whether the rest is not run if the step fails.
    pub must: bool,
}

impl Step {
    /// Makes a step of a command that root runs, for at most a minute.
    pub fn new<S: Into<String>>(
        name: impl Into<String>,
        command: impl IntoIterator<Item = S>,
    ) -> Self {
        Step {
            name: name.into(),
            command: command.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            ordinary: false,
            memlock: None,
            seconds: 60,
            must: false,
        }
    }

    /// Makes a step of a line for the shell, without which the rest makes no sense.
    pub fn setup(name: impl Into<String>, script: impl Into<String>) -> Self {
        let command = ["/bin/sh".into(), "-ec".into(), script.into()];
        Step { must: true, ..Step::new(name, command) }
    }

    /// Lets a user that is not root run the step, with a finite `RLIMIT_MEMLOCK`.
    #[must_use]
    pub fn ordinary(self) -> Self {
        Step { ordinary: true, memlock: self.memlock.or(Some(8 << 20)), ..self }
    }

    /// Sets the step's `RLIMIT_MEMLOCK`, in bytes.
    #[must_use]
    pub fn memlock(self, bytes: u64) -> Self {
        Step { memlock: Some(bytes), ..self }
    }

    /// Sets the seconds after which the step is killed.
    #[must_use]
    pub fn seconds(self, seconds: u64) -> Self {
        Step { seconds, ..self }
    }

    /// Adds a variable to the step's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }
}

/// The cost of one way of sending on one connection, which `guest-count` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The engine, or `sendfile`.
    pub way: String,
    /// The size of the calls, in bytes.
    pub size: u64,
    /// The number of calls that were counted.
    pub calls: u64,
    /// Instructions of the sending thread, for all calls.
    pub thread: u64,
    /// Instructions of the sending device's threads, for all calls.
    pub device: u64,
    /// Packets that the device was given.
    pub packets: u64,
    /// Bytes that the sending side's kernel copied, for all calls.
    pub copied: u64,
}

/// A report of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Init runs, and the modules are loaded. What the kernel reports from here on counts.
    Ready,
    /// A step begins.
    Begin(String),
    /// A step has printed a line, or a part of one; with `more`, the next event continues it.
    Said {
        /// The text that the step printed.
        text: String,
        /// Whether the line was longer.
        more: bool,
    },
    /// The step has ended.
    End {
        /// The way it ended.
        end: End,
        /// The milliseconds that the step ran.
        millis: u64,
    },
    /// All steps are done; the guest powers off.
    Done,
    /// The guest cannot go on.
    Broken(String),
}

/// The way a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The step exited, with this status.
    Exit(i32),
    /// The step was killed by this signal.
    Signal(i32),
    /// The step was killed when its time was over.
    Late,
    /// The step could not be started; an event before this has the reason.
    NotStarted,
}

impl End {
    /// Returns whether the step exited with 0.
    pub fn ok(self) -> bool {
        self == End::Exit(0)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Exit(0) => f.write_str("passed"),
            End::Exit(code) => write!(f, "failed: exit status {code}"),
            End::Signal(signal) => write!(f, "failed: killed by signal {signal}"),
            End::Late => f.write_str("failed: its time was over"),
            End::NotStarted => f.write_str("failed: could not be started"),
        }
    }
}

/// The beginning of each line that is an event.
const MARK: &str = "sendfile2-guest: ";

/// The longest text of an [`Event::Said`]: the kernel takes records of 1,024 bytes, and a byte
/// may become six when it is written as JSON.
const TEXT: usize = 150;

impl Event {
    /// Returns the line that stands for the event, without a newline.
    pub fn encode(&self) -> String {
        // Maps with keys that are no strings are all that could fail.
        format!("{MARK}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Reads the event from a line of the console, if it is a guest's event.
    pub fn decode(line: &str) -> Option<Result<Self, serde_json::Error>> {
        let (before, json) = line.split_once(MARK)?;
        // Only the kernel's time stands before it; a step may print the mark itself.
        let stamp = |c: char| c.is_ascii_digit() || "[]., <>cC".contains(c);
        before.chars().all(stamp).then(|| serde_json::from_str(json.trim_end()))
    }

    /// Returns the events that report one line of output.
    pub fn said(line: &str) -> Vec<Self> {
        let mut events = Vec::new();
        let mut rest = line;
        loop {
            let mut at = rest.len().min(TEXT);
            while !rest.is_char_boundary(at) {
                at -= 1;
            }
            let (text, tail) = rest.split_at(at);
            events.push(Event::Said { text: text.to_owned(), more: !tail.is_empty() });
            if tail.is_empty() {
                return events;
            }
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_the_console() {
        for event in [
            Event::Ready,
            Event::Begin("a \"name\"\u{1}".into()),
            Event::Said { text: "\\ täxt\t\u{7f}".into(), more: true },
            Event::End { end: End::Signal(9), millis: 12 },
            Event::Done,
            Event::Broken("why".into()),
        ] {
            let line = format!("[   12.345678] {}\r", event.encode());
            assert_eq!(Event::decode(&line).unwrap().unwrap(), event);
            assert_eq!(Event::decode(&event.encode()).unwrap().unwrap(), event);
        }
    }

    #[test]
    fn other_lines_are_no_events_and_torn_ones_are_errors() {
        assert!(Event::decode("[    1.0] vmxnet3: up").is_none());
        assert!(Event::decode(&format!("it said {}", Event::Done.encode())).is_none());
        let torn = Event::Begin("name".into()).encode();
        assert!(Event::decode(&torn[..torn.len() - 3]).unwrap().is_err());
        assert!(Event::decode(&format!("{MARK}\"Maybe\"")).unwrap().is_err());
    }

    #[test]
    fn long_lines_are_cut_between_characters_and_fit_a_record() {
        for line in ["", "short", &"ü".repeat(500), &"\u{1}".repeat(1000), &"x".repeat(TEXT)] {
            let mut joined = String::new();
            let events = Event::said(line);
            for (i, event) in events.iter().enumerate() {
                assert!(event.encode().len() < 1000);
                let Event::Said { text, more } = event else { panic!("{event:?}") };
                assert_eq!(*more, i + 1 < events.len());
                joined += text;
            }
            assert_eq!(joined, line);
        }
    }
}
