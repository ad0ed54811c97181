//! The kernel's side of the account: what the NIC and the XDP programs counted.

use std::sync::Arc;

use capture_store::ledger::Nic;

use super::Captured;
use crate::config::CaptureConfig;
use crate::interval::{InterfaceReading, Probe, QueueReading};
use crate::link::Link;
use crate::program::Program;
use crate::source::BATCH;
use crate::source::af_xdp::Backend;

/// Reads the kernel's side of the account.
pub(super) struct KernelProbe {
    interfaces: Vec<ProbedInterface>,
    /// Frames that the rings and a worker's hands can hold.
    capacity: u64,
}

struct ProbedInterface {
    name: String,
    index: u32,
    backend: String,
    program: Arc<Program>,
    /// Worker and source by queue.
    served_by: Vec<Option<(u16, usize)>>,
    /// NIC counters and carrier changes when the run began.
    at_start: (Nic, u64),
    last: InterfaceReading,
}

impl KernelProbe {
    pub(super) fn new(
        interfaces: &[Captured],
        sources: &[Vec<(usize, u32)>],
        backends: &[Vec<Backend>],
        config: &CaptureConfig,
    ) -> Self {
        let interfaces = interfaces.iter().enumerate().map(|(number, captured)| {
            let mut backend = captured.attached.mode.to_string();
            let mut served_by = Vec::new();
            for queue in 0..captured.link.rx_queues.max(1) {
                let place =
                    |taps: &Vec<(usize, u32)>| taps.iter().position(|tap| *tap == (number, queue));
                let served =
                    (0_u16..).zip(sources).find_map(|(worker, taps)| Some((worker, place(taps)?)));
                if let Some((worker, source)) = served
                    && let Some(found) =
                        backends.get(usize::from(worker)).and_then(|all| all.get(source))
                {
                    let copy = if found.zero_copy { "zerocopy" } else { "copy" };
                    backend = format!("{}-{copy}", found.attached);
                }
                served_by.push(served);
            }
            ProbedInterface {
                name: captured.link.name.clone(),
                index: captured.link.index,
                backend,
                program: Arc::clone(&captured.program),
                served_by,
                at_start: (nic(&captured.link), u64::from(captured.link.carrier_changes)),
                last: InterfaceReading::default(),
            }
        });
        // Receive ring, the batch in the worker's hands, and as much that the kernel has
        // redirected but not yet put into the ring.
        let capacity = u64::from(config.ring_size) + 2 * BATCH as u64;
        Self { interfaces: interfaces.collect(), capacity }
    }
}

impl Probe for KernelProbe {
    fn read(&mut self, workers: &mut dyn FnMut()) -> Vec<InterfaceReading> {
        let before: Vec<_> =
            self.interfaces.iter().map(|interface| interface.program.counters()).collect();
        workers();
        let capacity = self.capacity;
        let read = self
            .interfaces
            .iter_mut()
            .zip(before)
            .map(|(interface, before)| interface.read(&before.unwrap_or_default(), capacity));
        read.collect()
    }
}

impl ProbedInterface {
    fn read(
        &mut self,
        before: &[capture_common::QueueCounters],
        capacity: u64,
    ) -> InterfaceReading {
        let mut now = InterfaceReading {
            name: self.name.clone(),
            backend: self.backend.clone(),
            ..InterfaceReading::default()
        };
        match Link::by_index(self.index) {
            Ok(link) => {
                now.up = link.up && link.carrier;
                now.carrier_changes =
                    u64::from(link.carrier_changes).saturating_sub(self.at_start.1);
                let (then, total) = (self.at_start.0, nic(&link));
                now.nic = Some(Nic {
                    rx_packets: total.rx_packets.saturating_sub(then.rx_packets),
                    rx_bytes: total.rx_bytes.saturating_sub(then.rx_bytes),
                    rx_dropped: total.rx_dropped.saturating_sub(then.rx_dropped),
                    rx_missed: total.rx_missed.saturating_sub(then.rx_missed),
                    rx_errors: total.rx_errors.saturating_sub(then.rx_errors),
                });
            }
            // Gone: its last counts stay.
            Err(_) => {
                now.nic = self.last.nic;
                now.carrier_changes = self.last.carrier_changes;
            }
        }
        let counters = self
            .program
            .counters()
            .unwrap_or_else(|_| self.last.queues.iter().map(|queue| queue.xdp).collect());
        now.queues = (0_u32..)
            .zip(counters)
            .map(|(queue, xdp)| {
                let steered = before.get(queue as usize).map_or(xdp.steered, |then| then.steered);
                QueueReading {
                    queue,
                    served_by: self.served_by.get(queue as usize).copied().flatten(),
                    steered_before: steered,
                    xdp,
                    capacity,
                }
            })
            // The last one stands for queues that were added since; it says something only once
            // there are any.
            .filter(|queue| queue.served_by.is_some() || queue.xdp.seen > 0)
            .collect();
        self.last = now.clone();
        now
    }
}

fn nic(link: &Link) -> Nic {
    let counters = &link.counters;
    Nic {
        rx_packets: counters.rx_packets,
        rx_bytes: counters.rx_bytes,
        rx_dropped: counters.rx_dropped,
        rx_missed: counters.rx_missed_errors.saturating_add(counters.rx_fifo_errors),
        rx_errors: counters.rx_errors,
    }
}
