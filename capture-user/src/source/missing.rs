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
//! missing, but not too many. The next one finds the rest, unless as many come around that one.

/// How long after a mark its frames have come: an empty ring then says that nothing is on its way any
/// more, and a frame stamped so much later that none of before will come. The kernel puts a frame
/// into the ring before it ends its poll of the queue (`xdp_do_flush`, at most 64 frames later); the
/// rest is for a core that is taken away meanwhile, while others go on with the same queue.
const SETTLED_NS: u64 = 500_000_000;
/// Time between two looks: the kernel has to be asked for each.
const LOOK_NS: u64 = 50_000_000;
/// Longer between two looks, and the whole machine may have stood still: then time that has passed
/// says nothing about the kernel's having gone on.
const STOOD_STILL_NS: u64 = 250_000_000;
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
    /// The stamp of the frame that came last since the mark.
    latest: u64,
    /// When the last look was, by the clock that nobody sets.
    looked_at: u64,
    /// How far the clock of the stamps was ahead of the other at the last look, modulo 2^64.
    ahead: u64,
    /// The clock was set: frames may be on their way that were stamped before, no later than this;
    /// and when, by the other one, the kernel has none in its hands any more.
    set_from: Option<(u64, u64)>,
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
            looked_at: look.boot_ns,
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

    /// Whether it is time for a look, by the clock that nobody sets.
    pub(super) fn is_due(&self, boot_ns: u64) -> bool {
        boot_ns.saturating_sub(self.looked_at) >= LOOK_NS
    }

    /// Looks whether any is missing, now and then. `came` is how many frames came in all.
    pub(super) fn look(&mut self, look: &Look, came: u64) {
        let ahead = look.ahead();
        let before = std::mem::replace(&mut self.ahead, ahead);
        let looked_at = std::mem::replace(&mut self.looked_at, look.boot_ns);
        if look.boot_ns.saturating_sub(looked_at) > STOOD_STILL_NS {
            self.forget();
        }
        if ahead.wrapping_sub(before).cast_signed().unsigned_abs() > SET_NS {
            self.forget();
            let then = look.boot_ns.wrapping_add(before);
            let then = self.set_from.map_or(then, |(earlier, _)| earlier.max(then));
            self.set_from = Some((then, look.boot_ns.saturating_add(SETTLED_NS)));
        }
        if let Some((then, settled_at)) = self.set_from {
            let is_past = look.stamp_ns > then || look.ring_is_empty;
            if look.boot_ns < settled_at || !is_past {
                return;
            }
            self.set_from = None;
        }
        let steered = look.steered.saturating_sub(self.before);
        if let Some(mark) = self.mark {
            let settled = mark.stamp_ns.saturating_add(SETTLED_NS);
            if self.latest <= settled && !(look.ring_is_empty && look.stamp_ns > settled) {
                return;
            }
            self.found = self.found.max(mark.steered.saturating_sub(self.came));
            self.forget();
        }
        // One that came after all was not missing: a kernel may be held up for longer than anybody
        // allows for.
        self.found = self.found.min(steered.saturating_sub(came));
        let stamp_ns = look.stamp_ns.saturating_add(QUICK_CLOCK_NS);
        // With all of them here there is nothing to wait for.
        if steered > came.saturating_add(self.found) {
            self.mark = Some(Mark { stamp_ns, steered });
            (self.until, self.came, self.latest) = (stamp_ns, came, 0);
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
        /// When each frame was counted and its stamp, of those that the kernel has in its hands.
        kernel: VecDeque<(u64, u64)>,
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
            let kernel = VecDeque::new();
            Self { missing, kernel, ring, steered: 0, came: 0, lost: 0, boot_ns, ahead }
        }

        fn arrive(&mut self, frames: u64, astray: u64) {
            for frame in 0..frames {
                self.boot_ns += 1_000;
                self.steered += 1;
                if frame < astray {
                    self.lost += 1;
                } else {
                    self.kernel.push_back((self.boot_ns, self.boot_ns + self.ahead));
                }
            }
        }

        /// The kernel puts what it has into the ring.
        fn deliver(&mut self) {
            self.ring.extend(self.kernel.drain(..).map(|(_, stamp)| stamp));
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

        /// Time passes, with a look now and then. The kernel is held up for 400 ms at most.
        fn pass(&mut self, ms: u64) {
            for _ in 0..ms.div_ceil(100) {
                if self.kernel.front().is_some_and(|(at, _)| self.boot_ns - at >= 300 * MS) {
                    self.deliver();
                }
                self.boot_ns += ms.min(100) * MS;
                self.look();
            }
        }
    }

    #[test]
    fn a_single_frame_is_missed_while_others_keep_coming() {
        let mut queue = Queue::new();
        for round in 0..120 {
            // Not so near the mark that they could be of before it.
            queue.boot_ns += MS;
            // The worker is never done with all that is there.
            queue.arrive(100, u64::from(round == 10));
            queue.deliver();
            queue.take(if round == 0 { 40 } else { 100 });
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
        queue.deliver();
        queue.take(5);
        queue.look();
        queue.pass(400);
        assert_eq!(queue.missing.found(), 0);
        queue.pass(200);
        assert_eq!(queue.missing.found(), 1);
    }

    #[test]
    fn what_waits_in_the_ring_is_not_missed_however_long_that_takes() {
        let mut queue = Queue::new();
        queue.arrive(1_000, 0);
        for _ in 0..20 {
            queue.pass(1_000);
        }
        queue.deliver();
        queue.take(10);
        queue.look();
        assert_eq!(queue.missing.found(), 0);
    }

    #[test]
    fn frames_without_a_time_count_as_old() {
        let mut queue = Queue::new();
        queue.arrive(10, 2);
        queue.deliver();
        queue.look();
        queue.take(8);
        queue.arrive(10, 0);
        for _ in 0..10 {
            queue.missing.came_unstamped();
        }
        queue.came += 10;
        queue.kernel.clear();
        queue.pass(600);
        assert_eq!(queue.missing.found(), 0, "nobody can say");
        queue.pass(700);
        assert_eq!(queue.missing.found(), 2, "now one can");
    }

    #[test]
    fn time_in_which_the_machine_stood_still_says_nothing() {
        let mut queue = Queue::new();
        queue.arrive(3, 0);
        queue.look();
        queue.boot_ns += 10_000 * MS;
        queue.look();
        queue.deliver();
        queue.take(3);
        queue.pass(700);
        assert_eq!(queue.missing.found(), 0);
    }

    #[test]
    fn a_frame_that_came_after_all_was_not_missing() {
        let mut queue = Queue::new();
        queue.arrive(1, 0);
        let held_up = queue.kernel.pop_front().expect("a frame");
        queue.look();
        queue.pass(700);
        assert_eq!(queue.missing.found(), 1);
        queue.kernel.push_back(held_up);
        queue.deliver();
        queue.take(1);
        queue.look();
        assert_eq!(queue.missing.found(), 0);
    }

    #[test]
    fn frames_of_before_the_socket_are_not_its_own() {
        let look = Look { steered: 70, stamp_ns: 1, boot_ns: 1, ring_is_empty: true };
        let mut missing = Missing::new(&look);
        let look = Look { steered: 71, ..look };
        for at in (0..7).map(|step| 1 + step * 100 * MS) {
            missing.look(&Look { stamp_ns: at, boot_ns: at, ..look }, 0);
        }
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
            for (frames, astray, taken, ms, delivers, set, sets) in steps {
                queue.arrive(frames, astray.min(frames));
                if sets == 0 {
                    queue.ahead = queue.ahead.saturating_add_signed(set * 1_000_000);
                    // Within a look of each other, a clock that is set twice could stand as before.
                    queue.look();
                }
                if delivers {
                    queue.deliver();
                }
                queue.take(taken);
                queue.pass(ms);
                prop_assert!(queue.missing.found() <= queue.lost);
            }
            queue.deliver();
            queue.take(usize::MAX);
            queue.pass(2_000);
            prop_assert_eq!(queue.missing.found(), queue.lost);
        }
    }
}
