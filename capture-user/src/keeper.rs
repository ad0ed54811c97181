//! The threads that keep packet segments coming and going: one prepares them ahead of need, the
//! other seals what is full and keeps the disk budgets. No worker ever waits for them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use capture_store::drops::DropReason;
use capture_store::ledger::{Note, SealedFile};
use capture_store::segment::{self, FilledSegment, PrepareError, PreparedSegment, SegmentSpec};
use crossbeam::channel::Sender;
use crossbeam::queue::{ArrayQueue, SegQueue};
use tracing::{error, info, warn};

use crate::confine::Kept;

mod sealer;

pub use sealer::Sealer;

/// Segments ready for each worker.
pub const READY: usize = 2;
/// How often a thread looks around when nobody wakes it.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a failure a segment is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// No trouble (see [`Lane`]).
const FINE: u8 = u8::MAX;

/// What passes between one worker and the keeper. Neither side waits for the other.
pub struct Lane {
    worker: u16,
    ready: ArrayQueue<PreparedSegment>,
    filled: SegQueue<FilledSegment>,
    /// Index of the reason why no segment is ready, or [`FINE`].
    trouble: AtomicU8,
    preparer: OnceLock<Thread>,
    sealer: OnceLock<Thread>,
    /// Who waits for segments. No worker of a capture does.
    waiter: OnceLock<Thread>,
}

impl Lane {
    /// A lane with nothing in it.
    #[must_use]
    pub fn new(worker: u16) -> Self {
        Self {
            worker,
            ready: ArrayQueue::new(READY),
            filled: SegQueue::new(),
            trouble: AtomicU8::new(FINE),
            preparer: OnceLock::new(),
            sealer: OnceLock::new(),
            waiter: OnceLock::new(),
        }
    }

    /// A prepared segment, or why there is none.
    ///
    /// # Errors
    /// The reason under which frames are now dropped.
    pub fn take_ready(&self) -> Result<PreparedSegment, DropReason> {
        let Some(prepared) = self.ready.pop() else {
            return Err(self.trouble().unwrap_or(DropReason::NoSegment));
        };
        if let Some(preparer) = self.preparer.get() {
            preparer.unpark();
        }
        Ok(prepared)
    }

    /// Why segments cannot be prepared at the moment, if they cannot.
    #[must_use]
    pub fn trouble(&self) -> Option<DropReason> {
        DropReason::ALL.get(usize::from(self.trouble.load(Ordering::Relaxed))).copied()
    }

    /// Hands over a segment that is full.
    pub fn fill(&self, segment: FilledSegment) {
        self.filled.push(segment);
        if let Some(sealer) = self.sealer.get() {
            sealer.unpark();
        }
    }

    /// Segments waiting to be sealed for the first time.
    #[must_use]
    pub fn unsealed(&self) -> usize {
        self.filled.len()
    }

    /// Puts a prepared segment where the worker takes it; gives it back if there are enough.
    #[must_use]
    pub fn offer(&self, prepared: PreparedSegment) -> Option<PreparedSegment> {
        let surplus = self.ready.push(prepared).err();
        self.wake_waiter();
        surplus
    }

    /// Has a thread unparked whenever a segment is ready, or cannot be prepared: for measurements
    /// that lose nothing and go as fast as segments come. A worker of a capture drops frames
    /// instead of waiting.
    pub fn wakes_for_ready(&self, waiter: &Thread) {
        let _ = self.waiter.set(waiter.clone());
    }

    fn wake_waiter(&self) {
        if let Some(waiter) = self.waiter.get() {
            waiter.unpark();
        }
    }

    /// Whether a prepared segment waits to be taken.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A filled segment, for the sealer.
    #[must_use]
    pub fn take_filled(&self) -> Option<FilledSegment> {
        self.filled.pop()
    }

    /// Has the sealer woken by every segment that comes.
    fn wakes(&self, sealer: &Thread) {
        let _ = self.sealer.set(sealer.clone());
    }

    /// Removes the segments that nobody took.
    fn discard_ready(&self) {
        while let Some(unused) = self.ready.pop() {
            discard(unused);
        }
    }
}

/// What the keeper tells the flush thread, for the ledger.
#[derive(Debug)]
pub enum KeeperNews {
    /// Files were sealed.
    Sealed(Vec<SealedFile>),
    /// Files were removed to keep a budget.
    Retired(Vec<SealedFile>),
    /// Something that an operator should see.
    Said(String),
    /// A file of the session log was changed before it was sealed.
    Altered(Note),
}

/// How segments of one worker are made.
pub struct Making {
    /// The worker's lane.
    pub lane: Arc<Lane>,
    /// The worker's directory in the store.
    pub dir: PathBuf,
    /// Sequence number of the next segment.
    pub next_sequence: u64,
    /// What a segment shall be.
    pub spec: SegmentSpec,
    /// Whether segments lie in memory and those that are full become the next ones: a simulated
    /// disk. Nobody else takes the lane's filled segments then.
    pub in_memory: bool,
}

impl Making {
    fn next(&self) -> Result<PreparedSegment, PrepareError> {
        let (sequence, spec) = (self.next_sequence, &self.spec);
        if !self.in_memory {
            return segment::prepare(&self.dir, sequence, spec);
        }
        let filled = self.lane.take_filled();
        match filled.and_then(|filled| filled.again(sequence, spec)) {
            Some(again) => Ok(again),
            None => segment::prepare_in_memory(sequence, spec),
        }
    }

    fn prepare(&mut self) -> Result<(), PrepareError> {
        let prepared = self.next()?;
        self.next_sequence = self.next_sequence.saturating_add(1);
        // Only the preparer pushes, and only while there is room.
        if let Some(surplus) = self.lane.offer(prepared) {
            discard(surplus);
        }
        Ok(())
    }
}

/// The thread that prepares segments.
pub struct Preparer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Preparer {
    /// Prepares the first segments of every worker, so that a disk that cannot be used is noticed
    /// before anything is captured and the thread, once started, does not at once compete with the
    /// workers.
    ///
    /// # Errors
    /// A segment cannot be prepared, or the thread cannot be started.
    pub fn start(mut makings: Vec<Making>, news: Sender<KeeperNews>, kept: Kept) -> Result<Self> {
        let mut prepared = (0..READY).map(|_| makings.iter_mut().try_for_each(Making::prepare));
        if let Err(failure) = prepared.find(Result::is_err).unwrap_or(Ok(())) {
            makings.iter().for_each(|making| making.lane.discard_ready());
            return Err(failure.into());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let lanes: Vec<_> = makings.iter().map(|making| Arc::clone(&making.lane)).collect();
        let spawned = thread::Builder::new().name("preparer".to_owned()).spawn(move || {
            step_back();
            kept.confine();
            prepare_ahead(makings, &stopped, &news);
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(failure) => {
                lanes.iter().for_each(|lane| lane.discard_ready());
                return Err(failure).context("cannot start the thread that prepares segments");
            }
        };
        for lane in lanes {
            let _ = lane.preparer.set(thread.thread().clone());
        }
        Ok(Self { stop, thread })
    }

    /// Ends the thread and removes the segments that nobody took. Returns whether it had ended
    /// by itself, which it never should.
    pub fn stop(self) -> bool {
        let died = self.thread.is_finished();
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        self.thread.join().is_err() || died
    }

    /// Whether the thread runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// Preparing the segment after the next, hashing and indexing can wait, the wire cannot: where cores
/// are scarce, workers come first. Of a core that a worker wants for itself, a fifth to a quarter is
/// left to the calling thread: with less, segments would not come in time under a flood, or pile up
/// unsealed.
fn step_back() {
    const NICE: i32 = 5;
    // `None` is the calling thread, on Linux.
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        warn!("a thread of the keeper keeps the priority of capturing: {error}");
    }
}

fn prepare_ahead(mut makings: Vec<Making>, stop: &AtomicBool, news: &Sender<KeeperNews>) {
    let mut retry_at: Option<Instant> = None;
    while !stop.load(Ordering::Acquire) {
        let due = retry_at.is_none_or(|at| Instant::now() >= at);
        if due {
            retry_at = None;
        }
        // One segment for each in turn, the emptiest lane first.
        makings.sort_by_key(|making| making.lane.ready.len());
        let next = makings.iter_mut().find(|making| making.lane.ready.len() < READY);
        let Some(making) = next.filter(|_| due) else {
            thread::park_timeout(LOOK);
            continue;
        };
        let worker = making.lane.worker;
        match making.prepare() {
            Ok(()) => {
                if making.lane.trouble.swap(FINE, Ordering::Relaxed) != FINE {
                    info!(worker, "segments can be prepared again");
                    let text = format!("worker {worker}: segments can be prepared again");
                    let _ = news.send(KeeperNews::Said(text));
                }
            }
            Err(failure) => {
                let reason = match failure {
                    PrepareError::DiskFull { .. } => DropReason::DiskFull,
                    _ => DropReason::SegmentFailed,
                };
                let before = making.lane.trouble.swap(reason.index() as u8, Ordering::Relaxed);
                if before != reason.index() as u8 {
                    let cause = crate::chain(&failure);
                    error!(worker, "no segment: {cause}; {}", reason.explain());
                    let text = format!("worker {worker}: no segment can be prepared: {cause}");
                    let _ = news.send(KeeperNews::Said(text));
                    making.lane.wake_waiter();
                }
                retry_at = Some(Instant::now() + RETRY);
            }
        }
    }
    makings.iter().for_each(|making| making.lane.discard_ready());
}

fn discard(segment: PreparedSegment) {
    let sequence = segment.sequence();
    if let Err(error) = segment.discard() {
        warn!(sequence, "cannot remove an unused segment: {error}; the next start removes it");
    }
}

#[cfg(test)]
mod tests {
    use capture_flow::frame::LinkType;
    use crossbeam::channel::unbounded;

    use super::*;

    fn making(lane: &Arc<Lane>, dir: &std::path::Path) -> Making {
        let spec = SegmentSpec::new(0, SegmentSpec::MIN_BYTES, LinkType::ETHERNET);
        let (lane, dir) = (Arc::clone(lane), dir.to_owned());
        Making { lane, dir, next_sequence: 1, spec, in_memory: false }
    }

    /// Waits until the lane has something; the preparer wakes by itself.
    fn take(lane: &Lane) -> PreparedSegment {
        lane.wakes_for_ready(&thread::current());
        let begun = Instant::now();
        loop {
            match lane.take_ready() {
                Ok(segment) => return segment,
                Err(reason) => {
                    assert!(begun.elapsed() < Duration::from_secs(30), "none comes: {reason:?}");
                    thread::park_timeout(Duration::from_secs(30));
                }
            }
        }
    }

    #[test]
    fn segments_come_in_order_and_those_that_nobody_took_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let lane = Arc::new(Lane::new(0));
        let (news, _said) = unbounded();
        let kept = Kept::for_store(dir.path());
        // The thread's capabilities are its own: giving them up changes nothing for this test.
        let preparer = Preparer::start(vec![making(&lane, dir.path())], news, kept);
        let preparer = preparer.expect("segments can be prepared here");
        for sequence in 1..=5 {
            let segment = take(&lane);
            assert_eq!(segment.sequence(), sequence);
            segment.discard().expect("removed");
        }
        assert!(!preparer.stop());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_simulated_disk_has_the_same_few_segments_again_and_again() {
        let lane = Arc::new(Lane::new(0));
        let (news, said) = unbounded();
        let nowhere = std::path::Path::new("/proc/no-such-directory");
        let making = Making { in_memory: true, ..making(&lane, nowhere) };
        let preparer = Preparer::start(vec![making], news, Kept::for_store(nowhere));
        let preparer = preparer.expect("a disk that cannot be used is not asked");
        for sequence in 1..=20 {
            let mut segment = take(&lane).activate();
            assert_eq!(segment.sequence(), sequence);
            segment.append(capture_flow::time::Nanos(1), 3, &[&[1, 2, 3]]).expect("empty");
            lane.fill(segment.finish());
        }
        // What was filled became what came next; at most this many wait to.
        assert!(lane.unsealed() <= READY + 1, "{}", lane.unsealed());
        assert!(!preparer.stop());
        assert!(said.is_empty());
    }

    #[test]
    fn a_start_that_fails_leaves_no_segment_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let lanes = [0, 1].map(|worker| Arc::new(Lane::new(worker)));
        let (news, _said) = unbounded();
        let kept = Kept::for_store(dir.path());
        let nowhere = std::path::Path::new("/proc/no-such-directory");
        let makings = vec![making(&lanes[0], dir.path()), making(&lanes[1], nowhere)];
        assert!(Preparer::start(makings, news, kept).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_an_error_at_the_start() {
        let lane = Arc::new(Lane::new(0));
        let (news, _) = unbounded();
        let nowhere = std::path::Path::new("/proc/no-such-directory");
        let kept = Kept::for_store(nowhere);
        assert!(Preparer::start(vec![making(&lane, nowhere)], news, kept).is_err());
        assert!(matches!(lane.take_ready(), Err(DropReason::NoSegment)));
    }
}
