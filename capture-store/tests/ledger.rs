//! The ledger's chain, through the public interface.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use capture_flow::time::Nanos;
use capture_store::ledger::{
    Clock, Interface, LedgerLine, LedgerWriter, Link, Nic, Note, Queue, ReplayedFile, Rows,
    SealedFile, Silence, Socket, Worker, Xdp, read,
};
use capture_store::recover::RecoveryReport;
use capture_store::{DropReason, OwnedStore, RowLossReason, RunId};
use proptest::prelude::*;

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;
const START: i64 = 1_170_374_400 * SECOND; // 2007-02-02T00:00:00Z

fn small_store(dir: &Path) -> OwnedStore {
    OwnedStore::open_or_create(&dir.join("store"), Some("test")).unwrap()
}

fn line(interval: u64, from: i64, to: i64) -> LedgerLine {
    let run = RunId::parse("20070202T000000Z-00000001").unwrap();
    LedgerLine::new("test", &run, interval, Nanos(from), Nanos(to))
}

fn hash(line: &str) -> String {
    blake3::hash(line.as_bytes()).to_hex().to_string()
}

#[test]
fn the_chain_runs_across_days_runs_and_into_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let spans = [(0, 1), (DAY - 1, DAY + 1), (DAY + 1, DAY + 2), (-DAY, -DAY + 1), (5, 6)];
    let mut heads = Vec::new();
    for (number, (from, to)) in spans.into_iter().enumerate() {
        // A writer a line: every start has to find the chain's end.
        let mut writer = LedgerWriter::open(&store).unwrap();
        let mut line = line(number as u64, START + from, START + to);
        heads.push(writer.append(&mut line).unwrap());
        assert_eq!(writer.head(), heads[number]);
        assert_eq!(line.seq, number as u64);
    }
    let mut lines = Vec::new();
    for day in ["2007-02-01", "2007-02-02", "2007-02-03"] {
        let path = store.layout().ledger("test").join(format!("date={day}.ndjson"));
        lines.extend(fs::read_to_string(path).unwrap().lines().map(str::to_owned));
    }
    let parse = |text: &String| serde_json::from_str::<LedgerLine>(text).unwrap();
    lines.sort_by_key(|text| parse(text).seq);
    assert_eq!(lines.iter().map(|text| hash(text)).collect::<Vec<_>>(), heads);
    assert_eq!(parse(&lines[0]).prev, "0".repeat(64));
    for pair in lines.windows(2) {
        assert_eq!(parse(&pair[1]).prev, hash(&pair[0]));
    }
    let between = |from: i64, to: i64| -> Vec<u64> {
        let read = read(store.store(), Nanos(START + from), Nanos(START + to)).unwrap();
        assert_eq!(read.damage, []);
        read.lines.iter().map(|line| line.seq).collect()
    };
    assert_eq!(between(-2 * DAY, 2 * DAY), [0, 1, 2, 3, 4]);
    assert_eq!(between(0, 0), [0]);
    assert_eq!(between(DAY - 1, DAY - 1), [1], "it lies in the file of the next day");
    assert_eq!(between(10, DAY - 2), [0_u64; 0]);
    assert_eq!(between(-DAY, 6), [0, 3, 4]);
}

#[test]
fn a_line_torn_anywhere_is_reported_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut writer = LedgerWriter::open(&store).unwrap();
    writer.append(&mut line(0, START, START + 1)).unwrap();
    let path = store.layout().ledger_day("test", Nanos(START));
    let first = fs::read(&path).unwrap();
    writer.append(&mut line(1, START + 1, START + 2)).unwrap();
    let both = fs::read(&path).unwrap();
    for cut in (first.len()..=both.len()).step_by(7).chain([both.len() - 1, both.len()]) {
        fs::write(&path, &both[..cut]).unwrap();
        let torn = cut > first.len() && cut < both.len() - 1;
        let now = read(store.store(), Nanos::MIN, Nanos::MAX).unwrap();
        assert_eq!(now.damage.len(), usize::from(torn), "cut at {cut}");
        assert!(now.damage.iter().all(|damage| damage.torn_end && damage.line == 2));

        let mut next = line(2, START + 2, START + 3);
        LedgerWriter::open(&store).unwrap().append(&mut next).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let before = text.lines().rev().nth(1).unwrap();
        assert_eq!(next.prev, hash(before), "cut at {cut}");
        let bytes = (cut - first.len()) as u64;
        let told = next.notes.contains(&Note::TornLine { bytes });
        assert_eq!(told, torn, "cut at {cut}: {:?}", next.notes);
        let then = read(store.store(), Nanos::MIN, Nanos::MAX).unwrap();
        let seqs: Vec<u64> = then.lines.iter().map(|line| line.seq).collect();
        let expected: &[u64] = match cut {
            _ if cut == first.len() => &[0, 1],
            // The torn line keeps its place in the chain.
            _ if torn => &[0, 2],
            _ => &[0, 1, 2],
        };
        assert_eq!(seqs, expected, "cut at {cut}");
    }
}

#[test]
fn rubbish_between_lines_is_reported_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut writer = LedgerWriter::open(&store).unwrap();
    writer.append(&mut line(0, START, START + 1)).unwrap();
    let path = store.layout().ledger_day("test", Nanos(START));
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"\xff\xfe\x00 nonsense\n{\"v\":1}\n").unwrap();
    writer.append(&mut line(1, START + 1, START + 2)).unwrap();
    let read = read(store.store(), Nanos::MIN, Nanos::MAX).unwrap();
    assert_eq!(read.lines.len(), 2);
    let places: Vec<(u64, bool)> = read.damage.iter().map(|d| (d.line, d.torn_end)).collect();
    assert_eq!(places, [(2, false), (3, false)]);
}

fn any_text() -> impl Strategy<Value = String> {
    ".{0,12}"
}

prop_compose! {
    fn any_queue()(n in any::<[u64; 16]>(), queue: u32, worker: Option<u16>) -> Queue {
        Queue {
            queue, worker,
            xdp: Xdp {
                seen: n[0], seen_bytes: n[1], steered: n[2], passed: n[3], no_socket: n[4],
                aborted: n[5], unstamped: n[6],
            },
            in_ring_before: n[7], in_ring_after: n[8], received: n[9], ring_losses: n[10],
            socket: Socket {
                rx_dropped: n[11], rx_ring_full: n[12], rx_fill_ring_empty_descs: n[13],
                rx_invalid_descs: n[14],
            },
        }
    }
}

fn any_note() -> impl Strategy<Value = Note> {
    let file = (any_text(), any::<[u64; 2]>(), any::<Option<[u8; 4]>>(), any::<[i64; 2]>());
    let file = file.prop_map(|(path, n, hash, ts)| SealedFile {
        path,
        bytes: n[0],
        blake3: hash.map(|hash| format!("{hash:?}")),
        items: n[1],
        first_ts: Nanos(ts[0]),
        last_ts: Nanos(ts[1]),
    });
    let file = file.boxed();
    prop_oneof![
        (any_text(), any_text(), any::<Option<u8>>()).prop_map(|(program, policy, hash)| {
            let hex = |hash| format!("{hash:02x}");
            Note::Start { program, policy, identity: hash.map(hex) }
        }),
        Just(Note::CleanStop),
        any::<u64>().prop_map(|bytes| Note::TornLine { bytes }),
        any_text().prop_map(|text| Note::Said { text }),
        file.clone().prop_map(Note::Sealed),
        file.prop_map(Note::Retired),
        (any::<[u64; 4]>(), any_text(), any::<Option<i64>>()).prop_map(|(n, left, at)| {
            Note::Recovered(RecoveryReport {
                segments: n[0],
                frames: n[1],
                rows: n[2],
                torn_bytes: n[3],
                left: vec![left],
                last_sign: at.map(Nanos),
                ..RecoveryReport::default()
            })
        }),
    ]
}

prop_compose! {
    fn any_line()(
        times in any::<[i64; 5]>(), n in any::<[u64; 12]>(), up: bool, nic: bool, name in any_text(),
        queues in prop::collection::vec(any_queue(), 0..3),
        notes in prop::collection::vec(any_note(), 0..4), complete: Option<i64>,
    ) -> LedgerLine {
        let mut line = line(n[0], times[0], times[1]);
        line.complete_through = complete.map(Nanos);
        line.interfaces.push(Interface {
            name: name.clone(), backend: name.clone(),
            link: Link { up, changes: n[1], down_ns: n[2] },
            nic: nic.then_some(Nic {
                rx_packets: n[3], rx_bytes: n[4], rx_dropped: n[5], rx_missed: n[6], rx_errors: n[7],
            }),
            queues,
        });
        line.files.push(ReplayedFile { name: name.clone(), received: n[8], cut: up });
        line.workers.push(Worker {
            worker: 1, received: n[9], undecodable: [(name.clone(), n[10])].into(),
            dropped: DropReason::ALL.into_iter().map(|reason| (reason, n[11])).collect(),
            ..Worker::default()
        });
        line.rows = Rows {
            written: n[0],
            lost: RowLossReason::ALL.into_iter().map(|reason| (reason, n[1])).collect(),
        };
        line.clock = nic.then(|| Clock { source: name, stepped_ns: times[2] });
        line.silence = up.then_some(Silence { from: Nanos(times[3]), to: Nanos(times[4]) });
        line.notes = notes;
        line
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_line_comes_back(mut line in any_line()) {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        LedgerWriter::open(&store).unwrap().append(&mut line).unwrap();
        line.to = line.to.max(line.from);
        let text = fs::read_dir(store.layout().ledger("test")).unwrap().next().unwrap().unwrap();
        let text = fs::read_to_string(text.path()).unwrap();
        prop_assert_eq!(text.matches('\n').count(), 1);
        let mut read: LedgerLine = serde_json::from_str(&text).unwrap();
        read.to = read.to.max(read.from);
        prop_assert_eq!(read, line);
    }
}
