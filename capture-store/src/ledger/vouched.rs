//! Files against what the ledger says about them.
//!
//! A sealed file's size and hash stand in a signed line, so its content is as good as the line:
//! what was changed, cut, removed or put there by somebody else shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path};

use capture_flow::time::Nanos;

use crate::sessions::{extent, sealed_names};
use crate::store::{RunId, Store};

use super::line::{Note, OpenTail, SealedFile};
use super::reader::{day_files, for_each_line};

/// What is read of a file at once.
const CHUNK: usize = 1 << 20;

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileProblem {
    /// The ledger says that it was sealed, and not that it was removed.
    #[error("it is missing")]
    Missing,
    /// No line of the ledger knows it.
    #[error("no line of the ledger knows it")]
    Unknown,
    /// It has another size.
    #[error("it has {found} bytes, the ledger says {expected}")]
    Size {
        /// Bytes by the ledger.
        expected: u64,
        /// Bytes on the disk.
        found: u64,
    },
    /// It has another content.
    #[error("its content was changed: its BLAKE3 is {found}, the ledger says {expected}")]
    Hash {
        /// By the ledger.
        expected: String,
        /// Of what is there.
        found: String,
    },
    /// The sensor itself found that it was not what it had written, before it was sealed.
    #[error("it was changed before it was sealed")]
    Altered,
    /// The ledger has its size only, because the policy spared its hash.
    #[error("the ledger has no hash of it: its content cannot be checked")]
    NotHashed,
    /// It is a link, a directory, a pipe: nothing that a sensor writes.
    #[error("it is not a regular file")]
    NotAFile,
    /// The ledger names a path that leads out of the store, or into no place of it.
    #[error("the ledger names it, but no sealed file can lie there")]
    BadPath,
    /// The kernel's answer.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
}

/// A file with which something is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFinding {
    /// Its path within the store.
    pub path: String,
    /// What is wrong.
    pub problem: FileProblem,
    /// Earliest frame or session in it: by the ledger, else by the file itself.
    pub from: Nanos,
    /// The latest.
    pub to: Nanos,
}

/// What was checked and what came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesCheck {
    /// Files whose content is what the ledger says.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that the running sensor sealed just now: their line is still to come.
    pub pending: u64,
    /// What is wrong with the others.
    pub findings: Vec<FileFinding>,
}

/// The files that the ledger vouches for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vouched {
    files: BTreeMap<String, SealedFile>,
    retired: BTreeSet<String>,
    /// Files that were sealed more than once, with different contents.
    again: BTreeSet<String>,
    /// Open tails that were not what the sensor had written, before they were sealed.
    altered: BTreeSet<String>,
    /// Files that were open at the newest line, and that line's place in the chain.
    tails: (u64, Vec<OpenTail>),
}

impl Vouched {
    /// The files in the notes of lines. The lines must come from a chain that holds.
    #[must_use]
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a super::LedgerLine>) -> Self {
        let mut vouched = Self::default();
        lines.into_iter().for_each(|line| vouched.add_line(line));
        vouched
    }

    /// Adds what a line says.
    pub fn add_line(&mut self, line: &super::LedgerLine) {
        self.add(&line.notes);
        if line.seq >= self.tails.0 {
            self.tails = (line.seq, line.tails.clone());
        }
    }

    /// Adds what notes say.
    pub fn add(&mut self, notes: &[Note]) {
        for note in notes {
            match note {
                Note::Sealed(file) => {
                    // What is sealed never changes. The first word counts: whoever puts a changed
                    // file where a recovery takes it for an unsealed one gets it signed again.
                    let first = self.files.entry(file.path.clone()).or_insert_with(|| file.clone());
                    if (first.bytes, &first.blake3) != (file.bytes, &file.blake3) {
                        self.again.insert(file.path.clone());
                    }
                }
                Note::Altered { path } => {
                    self.altered.insert(path.clone());
                }
                Note::Retired(file) => {
                    // A segment is retired with its index, and named by its packets.
                    if let Some(stem) = file.path.strip_suffix(".pcap") {
                        self.retired.insert(format!("{stem}.idx"));
                    }
                    self.retired.insert(file.path.clone());
                }
                _ => {}
            }
        }
    }

    /// What the ledger says about a file.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&SealedFile> {
        self.files.get(path)
    }

    /// Whether the ledger says that a file was removed.
    #[must_use]
    pub fn is_retired(&self, path: &str) -> bool {
        self.retired.contains(path)
    }

    /// Files that the ledger sealed more than once, each time with another content.
    pub fn sealed_again(&self) -> impl Iterator<Item = &str> {
        self.again.iter().map(String::as_str)
    }

    /// Open tails that were not what the sensor had written, before they were sealed.
    pub fn altered(&self) -> impl Iterator<Item = &str> {
        self.altered.iter().map(String::as_str)
    }

    /// Whether a file of the session log was made of an open tail that was altered.
    #[must_use]
    pub fn is_altered(&self, path: &str) -> bool {
        let stem = |path: &str| Path::new(path).file_stem().map(std::ffi::OsStr::to_owned);
        self.altered.iter().any(|altered| stem(altered) == stem(path))
    }

    /// The session log's files that were open at the newest line.
    #[must_use]
    pub fn tails(&self) -> &[OpenTail] {
        &self.tails.1
    }

    /// Whether an open tail has become a sealed file since.
    #[must_use]
    pub fn is_sealed(&self, tail: &OpenTail) -> bool {
        let stem = |path: &str| Path::new(path).file_stem().map(std::ffi::OsStr::to_owned);
        let mut sealed = self.files.keys().filter(|path| path.ends_with(".parquet"));
        sealed.any(|path| stem(path) == stem(&tail.path))
    }

    /// Every file that was ever sealed.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// How many files the ledger says were removed, a segment's index and packets being two.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired.len() as u64
    }

    /// Every file that was ever sealed, with what the ledger says about it.
    pub fn sealed(&self) -> impl Iterator<Item = &SealedFile> {
        self.files.values()
    }

    /// The files that must be there, by path.
    pub fn present(&self) -> impl Iterator<Item = &SealedFile> {
        self.files.values().filter(|file| !self.is_retired(&file.path))
    }
}

/// Compares a file with what the ledger says about it; `progress` is told about every piece read.
///
/// # Errors
/// What is wrong with it.
pub fn check_file(
    store: &Store,
    file: &SealedFile,
    progress: impl FnMut(u64),
) -> Result<(), FileProblem> {
    let (opened, found) = open(store.layout().root(), &file.path)?;
    if found != file.bytes {
        return Err(FileProblem::Size { expected: file.bytes, found });
    }
    let Some(expected) = &file.blake3 else { return Err(FileProblem::NotHashed) };
    check_content(opened, expected, progress)
}

/// Compares an open tail with what a line said about it; it may have grown since.
///
/// # Errors
/// What is wrong with it.
pub fn check_tail(root: &Path, tail: &OpenTail) -> Result<(), FileProblem> {
    let (opened, found) = open(root, &tail.path)?;
    if found < tail.bytes {
        return Err(FileProblem::Size { expected: tail.bytes, found });
    }
    check_content(opened.take(tail.bytes), &tail.blake3, |_| {})
}

/// Opens a file that the ledger names, and tells its size.
fn open(root: &Path, path: &str) -> Result<(File, u64), FileProblem> {
    if !is_place_of_a_sealed_file(path) {
        return Err(FileProblem::BadPath);
    }
    let path = root.join(path);
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FileProblem::Missing,
        _ => FileProblem::Unreadable(error.to_string()),
    };
    if !path.symlink_metadata().map_err(unreadable)?.is_file() {
        return Err(FileProblem::NotAFile);
    }
    // Whatever was put in its place meanwhile: nobody waits for the other end of a pipe.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    let opened = opened.map_err(unreadable)?;
    let found = opened.metadata().map_err(unreadable)?.len();
    Ok((opened, found))
}

fn check_content(
    mut opened: impl Read,
    expected: &str,
    mut progress: impl FnMut(u64),
) -> Result<(), FileProblem> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match opened.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(chunk.get(..read).unwrap_or_default());
                progress(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(FileProblem::Unreadable(error.to_string())),
        }
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() == expected {
        Ok(())
    } else {
        Err(FileProblem::Hash { expected: expected.to_owned(), found: found.to_string() })
    }
}

/// Checks the sealed files of the session log that can hold sessions of a window: every one that
/// the ledger names with such sessions is there and unchanged, and every one that is there with
/// such sessions is named by the ledger.
///
/// `vouched` is made of the lines from the window's begin to the ledger's end; what is missing in
/// them is looked for in the rest of the ledger. `run` is the run of the chain's head: while its
/// sensor writes, a file of that run may be sealed and its line still to come.
///
/// # Errors
/// A directory or the ledger cannot be read. What is wrong with files is part of the answer.
pub fn check_sessions(
    store: &Store,
    vouched: &Vouched,
    run: Option<&RunId>,
    from: Nanos,
    to: Nanos,
) -> io::Result<FilesCheck> {
    let overlaps = |first: Nanos, last: Nanos| first <= to && last >= from;
    let mut check = FilesCheck::default();
    let named = vouched
        .present()
        .filter(|file| file.path.ends_with(".parquet") && overlaps(file.first_ts, file.last_ts));
    for file in named {
        let outcome = match check_file(store, file, |_| {}) {
            Ok(()) if vouched.is_altered(&file.path) => Err(FileProblem::Altered),
            outcome => outcome,
        };
        check.take(file, outcome);
    }
    for tail in vouched.tails() {
        let Err(problem) = check_tail(store.layout().root(), tail) else { continue };
        // Sealed since, and the line that says so may still be to come.
        let stem = Path::new(&tail.path).file_stem().unwrap_or_default().to_string_lossy();
        if problem == FileProblem::Missing && sealed_names(store.layout())?.contains_key(&*stem) {
            continue;
        }
        // Nobody knows which sessions were in it.
        let (path, from, to) = (tail.path.clone(), Nanos::MIN, Nanos::MAX);
        check.findings.push(FileFinding { path, problem, from, to });
    }
    // The directories last: a file that is sealed meanwhile is named by no line that was read.
    let mut unknown = Vec::new();
    for path in sealed_names(store.layout())?.into_values() {
        let relative = path.strip_prefix(store.layout().root()).unwrap_or(&path);
        let relative = relative.to_string_lossy().into_owned();
        if vouched.get(&relative).is_some() {
            continue;
        }
        // What cannot be read cannot answer either, but somebody put it there.
        let (_, first, last) = extent(&path).unwrap_or((0, Nanos::MIN, Nanos::MAX));
        if overlaps(first, last) {
            unknown.push((relative, first, last));
        }
    }
    if unknown.is_empty() {
        return Ok(check);
    }
    let live = run.filter(|_| store.is_being_written().unwrap_or(false));
    let live = live.map(|run| format!("{run}-"));
    let all = all_vouched(store)?;
    for (path, first, last) in unknown {
        let name = path.rsplit('/').next().unwrap_or_default();
        match all.get(&path) {
            Some(file) => check.take(file, check_file(store, file, |_| {})),
            None if live.as_ref().is_some_and(|live| name.starts_with(live)) => check.pending += 1,
            None => check.findings.push(FileFinding {
                path,
                problem: FileProblem::Unknown,
                from: first,
                to: last,
            }),
        }
    }
    Ok(check)
}

impl FilesCheck {
    fn take(&mut self, file: &SealedFile, outcome: Result<(), FileProblem>) {
        match outcome {
            Ok(()) => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(file.bytes);
            }
            Err(problem) => self.findings.push(FileFinding {
                path: file.path.clone(),
                problem,
                from: file.first_ts,
                to: file.last_ts,
            }),
        }
    }
}

/// Every file that any line names. Only lines that say so are parsed.
fn all_vouched(store: &Store) -> io::Result<Vouched> {
    let mut vouched = Vouched::default();
    for path in day_files(store)? {
        for_each_line(&path, |_, text, _| {
            if holds(text, b"\"note\":\"sealed\"")
                && let Ok(line) = serde_json::from_slice::<super::LedgerLine>(text)
            {
                vouched.add(&line.notes);
            }
        })?;
    }
    Ok(vouched)
}

fn holds(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|part| part == what)
}

/// Whether a path within the store is one where sealed files lie: nothing else is opened because
/// a ledger says so.
fn is_place_of_a_sealed_file(path: &str) -> bool {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    plain && (path.starts_with("pcap") || path.starts_with("sessions"))
}
