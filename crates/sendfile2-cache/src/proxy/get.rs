//! Requests to GET: answered from the store, by an origin, or by what another request brings.

use std::sync::Arc;

use http::{HeaderMap, Method, Response, StatusCode, header};
use tokio::sync::{oneshot, watch};

use super::answer::{answer, has_wanted};
use super::body::{CacheBody, Sharing};
use super::fetch::{Ask, Fetched};
use super::find::{self, Found};
use super::flight::{self, Flight, Landed, Shared};
use super::rest::Joined;
use super::{Inner, Wish, count, failed, own, seconds, unasked};
use crate::policy::{CacheStatus, Known, Reuse};

impl Inner {
    pub(super) async fn get(self: &Arc<Self>, wish: Wish) -> Response<CacheBody> {
        let (place, why) = match self.stored(&wish).await {
            Ok(response) => return response,
            Err(missing) => missing,
        };
        if wish.control.only_if_cached {
            count("failed");
            return own(StatusCode::GATEWAY_TIMEOUT, "");
        }
        let key = wish.target.flight(place.key(), &wish.headers);
        let old = match place {
            find::Place::Found(found) => Some(found),
            _ => None,
        };
        let outgoing = self.outgoing(&wish.target, Method::GET, &wish.headers);
        let validates = old.as_ref().is_some_and(|old| old.known.validator && why != "partial");
        // A part is asked for as it is, unless it is to be taken from what is validated.
        let part = wish.headers.contains_key(header::RANGE) && !validates;
        let remembered = self.remembers(key);
        let mut ask = wish.ask(outgoing, old, self.changes.asking(wish.target.key()), key);
        ask.too_large = remembered.is_some_and(|it| it.too_large);
        let remembered = remembered.is_some();
        if remembered || wish.control.no_cache || wish.control.no_store {
            if !remembered {
                for_all(&mut ask, part);
            }
            return self.alone(&wish, ask, why, None).await;
        }
        if part {
            if let Some(waits) = self.flights.find(key) {
                if let Some(response) = self.waited(&wish, waits, why).await {
                    return response;
                }
            }
            return self.alone(&wish, ask, why, None).await;
        }
        for_all(&mut ask, false);
        match self.flights.join(key, wish.target.key()) {
            flight::Place::Waits(waits) => match self.waited(&wish, waits, why).await {
                Some(response) => response,
                None => {
                    match self.remembers(key) {
                        Some(remembered) => ask.too_large = remembered.too_large,
                        None => self.remember(key, self.options.uncacheable, false),
                    }
                    self.alone(&wish, ask, why, None).await
                }
            },
            flight::Place::Leads(flight) => {
                // It may have come since.
                match self.stored(&wish).await {
                    Ok(response) => response,
                    Err(_) => self.alone(&wish, ask, why, Some(flight)).await,
                }
            }
        }
    }

    /// Waits for the answer to another request; `None` if it is not for this one.
    async fn waited(
        self: &Arc<Self>,
        wish: &Wish,
        mut waits: watch::Receiver<Option<Landed>>,
        why: &'static str,
    ) -> Option<Response<CacheBody>> {
        let landed = waits.wait_for(Option::is_some).await.ok()?.clone()?;
        let shared = match landed {
            Landed::Stored(shared) => shared,
            Landed::InsteadOfError(shared, was) => {
                return self.waited_in_vain(wish, &shared, (why, was));
            }
            Landed::Alone => return None,
            Landed::Failed(why) => return Some(failed(&why)),
        };
        let now = seconds();
        let same = shared.vary.values(&wish.headers, None) == shared.values;
        let fresh = shared.known.reuse(&wish.control, now) == Reuse::Fresh;
        if !same || !fresh || !has_wanted(wish.asked(), &shared.stored, &shared.known) {
            return None;
        }
        let rest = match &shared.rest {
            None => None,
            // Else it goes past the store already.
            Some(rest) => Some(self.sharing(wish, &shared, rest.join()?)),
        };
        count("collapsed");
        let status = CacheStatus { fwd: Some(why), collapsed: true, ..CacheStatus::default() };
        let Shared { stored, known, content, .. } = &*shared;
        Some(answer(wish.asked(), stored.clone(), known, content, (now, status), rest))
    }

    /// Answers by what stands for an error; `None` if it does not for this request.
    fn waited_in_vain(
        &self,
        wish: &Wish,
        shared: &Shared,
        (why, was): (&'static str, Option<StatusCode>),
    ) -> Option<Response<CacheBody>> {
        let now = seconds();
        let Shared { stored, known, content, .. } = shared;
        // An origin that has answered allows only what was said.
        let most = if was.is_some() { 0 } else { self.options.stale_if_error };
        if !known.instead_of_error(&wish.control, now, most)
            || !has_wanted(wish.asked(), stored, known)
        {
            return None;
        }
        count("stale");
        let status = CacheStatus { collapsed: true, ..instead_of_error((why, was), known, now) };
        Some(answer(wish.asked(), stored.clone(), known, content, (now, status), None))
    }

    fn sharing(self: &Arc<Self>, wish: &Wish, shared: &Shared, joined: Joined) -> Sharing {
        Sharing { joined, again: self.again(wish, shared) }
    }

    /// Asks an origin. With a flight others wait for it, and it goes on if the client does not wait.
    async fn alone(
        self: &Arc<Self>,
        wish: &Wish,
        ask: Ask,
        why: &'static str,
        flight: Option<Flight>,
    ) -> Response<CacheBody> {
        let Ok(fetched) = self.begin(ask, flight).await else {
            count("failed");
            return own(StatusCode::INTERNAL_SERVER_ERROR, "");
        };
        let now = seconds();
        let mut status = CacheStatus { fwd: Some(why), ..CacheStatus::default() };
        let (shared, rest) = match fetched {
            Fetched::Failed(why) => return failed(&why),
            Fetched::Passing(response, _) if !wish.has_asked_for(response.status()) => {
                return unasked();
            }
            Fetched::Passing(response, detail) => {
                count("pass");
                return self.passed(*response, CacheStatus { detail: Some(detail), ..status });
            }
            Fetched::Storing(shared, joined) => {
                status.stored = true;
                count("miss");
                let rest = joined.map(|joined| self.sharing(wish, &shared, joined));
                (shared, rest)
            }
            Fetched::Validated(shared) => {
                status.fwd_status = Some(StatusCode::NOT_MODIFIED);
                count("validated");
                (shared, None)
            }
            Fetched::InsteadOfError(shared, was) => {
                status = instead_of_error((why, was), &shared.known, now);
                count("stale");
                (shared, None)
            }
        };
        let Shared { stored, known, content, .. } = &*shared;
        let mut asked = wish.asked();
        let nothing = HeaderMap::new();
        if !has_wanted(asked, stored, known) {
            if !wish.has_asked_for(StatusCode::PARTIAL_CONTENT) {
                return unasked();
            }
            // A part of what was asked for, or another one: the client looks which (RFC 9110, 15.3.7).
            asked.headers = &nothing;
        }
        let mut response = answer(asked, stored.clone(), known, content, (now, status), rest);
        if status.ttl.is_some() {
            response.headers_mut().insert(header::AGE, known.age_at(now).into());
        }
        response
    }

    /// Begins to ask, apart from the client.
    fn begin(self: &Arc<Self>, ask: Ask, flight: Option<Flight>) -> oneshot::Receiver<Fetched> {
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(self);
        let wanted = ask.wanted;
        tokio::spawn(async move {
            let (fetched, pump) = inner.fetch(ask).await;
            if let Some(flight) = &flight {
                flight.land(match &fetched {
                    Fetched::Passing(..) => {
                        inner.remember(wanted, inner.options.uncacheable, false);
                        Landed::Alone
                    }
                    Fetched::Storing(shared, _) | Fetched::Validated(shared) => {
                        Landed::Stored(Arc::clone(shared))
                    }
                    Fetched::InsteadOfError(shared, was) => {
                        Landed::InsteadOfError(Arc::clone(shared), *was)
                    }
                    Fetched::Failed(why) => Landed::Failed(Arc::clone(why)),
                });
            }
            // The client may be gone.
            let _ = tell.send(fetched);
            if let Some(pump) = pump {
                pump.run().await;
            }
            drop(flight);
        });
        told
    }

    /// Validates in the background.
    pub(super) fn revalidate(self: &Arc<Self>, wish: &Wish, found: &Found) {
        let key = wish.target.flight(Some(found.key), &wish.headers);
        if let flight::Place::Leads(flight) = self.flights.join(key, wish.target.key()) {
            let outgoing = self.outgoing(&wish.target, Method::GET, &wish.headers);
            let asking = self.changes.asking(wish.target.key());
            let mut ask = wish.ask(outgoing, Some(Box::new(found.clone())), asking, key);
            ask.interim = None;
            for_all(&mut ask, false);
            drop(self.begin(ask, Some(flight)));
        }
    }
}

/// How a stored answer came about that stands for one of this status, or for none: then it is a hit.
fn instead_of_error(
    (why, was): (&'static str, Option<StatusCode>),
    known: &Known,
    now: u64,
) -> CacheStatus {
    let (fwd, ttl) = (was.map(|_| why), Some(known.fresh_for(now)));
    CacheStatus { hit: was.is_none(), fwd, fwd_status: was, ttl, ..CacheStatus::default() }
}

/// Makes a request one whose answer others may have: without the client's own conditions, and with
/// its wish for a part only where that is what is asked for.
fn for_all(ask: &mut Ask, part: bool) {
    if !part {
        crate::policy::without_conditions(&mut ask.outgoing.headers);
    }
}
