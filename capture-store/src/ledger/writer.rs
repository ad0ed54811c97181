//! Appends lines to the chain.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::layout::{self, FILE_MODE, Layout};
use crate::store::OwnedStore;
use crate::time::now;

use super::line::{LedgerLine, Note};

/// Most bytes of a line that are looked at when the chain's end is searched.
pub(super) const LINE_LIMIT: u64 = 16 << 20;
/// The hash before the first line.
pub(super) const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Why the ledger cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The kernel's answer.
    #[error("cannot write the ledger {path}")]
    Io {
        /// The day file, or the directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The line has no JSON form.
    #[error("the ledger line cannot be written as JSON")]
    Json(#[from] serde_json::Error),
}

impl LedgerError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// The chain's end, where lines are added.
#[derive(Debug)]
pub struct LedgerWriter {
    layout: Layout,
    sensor: String,
    open: Option<(PathBuf, File)>,
    next_seq: u64,
    prev: String,
    torn: Option<u64>,
}

impl LedgerWriter {
    /// Finds the chain's end.
    ///
    /// # Errors
    /// The ledger's directory cannot be read.
    pub fn open(store: &OwnedStore) -> Result<Self, LedgerError> {
        let layout = store.layout().clone();
        let sensor = store.identity().sensor.clone();
        let dir = layout.ledger(&sensor);
        let mut writer =
            Self { layout, sensor, open: None, next_seq: 0, prev: NO_HASH.to_owned(), torn: None };
        for name in layout::names_in(&dir).map_err(LedgerError::io(&dir))? {
            if !name.ends_with(".ndjson") {
                continue;
            }
            let path = dir.join(name);
            let end = last_line(&path).map_err(LedgerError::io(&path))?;
            // Day files are in order of dates, the chain in order of writing: a replay writes
            // into the past. The highest place is the end.
            if let Some(end) = end.filter(|end| end.seq >= writer.next_seq) {
                writer.next_seq = end.seq.saturating_add(1);
                writer.prev = end.hash;
                writer.torn = end.torn;
            }
        }
        Ok(writer)
    }

    /// Appends a line: sets its place, its `prev` and its moment of writing, and returns its
    /// hash in hex: the chain's new head.
    ///
    /// # Errors
    /// Not written; the chain's end is as before and the line can be given again.
    pub fn append(&mut self, line: &mut LedgerLine) -> Result<String, LedgerError> {
        if let Some(bytes) = self.torn {
            let torn = Note::TornLine { bytes };
            if !line.notes.contains(&torn) {
                line.notes.push(torn);
            }
        }
        line.seq = self.next_seq;
        line.prev.clone_from(&self.prev);
        line.written_at = now();
        let mut text = serde_json::to_vec(line)?;
        let hash = blake3::hash(&text).to_hex().to_string();
        text.push(b'\n');
        let path = self.layout.ledger_day(&self.sensor, line.to);
        let file = self.day_file(&path).map_err(LedgerError::io(&path))?;
        append_whole(file, &text).map_err(LedgerError::io(&path))?;
        self.next_seq = self.next_seq.saturating_add(1);
        self.prev.clone_from(&hash);
        self.torn = None;
        Ok(hash)
    }

    /// Waits until the lines of the newest day file are on the disk.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn sync(&self) -> Result<(), LedgerError> {
        match &self.open {
            Some((path, file)) => file.sync_data().map_err(LedgerError::io(path)),
            None => Ok(()),
        }
    }

    /// The chain's head: the hash of its last line, in hex.
    #[must_use]
    pub fn head(&self) -> &str {
        &self.prev
    }

    fn day_file(&mut self, path: &Path) -> io::Result<&mut File> {
        if self.open.as_ref().is_none_or(|(open, _)| open != path) {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(FILE_MODE);
            let mut file = options.open(path)?;
            // What a killed run left of its last line becomes a line of its own.
            let len = file.metadata()?.len();
            let mut last = [b'\n'];
            if len > 0 {
                file.read_exact_at(&mut last, len - 1)?;
            }
            if last != [b'\n'] {
                file.write_all(b"\n")?;
            }
            self.open = Some((path.to_owned(), file));
        }
        match &mut self.open {
            Some((_, file)) => Ok(file),
            None => Err(io::Error::other("the day file is gone")),
        }
    }
}

/// Appends all of it or nothing.
fn append_whole(file: &mut File, text: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(text).inspect_err(|_| {
        // A full disk takes a part. If even this fails, the reader skips the torn line.
        let _ = file.set_len(before);
    })
}

/// The end of one day file.
struct End {
    seq: u64,
    hash: String,
    torn: Option<u64>,
}

/// The last line that is one, and the hash of what stands last (the same, or a torn line).
fn last_line(path: &Path) -> io::Result<Option<End>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    // Day files are large and many, lines are short: look further back only if need be.
    let mut window = 1 << 16;
    loop {
        let from = len.saturating_sub(window);
        let mut tail = vec![0; usize::try_from(len - from).unwrap_or(0)];
        file.read_exact_at(&mut tail, from)?;
        let (end, certain) = end_of(&tail);
        if certain || from == 0 || window >= LINE_LIMIT {
            return Ok(end);
        }
        window *= 16;
    }
}

/// The chain's end in the tail of a day file, and whether a longer tail could not change it.
fn end_of(tail: &[u8]) -> (Option<End>, bool) {
    let body = tail.strip_suffix(b"\n").unwrap_or(tail);
    let mut lines = body.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Some(last) = lines.next() else { return (None, false) };
    let hash = blake3::hash(last).to_hex().to_string();
    if let Ok(line) = serde_json::from_slice::<LedgerLine>(last) {
        // Without its newline the line is complete all the same.
        return (Some(End { seq: line.seq, hash, torn: None }), true);
    }
    let before = lines.find_map(|line| serde_json::from_slice::<LedgerLine>(line).ok());
    let certain = before.is_some();
    // The torn line took the place behind the last whole one.
    let seq = before.map_or(0, |line| line.seq.saturating_add(1));
    (Some(End { seq, hash, torn: Some(last.len() as u64) }), certain)
}
