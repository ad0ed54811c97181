//! What the ledger still has to be told.
//!
//! A file is sealed or retired at one moment, and the line that says so is written at another,
//! perhaps by a later run: a start that has recovered an unclean end can fail before its first
//! line, and a run can be killed before its next. So such notes lie in `ledger/owed.jsonl`, one a
//! line, from the deed until a line of the ledger has them.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::layout::{self, FILE_MODE};

use super::line::Note;
use super::writer::append_whole;

/// Notes that are in no line of the ledger yet.
#[derive(Debug)]
pub(crate) struct Owed {
    path: PathBuf,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    /// Of earlier runs and of the recovery at this start: the next line shall have them.
    inherited: Vec<Note>,
    /// Of this run, which brings them to the ledger itself.
    own: Vec<Note>,
    /// Whether the file may hold something.
    on_disk: bool,
    /// Whether the file could not be written, and that was said.
    told: bool,
}

impl Owed {
    /// Reads what earlier runs left.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut notes = Notes { on_disk: !text.is_empty(), ..Notes::default() };
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(note) => notes.inherited.push(note),
                // A kill or a power loss tore it.
                Err(error) => {
                    tracing::warn!("a note for the ledger cannot be read and is left out: {error}");
                }
            }
        }
        Ok(Self { path: path.to_owned(), notes: Mutex::new(notes) })
    }

    /// Remembers what the recovery at this start did.
    pub(crate) fn inherit(&self, notes: &[Note]) {
        let mut all = self.lock();
        all.inherited.extend_from_slice(notes);
        self.write(&mut all, notes);
    }

    /// Remembers what this run did, should it end before a line says so.
    pub(crate) fn owe(&self, notes: &[Note]) {
        let mut all = self.lock();
        all.own.extend_from_slice(notes);
        self.write(&mut all, notes);
    }

    /// What was done before this run and still stands nowhere.
    pub(crate) fn inherited(&self) -> Vec<Note> {
        self.lock().inherited.clone()
    }

    /// Forgets what stands in the ledger now.
    pub(crate) fn settle(&self, written: &[Note]) {
        let mut all = self.lock();
        if !all.on_disk && all.own.is_empty() && all.inherited.is_empty() {
            return;
        }
        let Notes { inherited, own, .. } = &mut *all;
        inherited.retain(|note| !written.contains(note));
        own.retain(|note| !written.contains(note));
        let left: Vec<&Note> = inherited.iter().chain(&*own).collect();
        match self.write_all(&left) {
            Ok(()) => all.on_disk = !left.is_empty(),
            // It holds too much then, which costs a note that stands in the ledger twice.
            Err(error) => self.complain(&mut all, &error),
        }
    }

    fn write_all(&self, notes: &[&Note]) -> io::Result<()> {
        if notes.is_empty() {
            return layout::remove_if_there(&self.path).map(drop);
        }
        layout::write_whole(&self.path, &lines(notes.iter().copied())?, false)
    }

    fn write(&self, all: &mut Notes, notes: &[Note]) {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(FILE_MODE);
        let written =
            lines(notes).and_then(|text| append_whole(&mut options.open(&self.path)?, &text));
        match written {
            Ok(()) => (all.on_disk, all.told) = (true, false),
            // The run itself still brings them to the ledger.
            Err(error) => self.complain(all, &error),
        }
    }

    fn complain(&self, all: &mut Notes, error: &io::Error) {
        if !std::mem::replace(&mut all.told, true) {
            tracing::warn!("cannot write {}: {error}", self.path.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lines<'a>(notes: impl IntoIterator<Item = &'a Note>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    for note in notes {
        serde_json::to_writer(&mut text, note)?;
        text.push(b'\n');
    }
    Ok(text)
}
