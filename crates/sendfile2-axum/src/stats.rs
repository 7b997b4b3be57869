//! The counters of the connections, for the `metrics` crate's recorders; without one it costs
//! little.
//!
//! `sendfile2_sent_bytes_total{engine}`, `sendfile2_fallbacks_total{why}`,
//! `sendfile2_sends_total{engine}`, `sendfile2_releases_total{copied}`,
//! `sendfile2_release_seconds`, `sendfile2_in_flight_sends`, `sendfile2_unknown_sends`,
//! `sendfile2_http_bodies_total{became}`.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use metrics::{Counter, counter, gauge, histogram};
use sendfile2::{Choice, Engine, Reason, Release, Status, Ticket};

/// The sends of a connection.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    /// Those by reference that are not known to be released, and will be, oldest first.
    held: VecDeque<(Ticket, Instant)>,
    /// The counters of the engine that was used last, which cost less to keep than to find.
    counters: Option<Counters>,
}

#[derive(Debug)]
struct Counters {
    engine: Engine,
    bytes: Counter,
    sends: Counter,
}

impl Counters {
    fn of(engine: Engine) -> Self {
        let name = engine.name();
        Counters {
            engine,
            bytes: counter!("sendfile2_sent_bytes_total", "engine" => name),
            sends: counter!("sendfile2_sends_total", "engine" => name),
        }
    }
}

/// The sends by reference of connections that are gone.
static LEFT: Mutex<Vec<(Ticket, Instant)>> = Mutex::new(Vec::new());

impl Sends {
    /// A range of a file was sent.
    pub(crate) fn sent(&mut self, ticket: Ticket) {
        let choice = ticket.choice();
        self.count(ticket.bytes(), choice);
        // What was copied is released, and of what is exposed nobody is ever told.
        if !matches!(choice.engine, Engine::Copy | Engine::Sendfile) {
            self.held.push_back((ticket, Instant::now()));
            gauge!("sendfile2_in_flight_sends").increment(1);
        }
    }

    /// Sees which are released by now.
    pub(crate) fn look(&mut self) {
        if !self.held.is_empty() {
            self.held.retain(|(ticket, at)| !released(ticket, *at, "sendfile2_in_flight_sends"));
        }
    }

    /// Counts a send of `bytes` of a file.
    pub(crate) fn count(&mut self, bytes: u64, choice: Choice) {
        let kept = self.counters.take().filter(|kept| kept.engine == choice.engine);
        let counters = self.counters.insert(kept.unwrap_or_else(|| Counters::of(choice.engine)));
        counters.bytes.increment(bytes);
        counters.sends.increment(1);
        let why = match choice.reason {
            _ if choice.engine != Engine::Copy => return,
            Reason::Limit(_) => "limit",
            Reason::Fault => "fault",
            Reason::Refused(_) => "refused",
            _ => return,
        };
        counter!("sendfile2_fallbacks_total", "why" => why).increment(1);
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        self.look();
        if !self.held.is_empty() {
            gauge!("sendfile2_in_flight_sends").decrement(many(self.held.len()));
            gauge!("sendfile2_unknown_sends").increment(many(self.held.len()));
            let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
            // Also where nobody asks for what is outstanding it does not grow for ever.
            left.retain(|(ticket, at)| !released(ticket, *at, "sendfile2_unknown_sends"));
            left.extend(self.held.drain(..));
        }
    }
}

/// Counts it if it is released.
fn released(ticket: &Ticket, at: Instant, among: &'static str) -> bool {
    let Status::Released(Release { copied, .. }) = ticket.status() else { return false };
    gauge!(among).decrement(1);
    let copied = if copied { "yes" } else { "no" };
    counter!("sendfile2_releases_total", "copied" => copied).increment(1);
    histogram!("sendfile2_release_seconds").record(at.elapsed());
    true
}

/// Sends of connections that are gone, whose release is not known: the reaper drains them. Call it
/// before the metrics are read, and once in a while: it counts what was released since, and how
/// long ago a release was is only known to the time between two calls.
pub fn outstanding() -> usize {
    let mut left = LEFT.lock().unwrap_or_else(PoisonError::into_inner);
    left.retain(|(ticket, at)| !released(ticket, *at, "sendfile2_unknown_sends"));
    left.len()
}

/// The sends that the reaper is still draining.
#[must_use]
pub fn in_flight() -> sendfile2::InFlight {
    sendfile2::reaper::pending()
}

fn many(n: usize) -> f64 {
    // Far below 2^32.
    u32::try_from(n).unwrap_or(u32::MAX).into()
}

#[cfg(test)]
mod tests {
    use sendfile2::guard::GuardedFile;
    use sendfile2::{Error, Options, SendFlags, Sender, Sent};

    use super::*;

    /// A connection lives for as long as its peer likes.
    #[test]
    fn a_connection_keeps_nothing_of_sends_of_which_nobody_is_told() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("its size");
        let guard = GuardedFile::new(file).expect("it can be guarded");
        let lease = guard.try_lease(0..1 << 20).expect("a lease");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let sent = |engine| -> Result<(Ticket, std::net::TcpStream), Error> {
            let stream = std::net::TcpStream::connect(address).expect("it listens");
            let (peer, _) = listener.accept().expect("a connection");
            let mut sender = Sender::with(stream, Options::new().engine(engine))?;
            match sender.try_send_lease(&lease, 0..65_536, SendFlags::NONE)? {
                Sent::Accepted { ticket, .. } => Ok((ticket, peer)),
                other => panic!("{other:?}"),
            }
        };
        let mut sends = Sends::default();
        match sent(Engine::Zerocopy) {
            Ok((ticket, _peer)) => {
                sends.sent(ticket);
                assert_eq!(sends.held.len(), 1, "the control");
            }
            Err(why) => println!("SKIP: no control: {why}"),
        }
        let before = sends.held.len();
        match sent(Engine::Sendfile) {
            Ok((ticket, _peer)) => {
                assert_eq!(ticket.status(), Status::Exposed);
                sends.sent(ticket);
            }
            Err(why) => println!("SKIP: {why}"),
        }
        assert_eq!(sends.held.len(), before, "{:?}", sends.held);
    }
}
