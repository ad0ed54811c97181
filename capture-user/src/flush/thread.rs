//! The thread that the flush work runs on, as others hold it.

use std::convert::Infallible;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use capture_flow::time::Nanos;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tracing::warn;

use super::End;
use crate::worker::Taker;

/// How long the start of a capture waits for the ledger's first line.
const FIRST_LINE: Duration = Duration::from_secs(5);

/// The running flush thread.
pub struct FlushThread {
    stop: Arc<End>,
    thread: JoinHandle<Result<()>>,
    /// Held by the thread alone, however it ends.
    life: Weak<()>,
    /// Disconnected once the ledger has the run's first line.
    begun: Receiver<Infallible>,
}

impl FlushThread {
    pub(crate) fn start(
        work: impl FnOnce(&End, Sender<Infallible>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let (begins, begun) = bounded(1);
        let stop = Arc::new(End::default());
        let stopped = Arc::clone(&stop);
        let alive = Arc::new(());
        let life = Arc::downgrade(&alive);
        let thread = thread::Builder::new()
            .name("flush".to_owned())
            .spawn(move || {
                let _alive = alive;
                work(&stopped, begins)
            })
            .context("cannot start the flush thread")?;
        Ok(Self { stop, thread, life, begun })
    }

    /// Waits until the ledger has the first line of a capture, or refused it: before that nobody
    /// can tell files that the run has open from files that somebody put there. A disk that hangs
    /// is not waited for for long: somebody may want to end the run.
    pub fn await_first_line(&self) {
        if let Err(RecvTimeoutError::Timeout) = self.begun.recv_timeout(FIRST_LINE) {
            warn!("the ledger's first line takes long: does the store's disk answer?");
        }
    }

    /// The thread as whoever waits for it needs it.
    #[must_use]
    pub fn taker(&self) -> Taker {
        Taker::new(self.thread().clone(), self.life.clone())
    }

    /// The thread, to be woken.
    #[must_use]
    pub fn thread(&self) -> &Thread {
        self.thread.thread()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// The sensor stops watching at this moment: no interval of the ledger reaches beyond it.
    pub fn announce_end(&self, at: Nanos) {
        self.stop.announce(at);
    }

    /// Has everything written that is still on its way; the workers have ended. `in_order` says
    /// that none of them failed and every segment is sealed.
    ///
    /// # Errors
    /// The session log or the ledger could not be finished.
    pub fn stop(self, in_order: bool) -> Result<()> {
        self.stop.set(in_order);
        self.thread.thread().unpark();
        self.thread.join().map_err(|panic| {
            anyhow!(
                "the flush thread failed: {}; the next start recovers",
                crate::run::panic_text(&*panic)
            )
        })?
    }
}
