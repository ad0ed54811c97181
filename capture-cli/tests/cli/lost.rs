//! What was promised and is gone: `prove` must not take it for nothing.

use capture_store::ledger::{Note, Worker};
use serde_json::Value;

use crate::support::{Sensor, at, errors};

/// Ten seconds from 06:00:20, and the end of the time that rows reach.
const WINDOW: [&str; 4] = ["--from", "2007-02-02 06:00:20", "--to", "2007-02-02 06:00:30"];
const TELNET: &str = "resp host 192.0.2.7 and tcp port 23";

fn lab() -> (tempfile::TempDir, Sensor) {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = Sensor::new(&dir.path().join("store"), "s1");
    (dir, sensor)
}

fn ask(sensor: &Sensor, filter: &str) -> (i32, Vec<String>, Value) {
    let mut all = vec!["prove", "--format", "json", filter];
    all.extend_from_slice(&WINDOW);
    let output = sensor.ask(&all);
    let text = String::from_utf8_lossy(&output.stdout);
    let json: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{}", errors(&output)));
    let gaps = json["coverage"]["gaps"].as_array().expect("gaps");
    let reasons = gaps.iter().map(|gap| gap["reason"].as_str().expect("a reason").to_owned());
    (output.status.code().expect("a code"), reasons.collect(), json)
}

#[test]
fn a_promise_that_was_taken_back_does_not_hold() {
    for last in [59, 22] {
        let (_dir, mut sensor) = lab();
        for (number, through) in [(0, 40), (1, last)] {
            let from = number as i64 * 30;
            sensor.line(number, from, from + 30, |line| {
                line.complete_through = Some(at(through * 1000));
            });
        }
        assert_eq!(ask(&sensor, TELNET).0, if last == 59 { 0 } else { 4 });
    }
}

#[test]
fn what_a_tunnel_hid_in_packets_that_are_gone_could_match_anything() {
    let (_dir, mut sensor) = lab();
    sensor.line(0, 0, 60, |line| {
        let inner_unread = [("too_deep".to_owned(), 2)].into();
        line.workers.push(Worker { inner_unread, ..Worker::default() });
        line.notes.push(Note::CleanStop);
    });
    let (code, reasons, json) = ask(&sensor, TELNET);
    assert_eq!((code, reasons.len()), (4, 0), "{json:#}");
    assert_eq!(json["possible"][0]["kind"], "frames");
}
