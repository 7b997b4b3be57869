//! The child processes of a benchmark, as its parent sees them.

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::machine::Processors;
use super::message::{
    Answer, Delays, Hello, Job, Received, ReceiverOrder, Role, SenderOrder, SenderRole, Sent,
};
use crate::child::{Child, Replies};
use crate::method::Method;
use crate::netns::Net;

/// A child process that answers each order.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    replies: Replies,
}

impl Process {
    /// Runs this program in a role, within the place that `wrapper` leads to.
    pub(super) fn start(wrapper: &[String], role: &Role) -> anyhow::Result<Self> {
        let (child, replies) =
            Child::start(wrapper, &["role"], role).context("a process of the benchmark")?;
        Ok(Process { child, replies })
    }

    /// The process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends an order.
    pub(super) fn send<T: Serialize>(&mut self, order: &T) -> anyhow::Result<()> {
        self.child.send(order)
    }

    /// Waits for an answer.
    pub(super) fn recv<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let answer: Option<Answer<T>> = self.replies.recv()?;
        answer.context("a process of the benchmark is gone")?.map_err(|said| anyhow!(said))
    }
}

/// A sender and a receiver, each a process, and what joins them.
#[derive(Debug)]
pub(super) struct Pair {
    sender: Process,
    receiver: Process,
    connect: SocketAddr,
    pub(super) hello: Hello,
    /// The namespaces of the pair, which last as long as this.
    _net: Net,
}

/// One measurement.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) bytes: u64,
    /// The time from the first call until everything was both received and released; in
    /// nanoseconds.
    pub(super) elapsed: u64,
    /// Nanoseconds of CPU of the receiver.
    pub(super) receiver_cpu: u64,
    pub(super) sent: Sent,
}

impl Pair {
    pub(super) fn start(net: Net, file: &File, cpus: Processors) -> anyhow::Result<Self> {
        let role = Role::Sender(SenderRole {
            file: file.as_raw_fd(),
            listen: net.listen,
            cpu: cpus.sender,
        });
        let mut sender = Process::start(&net.server, &role)?;
        let hello: Hello = sender.recv().context("the sender")?;
        let receiver = Process::start(&net.clients, &Role::Receiver { cpu: cpus.receiver })?;
        let connect = SocketAddr::new(net.connect, hello.address.port());
        Ok(Pair { sender, receiver, connect, hello, _net: net })
    }

    /// Makes `streams` new connections for each method, in place of those that there are.
    pub(super) fn connect(&mut self, methods: &[Method], streams: usize) -> anyhow::Result<()> {
        let order =
            ReceiverOrder::Connect { address: self.connect, streams: methods.len() * streams };
        self.sender.send(&SenderOrder::Accept { methods: methods.to_vec(), streams })?;
        self.receiver.send(&order)?;
        self.receiver.recv::<()>().context("the receiver")?;
        self.sender.recv().context("the sender")
    }

    pub(super) fn send(
        &mut self,
        method: Method,
        job: Job,
        timeout: Duration,
    ) -> anyhow::Result<Sample> {
        let order = SenderOrder::Send { method, job, timeout };
        let (sent, received): (Sent, Received) = self.transfer(&order, job.bytes, timeout)?;
        Ok(Sample {
            bytes: job.bytes,
            elapsed: sent.end.max(received.end).saturating_sub(sent.start).max(1),
            receiver_cpu: received.cpu,
            sent,
        })
    }

    pub(super) fn delay(
        &mut self,
        method: Method,
        bytes: u64,
        times: u32,
        timeout: Duration,
    ) -> anyhow::Result<Delays> {
        let order = SenderOrder::Delay { method, bytes, times, timeout };
        Ok(self.transfer(&order, bytes * u64::from(times), timeout)?.0)
    }

    fn transfer<T: DeserializeOwned>(
        &mut self,
        order: &SenderOrder,
        bytes: u64,
        timeout: Duration,
    ) -> anyhow::Result<(T, Received)> {
        self.receiver.send(&ReceiverOrder::Expect { bytes, timeout })?;
        self.receiver.recv::<()>().context("the receiver")?;
        self.sender.send(order)?;
        let sent = self.sender.recv().context("the sender");
        let received = self.receiver.recv().context("the receiver");
        // Where both failed, the sender knows why.
        Ok((sent?, received?))
    }
}
