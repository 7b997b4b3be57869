//! A server that has no descriptors left but those of files that it only keeps open.

mod common;

use std::os::unix::fs::symlink;

use common::{Server, connect, files, get, number, status, until};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit};

const FILES: usize = 300;

#[test]
fn files_that_are_only_kept_make_room() {
    let dir = files();
    for file in 0..FILES {
        symlink("small", dir.path().join(format!("f{file}"))).expect("a link");
    }
    let log = dir.path().join("log");
    let log = log.to_str().expect("UTF-8");
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--access-log", log];
    let server = Server::new(dir.path(), &listen);
    let [public, admin] = &server.addresses[..] else { panic!("{:?}", server.addresses) };
    let pid = Pid::from_child(&server.child);
    let descriptors = format!("/proc/{}/fd", server.child.id());
    let open = || -> Vec<u64> {
        let names = std::fs::read_dir(&descriptors).expect("it runs").flatten();
        names.filter_map(|name| name.file_name().to_str()?.parse().ok()).collect()
    };
    let set =
        |limit| rustix::process::prlimit(Some(pid), Resource::Nofile, limit).expect("a limit");
    // Whatever is opened next is one too many.
    let fill = || {
        let all = (0..FILES).map(|file| format!("GET /f{file} HTTP/1.1\r\nhost: x\r\n\r\n"));
        let close = "GET /small HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_owned();
        let answers = common::ask(public, all.chain([close]).collect::<String>().as_bytes());
        assert_eq!(answers.matches("HTTP/1.1 200 ").count(), FILES + 1);
        assert!(open().len() > FILES, "they are not kept");
        // Connections have the numbers between.
        let (mut clients, mut there) = (Vec::new(), open());
        while there.len() as u64 <= there.iter().copied().max().unwrap_or(0) {
            clients.push(connect(public));
            let before = std::mem::take(&mut there).len();
            until("it is accepted", || {
                there = open();
                there.len() > before
            });
        }
        let limit = there.len() as u64;
        let maximum = getrlimit(Resource::Nofile).maximum;
        (clients, set(Rlimit { current: Some(limit), maximum }))
    };

    let (clients, before) = fill();
    assert_eq!(status(&get(public, "/small")), Some(200), "a connection");
    set(before);
    drop(clients);
    let (clients, before) = fill();
    assert_eq!(status(&get(admin, "/health")), Some(200), "one of the admin's");
    set(before);
    drop(clients);
    // A reload comes last: it keeps a part of the descriptors that there are then.
    for (signal, what) in [(Signal::USR1, "the log anew"), (Signal::HUP, "a reload")] {
        std::fs::rename(log, format!("{log}.{what}")).expect("it is there");
        let (clients, before) = fill();
        rustix::process::kill_process(pid, signal).expect("it is there");
        until(what, || std::fs::exists(log).expect("a directory"));
        set(before);
        drop(clients);
    }
    assert_eq!(number(&get(admin, "/metrics"), "sendfile2_reloads_total{result=\"failed\"}"), 0.0);
}
