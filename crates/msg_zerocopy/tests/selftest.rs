//! `msg_zerocopy` over a veth pair, and against the kernel's own program of that name.
#![allow(clippy::unwrap_used)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const OURS: &str = env!("CARGO_BIN_EXE_msg_zerocopy");

/// Runs the script, if namespaces are allowed here.
fn script(tx: &Path, rx: &Path, arguments: &[&str]) -> Option<String> {
    let allowed = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount"])
        .args(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"])
        .output();
    match allowed {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            println!("SKIP: no veth here: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Err(e) => {
            println!("SKIP: no veth here: unshare: {e}");
            return None;
        }
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("msg_zerocopy.sh");
    let output = Command::new(script)
        .args(arguments)
        .envs([("TX", tx), ("RX", rx)])
        .env("T", "0")
        .output()
        .unwrap();
    let text = text(&output);
    assert!(output.status.success(), "{arguments:?}: {}\n{text}", output.status);
    assert!(text.ends_with("ok\n") || text.contains("\nok\n"), "{text}");
    Some(text)
}

fn text(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    text.into_owned()
}

/// The figure behind `name=` in each line that has one.
fn figures(text: &str, name: &str) -> Vec<u64> {
    let name = format!("{name}=");
    text.lines()
        .filter_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix(&name)))
        .map(|figure| figure.parse().unwrap())
        .collect()
}

#[test]
fn between_two_namespaces() {
    let Some(text) = script(OURS.as_ref(), OURS.as_ref(), &[]) else { return };
    let (sends, notified) = (figures(&text, "tx"), figures(&text, "txc"));
    assert_eq!(sends.len(), 17, "{text}");
    for (i, (sends, notified)) in sends.into_iter().zip(notified).enumerate() {
        assert!(sends > 0, "{text}");
        // Every second one by zerocopy, and the last, too.
        let expected = if i % 2 == 1 || i == 16 { sends } else { 0 };
        assert_eq!(notified, expected, "{text}");
    }
    assert!(figures(&text, "rx").into_iter().all(|received| received > 0), "{text}");
}

#[test]
fn datagrams_in_parts() {
    let ours = OURS.as_ref();
    // The script's second run is the one with -z.
    let Some(text) = script(ours, ours, &["4", "udp", "-c", "3"]) else { return };
    assert_eq!(figures(&text, "txc"), [0, figures(&text, "tx")[1]], "{text}");
    // Mixed, which needs -z: half of the parts.
    let text = script(ours, ours, &["6", "udp", "-z", "-c", "4", "-m"]).unwrap();
    for (sends, notified) in figures(&text, "tx").into_iter().zip(figures(&text, "txc")) {
        assert!(sends > 4 && notified.abs_diff(sends / 2) <= 1, "{text}");
    }
}

/// The kernel's own program, compiled from its source if that is here.
fn kernels() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))?;
    let source = cache.join("sendfile2/msg_zerocopy.c");
    if !source.exists() {
        println!("SKIP: the kernel's msg_zerocopy.c is not at {}", source.display());
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels_msg_zerocopy");
    let output = Command::new("cc").args(["-O2", "-w", "-o"]).arg(&program).arg(source).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    Some(program)
}

#[test]
fn with_the_kernels_program() {
    let Some(kernels) = kernels() else { return };
    for (tx, rx) in [(Path::new(OURS), kernels.as_path()), (&kernels, Path::new(OURS))] {
        for version in ["4", "6"] {
            for protocol in ["tcp", "udp"] {
                let Some(text) = script(tx, rx, &[version, protocol]) else { return };
                let (sends, notified) = (figures(&text, "tx"), figures(&text, "txc"));
                assert_eq!(notified, [0, sends[1]], "{text}");
                assert!(figures(&text, "rx").into_iter().all(|received| received > 0), "{text}");
            }
        }
    }
}

#[test]
fn missing_notifications_are_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    // It is connected, but its peer never reads: what is in the socket is not released.
    let output = Command::new(OURS)
        .args(["-4", "-D", "127.0.0.1", "-p", &port, "-t", "0", "-w", "0", "-z", "tcp"])
        .output()
        .unwrap();
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("missing notifications"), "{text}");
}

#[test]
fn wrong_bytes_are_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (directory.path().join("right"), directory.path().join("wrong"));
    std::fs::write(&right, vec![b'A'; 1 << 20]).unwrap();
    std::fs::write(&wrong, vec![b'B'; 1 << 20]).unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let mut receiver = Command::new(OURS)
        .args(["-4", "-D", "127.0.0.1", "-p", &port, "-t", "5", "-r", "-f"])
        .args([wrong.to_str().unwrap(), "tcp"])
        .spawn()
        .unwrap();
    // As soon as it listens.
    loop {
        let mut sender = Command::new(OURS);
        sender.args(["-4", "-D", "127.0.0.1", "-p", &port, "-t", "0", "-z", "-f"]);
        let output = sender.args([right.to_str().unwrap(), "tcp"]).output().unwrap();
        if !text(&output).contains("cannot connect") {
            break;
        }
    }
    assert_eq!(receiver.wait().unwrap().code(), Some(1));
}

#[test]
fn what_is_wrong_with_the_command_line_is_said() {
    for (arguments, said) in [
        (&["tcp"][..], "-4"),
        (&["-4", "-6", "tcp"], "cannot be used with"),
        (&["-4", "raw"], "[possible values: tcp, udp]"),
        (&["-4", "tcp"], "-D"),
        (&["-4", "-D", "::1", "tcp"], "no IPv4 address"),
        (&["-4", "-c", "2", "-D", "127.0.0.1", "tcp"], "use udp"),
        (&["-4", "-m", "-c", "2", "-D", "127.0.0.1", "udp"], "needs -c and -z"),
        (&["-4", "-i", "nothing7", "-D", "127.0.0.1", "tcp"], "no interface nothing7"),
        (&["-4", "-s", "65436", "-D", "127.0.0.1", "tcp"], "65435"),
        (&["-4", "-f", "/nothing", "-D", "127.0.0.1", "-p", "1", "udp"], "/nothing"),
    ] {
        let output = Command::new(OURS).args(arguments).output().unwrap();
        let text = text(&output);
        assert!(!output.status.success() && text.contains(said), "{arguments:?}: {text}");
    }
}
