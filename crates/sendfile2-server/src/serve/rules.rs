//! The headers that the operator gives answers. They depend on the path and the status alone.

use anyhow::{Context, anyhow, ensure};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode, header};
use globset::{GlobBuilder, GlobMatcher};
use percent_encoding::percent_decode_str;
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use crate::args::serve::Args;
use crate::config::Config;

/// Headers that say how an answer is framed, which only the server knows.
const FRAMING: [HeaderName; 6] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::UPGRADE,
];

pub(super) struct Rules {
    cache_control: Vec<(GlobMatcher, HeaderValue)>,
    headers: Vec<(GlobMatcher, HeaderName, HeaderValue)>,
    /// The suffix of the types of text, and the types that most files have with it.
    charset: String,
    types: Vec<(&'static str, HeaderValue)>,
}

impl Rules {
    pub(super) fn new(config: &Config, args: &Args) -> anyhow::Result<Self> {
        let each = |key, rules: &[String]| {
            let rules = rules.iter().enumerate().map(|(i, rule)| {
                rule_of(rule).with_context(|| format!("{}: {rule}", config.place(key, i)))
            });
            rules.collect::<anyhow::Result<Vec<_>>>()
        };
        let mut cache_control = Vec::new();
        for (pattern, value) in each("cache-control", &args.cache_control)? {
            let value = HeaderValue::from_str(&value);
            cache_control.push((pattern, value.with_context(|| config.place("cache-control", 0))?));
        }
        let mut headers = Vec::new();
        for (i, (pattern, text)) in each("header", &args.header)?.into_iter().enumerate() {
            let (name, value) = header_of(&text).with_context(|| config.place("header", i))?;
            headers.push((pattern, name, value));
        }
        let charset = match &*args.charset {
            "" => String::new(),
            name => format!("; charset={name}"),
        };
        let with = |text: &'static str| {
            let value = HeaderValue::from_str(&format!("{text}{charset}"));
            Ok((text, value.with_context(|| config.place("charset", 0))?))
        };
        let types = ["text/html", "text/css", "text/javascript", "text/plain"].map(with);
        let types = types.into_iter().collect::<anyhow::Result<_>>()?;
        Ok(Rules { cache_control, headers, charset, types })
    }

    /// Sets the headers of the answer to a request for `path`.
    pub(super) fn apply<B>(&self, path: &str, response: &mut Response<B>) {
        let status = response.status();
        let answer = response.headers_mut();
        if !self.charset.is_empty() {
            self.name_charset(answer);
        }
        if self.cache_control.is_empty() && self.headers.is_empty() {
            return;
        }
        let mut path = percent_decode_str(path.trim_start_matches('/')).decode_utf8_lossy();
        if path.is_empty() || path.ends_with('/') {
            path.to_mut().push_str("index.html");
        }
        let file = matches!(
            status,
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED
        );
        let fits = |pattern: &GlobMatcher| pattern.is_match(&*path);
        if let (true, Some((_, value))) =
            (file, self.cache_control.iter().find(|(pattern, _)| fits(pattern)))
        {
            answer.insert(header::CACHE_CONTROL, value.clone());
        }
        for (_, name, value) in self.headers.iter().filter(|(pattern, ..)| fits(pattern)) {
            answer.insert(name, value.clone());
        }
    }

    fn name_charset(&self, answer: &mut axum::http::HeaderMap) {
        let Some(text) = answer.get_mut(header::CONTENT_TYPE) else { return };
        let bytes = text.as_bytes();
        if !bytes.starts_with(b"text/") || bytes.contains(&b';') {
            return;
        }
        let known = self.types.iter().find(|(name, _)| name.as_bytes() == bytes);
        if let Some((_, value)) = known {
            *text = value.clone();
        } else if let Ok(value) =
            HeaderValue::from_bytes(&[bytes, self.charset.as_bytes()].concat())
        {
            *text = value;
        }
    }
}

/// Reads `PATTERN=VALUE`. A pattern without a slash is of names, one with a slash of whole paths.
fn rule_of(rule: &str) -> anyhow::Result<(GlobMatcher, String)> {
    let (pattern, value) = rule
        .split_once('=')
        .context("the pattern is missing: give PATTERN=VALUE, such as *.js=max-age=3600")?;
    let whole = match pattern.strip_prefix('/') {
        Some(path) => path.to_owned(),
        None if pattern.contains('/') => pattern.to_owned(),
        None => format!("**/{pattern}"),
    };
    let glob = GlobBuilder::new(&whole)
        .literal_separator(true)
        .build()
        .map_err(|e| anyhow!("the pattern {pattern:?} cannot be read: {}", e.kind()))?;
    Ok((glob.compile_matcher(), value.trim().to_owned()))
}

/// Reads `NAME: VALUE`.
fn header_of(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text
        .split_once(':')
        .with_context(|| format!("{text:?}: the header's name is missing: give NAME: VALUE"))?;
    let name: HeaderName =
        name.trim().parse().map_err(|_| anyhow!("{name:?} is no header's name"))?;
    ensure!(!FRAMING.contains(&name), "{name} is what the server itself says of an answer");
    let value = HeaderValue::from_str(value.trim())
        .map_err(|_| anyhow!("{value:?} is no header's value: it is one line, of ASCII"))?;
    Ok((name, value))
}

/// Returns what answers pages of other origins.
pub(super) fn cors(config: &Config, args: &Args) -> anyhow::Result<Option<CorsLayer>> {
    let origins = &args.cors;
    if origins.is_empty() {
        return Ok(None);
    }
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        let origins = origins.iter().enumerate().map(|(i, origin)| {
            let place = config.place("cors", i);
            let (scheme, host) = origin.split_once("://").unwrap_or_default();
            ensure!(
                matches!(scheme, "http" | "https") && !host.is_empty() && !host.contains('/'),
                "{place}: {origin} is no origin: give one such as https://example.org, or *"
            );
            HeaderValue::from_str(origin).with_context(|| place)
        });
        AllowOrigin::list(origins.collect::<anyhow::Result<Vec<_>>>()?)
    };
    let methods = [axum::http::Method::GET, axum::http::Method::HEAD];
    let cors = CorsLayer::new().allow_origin(origin).allow_methods(methods);
    Ok(Some(cors.allow_headers(AllowHeaders::any()).expose_headers(Any)))
}
