//! `stillwire prove` on a store that somebody without its key has changed: he can make an answer
//! uncertain, and never have a session denied.

use std::fs;
use std::path::{Path, PathBuf};

use capture_flow::key::FlowHash;
use capture_flow::record::{ConnState, History, RowReason, SessionRecord};
use capture_store::ledger::{Interface, LedgerLine, Link, Note, Queue, Worker, Xdp};

use crate::support::{Sensor, at, errors, tcp};

const SSH: &str = "resp host 192.0.2.7 and tcp port 22";

struct Lab {
    _dir: tempfile::TempDir,
    sensor: Sensor,
}

impl Lab {
    /// Stores of one name give their sessions the same identities.
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let sensor = Sensor::new(&dir.path().join("store"), "s1");
        Self { _dir: dir, sensor }
    }

    /// So many minutes of lines, one a minute, from 06:00:00 on, to a clean stop.
    fn minutes(&mut self, first: u64, count: u64, stop: bool) {
        for minute in first..first + count {
            let from = 60 * minute as i64;
            self.sensor.line(minute, from, from + 60, |line| {
                carry_ten(line);
                if stop && minute == first + count - 1 {
                    line.notes.push(Note::CleanStop);
                }
            });
        }
    }

    /// Asks about two minutes of 06:00.
    fn ask(&self, from: u32, to: u32) -> (Option<i32>, String) {
        let from = format!("2007-02-02 06:{from:02}:00");
        let to = format!("2007-02-02 06:{to:02}:00");
        let output = self.sensor.ask(&["prove", SSH, "--from", &from, "--to", &to]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output);
        (output.status.code(), text)
    }

    #[track_caller]
    fn must(&self, code: i32, what: &str) {
        let (got, text) = self.ask(20, 30);
        assert_eq!(got, Some(code), "{what}: {text}");
    }

    fn files(&self, ending: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        find(&self.sensor.path, ending, &mut found);
        found.sort();
        found
    }
}

fn find(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find(&path, ending, found);
        } else if path.extension().is_some_and(|is| is == ending) {
            found.push(path);
        }
    }
}

fn minute(minutes: i64) -> capture_flow::time::Nanos {
    at(minutes * 60_000)
}

/// A connection that is not over.
fn open(resp: &str) -> SessionRecord {
    let mut history = History::default();
    b"ShADad".iter().for_each(|letter| history.push(*letter));
    SessionRecord {
        conn_state: ConnState::S1,
        history,
        reason: RowReason::Interim,
        flushed_at: minute(11),
        ..tcp(resp, 22)
    }
}

/// A store whose one session is another one under the first one's identity, and newer.
fn decoy() -> Lab {
    let mut lab = Lab::new();
    let record = SessionRecord { update: 9, ..open("192.0.2.99") };
    lab.sensor.session(record, &[(0, minute(9)), (0, minute(25))]);
    lab.sensor.commit();
    lab
}

#[test]
fn rows_that_nobody_vouches_for_hide_none() {
    let mut lab = Lab::new();
    lab.sensor.session(open("192.0.2.7"), &[(0, minute(9)), (0, minute(10))]);
    lab.minutes(0, 60, true);
    lab.must(3, "untouched");
    let tail = lab.files("arrows").remove(0);
    let honest = fs::read(&tail).expect("the tail");
    let mut decoy = decoy();
    let forged = fs::read(decoy.files("arrows").remove(0)).expect("a tail");

    let beside = tail.with_file_name("20070202T060000Z-0badcafe-000007.arrows");
    fs::write(&beside, &forged).expect("planted");
    lab.must(3, "a tail planted beside the true one");
    fs::remove_file(&beside).expect("removed");
    fs::write(&tail, [&honest[..], &forged[..]].concat()).expect("grown");
    lab.must(3, "the tail grown by a row");
    fs::write(&tail, &honest).expect("put back");

    decoy.sensor.seal_sessions();
    let sealed = decoy.files("parquet").remove(0);
    let within = sealed.strip_prefix(&decoy.sensor.path).expect("a path");
    let planted = lab.sensor.path.join(within);
    fs::create_dir_all(planted.parent().expect("a directory")).expect("made");
    fs::copy(&sealed, &planted).expect("planted");
    lab.must(3, "a sealed file in the tail's place, and the tail");
    fs::remove_file(&tail).expect("removed");
    lab.must(4, "a sealed file instead of the tail");
    fs::write(&tail, &honest).expect("put back");
    let other = planted.with_file_name("20070202T060000Z-0badcafe-000007.parquet");
    fs::rename(&planted, &other).expect("renamed");
    lab.must(3, "a sealed file of another name");
    fs::remove_file(&other).expect("removed");
    lab.must(3, "put back");
}

#[test]
fn what_tells_of_an_open_session_lies_in_files_of_other_times() {
    let sealed = || {
        let mut lab = Lab::new();
        lab.sensor.session(open("192.0.2.7"), &[(0, minute(9)), (0, minute(10))]);
        lab.sensor.seal_sessions();
        lab.minutes(0, 60, true);
        lab.must(3, "untouched");
        lab
    };
    let lab = sealed();
    let file = lab.files("parquet").remove(0);
    fs::remove_file(&file).expect("removed");
    lab.must(4, "the file of the session's only row removed");
    let mut decoy = decoy();
    decoy.sensor.seal_sessions();
    fs::copy(decoy.files("parquet").remove(0), &file).expect("exchanged");
    lab.must(4, "exchanged for another");

    // It was given up, and went on behind the window.
    let mut lab = Lab::new();
    let given_up =
        SessionRecord { reason: RowReason::Timeout, flushed_at: minute(15), ..open("192.0.2.7") };
    lab.sensor.session(given_up, &[(0, minute(9)), (0, minute(10))]);
    lab.minutes(0, 35, false);
    let mut history = History::default();
    b"DadA".iter().for_each(|letter| history.push(*letter));
    let goes_on = SessionRecord {
        history,
        conn_state: ConnState::OTH,
        direction_certain: false,
        flushed_at: minute(45),
        ..open("192.0.2.7")
    };
    lab.sensor.session(goes_on, &[(0, minute(40)), (0, minute(41))]);
    lab.sensor.seal_sessions();
    lab.minutes(35, 25, true);
    lab.must(3, "untouched");
    let sealed = lab.files("parquet");
    fs::remove_file(&sealed[0]).expect("removed");
    lab.must(4, "the file of both rows removed");
}

#[test]
fn a_connection_of_which_the_sensor_lost_sight_is_not_denied_until_its_limit_has_passed() {
    for reason in [RowReason::Evicted, RowReason::Shutdown] {
        let mut lab = Lab::new();
        let record = SessionRecord { reason, ..open("192.0.2.7") };
        lab.sensor.session(record, &[(0, minute(9)), (0, minute(17))]);
        lab.minutes(0, 60, true);
        let (code, text) = lab.ask(20, 30);
        assert_eq!(code, Some(4), "{reason:?}: {text}");
        assert!(text.contains("lost sight of it"), "{text}");
        let (code, text) = lab.ask(23, 30);
        assert_eq!(code, Some(0), "{reason:?}: {text}");
    }
}

/// Ten frames came in the line's time, and were recorded and decoded.
fn carry_ten(line: &mut LedgerLine) {
    let xdp = Xdp { seen: 10, steered: 10, ..Xdp::default() };
    let queue = Queue { worker: Some(0), xdp, received: 10, ..Queue::default() };
    line.interfaces.push(Interface {
        name: "eth0".into(),
        link: Link { up: true, ..Link::default() },
        queues: vec![queue],
        ..Interface::default()
    });
    line.workers.push(Worker { received: 10, decoded: 10, written: 10, ..Worker::default() });
}

/// TCP from 10.0.0.1 to 192.0.2.9, cut off within its header.
fn truncated() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 22];
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 9, 0, 0]);
    frame
}

#[test]
fn a_frame_that_rules_itself_out_must_be_what_was_recorded() {
    let mut lab = Lab::new();
    lab.sensor.frame_of_all(0, minute(25), &[FlowHash::UNREAD], &truncated());
    lab.sensor.seal_segments();
    for minute in 0..60 {
        let from = 60 * minute as i64;
        lab.sensor.line(minute, from, from + 60, |line| {
            carry_ten(line);
            if let Some(worker) = line.workers.first_mut().filter(|_| minute == 25) {
                worker.decoded -= 1;
                worker.undecodable.insert("transport_truncated".to_owned(), 1);
            }
            if minute == 59 {
                line.notes.push(Note::CleanStop);
            }
        });
    }
    lab.must(0, "it goes to another host");
    let pcap = lab.files("pcap").remove(0);
    let content = fs::read(&pcap).expect("the segment");
    let mut changed = content.clone();
    *changed.last_mut().expect("a byte") ^= 1;
    fs::write(&pcap, changed).expect("written");
    let (code, text) = lab.ask(20, 30);
    assert_eq!(code, Some(4), "it may have gone to another one: {text}");
    assert!(text.contains("packets_changed"), "{text}");
    fs::write(&pcap, content).expect("put back");
    lab.must(0, "put back");
}

/// Changes one line of the ledger, which keeps the signature that it had.
fn forge(lab: &Lab, number: usize, change: impl FnOnce(&str) -> String) -> String {
    let path = lab.files("ndjson").remove(0);
    let honest = fs::read_to_string(&path).expect("the ledger");
    let mut lines: Vec<String> = honest.lines().map(str::to_owned).collect();
    lines[number] = change(&lines[number]);
    fs::write(&path, lines.join("\n") + "\n").expect("written");
    honest
}

fn restore(lab: &Lab, ledger: &str) {
    fs::write(lab.files("ndjson").remove(0), ledger).expect("put back");
}

#[test]
fn a_forged_note_about_a_file_is_not_believed_wherever_it_stands() {
    let mut lab = Lab::new();
    lab.sensor.session(open("192.0.2.7"), &[(0, minute(9)), (0, minute(10))]);
    lab.minutes(0, 15, false);
    lab.sensor.seal_sessions();
    lab.minutes(15, 45, true);
    lab.must(3, "untouched");
    let file = lab.files("parquet").remove(0);
    let honest = fs::read(&file).expect("the sealed file");
    let path = file.strip_prefix(&lab.sensor.path).expect("a path").display().to_string();
    let mut decoy = decoy();
    decoy.sensor.seal_sessions();
    let other = fs::read(decoy.files("parquet").remove(0)).expect("another sealed file");

    let note = |note: &str, content: &[u8]| {
        let (bytes, hash) = (content.len(), blake3::hash(content));
        // Times that no window overlaps: nobody would say that sessions were retired.
        format!(
            r#""notes":[{{"note":"{note}","path":"{path}","bytes":{bytes},"blake3":"{hash}","items":1,"first_ts":"{}","last_ts":"{}"}}]"#,
            "2007-02-02T07:00:00Z", "2007-02-02T06:00:00Z"
        )
    };
    // Before the window, between it and the true note, and behind both.
    for number in [1, 12, 22, 40] {
        for (kind, content) in [("retired", None), ("sealed", Some(&other))] {
            let forged = note(kind, content.unwrap_or(&honest));
            let ledger = forge(&lab, number, |line| {
                assert!(!line.contains(r#""notes":["#), "{line}");
                let (begin, end) = line.split_once(r#","sig""#).expect("a signature");
                let line = format!(r#"{begin},{forged},"sig"{end}"#);
                serde_json::from_str::<LedgerLine>(&line).expect("a line like any other");
                line
            });
            match content {
                Some(content) => fs::write(&file, content).expect("exchanged"),
                None => fs::remove_file(&file).expect("removed"),
            }
            lab.must(4, &format!("a forged {kind} in line {number}"));
            restore(&lab, &ledger);
            fs::write(&file, &honest).expect("put back");
        }
    }
    lab.must(3, "put back");
}

#[test]
fn a_file_cannot_be_taken_out_together_with_the_line_that_names_it() {
    let mut lab = Lab::new();
    // Lines of an hour from the day before on, then of a minute.
    lab.sensor.session(open("192.0.2.7"), &[(0, minute(-700)), (0, minute(-600))]);
    for hour in 0..26_i64 {
        if hour == 18 {
            lab.sensor.seal_sessions();
        }
        lab.sensor.line(hour as u64, 3600 * (hour - 26), 3600 * (hour - 25), carry_ten);
    }
    for minute in 0..60_i64 {
        lab.sensor.line(26 + minute as u64, 60 * minute, 60 * minute + 60, |line| {
            carry_ten(line);
            if minute == 59 {
                line.notes.push(Note::CleanStop);
            }
        });
    }
    lab.must(3, "untouched");
    let file = lab.files("parquet").remove(0);
    let days = lab.files("ndjson");
    let [before, day] = [&days[0], &days[1]].map(|path| fs::read_to_string(path).expect("a day"));
    let note = before.lines().position(|line| line.contains("parquet")).expect("its note");
    fs::remove_file(&file).expect("removed");
    lab.must(4, "the file alone");

    let without = |text: &str, gone: &dyn Fn(usize) -> bool| {
        let lines = text.lines().enumerate().filter(|(number, _)| !gone(*number));
        lines.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    fs::write(&days[0], before.replacen(r#""bytes":"#, r#""bytes": "#, 1)).expect("changed");
    lab.must(4, "the file, and its note changed");
    fs::write(&days[0], without(&before, &|number| number == note)).expect("taken out");
    lab.must(4, "the file and its note");
    fs::write(&days[0], without(&before, &|number| number >= note)).expect("cut off");
    lab.must(4, "the file, its note and all behind it that day");
    fs::write(&days[0], without(&before, &|number| number <= note)).expect("cut off");
    lab.must(4, "the file, its note and all before it");
    fs::remove_file(&days[0]).expect("removed");
    lab.must(4, "the file and the day of its note");
    fs::write(&days[0], &before).expect("put back");
    fs::write(&days[1], without(&day, &|number| number < 3)).expect("cut off");
    lab.must(4, "the file, and a part of the next day");
}

#[test]
fn what_a_later_line_told_of_the_window_cannot_be_taken_out_unnoticed() {
    let mut lab = Lab::new();
    lab.minutes(0, 60, true);
    lab.must(0, "untouched");
    for number in [0, 2, 19, 25, 31, 40, 59] {
        let ledger =
            forge(&lab, number, |line| line.replacen(r#""seen":10,"#, r#""seen":10, "#, 1));
        lab.must(4, &format!("line {number} changed"));
        restore(&lab, &ledger);
    }
    // However many breaks there are in front of it, of which not all are told one by one.
    let many = |line: &str| {
        let forged = line.replacen(r#""seen":10,"#, r#""seen":10, "#, 1);
        [vec![forged; 1100], vec![line.to_owned()]].concat().join("\n")
    };
    let ledger = forge(&lab, 0, many);
    forge(&lab, 1124, |line| line.replacen(r#""seen":10,"#, r#""seen":10, "#, 1));
    lab.must(4, "more breaks than are told");
    restore(&lab, &ledger);
    lab.must(0, "put back");
}

#[test]
fn a_store_that_names_no_key_proves_nothing() {
    let mut lab = Lab::new();
    lab.minutes(0, 60, true);
    lab.must(0, "untouched");
    let path = lab.sensor.path.join("sensor.json");
    let text = fs::read(&path).expect("the identity");
    let mut identity: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    identity.as_object_mut().expect("an object").remove("public_key");
    fs::write(&path, identity.to_string()).expect("written");
    lab.must(4, "without its key");
}
