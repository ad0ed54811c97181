//! Every counter of a run, and the equations between them.
//!
//! ```text
//! seen     = steered + passed + no_socket + aborted        (the XDP program's own)
//! steered  = received + lost + in flight                   (rings between kernel and worker)
//! received = decoded + undecodable + held                  (fragments waiting for the rest)
//!          = recorded + dropped by reason
//! ```
//!
//! A worker writes its counters once a batch and nobody else does. A version number around them
//! (a seqlock) lets a reader see them as they were after one batch, so that the equations hold
//! for what it sees at any time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering, fence};

use capture_flow::decode::Undecodable;
use capture_flow::stats::FlowStats;
use capture_flow::time::Nanos;
use capture_store::drops::DropReason;

use crate::source::SourceCounters;

/// Reasons for which a frame is not recorded.
pub const DROP_REASONS: usize = DropReason::ALL.len();
/// Reasons for which a frame counts to no session.
pub const UNDECODABLE_REASONS: usize = Undecodable::ALL.len();

/// What one worker counts; kept on cache lines of its own.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// Odd while the worker writes.
    version: AtomicU64,
    sources: Box<[SharedSource]>,
    received: AtomicU64,
    wire_bytes: AtomicU64,
    recorded: AtomicU64,
    recorded_bytes: AtomicU64,
    unindexed: AtomicU64,
    dropped: [AtomicU64; DROP_REASONS],
    observed: AtomicU64,
    decoded: AtomicU64,
    held: AtomicU64,
    undecodable: [AtomicU64; UNDECODABLE_REASONS],
    inner_undecodable: AtomicU64,
    inner_too_deep: AtomicU64,
    sessions: AtomicU64,
    capacity: AtomicU64,
    created: AtomicU64,
    evicted: AtomicU64,
    rows: AtomicU64,
    rows_lost: AtomicU64,
    engine_now: AtomicI64,
    complete_through: AtomicI64,
}

/// What a worker took from one of its sources, shared.
#[derive(Debug, Default)]
struct SharedSource {
    frames: AtomicU64,
    wire_bytes: AtomicU64,
    last_ts: AtomicI64,
    malformed: AtomicU64,
    ring_full: AtomicU64,
    dropped: AtomicU64,
    fill_ring_empty: AtomicU64,
    invalid_descs: AtomicU64,
    missing: AtomicU64,
}

/// What a worker took from one of its sources (a queue of an interface, or a file).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceCounts {
    /// Frames received.
    pub frames: u64,
    /// Their bytes on the wire.
    pub wire_bytes: u64,
    /// Time of the latest of them; [`Nanos::MIN`] before the first.
    pub last_ts: Nanos,
    /// What the source itself says, as of at most a moment ago.
    pub own: SourceCounters,
}

impl Default for SourceCounts {
    fn default() -> Self {
        let own = SourceCounters::default();
        Self { frames: 0, wire_bytes: 0, last_ts: Nanos::MIN, own }
    }
}

/// The counters of one worker as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// What each of its sources gave.
    pub sources: Vec<SourceCounts>,
    /// Frames taken from sources.
    pub received: u64,
    /// Their bytes on the wire.
    pub wire_bytes: u64,
    /// Frames in segments.
    pub recorded: u64,
    /// Their captured bytes.
    pub recorded_bytes: u64,
    /// Frames in segments that no index knows.
    pub unindexed: u64,
    /// Frames in no segment, by [`DropReason::index`].
    pub dropped: [u64; DROP_REASONS],
    /// Frames that the session table looked at.
    pub observed: u64,
    /// Frames that count to a session.
    pub decoded: u64,
    /// Frames waiting for the rest of their datagram.
    pub held: u64,
    /// Frames that count to no session, by position in [`Undecodable::ALL`].
    pub undecodable: [u64; UNDECODABLE_REASONS],
    /// Frames that count to a session and hide another in a tunnel that could not be decoded.
    pub inner_undecodable: u64,
    /// The same in a tunnel that lies too deep in others.
    pub inner_too_deep: u64,
    /// Sessions in the table now.
    pub sessions: u64,
    /// Sessions that the table can hold.
    pub capacity: u64,
    /// Sessions begun.
    pub created: u64,
    /// Sessions written out early because the table was full.
    pub evicted: u64,
    /// Rows made.
    pub rows: u64,
    /// Rows that the hand-off to the flush thread could not take.
    pub rows_lost: u64,
    /// The worker's clock when it last looked.
    pub engine_now: Nanos,
    /// Every session with a frame before this moment has a row.
    pub complete_through: Nanos,
}

impl SourceCounts {
    /// These counts and another's.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            frames: self.frames.saturating_add(other.frames),
            wire_bytes: self.wire_bytes.saturating_add(other.wire_bytes),
            last_ts: self.last_ts.max(other.last_ts),
            own: self.own.after(&other.own),
        }
    }
}

impl WorkerCounts {
    /// Frames in no segment, whatever the reason.
    #[must_use]
    pub fn dropped_frames(&self) -> u64 {
        self.dropped.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Frames that count to no session, whatever the reason.
    #[must_use]
    pub fn undecodable_frames(&self) -> u64 {
        self.undecodable.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Since when sessions have frames that no row tells of and none will, if the worker ends here:
    /// what was in its table goes with it.
    #[must_use]
    pub fn unwritten_since(&self) -> Nanos {
        self.complete_through.min(self.engine_now)
    }

    /// Frames by which an equation is off; 0 when every frame is accounted for.
    #[must_use]
    pub fn imbalance(&self) -> u64 {
        let kept = self.recorded.saturating_add(self.dropped_frames());
        let read = self.decoded.saturating_add(self.undecodable_frames()).saturating_add(self.held);
        self.received.abs_diff(kept).max(self.received.abs_diff(read))
    }

    /// Adds another worker's counts, those of its sources aside; the clocks take the earlier of
    /// both.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.received, other.received),
            (&mut self.wire_bytes, other.wire_bytes),
            (&mut self.recorded, other.recorded),
            (&mut self.recorded_bytes, other.recorded_bytes),
            (&mut self.unindexed, other.unindexed),
            (&mut self.observed, other.observed),
            (&mut self.decoded, other.decoded),
            (&mut self.held, other.held),
            (&mut self.inner_undecodable, other.inner_undecodable),
            (&mut self.inner_too_deep, other.inner_too_deep),
            (&mut self.sessions, other.sessions),
            (&mut self.capacity, other.capacity),
            (&mut self.created, other.created),
            (&mut self.evicted, other.evicted),
            (&mut self.rows, other.rows),
            (&mut self.rows_lost, other.rows_lost),
        ];
        let arrays = self.dropped.iter_mut().zip(other.dropped);
        let arrays = arrays.chain(self.undecodable.iter_mut().zip(other.undecodable));
        for (mine, theirs) in pairs.into_iter().chain(arrays) {
            *mine = mine.saturating_add(theirs);
        }
        self.engine_now = self.engine_now.min(other.engine_now);
        self.complete_through = self.complete_through.min(other.complete_through);
    }
}

/// What the recorder counts, in the worker's own memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordCounts {
    /// Frames in segments.
    pub frames: u64,
    /// Their captured bytes.
    pub bytes: u64,
    /// Frames in segments that no index knows, because a journal was full.
    pub unindexed: u64,
    /// Frames in no segment, by [`DropReason::index`].
    pub dropped: [u64; DROP_REASONS],
}

/// What a worker lets others see after a batch.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What the recorder counts.
    pub record: &'a RecordCounts,
    /// What the session table counts.
    pub flow: &'a FlowStats,
    /// Rows that the hand-off to the flush thread could not take.
    pub rows_lost: u64,
    /// What each source gave.
    pub sources: &'a [SourceCounts],
    /// The worker's clock.
    pub engine_now: Nanos,
    /// Every session with a frame before this moment has a row.
    pub complete_through: Nanos,
}

impl WorkerCounters {
    /// Counters of a worker with places for so many sources.
    #[must_use]
    pub fn new(sources: usize) -> Self {
        let sources = (0..sources).map(|_| SharedSource::default()).collect();
        let counters = Self { sources, ..Self::default() };
        for source in &counters.sources {
            source.last_ts.store(Nanos::MIN.0, Ordering::Relaxed);
        }
        counters
    }

    /// Lets others see a worker's own counts. Only that worker calls it, once a batch.
    pub fn publish(&self, progress: &Progress<'_>) {
        let relaxed = Ordering::Relaxed;
        let Progress { record, flow, .. } = progress;
        let version = self.version.load(relaxed);
        self.version.store(version.wrapping_add(1), relaxed);
        // No store below may be seen before the odd version.
        fence(Ordering::Release);
        let dropped = record.dropped.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n));
        self.received.store(record.frames.wrapping_add(dropped), relaxed);
        self.wire_bytes.store(flow.frame_bytes, relaxed);
        self.recorded.store(record.frames, relaxed);
        self.recorded_bytes.store(record.bytes, relaxed);
        self.unindexed.store(record.unindexed, relaxed);
        for (shared, own) in self.dropped.iter().zip(record.dropped) {
            shared.store(own, relaxed);
        }
        self.observed.store(flow.frames, relaxed);
        self.decoded.store(flow.decoded, relaxed);
        self.held.store(flow.held, relaxed);
        for (shared, own) in self.undecodable.iter().zip(flow.undecodable) {
            shared.store(own, relaxed);
        }
        self.inner_undecodable.store(flow.inner_undecodable, relaxed);
        self.inner_too_deep.store(flow.inner_too_deep, relaxed);
        self.sessions.store(flow.sessions, relaxed);
        self.capacity.store(flow.capacity, relaxed);
        self.created.store(flow.created, relaxed);
        self.evicted.store(flow.evicted, relaxed);
        self.rows.store(flow.rows, relaxed);
        self.rows_lost.store(progress.rows_lost, relaxed);
        self.engine_now.store(progress.engine_now.0, relaxed);
        self.complete_through.store(progress.complete_through.0, relaxed);
        for (shared, own) in self.sources.iter().zip(progress.sources) {
            shared.frames.store(own.frames, relaxed);
            shared.wire_bytes.store(own.wire_bytes, relaxed);
            shared.last_ts.store(own.last_ts.0, relaxed);
            shared.malformed.store(own.own.malformed, relaxed);
            shared.ring_full.store(own.own.ring_full, relaxed);
            shared.dropped.store(own.own.dropped, relaxed);
            shared.fill_ring_empty.store(own.own.fill_ring_empty, relaxed);
            shared.invalid_descs.store(own.own.invalid_descs, relaxed);
            shared.missing.store(own.own.missing, relaxed);
        }
        // Release: who sees this version sees all of the above, and every row in the hand-off
        // that was put there before.
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// How many sources there are places for.
    #[must_use]
    pub fn places(&self) -> usize {
        self.sources.len()
    }

    /// Changes whenever the worker publishes: its heartbeat, at least every
    /// [`IDLE`](crate::live::IDLE).
    #[must_use]
    pub fn beat(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// The counters as they were after one batch.
    #[must_use]
    pub fn read(&self) -> WorkerCounts {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let counts = self.read_any();
            // No load above may happen after the version is looked at again.
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return counts;
            }
            // The worker may have been interrupted in the middle; writing takes it well below a
            // microsecond otherwise.
            std::thread::yield_now();
        }
    }

    fn read_any(&self) -> WorkerCounts {
        let relaxed = Ordering::Relaxed;
        let sources = self.sources.iter().map(|source| SourceCounts {
            frames: source.frames.load(relaxed),
            wire_bytes: source.wire_bytes.load(relaxed),
            last_ts: Nanos(source.last_ts.load(relaxed)),
            own: SourceCounters {
                frames: source.frames.load(relaxed),
                bytes: 0,
                unstamped: 0,
                malformed: source.malformed.load(relaxed),
                ring_full: source.ring_full.load(relaxed),
                dropped: source.dropped.load(relaxed),
                fill_ring_empty: source.fill_ring_empty.load(relaxed),
                invalid_descs: source.invalid_descs.load(relaxed),
                missing: source.missing.load(relaxed),
            },
        });
        WorkerCounts {
            sources: sources.collect(),
            complete_through: Nanos(self.complete_through.load(relaxed)),
            engine_now: Nanos(self.engine_now.load(relaxed)),
            received: self.received.load(relaxed),
            wire_bytes: self.wire_bytes.load(relaxed),
            recorded: self.recorded.load(relaxed),
            recorded_bytes: self.recorded_bytes.load(relaxed),
            unindexed: self.unindexed.load(relaxed),
            dropped: std::array::from_fn(|i| load(self.dropped.get(i))),
            observed: self.observed.load(relaxed),
            decoded: self.decoded.load(relaxed),
            held: self.held.load(relaxed),
            undecodable: std::array::from_fn(|i| load(self.undecodable.get(i))),
            inner_undecodable: self.inner_undecodable.load(relaxed),
            inner_too_deep: self.inner_too_deep.load(relaxed),
            sessions: self.sessions.load(relaxed),
            capacity: self.capacity.load(relaxed),
            created: self.created.load(relaxed),
            evicted: self.evicted.load(relaxed),
            rows: self.rows.load(relaxed),
            rows_lost: self.rows_lost.load(relaxed),
        }
    }
}

fn load(counter: Option<&AtomicU64>) -> u64 {
    counter.map_or(0, |counter| counter.load(Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counts_are_read_back() {
        let counters = WorkerCounters::new(1);
        let mut record = RecordCounts { frames: 5, bytes: 500, ..RecordCounts::default() };
        record.dropped[DropReason::NoSegment.index()] = 2;
        let mut flow = FlowStats { frames: 7, decoded: 4, held: 1, ..FlowStats::default() };
        flow.undecodable[0] = 2;
        let own =
            SourceCounters { frames: 7, ring_full: 3, missing: 4, ..SourceCounters::default() };
        let sources = [SourceCounts { frames: 7, wire_bytes: 700, last_ts: Nanos(8), own }];
        counters.publish(&Progress {
            record: &record,
            flow: &flow,
            rows_lost: 3,
            sources: &sources,
            engine_now: Nanos(10),
            complete_through: Nanos(9),
        });
        let counts = counters.read();
        assert_eq!((counts.received, counts.recorded, counts.dropped_frames()), (7, 5, 2));
        assert_eq!((counts.rows_lost, counts.complete_through), (3, Nanos(9)));
        assert_eq!(counts.unwritten_since(), Nanos(9));
        assert_eq!(counts.sources, sources);
        assert_eq!(counts.imbalance(), 0);
        assert_eq!(WorkerCounts { received: 8, ..counts.clone() }.imbalance(), 1);
        let mut both = counts.clone();
        both.add(&WorkerCounts { complete_through: Nanos(4), ..counts });
        assert_eq!((both.received, both.undecodable_frames()), (14, 4));
        assert_eq!((both.complete_through, both.engine_now), (Nanos(4), Nanos(10)));
    }

    #[test]
    fn a_reader_never_sees_half_a_batch() {
        let counters = WorkerCounters::new(1);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..200_000 {
                    let record = RecordCounts { frames: n, ..RecordCounts::default() };
                    let flow = FlowStats { frames: n, decoded: n, ..FlowStats::default() };
                    let sources = [SourceCounts { frames: n, ..SourceCounts::default() }];
                    counters.publish(&Progress {
                        record: &record,
                        flow: &flow,
                        rows_lost: 0,
                        sources: &sources,
                        engine_now: Nanos(0),
                        complete_through: Nanos(0),
                    });
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let counts = counters.read();
                assert_eq!(counts.imbalance(), 0);
                assert_eq!(counts.sources.first().map(|s| s.frames), Some(counts.received));
            }
        });
    }
}
