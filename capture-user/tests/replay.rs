//! `stillwired replay` from outside: captures made here, the program's own store read back.

// A test fails by panicking, its helpers as well.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow::array::AsArray;
use arrow::datatypes::TimestampNanosecondType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use capture_flow::time::Nanos;
use capture_store::Store;
use capture_store::ledger::{self, BlindCause, LedgerLine, Note, imbalances};
use capture_store::pcap::SegmentReader;
use capture_store::sessions::{Scan, scan};
use tempfile::TempDir;

/// A capture in memory: nanosecond pcap, Ethernet.
struct Capture(Vec<u8>);

impl Capture {
    fn new() -> Self {
        let mut file = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
        file.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0]);
        Self(file)
    }

    fn frame(&mut self, ns: u64, bytes: &[u8]) {
        let len = u32::try_from(bytes.len()).unwrap();
        self.0.extend(u32::try_from(ns / 1_000_000_000).unwrap().to_le_bytes());
        self.0.extend(u32::try_from(ns % 1_000_000_000).unwrap().to_le_bytes());
        self.0.extend(len.to_le_bytes());
        self.0.extend(len.to_le_bytes());
        self.0.extend(bytes);
    }

    /// `count` UDP datagrams a millisecond apart, spread over `sessions` source ports.
    fn udp(start_ns: u64, count: u16, sessions: u16) -> Self {
        let mut capture = Self::new();
        for n in 0..count {
            let port = 40_000 + n % sessions;
            capture.frame(start_ns + u64::from(n) * 1_000_000, &udp_frame(port, n));
        }
        capture
    }
}

fn udp_frame(port: u16, n: u16) -> Vec<u8> {
    let payload = [b'x'; 30];
    let udp_len = u16::try_from(8 + payload.len()).unwrap();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((20 + udp_len).to_be_bytes());
    frame.extend(n.to_be_bytes());
    frame.extend([0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend(port.to_be_bytes());
    frame.extend(9999_u16.to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn replay(&self, store: &str, args: &[&str], files: &[&Path]) -> Output {
        stillwired()
            .args(["replay", "--segment-size", "1MiB", "--store"])
            .arg(self.path(store))
            .args(args)
            .args(files)
            .output()
            .unwrap()
    }

    fn store(&self, name: &str) -> Store {
        Store::open(&self.path(name)).unwrap()
    }
}

fn stillwired() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillwired"));
    command.env_remove("STILLWIRE_STORE").env_remove("STILLWIRE_LOG");
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

/// Every row as text, `column=value`, without what differs from run to run.
fn rows(store: &Store) -> Vec<String> {
    let mut rows = Vec::new();
    let report = scan(store, &Scan::default(), |batch| {
        let schema = batch.schema();
        let options = FormatOptions::default().with_null("-");
        for row in 0..batch.num_rows() {
            let cells = schema.fields().iter().zip(batch.columns());
            let text: Vec<String> = cells
                .filter(|(field, _)| !["uid", "tunnel_parents"].contains(&field.name().as_str()))
                .map(|(field, column)| {
                    // Printing a named zone takes a feature of arrow that nothing else needs.
                    if let Some(times) = column.as_primitive_opt::<TimestampNanosecondType>() {
                        return format!("{}={}", field.name(), times.value(row));
                    }
                    let cell = ArrayFormatter::try_new(column, &options).unwrap();
                    format!("{}={}", field.name(), cell.value(row))
                })
                .collect();
            rows.push(text.join(" "));
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(report.damaged.is_empty(), "{report:?}");
    rows.sort();
    rows
}

fn column_sum(rows: &[String], column: &str) -> u64 {
    let prefix = format!("{column}=");
    let cells = rows.iter().flat_map(|row| row.split(' ')).filter_map(|c| c.strip_prefix(&prefix));
    cells.map(|cell| cell.parse::<u64>().unwrap()).sum()
}

fn lines(store: &Store) -> Vec<LedgerLine> {
    let read = ledger::read(store, Nanos::MIN, Nanos::MAX).unwrap();
    assert!(read.damage.is_empty(), "{:?}", read.damage);
    read.lines
}

/// Frames in all segments of the one worker.
fn recorded(store: &Store) -> u64 {
    let dir = store.layout().worker(0);
    let mut frames = 0;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "pcap") {
            let bytes = fs::metadata(&path).unwrap().len();
            let reader = SegmentReader::open(&path, bytes).unwrap();
            reader
                .scan(|_, _, _| {
                    frames += 1;
                    true
                })
                .unwrap();
        }
    }
    frames
}

#[test]
fn every_frame_is_in_segments_sessions_and_ledger() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 20_000, 100).0);
    let output = lab.replay("store", &[], &[&file]);
    assert_eq!(code(&output), 0, "{}", said(&output));

    let store = lab.store("store");
    let rows = rows(&store);
    let last: Vec<String> =
        rows.iter().filter(|row| row.contains(" final=true")).cloned().collect();
    assert_eq!(last.len(), 100);
    assert_eq!(column_sum(&last, "frames"), 20_000);
    assert_eq!(column_sum(&last, "orig_pkts"), 20_000);
    assert_eq!(recorded(&store), 20_000);

    let lines = lines(&store);
    assert!(lines.iter().all(|line| imbalances(line).is_empty()));
    let workers = || lines.iter().flat_map(|line| &line.workers);
    assert_eq!(workers().map(|worker| worker.received).sum::<u64>(), 20_000);
    assert_eq!(workers().map(|worker| worker.written).sum::<u64>(), 20_000);
    assert_eq!(lines.iter().map(LedgerLine::frames_lost).sum::<u64>(), 0);
    assert_eq!(lines.iter().map(|line| line.rows.written).sum::<u64>(), rows.len() as u64);
    assert!(lines.last().unwrap().notes.contains(&Note::CleanStop));
    assert!(matches!(lines[0].notes[0], Note::Start { .. }));
    // Interval after interval, without a hole, from the first frame to the last.
    assert_eq!(lines[0].from, Nanos(1_000_000_000_000));
    assert!(lines.windows(2).all(|pair| pair[0].to == pair[1].from));
    assert_eq!(lines.last().unwrap().to, Nanos(1_000_000_000_000 + 19_999 * 1_000_000));
    // Twenty seconds of packet time, a line a second.
    assert!((19..=22).contains(&lines.len()), "{} lines", lines.len());
}

#[test]
fn two_replays_give_the_same_rows() {
    let lab = Lab::new();
    let first = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 9_000, 700).0);
    let second = lab.write("b.pcap", &Capture::udp(1_100_000_000_000, 9_000, 300).0);
    let mut seen = Vec::new();
    for store in ["one", "two"] {
        let output = lab.replay(store, &["--interim", "2s"], &[&first, &second]);
        assert_eq!(code(&output), 0, "{}", said(&output));
        let store = lab.store(store);
        let intervals: Vec<_> =
            lines(&store).iter().map(|line| (line.from, line.to, line.rows.written)).collect();
        seen.push((rows(&store), intervals));
    }
    assert_eq!(seen[0], seen[1]);
    assert!(seen[0].0.iter().any(|row| row.contains("final=false")), "interim rows are there");
}

#[test]
fn a_store_takes_one_run_after_the_other() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 100, 10).0);
    for runs in 1..=3 {
        let output = lab.replay("store", &[], &[&file]);
        assert_eq!(code(&output), 0, "{}", said(&output));
        assert_eq!(rows(&lab.store("store")).len(), 10 * runs);
        assert_eq!(recorded(&lab.store("store")), 100 * runs as u64);
    }
}

#[test]
fn time_between_two_files_that_neither_has_is_blind() {
    const SECOND: u64 = 1_000_000_000;
    let lab = Lab::new();
    let first = lab.write("a.pcap", &Capture::udp(1_000 * SECOND, 100, 10).0);
    // The next piece of the same capture, and what comes after a file that is missing.
    let second = lab.write("b.pcap", &Capture::udp(1_000 * SECOND + SECOND / 5, 100, 10).0);
    let later = lab.write("c.pcap", &Capture::udp(1_060 * SECOND, 100, 10).0);
    let output = lab.replay("store", &[], &[&first, &second, &later]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let lines = lines(&lab.store("store"));
    let blind: Vec<_> = lines.iter().flat_map(|line| &line.blind).collect();
    let [blind] = blind.as_slice() else { panic!("{blind:?}") };
    assert_eq!(blind.cause, BlindCause::Silent);
    let millis = |at: Nanos| at.0 / 1_000_000;
    assert_eq!((millis(blind.from), millis(blind.to)), (1_000_299, 1_060_000));
    assert!(blind.detail.contains("c.pcap"), "{}", blind.detail);
}

#[test]
fn count_is_exact() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 1_000, 10).0);
    let output = lab.replay("store", &["--count", "777"], &[&file]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert_eq!(recorded(&lab.store("store")), 777);
    assert_eq!(column_sum(&rows(&lab.store("store")), "frames"), 777);
}

#[test]
fn a_snap_length_cuts_the_record_and_not_the_count() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 100, 10).0);
    let output = lab.replay("store", &["--snaplen", "60"], &[&file]);
    assert_eq!(code(&output), 0, "{}", said(&output));
    let store = lab.store("store");
    assert_eq!(column_sum(&rows(&store), "orig_bytes"), 100 * 30);
    let written: u64 =
        lines(&store).iter().flat_map(|line| &line.workers).map(|w| w.written_bytes).sum();
    assert_eq!(written, 6_000);
}

#[test]
fn a_cut_file_is_used_up_to_the_cut() {
    let lab = Lab::new();
    let mut content = Capture::udp(1_000_000_000_000, 1_000, 10).0;
    content.truncate(content.len() - 5);
    let file = lab.write("cut.pcap", &content);
    let output = lab.replay("store", &[], &[&file]);
    assert_eq!(code(&output), 1);
    assert!(said(&output).contains("cut off in the record"), "{}", said(&output));
    let store = lab.store("store");
    assert_eq!(recorded(&store), 999);
    assert_eq!(column_sum(&rows(&store), "frames"), 999);
    assert!(lines(&store).iter().any(|line| line.files.iter().any(|file| file.cut)));
}

#[test]
fn standard_input_is_a_file_too() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 50, 5).0);
    let output = stillwired()
        .args(["replay", "-", "--store"])
        .arg(lab.path("store"))
        .stdin(fs::File::open(file).unwrap())
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert_eq!(recorded(&lab.store("store")), 50);
}

#[test]
fn what_cannot_be_replayed_changes_nothing_and_says_why() {
    let lab = Lab::new();
    let good = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 5, 5).0);
    let text = lab.write("notes.txt", b"these are notes and not a capture, as anyone can see\n");
    for (files, words) in [
        (vec![good.as_path(), text.as_path()], "it is text"),
        (vec![lab.dir.path()], "this is a directory"),
        (vec![lab.path("missing.pcap").as_path()], "missing.pcap"),
    ] {
        let output = lab.replay("store", &[], &files);
        assert_eq!(code(&output), 1, "{}", said(&output));
        assert!(said(&output).contains(words), "{}", said(&output));
        assert!(!lab.path("store").exists());
    }
}

#[test]
fn wrong_usage_is_code_2() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 5, 5).0);
    for args in [
        vec!["--segment-size", "7"],
        vec!["--local-nets", "10.0.0.0/99"],
        vec!["--likely-server-ports", "ssh"],
        vec!["--tcp-timeout", "soon"],
        vec!["--no-such-option"],
    ] {
        let output = lab.replay("store", &args, &[&file]);
        assert_eq!(code(&output), 2, "{args:?}: {}", said(&output));
    }
    assert_eq!(code(&stillwired().args(["replay", "x.pcap"]).output().unwrap()), 2);
    let twice = lab.replay("store", &[], &[Path::new("-"), Path::new("-")]);
    assert_eq!(code(&twice), 2);
}

#[test]
fn a_store_in_use_is_refused() {
    let lab = Lab::new();
    let file = lab.write("a.pcap", &Capture::udp(1_000_000_000_000, 5, 5).0);
    let held = capture_store::OwnedStore::open_or_create(&lab.path("store"), None).unwrap();
    let output = lab.replay("store", &[], &[&file]);
    assert_eq!(code(&output), 1);
    assert!(said(&output).contains("in use"), "{}", said(&output));
    drop(held);
    assert_eq!(code(&lab.replay("store", &[], &[&file])), 0);
}

#[test]
fn help_manual_and_completions_are_there() {
    for args in [
        vec!["--help"],
        vec!["capture", "--help"],
        vec!["replay", "--help"],
        vec!["man"],
        vec!["man", "capture"],
        vec!["completions", "bash"],
        vec!["completions", "zsh"],
        vec!["completions", "fish"],
    ] {
        let output = stillwired().args(&args).output().unwrap();
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(output.stdout.len() > 500, "{args:?}");
    }
    assert_eq!(code(&stillwired().args(["man", "nonsense"]).output().unwrap()), 1);
}
