//! Any sequence of frames through a small table: no panic, every frame in exactly one final row
//! or undecodable, every session ended once.
#![no_main]

use std::collections::HashSet;

use capture_flow::config::{Checksums, FlowConfig};
use capture_flow::frame::{Frame, IfaceId, LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use libfuzzer_sys::fuzz_target;

#[derive(Default)]
struct Rows {
    frames: u64,
    frame_bytes: u64,
    ended: HashSet<u128>,
    rows: u64,
}

impl Sink for Rows {
    fn touch(&mut self, _at: PcapPosition, _flow: FlowHash, _mark: &mut Mark) {}

    fn session(&mut self, update: SessionUpdate) {
        let record = update.record;
        self.rows += 1;
        assert!(record.ts <= record.last_ts);
        assert!(!self.ended.contains(&record.uid.0), "a row after the last");
        if record.reason.is_final() {
            self.frames += record.frames;
            self.frame_bytes += record.frame_bytes;
            self.ended.insert(record.uid.0);
        }
    }
}

// The input is a row of frames: flags (link type, and whether a batch ends), seconds since the
// frame before, length (two bytes), bytes.
fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let config = FlowConfig {
        checksums: if first & 1 == 0 { Checksums::Ignore } else { Checksums::Verify },
        vlan_in_key: first & 2 != 0,
        table_bytes: if first & 4 == 0 { 1 << 20 } else { 1 << 14 },
        fragment_bytes: 20_000,
        ..FlowConfig::default()
    };
    let Ok(mut table) = SessionTable::new(config) else { return };
    let mut rows = Rows::default();
    let mut batch = Vec::new();
    let mut now = Nanos(1_000_000_000);
    let (mut frames, mut frame_bytes) = (0, 0);
    while let [flags, seconds, high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (bytes, behind) = tail.split_at(len);
        rest = behind;
        now = Nanos(now.0 + i64::from(*seconds) * 1_000_000_000 + 1000);
        frames += 1;
        frame_bytes += bytes.len() as u64;
        batch.push(Frame {
            ts: now,
            wire_len: len as u32,
            bytes,
            link: [LinkType::ETHERNET, LinkType::RAW][usize::from(flags >> 1) & 1],
            iface: IfaceId(u16::from(flags >> 6)),
            at: Some(PcapPosition { worker: 0, segment: 1, offset: frames as u32 }),
        });
        if flags & 1 != 0 {
            table.observe_batch(&batch, &mut rows);
            batch.clear();
        }
    }
    table.observe_batch(&batch, &mut rows);
    table.finish(now, &mut rows);
    let stats = table.stats();
    let undecodable = stats.undecodable_frames();
    assert_eq!(stats.frames, frames);
    assert_eq!(stats.decoded + undecodable, frames);
    assert_eq!(rows.frames + undecodable, frames);
    assert!(rows.frame_bytes <= frame_bytes);
    assert_eq!(rows.rows, stats.rows);
    assert_eq!(stats.held, 0);
});
