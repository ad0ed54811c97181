//! `stillwire coverage` on a ledger of a test's own.

use std::io::Write as _;

use capture_store::ledger::{Doubt, Interface, Link, Note, Queue, SealedFile, Worker, Xdp};
use capture_store::recover::RecoveryReport;
use capture_store::{DropReason, RowLossReason, RunId};
use serde_json::Value;

use crate::support::{Sensor, at, errors, text};

/// The window of most tests: ten seconds from 06:00:00.
const WINDOW: [&str; 4] = ["--from", "2007-02-02 06:00:00", "--to", "2007-02-02 06:00:10"];

fn json(sensor: &Sensor, window: &[&str]) -> Value {
    let mut all = vec!["coverage", "--format", "json"];
    all.extend_from_slice(window);
    serde_json::from_str(&text(&sensor.ask(&all))).expect("JSON")
}

/// Reason, begin and end in seconds after 06:00:00, frames lost.
fn gaps(json: &Value) -> Vec<(String, String, String, u64)> {
    let part = |gap: &Value, name: &str| {
        let text = gap[name].as_str().expect("text");
        text.trim_start_matches("2007-02-02T06:00:").trim_end_matches(".000000000Z").to_owned()
    };
    json["gaps"]
        .as_array()
        .expect("gaps")
        .iter()
        .map(|gap| {
            let lost = gap["frames_lost"].as_u64().expect("a number");
            (part(gap, "reason"), part(gap, "from"), part(gap, "to"), lost)
        })
        .collect()
}

fn gap(reason: &str, from: &str, to: &str, lost: u64) -> (String, String, String, u64) {
    (reason.to_owned(), from.to_owned(), to.to_owned(), lost)
}

fn wire(seen: u64, lost: u64) -> Interface {
    let xdp = Xdp { seen, steered: seen, ..Xdp::default() };
    let queue = Queue {
        queue: 0,
        worker: Some(0),
        xdp,
        received: seen - lost,
        ring_losses: lost,
        ..Queue::default()
    };
    Interface {
        name: "eth0".into(),
        backend: "native-copy".into(),
        link: Link { up: true, ..Link::default() },
        queues: vec![queue],
        ..Interface::default()
    }
}

fn worker(received: u64) -> Worker {
    Worker { received, decoded: received, written: received, ..Worker::default() }
}

#[test]
fn a_clean_run_covers_its_time_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for second in 2..8 {
        sensor.line(second as u64 - 2, second, second + 1, |line| {
            line.interfaces.push(wire(100, 0));
            line.workers.push(worker(100));
            if second == 7 {
                line.notes.push(Note::CleanStop);
            }
        });
    }
    let inside = json(&sensor, &["--from", "2007-02-02 06:00:02", "--to", "2007-02-02 06:00:08"]);
    assert_eq!((&inside["covered_s"], &inside["window_s"]), (&6.0.into(), &6.0.into()));
    assert_eq!(gaps(&inside), []);
    assert_eq!(inside["sensors"][0]["sources"][0]["seen"], 600);
    // Without a window: what the ledger spans.
    assert_eq!(json(&sensor, &[])["window_s"], 6.0);
    let wider = json(&sensor, &WINDOW);
    assert_eq!(gaps(&wider), [gap("no_sensor", "00", "02", 0), gap("no_sensor", "08", "10", 0)]);
    assert_eq!(wider["covered_s"], 6.0);
    let shown = text(&sensor.ask(&["coverage"]));
    assert!(shown.contains("100 % covered"), "{shown}");
    assert!(!shown.contains('\u{1b}'));
}

#[test]
fn every_loss_is_a_gap_with_its_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for second in 0..10 {
        sensor.line(second as u64, second, second + 1, |line| {
            let lost = if second == 1 || second == 2 { 5 } else { 0 };
            line.interfaces.push(wire(100, lost));
            let mut worker = worker(100 - lost);
            let interface = line.interfaces.last_mut().expect("an interface");
            match second {
                3 => interface.link.down_ns = 1,
                4 => {
                    worker.written -= 7;
                    worker.dropped.insert(DropReason::DiskFull, 7);
                }
                5 => {
                    line.rows.lost.insert(RowLossReason::HandOffFull, 3);
                }
                6 => interface.queues.iter_mut().for_each(|queue| {
                    queue.xdp.no_socket = 2;
                    queue.xdp.seen += 2;
                }),
                // Two frames that nothing accounts for.
                7 => worker.received += 2,
                9 => line.notes.push(Note::CleanStop),
                _ => {}
            }
            line.workers.push(worker);
        });
    }
    let json = json(&sensor, &WINDOW);
    let found = gaps(&json);
    for expected in [
        gap("ring_loss", "01", "03", 10),
        gap("link_down", "03", "04", 0),
        gap("packets_not_written", "04", "05", 7),
        gap("rows_lost", "05", "06", 0),
        gap("no_socket", "06", "07", 2),
        gap("unaccounted", "07", "08", 2),
    ] {
        assert!(found.contains(&expected), "{expected:?} in {found:#?}");
    }
    assert_eq!(json["covered_s"], 3.0);
    let shown = text(&sensor.ask(&["coverage"]));
    assert!(shown.contains("30.0 % covered"), "{shown}");
    assert!(shown.contains("frames were lost before the sensor took them"), "{shown}");
}

#[test]
fn a_lost_row_reaches_back_to_what_was_promised_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for second in 0..10 {
        sensor.line(second as u64, second, second + 1, |line| {
            line.interfaces.push(wire(100, 0));
            line.workers.push(worker(100));
            // Sessions wait for their rows: those since second 2 at the time of the loss.
            line.complete_through = Some(at((second - 3).max(0) * 1000));
            match second {
                6 => {
                    line.rows.lost.insert(RowLossReason::HandOffFull, 1);
                }
                9 => line.notes.push(Note::CleanStop),
                _ => {}
            }
        });
    }
    assert_eq!(gaps(&json(&sensor, &WINDOW)), [gap("rows_lost", "02", "07", 0)]);
}

/// Lines of a run of its own, one a second.
fn run(sensor: &mut Sensor, name: &str, seconds: std::ops::Range<i64>, mode: &str, iface: &str) {
    sensor.run = RunId::parse(name).expect("a run");
    let last = seconds.end - 1;
    for (interval, second) in seconds.enumerate() {
        sensor.line(interval as u64, second, second + 1, |line| {
            mode.clone_into(&mut line.mode);
            if mode == "capture" {
                let mut interface = wire(100, 0);
                iface.clone_into(&mut interface.name);
                line.interfaces.push(interface);
                line.workers.push(worker(100));
            }
            if second == last {
                line.notes.push(Note::CleanStop);
            }
        });
    }
}

#[test]
fn what_is_replayed_covers_no_time_of_a_wire() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    run(&mut sensor, "20070202T060000Z-00000001", 0..3, "capture", "eth0");
    run(&mut sensor, "20070202T060006Z-00000002", 6..10, "capture", "eth0");
    let outage = gap("no_sensor", "03", "06", 0);
    assert_eq!(gaps(&json(&sensor, &WINDOW)), std::slice::from_ref(&outage));
    run(&mut sensor, "20070202T070000Z-00000003", 2..8, "replay", "");
    assert_eq!(gaps(&json(&sensor, &WINDOW)), [outage]);
}

#[test]
fn a_clock_set_back_between_runs_hides_no_outage() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    run(&mut sensor, "20070202T060000Z-00000001", 0..6, "capture", "eth0");
    run(&mut sensor, "20070202T060004Z-00000002", 4..10, "capture", "eth0");
    assert_eq!(gaps(&json(&sensor, &WINDOW)), [gap("clock_stepped", "04", "06", 0)]);
}

#[test]
fn an_interface_that_a_later_run_leaves_out_is_not_covered_by_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    run(&mut sensor, "20070202T060000Z-00000001", 0..5, "capture", "eth0");
    run(&mut sensor, "20070202T060005Z-00000002", 5..10, "capture", "eth1");
    let json = json(&sensor, &WINDOW);
    let expected = [gap("no_sensor", "00", "05", 0), gap("no_sensor", "05", "10", 0)];
    assert_eq!(gaps(&json), expected);
    assert_eq!(json["covered_s"], 0.0);
    // Each by itself is whole.
    let first = ["--from", "2007-02-02 06:00:00", "--to", "2007-02-02 06:00:04"];
    assert_eq!(gaps(&self::json(&sensor, &first)), []);
}

#[test]
fn an_unclean_end_opens_a_gap_from_what_was_complete() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for second in 0..5 {
        sensor.line(second as u64, second, second + 1, |line| {
            line.complete_through = Some(at((second - 1) * 1000));
        });
    }
    let json = json(&sensor, &WINDOW);
    assert_eq!(
        gaps(&json),
        [gap("unclean_end", "03", "10", 0)],
        "the sensor died long ago, and sessions of its last two seconds were never logged"
    );
    assert_eq!(json["covered_s"], 3.0);
}

/// Lines as another start of the machine writes them; the last one ends in order or not.
fn booted(sensor: &mut Sensor, run: &str, boot: &str, seconds: std::ops::Range<i64>, clean: bool) {
    sensor.run = RunId::parse(run).expect("a name");
    for second in seconds.clone() {
        sensor.line((second - seconds.start) as u64, second, second + 1, |line| {
            line.boot_id = Some(boot.to_owned());
            line.complete_through = Some(at(second * 1000));
            if clean && second + 1 == seconds.end {
                line.notes.push(Note::CleanStop);
            }
        });
    }
}

#[test]
fn a_restart_of_the_machine_is_told_apart_from_a_kill() {
    for (before, after, clean, expected) in [
        ("a", "b", false, [gap("machine_restarted", "02", "06", 0)]),
        ("a", "a", false, [gap("unclean_end", "02", "06", 0)]),
        ("a", "b", true, [gap("no_sensor", "03", "06", 0)]),
        ("a", "a", true, [gap("no_sensor", "03", "06", 0)]),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
        booted(&mut sensor, "20070202T060000Z-00000001", before, 0..3, clean);
        booted(&mut sensor, "20070202T060006Z-00000002", after, 6..10, true);
        assert_eq!(gaps(&json(&sensor, &WINDOW)), expected, "{before} {after} {clean}");
        let shown = text(&sensor.ask(&["coverage"]));
        assert_eq!(shown.contains("the machine was restarted"), before != after, "{shown}");
    }
}

#[test]
fn a_window_behind_the_run_before_knows_of_the_restart_from_what_was_recovered() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    booted(&mut sensor, "20070202T060000Z-00000001", "a", 0..3, false);
    sensor.run = RunId::parse("20070202T060006Z-00000002").expect("a name");
    sensor.line(0, 6, 10, |line| {
        line.notes.push(Note::Recovered(RecoveryReport { rebooted: true, ..Default::default() }));
        line.notes.push(Note::CleanStop);
    });
    let window = ["--from", "2007-02-02 06:00:05", "--to", "2007-02-02 06:00:10"];
    assert_eq!(gaps(&json(&sensor, &window)), [gap("machine_restarted", "05", "06", 0)]);
}

#[test]
fn what_a_power_loss_took_from_under_the_ledger_is_a_gap() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.line(0, 0, 10, |line| {
        let span = |from, to| Doubt { from: at(from), to: at(to) };
        let path = "sessions/live/a.arrows".to_owned();
        line.notes.push(Note::LogCut { path: path.clone(), bytes: 7, doubt: span(1000, 3000) });
        line.notes.push(Note::Altered { path, doubt: Some(span(4000, 5000)) });
        line.notes.push(Note::Recovered(RecoveryReport {
            rebooted: true,
            frames_lost: 12,
            frames_lost_in: Some(span(6000, 7000)),
            ..Default::default()
        }));
        line.notes.push(Note::CleanStop);
    });
    let json = json(&sensor, &WINDOW);
    let expected = [
        gap("rows_lost", "01", "03", 0),
        gap("sessions_changed", "04", "05", 0),
        gap("packets_not_written", "06", "07", 12),
    ];
    assert_eq!(gaps(&json), expected);
    assert_eq!(json["gaps"][2]["packets_only"], true, "{json:#}");
}

#[test]
fn missing_and_torn_lines_are_gaps() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for second in [0, 1, 4, 5, 6, 7, 8, 9] {
        sensor.line(second as u64, second, second + 1, |line| {
            if second == 9 {
                line.notes.push(Note::CleanStop);
            }
        });
    }
    assert_eq!(gaps(&json(&sensor, &WINDOW)), [gap("line_missing", "02", "04", 0)]);
    // A line overwritten in the middle.
    let path = sensor.store.layout().ledger_day("s1", at(0));
    let ledger = std::fs::read_to_string(&path).expect("the ledger");
    let damaged: Vec<_> = ledger
        .lines()
        .enumerate()
        .map(|(number, line)| if number == 4 { "{ not a line".to_owned() } else { line.to_owned() })
        .collect();
    std::fs::write(&path, damaged.join("\n") + "\n").expect("written");
    let found = gaps(&json(&sensor, &WINDOW));
    assert!(found.contains(&gap("ledger_damaged", "06", "07", 0)), "{found:?}");
    // An unfinished last line is a line being written.
    std::fs::write(&path, &ledger).expect("written");
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).expect("the ledger");
    file.write_all(b"{\"v\":1,\"seq").expect("written");
    assert_eq!(gaps(&json(&sensor, &WINDOW)), [gap("line_missing", "02", "04", 0)]);
}

#[test]
fn what_was_retired_later_is_no_longer_covered() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.line(0, 0, 20, |line| {
        for path in ["sessions/sensor=s1/a.parquet", "pcap/w00/0.pcap"] {
            line.notes.push(Note::Retired(SealedFile {
                path: path.into(),
                bytes: 1,
                blake3: None,
                items: 1,
                first_ts: at(1000),
                last_ts: at(3000),
            }));
        }
        line.notes.push(Note::CleanStop);
    });
    let json = json(&sensor, &WINDOW);
    assert_eq!(gaps(&json), [gap("sessions_retired", "01", "03", 0)]);
    assert_eq!(json["sensors"][0]["packets_retired_through"], "2007-02-02T06:00:03.000000000Z");
}

#[test]
fn an_empty_ledger_covers_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = Sensor::new(&dir.path().join("store"), "s1");
    let json = json(&sensor, &WINDOW);
    assert_eq!((&json["covered_s"], &json["window_s"]), (&0.0.into(), &10.0.into()));
    assert_eq!(gaps(&json), [gap("no_sensor", "00", "10", 0)]);
    assert!(text(&sensor.ask(&["coverage"])).contains("no sensor has run"));
    let output = sensor.ask(&["coverage", "--from", "-1h", "--to", "-2h"]);
    assert_eq!(output.status.code(), Some(2), "{}", errors(&output));
}
