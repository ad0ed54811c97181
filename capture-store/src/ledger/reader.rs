//! Reads the ledger, whatever state it is in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;

use crate::key::PublicKey;
use crate::layout;
use crate::store::Store;

use super::chain::{Chain, ChainFold, Place};
use super::line::{LedgerLine, Note, SealedFile};
use super::writer::LINE_LIMIT;

/// A line that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The day file.
    pub path: PathBuf,
    /// The line in it, from 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
    /// Whether it is the unfinished end of the file: a line being written, or torn by a kill.
    pub torn_end: bool,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LedgerRead {
    /// Lines whose interval overlaps the window, in the order of the chain.
    pub lines: Vec<LedgerLine>,
    /// The notes of other lines that were read for the chain, by their line's place in it.
    /// [`read_chained`] alone looks for them, and they are worth as much as the chain.
    pub other_notes: Vec<(u64, Vec<Note>)>,
    /// What could not be read.
    pub damage: Vec<Damage>,
}

/// Reads the lines whose interval overlaps the window (both ends included).
///
/// # Errors
/// A file cannot be read. Damaged lines are no error but part of the answer.
pub fn read(store: &Store, from: Nanos, to: Nanos) -> io::Result<LedgerRead> {
    let days = Days::of(store, from, to)?;
    let mut read = LedgerRead::default();
    let wanted = Wanted { from, to, other_notes: false };
    for path in &days.within {
        read_day(path, wanted, &mut read, None)?;
    }
    read.lines.sort_by_key(|line| line.seq);
    Ok(read)
}

/// The same, and whether the lines hold together: every link from the first line of the day of
/// `chained_from` to the last line read, the signature of that one, and of the last one of every run
/// before. A line whose links hold up to a signed one is vouched for by that signature. Lines from
/// `chained_from` on cannot be missing unnoticed.
///
/// `key` is the key to trust; `None` takes the one that the store names, and a store without a key
/// is looked at for its links alone.
///
/// # Errors
/// A file cannot be read. What does not hold is no error but part of the answer.
pub fn read_chained(
    store: &Store,
    key: Option<&PublicKey>,
    chained_from: Nanos,
    from: Nanos,
    to: Nanos,
) -> io::Result<(LedgerRead, Chain)> {
    let days = Days::of(store, chained_from.min(from), to)?;
    let key = key.copied().or_else(|| store.identity().public_key());
    let mut fold = ChainFold::new(key);
    let mut read = LedgerRead::default();
    let wanted = Wanted { from, to, other_notes: true };
    for path in &days.within {
        read_day(path, wanted, &mut read, Some(&mut fold))?;
    }
    // The chain is in the order of writing, the files in that of dates: after a replay into the
    // past, or a clock that was set back, links lead through other files. And what was cut off in
    // front can show only against what is before it.
    let all = days.others.is_empty() || fold.has_gaps() || fold.begins_behind(chained_from);
    if all {
        let mut others = LedgerRead::default();
        let wanted = Wanted { from: Nanos::MAX, to: Nanos::MIN, other_notes: true };
        for path in &days.others {
            read_day(path, wanted, &mut others, Some(&mut fold))?;
        }
        read.other_notes.append(&mut others.other_notes);
    }
    read.lines.sort_by_key(|line| line.seq);
    read.other_notes.sort_by_key(|(seq, _)| *seq);
    Ok((read, fold.finish(all)))
}

/// The day files of a ledger.
struct Days {
    /// Those that can hold lines of a window.
    within: Vec<PathBuf>,
    /// The others.
    others: Vec<PathBuf>,
}

impl Days {
    fn of(store: &Store, from: Nanos, to: Nanos) -> io::Result<Self> {
        let day = |at| {
            let path = store.layout().ledger_day(&store.identity().sensor, at);
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let (first, last) = (day(from), day(to));
        let mut days = Self { within: Vec::new(), others: Vec::new() };
        let mut ended = false;
        for path in day_files(store)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if ended || name < first {
                days.others.push(path);
                continue;
            }
            days.within.push(path);
            // A line lies in the file of its end, so one that reaches out of the window lies in the
            // next file that there is.
            ended = name > last;
        }
        Ok(days)
    }
}

/// The ledger's files, in the order of their dates.
///
/// # Errors
/// The directory cannot be read.
pub fn day_files(store: &Store) -> io::Result<Vec<PathBuf>> {
    let dir = store.layout().ledger(&store.identity().sensor);
    let names = layout::names_in(&dir)?;
    Ok(names.iter().filter(|name| name.ends_with(".ndjson")).map(|name| dir.join(name)).collect())
}

/// Those of them that can hold lines of a window.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn day_files_of(store: &Store, from: Nanos, to: Nanos) -> io::Result<Vec<PathBuf>> {
    Ok(Days::of(store, from, to)?.within)
}

/// What the ledger said when a file (by its path within the store) was sealed: the last word,
/// where there are several. Reads every line there is: for what hardly ever happens.
pub(crate) fn sealed_note(store: &Store, path: &str) -> io::Result<Option<SealedFile>> {
    let mut found = None;
    for day in day_files(store)? {
        for_each_line(&day, |_, text, _| {
            // Most lines have other files, or none: they need not be understood.
            if !text.windows(path.len()).any(|part| part == path.as_bytes()) {
                return;
            }
            let Ok(line) = serde_json::from_slice::<LedgerLine>(text) else { return };
            let sealed = line.notes.into_iter().rev().find_map(|note| match note {
                Note::Sealed(file) if file.path == path => Some(file),
                _ => None,
            });
            found = sealed.or(found.take());
        })?;
    }
    Ok(found)
}

/// Whether a line with this hash is in the ledger; the files written last are looked at first.
///
/// # Errors
/// A file cannot be read.
pub fn has_line(store: &Store, hash: &str) -> io::Result<bool> {
    let mut days = day_files(store)?;
    days.sort_by_key(|day| day.metadata().and_then(|metadata| metadata.modified()).ok());
    for day in days.iter().rev() {
        let mut found = false;
        for_each_line(day, |_, text, _| {
            found |= blake3::hash(text).to_hex().as_str() == hash;
        })?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Calls `each` with every line of a file: its number from 1, its text without the line's end, and
/// whether it has one.
///
/// # Errors
/// The file cannot be read.
pub fn for_each_line(path: &Path, mut each: impl FnMut(u64, &[u8], bool)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        if (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut text)? == 0 {
            break;
        }
        match text.strip_suffix(b"\n") {
            Some(line) => each(number, line, true),
            None => each(number, &text, false),
        }
    }
    Ok(())
}

/// What is wanted of the lines of a file.
#[derive(Clone, Copy)]
struct Wanted {
    /// Those that overlap this time.
    from: Nanos,
    to: Nanos,
    /// And the notes of all others.
    other_notes: bool,
}

fn read_day(
    path: &Path,
    wanted: Wanted,
    read: &mut LedgerRead,
    mut fold: Option<&mut ChainFold>,
) -> io::Result<()> {
    let mut place = Place { path: path.into(), line: 0 };
    let mut batch = Batch::default();
    let mut take = |batch: &mut Batch| {
        for (number, parsed) in batch.parse().into_iter().enumerate() {
            let Some((text, whole)) = batch.line(number) else { break };
            place.line += 1;
            match parsed {
                Ok((line, hash)) => {
                    if let Some(fold) = &mut fold {
                        fold.line(&place, text, hash, &line);
                    }
                    if line.overlaps(wanted.from, wanted.to) {
                        read.lines.push(line);
                    } else if wanted.other_notes && !line.notes.is_empty() {
                        read.other_notes.push((line.seq, line.notes));
                    }
                }
                Err(error) => {
                    if let Some(fold) = &mut fold {
                        fold.damaged(&place, text);
                    }
                    read.damage.push(Damage {
                        path: path.to_owned(),
                        line: place.line,
                        why: error.to_string(),
                        torn_end: !whole,
                    });
                }
            }
        }
        batch.clear();
    };
    for_each_line(path, |_, text, whole| {
        batch.add(text, whole);
        if batch.text.len() >= BATCH_BYTES {
            take(&mut batch);
        }
    })?;
    take(&mut batch);
    Ok(())
}

/// Lines that are parsed together: enough for every core to have something to do, and little memory.
const BATCH_BYTES: usize = 8 << 20;

/// Some lines of a file, all cores at their parsing.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    /// Where each line ends, and whether it has its own end in the file.
    ends: Vec<(usize, bool)>,
}

impl Batch {
    fn add(&mut self, text: &[u8], whole: bool) {
        self.text.extend_from_slice(text);
        self.ends.push((self.text.len(), whole));
    }

    fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
    }

    fn line(&self, number: usize) -> Option<(&[u8], bool)> {
        let (end, whole) = *self.ends.get(number)?;
        let begin = number.checked_sub(1).and_then(|before| self.ends.get(before));
        Some((self.text.get(begin.map_or(0, |(end, _)| *end)..end)?, whole))
    }

    /// Every line in order, with its hash.
    fn parse(&self) -> Vec<serde_json::Result<(LedgerLine, blake3::Hash)>> {
        let parsed = |number: usize| {
            let text = self.line(number).map_or(&[][..], |(text, _)| text);
            Ok((parse(text)?, blake3::hash(text)))
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let each = self.ends.len().div_ceil(threads).max(LEAST_LINES);
        let mut begins = (0..self.ends.len()).step_by(each);
        let part = |begin: usize| (begin..self.ends.len().min(begin + each)).map(parsed);
        let first = begins.next();
        std::thread::scope(|scope| {
            let others: Vec<_> =
                begins.map(|begin| scope.spawn(move || part(begin).collect::<Vec<_>>())).collect();
            let mut parsed: Vec<_> = first.into_iter().flat_map(part).collect();
            for other in others {
                // Nothing in it panics; if it did, so would whoever asked.
                parsed
                    .extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            parsed
        })
    }
}

/// A line of the ledger. Its encoding is looked at once, and not again for every word in it.
fn parse(text: &[u8]) -> serde_json::Result<LedgerLine> {
    match std::str::from_utf8(text) {
        Ok(text) => serde_json::from_str(text),
        // Says where.
        Err(_) => serde_json::from_slice(text),
    }
}

/// Fewer lines are not worth a thread.
const LEAST_LINES: usize = 256;
