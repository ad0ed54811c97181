//! Losses between the XDP program and the workers: since when one may have happened.
//!
//! A line's loss is what its equation leaves. While frames are in flight, one that was lost without
//! a counter looks like one in flight, until the ring is seen empty. So a loss may be as old as
//! the last line at whose end nothing was in the ring, and frames that do not come out of the ring
//! in the next interval are lost whatever the line calls them.

use std::collections::BTreeMap;

use capture_flow::time::Nanos;
use capture_store::ledger::Queue;

/// A loss: since when, and how many frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) since: Nanos,
    pub(super) frames: u64,
}

/// The rings of one run, line after line.
#[derive(Debug, Default)]
pub(super) struct Rings<'a> {
    queues: BTreeMap<(&'a str, u32), Ring>,
}

#[derive(Debug)]
struct Ring {
    /// Nothing but `stuck` frames was on its way at this moment.
    settled: Nanos,
    /// Frames that are taken for lost already although the lines call them in flight.
    stuck: u64,
}

impl<'a> Rings<'a> {
    /// Takes in a queue's part of the next line, which begins at `from`; its counters were read at
    /// `to` or later.
    pub(super) fn loss(
        &mut self,
        interface: &'a str,
        queue: &Queue,
        (from, to): (Nanos, Nanos),
    ) -> Option<Loss> {
        let fresh = Ring { settled: from, stuck: 0 };
        let ring = self.queues.entry((interface, queue.queue)).or_insert(fresh);
        let since = ring.settled;
        let stuck = queue.in_ring_before.saturating_sub(queue.received);
        let mut frames = 0;
        if queue.ring_losses > 0 {
            frames = queue.ring_losses.saturating_sub(ring.stuck);
            ring.stuck = ring.stuck.saturating_sub(queue.ring_losses);
        } else if stuck > ring.stuck {
            frames = stuck - ring.stuck;
            ring.stuck = stuck;
        }
        if queue.in_ring_after <= ring.stuck {
            ring.settled = to;
        }
        (frames > 0).then_some(Loss { since, frames })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a second each: in the ring before, received, lost, in the ring after.
    fn losses(lines: &[(u64, u64, u64, u64)]) -> Vec<Option<(i64, u64)>> {
        let mut rings = Rings::default();
        let queue = |line: &(u64, u64, u64, u64)| Queue {
            in_ring_before: line.0,
            received: line.1,
            ring_losses: line.2,
            in_ring_after: line.3,
            ..Queue::default()
        };
        (0..)
            .zip(lines)
            .map(|(second, line)| {
                let loss = rings.loss("eth0", &queue(line), (Nanos(second), Nanos(second + 1)));
                loss.map(|loss| (loss.since.0, loss.frames))
            })
            .collect()
    }

    #[test]
    fn a_loss_is_of_its_own_line_where_the_ring_was_empty_before() {
        assert_eq!(losses(&[(0, 5, 0, 0), (0, 5, 2, 0), (0, 5, 0, 0)]), [None, Some((1, 2)), None]);
    }

    #[test]
    fn a_loss_is_as_old_as_the_last_empty_ring() {
        let lines = [(0, 5, 0, 0), (0, 5, 0, 3), (3, 9, 0, 3), (3, 9, 1, 0)];
        assert_eq!(losses(&lines), [None, None, None, Some((1, 1))]);
    }

    #[test]
    fn frames_that_never_come_out_of_the_ring_are_lost_once() {
        let lines = [(0, 5, 0, 2), (2, 0, 0, 2), (2, 0, 0, 2), (2, 7, 0, 2), (2, 3, 2, 0)];
        assert_eq!(losses(&lines), [None, Some((0, 2)), None, None, None]);
    }
}
