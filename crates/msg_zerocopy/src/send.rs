//! Sending, and the account of the notifications.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, sockopt};
use sendfile2_c::{SENDFILE_DEFAULT, SENDFILE_ZC};
use sendfile2_sys::errqueue::{self, Entry};
use sendfile2_sys::ledger::{Done, Ledger};

use crate::{Args, Test, alphabet, nonblocking, unless_blocked, wait};

/// `MSG_ZEROCOPY` of `linux/socket.h`, for which rustix has no name.
const ZEROCOPY: SendFlags = SendFlags::from_bits_retain(0x400_0000);

/// The most that one call takes, in bytes.
const MOST: usize = 0x7fff_f000;

/// Bytes of the socket's send buffer.
const BUFFER: usize = 1 << 21;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut sender = Sender::new(args)?;
    let stop = Instant::now() + args.runtime();
    loop {
        sender.send()?;
        if sender.since_reading >= args.limit {
            sender.read()?;
        }
        // A notification ends the wait, too.
        while Instant::now() < stop
            && !wait(sender.socket.as_fd(), PollFlags::OUT, stop)?.contains(PollFlags::OUT)
        {
            sender.read()?;
        }
        if Instant::now() >= stop {
            break;
        }
    }
    sender.finish()
}

struct Sender<'a> {
    args: &'a Args,
    socket: OwnedFd,
    file: Option<File>,
    /// The offset in the file at which the next send begins.
    offset: u64,
    /// The payload of sends from memory, which must stay as it is as long as the kernel may read
    /// it: until the end.
    payload: &'static [u8],
    ledger: Ledger<()>,
    sends: u64,
    bytes: u64,
    expected: u64,
    completions: u64,
    /// The id after those of the last notification.
    next: u32,
    /// Whether the last notification was of a send without a copy.
    uncopied: Option<bool>,
    since_reading: u32,
}

impl<'a> Sender<'a> {
    fn new(args: &'a Args) -> anyhow::Result<Self> {
        let socket = args.socket()?;
        let Some(destination) = args.destination else {
            bail!("-D: where to? (-r receives)");
        };
        let to = args.address(socket.as_fd(), Some(destination), args.port)?;
        sockopt::set_socket_send_buffer_size(&socket, BUFFER).context("SO_SNDBUF")?;
        if args.zerocopy {
            sendfile2_c::enable_zerocopy(&socket).context("SO_ZEROCOPY")?;
        }
        if args.source.is_some() {
            let from = args.address(socket.as_fd(), args.source, 0)?;
            rustix::net::bind(&socket, &from).with_context(|| format!("-S: {}", from.ip()))?;
        }
        rustix::net::connect(&socket, &to)
            .with_context(|| format!("cannot connect to {to}; does msg_zerocopy -r run there?"))?;
        nonblocking(&socket)?;
        if args.verbose > 0 && args.file.is_some() {
            match sendfile2_c::system_call() {
                Some(number) => eprintln!("sendfile2: the system call, number {number}"),
                None => eprintln!("sendfile2: the library, as the kernel has no such call"),
            }
        }
        Ok(Sender {
            args,
            socket,
            file: args.file()?,
            offset: 0,
            payload: alphabet().leak(),
            ledger: Ledger::new(),
            sends: 0,
            bytes: 0,
            expected: 0,
            completions: 0,
            next: 0,
            uncopied: None,
            since_reading: 0,
        })
    }

    /// Makes one send, or sends one datagram.
    fn send(&mut self) -> anyhow::Result<()> {
        if self.file.is_some() {
            return self.send_file();
        }
        let parts = self.args.cork.max(1);
        // If it cannot be divided evenly, the first part is longer.
        let length = self.args.payload / parts;
        let mut first = self.args.payload - length * (parts - 1);
        let mut at = 0;
        for part in 0..parts {
            let length = std::mem::replace(&mut first, length);
            // The first one of mixed parts is copied.
            let zerocopy = self.args.zerocopy && (!self.args.mixed || part % 2 == 1);
            let more = part + 1 < parts;
            // The receiver compares whole datagrams with the alphabet.
            let bytes = &self.payload[at..at + length];
            at += length;
            self.send_bytes(bytes, zerocopy, more)?;
        }
        Ok(())
    }

    /// Makes one send, or sends one part of a datagram. A datagram that was begun is completed:
    /// what waits in the socket for its end is not released.
    fn send_bytes(&mut self, bytes: &[u8], zerocopy: bool, more: bool) -> anyhow::Result<()> {
        let mut flags = SendFlags::DONTWAIT;
        flags.set(ZEROCOPY, zerocopy);
        flags.set(SendFlags::MORE, more);
        loop {
            let sent = match rustix::net::send(&self.socket, bytes, flags) {
                Err(Errno::NOBUFS) if zerocopy => {
                    self.make_room()?;
                    None
                }
                result => unless_blocked(result).context("send")?,
            };
            if let Some(sent) = sent {
                if self.args.verbose > 0 && sent != bytes.len() {
                    eprintln!("send: {sent} of {} bytes", bytes.len());
                }
                self.count(sent, zerocopy);
                return Ok(());
            }
            if self.args.cork == 0 {
                return Ok(());
            }
            wait(self.socket.as_fd(), PollFlags::OUT, Instant::now() + self.args.timeout())?;
            self.read()?;
        }
    }

    fn send_file(&mut self) -> anyhow::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let count = match self.args.test {
            // Each datagram is the beginning of the file.
            Test::Udp => {
                self.offset = 0;
                self.args.payload
            }
            Test::Tcp => MOST,
        };
        let flags = if self.args.zerocopy { SENDFILE_ZC } else { SENDFILE_DEFAULT };
        match sendfile2_c::send(&self.socket, file, &mut self.offset, count, flags) {
            // The end: from the start again.
            Ok(0) => {
                ensure!(self.offset > 0, "-f: the file is empty by now");
                self.offset = 0;
            }
            Ok(sent) => self.count(sent, self.args.zerocopy),
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::AGAIN | Errno::INTR) => {}
                Some(Errno::NOBUFS) if self.args.zerocopy => return self.make_room(),
                _ => return Err(e).context("sendfile2"),
            },
        }
        Ok(())
    }

    fn count(&mut self, sent: usize, zerocopy: bool) {
        self.sends += 1;
        self.bytes += sent as u64;
        if zerocopy && sent > 0 {
            self.ledger.issue(());
            self.expected += 1;
            self.since_reading += 1;
        }
    }

    /// Waits, after ENOBUFS, for a notification, whose reading frees memory. Fails where none is
    /// outstanding: none would ever come.
    fn make_room(&mut self) -> anyhow::Result<()> {
        if self.completions == self.expected {
            bail!(
                "ENOBUFS with nothing in flight: raise RLIMIT_MEMLOCK (ulimit -l) or the sysctl \
                 net.core.optmem_max"
            );
        }
        wait(self.socket.as_fd(), PollFlags::empty(), Instant::now() + self.args.timeout())?;
        self.read()
    }

    /// Reads all notifications that there are.
    fn read(&mut self) -> anyhow::Result<()> {
        self.since_reading = 0;
        if !self.args.zerocopy {
            return Ok(());
        }
        let mut entries = Vec::new();
        loop {
            errqueue::read(self.socket.as_fd(), &mut entries).context("the error queue")?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries.drain(..) {
                match entry? {
                    Entry::Completion { lo, hi, copied } => self.complete(lo, hi, copied)?,
                    Entry::Foreign(foreign) => {
                        bail!("the error queue holds something else: {:?}", foreign.error)
                    }
                }
            }
        }
    }

    fn complete(&mut self, lo: u32, hi: u32, copied: bool) -> anyhow::Result<()> {
        let range = hi.wrapping_sub(lo) as usize + 1;
        let mut done: Vec<Done<()>> = Vec::new();
        self.ledger.complete(lo, hi, copied, &mut done)?;
        ensure!(
            done.len() == range,
            "ids {lo} to {hi}: {} were notified twice",
            range - done.len()
        );
        if self.args.verbose > 0 && lo != self.next {
            eprintln!("gap: {lo}..{hi} does not follow {}", self.next);
        }
        self.next = hi.wrapping_add(1);
        if self.uncopied.is_some_and(|before| before == copied) {
            eprintln!("some were copied, and some were not");
        }
        self.uncopied = Some(!copied);
        if self.args.verbose > 1 {
            eprintln!("completed: {range} (h={hi} l={lo})");
        }
        self.completions += range as u64;
        Ok(())
    }

    /// Waits for the last notifications, and reports what was done.
    fn finish(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + self.args.timeout();
        self.read()?;
        while self.completions < self.expected && Instant::now() < until {
            let socket: BorrowedFd<'_> = self.socket.as_fd();
            let events = wait(socket, PollFlags::empty(), until)?;
            self.read()?;
            if events.contains(PollFlags::HUP) && self.completions < self.expected {
                // A dead connection is ready for ever.
                std::thread::yield_now();
            }
        }
        // The format of the kernel's program.
        eprintln!(
            "tx={} ({} MB) txc={} zc={}",
            self.sends,
            self.bytes >> 20,
            self.completions,
            if self.uncopied == Some(true) { 'y' } else { 'n' }
        );
        ensure!(
            self.completions == self.expected,
            "missing notifications: {} < {} (-w waits longer)",
            self.completions,
            self.expected
        );
        Ok(())
    }
}
