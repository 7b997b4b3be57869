//! All that a reload replaces: the directory, certificates, limits and rules.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::http::uri::{Authority, PathAndQuery};
use axum::http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
};
use http_body_util::Full;
use hyper::server::conn::http1;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sendfile2::Engine;
use sendfile2_axum::{ServeDir, ZeroCopyLayer};
use sendfile2_cache::Cache;
use sendfile2_cache::store::Store;
use tokio_rustls::TlsAcceptor;
use tower_http::cors::CorsLayer;
use tower_layer::Layer;
use tower_service::Service;

use super::body::FilesBody;
use super::cached;
use super::connection::http1;
use super::limits::Proxies;
use super::listing::Listing;
use super::rules::{Rules, cors};
use super::timeouts::Limits;
use super::tls;
use crate::args::operation::LogFormat;
use crate::args::serve::Args;
use crate::config::{self, Config, What};

/// The headers that ask for a part of a file, or for another version of it than a known one.
const CONDITIONS: [HeaderName; 6] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
];

pub(super) struct Site {
    pub(super) content: Content,
    pub(super) redirect: Option<u16>,
    pub(super) log: Option<LogFormat>,
    pub(super) proxies: Proxies,
    pub(super) connections_per_address: Option<u32>,
    pub(super) requests_per_address: Option<u32>,
    pub(super) grace: Duration,
    pub(super) terms: Arc<Terms>,
}

/// The contents that are served.
pub(super) enum Content {
    Files(Arc<Files>),
    Cache(Cache),
}

/// The files beneath a directory.
pub(super) struct Files {
    dir: ServeDir,
    rules: Rules,
    cors: Option<CorsLayer>,
    /// The path of the page of those that there are not, and its status.
    instead: Option<(Uri, StatusCode)>,
    listing: Option<Arc<Listing>>,
    dotfiles: bool,
}

/// The options that a connection keeps from its beginning on. It keeps nothing else of a site, so that the files
/// of one that was replaced are closed.
pub(super) struct Terms {
    pub(super) engine: Engine,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) limits: Limits,
    /// The builder for HTTP/1: hyper-util would find out the version by itself, but by reading,
    /// after which hyper's buffer is twice as large.
    pub(super) http1: http1::Builder,
    /// Whether answers may be preceded by interim ones.
    pub(super) interim: bool,
}

impl Site {
    /// Reads and opens what the options name. A cache has its store; without one it is only looked at.
    /// What it knows of changes a cache has from the one `before`.
    pub(super) fn new(
        config: &Config,
        store: Option<&Store>,
        before: Option<&Site>,
    ) -> anyhow::Result<Self> {
        config::agree(config)?;
        let args = config.operation();
        super::usable(args.engine, args.listen.iter().chain(&args.listen_http))?;
        let tls = match (&args.tls_cert, &args.tls_key) {
            (Some(cert), Some(key)) => {
                let acceptor = tls::acceptor(cert, key);
                Some(acceptor.with_context(|| config.place("tls-cert", 0))?)
            }
            _ => None,
        };
        let content = match &config.what {
            What::Files(args) => Content::Files(Arc::new(Files::new(config, args)?)),
            What::Cache(args) => {
                let before = before.and_then(Site::cache);
                Content::Cache(cached::cache(config, args, store, before)?)
            }
        };
        Ok(Site {
            redirect: args.redirect_https.map(std::num::NonZeroU16::get),
            log: args.access_log.as_ref().map(|_| args.access_log_format),
            proxies: Proxies::new(config)?,
            connections_per_address: args.max_connections_per_address.map(Into::into),
            requests_per_address: args.max_requests_per_address.map(Into::into),
            grace: args.grace,
            terms: Arc::new(Terms {
                engine: args.engine,
                tls,
                limits: Limits::of(args),
                http1: http1(),
                interim: matches!(content, Content::Cache(_)),
            }),
            content,
        })
    }

    /// The files that it keeps open at most. A cache has as many connections of its own as it has
    /// clients' at most.
    pub(super) fn kept_files(&self) -> usize {
        match &self.content {
            Content::Files(files) => files.dir.kept_files(),
            Content::Cache(_) => usize::MAX / 4,
        }
    }

    /// The cache, where that is what it serves.
    pub(super) fn cache(&self) -> Option<&Cache> {
        match &self.content {
            Content::Files(_) => None,
            Content::Cache(cache) => Some(cache),
        }
    }

    /// Begins to check a cache's origins, as long as there is this site.
    pub(super) fn check_origins(&self) {
        if let Some(cache) = self.cache() {
            tokio::spawn(cache.check_origins());
        }
    }

    /// Returns the redirect to HTTPS that answers a request by a plain listener, where there is one.
    pub(super) fn redirected<B>(&self, request: &Request<B>) -> Option<Response<FilesBody>> {
        let port = self.redirect?;
        let path = request.uri().path();
        // Those who make certificates ask for this, before there are any.
        if path.starts_with("/.well-known/acme-challenge/") {
            return None;
        }
        let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let named = named.and_then(|host| host.parse::<Authority>().ok());
        let host = request.uri().authority().cloned().or(named);
        let mut response = Response::default();
        let named = |it: &&PathAndQuery| it.path().starts_with('/');
        let path = request.uri().path_and_query().filter(named);
        let (Some(host), Some(path)) = (host, path) else {
            *response.status_mut() = StatusCode::BAD_REQUEST;
            return Some(response);
        };
        let port = if port == 443 { String::new() } else { format!(":{port}") };
        let to = format!("https://{}{port}{path}", host.host());
        *response.status_mut() = match HeaderValue::from_str(&to) {
            Ok(to) => {
                response.headers_mut().insert(header::LOCATION, to);
                StatusCode::PERMANENT_REDIRECT
            }
            Err(_) => StatusCode::BAD_REQUEST,
        };
        Some(response)
    }
}

impl Files {
    fn new(config: &Config, args: &Args) -> anyhow::Result<Self> {
        let path = args.dir.as_deref().unwrap_or(Path::new("."));
        let beneath = !args.follow_links_out;
        let open = if beneath { ServeDir::new } else { ServeDir::follow_links_out };
        let name = path.display();
        let cannot = || format!("{}: cannot open {name}", config.place("dir", 0));
        let mut dir = open(path).with_context(cannot)?.validity(args.file_validity);
        if args.precompressed {
            dir = dir.precompressed();
        }
        let page = |key, page: &Option<String>, status| {
            page.as_ref().map(|page| {
                let found = path.join(page).metadata();
                anyhow::ensure!(
                    found.is_ok_and(|found| found.is_file()),
                    "{}: there is no file {page} beneath {name}",
                    config.place(key, 0)
                );
                Ok((uri(page)?, status))
            })
        };
        let instead = match page("fallback", &args.fallback, StatusCode::OK) {
            None => page("not-found-page", &args.not_found_page, StatusCode::NOT_FOUND),
            some => some,
        };
        Ok(Files {
            dir,
            rules: Rules::new(config, args)?,
            cors: cors(config, args)?,
            instead: instead.transpose()?,
            listing: match args.list_directories {
                true => {
                    Some(Arc::new(Listing::new(path, beneath, args.dotfiles).with_context(cannot)?))
                }
                false => None,
            },
            dotfiles: args.dotfiles,
        })
    }

    /// Answers a request that has passed all limits.
    pub(super) async fn answer<B: Send + 'static>(
        self: Arc<Self>,
        request: Request<B>,
    ) -> Response<FilesBody> {
        if self.cors.is_none() {
            return self.file(request).await;
        }
        let site = Arc::clone(&self);
        let file = tower::service_fn(move |request| {
            let site = Arc::clone(&site);
            async move { Ok::<_, Infallible>(site.file(request).await) }
        });
        let Some(cors) = &self.cors else { return Response::default() };
        let Ok(response) = cors.layer(file).call(request).await;
        response
    }

    /// Answers a plain request for a file that was asked for before, as [`answer`](Self::answer)
    /// would: of a small file, or with a mapped body, on the connection that the layer is for.
    pub(super) fn at_once<B>(
        &self,
        request: &Request<B>,
        mapped: Option<&ZeroCopyLayer>,
    ) -> Option<Response<FilesBody>> {
        let path = request.uri().path();
        if self.cors.is_some() || (!self.dotfiles && hides(path)) {
            return None;
        }
        let mut response = match (self.dir.at_once(request), mapped) {
            (Some(response), _) => response.map(|bytes| FilesBody::Text(Full::new(bytes))),
            (None, mapped) => self.dir.mapped_at_once(request, mapped?)?.map(FilesBody::Dir),
        };
        self.rules.apply(path, &mut response);
        Some(response)
    }

    async fn file<B: Send + 'static>(&self, request: Request<B>) -> Response<FilesBody> {
        let uri = request.uri().clone();
        let hidden = !self.dotfiles && hides(uri.path());
        let asks = matches!(*request.method(), Method::GET | Method::HEAD);
        let again = (asks && (self.instead.is_some() || self.listing.is_some()))
            .then(|| (request.method().clone(), request.headers().clone()));
        let mut response = if hidden {
            Response::default()
        } else {
            let Ok(response) = self.dir.clone().call(request).await;
            response.map(FilesBody::Dir)
        };
        if hidden {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        if let (Some((method, headers)), StatusCode::NOT_FOUND) = (again, response.status()) {
            if let Some(other) = self.instead(&method, headers, uri.path(), hidden).await {
                response = other;
            }
        }
        self.rules.apply(uri.path(), &mut response);
        response
    }

    /// Returns what is answered where there is no file.
    async fn instead(
        &self,
        method: &Method,
        mut headers: HeaderMap,
        path: &str,
        hidden: bool,
    ) -> Option<Response<FilesBody>> {
        if let (Some(listing), false) = (&self.listing, hidden) {
            if let Some(page) = Arc::clone(listing).page(path).await {
                return Some(page);
            }
        }
        let (uri, status) = self.instead.as_ref()?;
        if *status != StatusCode::OK {
            // It is no version, and no part, of what was asked for.
            for name in CONDITIONS {
                headers.remove(name);
            }
        }
        let mut request = Request::new(());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        *request.headers_mut() = headers;
        let Ok(mut response) = self.dir.clone().call(request).await;
        if *status != StatusCode::OK {
            *response.status_mut() = *status;
            for name in [header::ETAG, header::LAST_MODIFIED, header::ACCEPT_RANGES] {
                response.headers_mut().remove(name);
            }
        }
        Some(response.map(FilesBody::Dir))
    }
}

/// Returns whether a path leads through a name that begins with a dot.
fn hides(path: &str) -> bool {
    if !path.contains("/.") && !path.contains('%') {
        return false;
    }
    let path = percent_decode_str(path).decode_utf8_lossy();
    path.split('/').any(|name| name.starts_with('.') && name != ".well-known")
}

/// Returns the URI of a file beneath the directory.
fn uri(page: &str) -> anyhow::Result<Uri> {
    let names = page.split('/').filter(|name| !name.is_empty());
    let path: String =
        names.map(|name| format!("/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))).collect();
    path.parse().with_context(|| format!("{page} is no file's name"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use http_body_util::BodyExt;
    use sendfile2::Options;
    use sendfile2_axum::Io;

    use super::*;

    async fn parts(response: Response<FilesBody>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let (head, body) = response.into_parts();
        (head.status, head.headers, body.collect().await.unwrap().to_bytes().into())
    }

    /// With each option that decides on answers, for every path and kind of request: what is
    /// answered at once is what is answered else, and plain requests are, unless a page of another
    /// origin may ask for the file, or it is hidden.
    #[tokio::test]
    async fn what_is_answered_at_once_is_what_is_answered_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let large = "large\n".repeat(10_000);
        for (name, text) in [
            ("page.html", "page"),
            ("page.html.gz", "gz"),
            ("a.js", "js"),
            ("sub/index.html", "index"),
            (".env", "env"),
            (".none.html", "none"),
            ("empty", ""),
            ("large.html", &large),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let open = [
            "/page.html",
            "/page%2ehtml",
            "/a.js?v=1",
            "/sub/",
            "/sub/index.html",
            "/empty",
            "/large.html",
        ];
        let hidden = ["/.env", "/%2Eenv", "/.none.html", "/%2Enone%2Ehtml"];
        let others = ["/", "/sub", "/none", "/none/", "//page.html/"];
        let options: [&[_]; 10] = [
            &[],
            &["--charset="],
            &["--header=*.html=X-A: b", "--header=X-No=X-C: d", "--header=*=X-Frame: deny"],
            &["--cache-control=*.js=max-age=60", "--cache-control=/sub/**=no-store"],
            &["--dotfiles", "--header=.*=X-Dot: yes"],
            &["--fallback=page.html"],
            &["--not-found-page=.none.html", "--header=*=X-Frame: deny"],
            &["--list-directories"],
            &["--precompressed", "--file-validity=0"],
            &["--cors=*"],
        ];
        let headers: [&[(&str, &str)]; 5] = [
            &[],
            &[("origin", "https://example.org")],
            &[("accept-encoding", "gzip")],
            &[("range", "bytes=1-2")],
            &[("if-modified-since", "Fri, 31 Dec 9999 23:59:59 GMT")],
        ];
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let layer = ZeroCopyLayer::of(&Io::new(stream, Options::new()).unwrap());
        for options in options {
            let mut line = vec!["sendfile2-server".into(), "serve".into(), dir.path().into()];
            line.extend(options.iter().map(Into::into));
            let Ok(config) = Config::read(&line) else { panic!("{options:?} is right") };
            let What::Files(args) = &config.what else { panic!("{options:?} is of files") };
            let site = Arc::new(Files::new(&config, args).unwrap());
            let mut plain = 0;
            for path in open.iter().chain(&hidden).chain(&others) {
                for (method, headers) in
                    ["GET", "HEAD", "POST", "OPTIONS"].iter().flat_map(|m| headers.map(|h| (m, h)))
                {
                    let request = || {
                        let mut request = Request::builder().method(*method).uri(*path);
                        for (name, value) in headers {
                            request = request.header(*name, *value);
                        }
                        request.body(()).unwrap()
                    };
                    // Twice: the first makes it known.
                    let _ = parts(Arc::clone(&site).answer(request()).await).await;
                    let expected = parts(Arc::clone(&site).answer(request()).await).await;
                    if let Some(got) = site.at_once(&request(), Some(&layer)) {
                        let what = format!("{method} {path} {headers:?} {options:?}");
                        assert_eq!(parts(got).await, expected, "{what}");
                        plain += 1;
                    }
                }
            }
            let each = |files: usize| match options {
                ["--cors=*"] => 0,
                ["--precompressed", ..] => 2 * files,
                _ => 3 * files,
            };
            let shown = if site.dotfiles { hidden.len() } else { 0 };
            assert_eq!(plain, each(open.len() + shown), "{options:?}");
        }
    }

    #[test]
    fn names_with_a_dot_are_hidden_however_they_are_spelled() {
        for path in ["/.git/config", "/a/.env", "/%2egit/config", "/a%2f.env", "/.well-known/.a"] {
            assert!(hides(path), "{path}");
        }
        for path in ["/", "/a.b", "/a/b.", "/.well-known/acme-challenge/x", "/%41"] {
            assert!(!hides(path), "{path}");
        }
    }
}
