//! The child processes, as the parent sees them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::netns;

use super::message::{Line, Order, Role};

/// Which process said something: its number never comes twice.
pub(super) type Id = u32;

/// What a child did.
#[derive(Debug)]
pub(super) enum Event {
    Said(Id, Line),
    /// Its output has ended, and nothing more comes of it.
    Gone(Id),
}

/// A child process. It is killed when this is dropped, and ends by itself when the parent does.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: Id,
    child: Child,
    orders: Option<ChildStdin>,
}

impl Process {
    /// Runs this program in a role, within the place that `wrapper` leads to.
    pub(super) fn start(
        id: Id,
        wrapper: &[String],
        role: &Role,
        events: mpsc::Sender<Event>,
    ) -> anyhow::Result<Self> {
        let mut child = netns::ourselves(wrapper)?
            .args(["torture", "--role"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a process of the torture")?;
        let (orders, output) = (child.stdin.take(), child.stdout.take());
        let mut process = Process { id, child, orders };
        process.say(role).context("a process of the torture ended at once")?;
        let output = BufReader::new(output.context("no output")?);
        std::thread::Builder::new().name("listener".into()).spawn(move || {
            for line in output.lines() {
                let Ok(line) = line else { break };
                let line = serde_json::from_str(&line)
                    .unwrap_or_else(|_| Line::Unexpected(format!("a process said {line:?}")));
                if events.send(Event::Said(id, line)).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Gone(id));
        })?;
        Ok(process)
    }

    fn say<T: serde::Serialize>(&mut self, what: &T) -> anyhow::Result<()> {
        let mut text = serde_json::to_string(what)?;
        text.push('\n');
        self.orders.as_mut().context("no input")?.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Tells it something. If it is gone, that shows itself.
    pub(super) fn order(&mut self, order: Order) {
        let _ = self.say(&order);
    }

    /// `kill -9`, and its end, when its descriptors are closed.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
