//! Reading from a connection that a sender owns: by the sender itself, and by another thread, from
//! a duplicate of the socket.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;

use common::{assert_same, deadline, engines, file, pattern, source, tcp};
use sendfile2::{Options, SendFlags, Sender};

const LEN: u64 = (4 << 20) + 3;

#[test]
fn a_sender_reads_requests_and_answers_them_by_turns() {
    let source = source(&file(1, LEN));
    for engine in engines() {
        let (socket, mut peer) = tcp();
        let sender = Sender::with(socket, Options::new().engine(engine)).unwrap();
        let client = std::thread::spawn(move || {
            for len in [1, 70_000, LEN] {
                // The second half of a request, and the first one of the next.
                peer.write_all(format!("{len}\nnext ").as_bytes()).unwrap();
                let mut got = vec![0; usize::try_from(len).unwrap()];
                peer.read_exact(&mut got).unwrap();
                assert_same(&got, &pattern(1, 0..len));
            }
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        });
        let mut connection = BufReader::new(sender);
        let mut line = String::new();
        while connection.read_line(&mut line).unwrap() > 0 {
            let Ok(len) = line.trim_start_matches("next ").trim_end().parse() else { break };
            connection.get_mut().send_file(&source, 0..len, SendFlags::NONE, deadline()).unwrap();
            line.clear();
        }
        assert_eq!(line, "next ");
        connection.into_inner().close(deadline()).unwrap();
        client.join().unwrap();
    }
}

#[test]
fn a_thread_reads_from_a_duplicate_while_another_sends() {
    let source = source(&file(2, LEN));
    for engine in engines() {
        let (socket, mut peer) = tcp();
        let mut reader = socket.try_clone().unwrap();
        let mut sender = Sender::with(socket, Options::new().engine(engine)).unwrap();
        let uploaded = pattern(3, 0..LEN);
        let (told, asked) = mpsc::channel();
        let reads = std::thread::spawn(move || {
            let mut got = vec![0; usize::try_from(LEN).unwrap()];
            reader.read_exact(&mut got).unwrap();
            told.send(got).unwrap();
            // Waits, and sees the peer's end, after the stream has ended towards the peer.
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        });
        let client = std::thread::spawn(move || {
            peer.write_all(&uploaded).unwrap();
            let mut got = Vec::new();
            peer.read_to_end(&mut got).unwrap();
            assert_same(&got, &pattern(2, 0..LEN));
        });
        sender.send_file(&source, 0..LEN, SendFlags::NONE, deadline()).unwrap();
        // The end of the stream, which the duplicate does not withhold.
        sender.close(deadline()).unwrap();
        assert_same(&asked.recv().unwrap(), &pattern(3, 0..LEN));
        client.join().unwrap();
        reads.join().unwrap();
    }
}

#[test]
fn an_abort_ends_the_wait_of_who_reads() {
    for engine in engines() {
        let (socket, peer) = tcp();
        let mut reader = socket.try_clone().unwrap();
        let sender = Sender::with(socket, Options::new().engine(engine)).unwrap();
        let (begins, begun) = mpsc::channel();
        let reads = std::thread::spawn(move || {
            begins.send(()).unwrap();
            reader.read(&mut [0])
        });
        begun.recv().unwrap();
        sender.abort().unwrap();
        assert!(!reads.join().unwrap().is_ok_and(|read| read > 0), "nothing was sent to it");
        drop(peer);
    }
}
