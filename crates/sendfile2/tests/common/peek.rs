//! The oracle for senders that nobody controls: a receiver peeks at what was sent as soon as
//! `sendfile(2)` has returned, and reads the same bytes again a few overwrites later.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv, sockopt};

/// The bytes that are sent, and overwritten, again and again: from the start of the file.
pub const LEN: usize = 64 << 10;

/// Connections of a sender, with one send in flight on each.
const SENDS: usize = 32;

/// Overwrites between the peek and the read.
const LATER: u64 = 3;

const SENDERS: usize = 3;

/// Long enough that only a hang passes it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen of it.
#[derive(Debug, Default, Clone, Copy)]
pub struct Seen {
    pub overwrites: u64,
    /// Overwrites that were refused: nothing was written.
    pub refused: u64,
    pub sends: u64,
    /// Sends of which a byte had changed after the kernel had taken it.
    pub changed: u64,
}

#[derive(Default)]
struct State {
    seen: Seen,
    over: bool,
    /// Sends that were handed over and peeked at.
    handed_over: u64,
    /// Senders that wait for overwrites.
    waiting: usize,
}

/// What the senders and who overwrites beside them share.
#[derive(Default)]
pub struct Senders {
    state: Mutex<State>,
    news: Condvar,
}

impl Senders {
    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.news.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until(&self, mut done: impl FnMut(&State) -> bool) {
        let state = self.news.wait_while(self.state(), |state| !state.over && !done(state));
        drop(state.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until one of them has sent, if there is one that will before the next overwrite.
    #[allow(dead_code)]
    pub fn let_send(&self) {
        let before = self.state().handed_over;
        self.wait_until(|state| state.handed_over > before || state.waiting == SENDERS);
    }
}

/// Tells the senders that it is over, also where the test fails.
struct Over<'a>(&'a Senders);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.update(|state| state.over = true);
    }
}

/// Lets senders loop over the file while `overwrite` writes the given bytes to its start, or says
/// that it was refused, until there is `enough`.
pub fn beside(
    file: &File,
    enough: impl Fn(&Seen) -> bool,
    mut overwrite: impl FnMut(&[u8], &Senders) -> bool,
) -> Seen {
    let shared = Senders::default();
    std::thread::scope(|threads| {
        let over = Over(&shared);
        for _ in 0..SENDERS {
            threads.spawn(|| {
                let connections: Vec<_> = (0..SENDS).map(|_| pair()).collect();
                while send(file, &shared, &connections) {}
            });
        }
        let began = Instant::now();
        for generation in 1u64.. {
            let bytes = generation.to_le_bytes().repeat(LEN / 8);
            let done = overwrite(&bytes, &shared);
            shared.update(|state| {
                state.seen.overwrites += u64::from(done);
                state.seen.refused += u64::from(!done);
            });
            if enough(&shared.state().seen) || began.elapsed() > PATIENCE {
                break;
            }
        }
        drop(over);
    });
    shared.state().seen
}

/// Sends, peeks, and reads again; returns whether there is to be more.
fn send(file: &File, shared: &Senders, connections: &[(TcpStream, TcpStream)]) -> bool {
    let mut first = Vec::new();
    for (sender, receiver) in connections {
        let mut at = 0;
        while at < LEN as u64 {
            let left = LEN - usize::try_from(at).unwrap();
            assert!(rustix::fs::sendfile(sender, file, Some(&mut at), left).unwrap() > 0);
        }
        first.push(received(receiver, RecvFlags::PEEK));
        shared.update(|state| state.handed_over += 1);
    }
    shared.update(|state| state.waiting += 1);
    let last = shared.state().seen.overwrites;
    shared.wait_until(|state| state.seen.overwrites >= last + LATER);
    shared.update(|state| state.waiting -= 1);
    let mut changed = 0;
    for ((_, receiver), first) in connections.iter().zip(first) {
        changed += u64::from(received(receiver, RecvFlags::empty()) != first);
    }
    let mut state = shared.state();
    if !state.over {
        state.seen.sends += SENDS as u64;
        state.seen.changed += changed;
    }
    !state.over
}

fn received(receiver: &TcpStream, flags: RecvFlags) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    let (n, _) = recv(receiver, &mut bytes[..], flags | RecvFlags::WAITALL).unwrap();
    assert_eq!(n, LEN, "all of it is there");
    bytes
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    sockopt::set_socket_recv_buffer_size(&listener, 4 * LEN).unwrap();
    let sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sender.set_nodelay(true).unwrap();
    (sender, listener.accept().unwrap().0)
}
