//! A listener, and the call that serves an app on it.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::AddExtension;
use axum::response::Response;
use axum::serve::{IncomingStream, Serve};
use pin_project_lite::pin_project;
use sendfile2::{Engine, Options};
use tokio::net::{TcpListener, UnixListener, unix};
use tower_layer::Layer;
use tower_service::Service;

use crate::cache;
use crate::io::Io;
use crate::layer::{ZeroCopy, ZeroCopyLayer};
use crate::unread::TellsUnread;

/// In place of tokio's `TcpListener` or `UnixListener`, for [`serve`].
#[derive(Debug)]
pub struct Listener<L = TcpListener> {
    inner: L,
    engine: Engine,
}

impl<L> Listener<L> {
    /// Accepts from `listener`.
    #[must_use]
    pub fn new(listener: L) -> Self {
        Listener { inner: listener, engine: Engine::Auto }
    }

    /// Sends file bodies by `engine`; by [`Engine::Auto`] if not said.
    #[must_use]
    pub fn engine(mut self, engine: Engine) -> Self {
        self.engine = engine;
        self
    }

    fn options(&self) -> Options {
        Options::new().engine(self.engine)
    }
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The error of `bind(2)` or `listen(2)`.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Listener::new)
    }
}

impl Listener<UnixListener> {
    /// Listens at `path`, where nothing must be yet, and which stays when it is dropped.
    ///
    /// # Errors
    /// The error of `bind(2)` or `listen(2)`.
    ///
    /// # Panics
    /// Outside of a tokio runtime with I/O enabled.
    pub fn bind_unix(path: impl AsRef<Path>) -> io::Result<Self> {
        UnixListener::bind(path).map(Listener::new)
    }
}

impl axum::serve::Listener for Listener {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        loop {
            let accepted = self
                .inner
                .accept()
                .await
                .and_then(|(stream, address)| Ok((Io::new(stream, self.options())?, address)));
            match accepted {
                Ok(accepted) => return accepted,
                Err(e) => refused(e).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

impl axum::serve::Listener for Listener<UnixListener> {
    type Io = Io;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (Io, unix::SocketAddr) {
        loop {
            let accepted = self.inner.accept().await.and_then(|(stream, address)| {
                Ok((Io::from_unix(stream, self.options())?, address))
            });
            match accepted {
                Ok(accepted) => return accepted,
                Err(e) => refused(e).await,
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        self.inner.local_addr()
    }
}

/// A connection could not be accepted.
async fn refused(error: io::Error) {
    // The client was faster.
    if error.kind() == io::ErrorKind::ConnectionAborted {
        return;
    }
    tracing::error!("a connection cannot be accepted: {error}");
    // Descriptors: of files that are only kept, or somebody else has to give some back first.
    if !cache::make_room(&error) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Serves `app` on `listener`, as [`axum::serve()`] does, with file bodies that are mapped where
/// they may be: a [`ZeroCopyLayer`] is around the app on each connection. The same app may be
/// served by others, too, also beneath TLS, and may compress: there, bodies are read. A client gets
/// the answer, and is told of the connection's end, also where the app does not read all that it
/// sends ([`Unread`](crate::Unread)).
///
/// Handlers can extract the peer's address: `ConnectInfo<SocketAddr>`, on unix sockets
/// `ConnectInfo<tokio::net::unix::SocketAddr>`.
pub fn serve<L, M, S>(
    listener: Listener<L>,
    app: M,
) -> Serve<Listener<L>, ZeroCopyConnections<M>, Connection<S, Addr<L>>>
where
    Listener<L>: axum::serve::Listener<Io = Io, Addr: Clone + Sync + 'static>,
    M: for<'a> Service<IncomingStream<'a, Listener<L>>, Error = Infallible, Response = S>,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    axum::serve(listener, ZeroCopyConnections(app))
}

/// The address of a peer of a listener.
type Addr<L> = <Listener<L> as axum::serve::Listener>::Addr;

/// An app on one connection, by [`serve`].
pub type Connection<S, A> = ZeroCopy<TellsUnread<AddExtension<S, ConnectInfo<A>>>>;

/// An app that [`serve`] makes a service of for each connection.
#[derive(Debug, Clone)]
pub struct ZeroCopyConnections<M>(M);

impl<'a, L, M, S> Service<IncomingStream<'a, Listener<L>>> for ZeroCopyConnections<M>
where
    Listener<L>: axum::serve::Listener<Io = Io, Addr: Clone + Sync + 'static>,
    M: Service<IncomingStream<'a, Listener<L>>, Error = Infallible, Response = S>,
{
    type Response = Connection<S, Addr<L>>;
    type Error = Infallible;
    type Future = ConnectionFuture<M::Future, Addr<L>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, stream: IncomingStream<'a, Listener<L>>) -> Self::Future {
        let layer = ZeroCopyLayer::of(stream.io());
        let peer = stream.remote_addr().clone();
        ConnectionFuture { inner: self.0.call(stream), layer, peer }
    }
}

pin_project! {
    /// The future of [`ZeroCopyConnections`].
    #[derive(Debug)]
    pub struct ConnectionFuture<F, A> {
        #[pin]
        inner: F,
        layer: ZeroCopyLayer,
        peer: A,
    }
}

impl<F, S, A> Future for ConnectionFuture<F, A>
where
    F: Future<Output = Result<S, Infallible>>,
    A: Clone + Send + Sync + 'static,
{
    type Output = Result<Connection<S, A>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let app = ready!(this.inner.poll(cx))?;
        let app = Extension(ConnectInfo(this.peer.clone())).layer(app);
        Poll::Ready(Ok(this.layer.layer(TellsUnread(app))))
    }
}
