//! Giving up what only the set-up needed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use caps::{CapSet, Capability};
use tracing::warn;

/// What it takes to attach the program again and to open sockets again.
const MENDING: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_RAW,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_IPC_LOCK,
];

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

    /// Nothing: for what writes to no store.
    #[must_use]
    pub fn nothing() -> Self {
        Self { foreign_store: false }
    }

    /// Gives up every other capability of the calling thread. Sockets, rings, maps and files
    /// that are open stay usable.
    pub fn confine(self) {
        self.keep(&[]);
    }

    /// As [`Kept::confine`], but for what attaching the program and opening sockets take: for the
    /// one thread that mends what blinds the sensor. Threads that it starts inherit them.
    pub fn confine_to_mending(self) {
        self.keep(&MENDING);
    }

    fn keep(self, more: &[Capability]) {
        let none = caps::CapsHashSet::new();
        let mut kept = caps::CapsHashSet::new();
        if self.foreign_store {
            kept.insert(Capability::CAP_DAC_OVERRIDE);
        }
        // Of those that it has.
        let has = caps::read(None, CapSet::Permitted).unwrap_or_default();
        kept.extend(more.iter().filter(|capability| has.contains(capability)));
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
