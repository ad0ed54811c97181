//! Keeps the store within its budgets by removing the oldest.
//!
//! What is oldest is decided by sequence numbers and by when files were made, never by packet
//! times, which are foreign input. A worker's newest sealed segment always stays: its number
//! keeps later ones apart from those that session rows still name.
//!
//! Nothing goes without a word: each removed file is named to the ledger with the times of what
//! was in it, from its own index, from the ledger's note of its sealing, or from its frames.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;

use crate::index::SegmentIndex;
use crate::layout;
use crate::ledger::{Note, SealedFile, sealed_note};
use crate::pcap::SegmentReader;
use crate::segment::{DAMAGED, INDEX, JOURNAL, PCAP};
use crate::sessions::partitions;
use crate::store::OwnedStore;

/// Bytes that a store may take. `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// For segments with their indexes, open and prepared ones included at their full size.
    pub packets: Option<u64>,
    /// For the session log.
    pub sessions: Option<u64>,
}

/// What a store takes, and what was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Bytes of segments and what lies beside them left.
    pub packet_bytes: u64,
    /// Bytes of the session log left.
    pub session_bytes: u64,
    /// Removed segments (by their packets' file), session files and damaged files, oldest first,
    /// for the ledger.
    pub files: Vec<SealedFile>,
    /// What else an operator should know of them.
    pub said: Vec<String>,
}

/// Why the budgets could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove what is too old")]
pub struct RetireError {
    /// What was removed all the same.
    pub retired: Box<Retired>,
    /// The kernel's answer, the first where there were several.
    #[source]
    pub source: io::Error,
}

/// Keeps a store within its budgets. Remembers what sealed files are like, since they do not
/// change: only new ones are looked into.
#[derive(Debug, Default)]
pub struct Retention {
    segments: BTreeMap<(u16, u64), Known>,
    sessions: BTreeMap<PathBuf, u64>,
}

/// A sealed segment. What its index says is missing where the index cannot be read.
#[derive(Clone, Copy, Debug)]
struct Known {
    created: Option<Nanos>,
    extent: Option<Extent>,
    bytes: u64,
}

/// How many frames or rows, the first and the last.
type Extent = (u64, Nanos, Nanos);

/// What lies in a worker's directory under one sequence number.
#[derive(Clone, Copy, Debug, Default)]
struct Parts {
    packets: bool,
    index: bool,
    journal: bool,
    damaged: bool,
}

/// Something that may be removed.
struct Candidate {
    sequence: u64,
    parts: Parts,
    /// As old as its place in the ring says where it does not say so itself.
    created: Nanos,
    known: Known,
}

/// One worker's sealed segments, oldest first.
struct Ring {
    dir: PathBuf,
    sealed: VecDeque<Candidate>,
}

impl Retention {
    /// Removes the oldest sealed segments and session files until both budgets are kept, or
    /// nothing is left that may be removed. Blocks: call it on a helper thread.
    ///
    /// # Errors
    /// A directory cannot be read or a file not be removed. The error's `retired` says what was
    /// done all the same.
    pub fn keep(&mut self, store: &OwnedStore, budgets: &Budgets) -> Result<Retired, RetireError> {
        let mut retiring = Retiring { store, retired: Retired::default(), failure: None };
        let packets = self.keep_packets(&mut retiring, budgets.packets);
        let sessions = self.keep_sessions(&mut retiring, budgets.sessions);
        let Retiring { retired, failure, .. } = retiring;
        match packets.err().or(sessions.err()).or(failure) {
            None => Ok(retired),
            Some(source) => Err(RetireError { retired: Box::new(retired), source }),
        }
    }

    fn keep_packets(&mut self, retiring: &mut Retiring<'_>, budget: Option<u64>) -> io::Result<()> {
        let layout = retiring.store.layout().clone();
        let mut rings = Vec::new();
        let mut seen = BTreeMap::new();
        for name in layout::names_in(&layout.pcap())? {
            let Some(worker) = layout::worker_of(&name) else { continue };
            let dir = layout.worker(worker);
            let ring = self.ring(worker, dir, &mut seen, &mut retiring.retired.packet_bytes)?;
            rings.push(ring);
        }
        // What is gone needs no place in memory.
        self.segments = seen;
        let Some(budget) = budget else { return Ok(()) };
        while retiring.retired.packet_bytes > budget {
            let oldest = rings
                .iter_mut()
                .filter(|ring| ring.sealed.len() > 1)
                .min_by_key(|ring| ring.sealed.front().map_or(Nanos::MAX, |first| first.created));
            let Some(ring) = oldest else { break };
            let Some(candidate) = ring.sealed.pop_front() else { break };
            retiring.segment(ring, &candidate);
        }
        Ok(())
    }

    /// What one worker has. Adds up the bytes of everything.
    fn ring(
        &self,
        worker: u16,
        dir: PathBuf,
        seen: &mut BTreeMap<(u16, u64), Known>,
        bytes: &mut u64,
    ) -> io::Result<Ring> {
        let mut sealed: VecDeque<Candidate> = VecDeque::new();
        for (sequence, parts) in parts_in(&dir)? {
            let size = |extension| size_of(&dir.join(layout::segment_name(sequence, extension)));
            if parts.is_open(&dir, sequence) {
                *bytes = bytes.saturating_add(size(PCAP)?).saturating_add(size(JOURNAL)?);
                continue;
            }
            let remembered = self.segments.get(&(worker, sequence)).copied();
            // An index that could not be read may be readable now; a journal goes at last.
            let is_final = |known: &Known| known.extent.is_some() && !parts.journal;
            let known = match remembered.filter(is_final) {
                Some(known) => known,
                None => {
                    let sizes = [size(PCAP)?, size(INDEX)?, size(JOURNAL)?, size(DAMAGED)?];
                    let header = SegmentIndex::sealed_header(&dir, sequence).ok();
                    Known {
                        created: header.map(|header| header.created),
                        extent: header.map(|h| (h.frames, h.first_ts, h.last_ts)),
                        bytes: sizes.into_iter().fold(0, u64::saturating_add),
                    }
                }
            };
            seen.insert((worker, sequence), known);
            *bytes = bytes.saturating_add(known.bytes);
            let before = sealed.back().map_or(Nanos::MIN, |last| last.created);
            let created = known.created.map_or(before, |created| created.max(before));
            sealed.push_back(Candidate { sequence, parts, created, known });
        }
        Ok(Ring { dir, sealed })
    }

    fn keep_sessions(
        &mut self,
        retiring: &mut Retiring<'_>,
        budget: Option<u64>,
    ) -> io::Result<()> {
        let layout = retiring.store.layout().clone();
        // By name, which begins with the run's time and ends with the file's number.
        let mut files: BTreeMap<(String, PathBuf), u64> = BTreeMap::new();
        let mut total = 0_u64;
        let live = layout.live();
        for name in layout::names_in(&live)? {
            let (path, stem) = (live.join(&name), name.split('.').next().unwrap_or_default());
            let bytes = size_of(&path)?;
            total = total.saturating_add(bytes);
            if path.extension().is_some_and(|extension| extension == DAMAGED) {
                files.insert((stem.to_owned(), path), bytes);
            }
        }
        let mut seen = BTreeMap::new();
        for hour in hours(&layout.sessions())? {
            let names = layout::names_in(&hour)?;
            if names.is_empty() && budget.is_some() {
                remove_hour(&hour);
            }
            for name in names {
                let Some(stem) = name.strip_suffix(".parquet") else { continue };
                let path = hour.join(&name);
                let bytes = match self.sessions.get(&path) {
                    Some(bytes) => *bytes,
                    None => size_of(&path)?,
                };
                total = total.saturating_add(bytes);
                seen.insert(path.clone(), bytes);
                files.insert((stem.to_owned(), path), bytes);
            }
        }
        self.sessions = seen;
        retiring.retired.session_bytes = total;
        let Some(budget) = budget else { return Ok(()) };
        for ((_, path), bytes) in files {
            if retiring.retired.session_bytes <= budget {
                break;
            }
            retiring.session_file(&path, bytes);
        }
        Ok(())
    }
}

/// A removal under way.
struct Retiring<'a> {
    store: &'a OwnedStore,
    retired: Retired,
    /// The first file that could not be removed. The others go all the same.
    failure: Option<io::Error>,
}

impl Retiring<'_> {
    fn segment(&mut self, ring: &Ring, candidate: &Candidate) {
        let path = |extension| ring.dir.join(layout::segment_name(candidate.sequence, extension));
        let bytes = candidate.known.bytes;
        let aside = if candidate.parts.damaged { size_of(&path(DAMAGED)).unwrap_or(0) } else { 0 };
        if candidate.parts.packets {
            let packets = path(PCAP);
            let extent = candidate.known.extent.or_else(|| self.extent_of_segment(&packets));
            // Packets first: an index without packets is removed by the next start, packets
            // without an index would look like an unsealed segment.
            if !self.remove(&packets, bytes.saturating_sub(aside), extent) {
                return;
            }
        }
        if candidate.parts.damaged {
            self.remove(&path(DAMAGED), aside, Some(NOTHING));
        }
        for extension in [INDEX, JOURNAL] {
            if let Err(error) = layout::remove_if_there(&path(extension)) {
                self.failure.get_or_insert(error);
            }
        }
        self.retired.packet_bytes = self.retired.packet_bytes.saturating_sub(bytes);
    }

    fn session_file(&mut self, path: &Path, bytes: u64) {
        let extent = if path.extension().is_some_and(|extension| extension == DAMAGED) {
            Some(NOTHING)
        } else {
            crate::sessions::extent(path).or_else(|| self.extent_in_ledger(path))
        };
        if self.remove(path, bytes, extent) {
            self.retired.session_bytes = self.retired.session_bytes.saturating_sub(bytes);
            if let Some(hour) = path.parent().filter(|hour| *hour != self.store.layout().live()) {
                remove_hour(hour);
            }
        }
    }

    /// Removes a file and tells of it. Without an extent anything may have been in it.
    fn remove(&mut self, path: &Path, bytes: u64, extent: Option<Extent>) -> bool {
        let name = self.name_of(path);
        let (items, first_ts, last_ts) = extent.unwrap_or(ANYTHING);
        let path_of = name.clone();
        let file = SealedFile { path: path_of, bytes, blake3: None, items, first_ts, last_ts };
        // Before it is done: a file that is missing without a word looks like a theft.
        self.store.owe(&[Note::Retired(file.clone())]);
        if let Err(error) = layout::remove_if_there(path) {
            self.store.disown(Note::Retired(file));
            self.failure.get_or_insert(error);
            return false;
        }
        if extent.is_none() {
            self.retired.said.push(format!(
                "{name} was removed to keep the budget; it was damaged, so that nobody knows of \
                 which time it was"
            ));
        }
        self.retired.files.push(file);
        true
    }

    /// What a segment without a usable index holds.
    fn extent_of_segment(&self, path: &Path) -> Option<Extent> {
        self.extent_in_ledger(path).or_else(|| {
            let mut extent = NOTHING;
            let reader = SegmentReader::open(path, u64::MAX).ok()?;
            reader
                .scan(|_, record, _| {
                    extent.0 += 1;
                    extent.1 = extent.1.min(record.ts());
                    extent.2 = extent.2.max(record.ts());
                    true
                })
                .ok()?;
            (extent.0 > 0).then_some(extent)
        })
    }

    /// What the ledger said when the file was sealed.
    fn extent_in_ledger(&self, path: &Path) -> Option<Extent> {
        let note = sealed_note(self.store.store(), &self.name_of(path)).ok().flatten();
        note.map(|file| (file.items, file.first_ts, file.last_ts))
    }

    fn name_of(&self, path: &Path) -> String {
        let root = self.store.layout().root();
        path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
    }
}

/// No frame and no row: the first moment is behind the last.
const NOTHING: Extent = (0, Nanos::MAX, Nanos::MIN);
/// What is said of a file of which nothing is known.
const ANYTHING: Extent = (0, Nanos::MIN, Nanos::MAX);

impl Parts {
    /// Whether a worker may be filling it, or it waits to be sealed. A segment without either
    /// index or journal was perhaps made while the directory was read: its journal tells.
    fn is_open(self, dir: &Path, sequence: u64) -> bool {
        let is_there = |extension| dir.join(layout::segment_name(sequence, extension)).exists();
        !self.index && (self.journal || self.packets && is_there(JOURNAL))
    }
}

/// Everything in a worker's directory, by sequence number.
fn parts_in(dir: &Path) -> io::Result<BTreeMap<u64, Parts>> {
    let mut found: BTreeMap<u64, Parts> = BTreeMap::new();
    for name in layout::names_in(dir)? {
        let Some((sequence, extension)) = layout::parse_segment_name(&name) else { continue };
        let parts: fn(&mut Parts) -> &mut bool = match extension {
            PCAP => |parts| &mut parts.packets,
            INDEX => |parts| &mut parts.index,
            JOURNAL => |parts| &mut parts.journal,
            DAMAGED => |parts| &mut parts.damaged,
            _ => continue,
        };
        *parts(found.entry(sequence).or_default()) = true;
    }
    Ok(found)
}

/// The directories of all hours of the session log.
fn hours(sessions: &Path) -> io::Result<Vec<PathBuf>> {
    let mut hours = Vec::new();
    for sensor in partitions(sessions, "sensor=")? {
        for date in partitions(&sensor, "date=")? {
            hours.extend(partitions(&date, "hour=")?);
        }
    }
    Ok(hours)
}

/// Removes the directory of an hour, and of its day, once nothing is in it.
fn remove_hour(hour: &Path) {
    if fs::remove_dir(hour).is_ok()
        && let Some(date) = hour.parent()
    {
        let _ = fs::remove_dir(date);
    }
}

/// A file's size; nothing for one that is gone.
fn size_of(path: &Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
