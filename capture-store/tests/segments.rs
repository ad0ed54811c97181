//! Segments from preparation to recovery, through the public interface.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_flow::time::Nanos;
use capture_store::index::{SegmentIndex, SegmentRef, segments};
use capture_store::ledger::{LedgerLine, LedgerWriter, Note, SealedFile};
use capture_store::pcap::{RECORD_HEADER_LEN, SegmentReader};
use capture_store::retention::{Budgets, Retention, Retired};
use capture_store::segment::{ActiveSegment, SealPolicy, SegmentSpec, prepare};
use capture_store::{OwnedStore, Provenance, RunId, RunTag};
use proptest::prelude::*;

const QUICK: SealPolicy = SealPolicy { sync: false, hash: true };

fn spec() -> SegmentSpec {
    SegmentSpec::new(3, 1 << 16, LinkType::ETHERNET)
}

fn small_store(dir: &Path) -> OwnedStore {
    OwnedStore::open_or_create(&dir.join("store"), Some("test")).unwrap()
}

/// A frame that can be told from every other.
fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; len.max(4)];
    frame[..4].copy_from_slice(&number.to_be_bytes());
    frame
}

/// What was appended: time, wire length, bytes, session.
type Model = Vec<(u32, Nanos, u32, Vec<u8>, FlowHash)>;

/// Fills a segment with frames of the given lengths and sessions.
fn fill(segment: &mut ActiveSegment, frames: &[(usize, u64)]) -> Model {
    let mut marks: BTreeMap<u64, Mark> = BTreeMap::new();
    let mut model = Vec::new();
    for (number, (len, flow)) in frames.iter().enumerate() {
        let bytes = frame(number as u32, *len);
        let ts = Nanos(1_700_000_000_000_000_000 + number as i64 * 1_001);
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        let parts: [&[u8]; 2] = [head, tail];
        let given: &[&[u8]] = if number % 2 == 0 { &[&bytes] } else { &parts };
        let Ok(offset) = segment.append(ts, bytes.len() as u32 + 7, given) else { break };
        let at = PcapPosition { worker: 3, segment: segment.sequence(), offset };
        segment.touch(at, FlowHash(*flow), marks.entry(*flow).or_default());
        model.push((offset, ts, bytes.len() as u32 + 7, bytes, FlowHash(*flow)));
    }
    model
}

fn assert_index(index: &SegmentIndex, model: &Model) {
    let mut flows: BTreeMap<FlowHash, Vec<u32>> = BTreeMap::new();
    for (offset, .., flow) in model {
        flows.entry(*flow).or_default().push(*offset);
    }
    assert_eq!(index.header().frames, model.len() as u64);
    for (flow, offsets) in flows {
        assert_eq!(index.postings(flow).unwrap().offsets, offsets);
    }
    assert!(index.postings(FlowHash(u64::MAX)).unwrap().offsets.is_empty());
    assert_select(index, model);
}

/// Asking for many sessions at once gives what asking for each does.
fn assert_select(index: &SegmentIndex, model: &Model) {
    let all: BTreeSet<FlowHash> = model.iter().map(|frame| frame.4).collect();
    let and_more: Vec<FlowHash> = (0..400).map(FlowHash).chain(all.iter().copied()).collect();
    let and_more: BTreeSet<FlowHash> = and_more.into_iter().collect();
    let every_other = all.iter().copied().step_by(2).collect();
    let few = all.iter().copied().take(1).collect();
    for wanted in [all, and_more, every_other, few, BTreeSet::new()] {
        let wanted: Vec<FlowHash> = wanted.into_iter().collect();
        let mut expected = BTreeMap::new();
        for flow in &wanted {
            let postings = index.postings(*flow).unwrap();
            if !(postings.offsets.is_empty() && postings.foreign.is_empty()) {
                expected.insert(*flow, postings);
            }
        }
        let mut found = BTreeMap::new();
        index
            .select(&wanted, |flow, postings| {
                assert_eq!(found.insert(flow, postings), None, "each session once");
            })
            .unwrap();
        assert_eq!(found, expected);
    }
}

fn assert_packets(reader: &SegmentReader, model: &Model) {
    let mut bytes = Vec::new();
    for (offset, ts, wire_len, frame, _) in model {
        let record = reader.record_at(u64::from(*offset), &mut bytes).unwrap();
        assert_eq!((record.ts(), record.wire_len, &bytes), (*ts, *wire_len, frame));
    }
    let mut seen = 0;
    let end = reader
        .scan(|offset, _, frame| {
            assert_eq!((offset, frame), (model[seen].0, model[seen].3.as_slice()));
            seen += 1;
            true
        })
        .unwrap();
    assert_eq!((seen, end), (model.len(), reader.committed()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_recorded_is_found_open_and_sealed(
        frames in prop::collection::vec((4..300_usize, 0..20_u64), 1..400),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = prepare(dir.path(), 7, &spec()).unwrap().activate();
        let model = fill(&mut segment, &frames);
        let place = SegmentRef { worker: 3, sequence: 7, dir: dir.path().to_owned() };
        prop_assert_eq!(place.index().unwrap().header().frames, 0, "nothing is published yet");
        segment.publish();
        let index = place.index().unwrap();
        prop_assert!(index.is_open());
        assert_index(&index, &model);
        assert_packets(&place.packets(&index).unwrap(), &model);

        let sealed = segment.finish().seal(&QUICK).unwrap().unwrap();
        let index = place.index().unwrap();
        prop_assert!(!index.is_open());
        assert_index(&index, &model);
        assert_packets(&place.packets(&index).unwrap(), &model);
        let pcap = fs::read(place.pcap_path()).unwrap();
        prop_assert_eq!(sealed.pcap_bytes, pcap.len() as u64);
        prop_assert_eq!(sealed.pcap_hash, Some(blake3::hash(&pcap)));
        prop_assert_eq!(sealed.frames, model.len() as u64);
        prop_assert_eq!(sealed.first_ts, model[0].1);
        prop_assert_eq!(sealed.last_ts, model[model.len() - 1].1);
    }
}

#[test]
fn a_frame_of_an_older_segment_is_found_through_the_newer_index() {
    let dir = tempfile::tempdir().unwrap();
    let mut segment = prepare(dir.path(), 9, &spec()).unwrap().activate();
    fill(&mut segment, &[(60, 1)]);
    let old = PcapPosition { worker: 3, segment: 8, offset: 24 };
    segment.touch(old, FlowHash(1), &mut Mark::default());
    segment.publish();
    let place = SegmentRef { worker: 3, sequence: 9, dir: dir.path().to_owned() };
    assert_eq!(place.index().unwrap().postings(FlowHash(1)).unwrap().foreign, [old]);
    segment.finish().seal(&QUICK).unwrap();
    let found = place.index().unwrap().postings(FlowHash(1)).unwrap();
    assert_eq!((found.foreign, found.offsets), (vec![old], vec![24]));
}

#[test]
fn a_full_segment_says_so_and_keeps_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let mut segment = prepare(dir.path(), 1, &spec()).unwrap().activate();
    let model = fill(&mut segment, &[(1000, 1); 100]);
    assert_eq!(model.len(), (65_536 - 24) / (1000 + RECORD_HEADER_LEN));
    assert!(!segment.fits(1, 1000));
    assert!(segment.fits(1, 16));
    segment.finish().seal(&QUICK).unwrap().unwrap();
    let place = SegmentRef { worker: 3, sequence: 1, dir: dir.path().to_owned() };
    assert_packets(&place.packets(&place.index().unwrap()).unwrap(), &model);
}

#[test]
fn a_full_journal_is_told_before_and_counted_after() {
    let dir = tempfile::tempdir().unwrap();
    let small = SegmentSpec { journal_bytes: 8192, ..spec() };
    let mut segment = prepare(dir.path(), 1, &small).unwrap().activate();
    // 512 words of room: a note and a slot take three.
    let frames: Vec<_> = (0..300).map(|flow| (60, flow)).collect();
    assert!(segment.fits(80, 80 * 60));
    assert!(!segment.fits(300, 300 * 60));
    let model = fill(&mut segment, &frames);
    assert_eq!(model.len(), 300);
    segment.publish();
    let place = SegmentRef { worker: 3, sequence: 1, dir: dir.path().to_owned() };
    let noted: usize =
        (0..300).map(|f| place.index().unwrap().postings(FlowHash(f)).unwrap().offsets.len()).sum();
    let unnoted = place.index().unwrap().header().unnoted;
    assert_eq!((noted, unnoted), (170, 130));
    segment.finish().seal(&QUICK).unwrap().unwrap();
    assert_eq!(place.index().unwrap().header().unnoted, 130);
}

#[test]
fn the_snap_length_cuts_frames_and_keeps_their_wire_length() {
    let dir = tempfile::tempdir().unwrap();
    let mut segment =
        prepare(dir.path(), 1, &SegmentSpec { snaplen: 50, ..spec() }).unwrap().activate();
    let long = frame(1, 200);
    segment.append(Nanos(5), 200, &[&long[..30], &long[30..]]).unwrap();
    segment.append(Nanos(6), 200, &[&long]).unwrap();
    segment.finish().seal(&QUICK).unwrap();
    let place = SegmentRef { worker: 3, sequence: 1, dir: dir.path().to_owned() };
    let mut seen = Vec::new();
    let reader = place.packets(&place.index().unwrap()).unwrap();
    reader
        .scan(|_, record, frame| {
            seen.push((record.wire_len, frame.to_vec()));
            true
        })
        .unwrap();
    assert_eq!(seen, [(200, long[..50].to_vec()), (200, long[..50].to_vec())]);
}

#[test]
fn an_empty_segment_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let segment = prepare(dir.path(), 1, &spec()).unwrap().activate();
    assert_eq!(segment.finish().seal(&QUICK).unwrap(), None);
    prepare(dir.path(), 2, &spec()).unwrap().discard().unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Makes a store whose writer was killed: the maps are gone, nothing was finished.
fn killed_store(dir: &Path, frames: &[(usize, u64)], published: usize) -> Model {
    let store = small_store(dir);
    let sequence = store.next_sequence(3).unwrap();
    let mut segment = prepare(&store.layout().worker(3), sequence, &spec()).unwrap().activate();
    let mut model = fill(&mut segment, &frames[..published]);
    segment.publish();
    let rest = fill(&mut segment, &frames[published..]);
    model.extend(rest);
    drop(segment);
    drop(store);
    model
}

#[test]
fn recovery_keeps_every_whole_frame_and_its_session() {
    let frames: Vec<_> = (0..50).map(|n| (60 + n, n as u64 % 5)).collect();
    for published in [0, 1, 49, 50] {
        let dir = tempfile::tempdir().unwrap();
        let model = killed_store(dir.path(), &frames, published);
        let store = small_store(dir.path());
        let report = store.recovery();
        assert!(report.was_unclean());
        assert_eq!((report.segments, report.frames), (1, 50));
        assert_eq!(report.uncommitted_frames, 50 - published as u64);
        assert_eq!((report.bytes_lost, report.rebooted), (0, false));
        let place = segments(store.store()).unwrap().remove(0);
        let index = place.index().unwrap();
        assert!(index.header().recovered && !index.is_open());
        assert_index(&index, &model);
        assert_eq!(index.header().pcap_len, fs::metadata(place.pcap_path()).unwrap().len());
        assert_eq!(store.next_sequence(3).unwrap(), place.sequence + 1);
        // A second start finds nothing left to do.
        drop(store);
        assert!(!small_store(dir.path()).recovery().was_unclean());
    }
}

#[test]
fn recovery_of_a_segment_cut_anywhere_keeps_what_is_whole_before_the_cut() {
    let frames = [(20, 1), (30, 2), (25, 1)];
    let ends = [24, 60, 106, 147];
    for cut in 0..=150 {
        let dir = tempfile::tempdir().unwrap();
        killed_store(dir.path(), &frames, 3);
        let pcap = dir.path().join("store/pcap/w03/00000000000000000001.pcap");
        fs::OpenOptions::new().write(true).open(&pcap).unwrap().set_len(cut).unwrap();
        let store = small_store(dir.path());
        let whole = ends.iter().filter(|end| **end <= cut).count();
        if whole == 0 {
            assert_eq!(store.recovery().left.len(), 1, "cut at {cut}: no header, left as it is");
        } else {
            assert_eq!(store.recovery().frames, whole as u64 - 1, "cut at {cut}");
            assert_eq!(store.recovery().bytes_lost, 147 - ends[whole - 1], "cut at {cut}");
        }
    }
}

#[test]
fn recovery_knows_every_note_of_a_journal_without_a_word_to_spare() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    store.next_sequence(3).unwrap();
    let small = SegmentSpec { journal_bytes: 8192, ..spec() };
    let mut segment = prepare(&store.layout().worker(3), 1, &small).unwrap().activate();
    // 512 words of room: one slot of two, and 510 notes.
    let model = fill(&mut segment, &[(60, 7); 510]);
    segment.publish();
    assert_eq!(segment.unnoted(), 0);
    drop((segment, store));
    let store = small_store(dir.path());
    let index = segments(store.store()).unwrap()[0].index().unwrap();
    assert_eq!((index.header().frames, index.header().unnoted), (510, 0));
    assert_index(&index, &model);
}

#[test]
fn what_is_kept_aside_survives_a_recovery_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    killed_store(dir.path(), &[(20, 1), (30, 2), (25, 1)], 3);
    let worker = dir.path().join("store/pcap/w03");
    let [pcap, journal, index, aside] = ["pcap", "idx.open", "idx", "damaged"]
        .map(|extension| worker.join(format!("{:020}.{extension}", 1)));
    // A hole where the second record's header was: 46 + 41 bytes are behind the first.
    let mut bytes = fs::read(&pcap).unwrap();
    bytes[60..76].fill(0);
    fs::write(&pcap, bytes).unwrap();
    let before = fs::read(&journal).unwrap();
    assert_eq!(small_store(dir.path()).recovery().bytes_lost, 87);
    let kept = fs::read(&aside).unwrap();
    assert_eq!(kept.len(), 87);
    // As a kill leaves it between the cut and the index.
    fs::remove_file(&index).unwrap();
    fs::write(&journal, before).unwrap();
    assert_eq!(small_store(dir.path()).recovery().frames, 1);
    assert_eq!(fs::read(&aside).unwrap(), kept);
}

/// Whose segment it is can be read while it is open, once it is sealed, and after recovery; one that
/// does not say so says nothing.
#[test]
fn a_segment_says_whose_it_is() {
    let known = Provenance { run: Some(run_tag("a-run")), vlan_in_key: Some(true) };
    for (provenance, snaplen) in [(known, 65_535), (Provenance::default(), 262_144)] {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let worker = store.layout().worker(3);
        fs::create_dir_all(&worker).unwrap();
        let spec = SegmentSpec { provenance, snaplen, ..spec() };
        let said = |sequence: u64| {
            let header = SegmentIndex::read_header(&worker, sequence).unwrap();
            assert_eq!(&header, SegmentIndex::open(&worker, sequence).unwrap().header());
            assert_eq!((header.worker, header.snaplen), (3, snaplen));
            header.provenance
        };
        for sequence in [1, 2] {
            let mut segment = prepare(&worker, sequence, &spec).unwrap().activate();
            fill(&mut segment, &[(60, 7)]);
            segment.publish();
            assert_eq!(said(sequence), provenance);
            if sequence == 1 {
                segment.finish().seal(&QUICK).unwrap();
                assert_eq!(said(sequence), provenance);
            }
        }
        drop(store);
        assert_eq!(small_store(dir.path()).recovery().segments, 1);
        assert_eq!(said(2), provenance);
    }
    assert_ne!(run_tag("a-run"), run_tag("another"));
}

fn run_tag(name: &str) -> RunTag {
    RunId::parse(name).unwrap().tag()
}

#[test]
fn recovery_without_a_journal_scans() {
    let dir = tempfile::tempdir().unwrap();
    let frames: Vec<_> = (0..20).map(|n| (60, n)).collect();
    killed_store(dir.path(), &frames, 20);
    let journal = dir.path().join("store/pcap/w03/00000000000000000001.idx.open");
    fs::write(&journal, b"not a journal").unwrap();
    let store = small_store(dir.path());
    assert_eq!(store.recovery().frames, 20);
    let index = segments(store.store()).unwrap()[0].index().unwrap();
    assert_eq!((index.header().frames, index.header().unnoted), (20, 20), "must be scanned");
}

#[test]
fn recovery_removes_what_no_frame_reached() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    store.next_sequence(0).unwrap();
    drop(prepare(&store.layout().worker(0), 1, &spec()).unwrap());
    fs::write(store.layout().worker(0).join("00000000000000000002.idx.tmp"), b"x").unwrap();
    fs::write(store.layout().worker(0).join("00000000000000000003.idx.open"), b"x").unwrap();
    drop(store);
    let store = small_store(dir.path());
    assert!(!store.recovery().was_unclean());
    assert_eq!(store.recovery().removed, 4);
    assert_eq!(fs::read_dir(store.layout().worker(0)).unwrap().count(), 0);
}

#[test]
fn a_damaged_index_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut segment = prepare(dir.path(), 1, &spec()).unwrap().activate();
    let model = fill(&mut segment, &[(60, 1), (61, 2), (62, 1), (63, 3)]);
    segment.touch(PcapPosition { worker: 3, segment: 0, offset: 99 }, FlowHash(2), &mut Mark(0));
    segment.finish().seal(&QUICK).unwrap();
    let path = dir.path().join("00000000000000000001.idx");
    let whole = fs::read(&path).unwrap();
    for cut in 0..whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(SegmentIndex::open(dir.path(), 1).is_err(), "cut at {cut}");
    }
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        let Ok(index) = SegmentIndex::open(dir.path(), 1) else {
            assert!(at < 256, "byte {at} is not of the header");
            continue;
        };
        assert!(at >= 256, "byte {at} of the header went unnoticed");
        for flow in 0..5 {
            // Whatever it answers, no offset leads outside.
            if let Ok(found) = index.postings(FlowHash(flow)) {
                assert!(found.offsets.iter().all(|at| u64::from(*at) < index.header().pcap_len));
            }
        }
    }
    fs::write(&path, &whole).unwrap();
    assert_index(&SegmentIndex::open(dir.path(), 1).unwrap(), &model);
}

#[test]
fn a_damaged_journal_is_an_error_and_never_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let small = SegmentSpec { journal_bytes: 8192, ..spec() };
    let mut segment = prepare(dir.path(), 1, &small).unwrap().activate();
    fill(&mut segment, &[(60, 1), (61, 2), (62, 1), (63, 3)]);
    segment.publish();
    drop(segment);
    let path = dir.path().join("00000000000000000001.idx.open");
    let whole = fs::read(&path).unwrap();
    for at in (0..640).chain(4096..4160).chain(8000..8192) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0xff;
        fs::write(&path, &damaged).unwrap();
        if let Ok(index) = SegmentIndex::open(dir.path(), 1) {
            assert!(at >= 80, "byte {at} of the fixed part went unnoticed");
            for flow in 0..5 {
                let _ = index.postings(FlowHash(flow));
            }
        }
    }
    for cut in (0..8192).step_by(61) {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(SegmentIndex::open(dir.path(), 1).is_err(), "cut at {cut}");
    }
}

#[test]
fn the_oldest_segments_go_first_and_the_newest_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    for worker in [0, 1] {
        store.next_sequence(worker).unwrap();
    }
    // Made in this order; packet times run backwards to show that they do not matter.
    for (nth, (worker, sequence)) in
        [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3)].into_iter().enumerate()
    {
        let spec = SegmentSpec { worker, ..spec() };
        let prepared = prepare(&store.layout().worker(worker), sequence, &spec).unwrap();
        let mut segment = prepared.activate();
        segment.append(Nanos(1_000_000 - nth as i64), 60, &[&frame(1, 60)]).unwrap();
        segment.finish().seal(&QUICK).unwrap();
    }
    let mut retention = Retention::default();
    let all = retention.keep(&store, &Budgets::default()).unwrap();
    assert_eq!(all.files, []);
    let one = all.packet_bytes / 5;
    let mut names = |budget| {
        let budgets = Budgets { packets: Some(budget), sessions: None };
        let retired = retention.keep(&store, &budgets).unwrap();
        retired.files.iter().map(|f| f.path.clone()).collect::<Vec<_>>()
    };
    let path = |worker, sequence| format!("pcap/w{worker:02}/{sequence:020}.pcap");
    assert_eq!(names(3 * one), [path(0, 1), path(1, 1)]);
    assert_eq!(names(0), [path(0, 2)]);
    assert_eq!(segments(store.store()).unwrap().len(), 2, "each worker keeps its newest");
    assert_eq!(store.next_sequence(0).unwrap(), 4);
}

/// Makes a sealed segment of worker 0 with one frame at each of the moments.
fn sealed(store: &OwnedStore, sequence: u64, times: &[i64]) -> [SealedFile; 2] {
    store.next_sequence(0).unwrap();
    let spec = SegmentSpec { worker: 0, ..spec() };
    let prepared = prepare(&store.layout().worker(0), sequence, &spec).unwrap();
    let mut segment = prepared.activate();
    for ts in times {
        segment.append(Nanos(*ts), 60, &[&frame(1, 60)]).unwrap();
    }
    SealedFile::of_segment(&segment.finish().seal(&QUICK).unwrap().unwrap())
}

fn file(store: &OwnedStore, sequence: u64, extension: &str) -> std::path::PathBuf {
    store.layout().worker(0).join(format!("{sequence:020}.{extension}"))
}

fn keep(store: &OwnedStore, packets: u64) -> Retired {
    let budgets = Budgets { packets: Some(packets), sessions: None };
    Retention::default().keep(store, &budgets).unwrap()
}

fn line(interval: u64) -> LedgerLine {
    let run = RunId::parse("20070202T000000Z-00000001").unwrap();
    LedgerLine::new("test", &run, interval, Nanos(0), Nanos(1))
}

#[test]
fn a_segment_that_cannot_be_sealed_is_given_back_and_sealed_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut segment = prepare(dir.path(), 7, &spec()).unwrap().activate();
    let model = fill(&mut segment, &[(60, 1), (61, 2), (62, 1), (63, 3)]);
    // In the way of the index.
    let index = dir.path().join("00000000000000000007.idx");
    fs::create_dir(&index).unwrap();
    let place = SegmentRef { worker: 3, sequence: 7, dir: dir.path().to_owned() };
    let mut filled = segment.finish();
    for _ in 0..3 {
        let failure = filled.seal(&QUICK).unwrap_err();
        filled = *failure.segment;
        assert_eq!((filled.sequence(), filled.path()), (7, place.pcap_path().as_path()));
    }
    fs::remove_dir(&index).unwrap();
    let open = place.index().unwrap();
    assert!(open.is_open(), "it can be read meanwhile");
    assert_index(&open, &model);
    let sealed = filled.seal(&QUICK).unwrap().unwrap();
    let index = place.index().unwrap();
    assert!(!index.is_open());
    assert_index(&index, &model);
    assert_packets(&place.packets(&index).unwrap(), &model);
    assert_eq!(sealed.pcap_hash, Some(blake3::hash(&fs::read(place.pcap_path()).unwrap())));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "packets and index");
}

#[test]
fn what_a_recovery_did_is_in_the_ledger_once_however_many_starts_fail_before() {
    let dir = tempfile::tempdir().unwrap();
    killed_store(dir.path(), &[(60, 1), (61, 2)], 1);
    // Starts that recover and come to no line.
    for unclean in [true, false, false] {
        assert_eq!(small_store(dir.path()).recovery().was_unclean(), unclean);
    }
    let store = small_store(dir.path());
    let mut told = Vec::new();
    for interval in 0..3 {
        // A writer a line, as if each were a start of its own.
        let mut line = line(interval);
        LedgerWriter::open(&store).unwrap().append(&mut line).unwrap();
        told.extend(line.notes);
    }
    assert_eq!(told.len(), 3, "{told:?}");
    for note in &told {
        match note {
            Note::Sealed(file) => {
                let content = fs::read(store.layout().root().join(&file.path)).unwrap();
                assert_eq!(file.bytes, content.len() as u64);
                assert_eq!(file.blake3, Some(blake3::hash(&content).to_hex().to_string()));
                assert_eq!(file.items, 2);
            }
            Note::Recovered(report) => assert_eq!((report.segments, report.frames), (1, 2)),
            other => panic!("{other:?}"),
        }
    }
    drop(store);
    let mut later = line(3);
    LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut later).unwrap();
    assert_eq!(later.notes, []);
}

#[test]
fn a_note_that_stands_in_the_last_line_is_not_told_again() {
    let dir = tempfile::tempdir().unwrap();
    killed_store(dir.path(), &[(60, 1)], 1);
    let owed = dir.path().join("store/ledger/owed.jsonl");
    let store = small_store(dir.path());
    let before = fs::read(&owed).unwrap();
    LedgerWriter::open(&store).unwrap().append(&mut line(0)).unwrap();
    assert!(!owed.exists());
    drop(store);
    // As a kill between the line and forgetting leaves it, and the torn end of another note.
    fs::write(&owed, [&before, br#"{"owed":{"note":"seal"#.as_slice()].concat()).unwrap();
    let store = small_store(dir.path());
    let mut next = line(1);
    LedgerWriter::open(&store).unwrap().append(&mut next).unwrap();
    // What the torn one was to tell was not done yet: it is told before the deed.
    assert_eq!(next.notes, []);
}

#[test]
fn what_a_line_tells_is_owed_until_that_line_is_on_the_disk() {
    for (lost, forgotten) in [(true, false), (false, false), (false, true)] {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let mut ledger = LedgerWriter::open(&store).unwrap();
        ledger.append(&mut line(0)).unwrap();
        let sealed = sealed(&store, 1, &[5]).map(Note::Sealed);
        store.owe(&sealed);
        let mut told = line(1);
        told.notes = sealed.to_vec();
        let day = store.layout().ledger_day("test", told.to);
        let before = fs::metadata(&day).unwrap().len();
        ledger.append(&mut told).unwrap();
        if forgotten {
            store.forget_told();
        }
        assert_eq!(dir.path().join("store/ledger/owed.jsonl").exists(), !forgotten);
        drop((ledger, store));
        if lost {
            // As a power loss does with what the kernel has not written.
            fs::OpenOptions::new().write(true).open(&day).unwrap().set_len(before).unwrap();
        }
        let mut next = line(2);
        LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
        let expected: &[Note] = if lost { &sealed } else { &[] };
        assert_eq!(next.notes, expected, "{lost} {forgotten}");
    }
}

#[test]
fn what_was_done_without_a_line_is_told_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let sealed = sealed(&store, 1, &[5]).map(Note::Sealed);
    store.owe(&sealed);
    // This run brings it to the ledger itself, and is killed before.
    let mut own = line(0);
    LedgerWriter::open(&store).unwrap().append(&mut own).unwrap();
    assert_eq!(own.notes, []);
    drop(store);
    let mut next = line(1);
    LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
    assert_eq!(next.notes, sealed);
}

#[test]
fn the_hash_of_a_large_segment_is_of_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SegmentSpec::new(3, 20 << 20, LinkType::ETHERNET);
    for policy in [QUICK, SealPolicy { sync: true, hash: true }] {
        let sequence = if policy.sync { 2 } else { 1 };
        let mut segment = prepare(dir.path(), sequence, &spec).unwrap().activate();
        // More than is written out or read in one piece, and no multiple of either.
        let model = fill(&mut segment, &[(60_001, 1); 300]);
        assert_eq!(model.len(), 300);
        let sealed = segment.finish().seal(&policy).unwrap().unwrap();
        let place = SegmentRef { worker: 3, sequence, dir: dir.path().to_owned() };
        let pcap = fs::read(place.pcap_path()).unwrap();
        assert_eq!(pcap.len(), 24 + 300 * (16 + 60_001));
        assert_eq!(sealed.pcap_hash, Some(blake3::hash(&pcap)));
    }
}

#[test]
fn a_segment_sealed_but_for_its_journal_is_told_with_its_hashes() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let sealed = sealed(&store, 1, &[5, 6]).map(Note::Sealed);
    fs::write(file(&store, 1, "idx.open"), b"x").unwrap();
    drop(store);
    let mut next = line(0);
    LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
    assert_eq!(next.notes[..2], sealed);
    assert!(matches!(&next.notes[2..], [Note::Recovered(report)] if report.unfinished == 1));
}

#[test]
fn a_note_that_somebody_else_wrote_is_not_told_as_the_sensors() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    store.owe(&[Note::Said { text: "true".to_owned() }]);
    drop(store);
    let owed = dir.path().join("store/ledger/owed.jsonl");
    let text = fs::read_to_string(&owed).unwrap();
    let forged = text.replace("true", "lies");
    fs::write(&owed, format!("{text}{forged}")).unwrap();
    let mut next = line(0);
    LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
    let said: Vec<_> = next
        .notes
        .iter()
        .filter_map(|note| match note {
            Note::Said { text } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!((said.len(), said[0]), (2, "true"), "{said:?}");
    assert!(said[1].contains("not signed by this sensor"), "{said:?}");
}

#[test]
fn a_segment_is_told_of_before_the_last_step_of_its_sealing() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    store.next_sequence(0).unwrap();
    let spec = SegmentSpec { worker: 0, ..spec() };
    let mut segment = prepare(&store.layout().worker(0), 1, &spec).unwrap().activate();
    segment.append(Nanos(1), 60, &[&frame(1, 60)]).unwrap();
    let mut told = Vec::new();
    let sealed = segment.finish().seal_and_tell(&QUICK, |sealed| {
        assert!(file(&store, 1, "idx").exists() && file(&store, 1, "idx.open").exists());
        told.push(*sealed);
    });
    assert_eq!(told, [sealed.unwrap().unwrap()]);
    assert!(!file(&store, 1, "idx.open").exists());
}

#[test]
fn an_index_that_cannot_be_read_is_made_anew_from_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let model = killed_store(dir.path(), &[(60, 1), (61, 2), (62, 1)], 3);
    let index = dir.path().join("store/pcap/w03/00000000000000000001.idx");
    fs::write(&index, b"torn").unwrap();
    let store = small_store(dir.path());
    assert_eq!((store.recovery().frames, store.recovery().left.len()), (3, 0));
    assert_index(&segments(store.store()).unwrap()[0].index().unwrap(), &model);
}

#[test]
fn a_recovery_that_is_killed_is_told_as_far_as_it_came() {
    let dir = tempfile::tempdir().unwrap();
    killed_store(dir.path(), &[(60, 1)], 1);
    let owed = dir.path().join("store/ledger/owed.jsonl");
    let store = small_store(dir.path());
    let notes = fs::read_to_string(&owed).unwrap();
    drop(store);
    // As a kill leaves it in front of the last word: without it, one segment is known of.
    let lines: Vec<&str> = notes.lines().collect();
    let reports = lines.iter().filter(|line| line.contains("recovered_at")).count();
    assert!(reports > 1, "{notes}");
    fs::write(&owed, lines[..lines.len() - 1].join("\n") + "\n").unwrap();
    let mut next = line(0);
    LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
    let told = next.notes.iter().filter_map(|note| match note {
        Note::Recovered(report) => Some(report.segments),
        _ => None,
    });
    assert_eq!(told.collect::<Vec<_>>(), [1]);
}

#[test]
fn an_open_segment_with_a_damaged_journal_is_never_retired() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    store.next_sequence(0).unwrap();
    let spec = SegmentSpec { worker: 0, ..spec() };
    let mut open = prepare(&store.layout().worker(0), 1, &spec).unwrap().activate();
    open.append(Nanos(1), 60, &[&frame(1, 60)]).unwrap();
    fs::write(file(&store, 1, "idx.open"), b"not a journal").unwrap();
    for sequence in 2..=4 {
        sealed(&store, sequence, &[7]);
    }
    let retired = keep(&store, 0);
    let gone: Vec<_> = retired.files.iter().map(|file| file.path.as_str()).collect();
    let path = |sequence| format!("pcap/w00/{sequence:020}.pcap");
    assert_eq!(gone, [path(2), path(3)]);
    assert!(file(&store, 1, "pcap").exists() && file(&store, 4, "pcap").exists());
}

#[test]
fn a_sealed_index_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    let [packets, index] =
        [1, 2, 3].map(|sequence| sealed(&store, sequence, &[sequence as i64]))[0].clone();
    let mut retention = Retention::default();
    retention.keep(&store, &Budgets::default()).unwrap();
    // Were it read again, it would be found to be damaged.
    fs::write(file(&store, 1, "idx"), vec![0; index.bytes as usize]).unwrap();
    fs::write(file(&store, 1, "pcap"), b"").unwrap();
    let budgets = Budgets { packets: Some(0), sessions: None };
    let retired = retention.keep(&store, &budgets).unwrap();
    assert_eq!((&retired.files[0].path, retired.files[0].first_ts), (&packets.path, Nanos(1)));
    assert_eq!(retired.files[0].bytes, packets.bytes + index.bytes);
}

#[test]
fn a_retired_segment_is_told_with_its_times_even_if_its_index_is_damaged() {
    for known in ["ledger", "frames", "nothing"] {
        let dir = tempfile::tempdir().unwrap();
        let store = small_store(dir.path());
        let first = sealed(&store, 1, &[30, 10, 20]);
        sealed(&store, 2, &[40]);
        fs::write(file(&store, 1, "idx"), b"damaged").unwrap();
        if known == "ledger" {
            let mut line = line(0);
            line.notes.extend(first.map(Note::Sealed));
            LedgerWriter::open(&store).unwrap().append(&mut line).unwrap();
        }
        if known != "frames" {
            fs::write(file(&store, 1, "pcap"), b"damaged, too").unwrap();
        }
        let retired = keep(&store, 0);
        let gone = &retired.files[0];
        let expected = match known {
            "nothing" => (Nanos::MIN, Nanos::MAX, 1),
            _ => (Nanos(10), Nanos(30), 0),
        };
        assert_eq!((gone.first_ts, gone.last_ts, retired.said.len()), expected, "{known}");
        assert!(!file(&store, 1, "pcap").exists() && !file(&store, 1, "idx").exists());
        // Should the run be killed now, the next one tells of it.
        let gone = gone.clone();
        drop(store);
        let mut next = line(1);
        LedgerWriter::open(&small_store(dir.path())).unwrap().append(&mut next).unwrap();
        assert_eq!(next.notes, [Note::Retired(gone)]);
    }
}

#[test]
fn what_was_kept_aside_goes_with_its_segment() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    for sequence in [1, 2] {
        sealed(&store, sequence, &[7]);
    }
    fs::write(file(&store, 1, "damaged"), [0; 100]).unwrap();
    let retired = keep(&store, 0);
    let gone: Vec<_> = retired.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    let path = |extension| format!("pcap/w00/{:020}.{extension}", 1);
    assert_eq!(gone[1], (path("damaged").as_str(), 100));
    assert_eq!(gone[0].0, path("pcap"));
    assert_eq!(gone.len(), 2);
    let left: u64 = fs::read_dir(store.layout().worker(0))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(retired.packet_bytes, left);
}

#[test]
fn one_file_that_cannot_be_removed_keeps_no_other_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = small_store(dir.path());
    for sequence in 1..=3 {
        sealed(&store, sequence, &[7]);
    }
    // A directory is not removed as a file.
    fs::remove_file(file(&store, 1, "pcap")).unwrap();
    fs::create_dir(file(&store, 1, "pcap")).unwrap();
    let budgets = Budgets { packets: Some(0), sessions: None };
    let failure = Retention::default().keep(&store, &budgets).unwrap_err();
    let gone: Vec<_> = failure.retired.files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(gone, [format!("pcap/w00/{:020}.pcap", 2)]);
}
