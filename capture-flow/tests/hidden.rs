//! What a frame hides is not lost sight of, whatever came before it.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;
#[allow(dead_code)]
#[path = "common/make.rs"]
mod make;

use std::net::IpAddr;

use capture_flow::config::FlowConfig;
use capture_flow::decode::unread;
use capture_flow::key::FlowHash;
use capture_flow::stats::FlowStats;
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use common::{Collected, OwnedFrame};
use make::End;

const CLIENT: End = (3, 50_000);
const VTEP: End = (4, 4789);

fn inner() -> OwnedFrame {
    make::udp(Nanos(0), (7, 1_000), (8, 2_000), b"inside")
}

fn vxlan(src: End, dst: End, inside: &[u8]) -> OwnedFrame {
    make::udp(Nanos(5), src, dst, &[&[8, 0, 0, 0, 0, 0, 9, 0], inside].concat())
}

/// What a table counts, and which frames it notes as unread.
fn observe(frames: &[OwnedFrame]) -> (FlowStats, Vec<usize>) {
    let mut table = SessionTable::new(FlowConfig::default()).unwrap();
    let mut sink = Collected::default();
    for (number, frame) in frames.iter().enumerate() {
        table.observe_batch(&[frame.borrow(number)], &mut sink);
    }
    let unread = sink.touches.iter().filter(|(_, flows)| flows.contains(&FlowHash::UNREAD));
    let mut unread: Vec<_> = unread.map(|(at, _)| at.offset as usize).collect();
    unread.sort_unstable();
    (table.stats().clone(), unread)
}

#[test]
fn the_insides_of_tunnels_that_cannot_be_read_are_counted() {
    let cut = vxlan(CLIENT, VTEP, &inner().bytes[..30]);
    let deep =
        vxlan(CLIENT, VTEP, &vxlan(CLIENT, VTEP, &vxlan(CLIENT, VTEP, &inner().bytes).bytes).bytes);
    let (stats, unread) = observe(&[vxlan(CLIENT, VTEP, &inner().bytes), cut, deep]);
    assert_eq!((stats.inner_undecodable, stats.inner_too_deep), (1, 1));
    assert_eq!((stats.decoded, stats.undecodable_frames()), (3, 0), "each is somebody's frame");
    assert_eq!(unread, [1, 2]);
}

#[test]
fn a_packet_that_is_no_tunnels_does_not_hide_those_that_follow() {
    let real = || vxlan(CLIENT, VTEP, &inner().bytes);
    // One that closes the session, and one that turns its ends round.
    for first in
        [make::udp(Nanos(1), CLIENT, VTEP, b"junk"), make::udp(Nanos(1), VTEP, CLIENT, b"")]
    {
        let (stats, unread) = observe(&[first, real()]);
        assert_eq!((stats.inner_undecodable, unread), (1, vec![1]));
    }
    let frame = real();
    let found = unread(&frame.borrow(0));
    let ip = found.iter().find_map(|unread| unread.ip).expect("what is inside");
    assert_eq!((ip.src, ip.dst), (IpAddr::from([10, 0, 0, 7]), IpAddr::from([10, 0, 0, 8])));
    assert_eq!(ip.ports, Some((1_000, 2_000)));
}

#[test]
fn a_tunnels_port_alone_makes_no_tunnel() {
    // A resolver may ask from any port.
    let answer = |id: u8| [&[id, 0x13, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0], &[7; 60][..]].concat();
    let frames: Vec<_> = (0..=255_u8)
        .flat_map(|id| {
            [
                make::udp(Nanos(1), (4, 4789), (3, 53), &answer(id)[..20]),
                make::udp(Nanos(2), (3, 53), (4, 4789), &answer(id)),
            ]
        })
        .collect();
    let (stats, unread) = observe(&frames);
    assert_eq!((stats.inner_undecodable, unread), (0, vec![]));
}

#[test]
fn a_form_of_tunnel_that_is_not_known_may_carry_anything() {
    let geneve = [&[0x40, 0, 0x65, 0x58, 0, 0, 1, 0], inner().bytes.as_slice()].concat();
    let mut gre = make::udp(Nanos(2), (3, 0x4000), (4, 0x0800), &inner().bytes);
    // The ports are GRE's flags (routing) and protocol.
    gre.bytes[23] = 47;
    let (stats, unread) = observe(&[make::udp(Nanos(1), (3, 9), (4, 6081), &geneve), gre]);
    assert_eq!((stats.inner_undecodable, unread), (2, vec![0, 1]));
}

#[test]
fn fragments_of_two_protocols_contradict_each_other() {
    let part = |protocol: u8, offset: u16, more: bool, data: &[u8]| {
        let mut frame = make::udp(Nanos(i64::from(offset)), (3, 9), (4, 9), data);
        frame.bytes.drain(34..42);
        frame.wire_len -= 8;
        frame.bytes[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
        frame.bytes[20..22].copy_from_slice(&((offset / 8) | u16::from(more) << 13).to_be_bytes());
        frame.bytes[23] = protocol;
        frame
    };
    let head = [0x9c, 0x40, 0, 22, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    for decoy in [6, 17] {
        // The same bytes, as another protocol's.
        let frames =
            [part(decoy, 0, true, &head), part(6, 0, true, &head), part(6, 24, false, b"12345678")];
        let mut table = SessionTable::new(FlowConfig::default()).unwrap();
        let mut sink = Collected::default();
        for (number, frame) in frames.iter().enumerate() {
            table.observe_batch(&[frame.borrow(number)], &mut sink);
        }
        table.finish(Nanos::from_parts(9, 0), &mut sink);
        let [row] = sink.rows.as_slice() else { panic!("{:?}", sink.rows) };
        assert_eq!(row.fragment_overlap, decoy != 6, "{row:?}");
    }
}
