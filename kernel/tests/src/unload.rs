//! The module's unloading while completions are due.

use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use sendfile2_sys::module::flags;

use crate::lab::{
    args, device, file, monotonic, read_ids, reset, send, stall, tcp_small, uses, wait_ids,
    wait_until,
};
use crate::sys::not_sent;
use crate::{Options, Run, Test, ring};

pub(crate) const TESTS: &[Test] = &[
    ("unloaded_while_the_error_queue_waits", Run::With(plain)),
    ("not_unloaded_while_anything_of_its_own_waits", Run::With(busy)),
];

/// Loads the module, and lets every user open its device.
pub(crate) fn load(module: &Path) -> std::io::Result<()> {
    rustix::system::finit_module(std::fs::File::open(module)?, c"", 0)?;
    Ok(())
}

fn reload(options: &Options) {
    load(options.module.as_deref().expect("only with a module")).expect("load");
}

fn unload() -> Result<(), Errno> {
    // Does not wait for users.
    let flags = libc::O_NONBLOCK;
    rustix::system::delete_module(c"sendfile2", flags)
}

/// The error with which the kernel refuses where rmmod(8) prints "in use".
const IN_USE: Errno = Errno::AGAIN;

/// The module can go while a notification is due: that is the kernel's own, and needs nothing of
/// the module.
fn plain(options: &Options) {
    let (tx, rx) = tcp_small();
    stall(&tx);
    let from = file(60, 64 << 10);
    {
        let device = device();
        let mut args = args(64 << 10, flags::DONTWAIT);
        assert_eq!(send(&device, &tx, &from, &mut args), Ok(64 << 10));
        assert_eq!(unload(), Err(IN_USE), "the device is open");
    }
    assert_eq!(unload(), Ok(()));
    reset(rx);
    let mut ids = Vec::new();
    wait_ids(&tx, &mut ids, 1);
    assert_eq!(ids, [0]);
    reload(options);
}

/// The module stays while something of it is due: a call whose deadline has passed, a ring's
/// command, and a ring that was closed before its command was done with; each waits for a peer that
/// does not read, and then resets.
fn busy(options: &Options) {
    let from = file(61, 4096);
    let (mut refused, mut beside) = (0, 0);
    for round in 0..options.rounds {
        let (tx, rx) = tcp_small();
        stall(&tx);
        let mut ring = None;
        {
            let device = device();
            match round % 3 {
                0 => {
                    let mut args = args(4096, flags::WAIT | flags::DONTWAIT);
                    args.deadline = monotonic(Duration::from_millis(1));
                    assert_eq!(send(&device, &tx, &from, &mut args), Ok(4096));
                    assert_eq!(args.state, 0, "nobody has read it");
                }
                way => {
                    let mut new = ring::ring();
                    let before = written(&tx, &rx);
                    ring::submit(&mut new, &device, &tx, &from, 4096);
                    wait_until("the socket takes it", || written(&tx, &rx) >= before + 4096);
                    ring = (way == 1).then_some(new);
                }
            }
        }
        wait_until("a ring that is closed ends", || ring.is_some() || uses() == 1);
        for _ in 0..3 {
            assert_eq!(unload(), Err(IN_USE));
            refused += 1;
        }
        // The reset arrives while a thread has the socket locked as often as not: then the pages
        // are released by that thread, which may be preempted.
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| hammer(&tx, &stop));
            scope.spawn(|| reset(rx));
            if let Some(ring) = &mut ring {
                assert_eq!(ring::complete(ring).0, 4096);
            }
            drop(ring);
            // Until then it is refused; at the first moment it is not, it happens.
            wait_until("it is unloaded", || match unload() {
                Ok(()) => true,
                Err(IN_USE) => {
                    beside += 1;
                    false
                }
                Err(e) => panic!("{e}"),
            });
            stop.store(true, Ordering::SeqCst);
        });
        let mut ids = Vec::new();
        if round % 3 == 0 {
            wait_ids(&tx, &mut ids, 1);
        }
        read_ids(&tx, &mut ids);
        assert_eq!(ids.len(), usize::from(round % 3 == 0));
        reload(options);
        if (round + 1) % 100 == 0 {
            println!("{} of {} rounds", round + 1, options.rounds);
        }
    }
    println!("{} rounds: refused {refused} times, and {beside} times at the end", options.rounds);
}

/// Returns the bytes that the socket has taken, as its peer reads none: those that the peer has,
/// and those that are not sent. (A peer whose buffer is full may free some of it by itself.)
fn written(tx: &TcpStream, rx: &TcpStream) -> u64 {
    rustix::io::ioctl_fionread(rx).expect("FIONREAD") + not_sent(tx).expect("SIOCOUTQNSD")
}

fn hammer(socket: &TcpStream, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        // Takes the socket's lock.
        let _ = rustix::net::sockopt::set_tcp_quickack(socket, true);
        // The module's exit waits until every task has let another one run by its own will.
        std::thread::yield_now();
    }
}
