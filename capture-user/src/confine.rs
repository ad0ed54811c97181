//! Giving up what only the set-up needed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability};
use tracing::warn;

/// What a thread keeps for the rest of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Write to a store that belongs to another user.
    foreign_store: bool,
}

impl Kept {
    /// What the store makes necessary: root without its capabilities cannot write to another
    /// user's directory.
    #[must_use]
    pub fn for_store(store: &Path) -> Self {
        let own = rustix::process::geteuid().as_raw();
        let foreign = std::fs::metadata(store).is_ok_and(|dir| dir.uid() != own);
        Self { foreign_store: foreign && own == 0 }
    }

    /// Gives up every other capability of the calling thread. Sockets, rings, maps and files
    /// that are open stay usable.
    pub fn confine(self) {
        let none = caps::CapsHashSet::new();
        let mut kept = caps::CapsHashSet::new();
        if self.foreign_store {
            kept.insert(Capability::CAP_DAC_OVERRIDE);
        }
        let sets =
            [(CapSet::Inheritable, &none), (CapSet::Effective, &kept), (CapSet::Permitted, &kept)];
        for (set, capabilities) in sets {
            if let Err(error) = caps::set(None, set, capabilities) {
                warn!("capabilities could not be given up: {error}");
                return;
            }
        }
    }
}
