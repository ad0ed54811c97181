//! What must hold whatever the frames are.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;
#[path = "common/make.rs"]
mod make;

use std::collections::HashMap;

use capture_flow::config::FlowConfig;
use capture_flow::record::SessionRecord;
use capture_flow::table::SessionTable;
use capture_flow::time::{Nanos, NanosDelta};
use common::{Collected, OwnedFrame};
use make::{End, Flags};
use proptest::prelude::*;

/// One step of a conversation: time since the last one, who speaks, what.
#[derive(Clone, Debug)]
struct Step {
    wait_ms: u32,
    back: bool,
    flags: u8,
    seq: u8,
    ack: u8,
    len: u8,
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly short waits, sometimes beyond one limit or another.
    let wait = prop_oneof![
        8 => 0_u32..2_000,
        1 => 2_000_u32..7_000,
        1 => prop::sample::select(vec![61_000_u32, 310_000, 4_000_000]),
    ];
    (wait, any::<bool>(), any::<u8>(), 0_u8..20, 0_u8..20, 0_u8..8).prop_map(
        |(wait_ms, back, flags, seq, ack, len)| Step { wait_ms, back, flags, seq, ack, len },
    )
}

/// The frames of a conversation. Sequence numbers start near the wrap.
fn conversation(ends: (End, End), tcp: bool, steps: &[Step]) -> Vec<OwnedFrame> {
    let mut ms = 1_000_000_i64;
    let payload = [b'x'; 8];
    steps
        .iter()
        .map(|step| {
            ms += i64::from(step.wait_ms);
            let ts = Nanos(ms * 1_000_000);
            let (src, dst) = if step.back { (ends.1, ends.0) } else { ends };
            let payload = &payload[..usize::from(step.len)];
            if !tcp {
                return make::udp(ts, src, dst, payload);
            }
            let flags = Flags {
                syn: step.flags & 0b11 == 0b11,
                ack: step.flags & 0b100 != 0,
                fin: step.flags & 0b111_000 == 0b111_000,
                rst: step.flags & 0b1111_0000 == 0b1111_0000,
            };
            let seq = u32::MAX.wrapping_sub(6).wrapping_add(u32::from(step.seq));
            let ack = u32::MAX.wrapping_sub(6).wrapping_add(u32::from(step.ack));
            make::tcp(ts, src, dst, seq, ack, flags, payload)
        })
        .collect()
}

fn run(frames: &[OwnedFrame], batches: &[usize], config: FlowConfig) -> (Vec<SessionRecord>, u64) {
    let mut table = SessionTable::new(config).unwrap();
    let mut sink = Collected::default();
    let borrowed: Vec<_> = frames.iter().enumerate().map(|(n, frame)| frame.borrow(n)).collect();
    let mut rest = &borrowed[..];
    for &batch in batches.iter().cycle() {
        let (now, later) = rest.split_at(batch.clamp(1, rest.len().max(1)).min(rest.len()));
        table.observe_batch(now, &mut sink);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    let end = frames.last().map(|frame| frame.ts).unwrap_or_default();
    table.finish(end, &mut sink);
    (sink.rows, table.stats().evicted)
}

/// Without what belongs to the run and not to the session.
fn neutral(mut row: SessionRecord) -> String {
    row.uid = Default::default();
    row.flushed_at = Nanos::default();
    row.pcap_first = None;
    row.pcap_last = None;
    format!("{row:?}")
}

fn final_rows(rows: Vec<SessionRecord>) -> Vec<String> {
    let mut rows: Vec<_> = rows
        .into_iter()
        .filter(|row| row.reason.is_final())
        .map(|mut row| {
            // A session that is over may wait for a frame to notice; the last frame of the run
            // decides whether that came.
            row.reason = capture_flow::record::RowReason::Closed;
            row.update = 0;
            neutral(row)
        })
        .collect();
    rows.sort();
    rows
}

const A: (End, End) = ((1, 40_000), (2, 7_000));
const B: (End, End) = ((1, 40_000), (3, 7_000));

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn batches_change_nothing(
        steps in prop::collection::vec(step(), 1..80),
        tcp in any::<bool>(),
        batches in prop::collection::vec(1_usize..70, 1..8),
    ) {
        let frames = conversation(A, tcp, &steps);
        let whole = run(&frames, &[frames.len()], FlowConfig::default()).0;
        let parts = run(&frames, &batches, FlowConfig::default()).0;
        prop_assert_eq!(whole, parts);
    }

    #[test]
    fn sessions_do_not_disturb_each_other(
        one in prop::collection::vec(step(), 1..40),
        other in prop::collection::vec(step(), 1..40),
        tcp in any::<(bool, bool)>(),
        other_first in any::<bool>(),
        batch in 1_usize..70,
    ) {
        let (one, other) = (conversation(A, tcp.0, &one), conversation(B, tcp.1, &other));
        // Frames of one moment come in either order.
        let (first, second) = if other_first { (&other, &one) } else { (&one, &other) };
        let mut both: Vec<_> = first.iter().chain(second).cloned().collect();
        both.sort_by_key(|frame| frame.ts);
        let together = final_rows(run(&both, &[batch], FlowConfig::default()).0);
        let mut alone = final_rows(run(&one, &[one.len()], FlowConfig::default()).0);
        alone.extend(final_rows(run(&other, &[other.len()], FlowConfig::default()).0));
        alone.sort();
        prop_assert_eq!(together, alone);
    }

    #[test]
    fn any_time_at_all_is_survived(
        times in prop::collection::vec(any::<i64>(), 1..60),
        tcp in any::<bool>(),
    ) {
        let frames: Vec<_> = times
            .iter()
            .enumerate()
            .map(|(n, &ts)| {
                let src = (1 + (n % 3) as u8, 1000);
                if tcp {
                    let flags = Flags { syn: n % 2 == 0, ack: n % 3 == 0, ..Flags::default() };
                    make::tcp(Nanos(ts), src, (9, 2000), n as u32, 7, flags, b"abc")
                } else {
                    make::udp(Nanos(ts), src, (9, 2000), b"abc")
                }
            })
            .collect();
        let rows = run(&frames, &[7], FlowConfig::default()).0;
        let counted: u64 =
            rows.iter().filter(|row| row.reason.is_final()).map(|row| row.frames).sum();
        prop_assert_eq!(counted, frames.len() as u64);
    }
}

#[test]
fn a_flood_leaves_no_frame_uncounted() {
    let capacity = 500;
    let config = FlowConfig {
        table_bytes: capacity * SessionTable::bytes_per_session(),
        ..FlowConfig::default()
    };
    let syn = Flags { syn: true, ..Flags::default() };
    let frames: Vec<_> = (0..20_000_u32)
        .map(|n| {
            let src = ((n >> 12) as u8, (n & 0xfff) as u16);
            make::tcp(Nanos(i64::from(n) * 1000), src, (200, 80), n, 0, syn, b"")
        })
        .collect();
    let (rows, evicted) = run(&frames, &[64], config);
    assert_eq!(evicted, 20_000 - capacity as u64);
    assert_eq!(rows.len(), 20_000);
    assert_eq!(rows.iter().map(|row| row.frames).sum::<u64>(), 20_000);
    // The oldest went first.
    assert!(rows.windows(2).all(|pair| pair[0].ts <= pair[1].ts));
}

#[test]
fn a_living_session_shows_itself() {
    let config = FlowConfig { interim: NanosDelta::from_secs(60), ..FlowConfig::default() };
    let frames: Vec<_> =
        (0..200).map(|second| make::udp(Nanos::from_parts(second, 0), A.0, A.1, b"tick")).collect();
    let (rows, _) = run(&frames, &[10], config);
    let updates: Vec<_> = rows.iter().map(|row| (row.update, row.orig.pkts)).collect();
    assert_eq!(updates, [(0, 60), (1, 120), (2, 180), (3, 200)]);
    assert!(rows.iter().all(|row| row.uid == rows[0].uid));
}

#[test]
fn completeness_is_never_ahead_of_the_rows() {
    let mut table = SessionTable::new(FlowConfig::default()).unwrap();
    let mut sink = Collected::default();
    for second in 0..500_i64 {
        let ts = Nanos::from_parts(second, 0);
        let client = ((second % 7) as u8 + 1, 1000 + (second % 3) as u16);
        let frame = make::udp(ts, client, (100, 9), b"x");
        table.observe_batch(&[frame.borrow(second as usize)], &mut sink);
        let complete = table.complete_through(ts);
        assert!(complete <= ts);
        // No frame waits for its row for longer than the interim interval.
        assert!(ts - complete <= NanosDelta::from_secs(61), "{complete} at {ts}");
        let rowed: u64 = {
            let mut last = std::collections::HashMap::new();
            for row in &sink.rows {
                last.insert(row.uid, row.frames);
            }
            last.values().sum()
        };
        let before = (0..=second).filter(|&s| Nanos::from_parts(s, 0) < complete).count();
        assert!(rowed >= before as u64, "{rowed} frames in rows, {before} before {complete}");
    }
}

/// Two sources of one worker, polled in turn: a frame may be older than one that was taken before
/// it, and than the engine's clock.
#[test]
fn no_frame_that_came_late_is_taken_for_complete() {
    let mut table = SessionTable::new(FlowConfig::default()).unwrap();
    let mut sink = Collected::default();
    let mut come: Vec<(Nanos, u16)> = Vec::new();
    for step in 0..3_000_i64 {
        let now = Nanos::from_parts(step / 10, (step % 10) as u32 * 100_000_000);
        // By some milliseconds, now and then by seconds; new sessions and old ones.
        let late = match step % 9 {
            4 => NanosDelta::from_millis(40),
            7 if step % 2 == 0 => NanosDelta::from_millis(2_500),
            _ => NanosDelta(0),
        };
        let (ts, port) = (now - late, if step % 5 == 0 { 1 } else { 1_000 + (step / 3) as u16 });
        let frame = make::udp(ts, (1, port), (100, 9), b"x");
        table.observe_batch(&[frame.borrow(step as usize)], &mut sink);
        table.advance(now, &mut sink);
        come.push((ts, port));
        let complete = table.complete_through(now);
        assert!(now - complete <= NanosDelta::from_secs(130), "{complete} at {now}");
        // Every frame of the time that is called complete is in a row of its session.
        let rows: HashMap<_, _> = sink.rows.iter().map(|row| (row.uid, row)).collect();
        let mut told: HashMap<u16, u64> = HashMap::new();
        for row in rows.values() {
            *told.entry(row.orig.port).or_default() += row.frames;
        }
        for (ts, port) in come.iter().filter(|(ts, _)| *ts < complete) {
            let left = told.get_mut(port).and_then(|left| left.checked_sub(1).map(|l| *left = l));
            assert!(left.is_some(), "a frame of {port} at {ts}, {complete} at {now}");
        }
    }
}

/// A fragment of a datagram from one end of A to the other.
fn fragment(ts: i64, id: u16, offset: u16, more: bool, data: &[u8]) -> OwnedFrame {
    let mut frame = make::udp(Nanos(ts), A.0, A.1, b"");
    frame.bytes.truncate(34);
    frame.bytes.extend_from_slice(data);
    frame.wire_len = frame.bytes.len() as u32;
    frame.bytes[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
    frame.bytes[18..20].copy_from_slice(&id.to_be_bytes());
    let place = (offset / 8) | if more { 0x2000 } else { 0 };
    frame.bytes[20..22].copy_from_slice(&place.to_be_bytes());
    frame
}

/// A frame's IPv4 packet in two fragments.
fn in_two(whole: &OwnedFrame, id: u16, cut: usize) -> [OwnedFrame; 2] {
    let payload = &whole.bytes[34..];
    let part = |from: usize, to: usize, later: i64| {
        let mut frame = fragment(0, id, from as u16, to < payload.len(), &payload[from..to]);
        // The addresses and the protocol of the whole packet.
        frame.bytes[23..34].copy_from_slice(&whole.bytes[23..34]);
        frame.ts = whole.ts + NanosDelta(later);
        frame
    };
    [part(0, cut, 0), part(cut, payload.len(), 1_000)]
}

#[test]
fn a_tunnels_fragments_belong_to_what_is_inside_too() {
    let inner = make::udp(Nanos(0), B.0, B.1, b"inside");
    let over_udp = {
        let mut vxlan = vec![8, 0, 0, 0, 0, 0, 9, 0];
        vxlan.extend_from_slice(&inner.bytes);
        make::udp(Nanos(5), (3, 50_000), (4, 4789), &vxlan)
    };
    let mut in_ip = make::udp(Nanos(5), (3, 0), (4, 0), b"");
    in_ip.bytes.truncate(34);
    in_ip.bytes[23] = 4;
    in_ip.bytes.extend_from_slice(&inner.bytes[14..]);
    // The tunnel has a session of its own over UDP, and none over IP.
    for (whole, sessions) in [(over_udp, 2), (in_ip, 1)] {
        let frames = in_two(&whole, 1, 24);
        let mut sink = Collected::default();
        let mut table = SessionTable::new(FlowConfig::default()).unwrap();
        for (number, frame) in frames.iter().enumerate() {
            table.observe_batch(&[frame.borrow(number)], &mut sink);
        }
        table.finish(Nanos::from_parts(1, 0), &mut sink);
        assert_eq!(sink.rows.len(), sessions, "{:?}", sink.rows);
        assert_eq!(sink.rows.iter().map(|row| row.frames).sum::<u64>(), 2, "each counts once");
        let inside = sink.rows.iter().find(|row| row.resp.port == B.1.1).expect("inside");
        assert_eq!((inside.orig.pkts, inside.ts, inside.last_ts), (1, Nanos(5), Nanos(1_005)));
        let hash = capture_flow::key::flow_hash(&inside.key(false), 0);
        assert_eq!(sink.touches.len(), 2);
        for (at, flows) in &sink.touches {
            assert_eq!(flows.len(), sessions, "{at:?}");
            assert!(flows.contains(&hash), "{at:?}");
        }
        assert_eq!(inside.pcap_first.map(|at| at.offset), Some(0));
        assert_eq!(table.stats().held, 0);
    }
}

#[test]
fn fragments_that_contradict_each_other_flag_their_session() {
    let first = [&[0x9c, 0x40, 0x1b, 0x58, 0, 20, 0, 0][..], b"12345678"].concat();
    let again = [&first[..12], b"xxxx"].concat();
    let flagged = |second: &[u8], complete: bool| {
        let mut frames = vec![fragment(0, 1, 0, true, &first), fragment(1_000, 1, 0, true, second)];
        if complete {
            frames.push(fragment(2_000, 1, 16, false, b"last"));
        }
        let (rows, _) = run(&frames, &[10], FlowConfig::default());
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!(row.frames, frames.len() as u64);
        assert_eq!((row.orig.port, row.orig.pkts), if complete { (40_000, 1) } else { (0, 0) });
        row.fragment_overlap
    };
    for complete in [true, false] {
        assert!(!flagged(&first, complete), "the same bytes again");
        assert!(flagged(&again, complete));
    }
    // The last fragment itself is the one that disagrees.
    let frames = [fragment(0, 1, 0, true, &first), fragment(1_000, 1, 8, false, b"zzzzzzzzlast")];
    let (rows, _) = run(&frames, &[10], FlowConfig::default());
    assert!(rows[0].fragment_overlap && rows[0].orig.pkts == 1, "{rows:?}");
}
