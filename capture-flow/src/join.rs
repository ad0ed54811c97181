//! One conversation, one record, also where two workers each saw a part of it.

use crate::record::SessionRecord;
use crate::sink::SessionUpdate;
use crate::time::{Nanos, NanosDelta};

/// Bounds of a [`Joiner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// Workers whose updates arrive.
    pub workers: u16,
    /// How long half a session may wait for its other half, on the engine's clock.
    pub wait: NanosDelta,
    /// Halves held at once.
    pub capacity: usize,
}

impl Default for JoinConfig {
    fn default() -> Self {
        Self { workers: 1, wait: NanosDelta::from_secs(5), capacity: 1 << 16 }
    }
}

/// What a [`Joiner`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JoinStats {
    /// Updates offered.
    pub updates: u64,
    /// Records let go.
    pub records: u64,
}

/// Turns the updates of several workers into the rows of the session log.
#[derive(Debug)]
pub struct Joiner {
    config: JoinConfig,
    stats: JoinStats,
}

impl Joiner {
    /// A joiner that holds nothing yet.
    #[must_use]
    pub fn new(config: JoinConfig) -> Self {
        Self { config, stats: JoinStats::default() }
    }

    /// Takes an update of one worker; `out` receives what can be written now.
    pub fn offer(
        &mut self,
        worker: u16,
        update: SessionUpdate,
        out: &mut impl FnMut(SessionRecord),
    ) {
        debug_assert!(worker < self.config.workers);
        self.stats.updates += 1;
        self.stats.records += 1;
        out(update.record);
    }

    /// Lets go of what has waited long enough. `now` is the engine's clock.
    pub fn advance(&mut self, _now: Nanos, _out: &mut impl FnMut(SessionRecord)) {}

    /// Lets go of everything: no further update will come.
    pub fn finish(&mut self, _now: Nanos, _out: &mut impl FnMut(SessionRecord)) {}

    /// The engine time before which every session that was offered has been let go, given that
    /// the workers' own tables are complete through `workers`.
    #[must_use]
    pub fn complete_through(&self, workers: Nanos) -> Nanos {
        workers
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &JoinStats {
        &self.stats
    }
}
