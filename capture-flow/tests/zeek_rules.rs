//! Rules of Zeek's that its traces at hand do not show: frames made by hand, and the rows that
//! Zeek's sources make of them.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/make.rs"]
mod make;

use capture_flow::config::{Checksums, FlowConfig};
use capture_flow::frame::{IfaceId, LinkType};
use capture_flow::key::Protocol;
use capture_flow::record::{RowReason, SessionRecord};
use capture_flow::table::SessionTable;
use capture_flow::time::{Nanos, NanosDelta};
use common::{Collected, OwnedFrame};
use make::{End, Flags};

const CLIENT: End = (1, 40_000);
const SERVER: End = (2, 80);

const SYN: Flags = Flags { syn: true, ack: false, fin: false, rst: false };
const SYN_ACK: Flags = Flags { syn: true, ack: true, fin: false, rst: false };
const ACK: Flags = Flags { syn: false, ack: true, fin: false, rst: false };
const FIN: Flags = Flags { syn: false, ack: true, fin: true, rst: false };
const RST: Flags = Flags { syn: false, ack: false, fin: false, rst: true };

/// Milliseconds after the beginning.
fn ms(at: i64) -> Nanos {
    Nanos(1_000_000_000_000) + NanosDelta(at * 1_000_000)
}

fn observe(frames: &[OwnedFrame], config: FlowConfig) -> Vec<SessionRecord> {
    let config = FlowConfig { interim: NanosDelta::from_secs(1 << 33), ..config };
    let mut table = SessionTable::new(config).unwrap();
    let mut sink = Collected::default();
    let borrowed: Vec<_> = frames.iter().enumerate().map(|(n, frame)| frame.borrow(n)).collect();
    table.observe_batch(&borrowed, &mut sink);
    table.finish(frames.last().unwrap().ts, &mut sink);
    sink.rows
}

fn rows(frames: &[OwnedFrame]) -> Vec<SessionRecord> {
    observe(frames, FlowConfig::default())
}

/// State, history, packets of either side.
fn told(row: &SessionRecord) -> (&str, &str, [u64; 2]) {
    (row.conn_state.as_str(), row.history.as_str(), [row.orig.pkts, row.resp.pkts])
}

/// A handshake, and a byte from either side.
fn established() -> Vec<OwnedFrame> {
    vec![
        make::tcp(ms(0), CLIENT, SERVER, 100, 0, SYN, b""),
        make::tcp(ms(1), SERVER, CLIENT, 500, 101, SYN_ACK, b""),
        make::tcp(ms(2), CLIENT, SERVER, 101, 501, ACK, b""),
        make::tcp(ms(3), CLIENT, SERVER, 101, 501, ACK, b"q"),
        make::tcp(ms(4), SERVER, CLIENT, 501, 102, ACK, b"a"),
    ]
}

/// An IPv4 packet in Ethernet.
fn ipv4(ts: Nanos, protocol: u8, body: &[u8], wire_len: Option<u32>) -> OwnedFrame {
    let ip = etherparse::IpNumber(protocol);
    let mut header =
        etherparse::Ipv4Header::new(body.len() as u16, 64, ip, [10, 0, 0, 1], [10, 0, 0, 2])
            .unwrap();
    header.header_checksum = header.calc_header_checksum();
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    header.write(&mut bytes).unwrap();
    bytes.extend(body);
    let whole = bytes.len() as u32;
    let wire_len = wire_len.unwrap_or(whole);
    OwnedFrame { ts, wire_len, bytes, link: LinkType::ETHERNET, iface: IfaceId(0) }
}

#[test]
fn esp_is_logged_over_ipv4_and_not_over_ipv6() {
    // UnknownIPTransport takes what no other analyser asks for; over IPv6 ESP and mobility are
    // extension headers that end the chain.
    let rows = rows(&[ipv4(ms(0), 50, &[7; 40], None), ipv4(ms(1), 135, &[7; 40], None)]);
    for row in &rows {
        assert!(row.protocol.is_in_zeeks_log(row.orig.addr), "{:?}", row.protocol);
    }
    let v6 = capture_flow::key::Address::Ip("2001:db8::1".parse().unwrap());
    assert!(!Protocol::Ip(50).is_in_zeeks_log(v6) && !Protocol::Ip(135).is_in_zeeks_log(v6));
    assert!(!Protocol::Ip(47).is_in_zeeks_log(rows[0].orig.addr));
}

#[test]
fn a_snap_length_takes_icmp_from_the_count_and_nothing_else() {
    let cut = |protocol, body: &[u8]| {
        let mut frame = ipv4(ms(0), protocol, body, None);
        frame.bytes.truncate(frame.bytes.len() - 10);
        frame
    };
    let echo = [&[8, 0, 0, 0, 0, 1, 0, 1][..], &[0; 40]].concat();
    let udp = [&[0, 9, 0, 9, 0, 48, 0, 0][..], &[0; 40]].concat();
    for (protocol, body, pkts) in [(1, &echo, 0), (17, &udp, 1), (2, &udp, 1), (132, &udp, 1)] {
        let rows = rows(&[cut(protocol, body)]);
        assert_eq!(rows[0].orig.pkts, pkts, "{protocol}");
        assert_eq!(rows[0].orig.ip_bytes, pkts * 68, "{protocol}");
    }
}

#[test]
fn the_second_close_of_a_session_that_is_over_makes_it_wait_anew() {
    // ConnectionClosed cancels the timer of the first.
    let mut frames = established();
    frames.push(make::tcp(ms(1_000), CLIENT, SERVER, 102, 0, RST, b""));
    frames.push(make::tcp(ms(4_000), SERVER, CLIENT, 502, 102, FIN, b""));
    frames.push(make::tcp(ms(7_000), SERVER, CLIENT, 503, 102, ACK, b""));
    let last = rows(&frames);
    assert_eq!(told(&last[0]), ("RSTO", "ShADdRfa", [4, 4]), "{last:?}");
    assert_eq!(last.len(), 1);
    frames[7].ts = ms(9_500);
    assert_eq!(rows(&frames).len(), 2);
}

#[test]
fn a_lingering_session_is_looked_at_from_its_close_on_too() {
    // FIN, then RST from the same side: looked at 5, 11, 17 s after it began, and 6 s after the
    // FIN.
    let mut frames = established();
    frames.push(make::tcp(ms(2_000), CLIENT, SERVER, 102, 502, FIN, b""));
    frames.push(make::tcp(ms(2_500), CLIENT, SERVER, 103, 0, RST, b""));
    frames.push(make::tcp(ms(7_900), SERVER, CLIENT, 502, 102, ACK, b"more"));
    assert_eq!(rows(&frames).len(), 1);
    frames[7].ts = ms(8_100);
    let rows = rows(&frames);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0].reason, RowReason::Closed);
    assert_eq!(told(&rows[0]), ("RSTO", "ShADdFR", [5, 2]));
}

#[test]
fn a_session_aborted_while_data_is_missing_is_not_looked_at() {
    // ConnectionReset takes `is_active` away, which ExpireTimer asks first: only the idle limit is
    // left.
    let mut frames = established();
    frames.push(make::tcp(ms(1_000), CLIENT, SERVER, 102, 502, FIN, b""));
    // A hole before the RST: its side is not closed yet.
    frames.push(make::tcp(ms(1_100), SERVER, CLIENT, 602, 103, ACK, b"beyond"));
    frames.push(make::tcp(ms(1_200), SERVER, CLIENT, 608, 0, RST, b""));
    frames.push(make::tcp(ms(60_000), CLIENT, SERVER, 103, 502, ACK, b""));
    let rows = rows(&frames);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0].conn_state.as_str(), "RSTR");
}

#[test]
fn a_dns_session_that_begins_with_an_answer_is_turned_round() {
    const ANSWER: &[u8] = &[0, 1, 0x84, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    const QUERY: &[u8] = &[0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let (one, other) = ((1, 5353), (2, 5353));
    let answer_first = [
        make::udp(ms(0), one, other, ANSWER),
        make::udp(ms(1), one, other, ANSWER),
        make::udp(ms(2), other, one, QUERY),
    ];
    let turned = rows(&answer_first);
    assert_eq!(turned[0].orig.addr.to_string(), "10.0.0.2");
    // The first answer stays with the originator: its letter and its bytes were written before.
    assert_eq!(told(&turned[0]), ("SF", "D^d", [2, 1]));
    assert_eq!([turned[0].orig.bytes, turned[0].resp.bytes], [Some(24), Some(12)]);
    let query_first =
        rows(&[make::udp(ms(0), one, other, QUERY), make::udp(ms(1), other, one, ANSWER)]);
    assert_eq!(told(&query_first[0]), ("SF", "Dd", [1, 1]));
    // Not where the DNS analyser does not listen, and not to a group.
    let config = FlowConfig { likely_server_ports: Vec::new(), ..FlowConfig::default() };
    assert_eq!(told(&observe(&answer_first[..1], config)[0]).1, "D");
    let mut group = make::udp(ms(0), one, other, ANSWER);
    group.bytes[30..34].copy_from_slice(&[224, 0, 0, 251]);
    assert_eq!(told(&rows(&[group])[0]).1, "D");
}

#[test]
fn ntp_is_turned_round_by_who_speaks_as_what() {
    let message = |mode: u8| [&[0x20 | mode][..], &[0; 47]].concat();
    let (client, server) = (message(3), message(4));
    let (one, other) = ((1, 123), (2, 123));
    // An answer first: its packet and its bytes stay with the originator, its letter too.
    let turned = rows(&[
        make::udp(ms(0), one, other, &server),
        make::udp(ms(1), other, one, &client),
        make::udp(ms(2), one, other, &server),
    ]);
    assert_eq!(turned[0].orig.addr.to_string(), "10.0.0.2");
    assert_eq!(told(&turned[0]), ("SF", "D^d", [2, 1]));
    // Two that both ask: packets go over to the other side, payload does not.
    let peers = rows(&[
        make::udp(ms(0), one, other, &client),
        make::udp(ms(1), other, one, &client),
        make::udp(ms(2), other, one, &client),
        make::udp(ms(3), other, one, &client),
    ]);
    let row = &peers[0];
    assert_eq!(row.orig.addr.to_string(), "10.0.0.2");
    assert_eq!(told(row), ("SF", "Dd^", [2, 2]));
    assert_eq!([row.orig.bytes, row.resp.bytes], [Some(144), Some(48)]);
    assert_eq!([row.orig.ip_bytes, row.resp.ip_bytes], [152, 152]);
    // Once from either role, and not in what is too short.
    let again = [&client, &client, &server, &server, &server, &client];
    let from = [one, other, other, other, one, other];
    let frames = (0_i64..).zip(again).zip(from).map(|((at, message), from)| {
        make::udp(ms(at), from, if from == one { other } else { one }, message)
    });
    let frames: Vec<_> = frames.collect();
    assert_eq!(rows(&frames)[0].history.as_str(), "Dd^^");
    let short = rows(&[make::udp(ms(0), one, other, &server[..47])]);
    assert_eq!(told(&short[0]), ("S0", "D", [1, 0]));
}

#[test]
fn a_wrong_checksum_counts_for_nothing_and_has_its_letter() {
    let mut bad = make::udp(ms(0), CLIENT, SERVER, b"payload");
    *bad.bytes.last_mut().unwrap() ^= 1;
    let config = FlowConfig { checksums: Checksums::Verify, ..FlowConfig::default() };
    let row = &observe(&[bad], config)[0];
    assert_eq!(told(row), ("OTH", "C", [0, 0]));
}
