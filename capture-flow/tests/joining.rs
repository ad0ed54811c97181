//! Two directions at two workers give the record that one worker would have given.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;
#[path = "common/make.rs"]
mod make;

use capture_flow::config::FlowConfig;
use capture_flow::join::{JoinConfig, Joiner};
use capture_flow::record::{RowReason, SessionRecord};
use capture_flow::sink::SessionUpdate;
use capture_flow::table::SessionTable;
use capture_flow::time::{Nanos, NanosDelta};
use common::{Collected, OwnedFrame};
use make::{End, Flags};
use proptest::prelude::*;

const CLIENT: End = (1, 40_000);
const SERVER: End = (2, 7_000);

/// How a made TCP session ends.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Open,
    ClientCloses,
    ServerCloses,
    ClientResets,
    ServerResets,
    Refused,
}

#[derive(Clone, Debug)]
struct Plan {
    tcp: bool,
    handshake: bool,
    /// Who sends, how much, and how long after the last frame in milliseconds.
    turns: Vec<(bool, u8, u32)>,
    ending: Ending,
}

fn plan() -> impl Strategy<Value = Plan> {
    let wait = prop_oneof![6 => 1_u32..900, 1 => 900_u32..20_000];
    let turns = prop::collection::vec((any::<bool>(), 0_u8..40, wait), 1..20);
    let ending = prop::sample::select(vec![
        Ending::Open,
        Ending::ClientCloses,
        Ending::ServerCloses,
        Ending::ClientResets,
        Ending::ServerResets,
        Ending::Refused,
    ]);
    (any::<bool>(), prop::bool::weighted(0.9), turns, ending)
        .prop_map(|(tcp, handshake, turns, ending)| Plan { tcp, handshake, turns, ending })
}

struct Wire {
    frames: Vec<OwnedFrame>,
    now: Nanos,
    next: [u32; 2],
}

impl Wire {
    fn say(&mut self, back: bool, flags: Flags, len: usize) {
        let (src, dst) = if back { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
        let (seq, ack) = (self.next[usize::from(back)], self.next[usize::from(!back)]);
        let payload = vec![b'.'; len];
        self.frames.push(make::tcp(self.now, src, dst, seq, ack, flags, &payload));
        let taken = len as u32 + u32::from(flags.syn) + u32::from(flags.fin);
        self.next[usize::from(back)] = seq.wrapping_add(taken);
        self.now = self.now + NanosDelta::from_millis(1);
    }
}

fn frames(plan: &Plan) -> Vec<OwnedFrame> {
    let mut wire =
        Wire { frames: Vec::new(), now: Nanos::from_parts(1_000, 0), next: [7, u32::MAX - 30] };
    let ack = Flags { ack: true, ..Flags::default() };
    if !plan.tcp {
        for &(back, len, wait) in &plan.turns {
            wire.now = wire.now + NanosDelta::from_millis(i64::from(wait));
            let (src, dst) = if back { (SERVER, CLIENT) } else { (CLIENT, SERVER) };
            wire.frames.push(make::udp(wire.now, src, dst, &vec![b'.'; usize::from(len)]));
        }
        return wire.frames;
    }
    if plan.handshake {
        wire.say(false, Flags { syn: true, ..Flags::default() }, 0);
        if matches!(plan.ending, Ending::Refused) {
            wire.say(true, Flags { rst: true, ..ack }, 0);
            return wire.frames;
        }
        wire.say(true, Flags { syn: true, ..ack }, 0);
    }
    wire.say(false, ack, 0);
    for &(back, len, wait) in &plan.turns {
        wire.now = wire.now + NanosDelta::from_millis(i64::from(wait));
        wire.say(back, ack, usize::from(len) + 1);
        wire.say(!back, ack, 0);
    }
    let fin = Flags { fin: true, ..ack };
    let rst = Flags { rst: true, ..ack };
    match plan.ending {
        Ending::Open | Ending::Refused => {}
        Ending::ClientCloses | Ending::ServerCloses => {
            let back = matches!(plan.ending, Ending::ServerCloses);
            wire.say(back, fin, 0);
            wire.say(!back, fin, 0);
            wire.say(back, ack, 0);
        }
        Ending::ClientResets => wire.say(false, rst, 0),
        Ending::ServerResets => wire.say(true, rst, 0),
    }
    wire.frames
}

/// What a worker tells while the clock runs, by the second.
fn updates(frames: &[OwnedFrame], worker: u16, halves: bool) -> Vec<SessionUpdate> {
    let config = FlowConfig { worker, halves, ..FlowConfig::default() };
    let mut table = SessionTable::new(config).unwrap();
    let mut sink = Collected::default();
    let mut rest = frames.iter().enumerate().peekable();
    for second in 0..3_000 {
        let now = Nanos::from_parts(second, 0);
        while let Some((number, frame)) = rest.next_if(|(_, frame)| frame.ts <= now) {
            table.observe_batch(&[frame.borrow(number)], &mut sink);
        }
        table.advance(now, &mut sink);
    }
    table.finish(Nanos::from_parts(3_000, 0), &mut sink);
    sink.updates
}

/// The last row of every session, and that its rows are numbered without a gap.
fn last_rows(rows: &[SessionRecord]) -> Vec<String> {
    let mut last: Vec<SessionRecord> = Vec::new();
    for row in rows {
        match last.iter_mut().find(|other| other.uid == row.uid) {
            Some(other) => {
                assert_eq!(row.update, other.update + 1);
                *other = row.clone();
            }
            None => {
                assert_eq!(row.update, 0);
                last.push(row.clone());
            }
        }
    }
    assert!(last.iter().all(|row| row.reason.is_final()));
    let mut last: Vec<_> = last
        .into_iter()
        .map(|mut row| {
            row.uid = Default::default();
            row.update = 0;
            row.flushed_at = Nanos::default();
            row.reason = RowReason::Closed;
            row.tunnel_parents = None;
            row.pcap_first = None;
            row.pcap_last = None;
            format!("{row:?}")
        })
        .collect();
    last.sort();
    last
}

fn join(halves: [Vec<SessionUpdate>; 2], capacity: usize) -> (Vec<SessionRecord>, Joiner) {
    let mut joiner = Joiner::new(JoinConfig { workers: 2, capacity, ..JoinConfig::default() });
    let mut rows = Vec::new();
    let mut all: Vec<_> = halves
        .into_iter()
        .enumerate()
        .flat_map(|(worker, updates)| updates.into_iter().map(move |update| (worker, update)))
        .collect();
    all.sort_by_key(|(_, update)| update.record.flushed_at);
    let mut rest = all.into_iter().peekable();
    let mut out = |row| rows.push(row);
    for second in 0..=3_000 {
        let now = Nanos::from_parts(second, 0);
        while let Some((worker, update)) = rest.next_if(|(_, u)| u.record.flushed_at <= now) {
            joiner.offer(worker as u16, update, &mut out);
        }
        joiner.advance(now, &mut out);
        assert!(joiner.complete_through(now) <= now);
    }
    joiner.finish(Nanos::from_parts(3_000, 0), &mut out);
    (rows, joiner)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn halves_give_what_one_worker_gives(plan in plan(), swapped in any::<bool>()) {
        let frames = frames(&plan);
        let one: Vec<_> = updates(&frames, 0, false).into_iter().map(|u| u.record).collect();
        let (there, back): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| frame.bytes[29] == CLIENT.0);
        let (there, back) = if swapped { (back, there) } else { (there, back) };
        let halves = [updates(&there, 0, true), updates(&back, 1, true)];
        let (rows, joiner) = join(halves, 100);
        prop_assert_eq!(last_rows(&rows), last_rows(&one));
        prop_assert_eq!(joiner.stats().held, 0);
    }
}

#[test]
fn whole_sessions_are_not_delayed() {
    let plan = Plan {
        tcp: true,
        handshake: true,
        turns: vec![(false, 5, 10)],
        ending: Ending::ClientCloses,
    };
    let mut joiner = Joiner::new(JoinConfig { workers: 2, ..JoinConfig::default() });
    let mut rows = 0;
    let mut offered = 0;
    for update in updates(&frames(&plan), 0, true) {
        offered += 1;
        joiner.offer(0, update, &mut |_| rows += 1);
    }
    assert_eq!((rows, joiner.stats().held), (offered, 0));
}

#[test]
fn halves_beyond_the_capacity_are_let_go() {
    let syn = Flags { syn: true, ..Flags::default() };
    let frames: Vec<_> = (0..1000_u16)
        .map(|port| make::tcp(Nanos(i64::from(port)), (1, port), (2, 80), 1, 0, syn, b""))
        .collect();
    let (rows, joiner) = join([updates(&frames, 0, true), Vec::new()], 10);
    assert_eq!(joiner.stats().evicted, 990);
    let last: Vec<_> = rows.iter().filter(|row| row.reason.is_final()).collect();
    assert_eq!(last.len(), 1000);
    assert_eq!(last.iter().map(|row| row.frames).sum::<u64>(), 1000);
}

/// Which way a plain IPv4 or IPv6 frame goes: `None` for any other.
fn goes_up(frame: &OwnedFrame) -> Option<bool> {
    let (from, len) = match frame.bytes.get(12..14)? {
        [0x08, 0x00] => (26, 4),
        [0x86, 0xdd] => (22, 16),
        _ => return None,
    };
    let src = frame.bytes.get(from..from + len)?;
    let dst = frame.bytes.get(from + len..from + 2 * len)?;
    Some(src < dst)
}

/// Real traces, each direction at a worker of its own: nearly every session is the one that a
/// single worker tells. What halves cannot tell is listed in docs/CONFORMANCE.md.
#[test]
fn real_traces_survive_the_split() {
    let Some(folder) = common::traces() else {
        println!("no reference traces: set STILLWIRE_TRACES to the folder with zeek.json");
        return;
    };
    let (mut equal, mut all) = (0, 0);
    for entry in std::fs::read_dir(folder.join("zeek")).unwrap() {
        let path = entry.unwrap().path();
        if !path.extension().is_some_and(|ext| ext == "pcap" || ext == "pcapng") {
            continue;
        }
        let mut frames = common::read_capture(&path);
        frames.retain(|frame| goes_up(frame).is_some());
        let Some(first) = frames.first().map(|frame| frame.ts) else { continue };
        // The clock of these tests runs from 0 to 3,000 s.
        for frame in &mut frames {
            frame.ts = Nanos::from_parts(1_000, 0) + (frame.ts - first);
        }
        if frames.iter().any(|frame| frame.ts > Nanos::from_parts(1_500, 0)) {
            continue;
        }
        frames.sort_by_key(|frame| frame.ts);
        let count = frames.len() as u64;
        let one: Vec<_> = updates(&frames, 0, false).into_iter().map(|u| u.record).collect();
        let (up, down): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| goes_up(frame) == Some(true));
        let (rows, _) = join([updates(&up, 0, true), updates(&down, 1, true)], 1 << 16);
        let frames: u64 =
            rows.iter().filter(|row| row.reason.is_final()).map(|row| row.frames).sum();
        assert_eq!(frames, count, "{}", path.display());
        let (rows, mut one) = (last_rows(&rows), last_rows(&one));
        all += one.len();
        for row in &rows {
            if let Some(at) = one.iter().position(|other| other == row) {
                one.swap_remove(at);
                equal += 1;
            }
        }
    }
    println!("{equal} of {all} sessions equal after joining");
    assert!(equal * 100 >= all * 90, "{equal} of {all}");
}
