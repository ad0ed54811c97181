//! A flood of new sessions through a table that is a hundred times too small for it: memory stays
//! what it was, every frame is in exactly one record, and a session that is in use stays.

#![allow(clippy::unwrap_used)]

use capture_flow::config::FlowConfig;
use capture_flow::frame::{Frame, IfaceId, LinkType, PcapPosition};
use capture_flow::key::{FlowHash, Protocol};
use capture_flow::record::RowReason;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;

const TUPLES: u32 = 10_000_000;
const SESSIONS: usize = 100_000;
const BATCH: u32 = 100;

/// A SYN from 10.x.y.z: Ethernet, IPv4, TCP, padded to the shortest frame.
const SYN: [u8; 60] = {
    let mut bytes = [0; 60];
    let head = [
        [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 40],
        [0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 0, 192, 0, 2, 1, 0x9c, 0x40],
        [0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0],
    ];
    let mut at = 0;
    while at < 54 {
        bytes[at] = head[at / 18][at % 18];
        at += 1;
    }
    bytes
};

/// A UDP frame of the one session that goes on: 198.51.100.7:40000 to 192.0.2.1:9.
const STEADY: [u8; 60] = {
    let mut bytes = SYN;
    let source = [198, 51, 100, 7];
    let mut at = 0;
    while at < 4 {
        bytes[26 + at] = source[at];
        at += 1;
    }
    bytes[23] = 17;
    bytes[37] = 9;
    bytes[38] = 0;
    bytes[39] = 20;
    bytes
};

/// Every frame of the flood, once it is in a record.
struct Records {
    seen: Vec<u64>,
    rows: u64,
    evicted: u64,
    steady: Vec<SessionUpdate>,
    touches: u64,
}

impl Records {
    fn new() -> Self {
        let words = TUPLES as usize / 64 + 1;
        // Written to, so that its memory is there before anything is measured.
        let seen = vec![u64::MAX; words];
        let mut records = Self { seen, rows: 0, evicted: 0, steady: Vec::new(), touches: 0 };
        records.seen.fill(0);
        records
    }
}

impl Sink for Records {
    fn touch(&mut self, _: PcapPosition, _: FlowHash, _: &mut Mark) {
        self.touches += 1;
    }

    fn session(&mut self, update: SessionUpdate) {
        let record = &update.record;
        if record.orig.port == 40_000 && record.protocol == Protocol::UDP {
            self.steady.push(update);
            return;
        }
        let at = record.pcap_first.unwrap();
        assert_eq!(record.pcap_last, Some(at), "one frame");
        assert_eq!((record.frames, record.frame_bytes), (1, 60));
        assert_eq!((record.orig.pkts, record.resp.pkts), (1, 0));
        assert!(record.reason.is_final());
        let (word, bit) = (at.offset as usize / 64, at.offset % 64);
        assert_eq!(self.seen[word] >> bit & 1, 0, "frame {} is in two records", at.offset);
        self.seen[word] |= 1 << bit;
        self.rows += 1;
        self.evicted += u64::from(record.reason == RowReason::Evicted);
    }
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn ten_million_tuples_through_a_table_of_a_hundred_thousand() {
    let table_bytes = SESSIONS * SessionTable::bytes_per_session();
    let mut table = SessionTable::new(FlowConfig { table_bytes, ..FlowConfig::default() }).unwrap();
    assert_eq!(table.stats().capacity, SESSIONS as u64);
    let mut records = Records::new();
    let mut bytes = vec![SYN; BATCH as usize];
    let mut full = 0;
    let mut steady_frames = 0;
    let mut now = Nanos(0);
    // A million new sessions a second.
    for first in (0..TUPLES).step_by(BATCH as usize) {
        for (number, bytes) in (first..).zip(&mut bytes) {
            bytes[27..30].copy_from_slice(&number.to_be_bytes()[1..]);
        }
        let frame = |number: u32, bytes| Frame {
            ts: Nanos(i64::from(number) * 1000),
            wire_len: 60,
            bytes,
            link: LinkType::ETHERNET,
            iface: IfaceId(0),
            at: Some(PcapPosition { worker: 0, segment: 0, offset: number }),
        };
        let mut batch: Vec<Frame<'_>> =
            (first..).zip(&bytes).map(|(number, bytes)| frame(number, bytes.as_slice())).collect();
        if first % 50_000 == 0 {
            batch.push(frame(first + BATCH - 1, &STEADY));
            steady_frames += 1;
        }
        now = batch.last().unwrap().ts;
        table.observe_batch(&batch, &mut records);
        if first == 2 * SESSIONS as u32 {
            full = resident();
        }
        assert!(table.stats().sessions <= SESSIONS as u64);
    }
    let grown = resident().saturating_sub(full);
    // What the allocator and the test's own threads may take; the flood itself would be gigabytes.
    assert!(grown < 1 << 20, "{grown} bytes more than when the table was full");

    let evicted = table.stats().evicted;
    table.finish(now, &mut records);
    let stats = table.stats();
    assert_eq!(stats.frames, u64::from(TUPLES) + steady_frames);
    assert_eq!(stats.decoded, stats.frames);
    assert_eq!(records.touches, stats.frames);
    // Each record has another frame of the flood, and there are as many as frames.
    assert_eq!(records.rows, u64::from(TUPLES));
    assert_eq!(records.evicted, evicted);
    assert_eq!(evicted, u64::from(TUPLES) + 1 - SESSIONS as u64);
    let [steady] = records.steady.as_slice() else {
        panic!("the session in use has {} records", records.steady.len());
    };
    assert_eq!(steady.record.frames, steady_frames);
    assert_eq!(steady.record.orig.pkts, steady_frames);
}
