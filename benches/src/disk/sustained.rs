//! How fast packets get to where they stay: segments prepared, filled, sealed and retired by the
//! sensor's own threads, until everything is on the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use capture_flow::frame::LinkType;
use capture_store::OwnedStore;
use capture_store::drops::DropReason;
use capture_store::ledger::SealedFile;
use capture_store::segment::{PCAP, SealPolicy, SegmentSpec};
use capture_user::budget::{Disk, Keeper};
use capture_user::config::Space;
use capture_user::confine::Kept;
use capture_user::keeper::{KeeperNews, Lane, Making, Preparer, Sealer};
use capture_user::recorder::{Recorder, Supply};
use capture_user::source::{BATCH, SourceFrame};
use crossbeam::channel::{Receiver, unbounded};
use serde::Serialize;
use tempfile::TempDir;

use super::frames::Chunks;
use super::notes::Noting;
use super::{Ring, Way};
use crate::measure::{self, on_core};

/// How long nothing may happen before the wait is looked at again: the preparer may have ended.
const LOOK: Duration = Duration::from_secs(1);

/// What one repetition of the sustained rate found.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sustained {
    /// Bytes of packets a second, from preparing the first segment until all is sealed and synced.
    pub rate: f64,
    /// Bytes of packets a second of the worker's own processor time.
    pub filling: f64,
    /// The part of the time for which the worker had no segment: what a capture would have
    /// dropped frames in, had they come faster.
    pub waiting: f64,
    /// Page faults of the worker while it filled segments, for each gigabyte.
    pub faults: f64,
    /// Segments that waited to be sealed when the last frame was recorded.
    pub backlog: usize,
    /// Segments that were retired to keep the budget.
    pub retired: u64,
}

/// A store on a disk that segments are written to.
pub(super) struct Bed {
    ring: Ring,
    /// Goes away with the bed.
    dir: TempDir,
    store: Arc<OwnedStore>,
    disk: Arc<Disk>,
}

impl Bed {
    /// A new store under `dir`.
    pub(super) fn new(dir: &Path, ring: Ring) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("stillwire-bench-")
            .tempdir_in(dir)
            .with_context(|| format!("--dir: cannot write to {}", dir.display()))?;
        let store = OwnedStore::open_or_create(&dir.path().join("store"), Some("bench"))
            .map_err(anyhow::Error::new)
            .context("cannot make a store")?;
        Ok(Self { ring, dir, store: Arc::new(store), disk: Arc::default() })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Records frames, `way.bytes` of them, and waits until they are where they stay.
    pub(super) fn run(&self, chunks: &Chunks, way: &Way) -> Result<Sustained> {
        let space = Space {
            // Of a fresh ring nothing goes; a wrapped one holds as much as one repetition writes.
            packets: match self.ring {
                Ring::Fresh => u64::MAX,
                Ring::Wrapped => way.bytes,
            },
            sessions: u64::MAX,
            segment: way.segment_bytes,
        };
        let store = &self.store;
        let (news, told) = unbounded();
        let kept = Kept::for_store(store.layout().root());
        let lane = Arc::new(Lane::new(WORKER));
        let making = Making {
            lane: Arc::clone(&lane),
            dir: store.layout().worker(WORKER),
            next_sequence: store.next_sequence(WORKER)?,
            spec: SegmentSpec::new(WORKER, way.segment_bytes, LinkType::ETHERNET),
            in_memory: false,
        };
        let first = making.next_sequence;
        let parts = chunks.parts();
        let frames = chunks.frames(&parts);

        let begun = Instant::now();
        let preparer = Preparer::start(vec![making], news.clone(), kept)?;
        let (_seals, sessions) = unbounded();
        let mut keeper = Keeper::new(Arc::clone(store), space, Arc::clone(&self.disk));
        let after = move |news: &_| keeper.keep(news);
        let (owner, lanes) = (Arc::clone(store), [Arc::clone(&lane)]);
        let sealer = Sealer::start(owner, &lanes, sessions, SealPolicy::default(), news, after)?;
        let filled = thread::scope(|scope| {
            let worker = scope.spawn(|| fill(&frames, chunks, &lane, &preparer, way));
            worker.join().unwrap_or_else(|_| bail!("the thread that fills segments failed"))
        });
        let backlog = lane.unsealed();
        // Whatever happened, the threads end, and what they did is known.
        let sealed = sealer.stop();
        let took = begun.elapsed().as_secs_f64();
        let died = preparer.stop();
        let filled = filled?;
        sealed?;
        ensure!(!died, "the thread that prepares segments failed");
        let outcome = Outcome::read(&told)?;
        outcome.check(filled.frames, filled.bytes)?;
        self.check_files(first, &outcome)?;
        Ok(Sustained {
            rate: filled.bytes as f64 / took,
            filling: filled.bytes as f64 / filled.on_core.as_secs_f64(),
            waiting: filled.waited.as_secs_f64() / took,
            faults: filled.faults as f64 / (filled.bytes as f64 / 1e9),
            backlog,
            retired: outcome.retired,
        })
    }

    /// What was sealed is there, as long as it says, unless it was retired.
    fn check_files(&self, first: u64, outcome: &Outcome) -> Result<()> {
        for file in &outcome.packets {
            let path: PathBuf = self.store.layout().root().join(&file.path);
            match fs::metadata(&path) {
                Ok(found) => ensure!(
                    found.len() == file.bytes,
                    "{} has {} bytes instead of {}",
                    file.path,
                    found.len(),
                    file.bytes
                ),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    ensure!(outcome.retired > 0, "{} of {first} on is missing", file.path);
                }
                Err(error) => return Err(error).with_context(|| file.path.clone()),
            }
        }
        Ok(())
    }
}

const WORKER: u16 = 0;

/// What the worker did.
struct Filled {
    frames: u64,
    /// Of the packets' files: records, without the files' headers.
    bytes: u64,
    waited: Duration,
    on_core: Duration,
    faults: u64,
}

/// Fills segments as fast as they come.
fn fill(
    frames: &[SourceFrame<'_>],
    chunks: &Chunks,
    lane: &Arc<Lane>,
    preparer: &Preparer,
    way: &Way,
) -> Result<Filled> {
    if let Some(core) = way.core {
        measure::pin(core)?;
    }
    lane.wakes_for_ready(&thread::current());
    let mut recorder =
        Recorder::new(WORKER, Arc::clone(lane), Supply::Ahead, capture_store::pcap::MAX_SNAPLEN);
    let mut noting = Noting::new(way.sessions);
    let mut waited = Duration::ZERO;
    let count = way.bytes / chunks.record_bytes() as u64;
    let (faults, begun) = (faults(), on_core());
    let mut left = count;
    for batch in frames.chunks(BATCH).cycle() {
        let mut rest = &batch[..batch.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        if rest.is_empty() {
            break;
        }
        left -= rest.len() as u64;
        while !rest.is_empty() {
            let room = recorder.room(rest);
            match room.refused {
                None => {}
                Some(DropReason::NoSegment) => {
                    waited += wait(lane, preparer)?;
                    continue;
                }
                Some(reason) => bail!("frames would be dropped: {}", reason.explain()),
            }
            let (piece, later) = rest.split_at(room.frames);
            noting.record(&mut recorder, piece, None);
            rest = later;
        }
        recorder.publish();
    }
    let on_core = on_core().saturating_sub(begun);
    let faults = self::faults().saturating_sub(faults);
    recorder.finish();
    let counts = recorder.counts();
    ensure!(counts.frames == count, "{} of {count} frames were recorded", counts.frames);
    ensure!(counts.unindexed == 0, "{} frames are in no index", counts.unindexed);
    Ok(Filled {
        frames: count,
        bytes: count * chunks.record_bytes() as u64,
        waited,
        on_core,
        faults,
    })
}

/// Waits until a segment is ready.
fn wait(lane: &Lane, preparer: &Preparer) -> Result<Duration> {
    let begun = Instant::now();
    while !lane.has_ready() {
        thread::park_timeout(LOOK);
        ensure!(preparer.is_alive(), "the thread that prepares segments ended");
        if let Some(reason) = lane.trouble() {
            bail!("no segment can be prepared: {}", reason.explain());
        }
    }
    Ok(begun.elapsed())
}

/// Page faults of this thread so far.
fn faults() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    // Behind the name, which may have blanks in it: minor faults are the eighth, major the tenth.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let field = |n: usize| fields.split_whitespace().nth(n).and_then(|text| text.parse().ok());
    [7, 9].into_iter().filter_map(field).fold(0, u64::saturating_add)
}

/// What the keeper told.
struct Outcome {
    /// The packets' files among what was sealed.
    packets: Vec<SealedFile>,
    retired: u64,
}

impl Outcome {
    fn read(told: &Receiver<KeeperNews>) -> Result<Self> {
        let is_packets = |file: &SealedFile| file.path.ends_with(PCAP);
        let mut outcome = Self { packets: Vec::new(), retired: 0 };
        for news in told.try_iter() {
            match news {
                KeeperNews::Sealed(files) => {
                    outcome.packets.extend(files.into_iter().filter(is_packets));
                }
                KeeperNews::Retired(files) => {
                    outcome.retired += files.iter().filter(|file| is_packets(file)).count() as u64;
                }
                KeeperNews::Said(text) => bail!("the store's keeper says: {text}"),
                KeeperNews::Altered(_) => bail!("a file of the store was changed by somebody"),
            }
        }
        Ok(outcome)
    }

    /// A bench that lost frames measured something else.
    fn check(&self, frames: u64, bytes: u64) -> Result<()> {
        let sealed: u64 = self.packets.iter().map(|file| file.items).sum();
        ensure!(sealed == frames, "{sealed} of {frames} frames were sealed");
        let headers = self.packets.len() as u64 * capture_store::pcap::FILE_HEADER_LEN as u64;
        let written = self.packets.iter().map(|file| file.bytes).sum::<u64>();
        ensure!(
            written == bytes + headers,
            "{written} bytes were sealed instead of {}",
            bytes + headers
        );
        Ok(())
    }
}
