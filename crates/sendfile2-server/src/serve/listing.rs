//! The pages that list directories.

use std::collections::HashMap;
use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderValue, Response, header};
use http_body_util::Full;
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use super::body::FilesBody;

/// The most names on a page.
const LONGEST: usize = 10_000;

/// The time for which those who ask get the page that is being sent to others.
const FRESH: Duration = Duration::from_secs(1);

pub(super) struct Listing {
    /// The directory, which is opened for each page: its path may lead elsewhere by then.
    path: PathBuf,
    resolve: ResolveFlags,
    dotfiles: bool,
    /// The pages that are being made or sent, by the names that lead to their directories. A page is
    /// long, and clients may take their time: there is one for all of them.
    pages: Mutex<HashMap<Vec<u8>, Arc<Slot>>>,
}

/// A page that may be there, and since when. It is locked while it is made.
type Slot = tokio::sync::Mutex<Option<(Instant, Weak<String>)>>;

/// The page in the hands of an answer.
struct Page(Arc<String>);

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A name in a directory, and what it is of.
struct Entry {
    name: Vec<u8>,
    directory: bool,
    size: u64,
    modified: i64,
}

impl Listing {
    pub(super) fn new(path: &Path, beneath: bool, dotfiles: bool) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let beneath = if beneath { ResolveFlags::BENEATH } else { ResolveFlags::empty() };
        let resolve = beneath | ResolveFlags::NO_MAGICLINKS;
        Ok(Listing { path, resolve, dotfiles, pages: Mutex::default() })
    }

    /// Returns the page of the directory at `path`, if there is one.
    pub(super) async fn page(self: Arc<Self>, path: &str) -> Option<Response<FilesBody>> {
        if !path.ends_with('/') {
            return None;
        }
        let decoded: Vec<u8> = percent_decode_str(path).collect();
        let names = decoded.split(|byte| *byte == b'/').filter(|it| !it.is_empty());
        let names: Vec<&[u8]> = names.collect();
        if names.contains(&&b".."[..]) {
            return None;
        }
        let page = Bytes::from_owner(Page(self.one_page(names.join(&b'/')).await?));
        let mut response = Response::new(FilesBody::Text(Full::new(page)));
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, html);
        Some(response)
    }

    /// Returns the page of the directory that these names lead to: the one that others get, or a new
    /// one.
    async fn one_page(self: Arc<Self>, names: Vec<u8>) -> Option<Arc<String>> {
        let slot = {
            let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
            pages.retain(|_, slot| Arc::strong_count(slot) > 1 || is_sent(slot));
            Arc::clone(pages.entry(names.clone()).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some((since, page)) = &*slot {
            if let (true, Some(page)) = (since.elapsed() < FRESH, page.upgrade()) {
                return Some(page);
            }
        }
        let since = Instant::now();
        // A directory has many names, and the disk is asked about each.
        let page = tokio::task::spawn_blocking(move || self.read(&names)).await.ok()?.ok()?;
        let page = Arc::new(page);
        *slot = Some((since, Arc::downgrade(&page)));
        Some(page)
    }

    fn read(&self, names: &[u8]) -> io::Result<String> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let root = rustix::fs::open(&self.path, flags, Mode::empty())?;
        let at = if names.is_empty() { b"." } else { names };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(&root, at, flags, Mode::empty(), self.resolve)?;
        let mut entries = Vec::new();
        let mut more = false;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let hidden = name.starts_with(b".") && !self.dotfiles;
            if matches!(name, b"." | b"..") || hidden {
                continue;
            }
            if entries.len() == LONGEST {
                more = true;
                break;
            }
            // What is gone again is not there; neither is what a link leads out to.
            let Ok(stat) = self.stat(&root, &dir, at, name) else { continue };
            entries.push(Entry {
                name: name.to_vec(),
                directory: FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
                size: u64::try_from(stat.st_size).unwrap_or(0),
                #[allow(
                    clippy::unnecessary_cast,
                    reason = "the types differ between architectures"
                )]
                modified: stat.st_mtime as i64,
            });
        }
        entries.sort_by(|a, b| (!a.directory, &a.name).cmp(&(!b.directory, &b.name)));
        let slash: &[u8] = if names.is_empty() { b"" } else { b"/" };
        Ok(render(&[b"/", names, slash].concat(), &entries, more))
    }

    /// Asks what a name in a directory is of, or where it leads, if that is something to be served.
    fn stat(
        &self,
        root: &OwnedFd,
        dir: &OwnedFd,
        at: &[u8],
        name: &[u8],
    ) -> rustix::io::Result<Stat> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            return Ok(stat);
        }
        let path = [at, b"/", name].concat();
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        rustix::fs::fstat(rustix::fs::openat2(root, path, flags, Mode::empty(), self.resolve)?)
    }
}

/// Returns whether the page of a slot is being sent.
fn is_sent(slot: &Slot) -> bool {
    let slot = slot.try_lock();
    slot.is_ok_and(|slot| slot.as_ref().is_some_and(|(_, page)| page.strong_count() > 0))
}

fn render(path: &[u8], entries: &[Entry], more: bool) -> String {
    let title = escaped(path);
    let mut page = format!(
        "<!DOCTYPE html>\n<html>\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body {{ font-family: sans-serif }} td {{ padding-right: 2em }} \
         td:nth-child(2) {{ text-align: right }}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<table>\n"
    );
    if path.iter().any(|byte| *byte != b'/') {
        page.push_str("<tr><td><a href=\"../\">../</a><td><td>\n");
    }
    for Entry { name, directory, size, modified } in entries {
        let slash = if *directory { "/" } else { "" };
        // Before it, so that a name with a colon is no scheme.
        let link = percent_encode(name, NON_ALPHANUMERIC);
        let size = if *directory { String::new() } else { size.to_string() };
        let modified = Timestamp::from_second(*modified).ok();
        let modified = modified.map(|at| at.strftime("%Y-%m-%d %H:%M:%S").to_string());
        // A page is memory: nothing fails.
        let _ = writeln!(
            page,
            "<tr><td><a href=\"./{link}{slash}\">{}{slash}</a><td>{size}<td>{}",
            escaped(name),
            modified.unwrap_or_default()
        );
    }
    page.push_str("</table>\n");
    if more {
        let _ = writeln!(page, "<p>There are more: only {LONGEST} names are listed.");
    }
    page.push_str("</body>\n</html>\n");
    page
}

/// Returns a name as HTML shows it.
fn escaped(name: &[u8]) -> String {
    let mut text = String::new();
    for c in String::from_utf8_lossy(name).chars() {
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_more_than_a_name() {
        let name = b"<a href='javascript:x'>\"&\xff".to_vec();
        let page =
            render(b"/<i>/", &[Entry { name, directory: false, size: 1, modified: 0 }], false);
        assert!(
            page.contains("&lt;a href=&#39;javascript:x&#39;&gt;&quot;&amp;\u{fffd}"),
            "{page}"
        );
        assert!(
            page.contains("href=\"./%3Ca%20href%3D%27javascript%3Ax%27%3E%22%26%FF\""),
            "{page}"
        );
        assert!(!page.contains("<i>"), "{page}");
    }
}
