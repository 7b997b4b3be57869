//! The child processes of the torture, as its parent sees them.

use std::sync::mpsc;

use anyhow::Context;

use super::message::{Line, Order, Role};
use crate::child::Child;

/// The number of a process, which never comes twice.
pub(super) type Id = u32;

/// A thing that a child did.
#[derive(Debug)]
pub(super) enum Event {
    Sent(Id, Line),
    /// The end of the child's output: nothing more comes of it.
    Gone(Id),
}

/// A child process, whose lines are events.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) id: Id,
    pub(super) child: Child,
}

impl Process {
    /// Runs this program in a role, within the place that `wrapper` leads to.
    pub(super) fn start(
        id: Id,
        wrapper: &[String],
        role: &Role,
        events: mpsc::Sender<Event>,
    ) -> anyhow::Result<Self> {
        let (child, mut replies) = Child::start(wrapper, &["torture", "--role"], role)
            .context("a process of the torture")?;
        let listening = std::thread::Builder::new().name("listener".into()).spawn(move || {
            loop {
                let line = match replies.recv() {
                    Ok(Some(line)) => line,
                    Ok(None) => break,
                    Err(error) => Line::Unexpected(format!("{error:#}")),
                };
                if events.send(Event::Sent(id, line)).is_err() {
                    return;
                }
            }
            let _ = events.send(Event::Gone(id));
        });
        listening.context("cannot start a thread for what a process of the torture sends")?;
        Ok(Process { id, child })
    }

    /// Sends an order. If the process is gone, its events report that.
    pub(super) fn order(&mut self, order: Order) {
        let _ = self.child.send(&order);
    }
}
