//! Pages of the page cache in packets: whether they are marked as such, and whether anything below
//! TCP writes to them. Runs in a guest, as root, with the module of kernel/pages.
//!
//! Usage: guest-pages senders DIRECTORY, or guest-pages layers DIRECTORY MODULE, where MODULE is
//! `esp4_offload`, which is loaded when ESP was tried without it.

mod helpers;
mod layers;
mod sys;
mod ways;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::OnceLock;
use std::thread::JoinHandle;

use anyhow::{Context, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sendfile2::{Engine, Options, SendFlags, Sender, Source};

use layers::{Helper, LAYERS, Layer, PRELUDE, PROGRAM};
use ways::{PATIENCE, Way};

/// Bytes of a file.
const SIZE: usize = 96 << 10;

/// The namespace of the other end.
const PEER: &str = "/run/netns/peer";

/// The module's parameters.
const PARAMETERS: &str = "/sys/module/sendfile2_pages/parameters";

/// The module's treatment of packets that leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Look,
    Unmark,
    Write,
}

fn set(mode: Mode) -> anyhow::Result<()> {
    let text = (mode as u8).to_string();
    std::fs::write(format!("{PARAMETERS}/mode"), text).context("is sendfile2_pages loaded?")
}

/// Packets with pages, at one place: with none of the page cache, marked, and not marked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    private: u64,
    marked: u64,
    unmarked: u64,
}

/// The counts by place.
#[derive(Debug)]
struct Counts(BTreeMap<String, Count>);

impl Counts {
    fn reset() -> anyhow::Result<()> {
        std::fs::write(format!("{PARAMETERS}/counts"), "0").context("is sendfile2_pages loaded?")
    }

    fn read() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(format!("{PARAMETERS}/counts"))?;
        let counts = text.lines().map(|line| {
            let mut words = line.split(' ');
            let place = words.next().context("a place")?.to_owned();
            let mut next = || words.next().context("a count")?.parse().context("a number");
            let count = Count { private: next()?, marked: next()?, unmarked: next()? };
            anyhow::Ok((place, count))
        });
        Ok(Counts(counts.collect::<anyhow::Result<_>>()?))
    }

    fn at(&self, place: &str) -> Count {
        self.0.get(place).copied().unwrap_or_default()
    }

    fn unmarked(&self) -> u64 {
        self.0.values().map(|count| count.unmarked).sum()
    }
}

impl std::fmt::Display for Counts {
    /// At each place: marked/unmarked+private.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, place) in ["routed", "device", "tap", "arrived"].into_iter().enumerate() {
            let Count { private, marked, unmarked } = self.at(place);
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{place} {marked}/{unmarked}+{private}")?;
        }
        Ok(())
    }
}

/// Two ends that are joined.
#[derive(Debug, Clone, Copy)]
struct Link {
    name: &'static str,
    devices: [&'static str; 2],
    here: IpAddr,
    there: IpAddr,
    /// Whether the other end is in the namespace.
    apart: bool,
}

const fn v4(a: u8, b: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, 0, d))
}

const LOOPBACK: Link = Link {
    name: "loopback",
    devices: ["lo", "lo"],
    here: v4(127, 0, 1),
    there: v4(127, 0, 1),
    apart: false,
};
const VETH: Link = Link {
    name: "veth",
    devices: ["veth0", "veth1"],
    here: v4(10, 9, 1),
    there: v4(10, 9, 2),
    apart: true,
};
const VMXNET3: Link = Link {
    name: "vmxnet3",
    devices: ["eth0", "eth1"],
    here: v4(10, 8, 1),
    there: v4(10, 8, 2),
    apart: true,
};
const VMXNET3_V6: Link = Link {
    name: "vmxnet3, IPv6",
    here: IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 1)),
    there: IpAddr::V6(Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, 2)),
    ..VMXNET3
};

impl Link {
    fn is_there(&self) -> bool {
        Path::new("/sys/class/net").join(self.devices[0]).exists()
    }

    fn enter(self) -> anyhow::Result<()> {
        if self.apart {
            let namespace = File::open(PEER).context(PEER)?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        Ok(())
    }

    fn script(self, script: &str) -> anyhow::Result<()> {
        let script = format!("{PRELUDE}\n{script}");
        let [dev, pdev] = self.devices;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-ec", &script]).env("DEV", dev).env("PDEV", pdev);
        shell.env("HERE", self.here.to_string()).env("THERE", self.there.to_string());
        ensure!(shell.status()?.success(), "a script failed: {script}");
        Ok(())
    }
}

/// Returns the content of each file: lower-case letters.
fn letters() -> &'static [u8] {
    static LETTERS: OnceLock<Vec<u8>> = OnceLock::new();
    LETTERS.get_or_init(|| (b'a'..=b'z').cycle().step_by(3).take(SIZE).collect())
}

/// Returns the connected sockets: this end's, and what comes of what the other end reads.
fn connect(link: Link, to: IpAddr, tls: bool) -> anyhow::Result<(TcpStream, Reader)> {
    let (tell, listening) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || -> anyhow::Result<Vec<u8>> {
        link.enter()?;
        let listener = TcpListener::bind((all(to), 0))?;
        tell.send(listener.local_addr()?.port())?;
        let (mut socket, _) = listener.accept()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        if tls {
            sys::enable_tls(&socket).context("kernel TLS")?;
        }
        tell.send(0)?;
        let mut bytes = Vec::new();
        socket.read_to_end(&mut bytes).context("nothing came any more")?;
        Ok(bytes)
    });
    let port = listening.recv().context("there is no receiver")?;
    let socket = TcpStream::connect_timeout(&(to, port).into(), PATIENCE).context("connect")?;
    if tls {
        sys::enable_tls(&socket).context("kernel TLS")?;
    }
    // Which cannot begin when the stream has ended.
    listening.recv().context("the receiver has failed")?;
    Ok((socket, reader))
}

type Reader = JoinHandle<anyhow::Result<Vec<u8>>>;

fn joined<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
}

/// The outcome of sending a file once.
struct Sent {
    counts: Counts,
    received: Vec<u8>,
    /// Bytes of the page cache that are not what was written.
    changed: usize,
}

/// Sends a new file, and looks at what has become of it.
fn send(way: Way, link: Link, to: IpAddr, tls: bool, path: &Path) -> anyhow::Result<Sent> {
    let content = letters();
    let file = ways::file(path, content)?;
    Counts::reset()?;
    let (socket, reader) = connect(link, to, tls)?;
    way.send(socket, &file, SIZE as u64).with_context(|| way.name())?;
    let received = joined(reader)?;
    Ok(Sent { counts: Counts::read()?, received, changed: changed(&file, content)? })
}

/// Returns how many bytes of the page cache differ from what was written.
fn changed(file: &File, content: &[u8]) -> anyhow::Result<usize> {
    let mut now = vec![0; content.len()];
    file.read_exact_at(&mut now, 0)?;
    Ok(differ(&now, content))
}

fn differ(a: &[u8], b: &[u8]) -> usize {
    if a == b {
        return 0;
    }
    a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len())
}

/// Faults that were found.
#[derive(Debug, Default)]
struct Faults(Vec<String>);

impl Faults {
    #[track_caller]
    fn check(&mut self, good: bool, what: impl Into<String>) {
        if !good {
            let what = what.into();
            println!("FAILED: {what}");
            self.0.push(what);
        }
    }
}

/// Each way over each link; then with the mark taken away, which must be seen.
fn senders(directory: &Path) -> anyhow::Result<Faults> {
    let mut faults = Faults::default();
    let path = directory.join("senders");
    println!(
        "packets with pages of the page cache: marked/not marked+packets with other pages only"
    );
    // In user-mode Linux there is no device.
    let links = [LOOPBACK, VETH, VMXNET3, VMXNET3_V6];
    let (links, without): (Vec<_>, Vec<_>) = links.into_iter().partition(Link::is_there);
    for link in without {
        println!("SKIP: {}: there is no device {}", link.name, link.devices[0]);
    }
    for mode in [Mode::Look, Mode::Unmark] {
        set(mode)?;
        for link in links.iter().copied() {
            for way in Way::here() {
                let sent = send(way, link, link.there, false, &path)?;
                let (counts, name) = (&sent.counts, format!("{}, {}", way.name(), link.name));
                println!("{mode:?}: {name}: {counts}");
                faults.check(sent.received == letters(), format!("{name}: other bytes arrived"));
                faults.check(sent.changed == 0, format!("{name}: the file was changed"));
                let (routed, device) = (counts.at("routed"), counts.at("device"));
                let found = |count: Count| match mode {
                    Mode::Look => count.marked > 0,
                    _ => count.unmarked > 0,
                };
                faults.check(found(routed), format!("{name}: {mode:?}: nothing seen, routed"));
                faults.check(found(device), format!("{name}: {mode:?}: nothing seen, device"));
                if mode == Mode::Look {
                    faults.check(counts.unmarked() == 0, format!("{name}: not marked: {counts}"));
                    let tapped = counts.at("tap").marked > 0;
                    let expected = !way.notifies();
                    faults.check(tapped == expected, format!("{name}: at the tap: {counts}"));
                }
            }
            for way in [Way::Sendfile, Way::Splice, Way::Vmsplice, Way::Zerocopy] {
                let sent = datagram(way, link, link.there, &path)?;
                let (counts, name) = (sent.counts, format!("UDP, {}, {}", way.name(), link.name));
                println!("{mode:?}: {name}: {counts}");
                faults.check(letters().starts_with(&sent.received), format!("{name}: other bytes"));
                faults.check(sent.changed == 0, format!("{name}: the file was changed"));
                let routed = counts.at("routed");
                let good = match mode {
                    Mode::Look => routed.marked > 0 && counts.unmarked() == 0,
                    _ => routed.unmarked > 0,
                };
                faults.check(good, format!("{name}: {mode:?}: {counts}"));
            }
        }
    }
    set(Mode::Look)?;
    Ok(faults)
}

/// Sends a datagram of a new file, and looks at what has become of it.
fn datagram(way: Way, link: Link, to: IpAddr, path: &Path) -> anyhow::Result<Sent> {
    const LEN: usize = 1200;
    let content = letters();
    let file = ways::file(path, content)?;
    let (tell, listening) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || -> anyhow::Result<Vec<u8>> {
        link.enter()?;
        let socket = UdpSocket::bind((all(to), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        tell.send(socket.local_addr()?.port())?;
        let mut bytes = vec![0; LEN + 1];
        let len = socket.recv(&mut bytes).context("no datagram came")?;
        bytes.truncate(len);
        Ok(bytes)
    });
    let port = listening.recv().context("there is no receiver")?;
    let socket = UdpSocket::bind((all(to), 0))?;
    socket.connect((to, port))?;
    Counts::reset()?;
    if way == Way::Zerocopy {
        let options = Options::new().engine(Engine::Zerocopy);
        let mut sender = Sender::with(socket, options)?;
        let deadline = std::time::Instant::now() + PATIENCE;
        let source = Source::new(file.try_clone()?)?;
        sender.send_file(&source, 0..LEN as u64, SendFlags::NONE, deadline)?;
        sender.close(deadline)?;
    } else {
        way.give(&socket, &file, 0, LEN)?;
    }
    let received = joined(reader)?;
    ensure!(received.len() == LEN, "another datagram arrived");
    Ok(Sent { counts: Counts::read()?, received, changed: changed(&file, content)? })
}

/// The address that stands for all: the one that is sent to may be translated.
fn all(of: IpAddr) -> IpAddr {
    if of.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { v4(0, 0, 0) }
}

/// Each layer, over two links, with each way: the file must stay what it is. Then with the mark taken
/// away, which shows who relies on it; and with a module that writes, which must be seen.
fn layers(directory: &Path, offload: &Path) -> anyhow::Result<Faults> {
    let mut faults = Faults::default();
    let path = directory.join("layers");
    sys::pin_program(&helpers::PROGRAM_TEXT, PROGRAM).context("the BPF program")?;
    // Over veth the very pages arrive that are sent by who keeps no account of them; what writes to
    // packets where they arrive would find them there.
    let here = LAYERS.iter().map(|layer| (layer, VETH));
    let device = LAYERS.iter().filter(|layer| layer.device).map(|layer| (layer, VMXNET3));
    for (layer, link) in here.chain(device) {
        through(layer, link, "", &path, &mut faults)?;
    }
    helpers::load(offload)?;
    for layer in LAYERS.iter().filter(|layer| layer.name.starts_with("ESP")) {
        through(layer, VETH, ", esp4_offload", &path, &mut faults)?;
    }
    for (link, mode) in [(VETH, Mode::Look), (VETH, Mode::Unmark), (VMXNET3, Mode::Unmark)] {
        set(mode)?;
        let changed = helpers::esp_arrives(link, &path)?;
        let name = format!("{mode:?}: ESP that is a file, {}", link.name);
        println!("{name}: {changed} bytes of the page cache changed");
        // Over veth the very pages arrive, and are decrypted in place unless they are marked.
        let expected = mode == Mode::Unmark && link.name == VETH.name;
        faults.check((changed > 0) == expected, name);
    }
    set(Mode::Write)?;
    for way in Way::here() {
        let sent = send(way, VMXNET3, VMXNET3.there, false, &path)?;
        let name =
            format!("Write: {}: {} bytes of the page cache changed", way.name(), sent.changed);
        println!("{name}");
        faults.check(sent.changed > 0, name);
    }
    set(Mode::Look)?;
    Ok(faults)
}

/// The ways of sending through a layer: splice and vmsplice are sendfile's there. Packets of UDP are no
/// clones, so that who looks only at that may write to them.
const THROUGH: [(Mode, Way, bool); 8] = [
    (Mode::Look, Way::Sendfile, TCP),
    (Mode::Look, Way::Native, TCP),
    (Mode::Look, Way::Zerocopy, TCP),
    (Mode::Look, Way::Uring, TCP),
    (Mode::Look, Way::Sendfile, UDP),
    (Mode::Look, Way::Zerocopy, UDP),
    (Mode::Unmark, Way::Sendfile, TCP),
    (Mode::Unmark, Way::Sendfile, UDP),
];
const TCP: bool = true;
const UDP: bool = false;

fn through(
    layer: &Layer,
    link: Link,
    with: &str,
    path: &Path,
    faults: &mut Faults,
) -> anyhow::Result<()> {
    let name = format!("{}{with}, {}", layer.name, link.name);
    let helper = layer.helper.map(helpers::Running::start).transpose()?;
    link.script(layer.up).with_context(|| name.clone())?;
    let to = layer.to.map_or(Ok(link.there), str::parse)?;
    let tls = layer.helper == Some(Helper::Tls);
    let mut said = Vec::new();
    for (mode, way, tcp) in THROUGH {
        if !tcp && (tls || layer.lossy) || tls && way.notifies() {
            // Not for datagrams; and who notifies refuses what is not TCP's own.
            continue;
        }
        set(mode)?;
        let kind = if tcp { "TCP" } else { "UDP" };
        let name = format!("{name}: {mode:?}, {kind}, {}", way.name());
        let sent = if tcp { send(way, link, to, tls, path) } else { datagram(way, link, to, path) };
        let Sent { counts, received, changed } = sent.with_context(|| name.clone())?;
        faults.check(changed == 0, format!("{name}: {changed} bytes of the page cache changed"));
        let other = differ(&received, &letters()[..received.len()]);
        if tcp {
            let (all, written) = (received.len() == SIZE, received.contains(&b'X'));
            faults.check(all, format!("{name}: {} bytes arrived", received.len()));
            faults.check(written == layer.writes, format!("{name}: written to: {written}"));
            faults.check(written || other == 0, format!("{name}: {other} bytes differ"));
        } else {
            // Some write to TCP alone.
            let most = usize::from(layer.writes);
            faults.check(other <= most, format!("{name}: {other} bytes differ"));
        }
        if mode == Mode::Look {
            faults.check(counts.unmarked() == 0, format!("{name}: not marked: {counts}"));
            let seen = counts.at("left").marked > 0;
            // The kernel's TLS sends what it has made. And UDP copies, where a device or ESP needs its
            // checksum, what a notification was asked for.
            let may = tls || !tcp && way.notifies();
            faults.check(seen || may, format!("{name}: no page of the page cache: {counts}"));
            let Count { private, marked, .. } = counts.at("device");
            said.push(format!("{kind} {} {marked}+{private}", way.name()));
        }
    }
    set(Mode::Look)?;
    link.script(layer.down).with_context(|| name.clone())?;
    drop(helper);
    println!(
        "{name}: unchanged; at the device, packets with pages of the page cache+others: {}",
        said.join(", ")
    );
    Ok(())
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let words: Vec<&Path> = arguments.iter().map(PathBuf::as_path).collect();
    let faults = match words[..] {
        [what, directory] if what == Path::new("senders") => senders(directory)?,
        [what, directory, offload] if what == Path::new("layers") => layers(directory, offload)?,
        _ => bail!("usage: guest-pages senders DIRECTORY, or layers DIRECTORY MODULE"),
    };
    println!("guest-pages: {} faults", faults.0.len());
    Ok(if faults.0.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
