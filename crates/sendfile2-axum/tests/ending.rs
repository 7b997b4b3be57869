//! The end of a connection with something in flight. It is alone in its process: what is outstanding
//! is told of all connections.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::{Client, assert_same, connect, directory, files, pattern, told, until};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sendfile2::{Engine, Options};
use sendfile2_axum::Io;

/// A peer that takes nothing keeps a connection that is at its end for a time, and then the reaper
/// keeps what is in flight.
#[test]
fn an_ended_connection_waits_for_its_releases_and_not_for_ever() {
    // More than the client's window, and no more than any kernel lets a socket take for sending.
    const SIZE: u64 = 256 << 10;
    let dir = files();
    std::fs::write(dir.path().join("some"), pattern(1, 0..SIZE)).unwrap();
    let listener = common::listen();
    let (client, server) = (connect(listener.local_addr().unwrap()), listener.accept().unwrap().0);
    // All of it is taken for sending, and little of it leaves.
    rustix::net::sockopt::set_socket_recv_buffer_size(&client, 32 << 10).unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&server, SIZE as usize).unwrap();
    let mut client = Client::of(client);
    client.ask("GET", "/some", "connection: close\r\n");
    server.set_nonblocking(true).unwrap();
    // Its clock goes on by itself when there is nothing else to do.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let waited = runtime.enable_all().start_paused(true).build().unwrap().block_on(async {
        let stream = tokio::net::TcpStream::from_std(server).unwrap();
        let io = Io::new(stream, Options::new().engine(Engine::Zerocopy)).unwrap();
        let service = TowerToHyperService::new(told(&io, directory(dir.path())));
        let from = tokio::time::Instant::now();
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(io), service).await.unwrap();
        from.elapsed()
    });
    assert_eq!(waited.as_secs(), 30, "it waits for releases, and then no more");
    assert_ne!(sendfile2_axum::outstanding(), 0, "it was all released while nobody read");
    // Nothing is lost by it.
    assert_same(
        &client.answer("GET").body,
        &pattern(1, 0..SIZE),
        "a response that was left behind",
    );
    until("everything is released", || sendfile2_axum::outstanding() == 0);
}
