//! A small store, made through the store's own writers, and the program run on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use capture_flow::frame::{IfaceId, LinkType, PcapPosition};
use capture_flow::key::{Address, FlowHash, FlowHasher, MacAddr, Protocol};
use capture_flow::record::{
    ConnState, History, RowReason, Service, ServiceDetail, SessionRecord, Side, Uid,
};
use capture_flow::sink::Mark;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{LedgerLine, LedgerWriter, Note, SealedFile};
use capture_store::segment::{ActiveSegment, SealPolicy, SegmentSpec, prepare};
use capture_store::sessions::{LogPolicy, SessionLog};
use capture_store::{OwnedStore, Provenance, RunId};

/// 2007-02-02T06:00:00Z.
pub(crate) const START: i64 = 1_170_396_000;

/// A moment so many milliseconds after [`START`].
pub(crate) fn at(millis: i64) -> Nanos {
    Nanos(START * 1_000_000_000 + millis * 1_000_000)
}

/// A sensor that writes what a test tells it.
pub(crate) struct Sensor {
    pub(crate) path: PathBuf,
    pub(crate) store: OwnedStore,
    pub(crate) run: RunId,
    /// Whose segments are that are begun from now on.
    pub(crate) provenance: Provenance,
    log: SessionLog,
    ledger: LedgerWriter,
    segments: BTreeMap<u16, ActiveSegment>,
    /// What the next line has to say.
    notes: Vec<Note>,
    link: LinkType,
    uids: u128,
}

impl Sensor {
    pub(crate) fn new(path: &Path, name: &str) -> Self {
        let store = OwnedStore::open_or_create(path, Some(name)).expect("a new store");
        let run = RunId::parse("20070202T060000Z-0badcafe").expect("a run");
        Self {
            path: path.to_owned(),
            log: SessionLog::new(&store, &run, LogPolicy::default()),
            ledger: LedgerWriter::open(&store).expect("a ledger"),
            segments: BTreeMap::new(),
            notes: Vec::new(),
            provenance: Provenance { run: Some(run.tag()), vlan_in_key: Some(false) },
            link: LinkType::ETHERNET,
            uids: name.bytes().map(u128::from).sum::<u128>() << 64,
            store,
            run,
        }
    }

    /// Frames that follow are of this link type, in segments of their own.
    pub(crate) fn link(&mut self, link: LinkType) {
        self.seal_segments();
        self.link = link;
    }

    /// Records one frame on a worker for a session; returns where it is.
    pub(crate) fn frame(
        &mut self,
        worker: u16,
        ts: Nanos,
        flow: FlowHash,
        bytes: &[u8],
    ) -> PcapPosition {
        self.frame_of_all(worker, ts, &[flow], bytes)
    }

    /// The same for several sessions at once.
    pub(crate) fn frame_of_all(
        &mut self,
        worker: u16,
        ts: Nanos,
        flows: &[FlowHash],
        bytes: &[u8],
    ) -> PcapPosition {
        if !self.segments.contains_key(&worker) {
            let dir = self.store.layout().worker(worker);
            std::fs::create_dir_all(&dir).expect("a directory");
            let sequence = self.store.next_sequence(worker).expect("a sequence number");
            let provenance = self.provenance;
            let spec = SegmentSpec { provenance, ..SegmentSpec::new(worker, 1 << 20, self.link) };
            let segment = prepare(&dir, sequence, &spec).expect("a segment").activate();
            self.segments.insert(worker, segment);
        }
        let segment = self.segments.get_mut(&worker).expect("a segment");
        let offset = segment.append(ts, bytes.len() as u32, &[bytes]).expect("room");
        let position = PcapPosition { worker, segment: segment.sequence(), offset };
        for flow in flows {
            segment.touch(position, *flow, &mut Mark::default());
        }
        segment.publish();
        position
    }

    /// Logs a session with a frame at each of the given moments, spread over the workers.
    pub(crate) fn session(
        &mut self,
        mut record: SessionRecord,
        frames: &[(u16, Nanos)],
    ) -> SessionRecord {
        self.uids += 1;
        record.uid = Uid(self.uids);
        let hash = self.hash(&record);
        for (number, (worker, ts)) in frames.iter().enumerate() {
            let mut bytes = vec![number as u8; 60];
            bytes[..16].copy_from_slice(&self.uids.to_be_bytes());
            let position = self.frame(*worker, *ts, hash, &bytes);
            record.pcap_first.get_or_insert(position);
            record.pcap_last = Some(position);
        }
        if let (Some(first), Some(last)) =
            (frames.iter().map(|f| f.1).min(), frames.iter().map(|f| f.1).max())
        {
            (record.ts, record.last_ts) = (first, last);
            record.duration = (last > first).then(|| last - first);
            record.frames = frames.len() as u64;
        }
        self.row(&record);
        record
    }

    pub(crate) fn hash(&self, record: &SessionRecord) -> FlowHash {
        let vlan_in_key = self.provenance.vlan_in_key == Some(true);
        FlowHasher::new(self.store.identity().hash_seed()).hash(&record.key(vlan_in_key))
    }

    /// Logs a row as it is.
    pub(crate) fn row(&mut self, record: &SessionRecord) {
        self.log.append(record, "eth0").expect("room for a row");
    }

    /// Lets readers see the rows so far, in the open tail.
    pub(crate) fn commit(&mut self) {
        self.log.commit().expect("committed");
    }

    /// Seals the session log into Parquet; the next line says so.
    pub(crate) fn seal_sessions(&mut self) {
        let (_, pending) = self.log.close().expect("closed");
        for seal in pending {
            let sealed = seal.seal().expect("sealed");
            self.notes.extend(sealed.map(|sealed| Note::Sealed(sealed.file)));
        }
    }

    /// Seals what segments are open; the next line says so.
    pub(crate) fn seal_segments(&mut self) {
        for (_, segment) in std::mem::take(&mut self.segments) {
            let policy = SealPolicy { sync: false, hash: true };
            let sealed = segment.finish().seal(&policy).expect("sealed").expect("frames in it");
            self.notes.extend(SealedFile::of_segment(&sealed).map(Note::Sealed));
        }
    }

    /// A ledger line from one second after START to another; the test changes it before.
    pub(crate) fn line(
        &mut self,
        interval: u64,
        from: i64,
        to: i64,
        edit: impl FnOnce(&mut LedgerLine),
    ) {
        let name = self.store.identity().sensor.clone();
        let (from, to) = (at(from * 1000), at(to * 1000));
        let mut line = LedgerLine::new(&name, &self.run, interval, from, to);
        line.complete_through = Some(to);
        self.commit();
        line.tails = self.log.tails();
        line.notes.append(&mut self.notes);
        edit(&mut line);
        self.ledger.append(&mut line).expect("a ledger line");
    }

    /// Runs a command on the store, times in UTC.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Output {
        let store = self.path.to_str().expect("a path");
        let (command, rest) = arguments.split_first().expect("a command");
        let mut all = vec![*command, "--store", store, "--tz", "UTC"];
        all.extend_from_slice(rest);
        stillwire(&all)
    }
}

/// Runs the program as a script would: no terminal, no environment of the tester's.
pub(crate) fn stillwire(arguments: &[&str]) -> Output {
    command().args(arguments).output().expect("stillwire runs")
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stillwire"));
    command.env_remove("STILLWIRE_STORE").env_remove("COLUMNS");
    command
}

/// Standard output of a command that succeeded.
pub(crate) fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", errors(output));
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

pub(crate) fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn side(addr: &str, port: u16, bytes: Option<u64>) -> Side {
    Side {
        addr: Address::Ip(addr.parse().expect("an address")),
        port,
        l2_addr: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        bytes,
        pkts: 2,
        ip_bytes: 200,
        local: None,
    }
}

/// A finished TCP session from 10.0.0.1 to this address and port.
pub(crate) fn tcp(resp: &str, port: u16) -> SessionRecord {
    let mut history = History::default();
    b"ShADadFf".iter().for_each(|letter| history.push(*letter));
    SessionRecord {
        uid: Uid(0),
        iface: IfaceId(0),
        ts: at(0),
        last_ts: at(1000),
        duration: Some(NanosDelta::from_secs(1)),
        orig: side("10.0.0.1", 40_000, Some(100)),
        resp: side(resp, port, Some(300)),
        protocol: Protocol::TCP,
        service: (port == 22).then_some(Service::Ssh),
        detail: None,
        conn_state: ConnState::SF,
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
        frames: 4,
        frame_bytes: 240,
        pcap_first: None,
        pcap_last: None,
        flushed_at: at(2000),
    }
}

pub(crate) fn tls(resp: &str, server_name: &str) -> SessionRecord {
    let detail = ServiceDetail { server_name: Some(server_name.into()), alpn: Some("h2".into()) };
    SessionRecord { service: Some(Service::Tls), detail: Some(Box::new(detail)), ..tcp(resp, 443) }
}

pub(crate) fn icmp(resp: &str) -> SessionRecord {
    SessionRecord {
        protocol: Protocol::ICMP,
        orig: side("10.0.0.1", 8, Some(56)),
        resp: side(resp, 0, Some(56)),
        conn_state: ConnState::OTH,
        history: History::default(),
        service: None,
        ..tcp(resp, 0)
    }
}

pub(crate) fn arp() -> SessionRecord {
    let mut record = icmp("10.0.0.9");
    record.protocol = Protocol::Ether(0x0806);
    record.orig = Side { addr: Address::Mac(MacAddr([2, 0, 0, 0, 0, 1])), port: 0, ..record.orig };
    record.resp = Side { addr: Address::Mac(MacAddr([255; 6])), port: 0, ..record.resp };
    record
}
