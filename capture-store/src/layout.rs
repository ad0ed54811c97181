//! Where everything lies in a store, and how files are put there.
//!
//! ```text
//! STORE/lock                                 held (flock) by the one writer
//! STORE/sensor.json                          identity and format version
//! STORE/sensor.key                           the secret that signs the ledger, unless kept elsewhere
//! STORE/pcap/w00/<sequence>.pcap             one worker's segments
//! STORE/pcap/w00/<sequence>.idx.open         journal of a segment being filled
//! STORE/pcap/w00/<sequence>.idx              index of a sealed segment
//! STORE/sessions/live/<run>-<seq>.arrows     open tail of the session log
//! STORE/sessions/sensor=S/date=…/hour=…/<run>-<seq>.parquet
//! STORE/ledger/sensor=S/date=YYYY-MM-DD.ndjson
//! STORE/ledger/owed.jsonl                    notes that no line of the ledger has yet
//! ```
//! A name that ends in [`TEMPORARY`] is being written and is removed by the next start.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;

use crate::time::date_and_hour;

/// Suffix of files that are not complete.
pub const TEMPORARY: &str = ".tmp";
/// Mode of every file: the owner writes, the group reads.
pub const FILE_MODE: u32 = 0o640;
/// Mode of every directory.
pub const DIR_MODE: u32 = 0o750;

pub(crate) const SENSOR_FILE: &str = "sensor.json";
pub(crate) const KEY_FILE: &str = "sensor.key";
pub(crate) const LOCK_FILE: &str = "lock";
const PCAP_DIR: &str = "pcap";
const SESSIONS_DIR: &str = "sessions";
const LIVE_DIR: &str = "live";
const LEDGER_DIR: &str = "ledger";

/// The paths of one store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the store at `root`; touches nothing.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Who the store belongs to.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.root.join(SENSOR_FILE)
    }

    /// The secret key, unless it is kept elsewhere.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.root.join(KEY_FILE)
    }

    /// Held (flock) by the one writer.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.root.join(LOCK_FILE)
    }

    /// The directories at the top of the store that have everything in them but its identity.
    pub(crate) fn trees(&self) -> [PathBuf; 3] {
        [PCAP_DIR, SESSIONS_DIR, LEDGER_DIR].map(|name| self.root.join(name))
    }

    /// Directory of all packet segments.
    #[must_use]
    pub fn pcap(&self) -> PathBuf {
        self.root.join(PCAP_DIR)
    }

    /// Directory of one worker's segments.
    #[must_use]
    pub fn worker(&self, worker: u16) -> PathBuf {
        self.pcap().join(format!("w{worker:02}"))
    }

    /// Directory of the session log.
    #[must_use]
    pub fn sessions(&self) -> PathBuf {
        self.root.join(SESSIONS_DIR)
    }

    /// Directory of the session log's open tail.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.sessions().join(LIVE_DIR)
    }

    /// Directory of the Parquet files with rows flushed in the hour of `at`.
    #[must_use]
    pub fn partition(&self, sensor: &str, at: Nanos) -> PathBuf {
        let (date, hour) = date_and_hour(at);
        self.sessions()
            .join(format!("sensor={}", path_name(sensor)))
            .join(format!("date={date}"))
            .join(format!("hour={hour:02}"))
    }

    /// Directory of one sensor's ledger.
    #[must_use]
    pub fn ledger(&self, sensor: &str) -> PathBuf {
        self.root.join(LEDGER_DIR).join(format!("sensor={}", path_name(sensor)))
    }

    /// File of the notes that the ledger still has to be told.
    #[must_use]
    pub fn owed(&self) -> PathBuf {
        self.root.join(LEDGER_DIR).join("owed.jsonl")
    }

    /// Ledger file of the UTC day of `at`.
    #[must_use]
    pub fn ledger_day(&self, sensor: &str, at: Nanos) -> PathBuf {
        let (date, _) = date_and_hour(at);
        self.ledger(sensor).join(format!("date={date}.ndjson"))
    }
}

/// A sensor's name as part of a path: ASCII letters, digits, `.`, `_` and `-` stay, anything else
/// becomes `_`; never empty, never `.` or `..`, at most 64 characters.
#[must_use]
pub fn path_name(sensor: &str) -> String {
    let mut name: String = sensor
        .chars()
        .take(64)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') { c } else { '_' })
        .collect();
    if name.chars().all(|c| c == '.') {
        name = if name.is_empty() { "_".to_owned() } else { name.replace('.', "_") };
    }
    name
}

/// The number in a worker directory's name (`w07`).
pub(crate) fn worker_of(name: &str) -> Option<u16> {
    let digits = name.strip_prefix('w')?;
    let worker = digits.parse().ok()?;
    (format!("w{worker:02}") == name).then_some(worker)
}

/// File name of a segment's part: `00000000000000000042.pcap`.
pub(crate) fn segment_name(sequence: u64, extension: &str) -> String {
    format!("{sequence:020}.{extension}")
}

/// Splits a segment's file name into its sequence and its extension.
pub(crate) fn parse_segment_name(name: &str) -> Option<(u64, &str)> {
    let (digits, extension) = name.split_once('.')?;
    (digits.len() == 20).then_some(())?;
    Some((digits.parse().ok()?, extension))
}

/// Creates a directory and those above it with [`DIR_MODE`].
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path)
}

/// Creates a file that must not exist yet, readable and writable, with [`FILE_MODE`].
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(FILE_MODE).open(path)
}

/// Makes renames and creations in a directory survive a power loss.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a file's content so that a reader sees the old or the new one, whole; with `sync`
/// also after a power loss.
pub(crate) fn write_whole(path: &Path, content: &[u8], sync: bool) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY);
    let temporary = path.with_file_name(name);
    remove_if_there(&temporary)?;
    let written = (|| {
        let mut file = create_new(&temporary)?;
        file.write_all(content)?;
        if sync {
            file.sync_all()?;
        }
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one worth telling.
        let _ = remove_if_there(&temporary);
    }
    written?;
    match path.parent() {
        Some(dir) if sync => sync_dir(dir),
        _ => Ok(()),
    }
}

/// Removes a file; not being there is fine.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names in a directory, sorted; empty where there is no directory of that name. Names that
/// are not UTF-8 are none of ours and are left out.
pub(crate) fn names_in(path: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_sensor_name_is_one_plain_path_component(name in any::<String>()) {
            let name = path_name(&name);
            let components: Vec<_> = Path::new(&name).components().collect();
            prop_assert_eq!(components.len(), 1);
            prop_assert!(matches!(components[0], std::path::Component::Normal(_)));
            prop_assert!(name.len() <= 64 && !name.contains('='));
        }

        #[test]
        fn segment_names_come_back(sequence in any::<u64>()) {
            let name = segment_name(sequence, "idx.open");
            prop_assert_eq!(parse_segment_name(&name), Some((sequence, "idx.open")));
        }

        #[test]
        fn worker_names_come_back(worker in any::<u16>()) {
            prop_assert_eq!(worker_of(&format!("w{worker:02}")), Some(worker));
        }
    }

    #[test]
    fn foreign_names_are_not_segments() {
        for name in ["lost+found", "42.pcap", "0000000000000000004x.pcap", "", "."] {
            assert_eq!(parse_segment_name(name), None, "{name}");
        }
        for name in ["w", "w7", "w007", "x07", "w99999"] {
            assert_eq!(worker_of(name), None, "{name}");
        }
    }

    #[test]
    fn whole_files_replace_each_other_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_whole(&path, b"one", true).unwrap();
        write_whole(&path, b"two", false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(names_in(dir.path()).unwrap(), ["a.json"]);
    }
}
