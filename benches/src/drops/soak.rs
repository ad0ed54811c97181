//! A load that lasts: what it needs beyond a short one. Capture files are counted as soon as their
//! program is done with them, and make room for the next; memory is looked at all the while.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::running::Running;
use super::usage::Memory;

/// How often files are counted.
const HARVEST: Duration = Duration::from_secs(10);

/// What was seen of a subject at one time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Since the load began.
    pub(crate) seconds: f64,
    /// Frames sent so far.
    pub(crate) sent: u64,
    /// Frames found so far in files that are finished.
    pub(crate) recorded: u64,
    /// Memory of the subject's programs that is no file's.
    pub(crate) anonymous_memory_bytes: u64,
}

/// What is seen of a subject while a load lasts.
#[derive(Debug)]
pub(super) struct Samples {
    begun: Instant,
    /// When to look next; never where this is no soak.
    next: Option<Instant>,
    taken: Result<Vec<Sample>>,
}

impl Samples {
    /// None so far.
    pub(super) fn new(soak: bool) -> Self {
        let begun = Instant::now();
        Self { begun, next: soak.then(|| begun + HARVEST), taken: Ok(Vec::new()) }
    }

    /// Looks, if it is time.
    pub(super) fn tick(&mut self, sent: u64, running: &mut Running<'_>, memory: Memory) {
        if self.next.is_none_or(|next| Instant::now() < next) {
            return;
        }
        // The load goes on whatever happens here; it is told at the end.
        if let Ok(taken) = &mut self.taken {
            match running.harvest() {
                Ok(recorded) => taken.push(Sample {
                    seconds: self.begun.elapsed().as_secs_f64(),
                    sent,
                    recorded,
                    anonymous_memory_bytes: memory.anonymous_bytes,
                }),
                Err(error) => self.taken = Err(error),
            }
        }
        self.next = Some(Instant::now() + HARVEST);
    }

    /// All that was seen.
    pub(super) fn end(self) -> Result<Vec<Sample>> {
        self.taken
    }
}
