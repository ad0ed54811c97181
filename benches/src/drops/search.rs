//! The highest rate without loss, by halving (RFC 2544, section 26.1).

use anyhow::Result;
use serde::Serialize;

use super::plan::Plan;
use super::progress::Progress;
use super::rate::Rate;
use super::record::Record;
use super::stop;
use super::subject::Subject;
use super::trial::Task;

/// Steps at most. The interval is halved in each, so this many find any resolution there is.
const STEPS: u32 = 24;

/// What a search found for a subject.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Throughput {
    /// The subject's label.
    pub(crate) subject: String,
    /// Which run it belongs to, from 1.
    pub(crate) run: u32,
    /// The highest rate offered that was recorded without loss, in frames a second; 0 if none was.
    pub(crate) loss_free: f64,
    /// The lowest rate offered above it that was not; none if everything that could be offered
    /// was recorded.
    pub(crate) lossy: Option<f64>,
    /// It is the generator that could not offer more. Where the subject's cost falls on the
    /// generator's core, as that of packet sockets does, the subject is what holds it back.
    pub(crate) generator_limited: bool,
    /// Steps that it took.
    pub(crate) steps: u32,
}

/// Searches for every subject, as often as there are runs. Within a run the subjects take turns
/// step by step: whatever changes on the machine meanwhile meets all alike.
pub(super) fn run(plan: &Plan, progress: &Progress, record: &mut Record) -> Result<()> {
    for run in 1..=plan.runs {
        let mut searches: Vec<(&Subject, Search)> =
            plan.subjects.iter().map(|subject| (subject, Search::new(plan.resolution))).collect();
        let first = (run as usize - 1) % searches.len();
        searches.rotate_left(first);
        while searches.iter().any(|(_, search)| search.next().is_some()) {
            for (subject, search) in &mut searches {
                let Some(rate) = search.next() else { continue };
                let outcome = attempt(plan, progress, record, subject, rate, run)?;
                if stop::asked() {
                    return Ok(());
                }
                match outcome {
                    Some(outcome) => search.learn(rate, outcome),
                    None => search.failed = true,
                }
            }
        }
        let found = searches.iter().filter(|(_, search)| !search.failed);
        record.throughput.extend(found.map(|(subject, search)| search.found(&subject.label, run)));
    }
    // In the order of the command line, run by run.
    let place = |label: &str| plan.subjects.iter().position(|subject| subject.label == label);
    record.throughput.sort_by_key(|found| (place(&found.subject), found.run));
    Ok(())
}

/// What a step has shown.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    offered: f64,
    loss_free: bool,
    short: bool,
}

/// Offers a rate, more than once if need be and wanted. `None` if it could not be measured.
fn attempt(
    plan: &Plan,
    progress: &Progress,
    record: &mut Record,
    subject: &Subject,
    rate: Rate,
    run: u32,
) -> Result<Option<Outcome>> {
    let mut outcome = None;
    for _ in 0..plan.attempts {
        if stop::asked() {
            break;
        }
        let task = Task { subject, rate, extent: plan.extent, run };
        let Some(trial) = record.measure(plan, task, progress)? else { return Ok(None) };
        let now = Outcome {
            offered: trial.offered,
            loss_free: trial.loss() <= plan.tolerance,
            short: trial.generator_short(),
        };
        outcome = Some(now);
        // A flood is only there to learn where the top is.
        if now.loss_free || rate == Rate::Flood {
            break;
        }
    }
    Ok(outcome)
}

/// One search under way: every rate up to `low` was recorded, none from `high` on.
#[derive(Clone, Debug)]
struct Search {
    resolution: f64,
    low: f64,
    high: Option<f64>,
    /// The lowest rate at which something was lost.
    lossy: Option<f64>,
    steps: u32,
    /// A step could not be measured.
    failed: bool,
}

impl Search {
    fn new(resolution: f64) -> Self {
        Self { resolution, low: 0.0, high: None, lossy: None, steps: 0, failed: false }
    }

    /// The rate to try next; `None` once it is known well enough.
    fn next(&self) -> Option<Rate> {
        let Some(high) = self.high else { return (!self.failed).then_some(Rate::Flood) };
        // Less than a frame a second is no load.
        let known = high - self.low <= (self.resolution * high).max(1.0);
        (!known && !self.failed && self.steps < STEPS)
            .then(|| Rate::PerSecond(f64::midpoint(self.low, high)))
    }

    /// Takes the outcome of a step in.
    fn learn(&mut self, rate: Rate, outcome: Outcome) {
        self.steps += 1;
        // Of what was asked and what was offered, the lower is what was really tried.
        let tried = rate.per_second().map_or(outcome.offered, |asked| asked.min(outcome.offered));
        if outcome.loss_free {
            self.low = self.low.max(tried);
            // What cannot be offered cannot be tried.
            if rate == Rate::Flood || outcome.short {
                let top = rate.per_second().unwrap_or(tried);
                self.high = Some(self.high.map_or(top, |high| high.min(top)));
            }
        } else {
            let lossy = self.lossy.map_or(tried, |lossy| lossy.min(tried));
            self.lossy = Some(lossy);
            // Once in a while a rate fails that is below one which did not: then the one that was
            // recorded stands, and the search is over.
            self.high = Some(self.high.map_or(tried, |high| high.min(tried)).max(self.low));
        }
    }

    fn found(&self, subject: &str, run: u32) -> Throughput {
        // The loss that bounds it, as far as the resolution lets us say.
        let near = |lossy: &f64| *lossy - self.low <= 2.0 * self.resolution * *lossy + 1.0;
        Throughput {
            subject: subject.to_owned(),
            run,
            loss_free: self.low,
            lossy: self.lossy,
            generator_limited: !self.lossy.as_ref().is_some_and(near),
            steps: self.steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for a subject that loses from `capacity` on, with a generator that makes `most`.
    fn search(capacity: f64, most: f64) -> Throughput {
        let mut search = Search::new(0.01);
        while let Some(rate) = search.next() {
            let asked = rate.per_second().unwrap_or(f64::INFINITY);
            let offered = asked.min(most);
            let loss_free = offered < capacity;
            search.learn(rate, Outcome { offered, loss_free, short: offered < asked });
        }
        search.found("it", 1)
    }

    #[test]
    fn the_highest_rate_without_loss_is_found_to_the_resolution() {
        for capacity in [40.0, 12_345.0, 1e6, 2.4e6, 2_999_000.0] {
            let found = search(capacity, 3e6);
            assert!(
                found.loss_free < capacity && found.loss_free > capacity * 0.98 - 1.0,
                "{found:?}"
            );
            assert!(found.lossy.is_some_and(|lossy| lossy >= capacity), "{found:?}");
            assert!(!found.generator_limited, "{found:?}");
        }
    }

    #[test]
    fn what_the_generator_cannot_reach_is_said() {
        let found = search(5e6, 3e6);
        assert_eq!((found.loss_free, found.steps), (3e6, 1));
        assert!(found.generator_limited && found.lossy.is_none(), "{found:?}");
    }

    #[test]
    fn a_subject_that_loses_at_any_rate_reaches_nothing() {
        let found = search(0.0, 3e6);
        assert_eq!(found.loss_free, 0.0);
        assert!(!found.generator_limited && found.steps <= STEPS, "{found:?}");
    }

    #[test]
    fn a_rate_that_fails_below_one_that_did_not_ends_the_search() {
        let mut search = Search::new(0.01);
        let outcome = |offered, loss_free| Outcome { offered, loss_free, short: false };
        search.learn(Rate::Flood, outcome(2e6, false));
        search.learn(Rate::PerSecond(1e6), outcome(1e6, true));
        search.learn(Rate::PerSecond(1.5e6), outcome(0.9e6, false));
        assert_eq!(search.next(), None);
        assert_eq!(search.found("it", 1).loss_free, 1e6);
    }
}
