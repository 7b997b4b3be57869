//! The sockets that are listened on: those of the options, and those that systemd gives.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use anyhow::{Context, anyhow, ensure};
use listenfd::ListenFd;

use super::connection::Speaks;
use crate::args::operation::Operation;
use crate::net::{self, Address};

/// The number of connections that may wait until they are accepted; the standard library's 128 are
/// less than a burst of clients. The kernel takes at most net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A listener of tokio's.
pub(super) enum Listening {
    Tcp(tokio::net::TcpListener),
    /// A unix listener, with the owner of its path, if that is ours, which removes it in the end.
    Unix(
        tokio::net::UnixListener,
        #[expect(dead_code, reason = "it is there to be dropped")] Option<net::Listener>,
    ),
}

/// A socket that systemd gives (`LISTEN_FDS`), with the name that its unit gives it.
pub(super) struct Given {
    name: String,
    socket: Socket,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Given {
    /// Returns the sockets that were given to this process. To be called once, and while there are no
    /// other threads: it clears the environment of them.
    pub(super) fn all() -> anyhow::Result<Vec<Given>> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut sockets = ListenFd::from_env();
        let mut given = Vec::new();
        for i in 0..sockets.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let tcp = sockets.take_tcp_listener(i).map(|tcp| tcp.map(Socket::Tcp));
            let unix = |_| sockets.take_unix_listener(i).map(|unix| unix.map(Socket::Unix));
            let socket = tcp.or_else(unix).map_err(|_| {
                anyhow!("socket {i} of LISTEN_FDS ({name}) is no listener for streams: ListenStream= makes one")
            })?;
            given.extend(socket.map(|socket| Given { name, socket }));
        }
        Ok(given)
    }

    fn is_admin(&self) -> bool {
        self.name == "admin"
    }

    fn speaks(&self) -> Speaks {
        if self.name == "http" { Speaks::Plain } else { Speaks::Tls }
    }

    fn open(self) -> anyhow::Result<(String, Listening)> {
        Ok(match self.socket {
            Socket::Tcp(tcp) => (tcp.local_addr()?.to_string(), tokio_tcp(tcp)?),
            Socket::Unix(unix) => {
                let address = unix.local_addr()?;
                let path = address.as_pathname().map_or("?".into(), |it| it.display().to_string());
                (format!("unix:{path}"), Listening::Unix(tokio_unix(unix)?, None))
            }
        })
    }
}

/// Returns whether one of the sockets is to serve on.
pub(super) fn serve(given: &[Given]) -> bool {
    !given.iter().all(Given::is_admin)
}

/// Returns the addresses of the options; without any, and without a socket of systemd's, there is one.
pub(super) fn addresses(args: &Operation, of_systemd: bool) -> Vec<(Speaks, Address)> {
    let listen = args.listen.iter().map(|address| (Speaks::Tls, address.clone()));
    let http = args.listen_http.iter().map(|address| (Speaks::Plain, address.clone()));
    let mut all: Vec<_> = listen.chain(http).collect();
    if all.is_empty() && !of_systemd {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        all.push((Speaks::Tls, address.into()));
    }
    all
}

/// A socket that is listened on.
pub(super) struct Listener {
    pub(super) speaks: Speaks,
    /// Its address, as it is told.
    pub(super) name: String,
    /// The address of the options that it is of.
    pub(super) of: Option<Address>,
    pub(super) socket: Listening,
}

impl Listener {
    /// Makes one of a socket that listens at an address of the options.
    pub(super) fn own(speaks: Speaks, of: Address, own: net::Listener) -> anyhow::Result<Self> {
        let (name, socket) = listening(own)?;
        Ok(Listener { speaks, name, of: Some(of), socket })
    }
}

/// All that is listened on.
pub(super) struct Opened {
    pub(super) listeners: Vec<Listener>,
    pub(super) admin: Option<(String, Listening)>,
}

impl Opened {
    pub(super) fn new(args: &Operation, given: Vec<Given>) -> anyhow::Result<Self> {
        let addresses = addresses(args, serve(&given));
        let mut opened = Opened { listeners: Vec::new(), admin: None };
        for given in given {
            let (admin, speaks) = (given.is_admin(), given.speaks());
            let (name, socket) = given.open()?;
            if admin {
                ensure!(opened.admin.is_none(), "two sockets of LISTEN_FDNAMES are called admin");
                opened.admin = Some((name, socket));
            } else {
                opened.listeners.push(Listener { speaks, name, of: None, socket });
            }
        }
        if let (Some(address), None) = (&args.admin, &opened.admin) {
            opened.admin = Some(listening(address.listen()?)?);
        }
        for (speaks, address) in addresses {
            let listener = address.listen()?;
            opened.listeners.push(Listener::own(speaks, address, listener)?);
        }
        Ok(opened)
    }
}

fn listening(listener: net::Listener) -> anyhow::Result<(String, Listening)> {
    let name = listener.address()?.to_string();
    let listening = match &listener {
        net::Listener::Tcp(tcp) => tokio_tcp(tcp.try_clone()?)?,
        net::Listener::Unix(unix, ..) => {
            Listening::Unix(tokio_unix(unix.try_clone()?)?, Some(listener))
        }
    };
    Ok((name, listening))
}

const CANNOT: &str = "cannot give the listener to the runtime";

fn tokio_tcp(tcp: TcpListener) -> anyhow::Result<Listening> {
    rustix::net::listen(&tcp, BACKLOG)?;
    tcp.set_nonblocking(true)?;
    Ok(Listening::Tcp(tokio::net::TcpListener::from_std(tcp).context(CANNOT)?))
}

fn tokio_unix(unix: UnixListener) -> anyhow::Result<tokio::net::UnixListener> {
    rustix::net::listen(&unix, BACKLOG)?;
    unix.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(unix).context(CANNOT)
}
