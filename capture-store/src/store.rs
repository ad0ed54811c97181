//! A store's identity, who may write to it, and how it is opened.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use capture_flow::time::Nanos;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::key::{KeyError, PublicKey, SecretKey};
use crate::layout::{self, FILE_MODE, KEY_FILE, LOCK_FILE, Layout, SENSOR_FILE};
use crate::ledger::{Note, Owed};
use crate::made::Made;
use crate::provenance::RunTag;
use crate::recover::{self, RecoveryReport};
use crate::time::{now, to_rfc3339};

/// Version of the disk format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// What `sensor.json` says a store is.
const FORMAT: &str = "stillwire-store";
/// More than any `sensor.json`: a larger file is none.
const SENSOR_FILE_LIMIT: u64 = 64 * 1024;

/// Who a store belongs to: `sensor.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Always `stillwire-store`.
    pub format: String,
    /// Version of everything in the store.
    pub format_version: u32,
    /// The sensor's name, as in the column `sensor`.
    pub sensor: String,
    /// 128 random bits in hex: two sensors with one name stay apart.
    pub sensor_id: String,
    /// Secret seed of the session hash, 64 bits in hex.
    pub hash_seed: String,
    /// When the store was made.
    #[serde(with = "crate::time::rfc3339")]
    pub created: Nanos,
    /// The key that ledger signatures are verified with; missing until the store of an older
    /// Stillwire is written to again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether simulations write to it, and nothing else ever does: what is in it is no evidence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

/// What is written to a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// What was on a wire, or in capture files.
    #[default]
    Record,
    /// What a simulation makes. Such a store is a simulation's for ever: its budget removes no
    /// packet that anybody could need, and none of its sessions is taken for one that was there.
    Simulation,
}

impl Identity {
    /// The seed for [`capture_flow::key::FlowHash`].
    #[must_use]
    pub fn hash_seed(&self) -> u64 {
        // Checked when the identity was read.
        u64::from_str_radix(&self.hash_seed, 16).unwrap_or(0)
    }

    /// The key that ledger signatures are verified with, if there is one that can be used.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key.as_deref().and_then(PublicKey::parse)
    }

    fn new(sensor: &str, key: &PublicKey, purpose: Purpose) -> io::Result<Self> {
        Ok(Self {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            sensor: sensor.to_owned(),
            sensor_id: format!("{:032x}", random_u128()?),
            hash_seed: format!("{:016x}", random_u128()? as u64),
            created: now(),
            public_key: Some(key.to_string()),
            simulated: purpose == Purpose::Simulation,
        })
    }
}

/// 128 bits from the kernel.
///
/// # Errors
/// `/dev/urandom` cannot be read.
pub fn random_u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

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

/// Names one run of a sensor: a sortable UTC time and random digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// A new run that starts at `started`.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be read.
    pub fn new(started: Nanos) -> io::Result<Self> {
        let text = to_rfc3339(started);
        let time: String = text.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
        Ok(Self(format!("{time}Z-{:08x}", random_u128()? as u32)))
    }

    /// A run named by a file or a ledger line; `None` where the text cannot be one (it becomes
    /// part of paths).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The run in few bytes, for each segment to carry: the first of its name's BLAKE3. Two runs
    /// of a store hardly ever share one, and then only lose what it tells apart.
    #[must_use]
    pub fn tag(&self) -> RunTag {
        let hash = blake3::hash(self.0.as_bytes());
        let first = hash.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        RunTag(NonZeroU32::new(first).unwrap_or(NonZeroU32::MIN))
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a run id"))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads `sensor.json`; `None` where there is none.
fn read_identity(path: &Path) -> Result<Option<Identity>, OpenError> {
    let file = path.join(SENSOR_FILE);
    let mut content = String::new();
    let opened = File::open(&file)
        .and_then(|opened| opened.take(SENSOR_FILE_LIMIT).read_to_string(&mut content));
    match opened {
        Ok(_) => {}
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::NotAStore {
                path: path.to_owned(),
                why: format!("{SENSOR_FILE} is not text"),
            });
        }
        Err(error) => return Err(OpenError::io("read", &file, error)),
    }
    let damaged = |why: String| OpenError::NotAStore {
        path: path.to_owned(),
        why: format!("{SENSOR_FILE}: {why}"),
    };
    // The version first: a newer format may have other fields.
    #[derive(Deserialize)]
    struct Version {
        format: String,
        format_version: u32,
    }
    let version: Version =
        serde_json::from_str(&content).map_err(|error| damaged(error.to_string()))?;
    if version.format != FORMAT {
        return Err(damaged(format!("the format is {:?}", version.format)));
    }
    if version.format_version > FORMAT_VERSION {
        return Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found: version.format_version,
        });
    }
    let identity: Identity =
        serde_json::from_str(&content).map_err(|error| damaged(error.to_string()))?;
    if u64::from_str_radix(&identity.hash_seed, 16).is_err() {
        return Err(damaged("hash_seed is not a hexadecimal number".to_owned()));
    }
    Ok(Some(identity))
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

/// Takes the lock of the store that is at `path`, not of one that was removed meanwhile.
fn take_lock(path: &Path) -> Result<File, OpenError> {
    const TRIES: usize = 16;
    let file = path.join(LOCK_FILE);
    let mut lock = try_lock(path, &file)?;
    for _ in 0..TRIES {
        let held = lock.metadata().map_err(|error| OpenError::io("look at", &file, error))?;
        if std::fs::metadata(&file).is_ok_and(|there| there.ino() == held.ino()) {
            break;
        }
        lock = try_lock(path, &file)?;
    }
    Ok(lock)
}

fn try_lock(path: &Path, file: &Path) -> Result<File, OpenError> {
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        .open(file)
        .map_err(|error| OpenError::io("open", file, error))?;
    match lock_soon(&lock) {
        Ok(()) => {}
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => {
            let mut holder = String::new();
            // Not knowing who it is does not change the answer.
            let _ = (&lock).take(256).read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "unknown process" } else { holder };
            return Err(OpenError::InUse { path: path.to_owned(), holder: holder.to_owned() });
        }
        Err(error) => return Err(OpenError::io("lock", file, error.into())),
    }
    let holder = format!("pid {}, since {}\n", std::process::id(), to_rfc3339(now()));
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(holder.as_bytes()))
        .map_err(|error| OpenError::io("write", file, error))?;
    Ok(lock)
}

/// Takes the lock, if need be after the moment for which a reader looked at it.
fn lock_soon(lock: &File) -> rustix::io::Result<()> {
    const TRIES: u32 = 10;
    for _ in 1..TRIES {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => return other,
        }
    }
    flock(lock, FlockOperation::NonBlockingLockExclusive)
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

fn create_identity(
    path: &Path,
    sensor: Option<&str>,
    key: &PublicKey,
    purpose: Purpose,
) -> Result<Identity, OpenError> {
    let named = match sensor {
        Some(name) => name.to_owned(),
        None => host_name(),
    };
    let identity = Identity::new(&named, key, purpose)
        .map_err(|error| OpenError::io("write", &path.join(SENSOR_FILE), error))?;
    write_identity(path, identity)
}

fn write_identity(path: &Path, identity: Identity) -> Result<Identity, OpenError> {
    let file = path.join(SENSOR_FILE);
    let written =
        serde_json::to_vec_pretty(&identity).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            layout::write_whole(&file, &text, true)
        });
    written.map_err(|error| OpenError::io("write", &file, error))?;
    Ok(identity)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "sensor".to_owned() } else { name.to_owned() }
}
