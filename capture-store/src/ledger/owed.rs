//! What the ledger still has to be told.
//!
//! A file is sealed or retired at one moment, and the line that says so is written at another,
//! perhaps by a later run: a start that has recovered an unclean end can fail before its first
//! line, and a run can be killed before its next. So such notes lie in `ledger/owed.jsonl`, one a
//! line, from the deed until a line of the ledger has them.
//!
//! It is on the disk before the deed is done, and stays there until the line is: a power loss may
//! take the newest lines of the ledger, and a file that no line knows looks like somebody else's.
//!
//! Each is signed: the next run signs what it finds there into the ledger, and must not do so for
//! whoever else can write to the store.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::key::{Domain, PublicKey, SecretKey};
use crate::layout::{self, FILE_MODE};
use crate::signed::{self, Signature};

use crate::store::Store;

use super::line::Note;
use super::writer::append_whole;

/// Notes that are in no line of the ledger yet.
#[derive(Debug)]
pub(crate) struct Owed {
    path: PathBuf,
    key: Arc<SecretKey>,
    /// Held while the file is written, and taken first: who only looks at the notes does not wait
    /// for the disk.
    file: Mutex<()>,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Of earlier runs and of the recovery at this start: the next line shall have them.
    inherited: Vec<Note>,
    /// Of this run, which brings them to the ledger itself.
    own: Vec<Note>,
    /// Among those of this run, the ones in lines that may not be on the disk yet.
    standing: Vec<Note>,
    /// The day files with those lines.
    days: BTreeSet<PathBuf>,
    /// Whether the file may hold something.
    on_disk: bool,
    /// Whether the file could not be written, and that was said.
    told: bool,
}

impl Owed {
    /// Reads what earlier runs left.
    pub(crate) fn open(path: &Path, key: &Arc<SecretKey>) -> io::Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut notes = Notes { on_disk: !text.is_empty(), ..Notes::default() };
        for line in whole_lines(&text) {
            let note = read(line, &key.public()).unwrap_or_else(|why| {
                // Somebody else wrote it, or a disk has changed it.
                let text = format!("a note that an earlier run left is not believed: {why}");
                tracing::warn!("{text}");
                Note::Said { text }
            });
            remember(&mut notes.inherited, note);
        }
        let (path, key) = (path.to_owned(), Arc::clone(key));
        Ok(Self { path, key, file: Mutex::default(), notes: Mutex::new(notes) })
    }

    /// Remembers what the recovery at this start did.
    pub(crate) fn inherit(&self, notes: &[Note]) {
        let _file = lock(&self.file);
        notes.iter().for_each(|note| remember(&mut lock(&self.notes).inherited, note.clone()));
        self.write(notes);
    }

    /// Remembers what this run did, should it end before a line says so.
    pub(crate) fn owe(&self, notes: &[Note]) {
        let _file = lock(&self.file);
        notes.iter().for_each(|note| remember(&mut lock(&self.notes).own, note.clone()));
        self.write(notes);
    }

    /// What was done before this run and still stands nowhere.
    pub(crate) fn inherited(&self) -> Vec<Note> {
        lock(&self.notes).inherited.clone()
    }

    /// Forgets what stands in the ledger, on the disk, or did not happen after all.
    pub(crate) fn settle(&self, written: &[Note]) {
        let _file = lock(&self.file);
        let mut all = lock(&self.notes);
        let settled = |note: &Note| !written.contains(note);
        all.inherited.retain(settled);
        all.own.retain(settled);
        all.standing.retain(settled);
        drop(all);
        self.rewrite();
    }

    /// These stand in a line of a day file, which may not be on the disk yet.
    pub(crate) fn stands(&self, written: &[Note], day: &Path) {
        let mut all = lock(&self.notes);
        let Notes { own, standing, days, .. } = &mut *all;
        let before = standing.len();
        standing.extend(own.extract_if(.., |note| written.contains(note)));
        if standing.len() > before {
            days.insert(day.to_owned());
        }
    }

    /// Forgets what stands in the ledger, once that is on the disk. Blocks.
    pub(crate) fn forget(&self) {
        let mut all = lock(&self.notes);
        if all.standing.is_empty() {
            return;
        }
        let (standing, days) = (all.standing.clone(), std::mem::take(&mut all.days));
        drop(all);
        match days.iter().try_for_each(|day| File::open(day)?.sync_data()) {
            Ok(()) => self.settle(&standing),
            Err(error) => {
                lock(&self.notes).days.extend(days);
                self.complain("bring the ledger to the disk, so it stays in", &error);
            }
        }
    }

    /// Writes all that is left.
    fn rewrite(&self) {
        let all = lock(&self.notes);
        let left: Vec<Note> =
            [&all.inherited, &all.own, &all.standing].into_iter().flatten().cloned().collect();
        if left.is_empty() && !all.on_disk {
            return;
        }
        drop(all);
        let written = if left.is_empty() {
            layout::remove_if_there(&self.path).map(drop)
        } else {
            lines(&self.key, &left).and_then(|text| layout::write_whole(&self.path, &text, true))
        };
        match written {
            Ok(()) => lock(&self.notes).on_disk = !left.is_empty(),
            // It holds too much then, which costs a note that stands in the ledger twice.
            Err(error) => self.complain("write", &error),
        }
    }

    fn write(&self, notes: &[Note]) {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(FILE_MODE);
        let is_new = !lock(&self.notes).on_disk;
        let written = lines(&self.key, notes).and_then(|text| {
            let mut file = options.open(&self.path)?;
            append_whole(&mut file, &text)?;
            file.sync_data()?;
            match self.path.parent() {
                Some(dir) if is_new => layout::sync_dir(dir),
                _ => Ok(()),
            }
        });
        match written {
            Ok(()) => {
                let mut all = lock(&self.notes);
                (all.on_disk, all.told) = (true, false);
            }
            // The run itself still brings them to the ledger.
            Err(error) => self.complain("write", &error),
        }
    }

    fn complain(&self, doing: &str, error: &io::Error) {
        if !std::mem::replace(&mut lock(&self.notes).told, true) {
            tracing::warn!("cannot {doing} {}: {error}", self.path.display());
        }
    }
}

fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a note in. What is told again, since the first time was perhaps followed by a kill, is
/// told once; and a recovery's report, which is told as it goes on, as it was at last.
fn remember(notes: &mut Vec<Note>, note: Note) {
    let is_same = |known: &Note| match (known, &note) {
        (Note::Recovered(known), Note::Recovered(now)) => known.recovered_at == now.recovered_at,
        _ => *known == note,
    };
    match notes.iter().position(is_same) {
        Some(place) => notes[place] = note,
        None => notes.push(note),
    }
}

/// A note in the file.
#[derive(Serialize)]
struct Owing<'a> {
    owed: &'a Note,
}

/// The same, read.
#[derive(Deserialize)]
struct Found {
    owed: Note,
}

fn lines<'a>(key: &SecretKey, notes: impl IntoIterator<Item = &'a Note>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for owed in notes {
        let mut line = serde_json::to_vec(&Owing { owed })?;
        signed::sign(key, Domain::Owed, &mut line);
        text.append(&mut line);
        text.push(b'\n');
    }
    Ok(text)
}

fn read(line: &[u8], key: &PublicKey) -> Result<Note, String> {
    let found: Found = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match signed::verify(key, Domain::Owed, line) {
        Signature::Valid => Ok(found.owed),
        _ => Err("it is not signed by this sensor".to_owned()),
    }
}

/// The notes that the ledger of a store still has to be told, or what is wrong with a line of
/// them.
///
/// # Errors
/// The file cannot be read; that there is none is no error.
pub fn owed(store: &Store, key: &PublicKey) -> io::Result<Vec<Result<Note, String>>> {
    let text = match std::fs::read(store.layout().owed()) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(whole_lines(&text).map(|line| read(line, key)).collect())
}

/// A kill or a power loss can tear the last one, which is nobody's fault.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split_inclusive(|byte| *byte == b'\n');
    lines.filter_map(|line| line.strip_suffix(b"\n")).filter(|line| !line.is_empty())
}
