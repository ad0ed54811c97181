//! What a line of the ledger tells an operator at once.

use std::sync::atomic::Ordering;

use capture_store::ledger::{LedgerLine, imbalances};
use tracing::warn;

use super::FlushTotals;

/// Says what a line shows that nobody should overlook.
pub(super) fn weigh(totals: &FlushTotals, line: &LedgerLine) {
    for imbalance in imbalances(line) {
        totals.imbalances.fetch_add(1, Ordering::Relaxed);
        warn!("the account does not balance: {imbalance}");
    }
    let queues = line.interfaces.iter().flat_map(|interface| &interface.queues);
    let lost = queues.fold(0_u64, |sum, queue| sum.saturating_add(queue.ring_losses));
    if lost > 0 {
        totals.ring_losses.fetch_add(lost, Ordering::Relaxed);
    }
    for interface in &line.interfaces {
        for queue in interface.queues.iter().filter(|queue| queue.ring_losses > 0) {
            warn!(
                iface = interface.name,
                queue = queue.queue,
                ring_full = queue.socket.rx_ring_full,
                no_buffer = queue.socket.rx_dropped,
                "{} frames were lost before the worker got them",
                queue.ring_losses
            );
        }
    }
    for worker in &line.workers {
        for (reason, frames) in &worker.dropped {
            warn!(
                worker = worker.worker,
                reason = reason.as_str(),
                "{frames} frames were not recorded: {}",
                reason.explain()
            );
        }
    }
    for (reason, rows) in &line.rows.lost {
        warn!(reason = reason.as_str(), "{rows} session rows were lost");
    }
}
