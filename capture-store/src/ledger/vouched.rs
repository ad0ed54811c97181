//! Files against what the ledger says about them.
//!
//! A sealed file's size and hash stand in a signed line, so its content is as good as the line:
//! what was changed, cut, removed or put there by somebody else shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use capture_flow::time::Nanos;
use memchr::memmem::Finder;

use crate::key::{Domain, PublicKey};
use crate::sessions::{Trusted, extent, sealed_names};
use crate::signed::{self, Signature};
use crate::store::Store;

use super::line::{Note, OpenTail, SealedFile};
use super::owed::owed;
use super::reader::{day_files, day_files_of, for_each_line};

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
    /// Those among them that the sensor sealed just now, or at another time than their sessions'.
    pub pending: u64,
    /// What is wrong with the others.
    pub findings: Vec<FileFinding>,
    /// What may be trusted: the files that are as they should be.
    pub trusted: Trusted,
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

    /// What all lines say that were read for a chain ([`super::read_chained`]).
    #[must_use]
    pub fn of_chain(read: &super::LedgerRead) -> Self {
        let mut vouched = Self::default();
        // In the order of the chain, for the first word about a file counts.
        let mut others = read.other_notes.iter().peekable();
        for line in &read.lines {
            while let Some((_, notes)) = others.next_if(|(seq, _)| *seq < line.seq) {
                vouched.add(notes);
            }
            vouched.add_line(line);
        }
        others.for_each(|(_, notes)| vouched.add(notes));
        vouched
    }

    /// What the lines of day files say about files. Only those with such notes are parsed, and their
    /// signatures alone are looked at.
    fn in_files(days: &[PathBuf], key: Option<&PublicKey>) -> io::Result<Self> {
        let notes = Finder::new(br#""notes":["#);
        let mut vouched = Self::default();
        for path in days {
            for_each_line(path, |_, text, _| {
                let is_signed = || {
                    key.is_none_or(|key| {
                        signed::verify(key, Domain::LedgerLine, text) == Signature::Valid
                    })
                };
                if notes.find(text).is_some()
                    && is_signed()
                    && let Ok(line) = serde_json::from_slice::<super::LedgerLine>(text)
                {
                    vouched.add(&line.notes);
                }
            })?;
        }
        Ok(vouched)
    }

    /// What is said about files that the lines at hand do not know. Most were sealed just now: then
    /// their note is still owed to the ledger, or in a line of the time from `from` on. Only for
    /// others is all of the ledger read.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn late<'a>(
        store: &Store,
        key: Option<&PublicKey>,
        unknown: impl IntoIterator<Item = &'a str>,
        from: Nanos,
    ) -> io::Result<Self> {
        let mut unknown = unknown.into_iter().peekable();
        if unknown.peek().is_none() {
            return Ok(Self::default());
        }
        // Before the lines: a note goes from there to here.
        let notes = key.map_or(Ok(Vec::new()), |key| owed(store, key))?;
        let notes: Vec<Note> = notes.into_iter().flatten().collect();
        let mut late = Self::in_files(&day_files_of(store, from, Nanos::MAX)?, key)?;
        late.add(&notes);
        if unknown.any(|path| late.get(path).is_none()) {
            late = Self::in_files(&day_files(store)?, key)?;
            late.add(&notes);
        }
        Ok(late)
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
                Note::Altered { path, .. } => {
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
    progress: impl Fn(u64),
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
    progress: impl Fn(u64),
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

/// Compares files with what the ledger says about them, all cores at it; `progress` is told about
/// every piece read.
pub fn check_files<'a>(
    store: &Store,
    files: &[&'a SealedFile],
    progress: impl Fn(u64) + Sync,
) -> Vec<(&'a SealedFile, Result<(), FileProblem>)> {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(files.len()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(files.len()) {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = check_file(store, file, &progress);
                    let mut all = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push((*file, outcome));
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the files of the session log that can hold sessions of a time: every sealed one that the
/// ledger names with such sessions is there and unchanged, every one that is there with such
/// sessions is named by the ledger, and the open tails are what the newest line says. What is all
/// that may be trusted ([`FilesCheck::trusted`]); whoever takes rows from elsewhere, too, must not
/// let them hide any of these.
///
/// `vouched` is made of the lines of that time and all behind it ([`Vouched::of_chain`] has those of
/// older files). A file that no line names may have been sealed just now: then the sensor has
/// signed that it owes the ledger the note.
///
/// # Errors
/// A directory or the ledger cannot be read. What is wrong with files is part of the answer.
pub fn check_sessions(
    store: &Store,
    key: Option<&PublicKey>,
    vouched: &Vouched,
    from: Nanos,
    to: Nanos,
) -> io::Result<FilesCheck> {
    let overlaps = |file: &&SealedFile| file.first_ts <= to && file.last_ts >= from;
    let of_log = |file: &&SealedFile| file.path.ends_with(".parquet");
    let mut check = FilesCheck::default();
    // The directories before the notes that are owed and those before the ledger: a sensor that
    // seals meanwhile goes the other way.
    let there = sealed_names(store.layout())?;
    let within = |path: &Path| {
        let path = path.strip_prefix(store.layout().root()).unwrap_or(path);
        path.to_string_lossy().into_owned()
    };
    let unknown: Vec<_> = there
        .values()
        .map(|path| (within(path), path))
        .filter(|(path, _)| vouched.get(path).is_none())
        .collect();
    let late = Vouched::late(store, key, unknown.iter().map(|(path, _)| path.as_str()), from)?;
    let named = vouched.present().filter(of_log).filter(overlaps);
    let found = unknown.iter().filter_map(|(path, _)| late.get(path)).filter(overlaps);
    let named: Vec<&SealedFile> = named.chain(found).collect();
    for (file, outcome) in check_files(store, &named, |_| {}) {
        let outcome = match outcome {
            Ok(()) if vouched.is_altered(&file.path) => Err(FileProblem::Altered),
            outcome => outcome,
        };
        if outcome.is_ok() && vouched.get(&file.path).is_none() {
            check.pending += 1;
        }
        check.take(file, outcome);
    }
    for (path, full) in unknown.into_iter().filter(|(path, _)| late.get(path).is_none()) {
        // What cannot be read cannot answer either, but somebody put it there.
        let (_, first, last) = extent(full).unwrap_or((0, Nanos::MIN, Nanos::MAX));
        if first <= to && last >= from {
            let problem = FileProblem::Unknown;
            check.findings.push(FileFinding { path, problem, from: first, to: last });
        }
    }
    for tail in vouched.tails() {
        let problem = match check_tail(store.layout().root(), tail) {
            Ok(()) => {
                check.trusted.tails.insert(tail.path.clone(), tail.bytes);
                continue;
            }
            Err(problem) => problem,
        };
        // Sealed since, and somebody vouches for what it became.
        let stem = Path::new(&tail.path).file_stem().unwrap_or_default().to_string_lossy();
        let sealed = there.get(&*stem).map(|path| within(path));
        let is_known = |path: &String| vouched.get(path).is_some() || late.get(path).is_some();
        if problem == FileProblem::Missing && sealed.as_ref().is_some_and(is_known) {
            continue;
        }
        // Nobody knows which sessions were in it.
        let (path, from, to) = (tail.path.clone(), Nanos::MIN, Nanos::MAX);
        check.findings.push(FileFinding { path, problem, from, to });
    }
    check.findings.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(check)
}

impl FilesCheck {
    fn take(&mut self, file: &SealedFile, outcome: Result<(), FileProblem>) {
        match outcome {
            Ok(()) => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(file.bytes);
                self.trusted.sealed.insert(file.path.clone());
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

/// Whether a path within the store is one where sealed files lie: nothing else is opened because
/// a ledger says so.
fn is_place_of_a_sealed_file(path: &str) -> bool {
    let path = Path::new(path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    plain && (path.starts_with("pcap") || path.starts_with("sessions"))
}
