//! From a worker, which recognises canaries, to the flush thread, which verifies them.

use std::sync::atomic::{AtomicU64, Ordering};

use capture_flow::frame::{Frame, IfaceId};
use capture_flow::time::Nanos;
use crossbeam::queue::ArrayQueue;

use super::frame::{CANARY_LEN, payload};

/// Canaries that wait at most. They come seconds apart: more is somebody who floods.
const WAITING: usize = 64;

/// A frame that looks like a canary.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    /// Where it arrived.
    pub iface: IfaceId,
    /// When.
    pub at: Nanos,
    /// What it says.
    pub payload: [u8; CANARY_LEN],
}

/// One worker's hand-off.
#[derive(Debug)]
pub struct Inbox {
    waiting: ArrayQueue<Arrived>,
    overflow: AtomicU64,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { waiting: ArrayQueue::new(WAITING), overflow: AtomicU64::new(0) }
    }
}

impl Inbox {
    /// The worker has a frame of the canaries' EtherType; what is none is left alone. Never waits.
    pub fn offer(&self, frame: &Frame<'_>) {
        let Some(payload) = payload(frame.bytes) else { return };
        let heard = Arrived { iface: frame.iface, at: frame.ts, payload: *payload };
        if self.waiting.push(heard).is_err() {
            // One writer: the worker.
            let overflow = self.overflow.load(Ordering::Relaxed);
            self.overflow.store(overflow.saturating_add(1), Ordering::Relaxed);
        }
    }

    /// The oldest that waits.
    #[must_use]
    pub fn take(&self) -> Option<Arrived> {
        self.waiting.pop()
    }

    /// How many found no room, since the start.
    #[must_use]
    pub fn overflow(&self) -> u64 {
        self.overflow.load(Ordering::Relaxed)
    }
}
