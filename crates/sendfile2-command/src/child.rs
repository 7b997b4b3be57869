//! Child processes that run this program again, and the messages between parent and child.
//!
//! Messages are JSON, one a line. The parent sends a role, and then orders, to the child's standard
//! input; the child sends replies on its standard output. The functions [`recv`] and [`send`] are the
//! child's ends of both.

use std::io::{BufRead, BufReader, Write};
use std::process::{self, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::netns;

/// A child process, as its parent sees it.
///
/// The process is killed when this is dropped, and ends by itself when the parent does.
#[derive(Debug)]
pub struct Child {
    process: process::Child,
    orders: ChildStdin,
}

/// The replies of a child.
#[derive(Debug)]
pub struct Replies(BufReader<ChildStdout>);

impl Child {
    /// Runs this program with `args`, within the place that `wrapper` leads to, and sends it a role.
    pub fn start(
        wrapper: &[String],
        args: &[&str],
        role: &impl Serialize,
    ) -> anyhow::Result<(Self, Replies)> {
        let mut process = netns::ourselves(wrapper)?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a child process")?;
        let orders = process.stdin.take().context("no input")?;
        let replies = process.stdout.take().context("no output")?;
        let mut child = Child { process, orders };
        child.send(role)?;
        Ok((child, Replies(BufReader::new(replies))))
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends an order.
    ///
    /// # Errors
    ///
    /// The child is gone.
    pub fn send(&mut self, order: &impl Serialize) -> anyhow::Result<()> {
        self.orders.write_all(&line(order)?).context("a child process is gone")
    }

    /// Kills the child, and waits until its descriptors are closed.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Waits for the child's end; returns whether it came in time.
    pub fn wait(&mut self, deadline: Instant) -> bool {
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.process.try_wait() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Replies {
    /// Waits for the next reply; returns None when the child is gone.
    ///
    /// # Errors
    ///
    /// The child printed a line that is no such reply.
    pub fn recv<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => Ok(None),
            Ok(_) => serde_json::from_slice(&line).map(Some).with_context(|| {
                format!("a child process printed {:?}", String::from_utf8_lossy(&line).trim_end())
            }),
        }
    }
}

fn line(message: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Waits, in a child, for its role or its next order; returns None when the parent is gone.
pub fn recv<T: DeserializeOwned>() -> Option<T> {
    let mut line = String::new();
    match std::io::stdin().read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => serde_json::from_str(&line).ok(),
    }
}

/// Sends a reply, in a child. Without a parent nothing is left to be done, and the process ends.
pub fn send(reply: &impl Serialize) {
    let sent = line(reply).is_ok_and(|line| {
        let mut out = std::io::stdout().lock();
        out.write_all(&line).and_then(|()| out.flush()).is_ok()
    });
    if !sent {
        process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell in place of this program.
    fn shell(script: &str, role: u32) -> (Child, Replies) {
        let wrapper = ["sh", "-c", script].map(String::from);
        Child::start(&wrapper, &[], &role).expect("a shell")
    }

    #[test]
    fn what_a_child_prints_are_replies_until_it_ends() {
        let script = r#"read role; echo "$role"; echo nonsense; read order; echo "$order""#;
        let (mut child, mut replies) = shell(script, 7);
        assert_eq!(replies.recv::<u32>().expect("a reply"), Some(7));
        let error = replies.recv::<u32>().expect_err("no reply");
        assert!(error.to_string().contains("\"nonsense\""), "{error:#}");
        child.send(&8).expect("it reads");
        assert_eq!(replies.recv::<u32>().expect("a reply"), Some(8));
        assert_eq!(replies.recv::<u32>().expect("the end"), None);
        assert!(child.wait(Instant::now() + Duration::from_secs(60)));
        assert!(child.send(&9).is_err(), "nobody reads");
    }

    #[test]
    fn a_child_ends_when_it_is_dropped() {
        let (child, mut replies) = shell("echo 1; exec sleep 600", 7);
        assert_eq!(replies.recv::<u32>().expect("a reply"), Some(1));
        drop(child);
        assert_eq!(replies.recv::<u32>().expect("the end"), None);
    }
}
