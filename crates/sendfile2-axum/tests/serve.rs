//! Directories and files: what HTTP promises, and what never leaves the directory.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use axum::Router;
use common::{By, Client, assert_same, directory, files, pattern, serve, until};
use http_body_util::BodyExt;
use sendfile2::Engine;
use sendfile2_axum::{ServeDir, ServeFile};

const OURS: By = By::Ours(Engine::Zerocopy);

#[test]
fn ranges_and_conditions() {
    let dir = files();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let path = "/1048577";
    set_modified(&dir.path().join("1048577"), SystemTime::now() - Duration::from_secs(3600));
    let whole = client.get(path);
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let (tag, date) = (whole.header("etag").to_owned(), whole.header("last-modified").to_owned());
    assert!(tag.starts_with('"') && date.ends_with("GMT"), "{tag} {date}");

    let part = "range: bytes=100-299999\r\n";
    let got = client.with("GET", path, part);
    assert_eq!((got.status, got.header("x-became")), (206, "mapped"));
    assert_eq!(got.header("content-range"), "bytes 100-299999/1048577");
    assert_same(&got.body, &pattern(1, 100..300_000), "a range");
    let got = client.with("GET", path, "range: bytes=-5\r\n");
    assert_same(&got.body, &pattern(1, 1_048_572..1_048_577), "the last bytes");
    assert_eq!(client.with("GET", path, "range: bytes=2000000-\r\n").status, 416);

    for (known, status) in [(&*tag, 206), (&*date, 206), ("\"other\"", 200), ("W/\"x\"", 200)] {
        for range in [part, "range: bytes=2000000-\r\n"] {
            let got = client.with("GET", path, &format!("{range}if-range: {known}\r\n"));
            let expected = if status == 206 && range != part { 416 } else { status };
            assert_eq!(got.status, expected, "If-Range: {known}, {range}");
            if expected == 200 {
                assert_same(&got.body, &pattern(1, 0..1_048_577), "the whole, it has changed");
            }
        }
    }
    let got = client.with("GET", path, &format!("if-none-match: {tag}\r\n"));
    assert_eq!((got.status, got.header("etag")), (304, &*tag));
    assert_eq!(client.with("GET", path, &format!("if-modified-since: {date}\r\n")).status, 304);
    assert_eq!(client.with("GET", path, "if-match: \"other\"\r\n").status, 412);

    let got = client.with("HEAD", path, "");
    assert_eq!((got.status, got.header("content-length")), (200, "1048577"));
    let got = client.with("POST", path, "content-length: 0\r\n");
    assert_eq!((got.status, got.header("allow")), (405, "GET,HEAD"));
    // The connection is still in step.
    assert_same(&client.get("/1").body, &pattern(1, 0..1), "the last");
}

fn set_modified(path: &Path, time: SystemTime) {
    OpenOptions::new().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Both were written within a second, and for the rest of that second there may be a third.
#[test]
fn a_date_that_is_not_a_second_old_is_no_strong_validator() {
    let dir = files();
    let path = dir.path().join("65536");
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let now = SystemTime::now();
    let second = Duration::from_secs(1);
    for (time, status) in [(now - second * 10, 206), (now + second * 60, 200)] {
        set_modified(&path, time);
        let date = client.get("/65536").header("last-modified").to_owned();
        let known = format!("range: bytes=0-9\r\nif-range: {date}\r\n");
        assert_eq!(client.with("GET", "/65536", &known).status, status, "{date}");
    }
}

#[test]
fn another_file_of_the_same_size_and_time_has_another_tag() {
    let dir = files();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let path = dir.path().join("same");
    let time = SystemTime::now() - Duration::from_secs(3600);
    let mut known = String::new();
    for seed in 1..4 {
        // In the place of the last one, or written over it.
        let new = if seed == 2 { path.with_extension("new") } else { path.clone() };
        let changed = || std::fs::metadata(&path).map(|m| (m.ctime(), m.ctime_nsec())).ok();
        let before = changed();
        // The kernel's clock may tell two changes of one file by the same time.
        while {
            std::fs::write(&new, pattern(seed, 0..1000)).unwrap();
            set_modified(&new, time);
            seed == 3 && changed() == before
        } {}
        std::fs::rename(&new, &path).unwrap();
        let got = client.with("GET", "/same", &format!("if-none-match: {known}\r\n"));
        assert_eq!((got.status, got.body.len()), (200, 1000), "{known}");
        known = got.header("etag").to_owned();
        let got = client.with("GET", "/same", &format!("if-none-match: W/\"x\", {known}\r\n"));
        assert_eq!((got.status, got.header("etag")), (304, &*known));
        for (condition, status) in [
            (format!("if-match: {known}"), 200),
            (format!("if-match: W/{known}"), 412),
            ("if-match: *".into(), 200),
            ("if-none-match: *".into(), 304),
            // The tag alone decides, where there is one.
            (
                format!(
                    "if-none-match: \"x\"\r\nif-modified-since: {}",
                    got.header("last-modified")
                ),
                200,
            ),
            ("if-unmodified-since: Sat, 01 Jan 2000 00:00:00 GMT".into(), 412),
            ("if-modified-since: yesterday".into(), 200),
        ] {
            let got = client.with("GET", "/same", &format!("{condition}\r\n"));
            assert_eq!(got.status, status, "{condition}");
        }
    }
}

/// A release is put in place by setting a link anew.
#[test]
fn a_directory_whose_link_is_set_to_another_one_is_followed() {
    let dir = files();
    for release in ["one", "two"] {
        std::fs::create_dir(dir.path().join(release)).unwrap();
        std::fs::write(dir.path().join(release).join("release"), release).unwrap();
    }
    std::fs::write(dir.path().join("two/only"), "two").unwrap();
    let current = dir.path().join("current");
    symlink("one", &current).unwrap();
    let mut client = Client::new(serve(OURS, directory(&current)));
    assert_eq!(client.get("/release").body, b"one");
    symlink("two", dir.path().join("next")).unwrap();
    std::fs::rename(dir.path().join("next"), &current).unwrap();
    until("the other one is served", || client.get("/release").body == b"two");
    assert_eq!(client.get("/only").body, b"two");
    // One that is not there takes no other one's place.
    std::fs::remove_file(&current).unwrap();
    assert_eq!(client.get("/only").body, b"two");
}

#[test]
fn names_that_are_not_utf8() {
    let dir = files();
    let name = |bytes: &[u8]| dir.path().join(OsStr::from_bytes(bytes));
    std::fs::write(name(b"caf\xe9.css"), "latin").unwrap();
    std::fs::write(name(b"caf\xe9.css.gz"), "zipped").unwrap();
    std::fs::write(name("\u{10FF61}".as_bytes()), "private").unwrap();
    std::fs::create_dir(name(b"\xff")).unwrap();
    std::fs::write(name(b"\xff/index.html"), "the index").unwrap();
    let app = Router::new()
        .route_service("/one", ServeFile::new(name(b"caf\xe9.css")).unwrap())
        .fallback_service(ServeDir::new(dir.path()).unwrap().precompressed());
    let mut client = Client::new(serve(OURS, app));
    for _ in 0..2 {
        let got = client.get("/caf%E9.css");
        assert_eq!((&*got.body, got.header("content-type")), (&b"latin"[..], "text/css"));
        let got = client.with("GET", "/caf%E9.css", "accept-encoding: gzip\r\n");
        assert_eq!((&*got.body, got.header("content-encoding")), (&b"zipped"[..], "gzip"));
        assert_eq!(client.get("/one").body, b"latin");
        assert_eq!(client.get("/%F4%8F%BD%A1").body, b"private");
        assert_eq!(client.get("/a").status, 404, "what stands for it on the way");
        let got = client.get("/%FF?q");
        assert_eq!((got.status, got.header("location")), (307, "/%FF/?q"));
        assert_eq!(client.get("/%FF/").body, b"the index");
        assert_eq!(client.get("/caf%C3%A9.css").status, 404);
    }
}

/// To a browser `//name` is another host.
#[test]
fn a_redirect_stays_on_this_host() {
    let dir = files();
    std::fs::create_dir_all(dir.path().join("example.com/sub")).unwrap();
    std::fs::create_dir(dir.path().join(OsStr::new("\\example.com"))).unwrap();
    let nested = ServeDir::new(dir.path()).unwrap().redirect_path_prefix("/x");
    let app = directory(dir.path()).nest_service("/x", nested);
    let mut client = Client::new(serve(OURS, app));
    for (path, to) in [
        ("/example.com", "/example.com/"),
        ("//example.com", "/example.com/"),
        ("///example.com?a=//b", "/example.com/?a=//b"),
        ("//example.com//sub", "/example.com/sub/"),
        ("/.//example.com", "/example.com/"),
        ("/%2e//example.com", "/example.com/"),
        ("http://other//example.com", "/example.com/"),
        ("/\\example.com", "/%5Cexample.com/"),
        ("/x//example.com", "/x/example.com/"),
    ] {
        let got = client.get(path);
        assert_eq!((got.status, got.header("location")), (307, to), "{path}");
    }
}

#[test]
fn fallbacks_as_those_of_tower_http() {
    use axum::http::Method;
    let dir = files();
    std::fs::write(dir.path().join("page.html"), "a page").unwrap();
    std::fs::write(dir.path().join("404.html"), "not here").unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let service = || ServeDir::new(dir.path()).unwrap();
    let echo = |method: Method, uri: axum::http::Uri, body: String| async move {
        format!("{method} {uri} {body}")
    };
    let echo = Router::new().fallback(echo);
    let app = Router::new()
        .nest_service("/falls", service().fallback(echo.clone()))
        .nest_service("/all", service().fallback(echo).call_fallback_on_method_not_allowed(true))
        .nest_service("/html", service().html_as_default_extension(true))
        .nest_service("/bare", service().append_index_html_on_directories(false))
        .fallback_service(
            service().not_found_service(ServeFile::new(dir.path().join("404.html")).unwrap()),
        );
    let mut client = Client::new(serve(OURS, app));
    for path in ["/falls/1", "/all/1"] {
        assert_same(&client.get(path).body, &pattern(1, 0..1), "what is there");
    }
    // Also what is no path, or no file.
    for path in ["/falls/none?q=1", "/falls/../etc", "/falls/empty/", "/falls/1/"] {
        let got = client.get(path);
        let to = path.strip_prefix("/falls").unwrap();
        assert_eq!((got.status, &*got.body), (200, format!("GET {to} ").as_bytes()));
    }
    let post = "content-length: 0\r\n";
    assert_eq!(client.with("POST", "/falls/1", post).status, 405);
    client.ask("POST", "/all/1", "content-length: 4\r\n");
    std::io::Write::write_all(client.0.get_mut(), b"body").unwrap();
    assert_eq!(client.answer("POST").body, b"POST /1 body");
    assert_eq!(client.get("/html/page").body, b"a page");
    assert_eq!(client.get("/bare/empty").status, 404);
    // Whatever it is asked for, it is what it is.
    let tag = client.get("/404.html").header("etag").to_owned();
    for headers in ["", "range: bytes=0-2\r\n", &format!("if-none-match: {tag}\r\n")] {
        let got = client.with("GET", "/none", headers);
        assert_eq!((got.status, &*got.body), (404, &b"not here"[..]), "{headers}");
    }
}

#[test]
fn a_changed_file_is_seen_by_the_next_request() {
    let dir = files();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let path = dir.path().join("changes");
    for (seed, len) in [(2, 100_000), (3, 100_000), (4, 50_000), (5, 200_000)] {
        // A new file in its place, and the same one written anew.
        std::fs::write(dir.path().join("new"), pattern(seed, 0..len)).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert_same(&client.get("/changes").body, &pattern(seed, 0..len), "a replaced file");
        std::fs::write(&path, pattern(seed + 10, 0..len + 1)).unwrap();
        assert_same(
            &client.get("/changes").body,
            &pattern(seed + 10, 0..len + 1),
            "a rewritten file",
        );
    }
    std::fs::remove_file(&path).unwrap();
    assert_eq!(client.get("/changes").status, 404);
}

#[test]
fn a_plain_answer_is_the_same_when_it_is_given_again() {
    let dir = files();
    let path = dir.path().join("page.css");
    std::fs::write(&path, "plain").unwrap();
    std::fs::write(dir.path().join("page.css.gz"), "zipped").unwrap();
    let service = ServeDir::new(dir.path()).unwrap();
    let app = Router::new()
        .nest_service("/zip", service.clone().precompressed())
        .fallback_service(service.clone());
    let mut client = Client::new(serve(OURS, app));
    for path in ["/1048577", "/page.css", "/page%2ecss", "/zip/page.css"] {
        let [first, again] = [(); 2].map(|()| client.get(path));
        let told = |name| (first.header(name).to_owned(), again.header(name).to_owned());
        for name in ["content-length", "content-type", "etag", "last-modified", "accept-ranges"] {
            let (first, again) = told(name);
            assert!(!first.is_empty() && first == again, "{path} {name}: {first} {again}");
        }
        assert_eq!((first.status, again.status), (200, 200));
        assert_same(&again.body, &first.body, path);
    }
    // What is not plain is answered by what it says.
    let tag = client.get("/page.css").header("etag").to_owned();
    let known = format!("if-none-match: {tag}\r\n");
    assert_eq!(client.with("GET", "/page.css", &known).status, 304);
    assert_eq!(client.with("GET", "/page.css", "range: bytes=1-2\r\n").body, b"la");
    assert!(client.with("HEAD", "/page.css", "").body.is_empty());
    let zipped = client.with("GET", "/zip/page.css", "accept-encoding: gzip\r\n");
    assert_eq!((&*zipped.body, zipped.header("content-encoding")), (&b"zipped"[..], "gzip"));
    assert_eq!(client.get("/zip/page.css").body, b"plain");
    // Nor is it given when there is something else.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(client.get("/page.css").status, 307);
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(client.get("/page.css").status, 404);
    std::fs::write(&path, "new").unwrap();
    assert_eq!(client.get("/page.css").body, b"new");
}

#[test]
fn index_files_directories_and_precompressed_siblings() {
    let dir = files();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/index.html"), "the index").unwrap();
    std::fs::write(dir.path().join("page.css"), "plain").unwrap();
    std::fs::write(dir.path().join("page.css.gz"), "zipped").unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let dir_service = ServeDir::new(dir.path()).unwrap().precompressed();
    let app = Router::new().fallback_service(dir_service);
    let mut client = Client::new(serve(OURS, app));
    let got = client.get("/sub/");
    assert_eq!((&*got.body, got.header("content-type")), (&b"the index"[..], "text/html"));
    let got = client.get("/sub");
    assert_eq!((got.status, got.header("location")), (307, "/sub/"));
    assert_eq!(client.get("/empty/").status, 404, "no listing");
    let got = client.with("GET", "/page.css", "accept-encoding: gzip\r\n");
    assert_eq!((&*got.body, got.header("content-encoding")), (&b"zipped"[..], "gzip"));
    assert_eq!((got.header("vary"), got.header("x-became")), ("accept-encoding", "mapped"));
    assert_eq!(client.get("/page.css").body, b"plain");
}

/// Each with the status and the part that it is answered by, of the file `4096`.
const RANGES: [(&str, u16, std::ops::Range<u64>); 16] = [
    ("bytes=0-", 206, 0..4096),
    ("bytes=-5000", 206, 0..4096),
    ("bytes=-1", 206, 4095..4096),
    ("bYTES=0010-0019", 206, 10..20),
    ("bytes=, ,5-9 ,", 206, 5..10),
    ("bytes=4000-99999999999999999999999", 206, 4000..4096),
    ("bytes=4096-", 416, 0..0),
    ("bytes=-0", 416, 0..0),
    ("lines=1-2", 200, 0..4096),
    ("bytes=a-b", 200, 0..4096),
    ("bytes=9-5", 200, 0..4096),
    ("bytes=-", 200, 0..4096),
    ("bytes=", 200, 0..4096),
    ("nonsense", 200, 0..4096),
    ("bytes=0-1,5-6", 200, 0..4096),
    ("bytes=5000-,6000-", 200, 0..4096),
];

#[test]
fn ranges_by_the_grammar() {
    let dir = files();
    let address = serve(OURS, directory(dir.path()));
    let mut client = Client::new(address);
    for (range, status, part) in RANGES {
        let got = client.with("GET", "/4096", &format!("range: {range}\r\n"));
        assert_eq!(got.status, status, "{range}");
        assert_same(&got.body, &pattern(1, part.clone()), range);
        let told = match status {
            206 => format!("bytes {}-{}/4096", part.start, part.end - 1),
            416 => "bytes */4096".to_owned(),
            _ => String::new(),
        };
        assert_eq!(got.header("content-range"), told, "{range}");
        let got = client.with("HEAD", "/4096", &format!("range: {range}\r\n"));
        let told = (got.header("content-length"), got.header("content-range"));
        assert_eq!((got.status, told), (200, ("4096", "")), "HEAD {range}");
    }
    common::runtime().block_on(async {
        let mut client = common::http2(address).await;
        for (range, status, part) in RANGES {
            let mut request = common::request("4096");
            request.headers_mut().insert("range", range.parse().unwrap());
            let got = client.send_request(request).await.unwrap();
            assert_eq!(got.status(), status, "{range}");
            let body = got.into_body().collect().await.unwrap().to_bytes();
            assert_same(&body, &pattern(1, part), range);
        }
    });
}

#[test]
fn a_range_of_an_empty_file() {
    let dir = files();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    for range in ["bytes=0-0", "bytes=0-", "bytes=-5", "bytes=7-9"] {
        let got = client.with("GET", "/0", &format!("range: {range}\r\n"));
        assert_eq!((got.status, got.header("content-range")), (200, ""), "{range}");
        assert_eq!((got.header("content-length"), &*got.body), ("0", &b""[..]), "{range}");
    }
    // The connection goes on.
    assert_same(&client.get("/1").body, &pattern(1, 0..1), "what follows");
}

/// tmpfs and btrfs keep dates that HTTP cannot tell.
#[test]
fn a_file_of_a_year_without_a_date() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let day = std::time::Duration::from_secs(86_400);
    // The last one of the year 9999, and the next; 1970 is the first.
    for (name, date, told) in [
        ("last", epoch + day * 2_932_896, "Fri, 31 Dec 9999 00:00:00 GMT"),
        ("next", epoch + day * 2_932_897, ""),
        ("later", epoch + day * 1_000_000_000, ""),
        ("before", epoch - day, ""),
    ] {
        let file = std::fs::File::create_new(dir.path().join(name)).unwrap();
        file.set_modified(date).unwrap();
        if file.metadata().unwrap().modified().unwrap() != date {
            println!("SKIP: the filesystem of /dev/shm does not keep the date of {name}");
            continue;
        }
        for method in ["GET", "HEAD"] {
            let since = "if-modified-since: Fri, 31 Dec 1999 00:00:00 GMT\r\nrange: bytes=0-5\r\n";
            for headers in ["", since] {
                let got = client.with(method, &format!("/{name}"), headers);
                assert!(got.status < 500, "{method} {name}: {}", got.status);
                assert_eq!(got.header("last-modified"), told, "{method} {name}");
            }
        }
    }
}

#[test]
fn one_file() {
    let dir = files();
    let name = dir.path().join("odd name%2e?#ü");
    std::fs::write(&name, pattern(7, 0..100_000)).unwrap();
    let app = Router::new().route_service("/one", ServeFile::new(&name).unwrap());
    let mut client = Client::new(serve(OURS, app));
    let got = client.get("/one");
    assert_eq!(got.header("x-became"), "mapped");
    assert_same(&got.body, &pattern(7, 0..100_000), "one file");
    assert_eq!(client.get("/1").status, 404);
}

#[test]
fn nothing_leaves_the_directory() {
    let dir = files();
    let outside = files();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let inside = dir.path().join("sub");
    std::fs::create_dir(&inside).unwrap();
    let secret = outside.path().join("secret");
    symlink(&secret, dir.path().join("absolute")).unwrap();
    symlink(outside.path(), dir.path().join("away")).unwrap();
    let name = outside.path().file_name().unwrap().to_str().unwrap();
    symlink(format!("../../{name}/secret"), inside.join("relative")).unwrap();
    symlink("/proc/self/root/etc/passwd", dir.path().join("magic")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    symlink("../1", inside.join("good")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    let _listening = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    let paths = [
        format!("/../{name}/secret"),
        format!("/%2e%2e/{name}/secret"),
        format!("/..%2f{name}/secret"),
        format!("/%2e%2e%2f{name}%2fsecret"),
        format!("/sub/../../{name}/secret"),
        format!("/./../{name}/secret"),
        format!("//..//{name}/secret"),
        format!("/..\\{name}\\secret"),
        format!("/..%5c{name}%5csecret"),
        format!("/..;/{name}/secret"),
        format!("/%252e%252e/{name}/secret"),
        format!("/%c0%ae%c0%ae/{name}/secret"),
        format!("/..%00/{name}/secret"),
        "//etc/passwd".into(),
        "/%2fetc%2fpasswd".into(),
        format!("/{}", secret.display()),
        "/absolute".into(),
        "/away/secret".into(),
        "/away/".into(),
        "/sub/relative".into(),
        "/magic".into(),
        "/loop".into(),
        "/fifo".into(),
        "/socket".into(),
        "/1%00".into(),
        "/1/".into(),
        "/1/x".into(),
        "/%ff%fe".into(),
        format!("/{}", "a".repeat(300)),
        format!("/{}", "a/".repeat(3000)),
    ];
    for path in paths {
        let got = client.get(&path);
        assert!(matches!(got.status, 400 | 404), "{path}: {} {:?}", got.status, got.body);
        assert!(!got.body.windows(6).any(|w| w == b"secret" || w == b"root:x"), "{path}");
    }
    assert_same(&client.get("/sub/good").body, &pattern(1, 0..1), "a link within");

    // The control: links are followed where that is asked for.
    let service = ServeDir::follow_links_out(dir.path()).unwrap();
    let mut client = Client::new(serve(OURS, Router::new().fallback_service(service)));
    for path in ["/absolute", "/away/secret", "/sub/relative"] {
        assert_eq!(client.get(path).body, b"secret", "{path}");
    }
    assert_eq!(client.get(&format!("/../{name}/secret")).status, 404);
}

/// Neither is opened: that may do something to a device, or to who waits at a FIFO.
#[test]
fn what_is_no_file_is_not_found() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let dir = files();
    let fifo = dir.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    let mut names = vec!["fifo".to_owned()];
    // Of a driver, and of none; a disk.
    let (char, block) = (FileType::CharacterDevice, FileType::BlockDevice);
    for (name, kind, major, minor) in [
        ("null", char, 1, 3),
        ("tty", char, 5, 0),
        ("none", char, 4095, 7),
        ("disk", block, 7, 9999),
    ] {
        let path = dir.path().join(name);
        match mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), makedev(major, minor)) {
            Ok(()) => names.push(name.to_owned()),
            Err(e) => println!("SKIP: no device nodes: {e}"),
        }
    }
    let mut client = Client::new(serve(OURS, directory(dir.path())));
    for name in &names {
        for method in ["GET", "HEAD"] {
            assert_eq!(client.with(method, &format!("/{name}"), "").status, 404, "{method} {name}");
        }
    }
    // Nobody has opened it for reading: who opens it for writing is told that, and does not go on.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let opened = rustix::fs::open(&fifo, flags, Mode::empty());
    assert_eq!(opened.map(drop), Err(rustix::io::Errno::NXIO));
}
