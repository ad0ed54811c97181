//! Two directions at two workers give the record that one worker would have given.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;
#[path = "common/make.rs"]
mod make;

use capture_flow::config::FlowConfig;
use capture_flow::join::{JoinConfig, Joiner};
use capture_flow::key::Protocol;
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
    let wait = prop_oneof![6 => 1_u32..900, 1 => 900_u32..20_000, 1 => 20_000_u32..70_000];
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

/// The last row of every session without what belongs to the run, and that its rows are numbered
/// without a gap.
fn last_records(rows: &[SessionRecord]) -> Vec<SessionRecord> {
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
    for row in &mut last {
        row.uid = Default::default();
        row.update = 0;
        row.flushed_at = Nanos::default();
        row.reason = RowReason::Closed;
        row.tunnel_parents = None;
        row.pcap_first = None;
        row.pcap_last = None;
    }
    last
}

/// The same as text, sorted.
fn last_rows(rows: &[SessionRecord]) -> Vec<String> {
    let mut rows: Vec<_> = last_records(rows).iter().map(|row| format!("{row:?}")).collect();
    rows.sort();
    rows
}

fn join<const WORKERS: usize>(
    halves: [Vec<SessionUpdate>; WORKERS],
    capacity: usize,
) -> (Vec<SessionRecord>, Joiner) {
    let workers = WORKERS as u16;
    let mut joiner = Joiner::new(JoinConfig { workers, capacity, ..JoinConfig::default() });
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
        prop_assert_eq!(joiner.stats().held, 0);
        if last_records(&rows).iter().all(|row| row.join_certain) {
            prop_assert_eq!(last_rows(&rows), last_rows(&one));
        } else {
            // Somebody spoke within a second of the idle limit, or long after a close.
            let frames = |rows: &[SessionRecord]| -> u64 {
                rows.iter().filter(|row| row.reason.is_final()).map(|row| row.frames).sum()
            };
            prop_assert_eq!(frames(&rows), frames(&one));
            let waits = plan.turns.iter().any(|turn| turn.2 >= 5_000);
            prop_assert!(waits, "doubted for no reason");
        }
    }
}

/// Two workers and the joiner, second by second. Holds the joiner to its promise: a frame from before
/// the moment through which the log is complete is in a row, and that moment keeps up.
fn promises_are_kept(halves: [&[OwnedFrame]; 2], interim: NanosDelta) {
    let table = |worker: u16| {
        SessionTable::new(FlowConfig { worker, halves: true, interim, ..FlowConfig::default() })
    };
    let config = JoinConfig { workers: 2, ..JoinConfig::default() };
    let mut joiner = Joiner::new(config);
    let mut tables = [table(0).unwrap(), table(1).unwrap()];
    let mut rest = halves.map(|frames| frames.iter().enumerate().peekable());
    let end = halves.iter().flat_map(|half| half.iter()).map(|frame| frame.ts).max().unwrap();
    let mut rows = std::collections::HashMap::new();
    for second in 0..=end.0 / 1_000_000_000 + 10 {
        let now = Nanos::from_parts(second, 0);
        let mut out = |row: SessionRecord| {
            rows.insert(row.uid, row.frames);
        };
        let mut through = now;
        for (worker, table) in (0..).zip(&mut tables) {
            let mut sink = Collected::default();
            while let Some((number, frame)) = rest[worker].next_if(|(_, frame)| frame.ts <= now) {
                table.observe_batch(&[frame.borrow(number)], &mut sink);
            }
            table.advance(now, &mut sink);
            for update in sink.updates {
                joiner.offer(worker as u16, update, &mut out);
            }
            through = through.min(table.complete_through(now));
        }
        joiner.advance(now, &mut out);
        let through = joiner.complete_through(through);
        let due = halves.iter().flat_map(|half| half.iter()).filter(|frame| frame.ts < through);
        let (told, due) = (rows.values().sum::<u64>(), due.count() as u64);
        assert!(told >= due, "{second} s: of {due} frames {told} are in the log");
        let late = now - through;
        let most = NanosDelta(interim.0 + config.wait.0 + 2_000_000_000);
        assert!(late <= most, "{second} s: complete through {through:?} only");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_promised_of_halves_is_in_the_log(plan in plan(), interim in 1_i64..8) {
        let frames = frames(&plan);
        let (there, back): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| frame.bytes[29] == CLIENT.0);
        promises_are_kept([&there, &back], NanosDelta::from_secs(interim));
    }
}

/// A stream that goes one way, which each worker's row every second tells of again.
#[test]
fn a_half_that_goes_on_alone_holds_no_promise_up() {
    let stream: Vec<_> = (0..600)
        .map(|tenth| make::udp(Nanos(tenth * 100_000_000), CLIENT, SERVER, b"there"))
        .collect();
    promises_are_kept([&stream, &[]], NanosDelta::from_secs(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Data that the sensor lost is missed by the join, too; only the place of the letter that
    /// says so is unknown, and the row says that.
    #[test]
    fn halves_miss_what_one_worker_misses(
        turns in prop::collection::vec((any::<bool>(), 1_u8..40, 1_u32..50), 8..60),
        lost in prop::collection::vec(any::<prop::sample::Index>(), 1..20),
    ) {
        let plan = Plan { tcp: true, handshake: true, turns, ending: Ending::ClientCloses };
        let mut frames = frames(&plan);
        let mut gone = 0;
        for index in lost {
            // Of the frames between the handshake and the close, those with data.
            let at = 3 + index.index(frames.len() - 6);
            if frames[at].bytes.len() > 54 {
                frames.remove(at);
                gone += 1;
            }
        }
        let one: Vec<_> = updates(&frames, 0, false).into_iter().map(|u| u.record).collect();
        let (there, back): (Vec<_>, Vec<_>) =
            frames.into_iter().partition(|frame| frame.bytes[29] == CLIENT.0);
        let (rows, _) = join([updates(&there, 0, true), updates(&back, 1, true)], 100);
        let (one, rows) = (last_records(&one), last_records(&rows));
        let ([one], [joined]) = (one.as_slice(), rows.as_slice()) else {
            panic!("{one:?} {rows:?}");
        };
        prop_assert_eq!(joined.missed_bytes, one.missed_bytes);
        prop_assert_eq!(joined.missed_bytes > 0, gone > 0);
        prop_assert_eq!(joined.join_certain, gone == 0);
        let letters = |row: &SessionRecord| {
            let mut letters = row.history.as_str().as_bytes().to_vec();
            letters.sort_unstable();
            // A hole that was acknowledged in two steps counts as two, for whoever sees it.
            letters.dedup();
            letters
        };
        prop_assert_eq!(letters(joined), letters(one));
        let history = one.history;
        let joined = SessionRecord { history, join_certain: true, ..joined.clone() };
        prop_assert_eq!(&joined, one);
    }
}

/// A side that speaks once a minute, each time a moment before the session would be over: its half
/// ends every time, the session does not.
#[test]
fn a_half_that_falls_silent_at_its_limit_goes_on() {
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for minute in 0..10 {
        let ts = Nanos::from_parts(minute * 60, 0);
        there.push(make::udp(ts, CLIENT, SERVER, b"there"));
        back.push(make::udp(ts + NanosDelta::from_millis(5), SERVER, CLIENT, b"back"));
    }
    let (rows, _) = join([updates(&there, 0, true), updates(&back, 1, true)], 100);
    let [row] = last_records(&rows).try_into().unwrap();
    assert_eq!((row.orig.pkts, row.resp.pkts), (10, 10));
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

/// A conversation that is let go because others need its place goes on under its identity, and its
/// rows under their numbers: none hides a later one.
#[test]
fn rows_go_on_where_a_conversation_was_let_go() {
    let ports = 0..5_u16;
    let second = |second: i64| Nanos::from_parts(second, 0);
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for time in (0..600).step_by(10) {
        for port in ports.clone() {
            there.push(make::udp(second(time), (1, port), (2, 7_000), b"there"));
            back.push(make::udp(second(time + 5), (2, 7_000), (1, port), b"back"));
        }
    }
    let (rows, joiner) = join([updates(&there, 0, true), updates(&back, 1, true)], 2);
    assert!(joiner.stats().evicted > 0);
    let mut sessions = std::collections::HashMap::<_, Vec<&SessionRecord>>::new();
    for row in &rows {
        sessions.entry(row.uid).or_default().push(row);
    }
    assert_eq!(sessions.len(), ports.len());
    for rows in sessions.values() {
        assert!(rows.windows(2).all(|pair| pair[0].update < pair[1].update), "{rows:?}");
        let last = rows.iter().position(|row| row.reason.is_final());
        assert_eq!(last, Some(rows.len() - 1), "{rows:?}");
        // Where a half is lacking that was known before, the row says so.
        let half = |row: &&&SessionRecord| row.orig.pkts == 0 || row.resp.pkts == 0;
        assert!(rows.iter().skip(1).filter(half).all(|row| !row.join_certain), "{rows:?}");
    }
}

/// Datagrams there and back every 10 s for ten minutes. `worker` says who sees which: by whether it
/// goes back, and the time in seconds.
fn moving(worker: impl Fn(bool, i64) -> usize) -> [Vec<OwnedFrame>; 3] {
    let mut seen = [Vec::new(), Vec::new(), Vec::new()];
    for time in (0..600).step_by(10) {
        let ts = Nanos::from_parts(time, 0);
        seen[worker(false, time)].push(make::udp(ts, CLIENT, SERVER, b"there"));
        let ts = ts + NanosDelta::from_secs(5);
        seen[worker(true, time)].push(make::udp(ts, SERVER, CLIENT, b"back"));
    }
    seen
}

/// The newest row of each session, whose numbers only grow and which has none after its last.
fn join_moving(seen: &[Vec<OwnedFrame>; 3]) -> Vec<SessionRecord> {
    let halves = [0, 1, 2].map(|worker| updates(&seen[worker], worker as u16, true));
    let (rows, joiner) = join(halves, 100);
    assert_eq!(joiner.stats().held, 0);
    let mut newest: Vec<SessionRecord> = Vec::new();
    for row in rows {
        match newest.iter_mut().find(|other| other.uid == row.uid) {
            Some(before) => {
                assert!(before.update < row.update, "{before:?} {row:?}");
                assert!(!before.reason.is_final(), "{before:?} {row:?}");
                *before = row;
            }
            None => newest.push(row),
        }
    }
    assert!(newest.iter().all(|row| row.reason.is_final()), "{newest:?}");
    newest
}

/// Frames go to other workers while a session lives, as when queues are spread anew: no row hides
/// a later one, and every frame counts once.
#[test]
fn sessions_survive_a_change_of_workers() {
    // One direction moves: it is one session all the same.
    let rows = join_moving(&moving(|back, time| match (back, time) {
        (true, _) => 1,
        (false, 0..300) => 0,
        (false, _) => 2,
    }));
    let [row] = rows.try_into().unwrap();
    assert_eq!((row.orig.pkts, row.resp.pkts, row.frames), (60, 60, 120));

    // A worker that saw one direction gets the other, too: the other worker's part stays a session
    // of its own.
    let rows = join_moving(&moving(|back, time| usize::from(back && time < 300)));
    assert_eq!(rows.iter().map(|row| row.frames).sum::<u64>(), 120, "{rows:#?}");
    assert_eq!(rows.len(), 2, "{rows:#?}");

    // The answers only begin late.
    let [mut there, ..] = moving(|_, _| 0);
    there.retain(|frame| frame.bytes[29] == CLIENT.0 || frame.ts > Nanos::from_parts(300, 0));
    let rows = join_moving(&[there, Vec::new(), Vec::new()]);
    let [row] = rows.try_into().unwrap();
    assert_eq!((row.orig.pkts, row.resp.pkts), (60, 30));
}

/// A flood of lone halves does not take the place of conversations that were joined.
#[test]
fn a_scan_does_not_interrupt_conversations() {
    let second = |second: i64| Nanos::from_parts(second, 0);
    let syn = Flags { syn: true, ..Flags::default() };
    let (mut there, mut back) = (Vec::new(), Vec::new());
    for time in 0..300 {
        there.push(make::udp(second(time), (1, 9), (2, 7_000), b"there"));
        back.push(make::udp(second(time), (2, 7_000), (1, 9), b"back"));
        let ports = 0..20;
        there.extend(
            ports.map(|port| make::tcp(second(time), (3, port), (4, time as u16), 1, 0, syn, b"")),
        );
    }
    let (rows, joiner) = join([updates(&there, 0, true), updates(&back, 1, true)], 10);
    assert!(joiner.stats().evicted > 1_000);
    let rows: Vec<_> = rows.iter().filter(|row| row.protocol == Protocol::UDP).collect();
    assert!(rows.iter().all(|row| row.uid == rows[0].uid && row.join_certain));
    assert_eq!(rows.last().map(|row| (row.orig.pkts, row.resp.pkts)), Some((300, 300)));
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

/// Why joined records are not those of one worker, as docs/CONFORMANCE.md lists it: sessions of one
/// worker, and joined records in their place.
const UNEQUAL: [(&str, usize, usize); 3] = [
    ("the place of a gap's letter in the history", 2, 2),
    ("refused, and tried again at once", 6, 2),
    ("frames later than 5 s after a side closed", 7, 4),
];

/// Which of [`UNEQUAL`] a joined record is, with the sessions in whose place it stands.
fn class(joined: &SessionRecord, one: &[SessionRecord]) -> usize {
    let mut text = joined.history.as_str().to_owned();
    text.make_ascii_uppercase();
    if let [one] = one {
        let history = one.history;
        let same = SessionRecord { history, join_certain: true, ..joined.clone() };
        assert_eq!(&same, one, "only the history differs");
        assert!(text.contains('G'), "{joined:?}");
        0
    } else if text.bytes().all(|letter| b"SR".contains(&letter)) {
        1
    } else {
        2
    }
}

/// Real traces, each direction at a worker of its own: nearly every session is the one that a
/// single worker tells. The others say so.
#[test]
fn real_traces_survive_the_split() {
    let Some(folder) = common::traces() else {
        println!("no reference traces: set STILLWIRE_TRACES to the folder with zeek.json");
        return;
    };
    let (mut equal, mut all, mut doubted) = (0, 0, 0);
    let mut unequal = UNEQUAL.map(|(why, ..)| (why, 0, 0));
    let captures = std::fs::read_dir(folder.join("zeek")).unwrap();
    let mut captures: Vec<_> = captures.map(|entry| entry.unwrap().path()).collect();
    captures.sort();
    for path in captures {
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
        let (mut rows, mut one) = (last_records(&rows), last_records(&one));
        all += one.len();
        rows.retain(|row| {
            let sure = SessionRecord { join_certain: true, ..row.clone() };
            let Some(at) = one.iter().position(|other| *other == sure) else { return true };
            one.swap_remove(at);
            equal += 1;
            doubted += usize::from(!row.join_certain);
            false
        });
        let key = |row: &SessionRecord| row.key(false);
        for row in &rows {
            assert!(!row.join_certain, "{}: {row:?} of {one:?}", path.display());
            let of_key = |other: &&SessionRecord| key(other) == key(row);
            let theirs: Vec<_> = one.iter().filter(of_key).cloned().collect();
            let class = &mut unequal[class(row, &theirs)];
            class.2 += 1;
            // Counted with the first record of their key.
            let first = rows.iter().find(|other| key(other) == key(row));
            class.1 += if first == Some(row) { theirs.len() } else { 0 };
        }
        let lost = one.iter().filter(|one| rows.iter().all(|row| key(row) != key(one)));
        assert_eq!(lost.count(), 0, "{}", path.display());
    }
    println!("{equal} of {all} sessions equal after joining, {doubted} of them doubted");
    for (why, sessions, records) in unequal {
        println!("{sessions} sessions in {records} records: {why}");
    }
    assert_eq!(unequal, UNEQUAL);
    assert_eq!(equal + unequal.iter().map(|(_, sessions, _)| sessions).sum::<usize>(), all);
}
