//! How the flush thread hears that the run ends.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use capture_flow::time::Nanos;

/// How the flush thread is told that the run ends.
#[derive(Debug)]
pub struct End {
    workers_ended: AtomicBool,
    /// Whether something could not be written or sealed, so that the next start must recover it.
    left_over: AtomicBool,
    /// When the sensor stopped watching; [`Nanos::MAX`] while it watches.
    at: AtomicI64,
}

impl Default for End {
    fn default() -> Self {
        Self {
            workers_ended: AtomicBool::new(false),
            left_over: AtomicBool::new(false),
            at: AtomicI64::new(Nanos::MAX.0),
        }
    }
}

impl End {
    /// The sensor stops watching at this moment: no interval reaches beyond it. Workers still
    /// drain what had arrived.
    pub fn announce(&self, at: Nanos) {
        self.at.store(at.0, Ordering::Release);
    }

    /// The workers have ended. `in_order` is false if one of them failed or a segment is not
    /// sealed: then the last line does not call the stop clean.
    pub fn set(&self, in_order: bool) {
        self.left_over.store(!in_order, Ordering::Release);
        self.workers_ended.store(true, Ordering::Release);
    }

    pub(super) fn is_set(&self) -> bool {
        self.workers_ended.load(Ordering::Acquire)
    }

    pub(super) fn in_order(&self) -> bool {
        !self.left_over.load(Ordering::Acquire)
    }

    pub(super) fn at(&self) -> Nanos {
        Nanos(self.at.load(Ordering::Acquire))
    }
}
