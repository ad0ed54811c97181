//! The session log from rows to answers, through the public interface.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use capture_flow::frame::{IfaceId, PcapPosition};
use capture_flow::key::{Address, FlowHasher, MacAddr, Protocol, SessionKey};
use capture_flow::record::{
    ConnState, History, RowReason, Service, ServiceDetail, SessionRecord, Side, Uid,
};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{Doubt, LedgerLine, LedgerWriter, Note};
use capture_store::retention::{Budgets, Retention};
use capture_store::sessions::{
    LogPolicy, RowNames, Scan, ScanReport, SealSessionsError, SessionLog, SessionRow, column_names,
    proto_name, scan,
};
use capture_store::{OwnedStore, RowLossReason, RunId, Store};
use parquet::arrow::ArrowWriter;
use proptest::prelude::*;

const HOUR: i64 = 3_600_000_000_000;
const START: i64 = 1_170_396_000_000_000_000; // 2007-02-02T06:00:00Z

fn run() -> RunId {
    RunId::parse("20070202T060000Z-0badcafe").unwrap()
}

fn small_store(dir: &Path) -> OwnedStore {
    OwnedStore::open_or_create(&dir.join("store"), Some("test")).unwrap()
}

fn side(addr: &str, port: u16) -> Side {
    Side {
        addr: Address::Ip(addr.parse().unwrap()),
        port,
        l2_addr: Some(MacAddr([2, 0, 0, 0, 0, 1])),
        bytes: Some(100),
        pkts: 3,
        ip_bytes: 220,
        local: Some(true),
    }
}

fn record(number: u64, ts: i64) -> SessionRecord {
    let mut history = History::default();
    b"ShADadFf".iter().for_each(|letter| history.push(*letter));
    SessionRecord {
        uid: Uid(u128::from(number)),
        iface: IfaceId(0),
        ts: Nanos(ts),
        last_ts: Nanos(ts + 1_000_000_000),
        duration: Some(NanosDelta(1_000_000_000)),
        orig: side(&format!("10.0.{}.{}", number / 250, number % 250), 40_000),
        resp: side("2001:db8::1", 443),
        protocol: Protocol::TCP,
        service: Some(Service::Tls),
        detail: Some(Box::new(ServiceDetail {
            server_name: Some("example.org".into()),
            alpn: None,
        })),
        conn_state: ConnState::SF,
        history,
        missed_bytes: 0,
        vlan: Some(7),
        inner_vlan: None,
        tunnel_parents: Some([Uid(1), Uid(2)].into()),
        direction_certain: true,
        fragment_overlap: false,
        join_certain: true,
        update: 0,
        reason: RowReason::Closed,
        frames: 6,
        frame_bytes: 500,
        pcap_first: Some(PcapPosition { worker: 1, segment: 2, offset: 24 }),
        pcap_last: None,
        flushed_at: Nanos(ts + 2_000_000_000),
    }
}

fn collect(store: &Store, what: &Scan) -> (Vec<SessionRow<'static>>, ScanReport) {
    let mut rows = Vec::new();
    let report = scan(store, what, |batch| {
        SessionRow::for_each(&batch, |row| rows.push(row.into_owned())).unwrap();
        ControlFlow::Continue(())
    })
    .unwrap();
    (rows, report)
}

fn uids(store: &Store, what: &Scan) -> BTreeSet<String> {
    let (rows, report) = collect(store, what);
    assert_eq!(report.damaged, []);
    let uids: BTreeSet<_> = rows.iter().map(|row| row.uid.to_string()).collect();
    assert_eq!(uids.len(), rows.len(), "no row comes twice");
    uids
}

#[test]
fn rows_without_a_port_that_is_asked_for_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    let plain = record(0, START);
    let with = |orig, resp| (side("10.0.0.1", orig), side("10.0.0.2", resp));
    let (orig, resp) = with(0, 0);
    let unknown = SessionRecord { orig, resp, ..plain.clone() };
    let (orig, resp) = with(22, 50_000);
    let turned = SessionRecord { orig, resp, ..plain.clone() };
    let overlap = SessionRecord { fragment_overlap: true, ..plain.clone() };
    let hidden = SessionRecord { protocol: Protocol::Ether(0x0800), ..plain.clone() };
    for (number, record) in (0..).zip([plain, unknown, turned, overlap, hidden]) {
        log.append(&SessionRecord { uid: Uid(number), ..record }, "eth0").unwrap();
    }
    let (_, pending) = log.close().unwrap();
    pending[0].seal().unwrap();
    let rows = |first, last| {
        let whatever_ends = vec![proto_name(Protocol::Ether(0x0800)).into_owned()];
        let what = Scan { ports: vec![(first, last)], whatever_ends, ..Scan::default() };
        uids(store.store(), &what)
    };
    let all = |numbers: &[u128]| numbers.iter().map(|n| Uid(*n).to_string()).collect();
    assert_eq!(rows(22, 22), all(&[1, 2, 3, 4]));
    assert_eq!(rows(443, 443), all(&[0, 1, 3, 4]));
    assert_eq!(rows(1, 21), all(&[1, 3, 4]));
    assert_eq!(rows(40_000, 60_000), all(&[0, 1, 2, 3, 4]));
}

fn live_file(store: &Store) -> PathBuf {
    let mut files = fs::read_dir(store.layout().live()).unwrap();
    files.next().unwrap().unwrap().path()
}

#[test]
fn rows_are_read_from_the_tail_and_then_from_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    let all: BTreeSet<String> = (0..10).map(|n| Uid(n).to_string()).collect();
    for number in 0..10 {
        log.append(&record(number, START + number as i64), "eth0").unwrap();
        assert_eq!(log.commit().unwrap(), 1);
    }
    let reader = Store::open(store.layout().root()).unwrap();
    assert_eq!(uids(&reader, &Scan::default()), all);
    assert!(log.take_due(Nanos(START + HOUR - 1)).is_empty());
    let due = log.take_due(Nanos(START + HOUR));
    assert_eq!(due.len(), 1);
    assert_eq!(uids(&reader, &Scan::default()), all, "between rotation and sealing");
    let tail = due[0].path().to_owned();
    let bytes = fs::read(&tail).unwrap();
    let sealed = due[0].seal().unwrap().unwrap();
    assert_eq!(sealed.rows, 10);
    assert!(sealed.file.path.starts_with("sessions/sensor=test/date=2007-02-02/hour=06/2007"));
    let parquet = fs::read(store.layout().root().join(&sealed.file.path)).unwrap();
    assert_eq!(sealed.file.blake3, Some(blake3::hash(&parquet).to_hex().to_string()));
    assert_eq!(uids(&reader, &Scan::default()), all);
    // A sealing that was killed before it removed the tail: no row twice, and the next start
    // cleans up.
    fs::write(&tail, bytes).unwrap();
    assert_eq!(uids(&reader, &Scan::default()), all);
    drop(store);
    let store = small_store(dir.path());
    assert_eq!((store.recovery().removed, store.recovery().unfinished), (1, 1));
    assert_eq!(uids(store.store(), &Scan::default()), all);
}

#[test]
fn a_row_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    let record = record(77, START);
    log.append(&record, "eth0").unwrap();
    log.commit().unwrap();
    let names = RowNames { sensor: "test", iface: "eth0", community_id_seed: 0 };
    let (rows, _) = collect(store.store(), &Scan::default());
    assert_eq!(rows, [SessionRow::of(&record, &names)]);
    assert_eq!(rows[0].resp_h, "2001:db8::1");
    assert_eq!(rows[0].server_name.as_deref(), Some("example.org"));
    assert_eq!(rows[0].tunnel_parents.len(), 2);
    // The way to its packets.
    let end = |side: &Side| (side.addr, side.port);
    let key = SessionKey::of_ends(end(&record.orig), end(&record.resp), record.protocol, (7, 0));
    assert_eq!(rows[0].key(true), Some(key));
    let hasher = FlowHasher::new(store.identity().hash_seed());
    assert_ne!(hasher.hash(&key), hasher.hash(&rows[0].key(false).unwrap()));
}

#[test]
fn a_file_holds_one_hour_and_not_too_many_rows() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let policy = LogPolicy { seal_rows: 4, ..LogPolicy::default() };
    let mut log = SessionLog::new(&store, &run(), policy);
    for number in 0..20 {
        log.append(&record(number, START + number as i64 / 10 * HOUR), "eth0").unwrap();
        if number % 2 == 1 {
            log.commit().unwrap();
        }
    }
    let (committed, pending) = log.close().unwrap();
    assert_eq!((committed, pending.len()), (0, 6));
    let rows: Vec<(u64, bool)> = pending
        .iter()
        .map(|seal| seal.seal().unwrap().unwrap())
        .map(|sealed| (sealed.rows, sealed.file.path.contains("/hour=06/")))
        .collect();
    assert_eq!(rows, [(4, true), (4, true), (2, true), (4, false), (4, false), (2, false)]);
    assert_eq!(uids(store.store(), &Scan::default()).len(), 20);
}

#[test]
fn a_window_finds_what_overlaps_it_and_skips_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    for number in 0..48 {
        log.append(&record(number, START + number as i64 * HOUR / 2), "eth0").unwrap();
    }
    let (_, pending) = log.close().unwrap();
    pending.iter().for_each(|seal| drop(seal.seal().unwrap()));
    let ask = |from: i64, to: i64| Scan {
        window: Some((Nanos(from), Nanos(to))),
        columns: Some(vec!["uid".to_owned(), "orig_h".to_owned()]),
        ..Scan::default()
    };
    for (from, to, expected) in [
        (START, START, vec![0]),
        (START + 1_000_000_000, START + 1_000_000_000, vec![0]),
        (START + 1_000_000_001, START + HOUR / 2 - 1, vec![]),
        (START + HOUR, START + 2 * HOUR, vec![2, 3, 4]),
    ] {
        let mut found = Vec::new();
        let report = scan(store.store(), &ask(from, to), |batch| {
            assert_eq!(batch.num_columns(), 2);
            assert_eq!(batch.schema().field(0).name(), "uid");
            found.push(batch.num_rows());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(report.rows, expected.len() as u64);
        assert_eq!((report.files, report.row_groups), (24, 24));
        assert!(report.row_groups_skipped >= 21, "{report:?}");
    }
}

#[test]
fn a_host_or_a_uid_that_is_not_there_is_not_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    for number in 0..1000 {
        log.append(&record(number, START + number as i64), "eth0").unwrap();
    }
    let (_, pending) = log.close().unwrap();
    pending[0].seal().unwrap();
    let skipped = |scan: Scan| collect(store.store(), &scan).1.row_groups_skipped;
    let rows = |scan: Scan| uids(store.store(), &scan);
    let host = |host: &str| Scan { hosts: vec![host.to_owned()], ..Scan::default() };
    assert_eq!(skipped(host("10.0.1.7")), 0);
    assert_eq!(skipped(host("2001:db8::1")), 0);
    assert_eq!(skipped(host("192.0.2.99")), 1);
    assert_eq!(rows(host("10.0.1.7")), BTreeSet::from([Uid(257).to_string()]));
    assert_eq!(rows(host("2001:db8::1")).len(), 1000);
    assert_eq!(skipped(Scan { uids: vec![Uid(999).to_string()], ..Scan::default() }), 0);
    assert_eq!(skipped(Scan { uids: vec![Uid(5000).to_string()], ..Scan::default() }), 1);
    assert!(
        scan(
            store.store(),
            &Scan { columns: Some(vec!["nonsense".to_owned()]), ..Scan::default() },
            |_| ControlFlow::Continue(())
        )
        .is_err()
    );
}

#[test]
fn a_tail_cut_anywhere_gives_every_whole_batch_and_tells_of_the_tear() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    let mut ends = Vec::new();
    for number in 0..3 {
        log.append(&record(number, START), "eth0").unwrap();
        log.commit().unwrap();
        ends.push(log.live_bytes() as usize);
    }
    let path = live_file(store.store());
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), ends[2]);
    let mut clean = Vec::new();
    let near = ends.iter().flat_map(|end| end - 9..=(end + 9).min(whole.len()));
    let cuts: BTreeSet<usize> = (0..whole.len()).step_by(16).chain(near).collect();
    for cut in cuts {
        fs::write(&path, &whole[..cut]).unwrap();
        let (rows, report) = collect(store.store(), &Scan::default());
        let expected = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(rows.len(), expected, "cut at {cut}");
        if report.torn.is_empty() {
            clean.push(cut);
        }
    }
    // Nothing at all, the schema alone, and each batch: any other cut is told of.
    assert_eq!((clean.len(), clean[0], &clean[2..]), (5, 0, ends.as_slice()));
    // Zeros where a power loss took the pages.
    for from in (0..whole.len()).step_by(256) {
        let mut damaged = whole.clone();
        damaged[from..].fill(0);
        fs::write(&path, &damaged).unwrap();
        collect(store.store(), &Scan::default());
    }
    fs::write(&path, &whole[..ends[1] + 5]).unwrap();
    drop((log, store));
    let store = small_store(dir.path());
    let report = store.recovery();
    assert_eq!((report.live_files, report.rows, report.torn_bytes), (1, 2, 5));
    assert_eq!(report.last_sign, Some(Nanos(START + 2_000_000_000)));
    assert_eq!(uids(store.store(), &Scan::default()).len(), 2);
}

#[test]
fn damaged_parquet_is_reported_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    for number in 0..4 {
        log.append(&record(number, START + number as i64 / 2 * HOUR), "eth0").unwrap();
    }
    let (_, pending) = log.close().unwrap();
    let sealed = pending[0].seal().unwrap().unwrap();
    pending[1].seal().unwrap();
    let path = store.layout().root().join(sealed.file.path);
    let whole = fs::read(&path).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 50) {
        fs::write(&path, &whole[..cut]).unwrap();
        let (rows, report) = collect(store.store(), &Scan::default());
        assert_eq!((rows.len(), report.damaged.len()), (2, 1), "cut at {cut}");
    }
    for at in (0..whole.len()).step_by(whole.len() / 400) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        assert!(collect(store.store(), &Scan::default()).0.len() >= 2);
    }
}

#[test]
fn rows_wait_while_the_log_cannot_be_written_and_are_lost_only_when_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let live = store.layout().live();
    let policy = LogPolicy { waiting_rows: 3, ..LogPolicy::default() };
    let mut log = SessionLog::new(&store, &run(), policy);
    fs::rename(&live, live.with_extension("away")).unwrap();
    for number in 0..3 {
        log.append(&record(number, START), "eth0").unwrap();
        assert!(log.commit().is_err());
    }
    assert_eq!(log.append(&record(3, START), "eth0"), Err(RowLossReason::LogUnwritable));
    fs::rename(live.with_extension("away"), &live).unwrap();
    assert_eq!(log.commit().unwrap(), 3);
    assert_eq!(log.waiting_rows(), 0);
    assert_eq!(uids(store.store(), &Scan::default()).len(), 3);
}

#[test]
fn the_oldest_session_files_are_retired_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    for number in 0..3 {
        log.append(&record(number, START + number as i64 * HOUR), "eth0").unwrap();
    }
    let (_, pending) = log.close().unwrap();
    let sealed: Vec<_> = pending.iter().map(|s| s.seal().unwrap().unwrap().file).collect();
    let budget = sealed[1].bytes + sealed[2].bytes;
    let hour = store.layout().root().join(&sealed[0].path).parent().unwrap().to_owned();
    assert!(hour.exists());
    let budgets = Budgets { packets: None, sessions: Some(budget) };
    let retired = Retention::default().keep(&store, &budgets).unwrap();
    assert_eq!((retired.files.len(), retired.session_bytes), (1, budget));
    assert!(!hour.exists(), "an hour without a file needs no directory");
    let gone = &retired.files[0];
    assert_eq!(
        (&gone.path, gone.items, gone.first_ts, gone.last_ts),
        (&sealed[0].path, 1, sealed[0].first_ts, sealed[0].last_ts)
    );
    assert_eq!(uids(store.store(), &Scan::default()).len(), 2);
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<IpAddr>().prop_map(Address::Ip),
        any::<[u8; 6]>().prop_map(|mac| Address::Mac(MacAddr(mac))),
    ]
}

prop_compose! {
    fn any_side()(
        addr in any_address(), port: u16, mac in any::<Option<[u8; 6]>>(),
        bytes in prop::option::of(0..1_u64 << 62), pkts in 0..1_u64 << 62,
        ip_bytes in 0..1_u64 << 62, local: Option<bool>,
    ) -> Side {
        Side { addr, port, l2_addr: mac.map(MacAddr), bytes, pkts, ip_bytes, local }
    }
}

prop_compose! {
    fn any_record()(
        uid: u128, (ts, last_ts, flushed_at) in any::<(i64, i64, u32)>(),
        orig in any_side(), resp in any_side(),
        protocol in prop_oneof![
            any::<u8>().prop_map(Protocol::Ip), any::<u16>().prop_map(Protocol::Ether),
        ],
        service in prop::option::of(prop::sample::select(Service::ALL.to_vec())),
        name in prop::option::of(".{0,20}"),
        conn_state in prop::sample::select(ConnState::ALL.to_vec()),
        letters in "[a-zA-Z^]{0,39}",
        vlans in any::<(Option<u16>, Option<u16>)>(),
        parents in prop::collection::vec(any::<u128>(), 0..4),
        certain: bool, fragment_overlap: bool, join_certain: bool, update: u32,
        reason in prop::sample::select(RowReason::ALL.to_vec()),
        frames in 0..1_u64 << 62,
        at in prop::option::of((any::<u16>(), 0..1_u64 << 62, any::<u32>())),
    ) -> SessionRecord {
        let mut history = History::default();
        letters.bytes().for_each(|letter| history.push(letter));
        SessionRecord {
            uid: Uid(uid), iface: IfaceId(0), ts: Nanos(ts), last_ts: Nanos(last_ts),
            duration: (ts > 0).then_some(NanosDelta(last_ts)), orig, resp, protocol, service,
            detail: name.map(|name| Box::new(ServiceDetail {
                alpn: Some(name.clone().into()), server_name: Some(name.into()),
            })),
            conn_state, history, missed_bytes: frames, vlan: vlans.0, inner_vlan: vlans.1,
            tunnel_parents: (!parents.is_empty()).then(|| parents.into_iter().map(Uid).collect()),
            direction_certain: certain, fragment_overlap, join_certain, update, reason, frames,
            frame_bytes: frames,
            pcap_first: at.map(|(worker, segment, offset)| PcapPosition { worker, segment, offset }),
            pcap_last: None, flushed_at: Nanos(i64::from(flushed_at)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_rows_survive_tail_and_parquet(records in prop::collection::vec(any_record(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
        let names = RowNames { sensor: "test", iface: "if 0", community_id_seed: 0 };
        let mut expected = Vec::new();
        for record in &records {
            log.append(record, "if 0").unwrap();
            expected.push(SessionRow::of(record, &names));
        }
        log.commit().unwrap();
        prop_assert_eq!(&collect(store.store(), &Scan::default()).0, &expected);
        let (_, pending) = log.close().unwrap();
        pending.iter().for_each(|seal| drop(seal.seal().unwrap()));
        let (mut rows, report) = collect(store.store(), &Scan::default());
        prop_assert_eq!(report.damaged, []);
        // Parquet is sorted by time.
        let order = |row: &SessionRow<'_>| (row.ts, row.uid.to_string(), format!("{row:?}"));
        rows.sort_by_key(order);
        expected.sort_by_key(order);
        prop_assert_eq!(&rows, &expected);
        for row in &rows {
            prop_assert!(row.key(true).is_some());
        }
    }
}

#[test]
fn the_columns_are_those_of_the_design() {
    let names: Vec<String> = column_names().collect();
    for name in "ts last_ts duration uid sensor iface orig_h orig_p resp_h resp_p proto ip_proto \
                 service conn_state history orig_bytes resp_bytes orig_pkts resp_pkts \
                 orig_ip_bytes resp_ip_bytes missed_bytes local_orig local_resp vlan inner_vlan \
                 orig_l2_addr resp_l2_addr tunnel_parents community_id direction_certain update \
                 final flushed_at pcap_first pcap_last end_reason frames frame_bytes server_name \
                 alpn fragment_overlap join_certain"
        .split_whitespace()
    {
        assert!(names.iter().any(|known| known == name), "{name}");
    }
    assert_eq!(names.len(), 43);
}

/// A log with one row a batch; where each batch ends in the open tail.
fn tail_of(store: &OwnedStore, rows: u64) -> Vec<usize> {
    let mut log = SessionLog::new(store, &run(), LogPolicy::default());
    let mut ends = Vec::new();
    for number in 0..rows {
        log.append(&record(number, START + number as i64), "eth0").unwrap();
        log.commit().unwrap();
        ends.push(log.live_bytes() as usize);
    }
    ends
}

#[test]
fn a_tail_damaged_in_its_midst_gives_every_other_batch_and_is_kept() {
    for (damage, bytes) in [("zeros", 0), ("other bytes", 0x5a), ("ones", 0xff)] {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let ends = tail_of(&store, 5);
        let path = live_file(store.store());
        let mut content = fs::read(&path).unwrap();
        content[ends[0]..ends[0] + 100].fill(bytes);
        content[ends[2] - 20..ends[2] + 20].fill(bytes);
        fs::write(&path, &content).unwrap();
        let (rows, report) = collect(store.store(), &Scan::default());
        let found: Vec<_> = rows.iter().map(|row| row.ts.0 - START).collect();
        // The third's values are damaged where nobody can tell; the fourth has no beginning.
        assert_eq!(found, [0, 2, 4], "{damage}");
        assert_eq!((report.damaged.len(), report.torn.len()), (1, 0), "{damage}: {report:?}");
        drop(store);

        let store = small_store(dir.path());
        let report = store.recovery();
        assert_eq!((report.live_files, report.rows), (1, 3), "{damage}");
        let lost = (ends[1] - ends[0] + ends[3] - ends[2]) as u64;
        assert_eq!(report.torn_bytes, lost, "{damage}");
        assert_eq!(fs::read(path.with_extension("damaged")).unwrap(), content);
        assert_eq!(uids(store.store(), &Scan::default()).len(), 3);
        // It is retired with its like.
        let budgets = Budgets { packets: None, sessions: Some(0) };
        let retired = Retention::default().keep(&store, &budgets).unwrap();
        assert_eq!((retired.files.len(), retired.session_bytes), (2, 0));
        assert!(retired.files.iter().any(|file| file.path.ends_with(".damaged")));
        assert_eq!(fs::read_dir(store.layout().live()).unwrap().count(), 0);
    }
}

#[test]
fn a_tail_without_its_beginning_is_read_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    tail_of(&store, 3);
    let path = live_file(store.store());
    let mut content = fs::read(&path).unwrap();
    content[..64].fill(0);
    fs::write(&path, content).unwrap();
    let (rows, report) = collect(store.store(), &Scan::default());
    assert_eq!((rows.len(), report.damaged.len()), (3, 1));
}

#[test]
fn a_tail_of_which_nothing_can_be_read_is_kept_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    log.append(&record(0, START), "eth0").unwrap();
    let (_, pending) = log.close().unwrap();
    fs::write(pending[0].path(), [7; 100]).unwrap();
    match pending[0].seal() {
        Err(SealSessionsError::Unreadable { aside, bytes, .. }) => {
            assert_eq!((fs::read(aside).unwrap(), bytes), (vec![7; 100], 100));
        }
        other => panic!("{other:?}"),
    }
    fs::write(store.layout().live().join("20070202T060000Z-0badcafe-9.arrows"), [7; 9]).unwrap();
    drop((log, store));
    let store = small_store(dir.path());
    assert!(store.recovery().was_unclean());
    assert_eq!(store.recovery().left.len(), 1);
}

#[test]
fn a_sealing_that_fails_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    log.append(&record(0, START), "eth0").unwrap();
    let (_, pending) = log.close().unwrap();
    let day = store.layout().sessions().join("sensor=test/date=2007-02-02");
    fs::create_dir_all(day.parent().unwrap()).unwrap();
    fs::write(&day, b"in the way").unwrap();
    assert!(pending[0].seal().is_err());
    assert_eq!(uids(store.store(), &Scan::default()).len(), 1);
    fs::remove_file(&day).unwrap();
    assert_eq!(pending[0].seal().unwrap().unwrap().rows, 1);
}

#[test]
fn rows_committed_before_a_failure_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    log.append(&record(0, START), "eth0").unwrap();
    assert_eq!(log.commit().unwrap(), 1);
    let live = store.layout().live();
    fs::rename(&live, live.with_extension("away")).unwrap();
    for hour in [0, 0, 1] {
        log.append(&record(1, START + hour * HOUR), "eth0").unwrap();
    }
    // The first hour's file is open; the second hour's cannot be made.
    assert_eq!(log.commit().unwrap_err().committed, 2);
    assert_eq!(log.waiting_rows(), 1);
    fs::rename(live.with_extension("away"), &live).unwrap();
    assert_eq!(log.commit().unwrap(), 1);
}

#[test]
fn recovered_rows_are_in_the_ledger_with_the_hash_of_their_file() {
    for killed in ["before it was sealed", "before the tail was removed"] {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
        log.append(&record(0, START), "eth0").unwrap();
        let (_, pending) = log.close().unwrap();
        if killed == "before the tail was removed" {
            let tail = fs::read(pending[0].path()).unwrap();
            pending[0].seal().unwrap();
            fs::write(pending[0].path(), tail).unwrap();
        }
        drop((log, store));
        // A start that comes to no line.
        drop(small_store(dir.path()));
        let store = small_store(dir.path());
        let mut line = LedgerLine::new("test", &run(), 0, Nanos(START), Nanos(START + 1));
        LedgerWriter::open(&store).unwrap().append(&mut line).unwrap();
        let sealed: Vec<_> = line
            .notes
            .iter()
            .filter_map(|note| match note {
                Note::Sealed(file) => Some(file),
                _ => None,
            })
            .collect();
        assert_eq!(sealed.len(), 1, "{killed}");
        let content = fs::read(store.layout().root().join(&sealed[0].path)).unwrap();
        assert_eq!(sealed[0].blake3, Some(blake3::hash(&content).to_hex().to_string()));
        assert_eq!((sealed[0].bytes, sealed[0].items), (content.len() as u64, 1));
        assert_eq!(sealed[0].first_ts, Nanos(START));
    }
}

/// A run with a row and a line each second, written in another start of the machine unless `boot`
/// says so: its open tail, and where each second's rows end in it.
fn lines_over_a_tail(dir: &Path, boot: Option<&str>) -> (PathBuf, Vec<u64>) {
    let store = small_store(dir);
    let mut log = SessionLog::new(&store, &run(), LogPolicy::default());
    let mut ledger = LedgerWriter::open(&store).unwrap();
    let at = |second: i64| Nanos(START + second * 1_000_000_000);
    let mut ends = Vec::new();
    for second in 0..4 {
        let mut line = LedgerLine::new("test", &run(), second as u64, at(second), at(second + 1));
        // The first line is written before there is a row.
        if second > 0 {
            log.append(&record(second as u64, START + second), "eth0").unwrap();
            log.commit().unwrap();
            ends.push(log.live_bytes());
        }
        line.tails = log.tails();
        line.complete_through = Some(at(second));
        line.boot_id = boot.map(str::to_owned);
        ledger.append(&mut line).unwrap();
    }
    (live_file(store.store()), ends)
}

/// What the next run's first line says of the tail, and how many bytes of the log are lost.
fn told_of_the_tail(dir: &Path) -> (Vec<Note>, u64) {
    let store = small_store(dir);
    let lost = store.recovery().log_bytes_lost;
    let mut line = LedgerLine::new("test", &run(), 9, Nanos(START), Nanos(START + 1));
    LedgerWriter::open(&store).unwrap().append(&mut line).unwrap();
    line.notes.retain(|note| matches!(note, Note::LogCut { .. } | Note::Altered { .. }));
    (line.notes, lost)
}

#[test]
fn a_tail_that_a_restart_cut_is_in_doubt_from_the_last_line_that_it_fulfils() {
    let second = |n: i64| Nanos(START + n * 1_000_000_000);
    // How much of it is there, and through when every session has its row.
    for (keep, through) in [(Some(2), 3), (Some(1), 2), (Some(0), 1), (None, 0)] {
        for torn in [0, 1] {
            let dir = tempfile::tempdir().unwrap();
            let (tail, ends) = lines_over_a_tail(dir.path(), Some("another start of the machine"));
            let all = ends[2];
            let left = keep.map_or(0, |keep| ends[keep]) + torn;
            match keep {
                Some(_) => File::options().write(true).open(&tail).unwrap().set_len(left).unwrap(),
                None => fs::remove_file(&tail).unwrap(),
            }
            let path = format!("sessions/live/{}", tail.file_name().unwrap().to_str().unwrap());
            // A start that comes to no line, and one that does: it is told once.
            drop(small_store(dir.path()));
            let (notes, _) = told_of_the_tail(dir.path());
            if left >= all {
                assert_eq!(notes, []);
                continue;
            }
            let bytes = if keep.is_none() { all } else { all - left };
            let doubt = Doubt { from: second(through), to: second(4) };
            assert_eq!(notes, [Note::LogCut { path, bytes, doubt }], "{keep:?} {torn}");
        }
    }
}

#[test]
fn a_tail_that_is_short_or_changed_without_a_restart_was_altered() {
    let second = |n: i64| Nanos(START + n * 1_000_000_000);
    for (boot, changed) in [(None, false), (None, true), (Some("another start"), true)] {
        let dir = tempfile::tempdir().unwrap();
        let (tail, ends) = lines_over_a_tail(dir.path(), boot);
        let mut bytes = fs::read(&tail).unwrap();
        bytes.truncate(ends[1] as usize);
        if changed {
            // In the first of two batches.
            bytes[ends[0] as usize - 9] ^= 1;
        }
        fs::write(&tail, bytes).unwrap();
        let (notes, lost) = told_of_the_tail(dir.path());
        let from = if changed { second(0) } else { second(2) };
        let doubt = Some(Doubt { from, to: second(4) });
        let path = format!("sessions/live/{}", tail.file_name().unwrap().to_str().unwrap());
        assert_eq!((notes, lost), (vec![Note::Altered { path, doubt }], 0), "{boot:?} {changed}");
    }
}

/// The rows of a store as a program wrote them that did not know some columns.
fn without(store: &Store, names: &[&str]) -> RecordBatch {
    let mut batches = Vec::new();
    scan(store, &Scan::default(), |batch| {
        batches.push(batch);
        ControlFlow::Continue(())
    })
    .unwrap();
    let all = batches[0].schema();
    let kept = all.fields().iter().enumerate();
    let kept = kept.filter(|(_, field)| !names.contains(&field.name().as_str()));
    batches[0].project(&kept.map(|(place, _)| place).collect::<Vec<_>>()).unwrap()
}

#[test]
fn files_of_a_store_from_before_a_column_was_added_are_read_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    tail_of(&store, 1);
    let path = live_file(store.store());
    let expected = collect(store.store(), &Scan::default()).0;
    // An open tail, and its recovery into a file with every column.
    let old = without(store.store(), &["fragment_overlap", "join_certain"]);
    let mut writer = StreamWriter::try_new(File::create(&path).unwrap(), &old.schema()).unwrap();
    writer.write(&old).unwrap();
    drop(writer);
    let (rows, report) = collect(store.store(), &Scan::default());
    assert_eq!((&rows, report.damaged.len(), report.torn.len()), (&expected, 0, 0));
    let only = |name: &str| Scan { columns: Some(vec![name.to_owned()]), ..Scan::default() };
    // A sealed file.
    let old = without(store.store(), &["fragment_overlap", "join_certain", "sensor"]);
    let hour = store.layout().partition("test", Nanos(START));
    fs::create_dir_all(&hour).unwrap();
    let sealed = hour.join(path.with_extension("parquet").file_name().unwrap());
    let file = File::create(&sealed).unwrap();
    let mut writer = ArrowWriter::try_new(file, old.schema(), None).unwrap();
    writer.write(&old).unwrap();
    writer.close().unwrap();
    let (mut rows, report) = collect(store.store(), &Scan::default());
    assert_eq!(report.damaged, []);
    // Its sensor stands in its metadata only, which this writer left out.
    rows.iter_mut().for_each(|row| row.sensor = "test".into());
    assert_eq!(rows, expected);
    for name in ["uid", "fragment_overlap", "join_certain"] {
        let report = scan(store.store(), &only(name), |batch| {
            assert_eq!((batch.num_rows(), batch.num_columns()), (1, 1));
            assert_eq!(batch.schema().field(0).name(), name);
            ControlFlow::Continue(())
        });
        assert_eq!(report.unwrap().rows, 1, "{name}");
    }
    // A column that every store has is damage where it is missing.
    let old = without(store.store(), &["conn_state", "sensor"]);
    let file = File::create(&sealed).unwrap();
    let mut writer = ArrowWriter::try_new(file, old.schema(), None).unwrap();
    writer.write(&old).unwrap();
    writer.close().unwrap();
    assert_eq!(collect(store.store(), &Scan::default()).1.damaged.len(), 1);
}
