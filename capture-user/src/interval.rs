//! Closes intervals: what was counted since the last line becomes the next line of the ledger.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use capture_common::QueueCounters;
use capture_flow::decode::Undecodable;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::drops::{DropReason, RowLossReason};
use capture_store::ledger::{
    Clock, Interface, LedgerLine, Link, Nic, Note, Queue, ReplayedFile, Silence, Socket, Worker,
    Xdp,
};
use capture_store::store::RunId;

use crate::account::{SourceCounts, WorkerCounts};
use crate::blind::{Told, down_ns};
use crate::rings::{ClosedRing, RingAccount, RingReading};
use crate::silence::Heard;

/// How long quiet intervals are folded into one line.
const FOLD: NanosDelta = NanosDelta::from_secs(10);

/// Why the inside of a tunnel counts to no session, as the ledger has it.
const INNER_UNDECODABLE: &str = "undecodable";
const INNER_TOO_DEEP: &str = "too_deep";

/// The kernel's side of one captured interface, running totals since the run began.
#[derive(Clone, Debug, Default)]
pub struct InterfaceReading {
    /// Its name.
    pub name: String,
    /// How frames are taken from it.
    pub backend: String,
    /// Whether it is up with carrier.
    pub up: bool,
    /// How often its carrier changed.
    pub carrier_changes: u64,
    /// What the NIC counts, where the interface could be asked.
    pub nic: Option<Nic>,
    /// Its receive queues.
    pub queues: Vec<QueueReading>,
}

/// The kernel's side of one receive queue, running totals since the run began.
#[derive(Clone, Debug, Default)]
pub struct QueueReading {
    /// Its number.
    pub queue: u32,
    /// Worker that serves it now.
    pub worker: Option<u16>,
    /// Every place at which it is or was received: a worker, and which of the worker's sources.
    pub places: Vec<(u16, usize)>,
    /// What had been counted when its socket was last closed: none of that is in a ring any more.
    pub closed: ClosedRing,
    /// Frames steered, read before the workers' counters.
    pub steered_before: u64,
    /// What the XDP program did, read after the workers' counters.
    pub xdp: QueueCounters,
    /// Frames that rings and a worker's batch can hold.
    pub capacity: u64,
}

impl QueueReading {
    /// What workers took from the queue, wherever it is or was received.
    #[must_use]
    pub fn taken(&self, workers: &[WorkerCounts]) -> SourceCounts {
        let taken = |(worker, place): &(u16, usize)| {
            workers.get(usize::from(*worker))?.sources.get(*place).copied()
        };
        let places = self.places.iter().filter_map(taken);
        places.fold(SourceCounts::default(), |sum, place| sum.and(&place))
    }
}

/// Where the kernel's side of the account is read.
pub trait Probe: Send {
    /// Reads how much was steered, then calls `workers` once (which reads the workers'
    /// counters), then reads the rest.
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading>;

    /// What has come from each captured interface, given the workers' counters.
    fn heard(&self, workers: &[WorkerCounts]) -> Vec<Heard>;
}

/// A replay has no kernel's side.
#[derive(Debug)]
pub struct NoKernel;

impl Probe for NoKernel {
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading> {
        workers();
        Vec::new()
    }

    fn heard(&self, _workers: &[WorkerCounts]) -> Vec<Heard> {
        Vec::new()
    }
}

/// Everything counted up to one moment.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// The workers, by number.
    pub workers: Vec<WorkerCounts>,
    /// Captured interfaces.
    pub interfaces: Vec<InterfaceReading>,
    /// Names of replayed files, in the order of the worker's sources, and whether each is cut.
    pub files: Vec<(String, bool)>,
    /// Rows committed to the session log.
    pub rows_written: u64,
    /// Rows that the session log could not take.
    pub rows_unwritable: u64,
    /// Every session with a frame before this moment has a row.
    pub complete_through: Option<Nanos>,
    /// How far the wall clock was stepped since the last line.
    pub stepped_ns: i64,
    /// Whether XDP is detached and the rings are drained, so that nothing is in flight.
    pub at_rest: bool,
}

/// Closes one interval after the other.
pub struct Intervals {
    sensor: String,
    run: RunId,
    mode: &'static str,
    clock: String,
    number: u64,
    from: Nanos,
    before: Reading,
    /// The ring of every queue at the last line, by interface and queue.
    rings: BTreeMap<(String, u32), RingAccount>,
}

/// A line that was made but not yet written.
pub struct Closing {
    /// The line.
    pub line: LedgerLine,
    /// Whether it tells of nothing that anybody could ask about.
    pub quiet: bool,
    after: Reading,
    rings: BTreeMap<(String, u32), RingAccount>,
}

impl Closing {
    /// Whether the line can wait: nothing happened, and the next one will span both.
    #[must_use]
    pub fn can_wait(&self) -> bool {
        self.quiet && self.line.to - self.line.from < FOLD
    }
}

impl Intervals {
    /// Starts the first interval at `from`. `clock` names what frames are stamped by.
    #[must_use]
    pub fn new(sensor: &str, run: &RunId, mode: &'static str, clock: &str, from: Nanos) -> Self {
        Self {
            sensor: sensor.to_owned(),
            run: run.clone(),
            mode,
            clock: clock.to_owned(),
            number: 0,
            from,
            before: Reading::default(),
            rings: BTreeMap::new(),
        }
    }

    /// When the open interval began.
    #[must_use]
    pub fn from(&self) -> Nanos {
        self.from
    }

    /// The clock was set back: the open interval begins anew where it stands now.
    pub fn begin_at(&mut self, now: Nanos) {
        self.from = now;
    }

    /// Frames that each worker has dropped since the last line for want of a segment to write
    /// them to.
    #[must_use]
    pub fn unwritten(&self, now: &[WorkerCounts]) -> Vec<(u16, BTreeMap<DropReason, u64>)> {
        let reasons = [DropReason::NoSegment, DropReason::DiskFull, DropReason::SegmentFailed];
        self.changes(now)
            .map(|(number, then, now)| {
                let mut dropped = dropped(then, now);
                dropped.retain(|reason, _| reasons.contains(reason));
                (number, dropped)
            })
            .collect()
    }

    /// Each worker's counts at the last line and now.
    fn changes<'a>(
        &'a self,
        now: &'a [WorkerCounts],
    ) -> impl Iterator<Item = (u16, &'a WorkerCounts, &'a WorkerCounts)> {
        static NONE: LazyLock<WorkerCounts> = LazyLock::new(WorkerCounts::default);
        let before = |number: u16| self.before.workers.get(usize::from(number)).unwrap_or(&NONE);
        (0_u16..).zip(now).map(move |(number, now)| (number, before(number), now))
    }

    /// Makes the line for everything since the last one.
    #[must_use]
    pub fn close(
        &self,
        to: Nanos,
        mut after: Reading,
        silence: Option<Silence>,
        told: &Told,
        notes: Vec<Note>,
    ) -> Closing {
        if !after.at_rest {
            let queues = after.interfaces.iter_mut().flat_map(|interface| &mut interface.queues);
            queues.for_each(|queue| settle(&mut queue.xdp));
        }
        let to = to.max(self.from);
        let mut rings = self.rings.clone();
        let mut line = LedgerLine::new(&self.sensor, &self.run, self.number, self.from, to);
        self.mode.clone_into(&mut line.mode);
        line.complete_through = after.complete_through;
        line.blind.clone_from(&told.blind);
        line.interfaces =
            after.interfaces.iter().map(|now| self.interface(now, &after, &mut rings)).collect();
        for interface in &mut line.interfaces {
            interface.link.down_ns = down_ns(&line.blind, &interface.name, self.from, to);
        }
        line.workers = self
            .changes(&after.workers)
            .map(|(number, then, now)| worker(number, then, now))
            .collect();
        line.files = self.files(&after);
        line.rows.written = after.rows_written.saturating_sub(self.before.rows_written);
        line.rows.lost = self.rows_lost(&after);
        line.clock = Some(Clock { source: self.clock.clone(), stepped_ns: after.stepped_ns });
        line.silence = silence;
        line.notes = notes;
        let quiet = self.number > 0
            && !after.at_rest
            && after.stepped_ns == 0
            && line.notes.is_empty()
            && !told.news
            && is_quiet(&line);
        Closing { line, quiet, after, rings }
    }

    /// The line was written: the next interval begins where it ends.
    pub fn written(&mut self, closing: Closing) {
        self.number = self.number.saturating_add(1);
        self.from = closing.line.to;
        self.before = closing.after;
        self.rings = closing.rings;
    }

    fn interface(
        &self,
        now: &InterfaceReading,
        after: &Reading,
        rings: &mut BTreeMap<(String, u32), RingAccount>,
    ) -> Interface {
        let none = InterfaceReading::default();
        let before =
            self.before.interfaces.iter().find(|known| known.name == now.name).unwrap_or(&none);
        let nic = now.nic.map(|nic| {
            let then = before.nic.unwrap_or_default();
            Nic {
                rx_packets: nic.rx_packets.saturating_sub(then.rx_packets),
                rx_bytes: nic.rx_bytes.saturating_sub(then.rx_bytes),
                rx_dropped: nic.rx_dropped.saturating_sub(then.rx_dropped),
                rx_missed: nic.rx_missed.saturating_sub(then.rx_missed),
                rx_errors: nic.rx_errors.saturating_sub(then.rx_errors),
            }
        });
        let queues = now
            .queues
            .iter()
            .map(|queue| {
                let none = QueueReading::default();
                let then = before.queues.iter().find(|known| known.queue == queue.queue);
                self.queue(&now.name, then.unwrap_or(&none), queue, after, rings)
            })
            .collect();
        Interface {
            name: now.name.clone(),
            backend: now.backend.clone(),
            link: Link {
                up: now.up,
                changes: now.carrier_changes.saturating_sub(before.carrier_changes),
                down_ns: 0,
            },
            nic,
            queues,
        }
    }

    fn queue(
        &self,
        interface: &str,
        then: &QueueReading,
        now: &QueueReading,
        after: &Reading,
        rings: &mut BTreeMap<(String, u32), RingAccount>,
    ) -> Queue {
        let (taken_then, taken) = (now.taken(&self.before.workers), now.taken(&after.workers));
        let key = (interface.to_owned(), now.queue);
        let before = rings.get(&key).copied().unwrap_or_default();
        let reading = RingReading {
            steered_before: now.steered_before,
            received: taken.frames,
            reported: taken.own.lost(),
            missing: taken.own.missing,
            steered: now.xdp.steered,
            capacity: now.capacity,
        };
        let account = before.next(&reading, &now.closed, after.at_rest);
        rings.insert(key, account);
        let since = |now: u64, then: u64| now.saturating_sub(then);
        Queue {
            queue: now.queue,
            worker: now.worker,
            xdp: Xdp {
                seen: since(now.xdp.seen, then.xdp.seen),
                seen_bytes: since(now.xdp.seen_bytes, then.xdp.seen_bytes),
                steered: since(now.xdp.steered, then.xdp.steered),
                passed: since(now.xdp.passed, then.xdp.passed),
                no_socket: since(now.xdp.no_socket, then.xdp.no_socket),
                aborted: since(now.xdp.aborted, then.xdp.aborted),
                unstamped: since(now.xdp.unstamped, then.xdp.unstamped),
            },
            in_ring_before: before.in_ring,
            in_ring_after: account.in_ring,
            received: since(taken.frames, taken_then.frames),
            ring_losses: since(account.lost, before.lost),
            socket: Socket {
                rx_dropped: since(taken.own.dropped, taken_then.own.dropped),
                rx_ring_full: since(taken.own.ring_full, taken_then.own.ring_full),
                rx_fill_ring_empty_descs: since(
                    taken.own.fill_ring_empty,
                    taken_then.own.fill_ring_empty,
                ),
                rx_invalid_descs: since(taken.own.invalid_descs, taken_then.own.invalid_descs),
            },
        }
    }

    fn files(&self, after: &Reading) -> Vec<ReplayedFile> {
        let frames = |reading: &Reading, source: usize| {
            let worker = reading.workers.first();
            worker.and_then(|worker| worker.sources.get(source)).map_or(0, |source| source.frames)
        };
        let files = after.files.iter().enumerate().map(|(source, (name, cut))| ReplayedFile {
            name: name.clone(),
            received: frames(after, source).saturating_sub(frames(&self.before, source)),
            cut: *cut && self.before.files.get(source).is_none_or(|(_, before)| !before),
        });
        files.filter(|file| file.received > 0 || file.cut).collect()
    }

    /// Session rows lost since the last line.
    #[must_use]
    pub fn rows_lost(&self, after: &Reading) -> BTreeMap<RowLossReason, u64> {
        let sum = |reading: &Reading| {
            reading.workers.iter().fold(0_u64, |sum, worker| sum.saturating_add(worker.rows_lost))
        };
        let lost = [
            (RowLossReason::HandOffFull, sum(after).saturating_sub(sum(&self.before))),
            (
                RowLossReason::LogUnwritable,
                after.rows_unwritable.saturating_sub(self.before.rows_unwritable),
            ),
        ];
        lost.into_iter().filter(|(_, rows)| *rows > 0).collect()
    }
}

/// Leaves out the frames in whose midst the program was when its counters were read, at most one
/// on each core: they were seen and nothing was done with them yet. The next reading has them.
/// A larger difference is left as it is, and shows.
fn settle(xdp: &mut QueueCounters) {
    const MOST_CORES: u64 = 1024;
    let done = [xdp.steered, xdp.passed, xdp.no_socket, xdp.aborted]
        .into_iter()
        .fold(0_u64, u64::saturating_add);
    if xdp.seen.abs_diff(done) <= MOST_CORES {
        xdp.seen = done;
    }
}

fn worker(number: u16, then: &WorkerCounts, now: &WorkerCounts) -> Worker {
    let named = Undecodable::ALL.iter().zip(now.undecodable.iter().zip(then.undecodable));
    let undecodable = named
        .map(|(reason, (now, then))| (reason.as_str().to_owned(), now.saturating_sub(then)))
        .filter(|(_, frames)| *frames > 0)
        .collect();
    let inner = [
        (INNER_UNDECODABLE, now.inner_undecodable.saturating_sub(then.inner_undecodable)),
        (INNER_TOO_DEEP, now.inner_too_deep.saturating_sub(then.inner_too_deep)),
    ];
    let inner = inner.into_iter().filter(|(_, frames)| *frames > 0);
    let dropped = dropped(then, now);
    // Fragments that wait for the rest of their datagram count as decoded here: a reader of the
    // line wants to know whether a frame was understood.
    let read = |counts: &WorkerCounts| counts.decoded.saturating_add(counts.held);
    Worker {
        worker: number,
        received: now.received.saturating_sub(then.received),
        decoded: read(now).saturating_sub(read(then)),
        undecodable,
        inner_unread: inner.map(|(name, frames)| (name.to_owned(), frames)).collect(),
        written: now.recorded.saturating_sub(then.recorded),
        written_bytes: now.recorded_bytes.saturating_sub(then.recorded_bytes),
        dropped,
        sessions: now.sessions,
        evicted: now.evicted.saturating_sub(then.evicted),
        unindexed: now.unindexed.saturating_sub(then.unindexed),
    }
}

/// Frames that a worker has dropped, by reason.
fn dropped(then: &WorkerCounts, now: &WorkerCounts) -> BTreeMap<DropReason, u64> {
    let reasons = DropReason::ALL.iter().zip(now.dropped.iter().zip(then.dropped));
    reasons
        .map(|(reason, (now, then))| (*reason, now.saturating_sub(then)))
        .filter(|(_, frames)| *frames > 0)
        .collect()
}

/// Whether nothing happened that anybody could ask about.
fn is_quiet(line: &LedgerLine) -> bool {
    let queues = line.interfaces.iter().flat_map(|interface| &interface.queues);
    line.rows.written == 0
        && line.rows.lost.is_empty()
        && line.files.is_empty()
        && line.workers.iter().all(|worker| worker.received == 0)
        && line.interfaces.iter().all(|interface| interface.link.changes == 0)
        && queues.into_iter().all(|queue| queue.xdp.seen == 0 && queue.ring_losses == 0)
}

#[cfg(test)]
mod tests;
