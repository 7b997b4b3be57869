//! A destination: what `auto` would do towards it.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;

use rustix::net::sockopt;

use crate::engine::Choice;
use crate::policy::Contents;
use crate::refusal::Refusal;
use crate::sender::Sender;

/// The prospects of sends on a connected socket.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Destination {
    /// The kind of the socket, in words.
    pub socket: &'static str,
    /// This end's address, where it is an internet address.
    pub own: Option<SocketAddr>,
    /// The peer's address, where it is an internet address.
    pub peer: Option<SocketAddr>,
    /// The peer's address is this host's. (It may be on this host all the same: behind another
    /// address, a veth or a DNAT rule. Then its notifications say COPIED.)
    pub peer_on_this_host: bool,
    /// The MTU of the path, in bytes, as far as the kernel knows it.
    pub mtu: Option<u32>,
    /// The reason why `zerocopy` cannot serve it; `None` if it can.
    pub zerocopy_refused: Option<Refusal>,
    /// The reason why `native` cannot serve it; `None` if it can.
    pub native_refused: Option<Refusal>,
    /// The engines that `auto` takes now, by the size of a send in bytes, from small to large.
    pub auto: Vec<(RangeInclusive<u64>, Choice)>,
}

/// Finds what would happen to sends of `sender` now. Sends nothing.
#[must_use]
pub fn destination(sender: &Sender) -> Destination {
    let conn = sender.conn();
    let mtu = match conn.endpoint().peer() {
        Some(SocketAddr::V4(_)) => sockopt::ip_mtu(sender).ok(),
        Some(SocketAddr::V6(_)) => sockopt::ipv6_mtu(sender).ok(),
        None => None,
    };
    let own = rustix::net::getsockname(sender.as_fd()).ok();
    let mut turn = conn.look();
    let zerocopy_refused = turn.zerocopy(1, false).err();
    let native_refused = turn.native().err();
    let auto = by_size(|bytes| sender.choose_auto(&mut turn, bytes, Contents::File, false));
    drop(turn);
    Destination {
        socket: conn.endpoint().kind().name(),
        own: own.and_then(|own| SocketAddr::try_from(own).ok()),
        peer: conn.endpoint().peer(),
        peer_on_this_host: conn.endpoint().peer_on_this_host(),
        mtu,
        zerocopy_refused,
        native_refused,
        auto,
    }
}

/// No send is larger.
const LARGEST: u64 = 1 << 62;

/// Where, by size, a choice changes. Finds changes that are a power of two aop.
fn by_size(mut choose: impl FnMut(u64) -> Choice) -> Vec<(RangeInclusive<u64>, Choice)> {
    let mut all = Vec::new();
    let (mut from, mut last, mut choice) = (1, 1, choose(1));
    while last < LARGEST {
        let next = last * 2;
        let there = choose(next);
        if there != choice {
            let (mut same, mut other) = (last, next);
            while other - same > 1 {
                let middle = same + (other - same) / 2;
                if choose(middle) == choice {
                    same = middle;
                } else {
                    other = middle;
                }
            }
            all.push((from..=same, choice));
            (from, choice) = (other, there);
        }
        last = next;
    }
    all.push((from..=u64::MAX, choice));
    all
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {:<20} {}", "socket", self.socket)?;
        if let (Some(own), Some(peer)) = (self.own, self.peer) {
            write!(f, ", {own} to {peer}")?;
        }
        let place = match (self.peer, self.peer_on_this_host) {
            (Some(_), true) => "on this host, by its address",
            (Some(_), false) => "elsewhere, by its address",
            (None, _) => "unknown: it has no internet address",
        };
        writeln!(f, "\n  {:<20} {place}", "peer")?;
        if let Some(mtu) = self.mtu {
            writeln!(f, "  {:<20} {mtu} bytes", "MTU")?;
        }
        match &self.zerocopy_refused {
            None => writeln!(f, "  {:<20} can serve it", "zerocopy")?,
            Some(why) => writeln!(f, "  {:<20} refused: {why}", "zerocopy")?,
        }
        for (sizes, choice) in &self.auto {
            let sizes = match (*sizes.start(), *sizes.end()) {
                (1, u64::MAX) => "auto, any size".into(),
                (1, end) => format!("auto, to {end}"),
                (start, u64::MAX) => format!("auto, from {start}"),
                (start, end) => format!("auto, {start} to {end}"),
            };
            writeln!(f, "  {sizes:<20} {choice}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, Reason};

    #[test]
    fn changes_of_the_choice_are_found_to_the_byte() {
        let copy = |reason| Choice { engine: Engine::Copy, reason };
        let found = by_size(|bytes| match bytes {
            ..1000 => copy(Reason::Small),
            1000..70_001 => Choice { engine: Engine::Zerocopy, reason: Reason::Large },
            _ => copy(Reason::Refused(Refusal::Memlock(70_000))),
        });
        let ranges: Vec<_> = found.iter().map(|(range, _)| range.clone()).collect();
        assert_eq!(ranges, [1..=999, 1000..=70_000, 70_001..=u64::MAX]);
        assert_eq!(by_size(|_| copy(Reason::Small)).len(), 1);
    }
}
