//! What lies between the XDP program and the workers: the account of every receive ring.
//!
//! ```text
//! steered = received + lost + in flight
//! ```
//!
//! The kernel counts most losses ([`SourceCounters::lost`](crate::source::SourceCounters::lost)).
//! One that it does not count looks like a frame in flight. Three things tell it apart:
//!
//! - At rest, and when a socket is closed, nothing is in flight: what is missing is lost.
//! - While frames come, the source knows by their stamps which must have come by now
//!   ([`SourceCounters::missing`](crate::source::SourceCounters::missing)).
//! - Where it cannot know, as in a worker that does not run, a ring holds no more than it has room
//!   for.

use crate::account::SourceCounts;

/// One queue, read in the order of the fields, so that the bounds below hold although the link runs
/// on meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingReading {
    /// Frames steered to the socket, read first.
    pub steered_before: u64,
    /// Frames that the worker had received.
    pub received: u64,
    /// Frames that sockets say they lost.
    pub reported: u64,
    /// Frames that sources know to be missing, whatever became of them.
    pub missing: u64,
    /// Frames steered to the socket, read last.
    pub steered: u64,
    /// Frames that rings and the worker's batch can hold.
    pub capacity: u64,
}

/// What is known of a queue's ring from one line of the ledger to the next. Unless a counter cannot be
/// believed, `steered = received + lost + in_ring`; where it does not hold, the line says so
/// ([`imbalances`](capture_store::ledger::imbalances)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingAccount {
    /// Frames between program and worker.
    pub in_ring: u64,
    /// Frames lost: those that the kernel says were lost, and those that nothing explains. What was
    /// once lost stays lost, unless it came after all.
    pub lost: u64,
}

/// A queue's totals when its socket was closed. What had been steered by then is received or
/// lost: it lies in no ring any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClosedRing {
    steered: u64,
    received: u64,
    /// What sockets had reported as lost.
    reported: u64,
    /// What sources had found to be missing.
    missing: u64,
}

impl ClosedRing {
    /// Closes the books: so many frames were steered to the queue's sockets, and this is what
    /// workers took from them.
    #[must_use]
    pub fn at(steered: u64, taken: &SourceCounts) -> Self {
        let SourceCounts { frames: received, own, .. } = taken;
        Self { steered, received: *received, reported: own.lost(), missing: own.missing }
    }

    fn lost(&self) -> u64 {
        self.steered.saturating_sub(self.received)
    }
}

impl RingAccount {
    /// Goes on with the next reading. While traffic runs, frames in flight are taken for whole until
    /// their source misses them, or the rings could not hold them; `at_rest` (XDP detached, rings
    /// drained) nothing is in flight and every missing frame is lost. So is what was missing when the
    /// last socket was closed.
    #[must_use]
    pub fn next(&self, reading: &RingReading, closed: &ClosedRing, at_rest: bool) -> Self {
        let steered = reading.steered.saturating_sub(closed.steered);
        let received = reading.received.saturating_sub(closed.received);
        let reported = reading.reported.saturating_sub(closed.reported);
        let missing = reading.missing.saturating_sub(closed.missing);
        let before = self.lost.saturating_sub(closed.lost());
        // No more is missing than was steered and not received; a counter may say what it likes.
        let known = reported.max(missing.max(before).min(steered.saturating_sub(received)));
        let between = steered.saturating_sub(received.saturating_add(known));
        let meanwhile = reading.steered.saturating_sub(reading.steered_before);
        let room = if at_rest { 0 } else { reading.capacity.saturating_add(meanwhile) };
        let too_many = between.saturating_sub(room);
        let lost = known.saturating_add(too_many);
        Self { in_ring: between.saturating_sub(too_many), lost: closed.lost().saturating_add(lost) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceCounters;

    fn first(reading: &RingReading, at_rest: bool) -> RingAccount {
        RingAccount::default().next(reading, &ClosedRing::default(), at_rest)
    }

    #[test]
    fn what_is_in_flight_is_not_lost() {
        let reading = RingReading {
            steered_before: 1000,
            received: 900,
            reported: 40,
            steered: 1010,
            capacity: 64,
            ..RingReading::default()
        };
        let running = RingAccount { in_ring: 70, lost: 40 };
        assert_eq!(first(&reading, false), running);
        let rest = RingAccount { in_ring: 0, lost: 110 };
        assert_eq!(first(&reading, true), rest);
    }

    #[test]
    fn what_no_ring_could_hold_is_lost() {
        let reading = RingReading {
            steered_before: 1000,
            received: 100,
            steered: 1000,
            capacity: 64,
            ..RingReading::default()
        };
        assert_eq!(first(&reading, false), RingAccount { in_ring: 64, lost: 836 });
        // Received without having been steered: the line does not balance by as many.
        let impossible = RingReading { received: 1100, ..reading };
        assert_eq!(first(&impossible, false), RingAccount::default());
    }

    #[test]
    fn what_a_source_misses_is_lost_whether_a_counter_tells_or_not() {
        let reading = RingReading {
            steered_before: 1000,
            received: 900,
            reported: 40,
            missing: 43,
            steered: 1000,
            capacity: 1 << 18,
        };
        let account = first(&reading, false);
        let three = RingAccount { in_ring: 57, lost: 43 };
        assert_eq!(account, three);
        // A counter that comes late tells of the same frames.
        let late = RingReading { reported: 43, ..reading };
        let account = account.next(&late, &ClosedRing::default(), false);
        assert_eq!(account, three);
    }

    #[test]
    fn a_frame_that_came_after_all_is_lost_no_longer() {
        let reading = RingReading {
            steered_before: 1000,
            received: 999,
            missing: 1,
            steered: 1000,
            capacity: 64,
            ..RingReading::default()
        };
        let account = first(&reading, false);
        assert_eq!(account, RingAccount { in_ring: 0, lost: 1 });
        let came = RingReading { received: 1000, missing: 0, ..reading };
        let account = account.next(&came, &ClosedRing::default(), false);
        assert_eq!(account, RingAccount::default());
        // What is in flight later is not called lost for it.
        let later = RingReading { steered_before: 1005, steered: 1005, ..came };
        let account = account.next(&later, &ClosedRing::default(), false);
        assert_eq!(account, RingAccount { in_ring: 5, lost: 0 });
    }

    #[test]
    fn a_new_socket_begins_where_the_last_was_closed() {
        let own = SourceCounters { missing: 8, ring_full: 2, ..SourceCounters::default() };
        let taken = SourceCounts { frames: 70, own, ..SourceCounts::default() };
        let closed = ClosedRing::at(120, &taken);
        let reading = RingReading {
            steered_before: 150,
            received: 80,
            reported: 2,
            missing: 9,
            steered: 150,
            capacity: 64,
        };
        let account = first(&RingReading { missing: 8, received: 70, ..reading }, false);
        let account = account.next(&reading, &closed, false);
        assert_eq!(account, RingAccount { in_ring: 19, lost: 51 });
    }
}
