//! The process that sends: one thread, all connections non-blocking in one epoll set, and the same
//! loop for each method of sending and each number of streams, as a server would have it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::num::NonZeroU64;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};
use rustix::event::epoll::EventFlags;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use sendfile2::guard::GuardedFile;
use sendfile2::{Engine, SendFlags, Sent as SentBy, Source, Status};

use super::bench_conn::{BenchConn, Step};
use super::clock;
use super::message::{self, Delays, Hello, Job, SenderOrder, SenderRole, Sent};
use super::poll::Poll;
use super::ring::Ring;
use crate::child;
use crate::method::Method;

/// Serves the parent until it goes away.
pub(super) fn run(role: &SenderRole) -> anyhow::Result<()> {
    let mut server = Server::new(role)?;
    message::answer(server.hello());
    while let Some(order) = child::recv() {
        match order {
            SenderOrder::Accept { methods, streams } => {
                message::answer(server.accept(&methods, streams));
            }
            SenderOrder::Send { method, job, timeout } => {
                message::answer(server.send(method, &job, Instant::now() + timeout));
            }
            SenderOrder::Delay { method, bytes, times, timeout } => {
                message::answer(server.delay(method, bytes, times, Instant::now() + timeout));
            }
        }
    }
    Ok(())
}

/// The file, in the forms that the methods need it in.
pub(super) struct Files {
    plain: File,
    source: Option<Source>,
    guard: Option<GuardedFile>,
}

impl Files {
    pub(super) fn plain(&self) -> &File {
        &self.plain
    }

    pub(super) fn source(&self) -> anyhow::Result<&Source> {
        self.source.as_ref().context("the file is closed")
    }

    pub(super) fn guard(&self) -> anyhow::Result<&GuardedFile> {
        self.guard.as_ref().context("the file is closed")
    }

    fn open(&mut self) -> anyhow::Result<()> {
        self.source = Some(Source::new(self.plain.try_clone()?)?);
        self.guard = Some(GuardedFile::new(self.plain.try_clone()?)?);
        Ok(())
    }

    /// Drops the first `size` bytes from the page cache, and looks whether they are gone.
    fn cool(&mut self, size: u64) -> anyhow::Result<()> {
        // Pages that are mapped stay in the page cache.
        (self.source, self.guard) = (None, None);
        rustix::fs::fdatasync(&self.plain).context("fdatasync")?;
        let advise =
            |size, advice| rustix::fs::fadvise(&self.plain, 0, NonZeroU64::new(size), advice);
        // Looking must not make the kernel read ahead.
        advise(0, Advice::Random).context("fadvise")?;
        for tries in 1.. {
            // Buffers that another processor has received are kept until this one receives
            // something (`skb_attempt_defer_free`), and the file's pages with them.
            nudge()?;
            advise(size, Advice::DontNeed).context("fadvise")?;
            if !self.is_warm(size) {
                break;
            }
            ensure!(
                tries < 100,
                "the file stays in the page cache: choose a directory on a disk with --dir"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // The pages looked at were asked for.
        advise(size, Advice::DontNeed).context("fadvise")?;
        advise(0, Advice::Normal).context("fadvise")
    }

    /// Returns whether any of some pages is in the page cache.
    fn is_warm(&self, size: u64) -> bool {
        (0..16).any(|i| {
            let buffer = &mut [0];
            let buffers = &mut [IoSliceMut::new(buffer)];
            let at = size / 16 * i;
            rustix::io::preadv2(&self.plain, buffers, at, ReadWriteFlags::NOWAIT)
                != Err(Errno::AGAIN)
        })
    }
}

/// Receives a datagram of its own.
fn nudge() -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("a UDP socket on loopback")?;
    socket.send_to(&[0], socket.local_addr()?).context("a datagram over loopback")?;
    socket.recv(&mut [0]).context("a datagram over loopback")?;
    Ok(())
}

/// The connections of one method.
struct Group {
    method: Method,
    conns: Vec<BenchConn>,
    /// The connections on a ring in place of `conns`, for the engine that has one; or the reason
    /// why there is none.
    ring: Option<Result<Ring, String>>,
    poll: Poll,
    /// Calls made so far that sent something.
    sends: u64,
    /// The offset in the file at which the next range begins.
    at: u64,
}

struct Server {
    files: Files,
    listener: TcpListener,
    groups: Vec<Group>,
    /// The counter of this thread's instructions outside the kernel, where there is one.
    instructions: Option<Counter>,
}

impl Server {
    fn new(role: &SenderRole) -> anyhow::Result<Self> {
        clock::pin(role.cpu).context("cannot stay on one processor")?;
        let path = format!("/proc/self/fd/{}", role.file);
        let plain = File::options().read(true).write(true).open(path)?;
        let mut files = Files { plain, source: None, guard: None };
        files.open()?;
        let listener = TcpListener::bind((role.listen, 0)).context("cannot listen")?;
        let mut instructions = Builder::new().kind(Hardware::INSTRUCTIONS).build().ok();
        if let Some(counter) = &mut instructions {
            counter.enable().context("the processor's counter of instructions")?;
        }
        Ok(Server { files, listener, groups: Vec::new(), instructions })
    }

    fn instructions(&mut self) -> Option<u64> {
        self.instructions.as_mut()?.read().ok()
    }

    fn hello(&self) -> anyhow::Result<Hello> {
        let setting = |name| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
            Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
        };
        Ok(Hello {
            address: self.listener.local_addr()?,
            congestion_control: setting("tcp_congestion_control"),
            tcp_wmem: setting("tcp_wmem"),
            tcp_rmem: setting("tcp_rmem"),
        })
    }

    fn accept(&mut self, methods: &[Method], streams: usize) -> anyhow::Result<()> {
        self.groups.clear();
        for method in methods {
            let poll = Poll::new()?;
            let (mut conns, mut for_ring) = (Vec::new(), Vec::new());
            let has_ring = method.engine() == Some(Engine::Uring);
            for number in 0..streams {
                let (socket, _) = self.listener.accept().context("accept")?;
                if has_ring {
                    for_ring.push(socket);
                    continue;
                }
                let conn = BenchConn::new(*method, socket)?;
                poll.add(&conn, number, EventFlags::OUT | EventFlags::ET)?;
                conns.push(conn);
            }
            let ring = has_ring.then(|| {
                let leased = matches!(method, Method::Leased(_));
                Ring::new(for_ring, leased).map_err(|error| crate::output::whole(&error))
            });
            self.groups.push(Group { method: *method, conns, ring, poll, sends: 0, at: 0 });
        }
        Ok(())
    }

    fn group(&mut self, method: Method) -> anyhow::Result<(&mut Group, &mut Files)> {
        let group = self.groups.iter_mut().find(|group| group.method == method);
        Ok((group.context("no connections for that")?, &mut self.files))
    }

    fn send(&mut self, method: Method, job: &Job, deadline: Instant) -> anyhow::Result<Sent> {
        if job.cold {
            self.files.cool(job.size)?;
        }
        let instructions = self.instructions();
        let (group, files) = self.group(method)?;
        if job.cold {
            group.at = 0;
        }
        let (sends, copies) = (group.sends, group.copies());
        let (switches, preemptions) = clock::switches();
        let (start, cpu) = (clock::now(), clock::cpu());
        if job.cold {
            files.open()?;
        }
        group.send(files, job, deadline)?;
        let (end, cpu) = (clock::now(), clock::cpu() - cpu);
        let (switched, preempted) = clock::switches();
        let copies = group.copies().zip(copies).map(|(after, before)| after - before);
        let sends = group.sends - sends;
        let instructions = self.instructions().zip(instructions);
        Ok(Sent {
            start,
            end,
            cpu,
            sends,
            copies,
            instructions: instructions.map(|(after, before)| after - before),
            switches: switched - switches,
            preemptions: preempted - preemptions,
        })
    }
}

impl Group {
    fn copies(&self) -> Option<u64> {
        if let Some(ring) = &self.ring {
            return ring.as_ref().map(Ring::copies).ok();
        }
        if self.method == Method::SENDFILE_LEASED {
            // Its headers are copied, and of the rest nothing is told.
            return None;
        }
        // A method that does not report copies on one connection reports them on none.
        let others = self.conns.iter().skip(1).map(|conn| conn.copies(0).unwrap_or(0));
        self.conns.first()?.copies(self.sends).map(|first| first + others.sum::<u64>())
    }

    /// The range that is sent next: the file, chunk by chunk, again and again.
    fn next(at: &mut u64, job: &Job, left: &mut u64) -> Range<u64> {
        if *at >= job.size {
            *at = 0;
        }
        let bytes = job.chunk.min(*left).min(job.size - *at);
        let range = *at..*at + bytes;
        *at = range.end;
        *left -= bytes;
        range
    }

    /// Sends, and waits until everything is released. Streams that have space take turns, one call
    /// each; when none has space, the socket that reports first that it has goes on.
    fn send(&mut self, files: &Files, job: &Job, deadline: Instant) -> anyhow::Result<()> {
        let mut left = job.bytes;
        if let Some(ring) = &mut self.ring {
            let ring = ring.as_mut().map_err(|why| anyhow!("{why}"))?;
            let at = &mut self.at;
            let next = || (left > 0).then(|| Group::next(at, job, &mut left));
            self.sends += ring.send(files, next, deadline)?;
            return Ok(());
        }
        let mut ready: VecDeque<usize> = (0..self.conns.len()).collect();
        let mut more = job.more;
        if more {
            self.conns.iter_mut().try_for_each(|conn| conn.set_more(true))?;
        }
        loop {
            while let Some(number) = ready.pop_front() {
                if self.conns[number].is_done() {
                    if left == 0 {
                        continue;
                    }
                    let range = Group::next(&mut self.at, job, &mut left);
                    self.conns[number].give(range)?;
                }
                if let Step::Sent(_) = self.conns[number].step(files)? {
                    self.sends += 1;
                    ready.push_back(number);
                }
            }
            if left == 0 && self.conns.iter().all(BenchConn::is_done) {
                if std::mem::take(&mut more) {
                    self.conns.iter_mut().try_for_each(|conn| conn.set_more(false))?;
                }
                if self.conns.iter().all(BenchConn::is_released) {
                    return Ok(());
                }
            }
            for (number, what) in self.poll.wait(deadline)? {
                if what.contains(EventFlags::ERR) {
                    self.conns[number].reap()?;
                }
                ready.push_back(number);
            }
        }
    }
}

impl Server {
    /// Sends again and again on an idle connection, and watches for the release and for the
    /// acknowledgement without a pause.
    fn delay(
        &mut self,
        method: Method,
        bytes: u64,
        times: u32,
        deadline: Instant,
    ) -> anyhow::Result<Delays> {
        let (group, files) = self.group(method)?;
        let mut delays = Delays {
            released: method.is_safe().then(Vec::new),
            acknowledged: Vec::with_capacity(times as usize),
        };
        if let Some(ring) = &mut group.ring {
            let ring = ring.as_mut().map_err(|why| anyhow!("{why}"))?;
            for _ in 0..times {
                let ticket = ring.hand_over(files, bytes, deadline)?;
                let times = watch(deadline, || {
                    ring.reap()?;
                    let released = matches!(ticket.status(), Status::Released(_));
                    Ok((released, sendfile2::unacknowledged(ring.first()?)? == 0))
                })?;
                delays.add(times);
            }
            return Ok(delays);
        }
        let conn = group.conns.first_mut().context("no connection")?;
        for _ in 0..times {
            let mut tickets = Vec::new();
            let mut at = 0;
            while at < bytes {
                ensure!(Instant::now() < deadline, "nothing moved in time");
                match conn.sender() {
                    Some(sender) => {
                        match sender.try_send_file(files.source()?, at..bytes, SendFlags::NONE)? {
                            SentBy::Accepted { bytes, ticket } => {
                                at += bytes as u64;
                                tickets.push(ticket);
                            }
                            _ => {
                                sender.reap()?;
                            }
                        }
                    }
                    None => {
                        conn.give(at..bytes)?;
                        if let Step::Sent(n) = conn.step(files)? {
                            at += n;
                        }
                    }
                }
            }
            delays.add(watch(deadline, || {
                conn.reap()?;
                Ok((conn.is_released(), sendfile2::unacknowledged(&*conn)? == 0))
            })?);
        }
        Ok(delays)
    }
}

impl Delays {
    fn add(&mut self, (released, acknowledged): (u64, u64)) {
        if let Some(times) = &mut self.released {
            times.push(released);
        }
        self.acknowledged.push(acknowledged);
    }
}

/// Looks without a pause until a send is released and acknowledged; returns after how many
/// nanoseconds.
fn watch(
    deadline: Instant,
    mut look: impl FnMut() -> anyhow::Result<(bool, bool)>,
) -> anyhow::Result<(u64, u64)> {
    let handed_over = clock::now();
    let (mut released, mut acknowledged) = (None, None);
    loop {
        ensure!(Instant::now() < deadline, "nothing was released in time");
        let (is_released, is_acknowledged) = look()?;
        let now = clock::now() - handed_over;
        if is_released {
            released.get_or_insert(now);
        }
        if is_acknowledged {
            acknowledged.get_or_insert(now);
        }
        if let (Some(released), Some(acknowledged)) = (released, acknowledged) {
            return Ok((released, acknowledged));
        }
    }
}
