//! Addresses as people write them, and the connections that they lead to.

use std::fmt;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// `HOST:PORT`, or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An empty host is any address of this host.
    Internet {
        /// A name, or an IP address without brackets.
        host: String,
        /// A TCP port.
        port: u16,
    },
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("give the socket's path: unix:/run/it.sock".into());
            }
            return Ok(Address::Unix(path.into()));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err("the port is missing: give HOST:PORT, or unix:PATH".into());
        };
        let port = port
            .parse()
            .map_err(|_| format!("{port:?} is no port: give a number from 0 to 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host,
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
    /// Connects, trying each address that the name has, within `patience` in all.
    pub fn connect(&self, patience: Duration) -> anyhow::Result<OwnedFd> {
        let hint = "is the receiver running (sendfile2 recv)?";
        match self {
            Address::Unix(path) => match UnixStream::connect(path) {
                Ok(socket) => Ok(socket.into()),
                Err(e) => bail!("cannot connect to {self}: {e}; {hint}"),
            },
            Address::Internet { host, port } => {
                let deadline = Instant::now() + patience;
                let mut failed = None;
                for address in resolve(host, *port)? {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let left = left.max(Duration::from_millis(1));
                    match TcpStream::connect_timeout(&address, left) {
                        Ok(socket) => return Ok(socket.into()),
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
                Ok(Listener::Unix(listener, path.clone()))
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

fn resolve(host: &str, port: u16) -> anyhow::Result<impl Iterator<Item = SocketAddr>> {
    (host, port).to_socket_addrs().map_err(|e| {
        // "failed to lookup address information: " says nothing that the rest does not.
        let why = e.to_string();
        let why = why.rsplit(": ").next().unwrap_or_default();
        anyhow::anyhow!("cannot find the host {host}: {why}")
    })
}

/// Removes a socket that nobody listens on any more: an interrupted command left it.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    // A datagram socket cannot connect to a listener (EPROTOTYPE), which so sees nothing of this;
    // where nobody is, it is refused like any other.
    let nobody = |socket: UnixDatagram| {
        socket.connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && UnixDatagram::unbound().is_ok_and(nobody) {
        // If it cannot be removed, listening says why.
        let _ = std::fs::remove_file(path);
    }
}

/// A socket that accepts connections.
#[derive(Debug)]
pub enum Listener {
    /// A listener for TCP.
    Tcp(TcpListener),
    /// A listener on a unix socket, and its path, which is removed in the end.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// The address that it listens at.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match self {
            Listener::Tcp(listener) => listener.local_addr()?.into(),
            Listener::Unix(_, path) => Address::Unix(path.clone()),
        })
    }

    /// Waits for the next connection; also returns where it comes from.
    pub fn accept(&self) -> io::Result<(Stream, String)> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                (Stream::Tcp(stream), from.to_string())
            }
            Listener::Unix(listener, path) => {
                (Stream::Unix(listener.accept()?.0), format!("unix:{}", path.display()))
            }
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
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
    fn addresses_are_read_as_they_are_written() {
        let internet = |host: &str, port| Address::Internet { host: host.into(), port };
        for (text, address) in [
            ("localhost:80", internet("localhost", 80)),
            ("192.0.2.1:80", internet("192.0.2.1", 80)),
            ("[::1]:80", internet("::1", 80)),
            (":80", internet("", 80)),
            ("unix:/run/a:1", Address::Unix("/run/a:1".into())),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
        for (text, said) in [
            ("localhost", "HOST:PORT"),
            ("localhost:http", "no port"),
            ("localhost:65536", "no port"),
            ("::1:80", "[::1]:80"),
            ("unix:", "path"),
        ] {
            assert!(text.parse::<Address>().expect_err(text).contains(said), "{text}");
        }
        assert!(destination(":80").is_err() && destination("a:0").is_err());
    }
}
