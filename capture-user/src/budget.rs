//! Keeps what the store takes on disk within its budgets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use capture_store::retention::{Budgets, Retention, RetireError, Retired};
use capture_store::store::OwnedStore;
use crossbeam::channel::Sender;
use tracing::{debug, error, warn};

use crate::chain;
use crate::config::Space;
use crate::keeper::KeeperNews;
use crate::units::Bytes;

/// Bytes that the store takes.
#[derive(Debug, Default)]
pub struct Disk {
    packets: AtomicU64,
    sessions: AtomicU64,
    retention: Mutex<Retention>,
}

impl Disk {
    /// Bytes of segments and their indexes.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    /// Bytes of the session log.
    #[must_use]
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    fn note(&self, retired: &Retired) {
        self.packets.store(retired.packet_bytes, Ordering::Relaxed);
        self.sessions.store(retired.session_bytes, Ordering::Relaxed);
    }

    /// Looks at what the store takes, and removes nothing.
    pub fn look(&self, store: &OwnedStore) {
        match self.keep(store, &Budgets::default()) {
            Ok(found) => self.note(&found),
            Err(failure) => warn!("cannot see what the store takes: {}", chain(&failure)),
        }
    }

    fn keep(&self, store: &OwnedStore, budgets: &Budgets) -> Result<Retired, RetireError> {
        self.retention.lock().unwrap_or_else(PoisonError::into_inner).keep(store, budgets)
    }
}

/// Removes the oldest files once they no longer fit.
pub struct Keeper {
    store: Arc<OwnedStore>,
    budgets: Budgets,
    disk: Arc<Disk>,
    /// Whether the last removal failed, and that was said.
    failing: bool,
    /// Whether the budgets could not be kept the last time, and that was said.
    over: bool,
}

impl Keeper {
    /// Keeps these budgets.
    #[must_use]
    pub fn new(store: Arc<OwnedStore>, space: Space, disk: Arc<Disk>) -> Self {
        let budgets = Budgets { packets: Some(space.packets), sessions: Some(space.sessions) };
        Self { store, budgets, disk, failing: false, over: false }
    }

    /// Removes the oldest files that the budgets do not cover, tells the ledger which, and says
    /// whether there were any.
    pub fn keep(&mut self, news: &Sender<KeeperNews>) -> bool {
        let say = |text: String| {
            let _ = news.send(KeeperNews::Said(text));
        };
        let retired = match self.disk.keep(&self.store, &self.budgets) {
            Ok(retired) => {
                if std::mem::take(&mut self.failing) {
                    warn!("the disk budgets can be kept again");
                    say("the disk budgets can be kept again".to_owned());
                }
                retired
            }
            Err(failure) => {
                let cause = chain(&failure);
                if !std::mem::replace(&mut self.failing, true) {
                    error!("the disk budgets cannot be kept: {cause}");
                    say(cause);
                }
                *failure.retired
            }
        };
        if !self.failing {
            self.over = self.say_if_over(&retired);
            self.disk.note(&retired);
        }
        for text in retired.said {
            warn!("{text}");
            say(text);
        }
        if retired.files.is_empty() {
            return false;
        }
        let bytes = retired.files.iter().fold(0_u64, |sum, f| sum.saturating_add(f.bytes));
        debug!("retired {} files, {}, to keep the budgets", retired.files.len(), Bytes(bytes));
        let _ = news.send(KeeperNews::Retired(retired.files));
        true
    }

    /// Open files and the newest ones stay, whatever the budget; says so once.
    fn say_if_over(&self, now: &Retired) -> bool {
        let over = self.budgets.packets.is_some_and(|budget| now.packet_bytes > budget)
            || self.budgets.sessions.is_some_and(|budget| now.session_bytes > budget);
        if over && !self.over {
            warn!(
                "the store takes more than its budgets (packets {}, log {}): what is left is in \
                 use or the newest; give larger budgets or smaller segments",
                Bytes(now.packet_bytes),
                Bytes(now.session_bytes)
            );
        }
        over
    }
}
