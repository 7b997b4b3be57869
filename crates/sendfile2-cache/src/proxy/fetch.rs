//! Asking an origin, and storing what it answers.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body_util::BodyExt;
use sendfile2_axum::FileBody;
use tokio::sync::watch;

use super::answer::{Asked, Content, file_body, has_wanted};
use super::body::Passing;
use super::changes::Asking;
use super::find::{self, Found};
use super::flight::Shared;
use super::incoming::OriginBody;
use super::interim::Interim;
use super::key::Target;
use super::origin::{NoAnswer, Outgoing};
use super::rest::{Joined, Past, Rest};
use super::{Inner, seconds};
use crate::policy::{self, Exchange, Kind, Part, Stored, Times, Validated, Vary};
use crate::store::{Fill, Hit, Key, StoreError};

/// A request for an origin, without a body.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) target: Target,
    /// The client's fields.
    pub(super) asked: HeaderMap,
    /// As it is forwarded.
    pub(super) outgoing: Outgoing,
    /// The stored response: to be validated, or a part that may be completed.
    pub(super) old: Option<Box<Found>>,
    pub(super) interim: Option<Interim>,
    pub(super) asking: Asking,
    /// The key by which it is remembered that its answer is not stored.
    pub(super) wanted: Key,
    /// Whether its answer is known to be too large for the store.
    pub(super) too_large: bool,
}

/// The time for which it is remembered that an answer of unknown length was too large.
const TOO_LARGE: Duration = Duration::from_secs(300);

/// The outcome of asking.
#[derive(Debug)]
pub(super) enum Fetched {
    /// A response that is not stored, and why.
    Passing(Box<Response<OriginBody>>, &'static str),
    /// A response that is being stored; the one who asked reads it.
    Storing(Arc<Shared>, Option<Joined>),
    /// The stored response is right.
    Validated(Arc<Shared>),
    /// The stored response stands for an error.
    InsteadOfError(Arc<Shared>, Option<StatusCode>),
    /// There is no answer.
    Failed(Arc<NoAnswer>),
}

/// A body on its way into the store.
pub(super) struct Pump {
    inner: Arc<Inner>,
    key: Key,
    wanted: Key,
    /// As long as somebody may read what is stored.
    fill: Option<Fill>,
    body: Passing,
    /// The parts of the old one that come before and behind it.
    before: Option<FileBody>,
    behind: Option<FileBody>,
    /// Where a part ends that the body has.
    end: Option<u64>,
    written: u64,
    rest: Arc<Rest>,
    /// The rest that goes past the store, once the store takes no more.
    past: Option<Past>,
    _counted: Counted,
}

/// One that is on its way into the store.
struct Counted(Arc<watch::Sender<usize>>);

impl Counted {
    fn new(all: &Arc<watch::Sender<usize>>) -> Self {
        all.send_modify(|all| *all += 1);
        Counted(Arc::clone(all))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.send_modify(|all| *all -= 1);
    }
}

fn shared(found: &Found) -> Arc<Shared> {
    Arc::new(Shared {
        stored: found.stored.clone(),
        known: found.known,
        content: Content::Hit(found.hit.clone()),
        vary: Vary::default(),
        values: Vec::new(),
        rest: None,
    })
}

impl Inner {
    /// Asks an origin, and begins to store the answer where that may be.
    pub(super) async fn fetch(self: &Arc<Self>, ask: Ask) -> (Fetched, Option<Pump>) {
        let mut ask = ask;
        loop {
            // That a part is right is no answer to who wants more than it has.
            let asked = Asked { method: &Method::GET, headers: &ask.asked };
            let validates = !ask.outgoing.headers.contains_key(header::RANGE)
                && ask.old.as_ref().is_some_and(|old| {
                    old.known.validator && has_wanted(asked, &old.stored, &old.known)
                });
            if let (true, Some(old)) = (validates, &ask.old) {
                policy::ask_if_changed(&mut ask.outgoing.headers, &old.stored.headers);
            }
            let began = seconds();
            let answer = self.origins.ask(&ask.outgoing, ask.interim.as_ref()).await;
            let times = Times { asked: began, answered: seconds() };
            let may_stand = |ask: &Ask| {
                let control = policy::RequestControl::of(&ask.asked);
                let most = self.options.stale_if_error;
                let old = ask.old.as_ref().filter(|old| old.known.kind == Kind::Whole)?;
                let stands =
                    |default| old.known.instead_of_error(&control, times.answered, default);
                Some((shared(old), stands(most), stands(0)))
            };
            let response = match answer {
                Ok(response) => response,
                Err(e) => {
                    self.trouble(&ask.target, &e);
                    return match may_stand(&ask) {
                        Some((shared, true, _)) => (Fetched::InsteadOfError(shared, None), None),
                        _ => (Fetched::Failed(Arc::new(e)), None),
                    };
                }
            };
            let (mut head, body) = response.into_parts();
            policy::strip_hop_by_hop(&mut head.headers);
            with_date(&mut head.headers, times.answered);
            if matches!(head.status.as_u16(), 500 | 502 | 503 | 504) {
                // It has answered: only what was said counts.
                if let Some((shared, _, true)) = may_stand(&ask) {
                    return (Fetched::InsteadOfError(shared, Some(head.status)), None);
                }
            }
            let Some(old) = ask.old.as_ref().filter(|_| validates) else {
                return self.received(ask, head, body, times).await;
            };
            match Validated::of(&old.stored.headers, head.status, &head.headers) {
                Validated::Unchanged => {
                    return match self.refreshed(&ask, old, &head.headers, times).await {
                        Some(shared) => (Fetched::Validated(shared), None),
                        // It was banned, or has become one of several, or one that must not be stored.
                        None => {
                            ask.old = None;
                            policy::without_conditions(&mut ask.outgoing.headers);
                            continue;
                        }
                    };
                }
                Validated::Another => {
                    ask.old = None;
                    policy::without_conditions(&mut ask.outgoing.headers);
                }
                Validated::Changed => return self.received(ask, head, body, times).await,
            }
        }
    }

    /// Puts a 304 into what is stored.
    async fn refreshed(
        self: &Arc<Self>,
        ask: &Ask,
        old: &Found,
        new: &HeaderMap,
        times: Times,
    ) -> Option<Arc<Shared>> {
        let mut stored = old.stored.clone();
        policy::merge(&mut stored.headers, new);
        // What is stored was not chosen by these fields.
        if Vary::of(&stored.headers) != Vary::of(&old.stored.headers) {
            return None;
        }
        let (status, response) = (stored.status, &stored.headers);
        let exchange =
            Exchange { method: &Method::GET, request: &ask.asked, status, response, times };
        let known = exchange.judge().ok()?;
        let (store, key, hit) = (self.store.clone(), old.key, old.hit.clone());
        let (state, head, changes) = (known.to_state(), stored.encode(), Arc::clone(&self.changes));
        let refresh = move || changes.refresh(&store, key, &hit, state, &head);
        let done = tokio::task::spawn_blocking(refresh).await;
        if let Ok(Err(e)) = &done {
            tracing::debug!("a response is not refreshed: {e}");
            if matches!(e, StoreError::Absent | StoreError::Banned) {
                return None;
            }
        }
        // What is stored now may be of after a ban, and this is of before.
        if !ask.asking.is_current() {
            return None;
        }
        let (vary, values) = vary_of(&stored.headers, &ask.asked);
        let content = Content::Hit(old.hit.clone());
        Some(Arc::new(Shared { stored, known, content, vary, values, rest: None }))
    }

    /// Judges an answer, and begins to store it.
    pub(super) async fn received(
        self: &Arc<Self>,
        ask: Ask,
        head: http::response::Parts,
        body: OriginBody,
        times: Times,
    ) -> (Fetched, Option<Pump>) {
        let status = head.status;
        let exchange = Exchange {
            method: &Method::GET,
            request: &ask.asked,
            status,
            response: &head.headers,
            times,
        };
        let judged = if ask.outgoing.method == Method::POST {
            exchange.judge_of_post()
        } else {
            exchange.judge()
        };
        let passing = |head, body, why| {
            (Fetched::Passing(Box::new(Response::from_parts(head, body)), why), None)
        };
        let mut known = match judged {
            Ok(_) if ask.too_large => return passing(head, body, "too-large"),
            Ok(known) => known,
            Err(why) => return passing(head, body, why.name()),
        };
        let stall = self.origins.timeouts.stall;
        let body = Passing::new(body, stall);
        let mut headers = head.headers.clone();
        let (mut status, mut length) = (status, body.length());
        let (mut before, mut behind, mut part_end) = (None, None, None);
        if let Some(new) = Part::of(&headers).filter(|_| known.kind == Kind::Part) {
            let old = ask.old.as_ref().filter(|old| {
                old.known.kind == Kind::Part
                    && old.stored.headers.get(header::ETAG) == headers.get(header::ETAG)
            });
            let part = old.and_then(|old| Some((old, Part::of(&old.stored.headers)?)));
            let together = part.as_ref().and_then(|(_, part)| policy::completes(part, &new));
            if let (Some((old, part)), Some(_)) = (&part, &together) {
                let mut merged = old.stored.headers.clone();
                policy::merge(&mut merged, &headers);
                headers = merged;
                let of_old = |from: u64, to: u64| {
                    let within = from - part.range.start..to - part.range.start;
                    file_body(&old.hit, &within).ok().flatten()
                };
                if part.range.start < new.range.start {
                    before = of_old(part.range.start, new.range.start);
                }
                if part.range.end > new.range.end {
                    behind = of_old(new.range.end, part.range.end);
                }
            }
            let end = new.range.end;
            let part = together.unwrap_or(new);
            part_end = Some(end - part.range.start);
            headers.insert(header::CONTENT_LENGTH, part.len().into());
            headers.insert(header::CONTENT_RANGE, policy::content_range(&part));
            length = Some(part.len());
            if part.is_whole() {
                headers.remove(header::CONTENT_RANGE);
                status = StatusCode::OK;
                known.kind = Kind::Whole;
                known.status = 200;
            }
        }
        let stored = Stored { id: ask.target.id(), status, headers };
        let (vary, values) = vary_of(&stored.headers, &ask.asked);
        let begun = {
            let (store, stored, vary) = (self.store.clone(), stored.clone(), vary.clone());
            let (target, asked) = (ask.target.clone(), ask.asked.clone());
            let begin = move || {
                let (request, response) = (&asked, &stored.headers);
                let key = find::place(&store, &target, request, response, &vary, times.answered)?;
                Ok::<_, StoreError>((
                    key,
                    store.begin(key, known.to_state(), &stored.encode(), length)?,
                ))
            };
            tokio::task::spawn_blocking(begin).await
        };
        let (key, fill) = match begun {
            // It is older than a change that the origin has made since.
            Ok(Ok(_)) if !ask.asking.is_current() => {
                return passing(head, body.into_inner(), "changed");
            }
            Ok(Ok(begun)) => begun,
            Ok(Err(e)) => {
                tracing::debug!("a response is not stored: {e}");
                let too_large = matches!(e, StoreError::TooLarge { .. });
                let why = if too_large { "too-large" } else { "store" };
                return passing(head, body.into_inner(), why);
            }
            Err(e) => {
                tracing::error!("the store has failed: {e}");
                return passing(head, body.into_inner(), "store");
            }
        };
        let rest = Rest::new();
        let joined = rest.join();
        let content = Content::Filling(fill.reader());
        let of_all = Some(Arc::clone(&rest));
        let shared = Arc::new(Shared { stored, known, content, vary, values, rest: of_all });
        let pump = Pump {
            inner: Arc::clone(self),
            key,
            wanted: ask.wanted,
            fill: Some(fill),
            body,
            before,
            behind,
            end: part_end,
            written: 0,
            rest,
            past: None,
            _counted: Counted::new(&self.filling),
        };
        (Fetched::Storing(shared, joined), Some(pump))
    }
}

fn vary_of(response: &HeaderMap, request: &HeaderMap) -> (Vary, Vec<u8>) {
    let vary = Vary::of(response).unwrap_or_default();
    let values = vary.values(request, None);
    (vary, values)
}

/// Gives an answer the date that it should have (RFC 9110, 6.6.1).
fn with_date(headers: &mut HeaderMap, now: u64) {
    if headers.get(header::DATE).and_then(policy::parse_date).is_none() {
        let now = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now);
        if let Ok(date) = httpdate::fmt_http_date(now).try_into() {
            headers.insert(header::DATE, date);
        }
    }
}

impl Pump {
    /// Moves the body into the store, to its end; nobody needs to want it.
    pub(super) async fn run(mut self) -> Option<Hit> {
        if let Err(e) = self.all().await {
            tracing::debug!("a response was given up: {e}");
            self.rest.breaks_off(&e);
            return None;
        }
        let Pump { inner, key, fill, written, past, _counted, .. } = self;
        if let Some(past) = past {
            past.end(written);
            return None;
        }
        let fill = fill?;
        let finish = move || {
            let _commit = inner.changes.commit(key);
            fill.finish()
        };
        match tokio::task::spawn_blocking(finish).await {
            Ok(Ok(hit)) => Some(hit),
            Ok(Err(e)) => {
                tracing::debug!("a response is not stored: {e}");
                None
            }
            Err(e) => {
                tracing::error!("the store has failed: {e}");
                None
            }
        }
    }

    async fn all(&mut self) -> io::Result<()> {
        let before = self.before.take();
        self.old(before).await?;
        while let Some(bytes) = self.body.next().await {
            let bytes = bytes?;
            let end = self.written.saturating_add(bytes.len() as u64);
            if self.end.is_some_and(|wanted| end > wanted) {
                return Err(self.body.wrong("a part is longer than it says"));
            }
            self.write(bytes).await?;
        }
        if self.end.is_some_and(|end| self.written != end) {
            return Err(self.body.wrong("a part is shorter than it says"));
        }
        let behind = self.behind.take();
        self.old(behind).await
    }

    async fn old(&mut self, old: Option<FileBody>) -> io::Result<()> {
        let Some(mut old) = old else { return Ok(()) };
        while let Some(frame) = old.frame().await {
            if let Ok(bytes) = frame?.into_data() {
                self.write(bytes).await?;
            }
        }
        Ok(())
    }

    async fn write(&mut self, bytes: Bytes) -> io::Result<()> {
        let (from, length) = (self.written, bytes.len() as u64);
        self.written += length;
        if self.past.is_none() {
            let Err(e) = self.store(bytes.clone()).await? else { return Ok(()) };
            tracing::debug!("a response is not stored: {e}");
            if matches!(e, StoreError::TooLarge { .. }) {
                self.inner.remember(self.wanted, TOO_LARGE, true);
            }
            self.past = Some(self.rest.begin(from));
        }
        let Some(past) = self.past.as_mut().filter(|_| length > 0) else { return Ok(()) };
        past.send(bytes).await?;
        if past.has_left_store() {
            self.fill = None;
        }
        Ok(())
    }

    async fn store(&mut self, bytes: Bytes) -> io::Result<Result<(), StoreError>> {
        let Some(mut fill) = self.fill.take() else { return Err(io::ErrorKind::Other.into()) };
        let (fill, written) = if fill.stages(bytes.len()) {
            let written = fill.write(&bytes);
            (fill, written)
        } else {
            let write = move || {
                let written = fill.write(&bytes);
                (fill, written)
            };
            tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
        };
        self.fill = Some(fill);
        Ok(written)
    }
}
