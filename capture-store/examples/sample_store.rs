//! Writes a small store into a new directory: something to try other tools on.
//!
//! `cargo run -p capture-store --example sample_store -- DIR`

use std::error::Error;
use std::path::Path;

use capture_flow::frame::{IfaceId, LinkType, PcapPosition};
use capture_flow::key::{Address, FlowHasher, Protocol, SessionKey};
use capture_flow::record::{ConnState, History, RowReason, SessionRecord, Side, Uid};
use capture_flow::sink::Mark;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{LedgerLine, LedgerWriter, Note, SealedFile};
use capture_store::segment::{SealPolicy, SegmentSpec, prepare};
use capture_store::sessions::{LogPolicy, SessionLog};
use capture_store::{OwnedStore, RunId};

/// 2007-02-02T06:25:00Z.
const START: i64 = 1_170_397_500_000_000_000;
const SESSIONS: u16 = 1000;
const FRAMES_OF_EACH: u64 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: sample_store DIR")?;
    let store = OwnedStore::open_or_create(Path::new(&dir), Some("sample"))?;
    let run = RunId::new(Nanos(START))?;
    let mut log = SessionLog::new(&store, &run, LogPolicy::default());
    let mut ledger = LedgerWriter::open(&store)?;
    let hasher = FlowHasher::new(store.identity().hash_seed());
    let sequence = store.next_sequence(0)?;
    let spec = SegmentSpec::new(0, 1 << 20, LinkType::ETHERNET);
    let mut segment = prepare(&store.layout().worker(0), sequence, &spec)?.activate();

    for number in 0..SESSIONS {
        let mut mark = Mark::default();
        let mut record = session(number);
        let key = SessionKey::of_ends(
            (record.orig.addr, record.orig.port),
            (record.resp.addr, record.resp.port),
            record.protocol,
            (0, 0),
        );
        for nth in 0..FRAMES_OF_EACH {
            let ts = record.ts + NanosDelta::from_millis(nth as i64);
            let frame = udp_frame(number, nth as u8);
            let offset = segment.append(ts, frame.len() as u32, &[&frame])?;
            let at = PcapPosition { worker: 0, segment: sequence, offset };
            segment.touch(at, hasher.hash(&key), &mut mark);
            record.pcap_first.get_or_insert(at);
            record.pcap_last = Some(at);
        }
        if log.append(&record, "eth0").is_err() {
            return Err("a row was lost".into());
        }
    }
    segment.publish();
    log.commit()?;
    let mut line = LedgerLine::new("sample", &run, 0, Nanos(START), Nanos(START + 2_000_000_000));
    if let Some(sealed) = segment.finish().seal(&SealPolicy::default())? {
        line.notes.extend(SealedFile::of_segment(&sealed).map(Note::Sealed));
    }
    for seal in log.close()?.1 {
        line.notes.extend(seal.seal()?.map(|sealed| Note::Sealed(sealed.file)));
    }
    ledger.append(&mut line)?;
    Ok(())
}

fn session(number: u16) -> SessionRecord {
    let side = |addr: [u8; 4], port, sent: bool| Side {
        addr: Address::Ip(addr.into()),
        port,
        l2_addr: None,
        bytes: Some(if sent { 10 * FRAMES_OF_EACH } else { 0 }),
        pkts: if sent { FRAMES_OF_EACH } else { 0 },
        ip_bytes: if sent { 38 * FRAMES_OF_EACH } else { 0 },
        local: Some(true),
    };
    let mut history = History::default();
    history.push(b'D');
    let ts = Nanos(START + i64::from(number) * 1_000_003);
    SessionRecord {
        uid: Uid(u128::from(number) << 64 | 7),
        iface: IfaceId(0),
        ts,
        last_ts: ts + NanosDelta::from_millis(FRAMES_OF_EACH as i64 - 1),
        duration: Some(NanosDelta::from_millis(FRAMES_OF_EACH as i64 - 1)),
        orig: side([10, 0, 0, (number % 200) as u8], 1024 + number, true),
        resp: side([10, 0, 1, 1], 9, false),
        protocol: Protocol::UDP,
        service: None,
        detail: None,
        conn_state: ConnState::S0,
        history,
        missed_bytes: 0,
        vlan: None,
        inner_vlan: None,
        tunnel_parents: None,
        direction_certain: true,
        fragment_overlap: false,
        join_certain: true,
        update: 0,
        reason: RowReason::Timeout,
        frames: FRAMES_OF_EACH,
        frame_bytes: 52 * FRAMES_OF_EACH,
        pcap_first: None,
        pcap_last: None,
        flushed_at: ts + NanosDelta::from_secs(61),
    }
}

/// Ethernet, IPv4, UDP to the discard port, ten bytes.
fn udp_frame(number: u16, nth: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let mut ip = [0x45, 0, 0, 38, 0, nth, 0, 0, 64, 17, 0, 0, 10, 0, 0, 0, 10, 0, 1, 1];
    ip[15] = (number % 200) as u8;
    let sum = ip.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let folded = |sum: u32| (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!folded(folded(sum)) as u16).to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&(1024 + number).to_be_bytes());
    frame.extend_from_slice(&[0, 9, 0, 18, 0, 0]);
    frame.extend_from_slice(b"stillwire!");
    frame
}
