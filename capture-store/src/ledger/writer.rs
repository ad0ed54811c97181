//! Appends lines to the chain.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::boot::boot_id;
use crate::key::{Domain, PublicKey, SecretKey};
use crate::layout::{self, FILE_MODE, Layout};
use crate::signed::{self, Signature};
use crate::store::OwnedStore;
use crate::time::now;

use super::anchor::Anchor;
use super::line::{LedgerLine, Note};
use super::owed::Owed;

/// Most bytes of a line that are looked at when the chain's end is searched.
pub(super) const LINE_LIMIT: u64 = 16 << 20;
/// Bytes of lines that a run may write until it forgets what the first of them says: some seconds.
const FORGETTING: u64 = 4 << 20;
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
    sensor_id: String,
    key: Arc<SecretKey>,
    open: Option<(PathBuf, File)>,
    next_seq: u64,
    prev: String,
    torn: Option<u64>,
    /// What is wrong with the line that the chain goes on from.
    doubt: Option<String>,
    owed: Arc<Owed>,
    boot_id: Option<String>,
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
        let mut writer = Self {
            layout,
            sensor,
            sensor_id: store.identity().sensor_id.clone(),
            key: Arc::clone(store.key()),
            open: None,
            next_seq: 0,
            prev: NO_HASH.to_owned(),
            torn: None,
            doubt: None,
            owed: store.owed(),
            boot_id: boot_id(),
        };
        let mut newest = None;
        let public = store.key().public();
        for name in layout::names_in(&dir).map_err(LedgerError::io(&dir))? {
            if !name.ends_with(".ndjson") {
                continue;
            }
            let path = dir.join(name);
            let end = last_line(&path, &public).map_err(LedgerError::io(&path))?;
            // Day files are in order of dates, the chain in order of writing: a replay writes
            // into the past. The highest place is the end.
            if let Some(end) = end.filter(|end| end.seq >= writer.next_seq) {
                writer.next_seq = end.seq.saturating_add(1);
                writer.prev = end.hash;
                writer.torn = end.torn;
                writer.doubt = end.forged.then(|| {
                    let seq = end.seq;
                    format!(
                        "line {seq} of the chain, the last one before, is not signed by this sensor"
                    )
                });
                newest = Some(path);
            }
        }
        if let Some(doubt) = &writer.doubt {
            tracing::error!(
                "{doubt}: somebody has changed the ledger; `stillwire verify` says more"
            );
        }
        // A run that was killed between a line and forgetting what the line says.
        if let Some(newest) = newest.filter(|_| !writer.owed.inherited().is_empty()) {
            writer.owed.settle(&newest_notes(&newest).map_err(LedgerError::io(&newest))?);
        }
        Ok(writer)
    }

    /// Appends a line: sets its place, its `prev` and its moment of writing, adds what the ledger
    /// had still to be told, signs it, and returns its hash in hex: the chain's new head.
    ///
    /// # Errors
    /// Not written; the line can be given again.
    pub fn append(&mut self, line: &mut LedgerLine) -> Result<String, LedgerError> {
        if let Some(bytes) = self.torn {
            let torn = Note::TornLine { bytes };
            if !line.notes.contains(&torn) {
                line.notes.push(torn);
            }
        }
        if let Some(text) = &self.doubt {
            let doubt = Note::Said { text: text.clone() };
            if !line.notes.contains(&doubt) {
                line.notes.push(doubt);
            }
        }
        let mut notes = self.owed.inherited();
        let inherits = !notes.is_empty();
        notes.retain(|note| !line.notes.contains(note));
        drop(line.notes.splice(..0, notes));
        line.seq = self.next_seq;
        line.prev.clone_from(&self.prev);
        line.written_at = now();
        if line.boot_id.is_none() {
            line.boot_id.clone_from(&self.boot_id);
        }
        line.sig.clear();
        let mut text = serde_json::to_vec(line)?;
        line.sig = signed::sign(&self.key, Domain::LedgerLine, &mut text);
        let hash = blake3::hash(&text).to_hex().to_string();
        text.push(b'\n');
        let path = self.layout.ledger_day(&self.sensor, line.to);
        let appended = self.day_file(&path).and_then(|file| append_whole(file, &text));
        if let Err(error) = appended {
            self.look_again(&path);
            return Err(LedgerError::io(&path)(error));
        }
        self.next_seq = self.next_seq.saturating_add(1);
        self.prev.clone_from(&hash);
        self.torn = None;
        self.doubt = None;
        // What recoveries did, how a run begins and that it ended in order is on the disk at once.
        // For the rest nobody waits here: see `Owed::forget`.
        let is_end = line.interval == 0 || line.notes.contains(&Note::CleanStop);
        if (is_end || inherits) && self.sync().is_ok() {
            self.owed.settle(&line.notes);
        } else {
            self.owed.stands(&line.notes, &path);
        }
        Ok(hash)
    }

    /// After a line could not be written: if a part of it is there to stay, it becomes a torn line.
    fn look_again(&mut self, path: &Path) {
        self.open = None;
        if let Ok(Some(end)) = last_line(path, &self.key.public())
            && end.torn.is_some()
            && end.seq == self.next_seq
        {
            self.next_seq = end.seq.saturating_add(1);
            self.prev = end.hash;
            self.torn = end.torn;
        }
    }

    /// Has the ledger told of these by a later run, should this one not come to write them.
    pub fn owe(&self, notes: &[Note]) {
        self.owed.owe(notes);
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

    /// The head as a line to keep elsewhere; `None` while there is no line.
    ///
    /// # Errors
    /// It has no JSON form.
    pub fn anchor(&self) -> Result<Option<String>, LedgerError> {
        let Some(seq) = self.next_seq.checked_sub(1) else { return Ok(None) };
        let anchor = Anchor {
            anchor: Anchor::VERSION,
            sensor_id: self.sensor_id.clone(),
            public_key: self.key.public().to_string(),
            seq,
            head: self.prev.clone(),
            at: now(),
            sig: String::new(),
        };
        Ok(Some(anchor.signed(&self.key)?))
    }

    /// A second handle on the newest day file, for a thread that waits until it is on the disk.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn handle(&self) -> Result<Option<File>, LedgerError> {
        let handle =
            self.open.as_ref().map(|(path, file)| file.try_clone().map_err(LedgerError::io(path)));
        handle.transpose()
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
            // The day that ends has to be on the disk before its successors vouch for it.
            if let Some((_, before)) = self.open.replace((path.to_owned(), file)) {
                before.sync_data()?;
            }
        }
        match &mut self.open {
            Some((_, file)) => Ok(file),
            None => Err(io::Error::other("the day file is gone")),
        }
    }
}

/// Appends all of it or nothing.
pub(super) fn append_whole(file: &mut File, text: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    file.write_all(text).inspect_err(|_| {
        // A full disk takes a part. If even this fails, the reader skips the torn line.
        let _ = file.set_len(before);
    })
}

/// The end of one day file.
pub(super) struct End {
    seq: u64,
    hash: String,
    torn: Option<u64>,
    /// Whether it bears a signature that is not this sensor's.
    forged: bool,
    /// The last line that is one.
    line: Option<LedgerLine>,
    /// Whether what it says can be believed.
    believed: bool,
}

/// The chain's last line, if the sensor signed it, and the day file that it stands in.
pub(super) fn last_believed(
    layout: &Layout,
    sensor: &str,
    key: &PublicKey,
) -> io::Result<Option<(PathBuf, LedgerLine)>> {
    let dir = layout.ledger(sensor);
    let mut last: Option<(PathBuf, End)> = None;
    for name in layout::names_in(&dir)? {
        let path = dir.join(&name);
        if name.ends_with(".ndjson")
            && let Some(end) = last_line(&path, key)?
            && last.as_ref().is_none_or(|(_, last)| last.seq < end.seq)
        {
            last = Some((path, end));
        }
    }
    let last = last.filter(|(_, end)| end.believed);
    Ok(last.and_then(|(path, end)| Some((path, end.line?))))
}

/// The last line that is one, and the hash of what stands last (the same, or a torn line).
fn last_line(path: &Path, key: &PublicKey) -> io::Result<Option<End>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    // Day files are large and many, lines are short: look further back only if need be.
    let mut window = 1 << 16;
    loop {
        let from = len.saturating_sub(window);
        let mut tail = vec![0; usize::try_from(len - from).unwrap_or(0)];
        file.read_exact_at(&mut tail, from)?;
        let (end, certain) = end_of(&tail, key);
        if certain || from == 0 || window >= LINE_LIMIT {
            return Ok(end);
        }
        window *= 16;
    }
}

/// The notes of a day file's last lines.
fn newest_notes(path: &Path) -> io::Result<Vec<Note>> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    let bytes = usize::try_from(len.min(FORGETTING)).unwrap_or(0);
    let mut tail = vec![0; bytes];
    file.read_exact_at(&mut tail, len - bytes as u64)?;
    let lines = tail.split(|byte| *byte == b'\n');
    let lines = lines.filter_map(|line| serde_json::from_slice::<LedgerLine>(line).ok());
    Ok(lines.flat_map(|line| line.notes).collect())
}

/// The chain's end in the tail of a day file, and whether a longer tail could not change it.
fn end_of(tail: &[u8], key: &PublicKey) -> (Option<End>, bool) {
    let body = tail.strip_suffix(b"\n").unwrap_or(tail);
    let mut lines = body.rsplit(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Some(last) = lines.next() else { return (None, false) };
    let hash = blake3::hash(last).to_hex().to_string();
    if let Ok(line) = serde_json::from_slice::<LedgerLine>(last) {
        // Without its newline the line is complete all the same.
        let forged = signed::verify(key, Domain::LedgerLine, last) == Signature::Wrong;
        let (seq, believed) = (line.seq, !forged);
        return (Some(End { seq, hash, torn: None, forged, line: Some(line), believed }), true);
    }
    let before = lines.find_map(|text| {
        let line = serde_json::from_slice::<LedgerLine>(text).ok()?;
        Some((line, signed::verify(key, Domain::LedgerLine, text)))
    });
    let certain = before.is_some();
    let torn = Some(last.len() as u64);
    // The torn line took the place behind the last whole one.
    let mut end = End { seq: 0, hash, torn, forged: false, line: None, believed: false };
    if let Some((line, signature)) = before {
        end.seq = line.seq.saturating_add(1);
        (end.line, end.believed) = (Some(line), signature == Signature::Valid);
    }
    (Some(end), certain)
}

#[cfg(test)]
mod tests {
    use capture_flow::time::Nanos;

    use super::*;
    use crate::store::RunId;

    fn line(interval: u64) -> LedgerLine {
        let run = RunId::parse("20070202T000000Z-00000001").unwrap();
        LedgerLine::new("test", &run, interval, Nanos(0), Nanos(1))
    }

    #[test]
    fn a_line_that_failed_can_be_given_again_once_the_disk_takes_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = OwnedStore::open_or_create(&dir.path().join("store"), Some("test")).unwrap();
        let mut writer = LedgerWriter::open(&store).unwrap();
        let head = writer.append(&mut line(0)).unwrap();
        let day = store.layout().ledger_day("test", Nanos(1));
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        writer.open = Some((day.clone(), full));
        let mut second = line(1);
        assert!(writer.append(&mut second).is_err());
        assert_eq!(writer.head(), head);
        // What the disk took of it and did not give back.
        let mut text = std::fs::read(&day).unwrap();
        text.extend_from_slice(b"{\"v\":1,\"se");
        std::fs::write(&day, &text).unwrap();
        writer.append(&mut second).unwrap();
        assert_eq!((second.seq, second.prev.as_str()), (1, head.as_str()));
        let text = std::fs::read_to_string(&day).unwrap();
        assert_eq!(text.lines().count(), 3, "the torn line is one of its own: {text}");
    }
}
