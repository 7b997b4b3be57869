//! Where answers are found in the store, and where they are put.
//!
//! An answer without Vary has the key of its target. Else there is, in its place, an object that
//! names the fields that decide, and the answers have keys of these fields' values. Each such object
//! has a number of its own in the keys of its answers: with it, all of them are gone.

use std::convert::Infallible;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::key::Target;
use crate::policy::{self, Kind, Known, Stored, Vary};
use crate::store::{Hit, Key, MayWait, State, Store, StoreError};

const GENERATION: HeaderName = HeaderName::from_static("x-generation");

/// An answer that was found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) hit: Hit,
    pub(super) known: Known,
    pub(super) stored: Stored,
}

/// The place of the answers to a target.
#[derive(Debug)]
pub(super) enum Place {
    /// Nothing is known of it.
    Unknown,
    /// There is one for the request.
    Found(Box<Found>),
    /// There are others: this is the key of the one for the request.
    Another(Key),
}

impl Place {
    /// The key of the request's own answer, as far as it is known.
    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Place::Unknown => None,
            Place::Found(found) => Some(found.key),
            Place::Another(key) => Some(*key),
        }
    }
}

fn get(store: &Store, key: Key) -> Option<Box<Found>> {
    found(key, store.get(&key)?)
}

fn found(key: Key, hit: Hit) -> Option<Box<Found>> {
    // What is not ours, or of another version, is as good as nothing.
    let known = Known::of_state(&hit.state())?;
    let stored = Stored::parse(&hit.head)?;
    Some(Box::new(Found { key, hit, known, stored }))
}

/// The fields that decide between the answers to a target, and their number.
struct Variants {
    vary: Vary,
    generation: HeaderValue,
}

fn variants(found: &Found) -> Option<Variants> {
    let generation = found.stored.headers.get(GENERATION)?.clone();
    Some(Variants { vary: Vary::of(&found.stored.headers)?, generation })
}

impl Variants {
    fn key(&self, target: &Target, request: &HeaderMap, language: Option<&str>) -> Key {
        target.variant(self.generation.as_bytes(), &self.vary.values(request, language))
    }

    /// The key of the object that says which answer a language leads to. No list of languages that a
    /// request has begins so.
    fn key_of_language(&self, target: &Target, request: &HeaderMap, language: &str) -> Key {
        self.key(target, request, Some(&format!("={language}")))
    }
}

/// Finds the answer to a request, on a thread that may wait if that takes waiting for the disk.
pub(super) async fn find(store: &Store, target: &Target, request: &HeaderMap) -> Place {
    match find_by(&|key| store.try_get(&key), target, request) {
        Ok(place) => place,
        Err(MayWait) => {
            let (store, target, request) = (store.clone(), target.clone(), request.clone());
            let find = move || {
                let Ok(place) =
                    find_by(&|key| Ok::<_, Infallible>(store.get(&key)), &target, &request);
                place
            };
            // It does not panic; if it did, an origin would know the answer.
            tokio::task::spawn_blocking(find).await.unwrap_or(Place::Unknown)
        }
    }
}

/// Finds the answer to a request, if that takes no waiting for the disk, and what is known of it is
/// as asked for.
pub(super) fn at_once(
    store: &Store,
    target: &Target,
    request: &HeaderMap,
    fits: impl Fn(&Known) -> bool,
) -> Option<Box<Found>> {
    let fits = |state: &State| {
        Known::of_state(state).is_some_and(|known| known.kind == Kind::Variants || fits(&known))
    };
    match find_by(&|key| store.try_get_if(&key, fits), target, request) {
        Ok(Place::Found(found)) => Some(found),
        Ok(Place::Unknown | Place::Another(_)) | Err(MayWait) => None,
    }
}

fn find_by<E>(
    get: &impl Fn(Key) -> Result<Option<Hit>, E>,
    target: &Target,
    request: &HeaderMap,
) -> Result<Place, E> {
    let get = |key| Ok(get(key)?.and_then(|hit| found(key, hit)));
    let Some(found) = get(target.key())? else { return Ok(Place::Unknown) };
    let variants = match found.known.kind {
        Kind::Whole | Kind::Part => return Ok(Place::Found(found)),
        Kind::Language => return Ok(Place::Unknown),
        Kind::Variants => match variants(&found) {
            Some(variants) => variants,
            None => return Ok(Place::Unknown),
        },
    };
    let key = variants.key(target, request, None);
    let is_answer = |found: &Found| matches!(found.known.kind, Kind::Whole | Kind::Part);
    if let Some(found) = get(key)?.filter(|found| is_answer(found)) {
        return Ok(Place::Found(found));
    }
    // What the client likes best may be there, though it was asked for in other words.
    let favourite = policy::favourite_language(request)
        .filter(|_| variants.vary.names(&header::ACCEPT_LANGUAGE));
    let Some(favourite) = favourite else { return Ok(Place::Another(key)) };
    let alias = get(variants.key_of_language(target, request, &favourite))?
        .filter(|found| found.known.kind == Kind::Language);
    let list = alias
        .as_ref()
        .and_then(|alias| alias.stored.headers.get(header::ACCEPT_LANGUAGE)?.to_str().ok());
    let Some(list) = list else { return Ok(Place::Another(key)) };
    let found = get(variants.key(target, request, Some(list)))?.filter(|found| is_answer(found));
    Ok(found.map_or(Place::Another(key), Place::Found))
}

/// Stores an object without a body.
fn put(
    store: &Store,
    key: Key,
    target: &Target,
    known: Known,
    headers: HeaderMap,
) -> Result<(), StoreError> {
    let stored = Stored { id: target.id(), status: StatusCode::OK, headers };
    store.begin(key, known.to_state(), &stored.encode(), Some(0))?.finish().map(drop)
}

/// The key under which an answer with these fields is to be stored. Waits for the disk.
pub(super) fn place(
    store: &Store,
    target: &Target,
    request: &HeaderMap,
    response: &HeaderMap,
    vary: &Vary,
    now: u64,
) -> Result<Key, StoreError> {
    if vary.is_empty() {
        return Ok(target.key());
    }
    let old = get(store, target.key()).as_deref().and_then(variants);
    let variants = match old.filter(|old| old.vary == *vary) {
        Some(variants) => variants,
        None => {
            let number = format!("{:016x}{:x}", fastrand::u64(..), now);
            // Both are of letters, digits and commas.
            let value = |text: &str| {
                HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("*"))
            };
            let generation = value(&number);
            let mut headers = HeaderMap::new();
            headers.insert(header::VARY, value(&vary.text()));
            headers.insert(GENERATION, generation.clone());
            put(store, target.key(), target, Known::other(Kind::Variants, now), headers)?;
            Variants { vary: vary.clone(), generation }
        }
    };
    let key = variants.key(target, request, None);
    let language =
        response.get(header::CONTENT_LANGUAGE).and_then(|language| language.to_str().ok());
    let list = policy::normalized(request, &header::ACCEPT_LANGUAGE)
        .and_then(|list| HeaderValue::from_bytes(&list).ok());
    if let (true, Some(language), Some(list)) =
        (variants.vary.names(&header::ACCEPT_LANGUAGE), language, list)
    {
        let language = language.trim().to_ascii_lowercase();
        let alias = variants.key_of_language(target, request, &language);
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_LANGUAGE, list);
        put(store, alias, target, Known::other(Kind::Language, now), headers)?;
    }
    Ok(key)
}
