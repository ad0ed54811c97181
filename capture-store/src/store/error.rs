//! Why a store cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use crate::key::KeyError;

use super::identity::FORMAT_VERSION;

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing, or something else.
    #[error("{path} is not a store: {why}")]
    NotAStore {
        /// What was opened.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A newer Stillwire wrote it.
    #[error(
        "{path} has format version {found}, this program knows versions up to {FORMAT_VERSION}: \
         use a newer stillwire"
    )]
    NewerFormat {
        /// The store.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Somebody writes to it.
    #[error("{path} is in use by another sensor ({holder}): stop it or choose another --store")]
    InUse {
        /// The store.
        path: PathBuf,
        /// Who holds the lock, as the lock file says.
        holder: String,
    },
    /// It belongs to a sensor with another name.
    #[error("{path} belongs to sensor {found:?}, not to {asked:?}")]
    OtherSensor {
        /// The store.
        path: PathBuf,
        /// Its sensor.
        found: String,
        /// The name that was asked for.
        asked: String,
    },
    /// Simulations write to it.
    #[error(
        "{path} is a simulation's store, and nothing in it is evidence: choose another --store for \
         what is to be kept"
    )]
    Simulated {
        /// The store.
        path: PathBuf,
    },
    /// What was on a wire is in it.
    #[error(
        "{path} holds a record: a simulation would mix with it what was on no wire, and its budget \
         would remove packets; give --store a directory of its own, on the same disk"
    )]
    Record {
        /// The store.
        path: PathBuf,
    },
    /// Its key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The key that it was begun with is not there.
    #[error(
        "{path} was begun with the key {expected}, which {key_path} does not hold: give the right \
         one with --key, or begin another store (a ledger cannot change its key: nobody could tell \
         that from a forgery)"
    )]
    OtherKey {
        /// The store.
        path: PathBuf,
        /// The key file that was looked at.
        key_path: PathBuf,
        /// The public key of the store.
        expected: String,
    },
    /// It lies on a filesystem mounted read-only.
    #[error("{path} is on a read-only filesystem: a sensor must be able to write to its store")]
    ReadOnly {
        /// The store.
        path: PathBuf,
    },
    /// The disk is full.
    #[error("the disk under {path} is full: free some space or lower the budgets")]
    DiskFull {
        /// The store.
        path: PathBuf,
    },
    /// Anything else that the kernel said.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Names the error that an operator can do something about.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Io { doing, path, source },
        }
    }
}
