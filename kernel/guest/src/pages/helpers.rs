//! What takes part in a layer, beside the kernel.

use std::fs::File;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::{Context, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::layers::Helper;
use crate::ways::{PATIENCE, Way};
use crate::{Link, VETH, changed, joined, letters, sys, ways};

/// A program for a classifier, which puts an X at byte 154 of each packet of 300 or more.
pub(crate) const PROGRAM_TEXT: [u64; 13] = [
    instruction(0xbf, 6, 1, 0, 0),      // r6 = r1, the packet
    instruction(0x61, 2, 1, 0, 0),      // r2 = its length
    instruction(0xa5, 2, 0, 8, 300),    // if r2 < 300, go to the end
    instruction(0x72, 10, 0, -8, 0x58), // on the stack: X
    instruction(0xbf, 1, 6, 0, 0),      // r1 = the packet
    instruction(0xb7, 2, 0, 0, 154),    // r2 = where
    instruction(0xbf, 3, 10, 0, 0),     // r3 = what
    instruction(0x07, 3, 0, 0, -8),
    instruction(0xb7, 4, 0, 0, 1), // r4 = how many bytes
    instruction(0xb7, 5, 0, 0, 0), // r5 = flags
    instruction(0x85, 0, 0, 0, 9), // bpf_skb_store_bytes
    instruction(0xb7, 0, 0, 0, 0), // the end: TC_ACT_OK
    instruction(0x95, 0, 0, 0, 0),
];

/// Builds an instruction from its code, its registers, its offset and its number.
const fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [n0, n1, n2, n3] = number.to_le_bytes();
    u64::from_le_bytes([code, to | from << 4, o0, o1, n0, n1, n2, n3])
}

/// Loads a compressed module.
pub(crate) fn load(module: &Path) -> anyhow::Result<()> {
    const COMPRESSED: i32 = 4;
    let file = File::open(module).with_context(|| module.display().to_string())?;
    rustix::system::finit_module(&file, c"", COMPRESSED).context("esp4_offload")
}

/// A helper's thread, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Running {
    stop: OwnedFd,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Running {
    /// Starts what the helper has to do; nothing, if that is done where sockets are made.
    pub(crate) fn start(helper: Helper) -> anyhow::Result<Option<Self>> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let thread = match helper {
            Helper::Tls => return Ok(None),
            Helper::Tun => {
                let here = sys::tun("over0").context("a tun device")?;
                let there = std::thread::spawn(|| {
                    VETH.enter()?;
                    sys::tun("over1").context("a tun device")
                });
                let there = joined(there)?;
                std::thread::spawn(move || carry(&here, &there, &stopped))
            }
            Helper::Queue | Helper::QueueWhole => {
                let queue = Queue::new(helper == Helper::Queue)?;
                std::thread::spawn(move || queue.serve(&stopped))
            }
        };
        Ok(Some(Running { stop, thread: Some(thread) }))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = rustix::io::write(&self.stop, &1u64.to_ne_bytes())
            .map_err(anyhow::Error::from)
            .and_then(|_| self.thread.take().map_or(Ok(()), joined));
        if let Err(error) = ended {
            println!("a helper has failed: {error:#}");
        }
    }
}

/// Returns which of two can be read, or nothing when it is to stop.
fn readable(fds: [BorrowedFd<'_>; 2], stop: &OwnedFd) -> anyhow::Result<Option<[bool; 2]>> {
    let fds = [stop.as_fd(), fds[0], fds[1]];
    let mut fds = fds.each_ref().map(|fd| PollFd::new(fd, PollFlags::IN));
    poll(&mut fds, None)?;
    let [stop, first, second] = fds.map(|fd| !fd.revents().is_empty());
    Ok((!stop).then_some([first, second]))
}

fn carry(mut here: &File, mut there: &File, stop: &OwnedFd) -> anyhow::Result<()> {
    let mut packet = vec![0; 1 << 16];
    while let Some([from_here, from_there]) = readable([here.as_fd(), there.as_fd()], stop)? {
        if from_here {
            let len = here.read(&mut packet)?;
            deliver(there, &packet[..len])?;
        }
        if from_there {
            let len = there.read(&mut packet)?;
            deliver(here, &packet[..len])?;
        }
    }
    Ok(())
}

fn deliver(mut to: &File, packet: &[u8]) -> std::io::Result<()> {
    match to.write_all(packet) {
        // The device is down: it has not been given its address yet.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(()),
        result => result,
    }
}

/// Netfilter's queue 7, as `linux/netfilter/nfnetlink_queue.h` has it.
struct Queue {
    socket: OwnedFd,
    /// Whether it writes; else it takes packets whole, which the kernel cuts later, and lets them go.
    writes: bool,
}

impl Queue {
    const VERDICT: u8 = 1;
    const CONFIG: u8 = 2;

    fn new(writes: bool) -> anyhow::Result<Self> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        let protocol = Some(netlink::NETFILTER);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
        let queue = Queue { socket, writes };
        queue.tell(Self::CONFIG, &[(1, &[1, 0, 0, 0])])?; // bind
        queue.tell(Self::CONFIG, &[(2, &[0, 0, 0xff, 0xff, 2])])?; // copy all of each packet
        if !writes {
            let whole = 4u32.to_be_bytes(); // NFQA_CFG_F_GSO
            queue.tell(Self::CONFIG, &[(4, &whole), (5, &whole)])?;
        }
        Ok(queue)
    }

    fn tell(&self, message: u8, attributes: &[(u16, &[u8])]) -> anyhow::Result<()> {
        const SUBSYSTEM: u8 = 3;
        const REQUEST: u16 = 1;
        let mut bytes = vec![0; 4]; // the length
        bytes.extend([message, SUBSYSTEM]);
        bytes.extend(REQUEST.to_ne_bytes());
        bytes.extend([0; 8]); // number, port
        bytes.extend([0, 0, 0, 7]); // any family, version 0, the queue
        for (name, value) in attributes {
            bytes.extend(u16::try_from(value.len() + 4)?.to_ne_bytes());
            bytes.extend(name.to_ne_bytes());
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let len = u32::try_from(bytes.len())?;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        rustix::net::send(&self.socket, &bytes, SendFlags::empty())?;
        Ok(())
    }

    fn serve(&self, stop: &OwnedFd) -> anyhow::Result<()> {
        let mut buffer = vec![0; 1 << 17];
        let fds = [self.socket.as_fd(); 2];
        while readable(fds, stop)?.is_some() {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => self.answer(&mut buffer[..len])?,
                // Packets that there was no room for are lost, and TCP sends them again.
                Err(rustix::io::Errno::NOBUFS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn answer(&self, message: &mut [u8]) -> anyhow::Result<()> {
        const ACCEPT: [u8; 4] = [0, 0, 0, 1];
        let (mut id, mut payload) = (None, None);
        let mut rest = message.get_mut(20..).context("a short message")?;
        while rest.len() >= 4 {
            let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let name = u16::from_ne_bytes([rest[2], rest[3]]);
            let (attribute, next) = rest.split_at_mut(len.next_multiple_of(4).min(rest.len()));
            let value = attribute.get_mut(4..len).context("a short attribute")?;
            match name {
                1 => id = value.first_chunk::<4>().copied(),
                10 => payload = Some(value),
                _ => {}
            }
            rest = next;
        }
        let verdict = [ACCEPT, id.context("a packet without an id")?].concat();
        match payload {
            Some(packet) if self.writes && packet.len() > 300 => {
                write(packet);
                self.tell(Self::VERDICT, &[(2, &verdict), (10, packet)])
            }
            _ => self.tell(Self::VERDICT, &[(2, &verdict)]),
        }
    }
}

/// Puts an X at byte 140 of an IPv4 packet with TCP, and makes its checksum right.
fn write(packet: &mut [u8]) {
    let sum = usize::from(packet[0] & 15) * 4 + 16;
    let (old, checksum) = (word(packet, 140), word(packet, sum));
    packet[140] = b'X';
    // RFC 1624.
    let sums = u32::from(!checksum) + u32::from(!old) + u32::from(word(packet, 140));
    let folded = (sums & 0xffff) + (sums >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[sum..sum + 2].copy_from_slice(&(!folded).to_be_bytes()[2..]);
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// Sends a part of a file as ESP in UDP, which the other end takes for encrypted, and decrypts;
/// returns how many bytes of the page cache have changed when it has found it to be none.
pub(crate) fn esp_arrives(link: Link, path: &Path) -> anyhow::Result<usize> {
    const PORT: u16 = 4500;
    link.script(
        "ip -n peer xfrm state add src $HERE dst $THERE proto esp spi 0x100 mode transport \
         encap espinudp 4500 4500 0.0.0.0 aead 'rfc4106(gcm(aes))' 0x${k}10111213 128",
    )?;
    let mut content = letters().to_vec();
    content[..8].copy_from_slice(&[0, 0, 1, 0, 0, 0, 0, 1]); // the SPI, and the packet's number
    let file = ways::file(path, &content)?;
    let there = std::thread::spawn(move || {
        link.enter()?;
        let socket = UdpSocket::bind((link.there, PORT))?;
        sys::decapsulate_esp(&socket)?;
        let refused = File::open("/proc/thread-self/net/xfrm_stat").context("xfrm_stat")?;
        Ok((socket, Refused(refused)))
    });
    let (_there, mut refused) = joined(there)?;
    let before = refused.read()?;
    let socket = UdpSocket::bind((link.here, 0))?;
    socket.connect((link.there, PORT))?;
    Way::Sendfile.give(&socket, &file, 0, 1200)?;
    let until = Instant::now() + PATIENCE;
    while refused.read()? == before {
        ensure!(Instant::now() < until, "the other end has got no ESP");
        std::thread::yield_now();
    }
    link.script("ip -n peer xfrm state flush")?;
    changed(&file, &content)
}

/// The number of packets that the other end's ESP has refused.
struct Refused(File);

impl Refused {
    fn read(&mut self) -> anyhow::Result<u64> {
        let mut text = String::new();
        std::io::Seek::rewind(&mut self.0)?;
        self.0.read_to_string(&mut text)?;
        let line = text.lines().find_map(|line| line.strip_prefix("XfrmInStateProtoError"));
        line.context("XfrmInStateProtoError")?.trim().parse().context("a number")
    }
}
