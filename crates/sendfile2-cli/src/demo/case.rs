//! The cases, and one piece after another with each.

use std::fmt;
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use sendfile2::detach::{Detacher, NotDetached};
use sendfile2::guard::GuardedFile;
use sendfile2::{Choice, Engine, Error, Options, SendFlags, Sender, Sent, Ticket};

use super::TIMEOUT;
use super::peer::{self, wait_acknowledged};
use crate::connection::Connection;
use crate::method::Method;
use crate::scratch::{Scratch, len, pieces};

/// A method of sending, and the moment at which the file is overwritten.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    method: Method,
    overwrite: Overwrite,
}

/// The moment at which a piece of the file is overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overwrite {
    /// `sendfile(2)` has returned.
    Returned,
    /// The peer's TCP has acknowledged everything.
    Acknowledged,
    /// The library says *released*.
    Released,
    /// At once, after its pages were detached.
    Detached,
}

/// The outcome of a case.
#[derive(Debug)]
pub(super) enum Outcome {
    Sent(Measured),
    /// The engine does not work here, or the file cannot be detached.
    Refused(String),
}

#[derive(Debug)]
pub(super) struct Measured {
    pub(super) pieces: Pieces,
    pub(super) wrong_bytes: u64,
    /// The times from the return of the first send call of a piece until it was released. `None`
    /// where no release was waited for.
    pub(super) free: Option<Times>,
    /// The times from when the whole piece was sent until the writer could begin to overwrite it.
    pub(super) wait: Times,
    /// Zerocopy sends, and how many of them came back COPIED.
    pub(super) zerocopy: Option<(u64, u64)>,
    /// The library's choices, and the number of send calls for each.
    pub(super) choices: Vec<(Choice, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Pieces {
    pub(super) number: u64,
    pub(super) bytes: u64,
}

/// Times in microseconds, one a piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) median: u64,
    pub(super) longest: u64,
}

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let micros =
            |i: usize| times.get(i).map_or(0, |t| u64::try_from(t.as_micros()).unwrap_or(u64::MAX));
        Times { median: micros(times.len() / 2), longest: micros(times.len().saturating_sub(1)) }
    }
}

impl Case {
    /// The control: plain `sendfile(2)`, and the file is overwritten when it has returned.
    pub(super) const CONTROL: Case =
        Case { method: Method::Sendfile, overwrite: Overwrite::Returned };

    /// An engine of the library; `sendfile` serves what is leased, and needs no release.
    pub(super) fn engine(engine: Engine) -> Self {
        match engine {
            Engine::Sendfile => {
                Case { method: Method::SENDFILE_LEASED, overwrite: Overwrite::Detached }
            }
            _ => Case { method: Method::Library(engine), overwrite: Overwrite::Released },
        }
    }

    /// Returns all cases that this library knows: the controls first.
    pub(super) fn all() -> impl Iterator<Item = Case> {
        let acknowledged = Case { overwrite: Overwrite::Acknowledged, ..Case::CONTROL };
        let detached = Case { overwrite: Overwrite::Detached, ..Case::CONTROL };
        let engines = Engine::ALL.iter().copied().map(Case::engine);
        [Case::CONTROL, acknowledged, detached].into_iter().chain(engines)
    }

    pub(super) fn name(self) -> &'static str {
        self.method.engine().map_or("sendfile(2)", Engine::name)
    }

    /// The moment at which the file is overwritten, as in the JSON.
    pub(super) fn overwritten_at(self) -> &'static str {
        match self.overwrite {
            Overwrite::Returned => "return",
            Overwrite::Acknowledged => "acked",
            Overwrite::Released => "released",
            Overwrite::Detached => "detached",
        }
    }

    /// Returns the moment in words that follow "overwritten when".
    pub(super) fn when(self) -> &'static str {
        match self.overwrite {
            Overwrite::Returned => "returned",
            Overwrite::Acknowledged => "ACKed",
            Overwrite::Released => "released",
            Overwrite::Detached => "detached",
        }
    }

    /// Whether bytes may arrive wrong.
    pub(super) fn is_control(self) -> bool {
        matches!(self.overwrite, Overwrite::Returned | Overwrite::Acknowledged)
    }

    /// Sends the whole file piece by piece, overwriting each piece when this case allows it, and
    /// lets the receiver read the piece only then.
    pub(super) fn measure(
        self,
        file: &mut Scratch,
        place: Option<&peer::Elsewhere>,
        progress: &ProgressBar,
    ) -> anyhow::Result<Outcome> {
        let (socket, peer, size) = peer::connect(file.size, place)?;
        let mut conn = match Conn::new(self, socket, file) {
            Ok(conn) => conn,
            Err(error) => return refused(error),
        };
        let (old, new) = (file.generation, file.generation.other());
        let (mut number, mut wrong_bytes) = (0, 0);
        let (mut free, mut wait) = (Vec::new(), Vec::new());
        let mut content = Vec::new();
        for piece in pieces(file.size, size) {
            // Ready beforehand, so that the writer loses no time.
            content.resize(len(&piece), 0);
            new.fill(&mut content, piece.start);
            let overwritten = conn.send(file, piece.clone()).and_then(|sent| {
                let now = conn.overwrite(file, &content, &piece, &sent.tickets)?;
                Ok((sent, now))
            });
            let (sent, now) = match overwritten {
                Ok(overwritten) => overwritten,
                Err(error) => {
                    let outcome = refused(error)?;
                    // The last piece may be the one that cannot be detached.
                    for piece in pieces(piece.start, size) {
                        content.resize(len(&piece), 0);
                        old.fill(&mut content, piece.start);
                        file.overwrite(&content, piece.start)?;
                    }
                    return Ok(outcome);
                }
            };
            free.push(now - sent.first);
            wait.push(now - sent.last);
            number += 1;
            progress.inc(piece.end - piece.start);
            wrong_bytes += peer.count_wrong(piece, old)?;
        }
        file.generation = new;
        let (zerocopy, choices) = conn.end()?;
        peer.end()?;
        Ok(Outcome::Sent(Measured {
            pieces: Pieces { number, bytes: size },
            wrong_bytes,
            free: (self.overwrite == Overwrite::Released).then(|| Times::of(free)),
            wait: Times::of(wait),
            zerocopy,
            choices,
        }))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, overwritten when {}", self.name(), self.when())
    }
}

/// The outcome of a case that does not work here, if `error` shows that.
fn refused(error: anyhow::Error) -> anyhow::Result<Outcome> {
    let reason = match (error.downcast_ref(), error.downcast_ref::<NotDetached>()) {
        (Some(Error::Refused { reason, .. }), _) => reason.to_string(),
        (Some(Error::NotDetached(why)), _) => why.to_string(),
        (_, Some(why)) => why.to_string(),
        _ => return Err(error),
    };
    Ok(Outcome::Refused(reason))
}

/// The connection of a case.
enum Conn {
    Plain { socket: TcpStream, overwrite: Overwrite },
    Guarded { sender: Sender, guard: GuardedFile, choices: Vec<(Choice, u64)> },
    Library { connection: Connection, choices: Vec<(Choice, u64)> },
}

/// A piece that was sent.
struct Piece {
    /// The times at which the first send call returned, and the last.
    first: Instant,
    last: Instant,
    /// One a send call; none where no release is waited for.
    tickets: Vec<Ticket>,
}

impl Conn {
    fn new(case: Case, socket: TcpStream, file: &Scratch) -> anyhow::Result<Self> {
        let Some(engine) = case.method.engine() else {
            return Ok(Conn::Plain { socket, overwrite: case.overwrite });
        };
        let choices = Vec::new();
        if case.overwrite == Overwrite::Detached {
            let sender = Sender::with(socket, Options::new().engine(engine))?;
            let guard = GuardedFile::new(file.file.try_clone()?)?;
            return Ok(Conn::Guarded { sender, guard, choices });
        }
        Ok(Conn::Library { connection: Connection::new(socket, engine, false)?, choices })
    }

    fn send(&mut self, file: &Scratch, piece: Range<u64>) -> anyhow::Result<Piece> {
        let deadline = Instant::now() + TIMEOUT;
        let mut tickets = Vec::new();
        let mut first = None;
        let mut at = piece.start;
        while at < piece.end {
            let sent = match self {
                Conn::Plain { socket, .. } => {
                    let count = len(&(at..piece.end));
                    let n = rustix::fs::sendfile(&socket, &file.source, Some(&mut { at }), count)
                        .context("sendfile(2) failed")?;
                    ensure!(n > 0, "sendfile(2) found the file shorter than it was written");
                    n
                }
                Conn::Guarded { sender, guard, choices } => {
                    let lease = guard.lease(at..piece.end, deadline)?;
                    let transfer =
                        sender.send_lease(&lease, at..piece.end, SendFlags::NONE, deadline);
                    count(choices, transfer.map_err(Error::from)?.ticket.choice());
                    len(&(at..piece.end))
                }
                Conn::Library { connection, choices } => {
                    match connection.try_send_file(&file.source, at..piece.end)? {
                        Sent::Accepted { bytes, ticket } => {
                            count(choices, ticket.choice());
                            tickets.push(ticket);
                            bytes
                        }
                        // The piece fits the buffers, so a kernel limit is in the way, until
                        // something is released here or elsewhere.
                        _ => {
                            ensure!(
                                Instant::now() < deadline,
                                "the kernel did not accept a piece within {} s",
                                TIMEOUT.as_secs()
                            );
                            connection.drain(deadline)?;
                            std::thread::sleep(Duration::from_millis(1));
                            0
                        }
                    }
                }
            };
            if sent > 0 {
                first.get_or_insert_with(Instant::now);
                at += sent as u64;
            }
        }
        let last = Instant::now();
        Ok(Piece { first: first.unwrap_or(last), last, tickets })
    }

    /// Overwrites the piece as soon as that is allowed, and returns when that was.
    fn overwrite(
        &self,
        file: &Scratch,
        content: &[u8],
        piece: &Range<u64>,
        tickets: &[Ticket],
    ) -> anyhow::Result<Instant> {
        match self {
            Conn::Plain { overwrite: Overwrite::Detached, .. } => {
                Detacher::new(&file.source)?.detach(piece)?;
            }
            Conn::Plain { socket, overwrite: Overwrite::Acknowledged } => {
                let acked = wait_acknowledged(socket, TIMEOUT)?;
                ensure!(acked, "the peer did not acknowledge within {} s", TIMEOUT.as_secs());
            }
            Conn::Plain { .. } => {}
            Conn::Guarded { guard, .. } => {
                return Ok(guard.write_with(piece.clone(), TIMEOUT, |range| {
                    let now = Instant::now();
                    range.write_at(content, piece.start)?;
                    Ok(now)
                })?);
            }
            Conn::Library { .. } => {
                let deadline = Instant::now() + TIMEOUT;
                for ticket in tickets {
                    ticket.wait_released(deadline)?;
                }
            }
        }
        let now = Instant::now();
        file.overwrite(content, piece.start)?;
        Ok(now)
    }

    /// Ends the stream. Returns how many zerocopy sends there were and how many came back COPIED,
    /// and what was chosen.
    #[expect(clippy::type_complexity, reason = "used once")]
    fn end(self) -> anyhow::Result<(Option<(u64, u64)>, Vec<(Choice, u64)>)> {
        match self {
            Conn::Plain { socket, .. } => {
                socket.shutdown(std::net::Shutdown::Write)?;
                Ok((None, Vec::new()))
            }
            Conn::Guarded { sender, choices, .. } => {
                sender.close(TIMEOUT)?;
                Ok((None, choices))
            }
            Conn::Library { connection, choices } => {
                let counters = connection.counters();
                connection.close(Instant::now() + TIMEOUT)?;
                let zerocopy =
                    (counters.released > 0).then_some((counters.released, counters.copied));
                Ok((zerocopy, choices))
            }
        }
    }
}

fn count(choices: &mut Vec<(Choice, u64)>, choice: Choice) {
    match choices.iter_mut().find(|(known, _)| *known == choice) {
        Some((_, n)) => *n += 1,
        None => choices.push((choice, 1)),
    }
}
