//! Segments for the recorder, prepared and thrown away between the times that are taken.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use capture_flow::frame::LinkType;
use capture_store::segment::{self, SegmentSpec};
use capture_user::keeper::Lane;
use capture_user::recorder::{Recorder, Supply};
use tempfile::TempDir;

/// Keeps a recorder in prepared segments.
pub struct Feed {
    lane: Arc<Lane>,
    /// Goes away with the feed.
    dir: TempDir,
    sequence: u64,
    spec: SegmentSpec,
}

impl Feed {
    /// A feed of segments of so many bytes in a directory of its own under `dir`.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(dir: &Path, worker: u16, segment_bytes: u64) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("stillwire-bench-")
            .tempdir_in(dir)
            .with_context(|| format!("--dir: cannot write to {}", dir.display()))?;
        let spec = SegmentSpec::new(worker, segment_bytes, LinkType::ETHERNET);
        Ok(Self { lane: Arc::new(Lane::new(worker)), dir, sequence: 1, spec })
    }

    /// A recorder that takes its segments from this feed.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        Recorder::new(self.spec.worker, Arc::clone(&self.lane), Supply::Ahead, self.spec.snaplen)
    }

    /// Makes sure that a segment is ready, and throws away those that are full.
    ///
    /// # Errors
    /// A segment cannot be prepared.
    pub fn refill(&mut self) -> Result<()> {
        while let Some(filled) = self.lane.take_filled() {
            filled.discard().context("cannot remove a segment")?;
        }
        if self.lane.has_ready() {
            return Ok(());
        }
        let prepared = segment::prepare(self.dir.path(), self.sequence, &self.spec)?;
        self.sequence += 1;
        match self.lane.offer(prepared) {
            None => Ok(()),
            Some(surplus) => surplus.discard().context("cannot remove a segment"),
        }
    }
}
