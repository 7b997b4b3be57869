//! What errors say to who reads them, and to who asks them.
#![allow(clippy::unwrap_used)]

use std::error::Error as _;
use std::io;
use std::path::Path;

use sendfile2::guard::GuardedFile;
use sendfile2::{Error, Source};

const MISSING: &str = "/nonexistent/segment";

#[test]
fn who_cannot_open_a_file_is_told_which_and_why() {
    let opened = [
        Source::open(MISSING).map(drop).unwrap_err(),
        GuardedFile::open(MISSING).map(drop).unwrap_err(),
    ];
    for error in opened {
        let text = error.to_string();
        assert!(text.contains(MISSING) && text.contains("No such file"), "{text}");
        assert_eq!(error.io_error().unwrap().raw_os_error(), Some(libc::ENOENT));
        let error = io::Error::from(error);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(MISSING), "{error}");
        // The error number is beneath, for who needs it.
        let inner = error.get_ref().unwrap().downcast_ref::<Error>().unwrap();
        assert_eq!(inner.io_error().unwrap().raw_os_error(), Some(libc::ENOENT));
    }
}

#[test]
fn what_cannot_be_used_is_named_where_there_was_a_path() {
    for error in [Source::open("/").map(drop), Source::open("/dev/null").map(drop)] {
        let error = error.unwrap_err();
        let Error::NotASource(why) = &error else { panic!("{error}") };
        assert!(error.to_string().contains(&why.path().unwrap().display().to_string()), "{error}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::InvalidInput);
    }
    let error = GuardedFile::open("/dev/null").unwrap_err();
    assert!(error.to_string().contains("/dev/null"), "{error}");
    let error = Source::new(std::fs::File::open("/").unwrap()).unwrap_err();
    let Error::NotASource(why) = &error else { panic!("{error}") };
    assert_eq!(why.path(), None::<&Path>);
}

/// Each variant that has a cause gives it, keeps its kind as an [`io::Error`], and tells it.
#[test]
fn every_error_with_a_cause_gives_it() {
    let cause = || io::Error::from_raw_os_error(libc::ENOSPC);
    let errors = [
        Error::Open { path: MISSING.into(), cause: cause() },
        Error::File { op: "pwrite", offset: 5, cause: cause() },
        Error::Socket { op: "send", cause: cause() },
        Error::Wait { op: "epoll_wait", cause: cause() },
    ];
    for error in errors {
        let source = error.source().unwrap().downcast_ref::<io::Error>().unwrap();
        assert_eq!(source.raw_os_error(), Some(libc::ENOSPC), "{error}");
        assert!(error.to_string().ends_with(&source.to_string()), "{error}");
        assert_eq!(io::Error::from(error).kind(), cause().kind());
    }
}
