//! Finds the frames that were steered to a socket and never came.
//!
//! The kernel counts what it drops, but the account must hold without trusting that it counts
//! everything. How many frames the XDP program has steered is known at any moment; how many of them
//! are merely on their way is not, while more keep coming. Their stamps tell: the program stamps a
//! frame before it counts it, and a queue's frames come in the order in which they were stamped. So
//! all that were counted at a moment have stamps of before, and once frames with later stamps have
//! come, those that did not come before them never will.
//!
//! A [`Mark`] is such a moment. Frames stamped between the reading of the counter and that of the
//! clock (some microseconds) are taken for frames that were counted: so a mark may find too few
//! missing, but not too many, and the next one finds the rest.

/// How much later than a mark's a stamp must be for the frames of before to have come: they may have
/// been processed on several cores, which pass each other.
const PASSED_NS: u64 = 100_000_000;
/// How long after a mark an empty ring says that nothing is on its way any more. The kernel puts a
/// frame into the ring before it ends its poll of the queue (`xdp_do_flush`, at most 64 frames
/// later); the rest is for a core that is taken away meanwhile.
const SETTLED_NS: u64 = 500_000_000;
/// The clock of the stamps may be so much ahead of what user space reads: the kernel reads its
/// quick variant, which any context may read (`ktime_get_mono_fast_ns` and its kin).
const QUICK_CLOCK_NS: u64 = 10_000;
/// The clock of the stamps was set, if its distance to one that nobody sets has changed by more.
const SET_NS: u64 = 1_000_000;

/// One look at everything, in the order of the fields.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Frames that were steered to the queue so far.
    pub(super) steered: u64,
    /// The time by the clock of the stamps.
    pub(super) stamp_ns: u64,
    /// The time by a clock that nobody sets.
    pub(super) boot_ns: u64,
    /// Whether nothing was in the ring.
    pub(super) ring_is_empty: bool,
}

impl Look {
    fn ahead(&self) -> u64 {
        self.stamp_ns.wrapping_sub(self.boot_ns)
    }
}

/// So many frames had been steered to the socket, and all have earlier stamps.
#[derive(Clone, Copy, Debug)]
struct Mark {
    stamp_ns: u64,
    steered: u64,
}

/// Keeps count for one socket.
#[derive(Debug)]
pub(super) struct Missing {
    /// Frames steered before the socket was there.
    before: u64,
    mark: Option<Mark>,
    /// The mark's moment: a frame of before is not stamped later. The end of time without a mark.
    until: u64,
    /// Frames that came with no later stamp than that.
    came: u64,
    /// The latest frame's stamp.
    latest: u64,
    /// How far the clock of the stamps was ahead of the other at the last look, modulo 2^64.
    ahead: u64,
    /// The clock was set: frames may be on their way that were stamped before, no later than this.
    set_from: Option<u64>,
    found: u64,
}

impl Missing {
    /// For a socket that gets its first frame after this look.
    pub(super) fn new(look: &Look) -> Self {
        Self {
            before: look.steered,
            mark: None,
            until: u64::MAX,
            came: 0,
            latest: 0,
            ahead: look.ahead(),
            set_from: None,
            found: 0,
        }
    }

    /// A frame came.
    #[inline]
    pub(super) fn came(&mut self, stamp_ns: u64) {
        self.came += u64::from(stamp_ns <= self.until);
        self.latest = stamp_ns;
    }

    /// A frame came whose time nobody knows: it may be one of before.
    #[inline]
    pub(super) fn came_unstamped(&mut self) {
        self.came += 1;
    }

    /// Looks whether any is missing, now and then. `came` is how many frames came in all.
    pub(super) fn look(&mut self, look: &Look, came: u64) {
        let ahead = look.ahead();
        let before = std::mem::replace(&mut self.ahead, ahead);
        if ahead.wrapping_sub(before).cast_signed().unsigned_abs() > SET_NS {
            self.forget();
            self.set_from = self.set_from.max(Some(look.boot_ns.wrapping_add(before)));
            // Not even the ring's being empty says anything now: the kernel may have some in hand.
            return;
        }
        if self.set_from.is_some_and(|then| look.stamp_ns <= then) && !look.ring_is_empty {
            return;
        }
        self.set_from = None;
        if let Some(mark) = self.mark {
            let passed = self.latest > mark.stamp_ns.saturating_add(PASSED_NS);
            let settled =
                look.ring_is_empty && look.stamp_ns > mark.stamp_ns.saturating_add(SETTLED_NS);
            if !passed && !settled {
                return;
            }
            self.found = self.found.max(mark.steered.saturating_sub(self.came));
            self.forget();
        }
        let steered = look.steered.saturating_sub(self.before);
        let stamp_ns = look.stamp_ns.saturating_add(QUICK_CLOCK_NS);
        // With all of them here there is nothing to wait for.
        if steered > came.saturating_add(self.found) {
            self.mark = Some(Mark { stamp_ns, steered });
            (self.until, self.came) = (stamp_ns, came);
        }
    }

    /// Frames found to be missing so far.
    pub(super) fn found(&self) -> u64 {
        self.found
    }

    fn forget(&mut self) {
        self.mark = None;
        self.until = u64::MAX;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// A socket's queue, as the kernel and the worker have it.
    struct Queue {
        missing: Missing,
        /// Stamps of the frames in the ring.
        ring: VecDeque<u64>,
        steered: u64,
        came: u64,
        lost: u64,
        boot_ns: u64,
        /// How far the clock of the stamps is ahead.
        ahead: u64,
    }

    impl Queue {
        fn new() -> Self {
            let (boot_ns, ahead) = (1 << 40, 1 << 60);
            let look = Look { steered: 0, stamp_ns: boot_ns + ahead, boot_ns, ring_is_empty: true };
            let (missing, ring) = (Missing::new(&look), VecDeque::new());
            Self { missing, ring, steered: 0, came: 0, lost: 0, boot_ns, ahead }
        }

        fn arrive(&mut self, frames: u64, astray: u64) {
            for frame in 0..frames {
                self.boot_ns += 1_000;
                self.steered += 1;
                if frame < astray {
                    self.lost += 1;
                } else {
                    self.ring.push_back(self.boot_ns + self.ahead);
                }
            }
        }

        fn take(&mut self, frames: usize) {
            for stamp in self.ring.drain(..frames.min(self.ring.len())) {
                self.missing.came(stamp);
                self.came += 1;
            }
        }

        fn look(&mut self) {
            let look = Look {
                steered: self.steered,
                stamp_ns: self.boot_ns + self.ahead,
                boot_ns: self.boot_ns,
                ring_is_empty: self.ring.is_empty(),
            };
            self.missing.look(&look, self.came);
        }

        fn pass(&mut self, ms: u64) {
            self.boot_ns += ms * MS;
        }
    }

    #[test]
    fn a_single_frame_is_missed_while_others_keep_coming() {
        let mut queue = Queue::new();
        for round in 0..30 {
            // The worker is never done with all that is there.
            queue.arrive(100, u64::from(round == 10));
            queue.take(if round == 0 { 40 } else { 100 });
            queue.look();
            queue.pass(10);
            if round == 10 {
                assert_eq!(queue.missing.found(), 0, "it may be on its way");
            }
        }
        assert_eq!(queue.missing.found(), 1);
    }

    #[test]
    fn the_last_frame_is_missed_when_nothing_else_comes() {
        let mut queue = Queue::new();
        queue.arrive(3, 1);
        queue.take(5);
        queue.look();
        queue.pass(499);
        queue.look();
        assert_eq!(queue.missing.found(), 0);
        queue.pass(2);
        queue.look();
        assert_eq!(queue.missing.found(), 1);
    }

    #[test]
    fn what_waits_in_the_ring_is_not_missed_however_long_that_takes() {
        let mut queue = Queue::new();
        queue.arrive(1_000, 0);
        for _ in 0..20 {
            queue.look();
            queue.pass(1_000);
        }
        queue.take(10);
        queue.look();
        assert_eq!(queue.missing.found(), 0);
    }

    #[test]
    fn frames_without_a_time_count_as_old() {
        let mut queue = Queue::new();
        queue.arrive(10, 2);
        queue.look();
        queue.take(8);
        queue.arrive(10, 0);
        for _ in 0..10 {
            queue.missing.came_unstamped();
        }
        queue.came += 10;
        queue.ring.clear();
        queue.pass(501);
        queue.look();
        assert_eq!(queue.missing.found(), 0, "nobody can say");
        queue.look();
        queue.pass(501);
        queue.look();
        assert_eq!(queue.missing.found(), 2, "now one can");
    }

    #[test]
    fn frames_of_before_the_socket_are_not_its_own() {
        let look = Look { steered: 70, stamp_ns: 1, boot_ns: 1, ring_is_empty: true };
        let mut missing = Missing::new(&look);
        let look = Look { steered: 71, ..look };
        missing.look(&look, 0);
        missing.look(&Look { stamp_ns: 600 * MS, boot_ns: 600 * MS, ..look }, 0);
        assert_eq!(missing.found(), 1);
    }

    proptest! {
        /// Whatever comes, is lost, waits, and however the clock is set: none too many is missed,
        /// and each in the end.
        #[test]
        fn exactly_what_was_lost_is_missed(steps in prop::collection::vec(
            (0_u64..200, 0_u64..3, 0_usize..300, 0_u64..200, any::<bool>(), -3_000_i64..3_000, 0_u8..8),
            1..60,
        )) {
            let mut queue = Queue::new();
            for (frames, astray, taken, ms, looks, set, sets) in steps {
                queue.arrive(frames, astray.min(frames));
                if sets == 0 {
                    queue.ahead = queue.ahead.saturating_add_signed(set * 1_000_000);
                    // Within a look of each other, a clock that is set twice could stand as before.
                    queue.look();
                }
                queue.take(taken);
                queue.pass(ms);
                if looks {
                    queue.look();
                }
                prop_assert!(queue.missing.found() <= queue.lost);
            }
            queue.take(usize::MAX);
            for _ in 0..3 {
                queue.look();
                queue.pass(600);
            }
            queue.look();
            prop_assert_eq!(queue.missing.found(), queue.lost);
        }
    }
}
