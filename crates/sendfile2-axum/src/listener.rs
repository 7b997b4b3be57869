//! A listener for `axum::serve`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use sendfile2::{Engine, Options};
use tokio::net::TcpListener;

use crate::io::Io;

/// In place of tokio's `TcpListener` in `axum::serve`.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    engine: Engine,
}

impl Listener {
    /// Accepts from `tcp`.
    #[must_use]
    pub fn new(tcp: TcpListener) -> Self {
        Listener { tcp, engine: Engine::Auto }
    }

    /// Listens at `address`.
    ///
    /// # Errors
    /// What `bind(2)` and `listen(2)` fail with.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Listener::new)
    }

    /// Sends file bodies by `engine`; by [`Engine::Auto`] if not said.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }
}

impl axum::serve::Listener for Listener {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        loop {
            let (stream, address) = axum::serve::Listener::accept(&mut self.tcp).await;
            match Io::new(stream, Options::new().engine(self.engine)) {
                Ok(io) => return (io, address),
                // No descriptors, as for accept itself: somebody has to give some back first.
                Err(e) => {
                    tracing::error!(%address, "a connection is refused: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// The peer's address, for `into_make_service_with_connect_info::<PeerAddr>()`: with a listener
/// that is not axum's own, Rust does not allow the implementation for [`SocketAddr`] itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddr(
    /// The address.
    pub SocketAddr,
);

impl Connected<IncomingStream<'_, Listener>> for PeerAddr {
    fn connect_info(stream: IncomingStream<'_, Listener>) -> Self {
        PeerAddr(*stream.remote_addr())
    }
}
