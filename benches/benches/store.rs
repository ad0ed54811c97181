//! Parts of `capture-store`: segments, journals, indexes, ledger.
#![allow(missing_docs)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_flow::time::Nanos;
use capture_store::index::SegmentIndex;
use capture_store::key::{Domain, SecretKey};
use capture_store::ledger::{Interface, LedgerLine, LedgerWriter, Queue, Worker};
use capture_store::segment::{ActiveSegment, FilledSegment, SealPolicy, SegmentSpec, prepare};
use capture_store::{OwnedStore, RunId};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tempfile::TempDir;

const NOW: Nanos = Nanos(1_700_000_000_000_000_000);
const SEGMENT_BYTES: u64 = 64 << 20;

/// A directory in memory, so that no disk is measured; on a machine without, where files go.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let under = if memory.is_dir() { PathBuf::from(memory) } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("stillwire-bench-").tempdir_in(under).expect("a directory")
}

/// A segment that is taken anew when it is full.
struct Segments {
    dir: TempDir,
    spec: SegmentSpec,
    current: ActiveSegment,
}

impl Segments {
    fn new(bytes: u64) -> Self {
        let dir = directory();
        let spec = SegmentSpec::new(0, bytes, LinkType::ETHERNET);
        let current = prepare(dir.path(), 1, &spec).expect("a segment").activate();
        Self { dir, spec, current }
    }

    fn change(&mut self) {
        let sequence = self.current.sequence() + 1;
        let next = prepare(self.dir.path(), sequence, &self.spec).expect("a segment").activate();
        std::mem::replace(&mut self.current, next).finish().discard().expect("removed");
    }

    /// The time that `rounds` calls of `work` take, in pieces of `piece` calls; the segment is
    /// changed between them, outside of the time, where `is_full` says so.
    fn time(
        &mut self,
        rounds: u64,
        piece: u64,
        is_full: impl Fn(&mut ActiveSegment) -> bool,
        mut work: impl FnMut(&mut ActiveSegment),
    ) -> Duration {
        let mut taken = Duration::ZERO;
        let mut left = rounds;
        while left > 0 {
            if is_full(&mut self.current) {
                self.change();
            }
            let here = left.min(piece);
            let begun = Instant::now();
            for _ in 0..here {
                work(&mut self.current);
            }
            taken += begun.elapsed();
            left -= here;
        }
        taken
    }
}

fn append(c: &mut Criterion) {
    const PIECE: u64 = 1024;
    let mut group = c.benchmark_group("append");
    for len in [64_usize, 512, 1514, 9000] {
        let frame = vec![0xa5; len];
        let mut segments = Segments::new(SEGMENT_BYTES);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |b| {
            b.iter_custom(|rounds| {
                segments.time(
                    rounds,
                    PIECE,
                    |segment| !segment.fits(PIECE as usize, PIECE as usize * len),
                    |segment| {
                        let parts: [&[u8]; 1] = [black_box(&frame)];
                        segment.append(NOW, len as u32, &parts).expect("room");
                    },
                )
            });
        });
    }
    group.finish();
}

fn note(c: &mut Criterion) {
    const PIECE: u64 = 1024;
    let mut group = c.benchmark_group("note");
    group.throughput(Throughput::Elements(1));
    let mut segments = Segments::new(SEGMENT_BYTES);
    for (name, known) in [("of a known session", true), ("of a new session", false)] {
        let mut marks = vec![Mark::default(); 1000];
        let mut turn = 0_u64;
        group.bench_function(name, |b| {
            b.iter_custom(|rounds| {
                segments.time(
                    rounds,
                    PIECE,
                    |segment| !segment.fits(PIECE as usize, 0),
                    |segment| {
                        let place = (turn % marks.len() as u64) as usize;
                        turn += 1;
                        if !known {
                            marks[place] = Mark::default();
                        }
                        let segment_no = segment.sequence();
                        let at = PcapPosition { worker: 0, segment: segment_no, offset: 24 };
                        segment.touch(black_box(at), FlowHash(turn), &mut marks[place]);
                    },
                )
            });
        });
        assert_eq!(segments.current.unnoted(), 0);
    }
    group.finish();
}

/// Sessions and frames in a segment to be indexed.
const SESSIONS: u64 = 10_000;
const FRAMES: u64 = 200_000;

fn hash(session: u64) -> FlowHash {
    FlowHash((session + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn filled(dir: &Path, sequence: u64) -> FilledSegment {
    let spec = SegmentSpec::new(0, 32 << 20, LinkType::ETHERNET);
    let mut segment = prepare(dir, sequence, &spec).expect("a segment").activate();
    let mut marks = vec![Mark::default(); SESSIONS as usize];
    for turn in 0..FRAMES {
        let offset = segment.append(NOW, 64, &[&[0xa5; 64]]).expect("room");
        let at = PcapPosition { worker: 0, segment: sequence, offset };
        let session = turn.wrapping_mul(0x9e37_79b9) % SESSIONS;
        segment.touch(at, hash(session), &mut marks[session as usize]);
    }
    assert_eq!(segment.unnoted(), 0);
    segment.finish()
}

fn index(c: &mut Criterion) {
    let mut group = c.benchmark_group("index");
    group.sample_size(10);
    let dir = directory();
    let mut sequence = 0;
    for (name, hash) in [("seal", false), ("seal and hash", true)] {
        group.throughput(Throughput::Elements(FRAMES));
        group.bench_function(format!("{name}, 200k frames of 10k sessions"), |b| {
            b.iter_batched(
                || {
                    sequence += 1;
                    filled(dir.path(), sequence)
                },
                |filled| filled.seal(&SealPolicy { sync: false, hash }).expect("sealed"),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();

    let mut group = c.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    sequence += 1;
    filled(dir.path(), sequence).seal(&SealPolicy { sync: false, hash: false }).expect("sealed");
    let index = SegmentIndex::open(dir.path(), sequence).expect("an index");
    assert_eq!(index.postings(hash(7)).expect("readable").offsets.len() as u64, FRAMES / SESSIONS);
    let mut session = 0;
    group.bench_function("a session of 10k, 20 frames", |b| {
        b.iter(|| {
            session = (session + 7919) % SESSIONS;
            index.postings(hash(session)).expect("readable")
        });
    });
    group.bench_function("the same, and opening the index", |b| {
        b.iter(|| {
            session = (session + 7919) % SESSIONS;
            let index = SegmentIndex::open(dir.path(), sequence).expect("an index");
            index.postings(hash(session)).expect("readable")
        });
    });
    group.finish();
}

/// A line as a capture of one queue writes it each second.
fn line(run: &RunId) -> LedgerLine {
    let mut line = LedgerLine::new("bench", run, 1, NOW, Nanos(NOW.0 + 1_000_000_000));
    line.complete_through = Some(NOW);
    line.interfaces.push(Interface {
        name: "eth0".to_owned(),
        backend: "native-copy".to_owned(),
        queues: vec![Queue { worker: Some(0), received: 1_000_000, ..Queue::default() }],
        ..Interface::default()
    });
    line.workers.push(Worker {
        received: 1_000_000,
        decoded: 1_000_000,
        written: 1_000_000,
        written_bytes: 64_000_000,
        ..Worker::default()
    });
    line
}

fn ledger(c: &mut Criterion) {
    let mut group = c.benchmark_group("ledger");
    let dir = directory();
    let store = OwnedStore::open_or_create(&dir.path().join("store"), Some("bench"));
    let store = store.expect("a store");
    let mut writer = LedgerWriter::open(&store).expect("a ledger");
    let run = RunId::new(NOW).expect("a run");
    let text = serde_json::to_vec(&line(&run)).expect("a text");
    let key = SecretKey::ephemeral().expect("a key");
    group.bench_function("hash a line", |b| b.iter(|| blake3::hash(black_box(&text))));
    group.bench_function("sign a line", |b| {
        b.iter(|| key.sign(Domain::LedgerLine, black_box(&text)));
    });
    group.bench_function("append a line: encode, sign, hash, write", |b| {
        let mut line = line(&run);
        b.iter(|| writer.append(&mut line).expect("written"));
    });
    group.finish();
}

criterion_group!(benches, append, note, index, ledger);
criterion_main!(benches);
