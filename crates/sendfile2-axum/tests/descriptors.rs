//! Few descriptors. It is alone in its process: the limit is that of all.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use common::{By, Client, assert_same, directory, files, pattern, serve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sendfile2::Engine;

fn limit(descriptors: usize) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(descriptors as u64), maximum }).unwrap();
}

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn more_files_than_descriptors_are_served_and_leave_some_for_connections() {
    const FILES: usize = 400;
    let dir = files();
    for file in 0..FILES {
        std::fs::write(dir.path().join(format!("f{file}")), pattern(2, 0..64)).unwrap();
    }
    let get_all = |client: &mut Client| {
        for file in 0..FILES {
            let got = client.get(&format!("/f{file}"));
            assert_eq!(got.status, 200, "file {file}");
            assert_same(&got.body, &pattern(2, 0..64), "a small file");
        }
    };
    limit(200);
    let address = serve(By::Ours(Engine::Copy), directory(dir.path()));
    let before = open();
    let mut client = Client::new(address);
    get_all(&mut client);
    let kept = open() - before;
    assert!((25..=55).contains(&kept), "{kept} of 200 are kept open");
    // Connections have the rest.
    let mut clients: Vec<_> = (0..50).map(|_| Client::new(address)).collect();
    for client in &mut clients {
        assert_eq!(client.get("/f0").status, 200);
    }
    drop(clients);

    // One that keeps more than there are meanwhile: what is only kept makes room, for files and for
    // connections.
    limit(4096);
    let address = serve(By::Ours(Engine::Copy), directory(dir.path()));
    let mut client = Client::new(address);
    get_all(&mut client);
    // The clients' own are set aside.
    let null = || std::fs::File::open("/dev/null");
    let mut aside: Vec<_> = (0..20).map(|_| null().unwrap()).collect();
    limit(open() + 3);
    get_all(&mut client);
    let mut clients = Vec::new();
    while aside.pop().is_some() {
        let mut client = Client::new(address);
        assert_eq!(client.get("/f1").status, 200);
        clients.push(client);
    }

    // Where there is nothing to close, it says that it will pass.
    let mut taken = Vec::new();
    while let Ok(file) = null() {
        taken.push(file);
    }
    let got = client.get("/f300");
    taken.truncate(taken.len() / 2);
    assert!(matches!(got.status, 200 | 503), "{}", got.status);
    assert_eq!(client.get("/f301").status, 200);
}
