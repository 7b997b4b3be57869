//! The parent: starts the processes, brings the faults about, and adds up what is reported.

use std::collections::VecDeque;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;

use super::Args;
use super::block::mix;
use super::fault::{Action, Fault, schedule};
use super::message::{ClientsRole, DisturberRole, Layout, Line, Order, Role, ServerRole};
use super::process::{Event, Id, Process};
use super::report::Totals;
use crate::method::Method;
use crate::netns::{self, Net};

/// The time that a server has to start, or to stop and drain.
const SERVER: Duration = Duration::from_secs(60);

/// The time that client processes have to end.
const CLIENTS: Duration = Duration::from_secs(6);

/// The limit of the fault `memlock`, in bytes.
const MEMLOCK: u64 = 64 << 10;

/// The state of the server process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Starting(Instant),
    Up,
    /// The server was ordered to stop; then another one starts, or none.
    Stopping(Instant, Option<Next>),
    Stopped,
}

/// The way the next server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    memlock: bool,
}

pub(super) struct Parent<'a> {
    args: &'a Args,
    layout: Layout,
    file: File,
    net: &'a Net,
    seed: u64,
    sender: mpsc::Sender<Event>,
    events: mpsc::Receiver<Event>,
    ids: Id,
    lives: u32,
    address: SocketAddr,
    server: Option<Process>,
    state: Server,
    clients: Vec<Process>,
    disturber: Option<Process>,
    optmem: Option<u32>,
    rng: fastrand::Rng,
    pub(super) totals: Totals,
}

impl<'a> Parent<'a> {
    pub(super) fn new(args: &'a Args, file: File, net: &'a Net, seed: u64) -> anyhow::Result<Self> {
        let layout = args.layout();
        // The server inherits it; it has no name to be opened by.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
        let (sender, events) = mpsc::channel();
        Ok(Parent {
            args,
            layout,
            file,
            net,
            seed,
            sender,
            events,
            ids: 0,
            lives: 0,
            address: SocketAddr::new(net.listen, 0),
            server: None,
            state: Server::Stopped,
            clients: Vec::new(),
            disturber: None,
            optmem: None,
            rng: fastrand::Rng::with_seed(mix(seed)),
            totals: Totals::default(),
        })
    }

    /// Runs the whole torture. Its findings are in the totals; an error is what kept it from
    /// running.
    pub(super) fn run(&mut self, progress: &ProgressBar) -> anyhow::Result<()> {
        let faults = self.possible_faults();
        self.start_server(false)?;
        while self.state != Server::Up {
            self.step(Instant::now() + SERVER)?;
        }
        self.start_clients()?;
        self.start_disturber()?;

        self.totals.begin();
        let began = Instant::now();
        let end = began + self.args.duration;
        let mut plan: VecDeque<_> = schedule(&faults, self.args.duration).into();
        while Instant::now() < end {
            let next = plan.front().map(|(at, action)| (began + *at, *action));
            match next {
                // Faults wait for a server that is there.
                Some((at, action)) if at <= Instant::now() && self.state == Server::Up => {
                    plan.pop_front();
                    self.act(action)?;
                }
                _ => {}
            }
            let at = next.map_or(end, |(at, _)| at.max(Instant::now()));
            self.step(at.min(end).min(Instant::now() + Duration::from_millis(100)))?;
            progress.set_position(began.elapsed().as_secs());
            progress.set_message(self.totals.line());
        }
        self.totals.seconds = began.elapsed().as_secs_f64();
        for fault in faults {
            self.totals.missed(fault.name());
        }
        progress.set_message(format!("{}, draining", self.totals.line()));

        // First the server: what stalled clients hold is for it to get back.
        while matches!(self.state, Server::Starting(_) | Server::Stopping(..)) {
            self.step(Instant::now() + Duration::from_millis(100))?;
        }
        self.stop_server(None);
        while self.state != Server::Stopped {
            self.step(Instant::now() + Duration::from_millis(100))?;
        }
        for process in self.clients.iter_mut().chain(&mut self.disturber) {
            process.order(Order::Stop);
        }
        let deadline = Instant::now() + CLIENTS;
        let some_left = |parent: &Self| !parent.clients.is_empty() || parent.disturber.is_some();
        while some_left(self) && Instant::now() < deadline {
            self.step(Instant::now() + Duration::from_millis(50))?;
        }
        if some_left(self) {
            self.totals.unexpected("child processes did not end when they were told to".into());
        }
        self.clients.clear();
        self.disturber = None;
        for disturb in self.args.disturb() {
            self.totals.missed(disturb.name());
        }
        Ok(())
    }

    /// Returns the faults that are possible here; the others are noted with the reason.
    fn possible_faults(&mut self) -> Vec<Fault> {
        let mut possible = Vec::new();
        for fault in &self.args.faults.0 {
            let why_not = match fault {
                Fault::Memlock => {
                    netns::possible(&self.limited()).err().map(|e| crate::output::whole(&e))
                }
                Fault::Optmem if !self.net.own => Some(
                    "net.core.optmem_max would have to be set for this network namespace, which \
                     others use"
                        .into(),
                ),
                Fault::Optmem => {
                    self.optmem = self.read_optmem();
                    self.optmem.is_none().then(|| {
                        "net.core.optmem_max does not belong to a network namespace here (Linux \
                         before 6.9)"
                            .into()
                    })
                }
                _ => None,
            };
            match why_not {
                None => possible.push(*fault),
                Some(why) => self.totals.skip(fault.name(), &why),
            }
        }
        possible
    }

    /// Returns the command that runs the server with little locked memory, as a user whom the limit
    /// binds.
    fn limited(&self) -> Vec<String> {
        let mut words = self.net.server.clone();
        words.extend(["prlimit".into(), format!("--memlock={MEMLOCK}:{MEMLOCK}")]);
        if netns::is_root() {
            words.extend(
                ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"].map(String::from),
            );
        }
        words
    }

    /// `net.core.optmem_max` as the server sees it, if it is there.
    fn read_optmem(&self) -> Option<u32> {
        let mut words = self.net.server.clone();
        words.extend(["cat", "/proc/sys/net/core/optmem_max"].map(String::from));
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    }

    fn id(&mut self) -> Id {
        self.ids += 1;
        self.ids
    }

    fn start_server(&mut self, memlock: bool) -> anyhow::Result<()> {
        let role = Role::Server(ServerRole {
            file: self.file.as_raw_fd(),
            layout: self.layout,
            listen: self.address,
            method: Method::Leased(self.args.engine),
            overwrite: self.args.overwrite,
            sparse: self.args.sparse,
            writers: self.args.writers,
            clients: self.args.clients,
            life: self.lives,
            seed: self.seed,
        });
        self.lives += 1;
        let wrapper = if memlock { self.limited() } else { self.net.server.clone() };
        let id = self.id();
        self.server = Some(Process::start(id, &wrapper, &role, self.sender.clone())?);
        self.state = Server::Starting(Instant::now() + SERVER);
        self.totals.life();
        if memlock {
            self.totals.fault(Fault::Memlock.name());
        }
        Ok(())
    }

    fn stop_server(&mut self, next: Option<Next>) {
        if let Some(server) = &mut self.server {
            server.order(Order::Stop);
        }
        self.state = Server::Stopping(Instant::now() + SERVER, next);
    }

    fn start_clients(&mut self) -> anyhow::Result<()> {
        for number in 0..self.args.processes.min(self.args.clients) {
            let process = self.client_process(number)?;
            self.clients.push(process);
        }
        Ok(())
    }

    /// Starts the process that disturbs the writers; it lives as long as the run.
    fn start_disturber(&mut self) -> anyhow::Result<()> {
        let disturb = self.args.disturb();
        if disturb.is_empty() {
            return Ok(());
        }
        let id = self.id();
        let role = Role::Disturber(DisturberRole {
            file: self.file.as_raw_fd(),
            layout: self.layout,
            disturb,
            seed: mix(self.seed ^ u64::from(id) << 32),
        });
        self.disturber = Some(Process::start(id, &self.net.server, &role, self.sender.clone())?);
        Ok(())
    }

    /// Starts the process of that number, with its share of the clients.
    fn client_process(&mut self, number: u32) -> anyhow::Result<Process> {
        let (all, processes) = (self.args.clients, self.args.processes);
        let clients = all / processes + u32::from(number < all % processes);
        let id = self.id();
        let role = Role::Clients(ClientsRole {
            connect: SocketAddr::new(self.net.connect, self.address.port()),
            layout: self.layout,
            clients,
            seed: mix(self.seed ^ u64::from(id) << 32),
        });
        Process::start(id, &self.net.clients, &role, self.sender.clone())
    }

    fn act(&mut self, action: Action) -> anyhow::Result<()> {
        match action {
            Action::KillClients => {
                if self.clients.is_empty() {
                    bail!("all client processes have ended");
                }
                let victim = self.rng.usize(0..self.clients.len());
                self.clients[victim].child.kill();
                self.totals.fault(Fault::ClientKill.name());
                self.clients[victim] = self.client_process(u32::try_from(victim)?)?;
            }
            Action::KillServer => {
                if let Some(mut server) = self.server.take() {
                    server.child.kill();
                }
                self.totals.fault(Fault::ServerKill.name());
                // The new server overwrites everything before it does anything else.
                self.start_server(false)?;
            }
            Action::Emfile => self.order(Order::Emfile),
            Action::Restart { memlock } => self.stop_server(Some(Next { memlock })),
            Action::Optmem(Some(bytes)) => self.order(Order::Optmem(bytes)),
            Action::Optmem(None) => {
                if let Some(bytes) = self.optmem {
                    self.order(Order::Optmem(bytes));
                }
            }
        }
        Ok(())
    }

    fn order(&mut self, order: Order) {
        if let Some(server) = &mut self.server {
            server.order(order);
        }
    }

    /// Waits for an event, until `until`, and takes it in.
    fn step(&mut self, until: Instant) -> anyhow::Result<()> {
        match self.state {
            Server::Starting(deadline) if Instant::now() > deadline => {
                bail!("the server did not start within {} s", SERVER.as_secs());
            }
            Server::Stopping(deadline, _) if Instant::now() > deadline => {
                self.server = None;
                bail!("the server did not stop within {} s", SERVER.as_secs());
            }
            _ => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(left) {
            Ok(Event::Sent(id, line)) => self.received(id, line),
            Ok(Event::Gone(id)) => self.gone(id)?,
            Err(_) => {}
        }
        Ok(())
    }

    fn received(&mut self, id: Id, line: Line) {
        let current = self.server.as_ref().is_some_and(|server| server.id == id);
        match line {
            Line::Listening(address) if current => {
                self.address.set_port(address.port());
                self.state = Server::Up;
            }
            Line::Listening(_) => {}
            Line::Server(tally) => self.totals.server(&tally),
            Line::Clients(tally) => self.totals.clients(&tally),
            Line::Disturbed(done) => self.totals.disturbed(&done),
            Line::Wrong(wrong) => self.totals.wrong(wrong),
            Line::Unexpected(what) => self.totals.unexpected(what),
            Line::Fault(name) => self.totals.fault(&name),
            Line::NoFault { name, why } => self.totals.skip(&name, &why),
            Line::Left { unknown } => {
                *self.totals.unknown_left.get_or_insert(0) += unknown;
            }
        }
    }

    fn gone(&mut self, id: Id) -> anyhow::Result<()> {
        if self.server.as_ref().is_some_and(|server| server.id == id) {
            if let Some(server) = &mut self.server {
                server.child.wait(Instant::now() + CLIENTS);
            }
            self.server = None;
            match self.state {
                Server::Stopping(_, Some(Next { memlock })) => self.start_server(memlock)?,
                Server::Stopping(_, None) => self.state = Server::Stopped,
                _ => bail!("the server ended by itself"),
            }
        } else if self.disturber.as_ref().is_some_and(|disturber| disturber.id == id) {
            if self.state != Server::Stopped {
                bail!("the process that disturbs ended by itself");
            }
            self.disturber = None;
        } else if let Some(at) = self.clients.iter().position(|process| process.id == id) {
            // They end after the order to, which comes when the server has ended.
            if self.state != Server::Stopped {
                bail!("a process of clients ended by itself");
            }
            self.clients[at].child.wait(Instant::now() + CLIENTS);
            self.clients.remove(at);
        }
        Ok(())
    }
}
