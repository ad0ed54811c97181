//! `stillwire packets` on a store of a test's own.

use std::path::Path;
use std::process::Output;

use capture_flow::frame::LinkType;
use capture_flow::key::{FlowHasher, Protocol, SessionKey};
use capture_flow::record::{RowReason, SessionRecord, Side, Uid};
use capture_flow::time::Nanos;
use capture_store::pcap::SegmentReader;
use capture_store::{OwnedStore, RunId};

use crate::support::{Sensor, at, errors, icmp, side, stillwire, tcp};

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

/// A row of a session that goes on.
fn interim(record: SessionRecord) -> SessionRecord {
    SessionRecord { reason: RowReason::Interim, ..record }
}

#[test]
fn a_session_reaches_beyond_a_row_that_is_not_its_last() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    // Rows were written after two frames; the run was killed after four.
    let cut = sensor.session(interim(tcp("192.0.2.7", 22)), &[(0, at(0)), (1, at(10))]);
    let hash = sensor.hash(&cut);
    sensor.frame(0, at(20), hash, &[1; 60]);
    sensor.frame(1, at(30), hash, &[1; 60]);
    // The same ends again in the same run, as soon as the first session was over.
    let next = sensor.session(tcp("192.0.2.7", 22), &[(0, at(40)), (0, at(50))]);
    let lives = sensor.session(interim(tcp("192.0.2.8", 22)), &[(0, at(5))]);
    sensor.frame(0, at(7_000), sensor.hash(&lives), &[2; 60]);
    sensor.commit();
    let uid = |record: &SessionRecord| record.uid.to_string();
    // The next run's session with the key of the one that was cut off in this one.
    sensor.seal_segments();
    let run = sensor.provenance;
    sensor.provenance.run = RunId::parse("another").map(|run| run.tag());
    let other = sensor.session(tcp("192.0.2.8", 22), &[(0, at(9_000))]);
    sensor.commit();
    assert_ne!(sensor.provenance, run);
    for sealed in [false, true] {
        if sealed {
            sensor.seal_segments();
            sensor.seal_sessions();
        }
        let (output, path) = packets(&sensor, &[&uid(&cut)]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(times(&path), [0, 10, 20, 30]);
        assert!(errors(&output).contains("2 packets are later"), "{}", errors(&output));
        for (record, expected) in [(&next, vec![40, 50]), (&other, vec![9_000])] {
            let (output, path) = packets(&sensor, &[&uid(record)]);
            assert_eq!(times(&path), expected);
            assert!(!errors(&output).contains("are later"), "{}", errors(&output));
        }
        let (_, path) = packets(&sensor, &[&uid(&lives)]);
        assert_eq!(times(&path), [5, 7_000]);
        // No row reaches into this window, frames do.
        let window = ["host 192.0.2.7", "--from", "1170396000.015", "--to", "1170396000.035"];
        let (output, path) = packets(&sensor, &window);
        assert_eq!(times(&path), [20, 30]);
        assert!(errors(&output).contains("of 1 sessions"), "{}", errors(&output));
        let window = ["tcp", "--from", "1170396000.060", "--to", "1170396000.070"];
        let (output, path) = packets(&sensor, &window);
        assert_eq!(times(&path), [] as [i64; 0]);
        assert!(errors(&output).contains("no session matches"), "{}", errors(&output));
    }
}

#[test]
fn one_capture_replayed_twice_is_two_runs() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for run in ["first", "second"] {
        sensor.seal_segments();
        sensor.provenance.run = RunId::parse(run).map(|run| run.tag());
        let record = sensor.session(tcp("192.0.2.7", 22), &[(0, at(0)), (0, at(10))]);
        sensor.commit();
        let (output, path) = packets(&sensor, &["uid", &record.uid.to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(times(&path), [0, 10], "{run}");
    }
}

#[test]
fn tags_tell_sessions_apart_where_the_sensor_was_told_so() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let tagged = || SessionRecord { vlan: Some(7), ..tcp("192.0.2.7", 22) };
    // Told so: the same ends at the same time, with a tag and without.
    sensor.provenance.vlan_in_key = Some(true);
    let with = sensor.session(tagged(), &[(0, at(0)), (0, at(20))]);
    let without = sensor.session(tcp("192.0.2.7", 22), &[(0, at(10)), (0, at(15))]);
    sensor.seal_segments();
    // Not told so, later: one session, whatever its frames' tags.
    sensor.provenance.vlan_in_key = Some(false);
    let both = sensor.session(tagged(), &[(0, at(5_000)), (0, at(5_010))]);
    // Before segments said which.
    sensor.seal_segments();
    sensor.provenance = capture_store::Provenance::default();
    let unknown = sensor.session(tagged(), &[(0, at(9_000)), (0, at(9_010))]);
    sensor.commit();
    sensor.seal_segments();
    for (record, expected) in
        [(with, [0, 20]), (without, [10, 15]), (both, [5_000, 5_010]), (unknown, [9_000, 9_010])]
    {
        let (output, path) = packets(&sensor, &["uid", &record.uid.to_string()]);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(times(&path), expected);
    }
}

#[test]
fn a_frame_of_two_sessions_is_written_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let outer = sensor.session(interim(tcp("192.0.2.7", 22)), &[]);
    let inner = sensor.session(interim(icmp("192.0.2.9")), &[]);
    for record in [&outer, &inner] {
        let hash = sensor.hash(record);
        // The same frame, noted for both.
        let position = sensor.frame(0, at(500), hash, &[7; 60]);
        let mut row = SessionRecord { update: 1, ..record.clone() };
        (row.ts, row.last_ts, row.frames) = (at(500), at(500), 1);
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
fn packets_that_a_row_counted_and_no_index_knows_are_missed_aloud() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let whole = sensor.session(tcp("192.0.2.7", 22), &[(0, at(0)), (0, at(10))]);
    let mut row =
        SessionRecord { uid: Uid(77), ..sensor.session(tcp("192.0.2.8", 22), &[(0, at(20))]) };
    (row.ts, row.last_ts, row.frames) = (at(20), at(20), 4);
    sensor.row(&row);
    sensor.commit();
    let (output, path) = packets(&sensor, &["uid", &row.uid.to_string()]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert_eq!(times(&path), [20]);
    assert!(errors(&output).contains("1 of 1 sessions lack 3 packets"), "{}", errors(&output));
    let (output, _) = packets(&sensor, &["uid", &whole.uid.to_string()]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    // A window that cuts the session asks for less than the row counted.
    let (output, path) = packets(&sensor, &["host 192.0.2.7", "--to", "1170396000.005"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(times(&path), [0]);
}

/// An Ethernet frame with an IPv4 packet of this protocol between the addresses of [`tcp`].
fn ipv4(resp: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend((20 + payload.len() as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1]);
    frame.extend(resp);
    frame.extend(payload);
    frame
}

fn syn(resp: [u8; 4], port: u16) -> Vec<u8> {
    let mut segment = 40_000_u16.to_be_bytes().to_vec();
    segment.extend(port.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0]);
    ipv4(resp, 6, &segment)
}

#[test]
fn frames_that_the_index_does_not_know_are_found_in_the_segment() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store");
    let mut sensor = Sensor::new(&path, "s1");
    // The first frame is noted, the others were recorded and never noted.
    let record = tcp("192.0.2.7", 22);
    let first = sensor.frame(0, at(0), sensor.hash(&record), &syn([192, 0, 2, 7], 22));
    sensor.frame_of_all(0, at(5), &[], &syn([192, 0, 2, 8], 22));
    let last = sensor.frame_of_all(0, at(10), &[], &syn([192, 0, 2, 7], 22));
    let (pcap_first, pcap_last) = (Some(first), Some(last));
    let row = SessionRecord { last_ts: at(10), frames: 2, pcap_first, pcap_last, ..record };
    sensor.row(&row);
    sensor.seal_sessions();
    drop(sensor);
    let journal = path.join("pcap/w00/00000000000000000001.idx.open");
    std::fs::write(&journal, b"no journal any more").expect("written");
    let store = OwnedStore::open_or_create(&path, None).expect("recovered");
    assert_eq!(store.recovery().frames, 3);
    let out = dir.path().join("out.pcap");
    let ask = || {
        let (store, out) = (path.to_str().expect("a path"), out.to_str().expect("a path"));
        stillwire(&["packets", "--store", store, "host 192.0.2.7", "-w", out])
    };
    let output = ask();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(times(&out), [0, 10]);
    // An index that cannot be read at all is no reason to lose packets either.
    let index = path.join("pcap/w00/00000000000000000001.idx");
    std::fs::write(&index, b"no index").expect("written");
    let output = ask();
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(errors(&output).contains("all of its frames were read"), "{}", errors(&output));
    assert_eq!(times(&out), [0, 10]);
}

#[test]
fn fragments_that_never_became_a_datagram_are_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let bare = |addr: &str| Side { pkts: 0, ..side(addr, 0, None) };
    let (orig, resp) = (bare("2001:db8::1"), bare("2001:db8::2"));
    let record = SessionRecord { protocol: Protocol::ICMP6, orig, resp, ..icmp("192.0.2.9") };
    // The key that the session table has for such a session.
    let ends = [&record.orig, &record.resp].map(|end| (end.addr, 0));
    let key = SessionKey::new(ends[0], ends[1], Protocol::ICMP6, (0, 0));
    let hash = FlowHasher::new(sensor.store.identity().hash_seed()).hash(&key);
    let position = Some(sensor.frame(0, at(5), hash, &[1; 60]));
    let (pcap_first, pcap_last) = (position, position);
    let row =
        SessionRecord { frames: 1, ts: at(5), last_ts: at(5), pcap_first, pcap_last, ..record };
    sensor.row(&row);
    sensor.commit();
    let (output, path) = packets(&sensor, &["host 2001:db8::1"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(times(&path), [5]);
}

#[test]
fn moments_that_pcap_cannot_hold_are_found_where_it_put_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let record = tcp("192.0.2.7", 22);
    let early = Nanos(-5_000_000_000);
    let position = Some(sensor.frame(0, early, sensor.hash(&record), &[1; 60]));
    let (pcap_first, pcap_last) = (position, position);
    let row =
        SessionRecord { frames: 1, ts: early, last_ts: early, pcap_first, pcap_last, ..record };
    sensor.row(&row);
    sensor.commit();
    let (output, path) = packets(&sensor, &["host 192.0.2.7"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert_eq!(frames(&path).len(), 1);
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
