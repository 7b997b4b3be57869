//! Active checks of origins: one that does not answer them is left alone until it does again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::Method;
use http_body_util::{BodyExt, Empty};
use tokio::task::JoinSet;

use super::body::RequestBody;
use super::origin::{Origin, Origins, Outgoing};
use super::{Cache, Inner};

/// The checks of origins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path and query of the request, a GET. An answer of 200 to 399 passes.
    pub path: String,
    /// The time from one check to the next, in which one has to be answered.
    pub interval: Duration,
    /// The failures one after the other by which an origin is down.
    pub fails: u32,
    /// The passes one after the other by which it is up again.
    pub passes: u32,
}

/// The state of an origin.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OriginState {
    /// Its URL.
    pub url: String,
    /// Whether requests are sent to it; else it is asked only where no other one is up.
    pub up: bool,
}

/// The result of an origin's checks. Before the first it is up.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// The checks in a row that have shown the opposite.
    against: AtomicU32,
    down: std::sync::atomic::AtomicBool,
}

impl Checked {
    pub(super) fn is_down(&self) -> bool {
        self.down.load(Relaxed)
    }

    /// Notes a check; returns whether the origin is up, where that has changed. Checks of an origin
    /// come one after the other.
    fn note(&self, passed: bool, check: &HealthCheck) -> Option<bool> {
        if passed != self.is_down() {
            self.against.store(0, Relaxed);
            return None;
        }
        let against = self.against.load(Relaxed) + 1;
        let needed = if passed { check.passes } else { check.fails };
        let turns = against >= needed;
        self.against.store(if turns { 0 } else { against }, Relaxed);
        if turns {
            self.down.store(!passed, Relaxed);
        }
        turns.then_some(passed)
    }
}

impl Origins {
    /// These origins, [checked](Cache::check_origins).
    #[must_use]
    pub fn checked(mut self, check: HealthCheck) -> Self {
        self.check = Some(check);
        self
    }

    async fn passes(&self, origin: &Origin, check: &HealthCheck) -> Result<(), String> {
        let (authority, path) = (origin.authority.to_string(), check.path.clone());
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::USER_AGENT, super::answer::AGENT);
        let request = Outgoing { method: Method::GET, authority, path, headers };
        let body = RequestBody::new(Empty::new().map_err(|never| match never {}));
        let asked = tokio::time::timeout(check.interval, self.sent(origin, &request, body, None));
        match asked.await {
            Err(_) => Err("it did not answer in time".into()),
            Ok(Err(e)) => Err(e.to_string()),
            Ok(Ok(response)) if matches!(response.status().as_u16(), 200..400) => Ok(()),
            Ok(Ok(response)) => Err(format!("it answered {}", response.status())),
        }
    }

    async fn check(&self, number: usize, check: &HealthCheck) {
        let Some(origin) = self.all.get(number) else { return };
        let passed = self.passes(origin, check).await;
        match (origin.checked.note(passed.is_ok(), check), passed) {
            (Some(true), _) => {
                origin.alone_until.store(0, Relaxed);
                tracing::warn!("the origin {} is up: its health checks pass", origin.url());
            }
            (Some(false), Err(why)) => {
                tracing::warn!("the origin {} is down: {why}", origin.url());
            }
            _ => {}
        }
    }

    fn states(&self) -> Vec<OriginState> {
        let now = self.now();
        let state = |origin: &Origin| {
            let up = !origin.checked.is_down() && origin.alone_until.load(Relaxed) <= now;
            OriginState { url: origin.url(), up }
        };
        self.all.iter().map(state).collect()
    }
}

impl Cache {
    /// The origins, and how they are.
    #[must_use]
    pub fn origins(&self) -> Vec<OriginState> {
        self.0.origins.states()
    }

    /// Checks the origins, where they are to be [checked](Origins::checked), until nobody has this
    /// cache any more: a task to be spawned.
    pub fn check_origins(&self) -> impl Future<Output = ()> + Send + use<> {
        let (check, inner) = (self.0.origins.check.clone(), Arc::downgrade(&self.0));
        async move {
            let Some(check) = check else { return };
            let mut tick = tokio::time::interval(check.interval);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let check = Arc::new(check);
            loop {
                tick.tick().await;
                let Some(inner) = inner.upgrade() else { return };
                let mut all = JoinSet::new();
                for number in 0..inner.origins.all.len() {
                    let (inner, check): (Arc<Inner>, _) = (Arc::clone(&inner), Arc::clone(&check));
                    all.spawn(async move { inner.origins.check(number, &check).await });
                }
                drop(inner);
                all.join_all().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_turns_when_enough_checks_agree() {
        let (path, interval) = ("/".into(), Duration::from_secs(1));
        let check = HealthCheck { path, interval, fails: 3, passes: 2 };
        let checked = Checked::default();
        for (passed, turned, down) in [
            (true, None, false),
            (false, None, false),
            (false, None, false),
            (true, None, false),
            (false, None, false),
            (false, None, false),
            (false, Some(false), true),
            (false, None, true),
            (true, None, true),
            (false, None, true),
            (true, None, true),
            (true, Some(true), false),
        ] {
            assert_eq!((checked.note(passed, &check), checked.is_down()), (turned, down));
        }
    }
}
