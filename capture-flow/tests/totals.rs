//! The sessions of every trace together have its frames and its bytes, as capinfos counts them:
//! a reader that knows nothing of Stillwire. What could not be decoded is listed by its reason.
#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use capture_flow::config::FlowConfig;
use capture_flow::decode::Undecodable;
use capture_flow::frame::LinkType;
use capture_flow::table::SessionTable;
use common::Collected;

/// LINKTYPE_SUNATM, which no session is made of.
const SUN_ATM: LinkType = LinkType(123);

/// Frames, and their bytes on the wire.
type Total = (u64, u64);

/// What capinfos counts; `None` where it cannot read the capture to its end.
fn capinfos(path: &Path) -> Option<Total> {
    // -T -m: a table separated by commas, -r: no header, -c: frames, -d: their bytes.
    let output = Command::new("capinfos").arg("-MTmrcd").arg(path).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || told.contains("cut short") {
        return None;
    }
    let line = String::from_utf8_lossy(&output.stdout);
    let mut fields = line.trim().rsplit(',').map(|field| field.parse().unwrap());
    let bytes = fields.next()?;
    Some((fields.next()?, bytes))
}

/// What the sessions count, and what no session does, by its reason.
fn sessions(path: &Path) -> (Total, BTreeMap<&'static str, Total>) {
    let mut table = SessionTable::new(FlowConfig::default()).unwrap();
    let mut sink = Collected::default();
    let mut undecodable = BTreeMap::<_, Total>::new();
    let mut last = Default::default();
    for (number, frame) in common::read_capture(path).iter().enumerate() {
        let before = table.stats().undecodable;
        table.observe_batch(&[frame.borrow(number)], &mut sink);
        for reason in Undecodable::ALL {
            if table.stats().undecodable[reason.index()] > before[reason.index()] {
                let total = undecodable.entry(reason.as_str()).or_default();
                // Wireshark's reader takes a pseudo-header of four bytes off these.
                let header = if frame.link == SUN_ATM { 4 } else { 0 };
                *total = (total.0 + 1, total.1 + u64::from(frame.wire_len) - header);
            }
        }
        last = frame.ts;
    }
    table.finish(last, &mut sink);
    let rows = sink.rows.iter().filter(|row| row.reason.is_final());
    let total = rows.fold((0, 0), |sum, row| (sum.0 + row.frames, sum.1 + row.frame_bytes));
    (total, undecodable)
}

#[test]
fn sessions_have_every_frame_and_byte_that_capinfos_counts() {
    let Some(folder) = common::traces() else {
        println!("no reference traces: set STILLWIRE_TRACES to the folder with zeek.json");
        return;
    };
    if Command::new("capinfos").arg("-v").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "capinfos is missing (package wireshark-common)");
        println!("NOT TESTED: capinfos is missing (package wireshark-common)");
        return;
    }
    let mut paths: Vec<_> = ["zeek", "hostile"]
        .iter()
        .flat_map(|name| std::fs::read_dir(folder.join(name)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "pcap" || ext == "pcapng"))
        .collect();
    paths.sort();
    let (mut all, mut cut, mut wrong) = ((0, 0), 0, Vec::new());
    for path in &paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(counted) = capinfos(path) else {
            cut += 1;
            println!("{name}: cut off or damaged, as capinfos says");
            continue;
        };
        let (mut total, undecodable) = sessions(path);
        for (reason, listed) in &undecodable {
            println!("{name}: {} frames, {} bytes undecodable: {reason}", listed.0, listed.1);
            total = (total.0 + listed.0, total.1 + listed.1);
        }
        if total != counted {
            wrong.push(format!("{name}: {total:?} of {counted:?} frames and bytes"));
        }
        all = (all.0 + counted.0, all.1 + counted.1);
    }
    println!("{} traces, {} frames, {} bytes, {cut} cut off", paths.len(), all.0, all.1);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cut < paths.len());
}
