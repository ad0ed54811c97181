//! `stillwire packets` on a store of a test's own.

use std::path::Path;
use std::process::Output;

use capture_flow::frame::LinkType;
use capture_flow::record::{RowReason, SessionRecord};
use capture_flow::time::Nanos;
use capture_store::pcap::SegmentReader;

use crate::support::{Sensor, at, errors, icmp, tcp};

/// Times and first bytes of the frames in a classic pcap file.
fn frames(path: &Path) -> Vec<(Nanos, Vec<u8>)> {
    let len = std::fs::metadata(path).expect("a file").len();
    let reader = SegmentReader::open(path, len).expect("nanosecond pcap");
    let mut found = Vec::new();
    let end = reader.scan(|_, record, frame| {
        found.push((record.ts(), frame.to_vec()));
        true
    });
    assert_eq!(end.expect("read"), len, "nothing behind the last frame");
    found
}

fn times(path: &Path) -> Vec<i64> {
    frames(path).iter().map(|(ts, _)| (ts.0 - at(0).0) / 1_000_000).collect()
}

fn packets(sensor: &Sensor, arguments: &[&str]) -> (Output, std::path::PathBuf) {
    let path = sensor.path.with_extension("pcap");
    let _ = std::fs::remove_file(&path);
    let mut all = vec!["packets", "-w", path.to_str().expect("a path")];
    all.extend_from_slice(arguments);
    (sensor.ask(&all), path)
}

#[test]
fn frames_of_several_workers_come_in_the_order_of_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let wanted = sensor.session(
        tcp("192.0.2.7", 22),
        &[(0, at(0)), (1, at(10)), (0, at(20)), (1, at(30)), (2, at(5))],
    );
    sensor.session(tcp("192.0.2.8", 22), &[(0, at(1)), (1, at(11))]);
    sensor.commit();
    // Out of open segments, then out of sealed ones.
    for sealed in [false, true] {
        if sealed {
            sensor.seal_segments();
            sensor.seal_sessions();
        }
        let (output, path) = packets(&sensor, &["host", "192.0.2.7"]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(times(&path), [0, 5, 10, 20, 30]);
        let (output, path) = packets(&sensor, &[&wanted.uid.to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(times(&path), [0, 5, 10, 20, 30]);
        // Within a window, to the nanosecond.
        let (_, path) = packets(
            &sensor,
            &["host 192.0.2.7", "--from", "1170396000.010", "--to", "1170396000.020"],
        );
        assert_eq!(times(&path), [10, 20]);
        // To a pipe, the same bytes.
        let output = sensor.ask(&["packets", "tcp"]);
        let piped = dir.path().join("piped.pcap");
        std::fs::write(&piped, &output.stdout).expect("written");
        assert_eq!(times(&piped), [0, 1, 5, 10, 11, 20, 30]);
    }
}

#[test]
fn sessions_with_one_key_are_told_apart_by_time() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let first = sensor.session(tcp("192.0.2.7", 22), &[(0, at(0)), (0, at(100))]);
    let second = sensor.session(tcp("192.0.2.7", 22), &[(0, at(5000)), (0, at(5100))]);
    sensor.commit();
    for (record, expected) in [(first, [0, 100]), (second, [5000, 5100])] {
        let (_, path) = packets(&sensor, &["uid", &record.uid.to_string()]);
        assert_eq!(times(&path), expected);
    }
}

#[test]
fn a_frame_of_two_sessions_is_written_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let interim = |record| SessionRecord { reason: RowReason::Interim, ..record };
    let outer = sensor.session(interim(tcp("192.0.2.7", 22)), &[]);
    let inner = sensor.session(interim(icmp("192.0.2.9")), &[]);
    for record in [&outer, &inner] {
        let hash = sensor.hash(record);
        // The same frame, noted for both.
        let position = sensor.frame(0, at(500), hash, &[7; 60]);
        let mut row = SessionRecord { update: 1, ..record.clone() };
        (row.ts, row.last_ts) = (at(500), at(500));
        (row.pcap_first, row.pcap_last) = (Some(position), Some(position));
        row.reason = RowReason::Timeout;
        sensor.row(&row);
    }
    // A tunnel: one frame, two sessions.
    let hashes = [sensor.hash(&outer), sensor.hash(&inner)];
    sensor.frame_of_all(0, at(500), &hashes, &[9; 60]);
    sensor.commit();
    let (output, path) = packets(&sensor, &["ip"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(frames(&path).iter().filter(|(_, frame)| frame == &[9; 60]).count(), 1);
    assert_eq!(frames(&path).len(), 3);
}

#[test]
fn packets_that_are_gone_are_missed_aloud() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(tcp("192.0.2.7", 22), &[(0, at(0)), (0, at(10))]);
    sensor.seal_segments();
    sensor.session(tcp("192.0.2.8", 22), &[(0, at(20))]);
    sensor.session(tcp("192.0.2.9", 22), &[]);
    sensor.commit();
    sensor.seal_segments();
    let segments = capture_store::index::segments(sensor.store.store()).expect("segments");
    assert_eq!(segments.len(), 2);
    for extension in ["pcap", "idx"] {
        std::fs::remove_file(segments[0].pcap_path().with_extension(extension)).expect("removed");
    }
    let (output, path) = packets(&sensor, &["tcp"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(times(&path), [20], "what is there is written");
    assert!(
        errors(&output).contains("1 of 3 sessions: packets were retired"),
        "{}",
        errors(&output)
    );
    assert!(errors(&output).contains("could not be kept"), "{}", errors(&output));
    let (output, _) = packets(&sensor, &["host", "192.0.2.8"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
}

#[test]
fn several_link_types_give_pcapng() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(tcp("192.0.2.7", 22), &[(0, at(0))]);
    sensor.link(LinkType(101));
    sensor.session(tcp("192.0.2.8", 22), &[(0, at(10))]);
    sensor.commit();
    let (output, path) = packets(&sensor, &["tcp"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let bytes = std::fs::read(&path).expect("a file");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let mut blocks = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let length = word(at + 4) as usize;
        assert_eq!(word(at + length - 4) as usize, length);
        blocks.push((word(at), word(at + 8)));
        at += length;
    }
    assert_eq!(blocks, [(0x0a0d_0d0a, 0x1a2b_3c4d), (1, 1), (1, 101), (6, 0), (6, 1)]);
    // Either alone is plain pcap.
    let (_, path) = packets(&sensor, &["host", "192.0.2.8"]);
    assert_eq!(times(&path), [10]);
}

#[test]
fn nothing_found_is_an_empty_capture() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = Sensor::new(&dir.path().join("store"), "s1");
    let (output, path) = packets(&sensor, &["tcp"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(errors(&output).contains("no session matches"));
    assert_eq!(frames(&path).len(), 0);
    let (output, _) = packets(&sensor, &["tcp", "-w", "/nowhere/at/all.pcap"]);
    assert_eq!(output.status.code(), Some(2), "-w twice is a slip");
    let output = sensor.ask(&["packets", "tcp", "-w", "/nowhere/at/all.pcap"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("/nowhere/at/all.pcap"), "{}", errors(&output));
}
