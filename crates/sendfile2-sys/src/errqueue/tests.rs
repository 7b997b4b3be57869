//! The decoder on fabricated control messages, and one look at a real queue.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::*;
use crate::socket;

/// `ENOMSG`, the error that transmit timestamps carry.
const ENOMSG: u32 = 42;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_TIMESTAMPING: u8 = 4;

const IPV4: (i32, i32) = (libc::SOL_IP, libc::IP_RECVERR);
const IPV6: (i32, i32) = (libc::SOL_IPV6, libc::IPV6_RECVERR);
const TIMESTAMPS: (i32, i32) = (libc::SOL_SOCKET, libc::SCM_TIMESTAMPING);

/// A control message that claims to be `len` bytes long.
fn control_of(len: usize, (level, kind): (i32, i32), data: &[u8]) -> Vec<u8> {
    let mut bytes = len.to_ne_bytes().to_vec();
    bytes.extend(level.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
    bytes
}

fn control(what: (i32, i32), data: &[u8]) -> Vec<u8> {
    control_of(HEADER + data.len(), what, data)
}

/// A `sock_extended_err` with the address of its offender, as the kernel appends it.
fn bytes_of(error: ExtendedError, offender: usize) -> Vec<u8> {
    let mut bytes = error.errno.to_ne_bytes().to_vec();
    bytes.extend([error.origin, error.kind, error.code, 0]);
    bytes.extend(error.info.to_ne_bytes());
    bytes.extend(error.data.to_ne_bytes());
    bytes.resize(bytes.len() + offender, 0);
    bytes
}

fn zerocopy(lo: u32, hi: u32, code: u8) -> ExtendedError {
    ExtendedError { errno: 0, origin: ORIGIN_ZEROCOPY, kind: 0, code, info: lo, data: hi }
}

/// Port unreachable.
fn icmp() -> ExtendedError {
    let errno = libc::ECONNREFUSED.unsigned_abs();
    ExtendedError { errno, origin: ORIGIN_ICMP, kind: 3, code: 3, info: 0, data: 0 }
}

fn ipv4(error: ExtendedError) -> Vec<u8> {
    control(IPV4, &bytes_of(error, size_of::<libc::sockaddr_in>()))
}

fn ipv6(error: ExtendedError) -> Vec<u8> {
    control(IPV6, &bytes_of(error, size_of::<libc::sockaddr_in6>()))
}

fn completion(lo: u32, hi: u32, copied: bool) -> Result<Entry, DecodeError> {
    Ok(Entry::Completion { lo, hi, copied })
}

fn foreign(control: &[u8], payload: &[u8], flags: i32) -> Foreign {
    match decode(control, payload, flags) {
        Ok(Entry::Foreign(foreign)) => foreign,
        other => panic!("a foreign entry was decoded as {other:?}"),
    }
}

#[test]
fn a_completion_on_ipv4() {
    assert_eq!(decode(&ipv4(zerocopy(3, 5, 0)), &[], 0), completion(3, 5, false));
}

#[test]
fn a_completion_on_ipv6() {
    assert_eq!(decode(&ipv6(zerocopy(3, 5, 0)), &[], 0), completion(3, 5, false));
}

#[test]
fn a_completion_without_an_offender() {
    let control = control(IPV4, &bytes_of(zerocopy(3, 5, 0), 0));
    assert_eq!(decode(&control, &[], 0), completion(3, 5, false));
}

#[test]
fn a_completion_that_the_kernel_copied() {
    let copied = zerocopy(3, 5, CODE_ZEROCOPY_COPIED);
    assert_eq!(decode(&ipv4(copied), &[], 0), completion(3, 5, true));
}

#[test]
fn other_bits_of_the_code_do_not_mean_copied() {
    assert_eq!(decode(&ipv4(zerocopy(3, 5, 0xfe)), &[], 0), completion(3, 5, false));
}

#[test]
fn a_range_that_wraps_is_left_as_it_is() {
    let wraps = zerocopy(u32::MAX - 1, 2, 0);
    assert_eq!(decode(&ipv4(wraps), &[], 0), completion(u32::MAX - 1, 2, false));
}

#[test]
fn the_flags_that_every_message_of_the_queue_carries_are_no_error() {
    let control = ipv4(zerocopy(1, 1, 0));
    assert_eq!(decode(&control, &[], libc::MSG_ERRQUEUE), completion(1, 1, false));
}

#[test]
fn timestamps_before_the_error_are_passed_over() {
    let control = [control(TIMESTAMPS, &[7; 48]), ipv4(zerocopy(1, 2, 0))].concat();
    assert_eq!(decode(&control, &[], 0), completion(1, 2, false));
}

#[test]
fn timestamps_after_the_error_are_passed_over() {
    let control = [ipv6(zerocopy(1, 2, 0)), control(TIMESTAMPS, &[7; 48])].concat();
    assert_eq!(decode(&control, &[], 0), completion(1, 2, false));
}

#[test]
fn a_control_message_of_odd_length_is_stepped_over_aligned() {
    let control = [control((libc::SOL_IP, libc::IP_TTL), &[64; 5]), ipv4(zerocopy(1, 2, 0))];
    assert_eq!(decode(&control.concat(), &[], 0), completion(1, 2, false));
}

#[test]
fn a_control_message_without_data_is_stepped_over() {
    let control = [control((libc::SOL_SOCKET, 0), &[]), ipv4(zerocopy(1, 2, 0))].concat();
    assert_eq!(decode(&control, &[], 0), completion(1, 2, false));
}

#[test]
fn trailing_padding_is_passed_over() {
    let control = [ipv4(zerocopy(1, 2, 0)), vec![0; ALIGN]].concat();
    assert_eq!(decode(&control, &[], 0), completion(1, 2, false));
}

#[test]
fn the_padding_of_the_last_message_may_be_missing() {
    let data = bytes_of(zerocopy(1, 2, 0), 5);
    let control = control(IPV4, &data);
    assert_eq!(decode(&control[..HEADER + data.len()], &[], 0), completion(1, 2, false));
}

#[test]
fn an_icmp_error_is_foreign_and_whole() {
    let control = [control(TIMESTAMPS, &[7; 48]), ipv4(icmp())].concat();
    let foreign = foreign(&control, b"what was sent", libc::MSG_ERRQUEUE);
    assert_eq!(foreign.error, Some(icmp()));
    assert_eq!(foreign.control, control);
    assert_eq!(foreign.payload, b"what was sent");
    assert!(!foreign.truncated);
}

#[test]
fn a_transmit_timestamp_is_foreign() {
    let origin = ORIGIN_TIMESTAMPING;
    let error = ExtendedError { errno: ENOMSG, origin, kind: 0, code: 0, info: 2, data: 9 };
    let control = [control(TIMESTAMPS, &[7; 48]), ipv4(error)].concat();
    let foreign = foreign(&control, &[], 0);
    assert_eq!((foreign.error, foreign.control), (Some(error), control));
}

#[test]
fn an_error_of_zerocopy_origin_releases_nothing() {
    let error = ExtendedError { errno: libc::ENOBUFS.unsigned_abs(), ..zerocopy(1, 2, 0) };
    assert_eq!(foreign(&ipv4(error), &[], 0).error, Some(error));
}

#[test]
fn an_extended_error_of_another_protocol_releases_nothing() {
    let data = bytes_of(zerocopy(1, 2, 0), 0);
    assert_eq!(foreign(&control((libc::SOL_TCP, libc::IP_RECVERR), &data), &[], 0).error, None);
    assert_eq!(foreign(&control((libc::SOL_IP, libc::IP_RECVTTL), &data), &[], 0).error, None);
}

#[test]
fn an_empty_control_is_foreign_without_an_error() {
    let foreign = foreign(&[], b"payload", 0);
    assert_eq!((foreign.error, foreign.payload), (None, b"payload".to_vec()));
}

#[test]
fn a_foreign_entry_says_that_its_payload_was_cut() {
    assert!(foreign(&ipv4(icmp()), b"cut", libc::MSG_TRUNC).truncated);
}

#[test]
fn a_completion_does_not_mind_a_cut_payload() {
    let control = ipv4(zerocopy(1, 2, 0));
    assert_eq!(decode(&control, &[], libc::MSG_TRUNC), completion(1, 2, false));
}

#[test]
fn cut_control_data_is_an_error_even_if_a_completion_is_in_it() {
    let control = ipv4(zerocopy(1, 2, 0));
    let flags = libc::MSG_CTRUNC | libc::MSG_ERRQUEUE;
    assert_eq!(decode(&control, &[], flags), Err(DecodeError::ControlTruncated));
}

#[test]
fn a_length_that_does_not_fit_is_an_error() {
    let data = bytes_of(zerocopy(1, 2, 0), 0);
    let left = HEADER + data.len();
    for len in [0, 1, HEADER - 1, left + 1, left + ALIGN, isize::MAX.unsigned_abs(), usize::MAX] {
        let control = control_of(len, IPV4, &data);
        assert_eq!(decode(&control, &[], 0), Err(DecodeError::BadLength { len, left }), "{len}");
    }
}

#[test]
fn a_bad_length_after_a_completion_releases_nothing() {
    let control = [ipv4(zerocopy(1, 2, 0)), control_of(0, TIMESTAMPS, &[])].concat();
    let error = DecodeError::BadLength { len: 0, left: HEADER };
    assert_eq!(decode(&control, &[], 0), Err(error));
}

#[test]
fn an_extended_error_that_is_cut_is_an_error() {
    let data = bytes_of(zerocopy(1, 2, 0), 0);
    for len in [0, 1, 15] {
        let control = control(IPV6, &data[..len]);
        assert_eq!(decode(&control, &[], 0), Err(DecodeError::ShortError { len }));
    }
}

fn any_error() -> impl Strategy<Value = ExtendedError> {
    let origin = prop_oneof![Just(ORIGIN_ZEROCOPY), any::<u8>()];
    let errno = prop_oneof![Just(0), any::<u32>()];
    (errno, origin, any::<(u8, u8, u32, u32)>()).prop_map(
        |(errno, origin, (kind, code, info, data))| ExtendedError {
            errno,
            origin,
            kind,
            code,
            info,
            data,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_decoded_without_a_panic(
        control in vec(any::<u8>(), 0..200),
        payload in vec(any::<u8>(), 0..20),
        flags in any::<i32>(),
    ) {
        let _ = decode(&control, &payload, flags);
    }

    #[test]
    fn any_lengths_are_decoded_without_a_panic(
        lengths in vec(prop_oneof![0..80_usize, any::<usize>()], 1..6),
        data in vec(any::<u8>(), 0..80),
        end in 0..400_usize,
    ) {
        let control: Vec<u8> =
            lengths.into_iter().flat_map(|len| control_of(len, IPV4, &data)).collect();
        let _ = decode(&control[..end.min(control.len())], &[], 0);
    }

    #[test]
    fn what_was_encoded_is_decoded(
        error in any_error(),
        v6 in any::<bool>(),
        before in vec(vec(any::<u8>(), 0..50), 0..3),
        after in vec(vec(any::<u8>(), 0..50), 0..3),
        payload in vec(any::<u8>(), 0..50),
    ) {
        let beside = |data: &Vec<u8>| control(TIMESTAMPS, data);
        let mut bytes: Vec<u8> = before.iter().flat_map(beside).collect();
        bytes.extend(if v6 { ipv6(error) } else { ipv4(error) });
        bytes.extend(after.iter().flat_map(beside));
        let expected = if error.errno == 0 && error.origin == ORIGIN_ZEROCOPY {
            Entry::Completion { lo: error.info, hi: error.data, copied: error.code % 2 == 1 }
        } else {
            let (error, control) = (Some(error), bytes.clone());
            Entry::Foreign(Foreign { error, control, payload: payload.clone(), truncated: false })
        };
        prop_assert_eq!(decode(&bytes, &payload, libc::MSG_ERRQUEUE), Ok(expected));
    }
}

/// A connected pair over loopback with `SO_ZEROCOPY`; `None`, with a reason printed, where that is
/// not to be had.
fn pair(address: &str) -> Option<(TcpStream, TcpStream)> {
    let listener = match TcpListener::bind((address, 0)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("SKIP: no loopback at {address}: {error}");
            return None;
        }
    };
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    if let Err(error) = socket::enable_zerocopy(near.as_fd()) {
        eprintln!("SKIP: no SO_ZEROCOPY: {error}");
        return None;
    }
    Some((near, far))
}

/// Waits until the error queue has an entry.
fn wait(socket: &TcpStream) {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "no completion arrived");
    assert!(fds[0].revents().contains(PollFlags::ERR));
}

#[test]
fn an_empty_queue_gives_nothing_and_does_not_block() {
    let Some((near, _far)) = pair("127.0.0.1") else { return };
    let mut out = Batch::new();
    assert_eq!(read(near.as_fd(), &mut out), Ok(false));
    assert_eq!(read(near.as_fd(), &mut out), Ok(false));
    assert_eq!(out.as_slice(), []);
}

fn one_send_gives_one_completion(address: &str) {
    let Some((near, _far)) = pair(address) else { return };
    let data = vec![7; 10_000];
    assert_eq!(socket::send(near.as_fd(), data.as_slice().into(), true, false), Ok(data.len()));
    wait(&near);
    let mut out = Batch::new();
    assert_eq!(read(near.as_fd(), &mut out), Ok(false));
    // On loopback every zerocopy send is copied.
    assert_eq!(out.as_slice(), [completion(0, 0, true)]);
    assert_eq!(read(near.as_fd(), &mut out), Ok(false));
    assert_eq!(out.len(), 1);
}

#[test]
fn a_real_send_on_ipv4_gives_one_completion() {
    one_send_gives_one_completion("127.0.0.1");
}

#[test]
fn a_real_send_on_ipv6_gives_one_completion() {
    one_send_gives_one_completion("::1");
}
