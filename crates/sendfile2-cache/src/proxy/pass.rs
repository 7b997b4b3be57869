//! Requests whose answers are not from the store: they change something, or are not to be cached.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::Limited;

use super::answer::VIA;
use super::body::{CacheBody, RequestBody, Sharing};
use super::changes::Asking;
use super::fetch::{Ask, Fetched};
use super::incoming::OriginBody;
use super::interim::Interim;
use super::key::Target;
use super::origin::{NoAnswer, Outgoing};
use super::{Inner, Wish, count, failed, find, own, seconds};
use crate::policy::{self, CacheStatus, Exchange, Times, Vary};
use crate::store::Ban;

impl Inner {
    /// A request as it is forwarded. The fields of its connection are gone already.
    pub(super) fn outgoing(
        &self,
        target: &Target,
        method: Method,
        headers: &HeaderMap,
    ) -> Outgoing {
        let mut headers = headers.clone();
        for name in [header::HOST, header::EXPECT] {
            headers.remove(name);
        }
        headers.append(header::VIA, VIA);
        let (authority, path) = (target.authority.clone(), target.path.clone());
        Outgoing { method, authority, path, headers }
    }

    /// An answer that only passes.
    pub(super) fn passed(
        &self,
        response: Response<OriginBody>,
        status: CacheStatus,
    ) -> Response<CacheBody> {
        let (mut head, body) = response.into_parts();
        policy::strip_hop_by_hop(&mut head.headers);
        head.headers.append("cache-status", status.value());
        head.headers.append(header::VIA, VIA);
        let body = CacheBody::passing(body, self.origins.timeouts.stall);
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// Forwards a request with its body, and makes invalid what it has changed.
    pub(super) async fn pass<B>(
        self: &Arc<Self>,
        target: Target,
        request: Request<B>,
        interim: Option<Interim>,
    ) -> Response<CacheBody>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let most = self.options.request_body;
        if body.size_hint().lower() > most {
            return own(StatusCode::PAYLOAD_TOO_LARGE, "");
        }
        let mut outgoing = self.outgoing(&target, head.method.clone(), &head.headers);
        match (head.method == Method::OPTIONS).then(|| forwards(&head.headers)).flatten() {
            Some(0) => return own(StatusCode::NO_CONTENT, ""),
            Some(more) => drop(outgoing.headers.insert(header::MAX_FORWARDS, (more - 1).into())),
            None => {}
        }
        // Its length is the body's own.
        outgoing.headers.remove(header::CONTENT_LENGTH);
        if let Some(len) = body.size_hint().exact().filter(|len| *len > 0 || !body.is_end_stream())
        {
            outgoing.headers.insert(header::CONTENT_LENGTH, len.into());
        }
        let empty = body.is_end_stream();
        let mut asking = self.changes.asking(target.key());
        let began = seconds();
        let answer = if empty && policy::is_safe(&head.method) {
            self.origins.ask(&outgoing, interim.as_ref()).await
        } else {
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            let body = RequestBody::new(Limited::new(body, most));
            self.origins.ask_with(&outgoing, body, interim.as_ref()).await
        };
        let response = match answer {
            Ok(response) => response,
            Err(e) => {
                self.trouble(&target, &e);
                return failed(&e);
            }
        };
        let times = Times { asked: began, answered: seconds() };
        if let Err(e) = self.invalidate(&target, &head.method, &response).await {
            let target = target.id();
            tracing::error!("what has changed by {target} cannot be made invalid for good: {e}");
        }
        count("pass");
        let safe = policy::is_safe(&head.method);
        let fwd = if safe { "bypass" } else { "method" };
        let status = CacheStatus { fwd: Some(fwd), ..CacheStatus::default() };
        if head.method == Method::POST && is_its_own(&target, &response) {
            asking.own_change();
            let ask = (target, head.headers, asking);
            return self.stored_of_post(ask, response, times, status).await;
        }
        self.passed(response, status)
    }

    /// Makes invalid what a request has changed, before its answer is sent.
    async fn invalidate(
        self: &Arc<Self>,
        target: &Target,
        method: &Method,
        response: &Response<OriginBody>,
    ) -> Result<(), crate::store::StoreError> {
        let (status, headers) = (response.status(), response.headers());
        let changed = policy::invalidated(method, &target.authority, &target.path, status, headers);
        if changed.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = changed.iter().map(|path| target.at(path).key()).collect();
        for key in &keys {
            self.flights.forget(*key);
            self.changes.changed(*key);
        }
        let store = self.store.clone();
        let banned = tokio::task::spawn_blocking(move || {
            keys.into_iter().try_for_each(|key| store.ban(Ban::Key(key)))
        });
        // It does not panic; if it did, the answer would still be right to send.
        banned.await.unwrap_or(Ok(()))
    }

    /// Stores the answer to a POST for those who GET its target.
    async fn stored_of_post(
        self: &Arc<Self>,
        (target, headers, asking): (Target, HeaderMap, Asking),
        response: Response<OriginBody>,
        times: Times,
        status: CacheStatus,
    ) -> Response<CacheBody> {
        let exchange = Exchange {
            method: &Method::POST,
            request: &headers,
            status: response.status(),
            response: response.headers(),
            times,
        };
        if exchange.judge_of_post().is_err() {
            return self.passed(response, status);
        }
        let outgoing = self.outgoing(&target, Method::POST, &headers);
        let asked = headers.clone();
        let wanted = target.flight(None, &headers);
        let too_large = self.remembers(wanted).is_some_and(|remembered| remembered.too_large);
        let (old, interim) = (None, None);
        let ask = Ask { target, asked, outgoing, old, interim, asking, wanted, too_large };
        let (mut head, body) = response.into_parts();
        policy::strip_hop_by_hop(&mut head.headers);
        match self.received(ask, head, body, times).await {
            (Fetched::Storing(shared, joined), pump) => {
                if let Some(pump) = pump {
                    tokio::spawn(pump.run());
                }
                // The conditions of a POST are not about this answer.
                let asked = super::Asked { method: &Method::POST, headers: &HeaderMap::new() };
                let status = CacheStatus { stored: true, ..status };
                let now = (times.answered, status);
                // A POST is not sent again.
                let rest = joined.map(|joined| Sharing { joined, again: None });
                let stored = shared.stored.clone();
                super::answer(asked, stored, &shared.known, &shared.content, now, rest)
            }
            (Fetched::Passing(response, detail), _) => {
                self.passed(*response, CacheStatus { detail: Some(detail), ..status })
            }
            _ => own(StatusCode::BAD_GATEWAY, ""),
        }
    }

    /// Answers HEAD from the store, or by the origin's answer, which tells of what is stored, too.
    pub(super) async fn head(self: &Arc<Self>, wish: Wish) -> Response<CacheBody> {
        let (place, why) = match self.stored(&wish).await {
            Ok(response) => return response,
            Err(missing) => missing,
        };
        if wish.control.only_if_cached {
            count("failed");
            return own(StatusCode::GATEWAY_TIMEOUT, "");
        }
        let mut outgoing = self.outgoing(&wish.target, Method::HEAD, &wish.headers);
        if matches!(place, find::Place::Found(_)) {
            policy::without_conditions(&mut outgoing.headers);
        }
        let began = seconds();
        let response = match self.origins.ask(&outgoing, wish.interim.as_ref()).await {
            Ok(response) => response,
            Err(e) => {
                self.trouble(&wish.target, &e);
                return self.head_failed(&wish, place, &e);
            }
        };
        let times = Times { asked: began, answered: seconds() };
        if let find::Place::Found(found) = place {
            self.told(&wish, *found, &response, times).await;
        }
        if !wish.has_asked_for(response.status()) {
            return super::unasked();
        }
        count("pass");
        self.passed(response, CacheStatus { fwd: Some(why), ..CacheStatus::default() })
    }

    fn head_failed(&self, wish: &Wish, place: find::Place, why: &NoAnswer) -> Response<CacheBody> {
        let now = seconds();
        let most = self.options.stale_if_error;
        match place {
            find::Place::Found(found)
                if found.known.instead_of_error(&wish.control, now, most)
                    && super::has_wanted(wish.asked(), &found.stored, &found.known) =>
            {
                count("stale");
                let ttl = Some(found.known.fresh_for(now));
                let status = CacheStatus { hit: true, ttl, ..CacheStatus::default() };
                let find::Found { hit, known, stored, .. } = *found;
                let content = super::answer::Content::Hit(hit);
                super::answer(wish.asked(), stored, &known, &content, (now, status), None)
            }
            _ => failed(why),
        }
    }

    /// Learns from an answer to HEAD: what is stored is as it says, or not right any more.
    async fn told(
        &self,
        wish: &Wish,
        found: find::Found,
        response: &Response<OriginBody>,
        times: Times,
    ) {
        if response.status() != StatusCode::OK || found.stored.status != StatusCode::OK {
            return;
        }
        let (store, changes) = (self.store.clone(), Arc::clone(&self.changes));
        let mut stored = found.stored;
        let mut new = response.headers().clone();
        policy::strip_hop_by_hop(&mut new);
        let known = policy::head_confirms(&stored.headers, &new).then(|| {
            let vary = Vary::of(&stored.headers);
            policy::merge(&mut stored.headers, &new);
            if vary != Vary::of(&stored.headers) {
                return None;
            }
            let (request, response) = (&wish.headers, &stored.headers);
            let (method, status) = (&Method::GET, stored.status);
            Exchange { method, request, status, response, times }.judge().ok()
        });
        let done = tokio::task::spawn_blocking(move || match known.flatten() {
            Some(known) => {
                let (state, head) = (known.to_state(), stored.encode());
                changes.refresh(&store, found.key, &found.hit, state, &head)
            }
            None => {
                store.remove(&found.key);
                Ok(())
            }
        });
        if let Ok(Err(e)) = done.await {
            tracing::debug!("a response is not refreshed: {e}");
        }
    }
}

/// How many may forward a request, if it says so (RFC 9110, 7.6.2).
fn forwards(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::MAX_FORWARDS)?.to_str().ok()?.parse().ok()
}

/// Whether an answer is what a GET of the same target would be answered.
fn is_its_own(target: &Target, response: &Response<OriginBody>) -> bool {
    let named = response.headers().get(header::CONTENT_LOCATION);
    let named = named.and_then(|named| std::str::from_utf8(named.as_bytes()).ok());
    named.and_then(|named| policy::resolved(&target.authority, &target.path, named)).as_deref()
        == Some(&target.path)
}
