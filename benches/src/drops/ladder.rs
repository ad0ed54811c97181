//! The loss at each of some rates.

use anyhow::Result;

use super::plan::Plan;
use super::progress::Progress;
use super::record::Record;
use super::stop;
use super::trial::Task;

/// Measures every subject at every rate, as often as there are runs. The subjects take turns, and
/// each run begins with another one: whatever changes on the machine meanwhile meets all alike.
pub(super) fn run(plan: &Plan, progress: &Progress, record: &mut Record) -> Result<()> {
    for run in 1..=plan.runs {
        for (step, rate) in plan.rates.iter().enumerate() {
            let first = (run as usize - 1 + step) % plan.subjects.len();
            let (before, from) = plan.subjects.split_at(first);
            for subject in from.iter().chain(before) {
                if stop::asked() {
                    return Ok(());
                }
                let task = Task { subject, rate: *rate, extent: plan.extent, run };
                record.measure(plan, task, progress)?;
            }
        }
    }
    Ok(())
}

/// How many measurements that makes.
pub(super) fn trials(plan: &Plan) -> u64 {
    u64::from(plan.runs) * plan.rates.len() as u64 * plan.subjects.len() as u64
}
