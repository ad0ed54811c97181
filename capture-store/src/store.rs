//! A store's identity, who may write to it, and how it is opened.

mod error;
mod identity;
mod lock;
mod run_id;

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::key::{KeyError, SecretKey};
use crate::layout::{self, KEY_FILE, LOCK_FILE, Layout, SENSOR_FILE};
use crate::ledger::{Note, Owed};
use crate::made::Made;
use crate::recover::{self, RecoveryReport};

pub use error::OpenError;
pub use identity::{FORMAT_VERSION, Identity, Purpose, random_u128};
use identity::{SENSOR_FILE_LIMIT, create_identity, read_identity, write_identity};
use lock::take_lock;
pub use run_id::RunId;

/// A store opened for reading: needs no lock, no right to write, and works while a sensor writes.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Layout,
    identity: Identity,
}

impl Store {
    /// Opens a store for reading.
    ///
    /// # Errors
    /// Not a store, of a newer format, or unreadable.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let layout = Layout::new(path);
        let identity = read_identity(path)?.ok_or_else(|| OpenError::NotAStore {
            path: path.to_owned(),
            why: if path.is_dir() {
                format!("there is no {SENSOR_FILE} in it")
            } else {
                "there is no such directory".to_owned()
            },
        })?;
        Ok(Self { layout, identity })
    }

    /// Where its files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// BLAKE3 of `sensor.json` as it is now, in hex: what the ledger binds a run to.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn identity_hash(&self) -> io::Result<String> {
        let mut content = Vec::new();
        let file = File::open(self.layout.identity())?;
        file.take(SENSOR_FILE_LIMIT).read_to_end(&mut content)?;
        Ok(blake3::hash(&content).to_hex().to_string())
    }

    /// Whether a sensor holds the store's lock at this moment.
    ///
    /// # Errors
    /// The lock cannot be asked.
    pub fn is_being_written(&self) -> io::Result<bool> {
        let lock = match File::open(self.layout.lock()) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // Held for the moment that it takes to close the file; a sensor that starts just then
        // tries again.
        match flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

/// A store opened for writing; its lock is held until this is dropped.
#[derive(Debug)]
pub struct OwnedStore {
    store: Store,
    recovery: RecoveryReport,
    key: Arc<SecretKey>,
    owed: Arc<Owed>,
    made: Made,
    _lock: File,
}

impl OwnedStore {
    /// Takes a store for writing: makes it where `path` is missing or empty, locks it, checks its
    /// version, and recovers what an earlier run left unsealed.
    ///
    /// `sensor` names the sensor of a new store; an existing store must bear the same name. With
    /// `None` an existing store keeps its name and a new one takes the host's name.
    ///
    /// # Errors
    /// In use, not a store, of a newer format, another sensor's, without its key, read-only, full
    /// disk, or another answer of the kernel.
    pub fn open_or_create(path: &Path, sensor: Option<&str>) -> Result<Self, OpenError> {
        Self::open_with_key(path, sensor, None)
    }

    /// The same, with the secret key kept in a file outside of the store. A new store, and one of
    /// an older Stillwire without a key, gets the key that is there, or one that is made there.
    ///
    /// # Errors
    /// As [`OwnedStore::open_or_create`].
    pub fn open_with_key(
        path: &Path,
        sensor: Option<&str>,
        key_file: Option<&Path>,
    ) -> Result<Self, OpenError> {
        Self::open_for(path, sensor, key_file, Purpose::Record)
    }

    /// The same, for a purpose: a store serves the one that it was made for.
    ///
    /// # Errors
    /// As [`OwnedStore::open_or_create`], or it was made for another purpose.
    pub fn open_for(
        path: &Path,
        sensor: Option<&str>,
        key_file: Option<&Path>,
        purpose: Purpose,
    ) -> Result<Self, OpenError> {
        let mut made = Made::before(path);
        match Self::take(path, sensor, key_file, purpose, &mut made) {
            Ok(mut store) => {
                store.made = made;
                Ok(store)
            }
            Err(error) => {
                made.undo(path);
                Err(error)
            }
        }
    }

    fn take(
        path: &Path,
        sensor: Option<&str>,
        key_file: Option<&Path>,
        purpose: Purpose,
        made: &mut Made,
    ) -> Result<Self, OpenError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::io(doing, &path, source)
        };
        layout::create_dir(path).map_err(io("create", path))?;
        let known = read_identity(path)?;
        if known.is_none() {
            refuse_foreign_directory(path)?;
        }
        let lock = take_lock(path)?;
        made.file(LOCK_FILE);
        // Another sensor may have made the store between the look and the lock.
        let known = read_identity(path)?;
        if let Some(identity) = &known
            && let Some(asked) = sensor.filter(|asked| *asked != identity.sensor)
        {
            return Err(OpenError::OtherSensor {
                path: path.to_owned(),
                found: identity.sensor.clone(),
                asked: asked.to_owned(),
            });
        }
        if let Some(identity) = &known {
            let path = path.to_owned();
            match (purpose, identity.simulated) {
                (Purpose::Record, true) => return Err(OpenError::Simulated { path }),
                (Purpose::Simulation, false) => return Err(OpenError::Record { path }),
                (Purpose::Record, false) | (Purpose::Simulation, true) => {}
            }
        }
        let key_file = key_file.map_or_else(|| path.join(KEY_FILE), Path::to_owned);
        if key_file.parent() == Some(path) && !key_file.exists() {
            made.file(KEY_FILE);
        }
        let key = take_key(path, &key_file, known.as_ref())?;
        let identity = match known {
            Some(identity) if identity.public_key.is_some() => identity,
            Some(identity) => {
                let public_key = Some(key.public().to_string());
                write_identity(path, Identity { public_key, ..identity })?
            }
            None => {
                made.file(SENSOR_FILE);
                create_identity(path, sensor, &key.public(), purpose)?
            }
        };
        let layout = Layout::new(path);
        for dir in
            [layout.pcap(), layout.sessions(), layout.live(), layout.ledger(&identity.sensor)]
        {
            layout::create_dir(&dir).map_err(io("create", &dir))?;
        }
        let store = Store { layout, identity };
        let (key, path_of_owed) = (Arc::new(key), store.layout.owed());
        let owed = Owed::open(&path_of_owed, &key).map_err(io("read", &path_of_owed))?;
        let recovery =
            recover::recover(&store, &owed, &key.public()).map_err(io("recover", path))?;
        let (owed, made) = (Arc::new(owed), Made::default());
        Ok(Self { store, recovery, key, owed, made, _lock: lock })
    }

    /// What its ledger is signed with.
    #[must_use]
    pub fn key(&self) -> &Arc<SecretKey> {
        &self.key
    }

    /// Removes the store again if this opening made it and nothing was put into it: a run that
    /// could not begin leaves no trace. Only when nobody writes to it any more.
    pub fn remove_if_unused(&self) {
        self.made.undo(self.store.layout.root());
    }

    /// Has the ledger told of these, should the run end before one of its lines does: the next
    /// line of a later run has them then.
    pub fn owe(&self, notes: &[Note]) {
        self.owed.owe(notes);
    }

    /// Forgets what the ledger was to be told and that stands in it, on the disk. Blocks; to be
    /// called now and then.
    pub fn forget_told(&self) {
        self.owed.forget();
    }

    /// Takes back what was to be told and did not happen.
    pub(crate) fn disown(&self, note: Note) {
        self.owed.settle(&[note]);
    }

    pub(crate) fn owed(&self) -> Arc<Owed> {
        Arc::clone(&self.owed)
    }

    /// The store for reading.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Where its files are.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.store.layout
    }

    /// Whose it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.store.identity
    }

    /// What was recovered when the store was opened.
    #[must_use]
    pub fn recovery(&self) -> &RecoveryReport {
        &self.recovery
    }

    /// The sequence number of the next segment of a worker, whose directory is made if needed.
    /// Higher than that of every segment that a session row can name: retirement always leaves
    /// a worker's newest segment.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn next_sequence(&self, worker: u16) -> Result<u64, OpenError> {
        let dir = self.layout().worker(worker);
        layout::create_dir(&dir).map_err(|error| OpenError::io("create", &dir, error))?;
        let names = layout::names_in(&dir).map_err(|error| OpenError::io("read", &dir, error))?;
        let newest = names.iter().filter_map(|name| layout::parse_segment_name(name)).max();
        Ok(newest.map_or(1, |(sequence, _)| sequence.saturating_add(1)))
    }
}

/// A new store is made only in an empty directory, so that a mistyped path harms nothing.
fn refuse_foreign_directory(path: &Path) -> Result<(), OpenError> {
    let names = layout::names_in(path).map_err(|error| OpenError::io("read", path, error))?;
    let ours = |name: &String| {
        name == LOCK_FILE
            || name == KEY_FILE
            || name == "lost+found"
            || name.ends_with(layout::TEMPORARY)
    };
    match names.iter().find(|name| !ours(name)) {
        None => Ok(()),
        Some(name) => Err(OpenError::NotAStore {
            path: path.to_owned(),
            why: format!("it is not empty (it holds {name:?}); choose an empty or a new directory"),
        }),
    }
}

/// The key that a store was begun with, or one for a store that has none yet.
fn take_key(path: &Path, file: &Path, known: Option<&Identity>) -> Result<SecretKey, OpenError> {
    let Some(expected) = known.and_then(|identity| identity.public_key.clone()) else {
        let (key, made) = SecretKey::open_or_create(file)?;
        if made {
            tracing::info!(
                "the ledger is signed with {}, its secret is in {}",
                key.public(),
                file.display()
            );
        }
        return Ok(key);
    };
    let other = || OpenError::OtherKey {
        path: path.to_owned(),
        key_path: file.to_owned(),
        expected: expected.clone(),
    };
    match SecretKey::open(file) {
        Ok(key) if key.public().to_string() == expected => Ok(key),
        Ok(_) => Err(other()),
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(other())
        }
        Err(error) => Err(error.into()),
    }
}
