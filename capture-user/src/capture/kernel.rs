//! The kernel's side of the account: what the NICs and the XDP programs counted.
//!
//! Shared by the supervisor, which notes here what it takes, loses and opens, and the flush thread,
//! which reads. All totals go on when an interface comes back or a queue gets another socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capture_common::QueueCounters;
use capture_store::ledger::Nic;

use crate::account::{ClosedRing, WorkerCounts};
use crate::interval::{InterfaceReading, Probe, QueueReading};
use crate::link::Link;
use crate::program::Program;
use crate::silence::Heard;
use crate::source::BATCH;
use crate::worker::Shared;

/// The kernel's side of every captured interface, in the order of the command line.
#[derive(Clone)]
pub(super) struct KernelSide {
    interfaces: Arc<Mutex<Vec<Side>>>,
    workers: Vec<Arc<Shared>>,
    /// Frames that the rings and a worker's hands can hold.
    capacity: u64,
}

/// One interface.
struct Side {
    name: String,
    backend: String,
    program: Arc<Program>,
    /// Its index, while it is there.
    index: Option<u32>,
    /// Receive queues in use.
    queues_in_use: u32,
    queues: BTreeMap<u32, Served>,
    nic: NicTotals,
    last: InterfaceReading,
}

/// Who receives a queue.
#[derive(Clone, Debug, Default)]
struct Served {
    worker: Option<u16>,
    places: Vec<(u16, usize)>,
    closed: ClosedRing,
}

/// What the NIC counts, over all interfaces that had the name.
#[derive(Clone, Copy, Debug, Default)]
struct NicTotals {
    /// Of those that are gone.
    before: (Nic, u64),
    /// What this one had counted when it was taken.
    at_start: (Nic, u64),
    /// What was read last.
    last: (Nic, u64),
}

impl KernelSide {
    /// The books of a run: `workers` by number, and rings of so many slots.
    pub(super) fn new(workers: Vec<Arc<Shared>>, ring_size: u32) -> Self {
        // Receive ring, the batch in the worker's hands, and as much that the kernel has
        // redirected but not yet put into the ring.
        let capacity = u64::from(ring_size) + 2 * BATCH as u64;
        Self { interfaces: Arc::default(), workers, capacity }
    }

    /// Opens the books of the next interface, which the program has been loaded for.
    pub(super) fn add(&self, name: &str, program: &Arc<Program>) {
        self.interfaces().push(Side {
            name: name.to_owned(),
            backend: String::new(),
            program: Arc::clone(program),
            index: None,
            queues_in_use: 0,
            queues: BTreeMap::new(),
            nic: NicTotals::default(),
            last: InterfaceReading::default(),
        });
    }

    /// An interface is there (again), and is watched from now on.
    pub(super) fn came(&self, number: usize, link: &Link) {
        if let Some(side) = self.interfaces().get_mut(number) {
            side.nic.begin(link);
            side.index = Some(link.index);
            side.queues_in_use = link.rx_queues;
        }
    }

    /// An interface is gone.
    pub(super) fn gone(&self, number: usize) {
        if let Some(side) = self.interfaces().get_mut(number) {
            side.index = None;
        }
    }

    /// So many of its queues are in use.
    pub(super) fn uses(&self, number: usize, queues: u32) {
        if let Some(side) = self.interfaces().get_mut(number) {
            side.queues_in_use = queues;
        }
    }

    /// A queue has a socket, at this place of this worker. `backend` is how frames are taken.
    pub(super) fn serve(
        &self,
        number: usize,
        queue: u32,
        worker: u16,
        place: usize,
        backend: String,
    ) {
        if let Some(side) = self.interfaces().get_mut(number) {
            side.backend = backend;
            let served = side.queues.entry(queue).or_default();
            served.worker = Some(worker);
            if !served.places.contains(&(worker, place)) {
                served.places.push((worker, place));
            }
        }
    }

    /// A queue's socket is closed, and its worker has published what it took from it: what was
    /// still in the ring is lost.
    pub(super) fn close(&self, number: usize, queue: u32) {
        let counts: Vec<_> = self.workers.iter().map(|worker| worker.counters.read()).collect();
        let mut interfaces = self.interfaces();
        let Some(side) = interfaces.get_mut(number) else { return };
        let steered = match side.program.counters() {
            Ok(counters) => counters.get(queue as usize).map_or(0, |queue| queue.steered),
            // The next reading finds what is missing.
            Err(_) => return,
        };
        if let Some(served) = side.queues.get_mut(&queue) {
            let reading = QueueReading { places: served.places.clone(), ..QueueReading::default() };
            served.closed = ClosedRing::at(steered, &reading.taken(&counts));
            served.worker = None;
        }
    }

    fn interfaces(&self) -> MutexGuard<'_, Vec<Side>> {
        self.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe for KernelSide {
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading> {
        let mut interfaces = self.interfaces();
        let before: Vec<_> =
            interfaces.iter().map(|interface| interface.program.counters()).collect();
        workers();
        let capacity = self.capacity;
        let read = interfaces
            .iter_mut()
            .zip(before)
            .map(|(interface, before)| interface.read(&before.unwrap_or_default(), capacity));
        read.collect()
    }

    fn heard(&self, workers: &[WorkerCounts]) -> Vec<Heard> {
        let interfaces = self.interfaces();
        let heard = interfaces.iter().map(|interface| {
            let places = interface.queues.values().flat_map(|served| served.places.clone());
            let all = QueueReading { places: places.collect(), ..QueueReading::default() };
            let taken = all.taken(workers);
            Heard { iface: interface.name.clone(), frames: taken.frames, latest: taken.last_ts }
        });
        heard.collect()
    }
}

impl Side {
    fn read(&mut self, before: &[QueueCounters], capacity: u64) -> InterfaceReading {
        // One that is gone keeps its last counts.
        let link = self.index.and_then(|index| Link::by_index(index).ok());
        if let Some(link) = &link {
            self.nic.last = counted(link);
        }
        let (nic, carrier_changes) = self.nic.total();
        let counters = self
            .program
            .counters()
            .unwrap_or_else(|_| self.last.queues.iter().map(|queue| queue.xdp).collect());
        let queues = (0_u32..).zip(counters).map(|(queue, xdp)| {
            let steered = before.get(queue as usize).map_or(xdp.steered, |then| then.steered);
            let served = self.queues.get(&queue).cloned().unwrap_or_default();
            QueueReading {
                queue,
                worker: served.worker,
                places: served.places,
                closed: served.closed,
                steered_before: steered,
                xdp,
                capacity,
            }
        });
        // The program has places for queues that are not in use, and a last one for all that come
        // beyond those: they say something only once there are any.
        let said = |queue: &QueueReading| {
            queue.queue < self.queues_in_use || !queue.places.is_empty() || queue.xdp.seen > 0
        };
        let now = InterfaceReading {
            name: self.name.clone(),
            backend: self.backend.clone(),
            up: link.is_some_and(|link| link.runs()),
            carrier_changes,
            nic: Some(nic),
            queues: queues.filter(said).collect(),
        };
        self.last = now.clone();
        now
    }
}

impl NicTotals {
    /// Another interface of the name has come: it counts from anew.
    fn begin(&mut self, link: &Link) {
        let (nic, changes) = self.total();
        let now = counted(link);
        *self = Self { before: (nic, changes), at_start: now, last: now };
    }

    fn total(&self) -> (Nic, u64) {
        let sum = |field: fn(&Nic) -> u64| {
            let since = field(&self.last.0).saturating_sub(field(&self.at_start.0));
            field(&self.before.0).saturating_add(since)
        };
        let nic = Nic {
            rx_packets: sum(|nic| nic.rx_packets),
            rx_bytes: sum(|nic| nic.rx_bytes),
            rx_dropped: sum(|nic| nic.rx_dropped),
            rx_missed: sum(|nic| nic.rx_missed),
            rx_errors: sum(|nic| nic.rx_errors),
        };
        let changes = self.last.1.saturating_sub(self.at_start.1);
        (nic, self.before.1.saturating_add(changes))
    }
}

/// What a NIC has counted, and how often its carrier has changed.
fn counted(link: &Link) -> (Nic, u64) {
    let counters = &link.counters;
    let nic = Nic {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        rx_dropped: counters.rx_dropped,
        rx_missed: counters.rx_missed_errors.saturating_add(counters.rx_fifo_errors),
        rx_errors: counters.rx_errors,
    };
    (nic, u64::from(link.carrier_changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_comes_back_counts_on() {
        let mut link = Link::by_name("lo").expect("a loopback interface");
        link.counters.rx_packets = 1_000;
        link.carrier_changes = 5;
        let mut totals = NicTotals::default();
        totals.begin(&link);
        link.counters.rx_packets = 1_030;
        link.carrier_changes = 7;
        totals.last = counted(&link);
        assert_eq!((totals.total().0.rx_packets, totals.total().1), (30, 2));
        // The new one had counted before it was taken.
        link.counters.rx_packets = 4;
        link.carrier_changes = 1;
        totals.begin(&link);
        link.counters.rx_packets = 10;
        totals.last = counted(&link);
        assert_eq!((totals.total().0.rx_packets, totals.total().1), (36, 2));
    }
}
