//! What a run of the bench has measured so far.

use anyhow::Result;

use super::plan::Plan;
use super::progress::Progress;
use super::search::Throughput;
use super::trial::{self, Task, Trial};

/// Measurements in the order in which they were made, what was found by them, and what went wrong.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Every measurement.
    pub(crate) trials: Vec<Trial>,
    /// What searches found.
    pub(crate) throughput: Vec<Throughput>,
    /// Measurements that could not be made, and why.
    pub(crate) failures: Vec<String>,
}

impl Record {
    /// Makes a measurement. `None` if it failed: that is written down, and the others go on.
    ///
    /// # Errors
    /// Where the first one of all fails: so would the next.
    pub(super) fn measure(
        &mut self,
        plan: &Plan,
        task: Task<'_>,
        progress: &Progress,
    ) -> Result<Option<&Trial>> {
        match trial::run(plan, task, progress) {
            Ok(trial) => {
                progress.done(&trial);
                self.trials.push(trial);
                Ok(self.trials.last())
            }
            Err(error) if self.trials.is_empty() => Err(error),
            Err(error) => {
                let told = format!("run {}: {error:#}", task.run);
                progress.say(&told);
                self.failures.push(told);
                Ok(None)
            }
        }
    }
}
