//! Any sequence of frames through small tables: no panic, every frame in exactly one final row or
//! undecodable, every session ended once, its rows numbered upwards. With two workers the frames
//! go to either, and their rows through the join.
#![no_main]

use std::collections::{HashMap, HashSet};

use capture_flow::config::{Checksums, FlowConfig};
use capture_flow::frame::{Frame, IfaceId, LinkType, PcapPosition};
use capture_flow::join::{JoinConfig, Joiner};
use capture_flow::record::SessionRecord;
use capture_flow::sink::SessionUpdate;
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use libfuzzer_sys::fuzz_target;

#[derive(Default)]
struct Log {
    frames: u64,
    frame_bytes: u64,
    ended: HashSet<u128>,
    numbers: HashMap<u128, u32>,
    rows: u64,
}

impl Log {
    fn row(&mut self, record: &SessionRecord) {
        self.rows += 1;
        assert!(record.ts <= record.last_ts);
        assert!(!self.ended.contains(&record.uid.0), "a row after the last");
        let before = self.numbers.insert(record.uid.0, record.update);
        assert!(before.is_none_or(|before| before < record.update), "a number used before");
        if record.reason.is_final() {
            self.frames += record.frames;
            self.frame_bytes += record.frame_bytes;
            self.ended.insert(record.uid.0);
        }
    }
}

/// The workers' tables, the join, and the log.
struct Engine {
    tables: Vec<SessionTable>,
    joiner: Joiner,
    log: Log,
}

impl Engine {
    fn tell(&mut self, worker: usize, updates: Vec<SessionUpdate>, now: Nanos) {
        let log = &mut self.log;
        for update in updates {
            self.joiner.offer(worker as u16, update, &mut |record| log.row(&record));
        }
        self.joiner.advance(now, &mut |record| log.row(&record));
    }

    fn observe(&mut self, worker: usize, frames: &[Frame<'_>], now: Nanos) {
        let mut updates = Vec::<SessionUpdate>::new();
        self.tables[worker].observe_batch(frames, &mut updates);
        self.tell(worker, updates, now);
    }

    fn finish(&mut self, now: Nanos) {
        for worker in 0..self.tables.len() {
            let mut updates = Vec::<SessionUpdate>::new();
            self.tables[worker].finish(now, &mut updates);
            self.tell(worker, updates, now);
        }
        let log = &mut self.log;
        self.joiner.finish(now, &mut |record| log.row(&record));
    }
}

// The input is a row of frames: flags (whether a batch ends, link type, worker), seconds since the
// frame before, length (two bytes), bytes.
fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    let workers = if first & 8 == 0 { 1 } else { 2 };
    let config = FlowConfig {
        checksums: if first & 1 == 0 { Checksums::Ignore } else { Checksums::Verify },
        vlan_in_key: first & 2 != 0,
        table_bytes: if first & 4 == 0 { 1 << 20 } else { 1 << 14 },
        fragment_bytes: 20_000,
        halves: workers > 1,
        ..FlowConfig::default()
    };
    let tables =
        (0..workers).map(|worker| SessionTable::new(FlowConfig { worker, ..config.clone() }));
    let Ok(tables) = tables.collect() else { return };
    let capacity = if first & 16 == 0 { 1 << 10 } else { 2 };
    let joiner = Joiner::new(JoinConfig { workers, capacity, ..JoinConfig::default() });
    let mut engine = Engine { tables, joiner, log: Log::default() };
    let mut batches = [Vec::new(), Vec::new()];
    let mut now = Nanos(1_000_000_000);
    let (mut frames, mut frame_bytes) = (0, 0);
    while let [flags, seconds, high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (bytes, behind) = tail.split_at(len);
        rest = behind;
        now = Nanos(now.0 + i64::from(*seconds) * 1_000_000_000 + 1000);
        frames += 1;
        frame_bytes += bytes.len() as u64;
        let worker = usize::from(flags >> 2 & 1).min(usize::from(workers) - 1);
        batches[worker].push(Frame {
            ts: now,
            wire_len: len as u32,
            bytes,
            link: [LinkType::ETHERNET, LinkType::RAW][usize::from(flags >> 1) & 1],
            iface: IfaceId(u16::from(flags >> 6)),
            at: Some(PcapPosition { worker: worker as u16, segment: 1, offset: frames as u32 }),
        });
        if flags & 1 != 0 {
            engine.observe(worker, &batches[worker], now);
            batches[worker].clear();
        }
    }
    for (worker, batch) in batches.iter().enumerate().take(usize::from(workers)) {
        engine.observe(worker, batch, now);
    }
    engine.finish(now);
    let Engine { tables, joiner, log } = engine;
    let stats = |count: fn(&SessionTable) -> u64| tables.iter().map(count).sum::<u64>();
    let undecodable = stats(|table| table.stats().undecodable_frames());
    assert_eq!(stats(|table| table.stats().frames), frames);
    assert_eq!(stats(|table| table.stats().decoded) + undecodable, frames);
    assert_eq!(stats(|table| table.stats().held), 0);
    assert_eq!(joiner.stats().held, 0);
    assert!(log.frame_bytes <= frame_bytes);
    // A conversation that is let go early may forget a half.
    if joiner.stats().evicted == 0 {
        assert_eq!(log.frames + undecodable, frames);
    }
    if workers == 1 {
        assert_eq!(log.rows, stats(|table| table.stats().rows));
    }
});
