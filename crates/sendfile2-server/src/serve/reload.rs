//! A server that runs, and what changes while it does.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::sync::Arc;

use anyhow::{Context, ensure};
use sd_notify::NotifyState;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use super::connection::{Server, Speaks};
use super::log;
use super::site::Site;
use super::sockets::{self, Listener};
use super::tell;
use crate::config::{Config, What, Wrong};
use crate::net::{self, Address};
use crate::output;

pub(super) struct Running {
    server: Arc<Server>,
    config: Config,
    /// The command line.
    line: Vec<OsString>,
    at_start: AtStart,
    /// Whether systemd has given a socket to serve on.
    of_systemd: bool,
    listening: JoinSet<()>,
    /// The listeners at addresses of the options.
    own: VecDeque<((Speaks, Address), AbortHandle)>,
}

/// The result of reading and opening all anew.
struct Read {
    config: Config,
    site: Site,
    log: Option<log::Target>,
    /// The listener at each address that is not listened at yet.
    new: Vec<((Speaks, Address), net::Listener)>,
}

impl Running {
    pub(super) fn new(
        server: Arc<Server>,
        config: Config,
        line: Vec<OsString>,
        of_systemd: bool,
    ) -> Self {
        let at_start = AtStart::of(&config);
        let (listening, own) = (JoinSet::new(), VecDeque::new());
        Running { server, config, line, at_start, of_systemd, listening, own }
    }

    pub(super) fn listen(&mut self, Listener { speaks, name, of, socket }: Listener) {
        output::note(&format!("sendfile2: listening on {name}"));
        let task = self.listening.spawn(Arc::clone(&self.server).accept(speaks, socket));
        self.own.extend(of.map(|address| ((speaks, address), task)));
    }

    /// Waits until a listener ends that was not told to: they only do when they panic.
    pub(super) async fn listener_ends(&mut self) -> Result<(), JoinError> {
        loop {
            match self.listening.join_next().await {
                Some(Err(e)) if e.is_cancelled() => {}
                Some(ended) => return ended,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) async fn stop_listening(&mut self) {
        self.listening.shutdown().await;
    }

    /// Reads all that can be read anew, and serves by it from the next request on; or says why not,
    /// and goes on as before.
    pub(super) async fn reload(&mut self) {
        let now = NotifyState::monotonic_usec_now();
        tell(&[vec![NotifyState::Reloading], now.into_iter().collect()].concat());
        let meters = &self.server.meters;
        let mut read = self.read().await;
        if read.as_ref().is_err_and(has_room_now) {
            read = self.read().await;
        }
        match read {
            Ok(read) => {
                meters.reloads.increment(1);
                self.change(read).await;
            }
            Err(e) => {
                meters.failed_reloads.increment(1);
                output::report_error(&e.context("not reloaded, all stays as it was"));
            }
        }
        tell(&[NotifyState::Ready]);
    }

    async fn read(&self) -> anyhow::Result<Read> {
        let (line, of_systemd) = (self.line.clone(), self.of_systemd);
        let mut old: Vec<_> = self.own.iter().map(|(of, _)| of.clone()).collect();
        let others = self.listening.len() - old.len();
        let room = self.server.connections;
        // A cache keeps its store.
        let before = self.server.site.load_full();
        let read = move || {
            let config = Config::read(&line).map_err(|wrong| match wrong {
                Wrong::Usage(e) => anyhow::anyhow!("{}", e.render()),
                Wrong::File(e) => e,
            })?;
            let site = Site::new(&config, None, Some(&before))?;
            let log = config.operation().access_log.as_deref().map(log::open).transpose();
            let log = log.with_context(|| config.place("access-log", 0))?;
            let all = sockets::addresses(config.operation(), of_systemd);
            ensure!(
                u32::try_from(all.len() + others).is_ok_and(|listeners| listeners <= room),
                "each listener needs a connection to accept, and there are {room}"
            );
            let mut new = Vec::new();
            for of in all {
                match old.iter().position(|it| *it == of) {
                    Some(i) => drop(old.swap_remove(i)),
                    None => new.push((of.clone(), of.1.listen()?)),
                }
            }
            Ok(Read { config, site, log, new })
        };
        // The disk is waited for, and who knows the addresses of names.
        tokio::task::spawn_blocking(read).await?
    }

    async fn change(&mut self, Read { config, site, log, new }: Read) {
        site.check_origins();
        self.server.site.store(Arc::new(site));
        self.turn(log).await;
        let mut wanted = sockets::addresses(config.operation(), self.of_systemd);
        for _ in 0..self.own.len() {
            let Some((of, task)) = self.own.pop_front() else { break };
            match wanted.iter().position(|it| *it == of) {
                Some(i) => {
                    wanted.swap_remove(i);
                    self.own.push_back((of, task));
                }
                // Its connections go on.
                None => task.abort(),
            }
        }
        for ((speaks, address), listener) in new {
            match Listener::own(speaks, address, listener) {
                Ok(listener) => self.listen(listener),
                Err(e) => output::report_error(&e),
            }
        }
        output::note("sendfile2: reloaded");
        for key in self.at_start.differ(&config) {
            output::note(&format!(
                "sendfile2: {}: this takes effect when the server is started anew",
                config.place(key, 0)
            ));
        }
        self.config = config;
    }

    /// Opens the access log again, after it was renamed.
    pub(super) async fn reopen(&self) {
        let path = self.config.operation().access_log.clone();
        let open = move || path.as_deref().map(log::open).transpose();
        let open = move || {
            let log = open();
            if log.as_ref().is_err_and(has_room_now) { open() } else { log }
        };
        match tokio::task::spawn_blocking(open).await.map_err(anyhow::Error::from) {
            Ok(Ok(log)) => self.turn(log).await,
            Ok(Err(e)) | Err(e) => {
                output::report_error(&e.context("the access log stays where it was"));
            }
        }
    }

    async fn turn(&self, log: Option<log::Target>) {
        if !self.server.log.turn(log).await {
            output::note(
                "sendfile2: the access log stays where it was: its reader does not read; signal \
                 again when it does",
            );
        }
    }
}

/// Returns whether it was for want of descriptors, and files that were only kept have made room.
fn has_room_now(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref()).any(sendfile2_axum::make_room)
}

/// The options that are only looked at when the server starts.
struct AtStart(Vec<(&'static str, String)>);

impl AtStart {
    fn of(config: &Config) -> Self {
        let args = config.operation();
        let mut all = vec![
            ("admin", format!("{:?}", args.admin)),
            ("workers", format!("{:?}", args.workers)),
            ("max-connections", format!("{:?}", args.max_connections)),
        ];
        if let What::Cache(args) = &config.what {
            all.push(("store", format!("{:?}", args.store)));
            all.push(("size", format!("{:?}", args.size)));
            all.push(("second-request", format!("{:?}", args.second_request)));
        }
        AtStart(all)
    }

    /// Returns those that are not what they were then.
    fn differ(&self, config: &Config) -> Vec<&'static str> {
        let now = AtStart::of(config).0.into_iter();
        now.zip(&self.0).filter_map(|(now, then)| (now != *then).then_some(then.0)).collect()
    }
}
