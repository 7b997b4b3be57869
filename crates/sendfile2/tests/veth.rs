//! Between two network namespaces joined by a veth pair, without root.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::io::{BufReader, Read};
use std::net::TcpStream;
use std::process::Stdio;

use common::{Veth, assert_same, deadline, file, overwrite, pattern, source};
use sendfile2::{Engine, Options, Reason, SendFlags, Sender};

const LEN: u64 = 4 << 20;
const TEST: &str = "over_veth_every_engine_delivers_and_releases";

#[test]
fn over_veth_every_engine_delivers_and_releases() {
    match common::role().as_deref() {
        None => {
            let veth = "ip link add v0 type veth peer name v1";
            let try_it = [&common::UNSHARE[..], &["sh", "-c", veth]].concat();
            if common::can("no namespaces with veth", &try_it) {
                common::run_as(&common::UNSHARE, TEST, "inside");
            }
        }
        Some("inside") => {
            let veth = Veth::new();
            for listen in ["10.7.0.2:0", "[fd07::2]:0"] {
                for engine in common::engines() {
                    over(&veth, listen, engine);
                }
            }
        }
        // Over there: receives, and fails if a byte is wrong.
        Some(listen) => {
            let mut stream = common::serve_one(listen);
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            assert_same(&got, &pattern(1, 0..LEN));
        }
    }
}

fn over(veth: &Veth, listen: &str, engine: Engine) {
    let wrapper = veth.over_there();
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut peer = common::child(&wrapper, TEST, listen).stdout(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(peer.stdout.take().unwrap());
    let address = common::listening(&mut output);
    let socket = TcpStream::connect(address).unwrap();
    let mut sender = Sender::with(socket, Options::new().engine(engine)).unwrap();
    let file = file(1, LEN);
    let sent = sender.send_file(&source(&file), 0..LEN, SendFlags::NONE, deadline()).unwrap();
    if engine == Engine::Auto {
        assert_ne!(sent.ticket.choice().reason, Reason::PeerOnThisHost);
    }
    sent.ticket.wait_released(deadline()).unwrap();
    overwrite(&file, &pattern(!1, 0..LEN));
    sender.close(deadline()).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert!(peer.wait().unwrap().success(), "{engine} to {address}: {rest}");
}
