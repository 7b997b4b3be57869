//! The client that a request is of, and the limits of one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use axum::http::HeaderMap;
use ipnet::IpNet;

use crate::config::Config;

pub(super) const FORWARDED_FOR: &str = "x-forwarded-for";

/// The proxies whose word is taken for who their client is.
pub(super) struct Proxies {
    networks: Vec<IpNet>,
    unix: bool,
}

impl Proxies {
    pub(super) fn new(config: &Config) -> anyhow::Result<Self> {
        let mut proxies = Proxies { networks: Vec::new(), unix: false };
        for (i, name) in config.operation().trusted_proxy.iter().enumerate() {
            let network =
                || name.parse().ok().or_else(|| Some(name.parse::<IpAddr>().ok()?.into()));
            match network() {
                _ if name == "unix" => proxies.unix = true,
                Some(network) => proxies.networks.push(network),
                None => {
                    return Err(anyhow!(
                        "{}: {name} is no network: give one such as 10.0.0.0/8, an IP address, or \
                         unix",
                        config.place("trusted-proxy", i)
                    ));
                }
            }
        }
        Ok(proxies)
    }

    /// Returns whether a peer is one of them; `None` is one by a unix socket.
    pub(super) fn trusts(&self, peer: Option<IpAddr>) -> bool {
        peer.map_or(self.unix, |peer| self.networks.iter().any(|network| network.contains(&peer)))
    }

    /// Returns the client's address: the last one in X-Forwarded-For that is not of a proxy.
    pub(super) fn client(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        let values = headers.get_all(FORWARDED_FOR).iter().rev();
        let named = values.flat_map(|value| value.as_bytes().rsplit(|byte| *byte == b','));
        for name in named {
            // What is no address was not written by a proxy that is trusted.
            let Some(address) = address(name) else { break };
            client = Some(address);
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// Reads an address, which some proxies write with a port, or in brackets.
fn address(name: &[u8]) -> Option<IpAddr> {
    let name = std::str::from_utf8(name).ok()?.trim();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    let address: Option<IpAddr> = bare.parse().ok();
    let address = address.or_else(|| Some(name.parse::<std::net::SocketAddr>().ok()?.ip()));
    Some(address?.to_canonical())
}

/// The connections and requests of each address at the moment.
#[derive(Default)]
pub(super) struct Addresses(Mutex<Table>);

#[derive(Default)]
struct Table {
    of: HashMap<IpAddr, Used>,
    /// The length at which those that have nothing any more are removed.
    full: usize,
}

struct Used {
    connections: u32,
    /// The time until which its requests are paid for, at their rate.
    paid: Instant,
}

/// A connection that counts, until it is dropped.
pub(super) struct Counted(Arc<Addresses>, IpAddr);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.with(self.1, |used| used.connections -= 1);
    }
}

impl Addresses {
    /// Counts a connection of `address`, unless it has `limit` of them.
    pub(super) fn connect(self: &Arc<Self>, address: IpAddr, limit: u32) -> Option<Counted> {
        let address = network(address);
        let counted = self.with(address, |used| {
            let room = used.connections < limit;
            used.connections += u32::from(room);
            room
        });
        counted.then(|| Counted(Arc::clone(self), address))
    }

    /// Returns whether `address` may ask once more, of so many times a second, and as many at once.
    pub(super) fn asks(&self, address: IpAddr, rate: u32) -> bool {
        let cost = Duration::from_secs(1) / rate;
        self.with(network(address), |used| {
            let now = Instant::now();
            let paid = used.paid.max(now) + cost;
            let may = paid <= now + Duration::from_secs(1).max(cost);
            if may {
                used.paid = paid;
            }
            may
        })
    }

    fn with<T>(&self, address: IpAddr, change: impl FnOnce(&mut Used) -> T) -> T {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if table.of.len() >= table.full {
            table.of.retain(|_, used| used.connections > 0 || used.paid > now);
            table.full = (2 * table.of.len()).max(1024);
        }
        change(table.of.entry(address).or_insert(Used { connections: 0, paid: now }))
    }
}

/// Returns the address by which a client is counted: who has an IPv6 address has a /64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn only_what_trusted_proxies_say_of_their_client_is_believed() {
        let networks = vec!["10.0.0.0/8".parse().expect("a network")];
        let proxies = Proxies { networks, unix: true };
        let client = |peer: Option<&str>, forwarded: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append(FORWARDED_FOR, value.parse().expect("a value"));
            }
            proxies.client(peer.map(ip), &headers).map(|client| client.to_string())
        };
        let is = |address: &str| Some(address.to_owned());
        assert_eq!(client(Some("192.0.2.1"), &["192.0.2.9"]), is("192.0.2.1"), "no proxy");
        assert_eq!(client(Some("10.0.0.1"), &["192.0.2.9"]), is("192.0.2.9"));
        assert_eq!(client(None, &["192.0.2.9"]), is("192.0.2.9"), "by a unix socket");
        let forged = ["192.0.2.66, 192.0.2.9", "10.1.1.1"];
        assert_eq!(client(Some("10.0.0.1"), &forged), is("192.0.2.9"), "the client's own words");
        assert_eq!(client(Some("10.0.0.1"), &["nonsense, 10.1.1.1"]), is("10.1.1.1"));
        assert_eq!(client(Some("10.0.0.1"), &["[2001:db8::1]:99"]), is("2001:db8::1"));
        assert_eq!(client(Some("10.0.0.1"), &[]), is("10.0.0.1"));
    }

    #[test]
    fn an_address_has_what_it_may_and_gets_it_back() {
        let all = Arc::new(Addresses::default());
        let first = all.connect(ip("2001:db8::1"), 1);
        assert!(first.is_some());
        assert!(all.connect(ip("2001:db8::2"), 1).is_none(), "of the same network");
        assert!(all.connect(ip("2001:db8:0:1::1"), 1).is_some());
        drop(first);
        assert!(all.connect(ip("2001:db8::2"), 1).is_some());
        // The rate is so low that nothing comes back while this runs.
        let one = ip("192.0.2.1");
        assert!(all.asks(one, 1) && !all.asks(one, 1));
        assert!(all.asks(ip("192.0.2.2"), 1));
    }

    #[test]
    fn addresses_that_have_nothing_take_no_memory() {
        let all = Arc::new(Addresses::default());
        for i in 0..100_000_u32 {
            drop(all.connect(IpAddr::V4(i.into()), 1));
        }
        assert!(all.0.lock().expect("no panic").of.len() <= 1024);
    }
}
