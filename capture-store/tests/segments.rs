//! Segments from preparation to recovery, through the public interface.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_flow::time::Nanos;
use capture_store::OwnedStore;
use capture_store::index::{SegmentIndex, SegmentRef, segments};
use capture_store::pcap::{RECORD_HEADER_LEN, SegmentReader};
use capture_store::retention::{Budgets, retire};
use capture_store::segment::{ActiveSegment, SealPolicy, SegmentSpec, prepare};
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
    let all = retire(&store, &Budgets::default()).unwrap();
    assert_eq!(all.files, []);
    let one = all.packet_bytes / 5;
    let names = |budget| {
        let budgets = Budgets { packets: Some(budget), sessions: None };
        let retired = retire(&store, &budgets).unwrap();
        retired.files.iter().map(|f| f.path.clone()).collect::<Vec<_>>()
    };
    let path = |worker, sequence| format!("pcap/w{worker:02}/{sequence:020}.pcap");
    assert_eq!(names(3 * one), [path(0, 1), path(1, 1)]);
    assert_eq!(names(0), [path(0, 2)]);
    assert_eq!(segments(store.store()).unwrap().len(), 2, "each worker keeps its newest");
    assert_eq!(store.next_sequence(0).unwrap(), 4);
}
