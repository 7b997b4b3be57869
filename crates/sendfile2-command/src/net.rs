//! Addresses as people write them, and the connections that they lead to.

use std::fmt;
use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{self as unix, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::net::sockopt;
use socket2::{Domain, Socket, Type};

use crate::output;

/// `HOST:PORT`, `unix:PATH`, or `unix:@NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address of the internet; an empty host is any address of this host.
    Internet {
        /// A name, or an IP address without brackets.
        host: String,
        /// A TCP port.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A name in the namespace of abstract unix sockets, which no filesystem has.
    Abstract(String),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("give the socket's path: unix:/run/it.sock".into());
            }
            return match path.strip_prefix('@') {
                None => Ok(Address::Unix(path.into())),
                Some("") => Err("give the abstract socket's name: unix:@name".into()),
                Some(name) => Ok(Address::Abstract(name.into())),
            };
        }
        if text.starts_with('[') && text.ends_with(']') {
            return Err(format!("the port is missing: give {text}:PORT, such as {text}:9000"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err("the port is missing: give HOST:PORT, or unix:PATH".into());
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if bare.is_none() && text.parse::<Ipv6Addr>().is_ok() {
            // The end of the host in "::1:80" is not clear.
            return Err(format!(
                "put an IPv6 address in brackets, and a port behind them: [{text}]:9000, or \
                 [{host}]:{port} if {port} is the port"
            ));
        }
        if port.is_empty() {
            return Err(format!("the port is missing: give {text}PORT, such as {text}9000"));
        }
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is no port: give a number from 0 to 65535"))?;
        let host = match bare {
            Some(host) => host,
            None if host.contains(['[', ']']) => {
                return Err("brackets belong around an IPv6 address: [::1]:9000".into());
            }
            None if host.contains(':') => {
                return Err(format!("put an IPv6 address in brackets: [{host}]:{port}"));
            }
            None => host,
        };
        Ok(Address::Internet { host: host.into(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Internet { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Internet { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Abstract(name) => write!(f, "unix:@{name}"),
        }
    }
}

/// Reads an address that can be connected to.
pub fn destination(text: &str) -> Result<Address, String> {
    match text.parse()? {
        Address::Internet { host, .. } if host.is_empty() => {
            Err("the host is missing: give HOST:PORT, or unix:PATH".into())
        }
        Address::Internet { port: 0, .. } => Err("nothing listens on port 0".into()),
        address => Ok(address),
    }
}

impl Address {
    /// Returns whether the address is of a unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Address::Unix(_) | Address::Abstract(_))
    }

    /// Connects, trying each address that the name has, within `timeout` in all.
    ///
    /// The end of this process, whatever brings it, resets a TCP connection, so that the peer does
    /// not take a part for the whole; until [`outlive`].
    pub fn connect(&self, timeout: Duration) -> anyhow::Result<OwnedFd> {
        let hint = "is the receiver running (sendfile2 recv)?";
        match self {
            Address::Unix(path) => match UnixStream::connect(path) {
                Ok(socket) => Ok(socket.into()),
                Err(e) => bail!("cannot connect to {self}: {e}; {hint}"),
            },
            Address::Abstract(name) => match abstractly(name, UnixStream::connect_addr) {
                Ok(socket) => Ok(socket.into()),
                Err(e) => bail!("cannot connect to {self}: {e}; {hint}"),
            },
            Address::Internet { host, port } => {
                let deadline = Instant::now() + timeout;
                let mut failed = None;
                for address in resolve(host, *port)? {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let left = left.max(Duration::from_millis(1));
                    match connect(address, left) {
                        Ok(socket) => return Ok(socket),
                        Err(e) => failed = Some((address, e)),
                    }
                }
                let Some((address, e)) = failed else { bail!("the name {host} has no address") };
                let at = if *self == Address::from(address) {
                    String::new()
                } else {
                    format!(" at {address}")
                };
                match e.kind() {
                    io::ErrorKind::ConnectionRefused => {
                        bail!("cannot connect to {self}{at}: {e}; {hint}")
                    }
                    io::ErrorKind::TimedOut => bail!("cannot connect to {self}{at}: no answer"),
                    _ => bail!("cannot connect to {self}{at}: {e}"),
                }
            }
        }
    }

    /// Listens.
    pub fn listen(&self) -> anyhow::Result<Listener> {
        match self {
            Address::Unix(path) => {
                remove_stale(path);
                let listener =
                    UnixListener::bind(path).with_context(|| format!("cannot listen on {self}"))?;
                Ok(Listener::Unix(listener, self.clone(), file_at(path)))
            }
            Address::Abstract(name) => {
                let listener = abstractly(name, UnixListener::bind_addr)
                    .with_context(|| format!("cannot listen on {self}"))?;
                Ok(Listener::Unix(listener, self.clone(), None))
            }
            Address::Internet { host, port } if host.is_empty() => {
                // Where IPv6 exists, such a socket takes IPv4, too.
                let any6: SocketAddr = ([0; 16], *port).into();
                let any4: SocketAddr = ([0; 4], *port).into();
                let listener = match TcpListener::bind(any6) {
                    Err(e) if e.kind() != io::ErrorKind::AddrInUse => TcpListener::bind(any4),
                    result => result,
                };
                Ok(Listener::Tcp(listener.with_context(|| format!("cannot listen on {self}"))?))
            }
            Address::Internet { host, port } => {
                let addresses: Vec<_> = resolve(host, *port)?.collect();
                let listener = TcpListener::bind(&addresses[..])
                    .with_context(|| format!("cannot listen on {self}"))?;
                Ok(Listener::Tcp(listener))
            }
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Address::Internet { host: address.ip().to_string(), port: address.port() }
    }
}

fn abstractly<T>(
    name: &str,
    make: impl FnOnce(&unix::SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    make(&unix::SocketAddr::from_abstract_name(name)?)
}

fn connect(address: SocketAddr, timeout: Duration) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // Before it is connected: there is no moment at which a death would look like an end.
    if let Err(e) = socket.set_linger(Some(Duration::ZERO)) {
        output::note(&format!(
            "sendfile2: SO_LINGER cannot be set: {e}; should this command be killed, the receiver \
             takes a part for the whole"
        ));
    }
    socket.connect_timeout(&address.into(), timeout)?;
    Ok(socket.into())
}

/// Lets a connection end in order, and the kernel send what it has of it, also when this process is
/// gone.
pub fn outlive(socket: impl AsFd) -> io::Result<()> {
    // The option may never have been set.
    if sockopt::socket_linger(&socket)?.is_some() {
        sockopt::set_socket_linger(&socket, None)?;
    }
    Ok(())
}

fn resolve(host: &str, port: u16) -> anyhow::Result<impl Iterator<Item = SocketAddr>> {
    (host, port).to_socket_addrs().map_err(|e| {
        // "failed to lookup address information: " says nothing that the rest does not.
        let why = e.to_string();
        let why = why.rsplit(": ").next().unwrap_or_default();
        anyhow::anyhow!("cannot find the host {host}: {why}")
    })
}

/// Removes a socket that no process listens on any more: an interrupted command left it.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    // A datagram socket cannot connect to a listener (EPROTOTYPE), which so sees nothing of this;
    // where nobody listens, it is refused like any other.
    let nobody = |socket: UnixDatagram| {
        socket.connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && UnixDatagram::unbound().is_ok_and(nobody) {
        // If it cannot be removed, listening says why.
        let _ = std::fs::remove_file(path);
    }
}

/// Returns which file is at a path: its device and inode.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|it| (it.dev(), it.ino()))
}

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// A listener for TCP.
    Tcp(TcpListener),
    /// A listener on a unix socket, its address, and the file (device and inode) at its path, which is
    /// removed in the end.
    Unix(UnixListener, Address, Option<(u64, u64)>),
}

impl Listener {
    /// Returns the address that it listens at.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Listener::Tcp(listener) => listener.local_addr()?.into(),
            Listener::Unix(_, address, _) => address.clone(),
        })
    }

    /// Waits for the next connection; returns its peer's address, too.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                (Stream::Tcp(stream), from.to_string())
            }
            Listener::Unix(listener, address, _) => {
                (Stream::Unix(listener.accept()?.0), address.to_string())
            }
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, Address::Unix(path), Some(own)) = self {
            // Another one may be there by now, which is another's.
            if file_at(path) == Some(*own) {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

/// A connection that was accepted.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// A connection over a unix socket.
    Unix(UnixStream),
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_of_another_listener_stays_at_the_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("socket");
        let address = Address::Unix(path.clone());
        let first = address.listen().expect("it listens");
        std::fs::remove_file(&path).expect("it is there");
        let second = address.listen().expect("it listens");
        drop(first);
        assert!(UnixStream::connect(&path).is_ok(), "the second one's path is gone");
        drop(second);
        assert!(!path.exists(), "its own");
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let internet = |host: &str, port| Address::Internet { host: host.into(), port };
        for (text, address) in [
            ("localhost:80", internet("localhost", 80)),
            ("192.0.2.1:80", internet("192.0.2.1", 80)),
            ("[::1]:80", internet("::1", 80)),
            (":80", internet("", 80)),
            ("unix:/run/a:1", Address::Unix("/run/a:1".into())),
            ("unix:./@a", Address::Unix("./@a".into())),
            ("unix:@a", Address::Abstract("a".into())),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
        for (text, said) in [
            ("localhost", "HOST:PORT"),
            ("localhost:http", "no port"),
            ("localhost:65536", "no port"),
            ("localhost:", "port is missing"),
            ("::1:80", "[::1]:80"),
            ("2001:db8::1", "[2001:db8::1]:9000"),
            ("::1:http", "no port"),
            ("[::1]", "give [::1]:PORT, such as [::1]:9000"),
            ("[::1]:", "such as [::1]:9000"),
            ("[::1:80", "brackets"),
            ("unix:", "path"),
            ("unix:@", "name"),
        ] {
            assert!(text.parse::<Address>().expect_err(text).contains(said), "{text}");
        }
        assert!(destination(":80").is_err() && destination("a:0").is_err());
    }
}
