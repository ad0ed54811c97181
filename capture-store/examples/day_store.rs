//! Writes the store of a sensor that ran for a day, without its packets: a line of the ledger a
//! second, as a live sensor with two queues writes it, and as many sessions as one likes. What
//! `docs/PERFORMANCE.md` says about questions over a day was measured on it.
//!
//! `cargo run --release -p capture-store --example day_store -- DIR [SESSIONS]`

use std::error::Error;
use std::path::Path;

use capture_flow::frame::IfaceId;
use capture_flow::key::{Address, Protocol};
use capture_flow::record::{ConnState, History, RowReason, SessionRecord, Side, Uid};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{
    Clock, Interface, LedgerLine, LedgerWriter, Link, Nic, Note, Queue, Silence, Worker, Xdp,
};
use capture_store::sessions::{LogPolicy, PendingSeal, SessionLog};
use capture_store::{OwnedStore, RunId};

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000_000_000;
const SECOND: i64 = 1_000_000_000;
const SECONDS: u64 = 86_400;
const FRAMES: u64 = 12;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let dir = args.next().ok_or("usage: day_store DIR [SESSIONS]")?;
    let sessions: u64 = match args.next() {
        Some(number) => number.to_string_lossy().parse()?,
        None => 1_500_000,
    };
    let store = OwnedStore::open_or_create(Path::new(&dir), Some("day"))?;
    let run = RunId::new(Nanos(START))?;
    let mut log = SessionLog::new(&store, &run, LogPolicy::default());
    let mut ledger = LedgerWriter::open(&store)?;
    let (mut number, mut rows) = (0_u64, 0);
    for interval in 0..SECONDS {
        let from = Nanos(START + interval as i64 * SECOND);
        let to = from + NanosDelta(SECOND);
        let mut line = line(&run, interval, from, to);
        while number * SECONDS < (interval + 1) * sessions {
            let record = session(number, from);
            // Every tenth has been logged before, when it was not over.
            if number.is_multiple_of(10) {
                let open = SessionRecord { reason: RowReason::Interim, ..record.clone() };
                append(&mut log, &open)?;
                append(&mut log, &SessionRecord { update: 1, ..record })?;
                rows += 2;
            } else {
                append(&mut log, &record)?;
                rows += 1;
            }
            number += 1;
        }
        line.rows.written = log.commit()?;
        let mut due = log.take_due(to);
        if interval + 1 == SECONDS {
            due.extend(log.close()?.1);
            line.notes.push(Note::CleanStop);
        }
        line.notes.extend(sealed(&due)?);
        line.tails = log.tails();
        ledger.append(&mut line)?;
    }
    println!("{SECONDS} lines, {number} sessions, {rows} rows");
    Ok(())
}

fn append(log: &mut SessionLog, record: &SessionRecord) -> Result<(), Box<dyn Error>> {
    log.append(record, "tap0").map_err(|_| "a row was lost".into())
}

fn sealed(due: &[PendingSeal]) -> Result<Vec<Note>, Box<dyn Error>> {
    let mut notes = Vec::new();
    for pending in due {
        notes.extend(pending.seal()?.map(|sealed| Note::Sealed(sealed.file)));
    }
    Ok(notes)
}

/// A line as a sensor with two queues writes it every second.
fn line(run: &RunId, interval: u64, from: Nanos, to: Nanos) -> LedgerLine {
    let mut line = LedgerLine::new("day", run, interval, from, to);
    line.written_at = to;
    line.complete_through = Some(to);
    let frames = 10_000 + interval % 977;
    let queue = |queue: u32| Queue {
        queue,
        worker: Some(queue as u16),
        xdp: Xdp { seen: frames, seen_bytes: 700 * frames, steered: frames, ..Xdp::default() },
        received: frames,
        ..Queue::default()
    };
    line.interfaces.push(Interface {
        name: "tap0".to_owned(),
        backend: "native-zerocopy".to_owned(),
        link: Link { up: true, ..Link::default() },
        nic: Some(Nic { rx_packets: 2 * frames, rx_bytes: 1_400 * frames, ..Nic::default() }),
        queues: vec![queue(0), queue(1)],
    });
    for worker in 0..2 {
        line.workers.push(Worker {
            worker,
            received: frames,
            decoded: frames,
            written: frames,
            written_bytes: 700 * frames,
            sessions: 5_000,
            ..Worker::default()
        });
    }
    line.clock = Some(Clock { source: "tai".to_owned(), stepped_ns: 0 });
    line.silence = Some(Silence { from: to - NanosDelta(300_000), to });
    line
}

/// Clients of a /16 and what they ask: names, pages, shells, pings.
fn session(number: u64, second: Nanos) -> SessionRecord {
    // Spreads addresses and kinds over the numbers (the constant is Knuth's).
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [a, b, c, kind, ..] = mixed.to_be_bytes();
    let (protocol, port, state, letters): (_, _, _, &[u8]) = match kind {
        0..120 => (Protocol::TCP, 443, ConnState::SF, b"ShADadFf"),
        120..150 => (Protocol::TCP, 80, ConnState::SF, b"ShADadFf"),
        150..160 => (Protocol::TCP, 8022, ConnState::SF, b"ShADadFf"),
        160..250 => (Protocol::UDP, 53, ConnState::SF, b"Dd"),
        _ => (Protocol::ICMP, 0, ConnState::OTH, b""),
    };
    let mut history = History::default();
    letters.iter().for_each(|letter| history.push(*letter));
    let side = |addr: [u8; 4], port, bytes| Side {
        addr: Address::Ip(addr.into()),
        port,
        l2_addr: None,
        bytes: Some(bytes),
        pkts: FRAMES / 2,
        ip_bytes: bytes + 40 * FRAMES / 2,
        local: None,
    };
    let ephemeral =
        if protocol == Protocol::ICMP { 8 } else { 32_768 + (mixed >> 40) as u16 % 28_000 };
    let last_ts = second + NanosDelta((mixed % 900_000_000) as i64);
    let ts = last_ts - NanosDelta((mixed >> 20) as i64 % (20 * SECOND));
    SessionRecord {
        uid: Uid(u128::from(mixed) << 64 | u128::from(number)),
        iface: IfaceId(0),
        ts,
        last_ts,
        duration: Some(last_ts - ts),
        orig: side([10, 0, a, b], ephemeral, 600 + mixed % 1000),
        resp: side([198, 51, c, kind], port, 900 + mixed % 100_000),
        protocol,
        service: None,
        detail: None,
        conn_state: state,
        history,
        missed_bytes: 0,
        vlan: None,
        inner_vlan: None,
        tunnel_parents: None,
        direction_certain: true,
        fragment_overlap: false,
        join_certain: true,
        update: 0,
        reason: RowReason::Closed,
        frames: FRAMES,
        frame_bytes: 700 * FRAMES,
        pcap_first: None,
        pcap_last: None,
        flushed_at: second + NanosDelta(SECOND),
    }
}
