//! Every counter of a run, and the equations between them.
//!
//! ```text
//! seen     = steered + passed + no_socket + aborted        (the XDP program's own)
//! steered  = received + lost + in flight                   (rings between kernel and worker)
//! received = decoded + undecodable + held                  (fragments waiting for the rest)
//!          = recorded + dropped by reason
//! ```
//!
//! A worker writes its counters once a batch and nobody else does, so relaxed stores suffice; a
//! reader sees each counter as of some moment near now. Between batches, and after the end, they
//! fit together exactly.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use capture_flow::decode::Undecodable;
use capture_flow::frame::IfaceId;
use capture_flow::stats::FlowStats;
use capture_flow::time::Nanos;
use capture_store::drops::DropReason;

/// Reasons for which a frame is not recorded.
pub const DROP_REASONS: usize = DropReason::ALL.len();
/// Reasons for which a frame counts to no session.
pub const UNDECODABLE_REASONS: usize = Undecodable::ALL.len();

/// What one worker counts; kept on cache lines of its own.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    received: AtomicU64,
    wire_bytes: AtomicU64,
    recorded: AtomicU64,
    recorded_bytes: AtomicU64,
    dropped: [AtomicU64; DROP_REASONS],
    observed: AtomicU64,
    decoded: AtomicU64,
    held: AtomicU64,
    undecodable: [AtomicU64; UNDECODABLE_REASONS],
    sessions: AtomicU64,
    capacity: AtomicU64,
    created: AtomicU64,
    evicted: AtomicU64,
    rows: AtomicU64,
    rows_lost: AtomicU64,
    engine_now: AtomicI64,
    complete_through: AtomicI64,
}

/// The counters of one worker as they were at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerCounts {
    /// Frames taken from sources.
    pub received: u64,
    /// Their bytes on the wire.
    pub wire_bytes: u64,
    /// Frames in segments.
    pub recorded: u64,
    /// Their captured bytes.
    pub recorded_bytes: u64,
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

    /// Frames by which an equation is off; 0 when every frame is accounted for.
    #[must_use]
    pub fn imbalance(&self) -> u64 {
        let kept = self.recorded.saturating_add(self.dropped_frames());
        let read = self.decoded.saturating_add(self.undecodable_frames()).saturating_add(self.held);
        self.received.abs_diff(kept).max(self.received.abs_diff(read))
    }

    /// Adds another worker's counts; the clocks take the earlier of both.
    pub fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.received, other.received),
            (&mut self.wire_bytes, other.wire_bytes),
            (&mut self.recorded, other.recorded),
            (&mut self.recorded_bytes, other.recorded_bytes),
            (&mut self.observed, other.observed),
            (&mut self.decoded, other.decoded),
            (&mut self.held, other.held),
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
    /// Frames in no segment, by [`DropReason::index`].
    pub dropped: [u64; DROP_REASONS],
}

impl WorkerCounters {
    /// Lets others see a worker's own counts. Only that worker calls it, once a batch.
    pub fn publish(
        &self,
        record: &RecordCounts,
        flow: &FlowStats,
        rows_lost: u64,
        engine_now: Nanos,
        complete_through: Nanos,
    ) {
        let relaxed = Ordering::Relaxed;
        let dropped = record.dropped.iter().fold(0_u64, |sum, n| sum.wrapping_add(*n));
        self.received.store(record.frames.wrapping_add(dropped), relaxed);
        self.wire_bytes.store(flow.frame_bytes, relaxed);
        self.recorded.store(record.frames, relaxed);
        self.recorded_bytes.store(record.bytes, relaxed);
        for (shared, own) in self.dropped.iter().zip(record.dropped) {
            shared.store(own, relaxed);
        }
        self.observed.store(flow.frames, relaxed);
        self.decoded.store(flow.decoded, relaxed);
        self.held.store(flow.held, relaxed);
        for (shared, own) in self.undecodable.iter().zip(flow.undecodable) {
            shared.store(own, relaxed);
        }
        self.sessions.store(flow.sessions, relaxed);
        self.capacity.store(flow.capacity, relaxed);
        self.created.store(flow.created, relaxed);
        self.evicted.store(flow.evicted, relaxed);
        self.rows.store(flow.rows, relaxed);
        self.rows_lost.store(rows_lost, relaxed);
        self.engine_now.store(engine_now.0, relaxed);
        // Last, and with release: who reads this finds every row before it in the hand-off.
        self.complete_through.store(complete_through.0, Ordering::Release);
    }

    /// The counters now.
    #[must_use]
    pub fn read(&self) -> WorkerCounts {
        let relaxed = Ordering::Relaxed;
        let complete_through = Nanos(self.complete_through.load(Ordering::Acquire));
        WorkerCounts {
            complete_through,
            engine_now: Nanos(self.engine_now.load(relaxed)),
            received: self.received.load(relaxed),
            wire_bytes: self.wire_bytes.load(relaxed),
            recorded: self.recorded.load(relaxed),
            recorded_bytes: self.recorded_bytes.load(relaxed),
            dropped: std::array::from_fn(|i| load(self.dropped.get(i))),
            observed: self.observed.load(relaxed),
            decoded: self.decoded.load(relaxed),
            held: self.held.load(relaxed),
            undecodable: std::array::from_fn(|i| load(self.undecodable.get(i))),
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

/// What one source (a queue of an interface) has given, as its worker last said.
#[derive(Debug)]
pub struct SourceAccount {
    /// The interface.
    pub iface: IfaceId,
    /// Its receive queue.
    pub queue: u32,
    /// Worker that serves it.
    pub worker: u16,
    frames: AtomicU64,
    wire_bytes: AtomicU64,
    last_ts: AtomicI64,
    malformed: AtomicU64,
}

impl SourceAccount {
    /// An account of nothing yet.
    #[must_use]
    pub fn new(iface: IfaceId, queue: u32, worker: u16) -> Self {
        Self {
            iface,
            queue,
            worker,
            frames: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            last_ts: AtomicI64::new(Nanos::MIN.0),
            malformed: AtomicU64::new(0),
        }
    }

    /// Adds a batch. Only the worker that owns the source calls it.
    pub fn add_batch(&self, frames: u64, wire_bytes: u64, last_ts: Nanos) {
        let relaxed = Ordering::Relaxed;
        self.frames.store(self.frames.load(relaxed).wrapping_add(frames), relaxed);
        self.wire_bytes.store(self.wire_bytes.load(relaxed).wrapping_add(wire_bytes), relaxed);
        self.last_ts.store(last_ts.0, relaxed);
    }

    /// Frames received.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Their bytes on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    /// Time of the latest frame; [`Nanos::MIN`] before the first.
    #[must_use]
    pub fn last_ts(&self) -> Nanos {
        Nanos(self.last_ts.load(Ordering::Relaxed))
    }
}

/// What lies between the XDP program and a worker, for one queue: read in the order of the fields,
/// so that the bounds below hold although the link runs on meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingReading {
    /// Frames steered to the socket, read first.
    pub steered_before: u64,
    /// Frames that the worker had received.
    pub received: u64,
    /// Frames that the socket says it lost (`ring_full + dropped`).
    pub lost: u64,
    /// Frames steered to the socket, read last.
    pub steered_after: u64,
    /// Frames that rings and the worker's batch can hold.
    pub capacity: u64,
}

/// What a [`RingReading`] means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingBalance {
    /// Frames that the kernel says were lost, with those that nothing explains.
    pub lost: u64,
    /// Among them: lost with no counter that says so.
    pub unexplained: u64,
    /// Frames that were received or reported lost although they were never steered: a counter
    /// cannot be believed.
    pub surplus: u64,
}

impl RingReading {
    /// Weighs the reading. While traffic runs, frames in flight are taken for whole as long as
    /// the rings can hold them; `at_rest` (XDP detached, rings drained) nothing is in flight and
    /// every missing frame is lost.
    #[must_use]
    pub fn balance(&self, at_rest: bool) -> RingBalance {
        let known = self.received.saturating_add(self.lost);
        let in_flight = if at_rest { 0 } else { self.capacity };
        let unexplained = self.steered_before.saturating_sub(known.saturating_add(in_flight));
        RingBalance {
            lost: self.lost.saturating_add(unexplained),
            unexplained,
            surplus: known.saturating_sub(self.steered_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_counts_are_read_back() {
        let counters = WorkerCounters::default();
        let mut record = RecordCounts { frames: 5, bytes: 500, ..RecordCounts::default() };
        record.dropped[DropReason::NoSegment.index()] = 2;
        let mut flow = FlowStats { frames: 7, decoded: 4, held: 1, ..FlowStats::default() };
        flow.undecodable[0] = 2;
        counters.publish(&record, &flow, 3, Nanos(10), Nanos(9));
        let counts = counters.read();
        assert_eq!((counts.received, counts.recorded, counts.dropped_frames()), (7, 5, 2));
        assert_eq!((counts.rows_lost, counts.complete_through), (3, Nanos(9)));
        assert_eq!(counts.imbalance(), 0);
        assert_eq!(WorkerCounts { received: 8, ..counts }.imbalance(), 1);
        let mut both = counts;
        both.add(&WorkerCounts { complete_through: Nanos(4), ..counts });
        assert_eq!((both.received, both.undecodable_frames()), (14, 4));
        assert_eq!((both.complete_through, both.engine_now), (Nanos(4), Nanos(10)));
    }

    #[test]
    fn what_is_in_flight_is_not_lost() {
        let reading = RingReading {
            steered_before: 1000,
            received: 900,
            lost: 40,
            steered_after: 1010,
            capacity: 64,
        };
        let running = reading.balance(false);
        assert_eq!(running, RingBalance { lost: 40, unexplained: 0, surplus: 0 });
        let rest = reading.balance(true);
        assert_eq!(rest, RingBalance { lost: 100, unexplained: 60, surplus: 0 });
    }

    #[test]
    fn a_loss_that_no_counter_tells_is_found() {
        let reading = RingReading {
            steered_before: 1000,
            received: 100,
            lost: 0,
            steered_after: 1000,
            capacity: 64,
        };
        assert_eq!(reading.balance(false).unexplained, 836);
        let impossible = RingReading { received: 1100, ..reading };
        assert_eq!(impossible.balance(false).surplus, 100);
    }
}
