//! The kernel's side of the account: what the NICs and the XDP programs counted.
//!
//! Shared by the supervisor, which notes here what it takes, loses and opens, and the flush thread,
//! which reads. All totals go on when an interface comes back or a queue gets another socket.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capture_common::QueueCounters;
use capture_store::ledger::Nic;

use crate::account::WorkerCounts;
use crate::interval::{InterfaceReading, Probe, QueueReading};
use crate::link::Link;
use crate::program::Program;
use crate::rings::ClosedRing;
use crate::silence::Heard;
use crate::source::BATCH;
use crate::source::af_xdp::AfXdpConfig;
use crate::worker::Shared;

/// The kernel's side of every captured interface, in the order of the command line.
#[derive(Clone)]
pub(super) struct KernelSide {
    interfaces: Arc<Mutex<Vec<Side>>>,
    workers: Vec<Arc<Shared>>,
    /// Frames that a ring and a worker's hands can hold.
    capacity: u64,
}

/// One interface.
struct Side {
    name: String,
    backend: String,
    program: Arc<Program>,
    /// Its index, while it is there.
    index: Option<u32>,
    /// Whether it ran when it was last looked at.
    up: bool,
    /// Every receive queue that has been in use.
    queues: BTreeMap<u32, Served>,
    nic: NicTotals,
    /// What the program had counted before the account began, by queue.
    before_start: BTreeMap<u32, QueueCounters>,
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
    /// The books of a run: `workers` by number, and the slots of their receive rings.
    pub(super) fn new(workers: Vec<Arc<Shared>>, ring_size: u32) -> Self {
        // What the kernel has, the batch in the worker's hands, and as much that the kernel has
        // redirected but not yet put into the ring.
        let capacity = AfXdpConfig::most_on_their_way(ring_size) + 2 * BATCH as u64;
        Self { interfaces: Arc::default(), workers, capacity }
    }

    /// Opens the books of the next interface, which the program has been loaded for.
    pub(super) fn add(&self, name: &str, program: &Arc<Program>) {
        self.interfaces().push(Side {
            name: name.to_owned(),
            backend: String::new(),
            program: Arc::clone(program),
            index: None,
            up: false,
            queues: BTreeMap::new(),
            nic: NicTotals::default(),
            before_start: BTreeMap::new(),
            last: InterfaceReading::default(),
        });
    }

    /// The account begins, with every interface taken: what the programs turned away until now,
    /// while the sockets were opened one by one, came before the first interval. To be called
    /// before that interval's time is read, so that whatever it leaves out came earlier.
    pub(super) fn begin(&self) {
        for side in self.interfaces().iter_mut() {
            // Where they cannot be read, the first line shows more than it must.
            side.before_start = side.counters();
        }
    }

    /// An interface is there (again), and is watched from now on.
    pub(super) fn came(&self, number: usize, link: &Link) {
        if let Some(side) = self.interfaces().get_mut(number) {
            side.nic.begin(link);
            side.index = Some(link.index);
            side.saw(link);
        }
    }

    /// What a look has shown. The ledger's line says this of the link, and not what it may have
    /// become since, so that it never tells of a change before the blind time that belongs to it.
    pub(super) fn saw(&self, number: usize, link: Option<&Link>) {
        if let Some(side) = self.interfaces().get_mut(number) {
            match link {
                Some(link) => side.saw(link),
                None => (side.index, side.up) = (None, false),
            }
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
        // Where they cannot be read now, the end of the run finds what is missing.
        let Ok(xdp) = side.program.counters_of(queue) else { return };
        if let Some(served) = side.queues.get_mut(&queue) {
            let reading = QueueReading { places: served.places.clone(), ..QueueReading::default() };
            served.closed = ClosedRing::at(xdp.steered, &reading.taken(&counts));
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
        let before: Vec<_> = interfaces.iter().map(Side::counters).collect();
        workers();
        let capacity = self.capacity;
        let read = interfaces.iter_mut().zip(&before);
        read.map(|(interface, before)| interface.read(before, capacity)).collect()
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
    fn saw(&mut self, link: &Link) {
        self.up = link.runs();
        self.nic.last.1 = u64::from(link.carrier_changes);
        for queue in 0..link.rx_queues.max(1).min(self.program.queues()) {
            self.queues.entry(queue).or_default();
        }
    }

    /// What the program did with the frames of every queue that has been in use; at last, with
    /// those of all queues that it has no place for. A queue that cannot be asked is left out.
    fn counters(&self) -> BTreeMap<u32, QueueCounters> {
        let queues = self.queues.keys().copied().chain([self.program.queues()]);
        let asked = queues.filter_map(|queue| {
            let mut counters = self.program.counters_of(queue).ok()?;
            if let Some(before) = self.before_start.get(&queue) {
                leave_out(&mut counters, before);
            }
            Some((queue, counters))
        });
        asked.collect()
    }

    fn read(&mut self, before: &BTreeMap<u32, QueueCounters>, capacity: u64) -> InterfaceReading {
        // One that is gone keeps its last counts.
        let link = self.index.and_then(|index| Link::by_index(index).ok());
        if let Some(link) = &link {
            self.nic.last.0 = counted(link).0;
        }
        let (nic, carrier_changes) = self.nic.total();
        let counters = self.counters();
        let queue = |queue: u32| {
            let known = self.last.queues.iter().find(|known| known.queue == queue);
            let xdp = counters.get(&queue).copied().or(known.map(|known| known.xdp))?;
            let steered = before.get(&queue).map_or(xdp.steered, |then| then.steered);
            let served = self.queues.get(&queue).cloned().unwrap_or_default();
            Some(QueueReading {
                queue,
                worker: served.worker,
                places: served.places,
                closed: served.closed,
                steered_before: steered,
                xdp,
                capacity,
            })
        };
        let beyond = self.program.queues();
        // The place for all others says something only once there are any.
        let said = |reading: &QueueReading| reading.queue < beyond || reading.xdp.seen > 0;
        let queues = self.queues.keys().copied().chain([beyond]).filter_map(queue);
        let now = InterfaceReading {
            name: self.name.clone(),
            backend: self.backend.clone(),
            up: self.up,
            carrier_changes,
            nic: Some(nic),
            queues: queues.filter(said).collect(),
        };
        self.last = now.clone();
        now
    }
}

/// Takes away the frames that the program did not steer before the account began. The steered
/// ones stay: they reached a worker, and what it received is in the account.
fn leave_out(now: &mut QueueCounters, before: &QueueCounters) {
    for (now, before) in [
        (&mut now.passed, before.passed),
        (&mut now.no_socket, before.no_socket),
        (&mut now.aborted, before.aborted),
    ] {
        *now = now.saturating_sub(before);
    }
    let turned_away = [before.passed, before.no_socket, before.aborted];
    now.seen = turned_away.into_iter().fold(now.seen, u64::saturating_sub);
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
    fn what_came_before_the_account_began_is_left_out_of_it() {
        let counters = |seen, steered, passed, no_socket, aborted| QueueCounters {
            seen,
            steered,
            passed,
            no_socket,
            aborted,
            ..QueueCounters::default()
        };
        let before = counters(12, 5, 1, 4, 2);
        let mut now = counters(30, 20, 2, 5, 3);
        leave_out(&mut now, &before);
        assert_eq!(now, counters(23, 20, 1, 1, 1), "and it balances");
    }

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
