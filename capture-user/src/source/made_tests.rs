//! What the made frames are, and how they come.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use capture_flow::config::FlowConfig;
use capture_flow::frame::Frame;
use capture_flow::sink::SessionUpdate;
use capture_flow::table::SessionTable;

use super::*;
use crate::source::wait;

const TRAFFIC: Traffic = Traffic {
    frame_bytes: 100,
    first_session: 0,
    sessions: 10,
    per_second: None,
    limit: Some(1000),
    ring_size: 256,
};

fn made(traffic: Traffic) -> (Made, Arc<Wire>) {
    let wire = Arc::new(Wire::default());
    (Made::new(traffic, IfaceId(3), Arc::clone(&wire)).expect("a timer"), wire)
}

/// Takes all that come at full speed.
fn take(source: &mut Made) -> Vec<(Nanos, Vec<u8>)> {
    let mut taken = Vec::new();
    let received = |frames: &[SourceFrame<'_>]| {
        for frame in frames {
            assert_eq!((frame.iface, frame.link), (IfaceId(3), LinkType::ETHERNET));
            assert_eq!(frame.wire_len as usize, frame.captured_len());
            taken.push((frame.ts, frame.parts.concat()));
        }
    };
    let mut received = received;
    while source.receive(&mut received).expect("no error") != Received::Idle {}
    taken
}

/// The engine says whether the frames are what they should be, checksums included.
fn sessions_of(frames: &[(Nanos, Vec<u8>)]) -> Vec<SessionUpdate> {
    let config =
        FlowConfig { checksums: capture_flow::config::Checksums::Verify, ..FlowConfig::default() };
    let mut table = SessionTable::new(config).expect("a table");
    let mut rows = Vec::<SessionUpdate>::new();
    for (ts, bytes) in frames {
        let frame = Frame {
            ts: *ts,
            wire_len: bytes.len() as u32,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(3),
            at: None,
        };
        table.observe_batch(&[frame], &mut rows);
    }
    table.finish(clock(), &mut rows);
    assert_eq!(table.stats().undecodable_frames(), 0);
    rows
}

#[test]
fn every_session_has_its_turn_and_answers() {
    for frame_bytes in [LEAST_BYTES, 100, 1514, MOST_BYTES] {
        let (mut source, wire) = made(Traffic { frame_bytes, ..TRAFFIC });
        let frames = take(&mut source);
        assert_eq!((frames.len(), wire.offered()), (1000, 1000), "as many as the limit says");
        assert!(frames.iter().all(|(_, bytes)| bytes.len() == frame_bytes as usize));
        let rows = sessions_of(&frames);
        assert_eq!(rows.len(), 10);
        for row in rows {
            assert_eq!((row.record.orig.pkts, row.record.resp.pkts), (50, 50));
            let payload = u64::from(frame_bytes) - (ETHERNET + IPV4 + UDP) as u64;
            assert_eq!(row.bytes, [50 * payload; 2]);
        }
    }
}

#[test]
fn the_checksum_of_the_ip_header_is_right() {
    let (mut source, _) = made(Traffic { sessions: 100_000, first_session: 60_000, ..TRAFFIC });
    for (_, frame) in take(&mut source) {
        let words = frame[ETHERNET..ETHERNET + IPV4].chunks(2);
        let sum: u32 = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}

#[test]
fn queues_have_sessions_of_their_own() {
    let mut hosts: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for first_session in [0, 40_000, 80_000] {
        let (mut source, _) =
            made(Traffic { first_session, sessions: 40_000, limit: Some(40_000), ..TRAFFIC });
        let ends = take(&mut source).into_iter().map(|(_, frame)| frame[26..38].to_vec());
        hosts.insert(first_session, ends.collect());
    }
    let all: BTreeSet<_> = hosts.values().flatten().collect();
    assert_eq!(all.len(), 120_000);
}

#[test]
fn time_goes_on_from_frame_to_frame() {
    let before = clock();
    let (mut source, _) = made(TRAFFIC);
    let frames = take(&mut source);
    let least = before - NanosDelta(BATCH as i64);
    assert!(frames.iter().all(|(ts, _)| (least..=clock()).contains(ts)));
}

#[test]
fn what_comes_at_a_rate_is_waited_for_and_comes_whole() {
    let (mut source, wire) = made(Traffic { per_second: Some(100_000), ..TRAFFIC });
    let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).expect("an eventfd");
    let mut taken = 0_u64;
    let begun = Instant::now();
    while taken < 1000 {
        match source.receive(&mut |frames| taken += frames.len() as u64).expect("no error") {
            Received::Idle => {
                wait(std::slice::from_ref(&source), bell.as_fd(), Duration::from_secs(60))
                    .expect("poll");
            }
            _ => assert!(taken + source.lost <= wire.offered()),
        }
        if source.lost > 0 {
            // A machine that was held up: what was lost is told, and the rest came.
            taken += std::mem::take(&mut source.lost);
        }
    }
    // They cannot come before they are due.
    assert!(begun.elapsed() >= Duration::from_nanos(999 * period_ns(100_000)));
    assert_eq!((taken, wire.offered()), (1000, 1000));
}

#[test]
fn a_ring_that_nobody_empties_loses_what_it_has_no_room_for() {
    let (mut source, wire) =
        made(Traffic { per_second: Some(1_000_000_000), limit: Some(100_000), ..TRAFFIC });
    let mut taken = 0;
    while wire.offered() < 100_000 {
        // Takes nothing until all of them were sent.
        source.waiting();
    }
    while source.receive(&mut |frames| taken += frames.len() as u64).expect("no error")
        != Received::Idle
    {}
    assert_eq!(taken, 256);
    let counters = source.counters().expect("no error");
    assert_eq!((counters.frames, counters.ring_full), (256, 100_000 - 256));
}

#[test]
fn after_the_end_only_what_was_sent_comes() {
    let (mut source, wire) = made(Traffic { limit: None, ..TRAFFIC });
    let mut taken = 0;
    source.receive(&mut |frames| taken += frames.len() as u64).expect("no error");
    wire.end();
    let after = source.receive(&mut |frames| taken += frames.len() as u64).expect("no error");
    assert_eq!((after, taken, wire.offered()), (Received::Idle, BATCH as u64, BATCH as u64));
}
