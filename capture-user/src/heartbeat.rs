//! Whether the workers run.

use std::sync::Arc;

use capture_flow::time::Nanos;
use capture_store::ledger::BlindCause;
use tracing::warn;

use crate::blind::{Blindness, Subject};
use crate::live::STALL;
use crate::worker::Shared;

/// The heartbeats of all workers, as seen by another thread.
///
/// A worker that was stalled tells so itself once it runs again, and knows the time exactly; this
/// is for one that still is. An observer that is stalled together with it, or alone, does no harm:
/// what it sees afterwards is either a heart that beats or one that does not.
#[derive(Debug, Default)]
pub struct Heartbeats(Vec<Beat>);

#[derive(Clone, Copy, Debug)]
struct Beat {
    number: u64,
    /// When it was seen, by the machine's clock and by one that nobody sets.
    seen: Nanos,
    since_boot: Nanos,
}

impl Heartbeats {
    /// Notes who has beaten since the last look, and who has not for too long.
    pub fn look(&mut self, workers: &[Arc<Shared>], now: Nanos, blindness: &Blindness) {
        self.look_at(workers, now, crate::live::since_boot(), blindness);
    }

    fn look_at(
        &mut self,
        workers: &[Arc<Shared>],
        now: Nanos,
        since_boot: Nanos,
        blindness: &Blindness,
    ) {
        for (place, shared) in workers.iter().enumerate() {
            let beat = Beat { number: shared.counters.beat(), seen: now, since_boot };
            let Some(known) = self.0.get_mut(place) else {
                self.0.push(beat);
                continue;
            };
            let stalled = Subject::worker(BlindCause::WorkerStalled, shared.worker);
            if known.number != beat.number || shared.has_ended() {
                *known = beat;
                blindness.end(&stalled, now);
            } else if since_boot - known.since_boot >= STALL
                && blindness.begin(stalled, known.seen.min(now), "")
            {
                warn!(worker = shared.worker, "does not run");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Progress, RecordCounts};

    fn beat(shared: &Shared) {
        shared.counters.publish(&Progress {
            record: &RecordCounts::default(),
            flow: &capture_flow::stats::FlowStats::default(),
            rows_lost: 0,
            sources: &[],
            engine_now: Nanos(0),
            complete_through: Nanos(0),
        });
    }

    #[test]
    fn a_heart_that_stands_still_is_noticed_until_it_beats_again() {
        let workers = [Arc::new(Shared::new(0, 0)), Arc::new(Shared::new(1, 0))];
        let (mut hearts, blindness) = (Heartbeats::default(), Blindness::default());
        // The machine's clock is set back in between: that changes nothing.
        let look = |hearts: &mut Heartbeats, now: i64, boot: i64| {
            let boot = Nanos(0) + capture_flow::time::NanosDelta(STALL.0 / 10 * boot);
            hearts.look_at(&workers, Nanos(now), boot, &blindness);
            blindness.now().into_iter().filter_map(|subject| subject.worker).collect::<Vec<_>>()
        };
        assert_eq!(look(&mut hearts, 100, 0), [0_u16; 0]);
        beat(&workers[0]);
        assert_eq!(look(&mut hearts, 50, 9), [0_u16; 0]);
        assert_eq!(look(&mut hearts, 60, 10), [1]);
        beat(&workers[1]);
        assert_eq!(look(&mut hearts, 70, 20), [0]);
        workers[0].set_ended();
        assert_eq!(look(&mut hearts, 80, 60), [1]);
        let told = blindness.told(Nanos(0), Nanos(100));
        let first = told.blind.first().map(|blind| (blind.from.0, blind.to.0));
        assert_eq!(first, Some((60, 70)), "no later than it was noticed");
    }
}
