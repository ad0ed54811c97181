//! Zeek's own traces against Zeek's own conn.log, column by column.
//!
//! What differs on purpose is listed in `EXPLAINED` and described in docs/CONFORMANCE.md.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use capture_flow::config::{Checksums, FlowConfig, ServerPort};
use capture_flow::key::{FlowHash, Protocol};
use capture_flow::record::{RowReason, SessionRecord};
use capture_flow::table::SessionTable;
use capture_flow::time::NanosDelta;
use common::{Collected, read_capture, traces};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    trace: String,
    expected: String,
    checksums: String,
    likely_server_ports: Vec<String>,
}

/// A row of Zeek's.
#[derive(Deserialize)]
struct ZeekRow {
    proto: String,
    #[serde(rename = "id.orig_h")]
    orig_h: String,
    #[serde(rename = "id.orig_p")]
    orig_p: u16,
    #[serde(rename = "id.resp_h")]
    resp_h: String,
    #[serde(rename = "id.resp_p")]
    resp_p: u16,
    conn_state: Option<String>,
    duration: Option<f64>,
    orig_bytes: Option<u64>,
    resp_bytes: Option<u64>,
    missed_bytes: Option<u64>,
    history: Option<String>,
    orig_pkts: Option<u64>,
    orig_ip_bytes: Option<u64>,
    resp_pkts: Option<u64>,
    resp_ip_bytes: Option<u64>,
}

const COLUMNS: [&str; 15] = [
    "proto",
    "id.orig_h",
    "id.orig_p",
    "id.resp_h",
    "id.resp_p",
    "conn_state",
    "duration",
    "orig_bytes",
    "resp_bytes",
    "missed_bytes",
    "history",
    "orig_pkts",
    "orig_ip_bytes",
    "resp_pkts",
    "resp_ip_bytes",
];

/// Column of the duration, the only one compared with a tolerance.
const DURATION: usize = 6;

/// The columns of a row as text.
type Row = [String; COLUMNS.len()];

/// Rows that differ from Zeek's for a reason that docs/CONFORMANCE.md gives: trace and number.
const EXPLAINED: [(&str, usize); 0] = [];

fn text<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn seconds(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.6}"))
}

/// Without the letters that say that Zeek itself gave up analysing.
fn letters(history: &str) -> String {
    let letters: String = history.chars().filter(|letter| !"Xx".contains(*letter)).collect();
    if letters.is_empty() { "-".to_owned() } else { letters }
}

fn address(text: &str) -> String {
    text.parse::<std::net::IpAddr>().map_or_else(|_| text.to_owned(), |ip| ip.to_string())
}

fn expected_row(row: &ZeekRow) -> Row {
    [
        row.proto.clone(),
        address(&row.orig_h),
        row.orig_p.to_string(),
        address(&row.resp_h),
        row.resp_p.to_string(),
        text(row.conn_state.as_ref()),
        seconds(row.duration),
        text(row.orig_bytes),
        text(row.resp_bytes),
        text(row.missed_bytes),
        letters(row.history.as_deref().unwrap_or("")),
        text(row.orig_pkts),
        text(row.orig_ip_bytes),
        text(row.resp_pkts),
        text(row.resp_ip_bytes),
    ]
}

/// `None` for what Zeek does not log: the protocols that `is_in_zeeks_log` leaves out, and
/// datagrams that never became complete.
fn our_row(record: &SessionRecord) -> Option<Row> {
    let Protocol::Ip(number) = record.protocol else { return None };
    if !record.protocol.is_in_zeeks_log(record.orig.addr) {
        return None;
    }
    let proto = match number {
        6 => "tcp",
        17 => "udp",
        1 | 58 => "icmp",
        _ => "unknown_transport",
    };
    let has_ports = record.orig.port != 0 || record.resp.port != 0;
    let fragments_only = record.orig.pkts + record.resp.pkts == 0
        && !has_ports
        && record.history.as_str().is_empty();
    if fragments_only {
        return None;
    }
    Some([
        proto.to_owned(),
        record.orig.addr.to_string(),
        record.orig.port.to_string(),
        record.resp.addr.to_string(),
        record.resp.port.to_string(),
        record.conn_state.as_str().to_owned(),
        seconds(record.duration.map(NanosDelta::as_secs_f64)),
        text(record.orig.bytes),
        text(record.resp.bytes),
        record.missed_bytes.to_string(),
        letters(record.history.as_str()),
        record.orig.pkts.to_string(),
        record.orig.ip_bytes.to_string(),
        record.resp.pkts.to_string(),
        record.resp.ip_bytes.to_string(),
    ])
}

fn equal(column: usize, ours: &str, theirs: &str) -> bool {
    if column == DURATION
        && let (Ok(ours), Ok(theirs)) = (ours.parse::<f64>(), theirs.parse::<f64>())
    {
        // A microsecond, and half of one for the rounding of each side's text.
        return (ours - theirs).abs() < 2e-6;
    }
    ours == theirs
}

fn differing(ours: &Row, theirs: &Row) -> Vec<usize> {
    (0..COLUMNS.len()).filter(|&column| !equal(column, &ours[column], &theirs[column])).collect()
}

/// Pairs each expected row with the most similar row of ours that is left.
fn pair(ours: &[Row], theirs: &[Row]) -> (Vec<(usize, Option<usize>)>, Vec<usize>) {
    let mut free: Vec<usize> = (0..ours.len()).collect();
    let mut pairs: Vec<(usize, Option<usize>)> = Vec::new();
    let mut open: Vec<usize> = (0..theirs.len()).collect();
    // Ever more differences allowed: whoever fits best is paired first.
    for allowed in 0..COLUMNS.len() - 4 {
        open.retain(|&expected| {
            let best = free.iter().position(|&candidate| {
                let ends_equal = {
                    let (a, b) = (&ours[candidate], &theirs[expected]);
                    let there = a[0..5] == b[0..5];
                    let back = a[0] == b[0] && a[1..3] == b[3..5] && a[3..5] == b[1..3];
                    there || back
                };
                ends_equal && differing(&ours[candidate], &theirs[expected]).len() <= allowed
            });
            if let Some(best) = best {
                pairs.push((expected, Some(free.remove(best))));
            }
            best.is_none()
        });
    }
    pairs.extend(open.into_iter().map(|expected| (expected, None)));
    (pairs, free)
}

fn config(case: &Case) -> FlowConfig {
    let ports = case.likely_server_ports.iter().map(|port| {
        let (number, protocol) = port.split_once('/').unwrap();
        let number = number.parse().unwrap();
        if protocol == "tcp" { ServerPort::tcp(number) } else { ServerPort::udp(number) }
    });
    FlowConfig {
        checksums: if case.checksums == "verify" { Checksums::Verify } else { Checksums::Ignore },
        likely_server_ports: ports.collect(),
        // Zeek's conn.log has one row a session.
        interim: NanosDelta::from_secs(1 << 33),
        ..FlowConfig::default()
    }
}

#[test]
fn rows_equal_zeeks() {
    let Some(folder) = traces() else {
        println!("no reference traces: set STILLWIRE_TRACES to the folder with zeek.json");
        return;
    };
    let cases = std::fs::read_to_string(folder.join("zeek.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&cases).unwrap();
    let mut equal_rows: BTreeMap<usize, usize> = BTreeMap::new();
    let (mut expected_rows, mut whole_rows) = (0, 0);
    let mut unexplained = Vec::new();
    for case in &cases {
        let frames = read_capture(&folder.join(&case.trace));
        let borrowed: Vec<_> = frames.iter().enumerate().map(|(n, f)| f.borrow(n)).collect();
        let mut table = SessionTable::new(config(case)).unwrap();
        let mut sink = Collected::default();
        table.observe_batch(&borrowed, &mut sink);
        let end = frames.last().map(|frame| frame.ts).unwrap_or_default();
        table.finish(end, &mut sink);

        check_totals(case, &frames, &table, &sink);
        let ours: Vec<Row> = sink.rows.iter().filter_map(our_row).collect();
        let theirs = std::fs::read_to_string(folder.join(&case.expected)).unwrap();
        let theirs: Vec<ZeekRow> = serde_json::from_str(&theirs).unwrap();
        let theirs: Vec<Row> = theirs.iter().map(expected_row).collect();
        let (pairs, extra) = pair(&ours, &theirs);
        let mut differences = Vec::new();
        for (expected, found) in pairs {
            expected_rows += 1;
            let columns = found.map(|found| differing(&ours[found], &theirs[expected]));
            for column in 0..COLUMNS.len() {
                let same = columns.as_ref().is_some_and(|columns| !columns.contains(&column));
                *equal_rows.entry(column).or_default() += usize::from(same);
            }
            match (found, columns) {
                (Some(_), Some(columns)) if columns.is_empty() => whole_rows += 1,
                (Some(found), Some(columns)) => {
                    let named: Vec<_> = columns.iter().map(|&column| COLUMNS[column]).collect();
                    let pair = (&ours[found], &theirs[expected]);
                    differences.push(format!(
                        "{named:?}\n    ours   {:?}\n    Zeek's {:?}",
                        pair.0, pair.1
                    ));
                }
                _ => differences.push(format!("missing {:?}", theirs[expected])),
            }
        }
        differences.extend(extra.iter().map(|&row| format!("not Zeek's {:?}", ours[row])));
        let allowed = EXPLAINED.iter().find(|(trace, _)| *trace == case.trace);
        if differences.len() != allowed.map_or(0, |&(_, rows)| rows) {
            unexplained.push(format!("{} ({}): {differences:#?}", case.trace, case.expected));
        }
    }
    println!("{:<16} rows equal of rows expected", "column");
    for (column, name) in COLUMNS.iter().enumerate() {
        println!("{name:<16} {} of {expected_rows}", equal_rows.get(&column).unwrap_or(&0));
    }
    println!("{:<16} {whole_rows} of {expected_rows}", "all columns");
    assert!(unexplained.is_empty(), "unexplained differences:\n{}", unexplained.join("\n"));
}

/// Every frame is in exactly one session or undecodable under a reason, and every recorded frame
/// of a session was touched.
fn check_totals(
    case: &Case,
    frames: &[common::OwnedFrame],
    table: &SessionTable,
    sink: &Collected,
) {
    let stats = table.stats();
    let last: Vec<_> = sink.rows.iter().filter(|row| row.reason != RowReason::Interim).collect();
    let counted: u64 = last.iter().map(|row| row.frames).sum();
    let bytes: u64 = last.iter().map(|row| row.frame_bytes).sum();
    assert_eq!(stats.frames, frames.len() as u64, "{}", case.trace);
    assert_eq!(stats.held, 0, "{}", case.trace);
    assert_eq!(counted, stats.decoded, "{}", case.trace);
    assert_eq!(counted + stats.undecodable_frames(), stats.frames, "{}", case.trace);
    let of_sessions = |flows: &&Vec<FlowHash>| flows.iter().any(|flow| *flow != FlowHash::UNREAD);
    let touched = sink.touches.values().filter(of_sessions).count() as u64;
    assert_eq!(touched, counted, "{}", case.trace);
    let unread = sink.touches.values().filter(|flows| flows.contains(&FlowHash::UNREAD)).count();
    assert!(unread as u64 >= stats.undecodable_frames(), "{}", case.trace);
    if stats.undecodable_frames() == 0 {
        let wire: u64 = frames.iter().map(|frame| u64::from(frame.wire_len)).sum();
        assert_eq!(bytes, wire, "{}", case.trace);
    }
}
