//! Places for the server and the clients: loopback, or network namespaces of their own.
//!
//! Namespaces are made with unshare(1) and ip(8), in a user namespace where the user is not root,
//! and end with the processes that hold them, which end with this one.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, bail, ensure};
use clap::error::ErrorKind;

/// A value of `--peer-netns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Make one, and one for the server, joined by a veth pair.
    New,
    /// The network namespace of a process.
    Process(u32),
    /// A file such as /run/netns/NAME.
    Path(String),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "new" {
            Ok(Peer::New)
        } else if let Ok(pid) = text.parse() {
            Ok(Peer::Process(pid))
        } else if text.contains('/') {
            Ok(Peer::Path(text.into()))
        } else {
            Err("give \"new\", the number of a process, or a path such as /run/netns/peer".into())
        }
    }
}

/// The place of the receiving side, if that is not loopback.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// Put the receiving side into another network namespace: "new", the number of a process in it,
    /// or a path
    #[arg(long, value_name = "NETNS")]
    peer_netns: Option<Peer>,
    /// The address at which the sending side is reached from a namespace that exists
    #[arg(long, value_name = "ADDRESS", requires = "peer_netns")]
    connect: Option<IpAddr>,
}

impl Place {
    /// The places that were asked for, if any were.
    pub fn net(&self) -> anyhow::Result<Option<Net>> {
        let net = match (&self.peer_netns, self.connect) {
            (None, _) => return Ok(None),
            (Some(Peer::New), _) => Net::veth(),
            (Some(peer), connect) => Net::existing(peer, connect.unwrap_or_else(|| missing())),
        };
        net.map(Some).context("--peer-netns")
    }

    /// A namespace that exists, for a thread of this process to enter, and the address of the
    /// sending side as seen from there.
    pub fn namespace(&self) -> anyhow::Result<Option<(File, IpAddr)>> {
        let path = match &self.peer_netns {
            None => return Ok(None),
            Some(Peer::New) => bail!("--peer-netns: this needs a namespace that exists"),
            Some(Peer::Process(pid)) => format!("/proc/{pid}/ns/net"),
            Some(Peer::Path(path)) => path.clone(),
        };
        let connect = self.connect.unwrap_or_else(|| missing());
        let file = File::open(&path).with_context(|| format!("--peer-netns: {path}"))?;
        Ok(Some((file, connect)))
    }
}

/// Ends the program with an error of the command line: clap cannot express "unless it is new".
fn missing() -> ! {
    let message = "--peer-netns with a namespace that exists needs --connect ADDRESS: where the \
                   sending side is, as seen from there\n";
    clap::Error::raw(ErrorKind::MissingRequiredArgument, message).exit()
}

/// The places of both sides, and how to run a command in each.
#[derive(Debug)]
pub struct Net {
    /// The words before a command that run it at the server's place.
    pub server: Vec<String>,
    /// The words before a command that run it at the clients' place.
    pub clients: Vec<String>,
    /// The address that the server listens at.
    pub listen: IpAddr,
    /// The address by which clients reach it.
    pub connect: IpAddr,
    /// Whether the server's namespace was made for it: then its settings may be changed.
    pub own: bool,
    /// The name of the path between the two, for reports.
    pub name: &'static str,
    _anchors: Vec<Anchor>,
}

impl Net {
    /// Makes the place loopback, as it is here.
    pub fn loopback() -> Self {
        let localhost = Ipv4Addr::LOCALHOST.into();
        Net {
            server: Vec::new(),
            clients: Vec::new(),
            listen: localhost,
            connect: localhost,
            own: false,
            name: "loopback",
            _anchors: Vec::new(),
        }
    }

    /// Makes the place loopback in a namespace made for it.
    pub fn own_loopback() -> anyhow::Result<Self> {
        let anchor = Anchor::new(&[])?;
        let inside = anchor.enter();
        Ok(Net {
            server: inside.clone(),
            clients: inside,
            own: true,
            _anchors: vec![anchor],
            ..Net::loopback()
        })
    }

    /// Two namespaces made for this, joined by a veth pair.
    pub fn veth() -> anyhow::Result<Self> {
        let here = Anchor::new(&[])?;
        let there = Anchor::new(&here.enter())?;
        let pid = there.pid();
        sh(
            &here.enter(),
            &format!(
                "ip link add v0 type veth peer name v1 netns {pid}
                 ip addr add 10.7.0.1/24 dev v0
                 ip link set v0 up"
            ),
        )?;
        sh(&there.enter(), "ip addr add 10.7.0.2/24 dev v1; ip link set v1 up")?;
        Ok(Net {
            server: here.enter(),
            clients: there.enter(),
            listen: Ipv4Addr::UNSPECIFIED.into(),
            connect: Ipv4Addr::new(10, 7, 0, 1).into(),
            own: true,
            name: "veth",
            _anchors: vec![here, there],
        })
    }

    /// The clients in a namespace that exists, from which the server is reached at `connect`.
    pub fn existing(peer: &Peer, connect: IpAddr) -> anyhow::Result<Self> {
        let target = match peer {
            Peer::New => return Net::veth(),
            Peer::Process(pid) => format!("--net=/proc/{pid}/ns/net"),
            Peer::Path(path) => format!("--net={path}"),
        };
        let mut clients = vec!["nsenter".into()];
        match peer {
            // The network namespace belongs to that process's user namespace.
            Peer::Process(pid) if !is_root() => clients
                .extend([format!("--user=/proc/{pid}/ns/user"), "--preserve-credentials".into()]),
            _ => {}
        }
        clients.push(target);
        possible(&clients).context("cannot enter the namespace of --peer-netns")?;
        let listen = match connect {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(Net {
            clients,
            listen,
            connect,
            own: !in_first_namespace(),
            name: "peer namespace",
            ..Net::loopback()
        })
    }
}

/// Returns whether this process is in the network namespace of the machine itself; `true` where
/// that is not known.
fn in_first_namespace() -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    match (namespace("self"), namespace("1")) {
        (Some(own), Some(first)) => own == first,
        _ => true,
    }
}

/// Returns whether the process is root's, in its own user namespace.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A process that holds a network namespace, until its standard input ends.
#[derive(Debug)]
struct Anchor(Child);

impl Anchor {
    /// Makes a namespace, with loopback up, from within the place that `wrapper` leads to.
    fn new(wrapper: &[String]) -> anyhow::Result<Self> {
        let mut words = wrapper.to_vec();
        words.push("unshare".into());
        // A user who is not root is root in a user namespace; within that, there is one already.
        if !is_root() && wrapper.is_empty() {
            words.extend(["--user".into(), "--map-root-user".into()]);
        }
        let script = "ip link set lo up && echo ready && exec cat";
        words.extend(["--net", "sh", "-c", script].map(String::from));
        let child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", words[0]))?;
        let mut anchor = Anchor(child);
        let mut ready = [0; 6];
        let read = anchor.0.stdout.as_mut().map(|out| out.read_exact(&mut ready));
        if !matches!(read, Some(Ok(()))) {
            let mut said = String::new();
            if let Some(mut err) = anchor.0.stderr.take() {
                let _ = err.read_to_string(&mut said);
            }
            bail!("cannot make a network namespace: {}", one_line(&said));
        }
        Ok(anchor)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// The words before a command that run it in the namespace.
    fn enter(&self) -> Vec<String> {
        let mut words = vec!["nsenter".into(), "-t".into(), self.pid().to_string(), "-n".into()];
        if !is_root() {
            words.extend(["-U".into(), "--preserve-credentials".into()]);
        }
        words
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs this program within the place that `wrapper` leads to.
pub fn ourselves(wrapper: &[String]) -> anyhow::Result<Command> {
    let program = std::env::current_exe().context("cannot find this program")?;
    Ok(match wrapper {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    })
}

fn sh(wrapper: &[String], script: &str) -> anyhow::Result<()> {
    let mut words = wrapper.to_vec();
    words.extend(["sh", "-ec", script].map(String::from));
    run(&words)
}

/// Checks that `wrapper` can run a command; the error is the reason why not.
pub fn possible(wrapper: &[String]) -> anyhow::Result<()> {
    let mut words = wrapper.to_vec();
    words.push("true".into());
    run(&words)
}

fn run(words: &[String]) -> anyhow::Result<()> {
    let output = Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", words[0]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", words[0], one_line(&said));
    Ok(())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
