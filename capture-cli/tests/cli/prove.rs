//! `stillwire prove` on stores of a test's own.

use capture_flow::key::FlowHash;
use capture_flow::record::{ConnState, History, RowReason, SessionRecord};
use capture_store::ledger::{Blind, BlindCause, Interface, Link, Note, Queue, Worker, Xdp};
use serde_json::Value;

use crate::support::{Sensor, arp, at, errors, icmp, side, tcp};

/// The window of most tests: twenty seconds from 06:00:20.
const WINDOW: [&str; 4] = ["--from", "2007-02-02 06:00:20", "--to", "2007-02-02 06:00:40"];
const SSH: &str = "resp host 192.0.2.7 and tcp port 22";

struct Lab {
    _dir: tempfile::TempDir,
    sensor: Sensor,
}

/// A sensor without lines yet.
fn lab() -> Lab {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = Sensor::new(&dir.path().join("store"), "s1");
    Lab { _dir: dir, sensor }
}

impl Lab {
    /// A minute of lines, one a second, from 06:00:00, in order from begin to end.
    fn minute(&mut self) {
        self.minute_with(|_, _| {});
    }

    fn minute_with(&mut self, mut edit: impl FnMut(i64, &mut capture_store::ledger::LedgerLine)) {
        for second in 0..60 {
            self.sensor.line(second as u64, second, second + 1, |line| {
                line.interfaces.push(wire());
                line.workers.push(worker());
                if second == 59 {
                    line.notes.push(Note::CleanStop);
                }
                edit(second, line);
            });
        }
    }

    /// A session from `from` to `to`, in milliseconds after 06:00:00.
    fn session(&mut self, record: SessionRecord, from: i64, to: i64) -> SessionRecord {
        self.sensor.session(record, &[(0, at(from)), (0, at(to))])
    }

    fn ask(&mut self, filter: &str) -> (i32, Value) {
        self.ask_in(filter, &WINDOW)
    }

    fn ask_in(&mut self, filter: &str, window: &[&str]) -> (i32, Value) {
        self.sensor.commit();
        let mut all = vec!["prove", "--format", "json", filter];
        all.extend_from_slice(window);
        let output = self.sensor.ask(&all);
        let code = output.status.code().expect("a code");
        let text = String::from_utf8_lossy(&output.stdout);
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}", errors(&output)));
        (code, json)
    }
}

fn wire() -> Interface {
    let xdp = Xdp { seen: 10, steered: 10, ..Xdp::default() };
    let queue = Queue { queue: 0, worker: Some(0), xdp, received: 10, ..Queue::default() };
    Interface {
        name: "eth0".into(),
        backend: "native-copy".into(),
        link: Link { up: true, ..Link::default() },
        queues: vec![queue],
        ..Interface::default()
    }
}

fn worker() -> Worker {
    Worker { received: 10, decoded: 10, written: 10, ..Worker::default() }
}

fn history(letters: &str) -> History {
    let mut history = History::default();
    letters.bytes().for_each(|letter| history.push(letter));
    history
}

/// An established connection that nobody closed.
fn unclosed() -> SessionRecord {
    SessionRecord {
        conn_state: ConnState::S1,
        history: history("ShADad"),
        reason: RowReason::Timeout,
        ..tcp("192.0.2.7", 22)
    }
}

fn list<'a>(json: &'a Value, name: &str) -> Vec<&'a Value> {
    json[name].as_array().expect("a list").iter().collect()
}

fn reasons(json: &Value) -> Vec<&str> {
    let gaps = json["coverage"]["gaps"].as_array().expect("gaps");
    gaps.iter().map(|gap| gap["reason"].as_str().expect("a reason")).collect()
}

#[test]
fn nothing_that_a_simulation_wrote_is_proof() {
    let mut lab = lab();
    lab.session(tcp("192.0.2.7", 22), 21_000, 30_000);
    lab.minute_with(|second, line| {
        line.blind.push(Blind {
            from: at(second * 1000),
            to: at(second * 1000 + 1000),
            cause: BlindCause::Simulated,
            iface: None,
            queue: None,
            worker: None,
            detail: "no disk".into(),
        });
    });
    // Neither that a session was there, nor that none was.
    for filter in [SSH, "tcp port 9"] {
        let (code, answer) = lab.ask(filter);
        assert_eq!((code, &answer["verdict"]), (4, &Value::from("unproven")), "{answer}");
        assert_eq!(answer["sessions"], Value::Array(Vec::new()), "{answer}");
        assert_eq!(answer["coverage"]["covered_s"].as_f64(), Some(0.0), "{answer}");
        assert_eq!(answer["coverage"]["gaps"][0]["reason"], "simulated", "{answer}");
    }
    let (_, answer) = lab.ask(SSH);
    let why = answer["possible"][0].to_string();
    assert!(why.contains("a simulation's"), "{answer}");
}

#[test]
fn nothing_there_and_all_of_it_covered_is_absent() {
    let mut lab = lab();
    lab.session(tcp("192.0.2.7", 22), 1000, 3000);
    lab.session(icmp("192.0.2.7"), 25_000, 26_000);
    lab.session(arp(), 25_000, 26_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, &json["verdict"]), (0, &"absent".into()), "{json:#}");
    assert_eq!(json["question"]["filter"], SSH);
    assert_eq!(json["question"]["from"], "2007-02-02T06:00:20.000000000Z");
    assert_eq!(json["coverage"]["covered_s"], 20.0);
    assert_eq!(json["coverage"]["window_s"], 20.0);
    assert_eq!(json["ledger"]["chain"], "valid");
    assert_eq!(json["ledger"]["lines"], 60);
    assert_eq!(json["ledger"]["head"].as_str().map(str::len), Some(64));
    for empty in ["sessions", "possible"] {
        assert_eq!(list(&json, empty).len(), 0, "{json:#}");
    }
    let mut all = vec!["prove", SSH];
    all.extend_from_slice(&WINDOW);
    let output = lab.sensor.ask(&all);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("absent\nNo session matching"), "{text}");
    assert!(text.contains("lost none of 220 frames"), "{text}");
}

#[test]
fn what_was_there_is_present() {
    let mut lab = lab();
    let ssh = lab.session(tcp("192.0.2.7", 22), 15_000, 25_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, &json["verdict"]), (3, &"present".into()), "{json:#}");
    assert_eq!(list(&json, "sessions")[0]["uid"], ssh.uid.to_string());
    assert_eq!(list(&json, "sessions")[0]["presence"], "frames");
    let (code, _) = lab.ask("resp host 192.0.2.7 and tcp port 23");
    assert_eq!(code, 0);
}

#[test]
fn a_gap_is_named_and_only_its_own_time_is_unproven() {
    let cases = [
        (BlindCause::LinkDown, "link_down"),
        (BlindCause::XdpRemoved, "xdp_removed"),
        (BlindCause::Silent, "silent"),
        (BlindCause::WorkerStalled, "worker_stalled"),
        (BlindCause::SegmentsUnwritable, "segments_unwritable"),
    ];
    for (cause, name) in cases {
        let mut lab = lab();
        lab.minute_with(|second, line| {
            if (30..33).contains(&second) {
                line.blind.push(Blind {
                    from: line.from,
                    to: line.to,
                    cause,
                    iface: Some("eth0".into()),
                    queue: None,
                    worker: None,
                    detail: format!("seen in line {second}"),
                });
            }
        });
        let (code, json) = lab.ask(SSH);
        assert_eq!((code, reasons(&json)), (4, vec![name]), "{json:#}");
        assert_eq!(json["verdict"], "unproven");
        let gap = &json["coverage"]["gaps"][0];
        assert_eq!(gap["from"], "2007-02-02T06:00:30.000000000Z");
        assert_eq!(gap["to"], "2007-02-02T06:00:33.000000000Z", "one gap of three lines");
        assert_eq!(json["coverage"]["covered_s"], 17.0);
        let sentence = json["sentence"].as_str().expect("a sentence");
        assert!(sentence.contains(name) && sentence.contains("06:00:30"), "{sentence}");
        let before = ["--from", "2007-02-02 06:00:20", "--to", "2007-02-02 06:00:29"];
        assert_eq!(lab.ask_in(SSH, &before).0, 0);
        let after = ["--from", "2007-02-02 06:00:34", "--to", "2007-02-02 06:00:40"];
        assert_eq!(lab.ask_in(SSH, &after).0, 0);
    }
}

#[test]
fn a_certain_match_is_present_in_spite_of_gaps() {
    let mut lab = lab();
    lab.session(tcp("192.0.2.7", 22), 15_000, 25_000);
    lab.minute_with(|second, line| {
        if second == 30 {
            line.interfaces[0].queues[0].xdp.passed = 3;
            line.interfaces[0].queues[0].xdp.seen += 3;
        }
    });
    let (code, json) = lab.ask(SSH);
    assert_eq!(code, 3);
    assert_eq!(reasons(&json), ["excluded_by_policy"]);
    assert!(json["sentence"].as_str().expect("a sentence").contains("There may be more"));
}

#[test]
fn a_guessed_direction_could_match() {
    let mut lab = lab();
    let mut guessed = unclosed();
    std::mem::swap(&mut guessed.orig, &mut guessed.resp);
    guessed.direction_certain = false;
    lab.session(guessed, 25_000, 26_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, reasons(&json).len()), (4, 0), "{json:#}");
    let possible = list(&json, "possible");
    assert_eq!((&possible[0]["kind"], possible.len()), (&"session".into(), 1));
    assert!(possible[0]["why"].as_str().expect("why").contains("guess"));
    // Whichever end it was, this is certain.
    assert_eq!(lab.ask("host 192.0.2.7").0, 3);
    assert_eq!(lab.ask("host 192.0.2.8").0, 0);
}

#[test]
fn fragments_without_ports_could_match() {
    let mut lab = lab();
    let bare = |addr: &str| capture_flow::record::Side { pkts: 0, ..side(addr, 0, None) };
    let record = SessionRecord {
        orig: bare("10.0.0.1"),
        resp: bare("192.0.2.7"),
        history: History::default(),
        conn_state: ConnState::OTH,
        service: None,
        ..tcp("192.0.2.7", 0)
    };
    lab.session(record, 25_000, 25_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!(code, 4, "{json:#}");
    assert!(list(&json, "possible")[0]["why"].as_str().expect("why").contains("fragments"));
    assert_eq!(lab.ask("resp host 192.0.2.8 and tcp port 22").0, 0);
    assert_eq!(lab.ask("resp host 192.0.2.7 and udp port 22").0, 0);
}

/// TCP from 10.0.0.1 to 192.0.2.7, cut off within its header.
fn truncated() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 22];
    frame.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7, 0, 0]);
    frame
}

fn count_unread(line: &mut capture_store::ledger::LedgerLine) {
    line.workers[0].decoded -= 1;
    line.workers[0].undecodable.insert("transport_truncated".to_owned(), 1);
}

#[test]
fn an_undecodable_frame_could_match_unless_its_addresses_rule_it_out() {
    for noted in [true, false] {
        let mut lab = lab();
        let flows: &[FlowHash] = if noted { &[FlowHash::UNREAD] } else { &[] };
        lab.sensor.frame_of_all(0, at(25_500), flows, &truncated());
        lab.minute_with(|second, line| {
            if second == 25 {
                count_unread(line);
            }
        });
        let (code, json) = lab.ask(SSH);
        assert_eq!((code, reasons(&json).len()), (4, 0), "{json:#}");
        let frame = list(&json, "possible")[0];
        assert_eq!(frame["kind"], "frame");
        assert_eq!(frame["ts"], "2007-02-02T06:00:25.500000000Z");
        assert_eq!((&frame["dst"], &frame["bytes"]), (&"192.0.2.7".into(), &36.into()));
        assert_eq!(frame["why"], "transport header cut off");
        let sentence = json["sentence"].as_str().expect("a sentence");
        assert!(sentence.contains("a frame of 36 bytes from 10.0.0.1 to 192.0.2.7"), "{sentence}");
        assert_eq!(lab.ask("resp host 192.0.2.8 and tcp port 22").0, 0, "noted: {noted}");
        let before = ["--from", "2007-02-02 06:00:20", "--to", "2007-02-02 06:00:25"];
        assert_eq!(lab.ask_in(SSH, &before).0, 0, "the frame is not in this window");
    }
}

#[test]
fn an_undecodable_frame_that_nobody_can_look_at_could_match_anything() {
    let mut lab = lab();
    lab.minute_with(|second, line| {
        if second == 25 {
            count_unread(line);
        }
    });
    let (code, json) = lab.ask("resp host 203.0.113.99 and udp port 9");
    assert_eq!(code, 4);
    let frames = list(&json, "possible")[0];
    assert_eq!((&frames["kind"], &frames["count"]), (&"frames".into(), &1.into()));
}

#[test]
fn packets_dropped_after_decoding_leave_the_sessions_whole() {
    let mut lab = lab();
    lab.minute_with(|second, line| {
        if second == 30 {
            line.workers[0].written -= 4;
            line.workers[0].dropped.insert(capture_store::DropReason::NoSegment, 4);
        }
    });
    assert_eq!(lab.ask(SSH).0, 0);
    let mut lab = self::lab();
    lab.minute_with(|second, line| {
        if second == 30 {
            line.workers[0].written -= 4;
            line.workers[0].dropped.insert(capture_store::DropReason::DiskFull, 4);
        }
    });
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, reasons(&json)), (4, vec!["packets_not_written"]));
}

#[test]
fn a_session_silent_through_the_window_is_present() {
    // Frames before and behind it.
    let mut lab = lab();
    lab.session(unclosed(), 5_000, 50_000);
    lab.minute();
    assert_eq!(lab.ask(SSH).0, 3);
    // Held open until its idle limit passed behind the window.
    let mut lab = self::lab();
    lab.session(SessionRecord { flushed_at: at(45_000), ..unclosed() }, 5_000, 15_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, &list(&json, "sessions")[0]["presence"]), (3, &"open".into()));
    // Not over when it was last heard of.
    let mut lab = self::lab();
    let interim =
        SessionRecord { flushed_at: at(16_000), reason: RowReason::Interim, ..unclosed() };
    lab.session(interim, 5_000, 15_000);
    lab.minute();
    assert_eq!(lab.ask(SSH).0, 3);
    // Closed, or given up, before the window.
    for record in [tcp("192.0.2.7", 22), SessionRecord { flushed_at: at(19_000), ..unclosed() }] {
        let mut lab = self::lab();
        lab.session(record, 5_000, 15_000);
        lab.minute();
        assert_eq!(lab.ask(SSH).0, 0);
    }
}

#[test]
fn a_connection_given_up_before_the_window_that_goes_on_behind_it_was_open() {
    let midstream = || SessionRecord {
        history: history("DadA"),
        conn_state: ConnState::OTH,
        direction_certain: false,
        ..unclosed()
    };
    let given_up = || SessionRecord { flushed_at: at(19_000), ..unclosed() };
    let mut lab = lab();
    let first = lab.session(given_up(), 5_000, 15_000);
    lab.session(midstream(), 45_000, 50_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!(code, 3, "{json:#}");
    assert_eq!(list(&json, "sessions")[0]["uid"], first.uid.to_string());
    assert_eq!(list(&json, "sessions")[0]["presence"], "went_on");
    // Strays of a connection that was closed.
    let mut lab = self::lab();
    lab.session(tcp("192.0.2.7", 22), 5_000, 15_000);
    lab.session(midstream(), 45_000, 50_000);
    lab.minute();
    assert_eq!(lab.ask(SSH).0, 0);
    // Nobody knows since when it was open.
    let mut lab = self::lab();
    lab.session(midstream(), 45_000, 50_000);
    lab.minute();
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, list(&json, "possible").len()), (4, 1), "{json:#}");
    // A new beginning, or an attempt that nobody answered.
    for history in [history("ShADad"), history("A")] {
        let mut lab = self::lab();
        lab.session(SessionRecord { history, ..midstream() }, 45_000, 50_000);
        lab.minute();
        assert_eq!(lab.ask(SSH).0, 0);
    }
}

#[test]
fn totals_of_a_session_that_was_cut_short_could_be_more() {
    let mut lab = lab();
    let evicted = SessionRecord { reason: RowReason::Evicted, ..unclosed() };
    lab.session(evicted, 25_000, 26_000);
    lab.minute();
    assert_eq!(lab.ask("bytes > 10k").0, 4);
    assert_eq!(lab.ask("bytes >= 400").0, 3);
    assert_eq!(lab.ask("bytes < 400").0, 0, "it can only grow");
}

#[test]
fn a_datagram_session_that_begins_where_nothing_was_seen_has_no_certain_originator() {
    let reply = SessionRecord {
        protocol: capture_flow::key::Protocol::UDP,
        orig: side("192.0.2.53", 53, Some(10)),
        resp: side("10.0.0.1", 40_000, Some(10)),
        history: history("Dd"),
        ..icmp("10.0.0.1")
    };
    let dns = "resp host 192.0.2.53 and udp port 53";
    // The sensor began a moment before: the query may have been missed.
    let mut lab = lab();
    lab.session(reply.clone(), 25_000, 26_000);
    lab.minute();
    assert_eq!(lab.ask(dns).0, 4);
    assert_eq!(lab.ask("host 192.0.2.53").0, 3);
    // Ten minutes of complete record before it leave no doubt.
    let mut lab = self::lab();
    lab.session(reply, 25_000, 26_000);
    lab.sensor.line(0, -600, 60, |line| line.notes.push(Note::CleanStop));
    assert_eq!(lab.ask(dns).0, 0);
}

#[test]
fn what_is_not_logged_yet_is_unproven_until_it_is() {
    let mut lab = lab();
    for second in 0..30 {
        lab.sensor.line(second as u64, second, second + 1, |line| {
            line.complete_through = Some(at((second - 9).max(0) * 1000));
        });
    }
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, reasons(&json)), (4, vec!["unclean_end"]), "it died in 2007");
    assert_eq!(json["ask_again_at"], Value::Null);
}

#[test]
fn a_changed_line_breaks_the_chain() {
    let mut lab = lab();
    lab.minute();
    let path = lab.sensor.store.layout().ledger_day("s1", at(0));
    let ledger = std::fs::read_to_string(&path).expect("the ledger");
    let changed: Vec<String> = (0..)
        .zip(ledger.lines())
        .map(|(number, line)| match number {
            30 => line.replace("\"seen\":10,", "\"seen\":10, "),
            _ => line.to_owned(),
        })
        .collect();
    std::fs::write(&path, changed.join("\n") + "\n").expect("written");
    let (code, json) = lab.ask(SSH);
    assert_eq!((code, &json["ledger"]["chain"]), (4, &"broken".into()), "{json:#}");
    assert!(reasons(&json).contains(&"chain_broken"));
}

#[test]
fn two_sensors_must_both_cover_the_window() {
    let mut one = lab();
    one.minute();
    let mut two = lab();
    two.minute_with(|second, line| {
        if second == 30 {
            line.interfaces[0].queues[0].ring_losses = 5;
            line.interfaces[0].queues[0].received -= 5;
            line.workers[0] = Worker { received: 5, decoded: 5, written: 5, ..Worker::default() };
        }
    });
    let other = two.sensor.path.to_str().expect("a path").to_owned();
    let mut window = WINDOW.to_vec();
    assert_eq!(one.ask_in(SSH, &window).0, 0);
    window.extend(["--store", &other]);
    let (code, json) = one.ask_in(SSH, &window);
    assert_eq!((code, reasons(&json)), (4, vec!["ring_loss"]), "{json:#}");
    assert_eq!(json["coverage"]["gaps"][0]["frames_lost"], 5);
    assert_eq!(json["ledger"]["lines"], 120);
    assert_eq!(json["sensors"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_question_without_its_window_is_a_slip() {
    let mut lab = lab();
    lab.minute();
    for arguments in [
        vec!["prove", SSH],
        vec!["prove", SSH, "--from", "06:00"],
        vec!["prove", "--from", "06:00", "--to", "07:00"],
        vec!["prove", "resp hsot 1", "--from", "-2h", "--to", "-1h"],
        vec!["prove", SSH, "--from", "-2h", "--to", "-1h", "--wait", "soon"],
    ] {
        let output = lab.sensor.ask(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
    }
}
