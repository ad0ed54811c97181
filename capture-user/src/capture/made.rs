//! A simulated capture: queues of made frames in the place of an interface.

use std::sync::Arc;

use anyhow::Result;
use capture_common::QueueCounters;

use super::crew::{Crew, LiveSource};
use crate::account::WorkerCounts;
use crate::config::CaptureConfig;
use crate::interval::{InterfaceReading, Probe, QueueReading};
use crate::run::Run;
use crate::silence::Heard;
use crate::simulate::MadeFrames;
use crate::source::BATCH;
use crate::source::made::{Made, NAME, Traffic, Wire};

/// The queues, one for each worker.
#[derive(Clone)]
pub(super) struct MadeQueues {
    queues: Vec<Queue>,
    frame_bytes: u64,
    /// Frames that a ring and a worker's hands can hold.
    capacity: u64,
}

#[derive(Clone)]
struct Queue {
    wire: Arc<Wire>,
    worker: u16,
    place: usize,
}

impl MadeQueues {
    /// Gives each worker a queue; what is to be made is dealt out evenly.
    pub(super) fn open(
        made: &MadeFrames,
        config: &CaptureConfig,
        run: &Run,
        crew: &mut Crew,
    ) -> Result<Self> {
        let count = run.workers.len().max(1) as u64;
        let share = |all: u64, number: u64| all / count + u64::from(number < all % count);
        let iface = run.names.number(NAME);
        let mut queues = Vec::new();
        let mut first_session = 0;
        for (number, shared) in (0..).zip(&run.workers) {
            let sessions = share(made.sessions, number).max(1);
            let traffic = Traffic {
                frame_bytes: made.frame_bytes,
                first_session,
                sessions,
                per_second: made.per_second.map(|all| share(all, number).max(1)),
                limit: config.count.map(|all| share(all, number)),
                ring_size: config.ring_size,
            };
            first_session += sessions;
            let wire = Arc::new(Wire::default());
            let source = Made::new(traffic, iface, Arc::clone(&wire))?;
            let give = || Ok((Box::new(source) as LiveSource, ()));
            let (place, ()) = crew.give(shared.worker, (0, u32::from(shared.worker)), give)?;
            queues.push(Queue { wire, worker: shared.worker, place });
        }
        let capacity = u64::from(config.ring_size) + 2 * BATCH as u64;
        Ok(Self { queues, frame_bytes: u64::from(made.frame_bytes), capacity })
    }

    /// Frames that were sent so far.
    pub(super) fn offered(&self) -> u64 {
        self.queues.iter().fold(0, |sum, queue| sum.saturating_add(queue.wire.offered()))
    }

    /// Nothing is sent any more.
    pub(super) fn end(&self) {
        self.queues.iter().for_each(|queue| queue.wire.end());
    }
}

impl Probe for MadeQueues {
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading> {
        let before: Vec<_> = self.queues.iter().map(|queue| queue.wire.offered()).collect();
        workers();
        let queues = self.queues.iter().zip(before).map(|(queue, steered_before)| {
            let offered = queue.wire.offered();
            QueueReading {
                queue: u32::from(queue.worker),
                worker: Some(queue.worker),
                places: vec![(queue.worker, queue.place)],
                steered_before,
                xdp: QueueCounters {
                    seen: offered,
                    seen_bytes: offered.saturating_mul(self.frame_bytes),
                    steered: offered,
                    ..QueueCounters::default()
                },
                capacity: self.capacity,
                ..QueueReading::default()
            }
        });
        vec![InterfaceReading {
            name: NAME.to_owned(),
            backend: NAME.to_owned(),
            up: true,
            queues: queues.collect(),
            ..InterfaceReading::default()
        }]
    }

    fn heard(&self, workers: &[WorkerCounts]) -> Vec<Heard> {
        let places = self.queues.iter().map(|queue| (queue.worker, queue.place)).collect();
        let taken = QueueReading { places, ..QueueReading::default() }.taken(workers);
        vec![Heard { iface: NAME.to_owned(), frames: taken.frames, latest: taken.last_ts }]
    }
}
