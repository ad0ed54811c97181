//! Which sessions are in a segment, and where.
//!
//! A sealed segment has `<sequence>.idx`:
//!
//! ```text
//! header      256 bytes: fixed fields, sections, BLAKE3 of the rest of the header at its end
//! directory   24 bytes a session, sorted by FlowHash: hash, start in the postings, count, length
//! postings    per session its offsets, ascending: LEB128 of each difference
//! foreign     24 bytes each, sorted: hash, segment, offset: frames in older segments that were
//!             found to belong to a session only here (fragments completed later)
//! ```
//! All numbers are little-endian. [`SegmentIndex`] answers from it, or from the journal while the
//! segment is open, with the same calls. Every number read is checked against the file's size
//! before it is believed, so a damaged file costs an error and no memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::time::Nanos;

use crate::journal::{self, Fixed, JournalError, Notes, Progress, Snapshot};
use crate::layout;
use crate::pcap::{ReadError, SegmentReader};
use crate::provenance::Provenance;
use crate::segment::{INDEX, JOURNAL, PCAP};
use crate::store::Store;

const MAGIC: [u8; 8] = *b"SWINDEX1";
const HEADER_LEN: usize = 256;
/// Bytes of the header that its own hash covers.
const HASHED_LEN: usize = HEADER_LEN - 32;
const DIRECTORY_ENTRY: usize = 24;
const FOREIGN_ENTRY: usize = 24;
const RECOVERED: u64 = 1;
/// Entries that a walk passes in the time of one search.
const SEARCH_ENTRIES: u64 = 64;
/// Bytes that a number of the postings takes at most: a u32 as LEB128.
const VARINT_MOST: usize = 5;
/// Bytes of postings that are read at once.
const POSTINGS_CHUNK: usize = 1 << 16;
/// Entries that a walk reads at once.
const CHUNK_ENTRIES: usize = 4096;

/// What an index says about its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// Worker whose ring holds the segment.
    pub worker: u16,
    /// Sequence number within that ring.
    pub sequence: u64,
    /// How to read a frame's first byte.
    pub link_type: LinkType,
    /// Most bytes of a frame that are kept.
    pub snaplen: u32,
    /// Wall clock when the segment was prepared.
    pub created: Nanos,
    /// Bytes of packets that may be read.
    pub pcap_len: u64,
    /// Frames in them.
    pub frames: u64,
    /// Earliest frame; later than `last_ts` while there is none.
    pub first_ts: Nanos,
    /// Latest frame.
    pub last_ts: Nanos,
    /// Notes that found no room. Unless 0, the index does not know every frame of every session
    /// and the segment must be scanned.
    pub unnoted: u64,
    /// Whether it was sealed by the recovery after an unclean end.
    pub recovered: bool,
    /// Whose segment it is.
    pub provenance: Provenance,
}

impl IndexHeader {
    /// Whether any frame can lie in the window (both ends included).
    #[must_use]
    pub fn overlaps(&self, from: Nanos, to: Nanos) -> bool {
        self.first_ts <= to && self.last_ts >= from
    }
}

/// Why an index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// The kernel's answer.
    #[error("cannot read the index")]
    Io(#[from] io::Error),
    /// What it says cannot be.
    #[error("the index is damaged: {0}")]
    Damaged(&'static str),
    /// The segment is open and its journal is damaged.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Where sections lie, behind the fields of [`IndexHeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sections {
    flows: u64,
    postings_len: u64,
    foreign: u64,
}

impl Sections {
    fn postings_at(&self) -> u64 {
        HEADER_LEN as u64 + self.flows * DIRECTORY_ENTRY as u64
    }

    fn foreign_at(&self) -> u64 {
        self.postings_at() + self.postings_len
    }

    /// The file's length, if that is a number.
    fn file_len(&self) -> Option<u64> {
        let directory = self.flows.checked_mul(DIRECTORY_ENTRY as u64)?;
        let foreign = self.foreign.checked_mul(FOREIGN_ENTRY as u64)?;
        (HEADER_LEN as u64)
            .checked_add(directory)?
            .checked_add(self.postings_len)?
            .checked_add(foreign)
    }
}

/// Builds the sealed form of a segment's notes.
pub(crate) fn encode(header: &IndexHeader, notes: Notes) -> Vec<u8> {
    let Notes { flows, mut entries, mut foreign } = notes;
    // Sort by (FlowHash, offset) without carrying the hash along: rank the slots first. Slots of
    // one session (it came back after its mark was lost) share a rank.
    let mut slots: Vec<u32> = (0..flows.len() as u32).collect();
    let flow = |slot: u32| flows.get(slot as usize).copied().flatten();
    slots.sort_unstable_by_key(|slot| flow(*slot));
    let mut rank_of = vec![0_u32; flows.len()];
    let mut ranked: Vec<FlowHash> = Vec::new();
    for slot in slots {
        let Some(hash) = flow(slot) else { continue };
        if ranked.last() != Some(&hash) {
            ranked.push(hash);
        }
        if let Some(rank) = rank_of.get_mut(slot as usize) {
            *rank = (ranked.len() - 1) as u32;
        }
    }
    for entry in &mut entries {
        entry.0 = rank_of.get(entry.0 as usize).copied().unwrap_or(0);
    }
    entries.sort_unstable();
    entries.dedup();
    foreign.sort_unstable();
    foreign.dedup();

    let mut directory = Vec::with_capacity(ranked.len() * DIRECTORY_ENTRY);
    let mut postings = Vec::with_capacity(entries.len() * 2);
    let mut known = 0;
    for group in entries.chunk_by(|a, b| a.0 == b.0) {
        let Some(hash) = group.first().and_then(|(rank, _)| ranked.get(*rank as usize)) else {
            continue;
        };
        let start = postings.len();
        let mut last = 0;
        for (_, offset) in group {
            push_varint(&mut postings, offset - last);
            last = *offset;
        }
        directory.extend_from_slice(&hash.0.to_le_bytes());
        directory.extend_from_slice(&(start as u64).to_le_bytes());
        directory.extend_from_slice(&(group.len() as u32).to_le_bytes());
        directory.extend_from_slice(&((postings.len() - start) as u32).to_le_bytes());
        known += 1;
    }
    let sections = Sections {
        flows: known,
        postings_len: postings.len() as u64,
        foreign: foreign.len() as u64,
    };
    let mut bytes = encode_header(header, &sections).to_vec();
    bytes.append(&mut directory);
    bytes.append(&mut postings);
    for (hash, at) in foreign {
        bytes.extend_from_slice(&hash.0.to_le_bytes());
        bytes.extend_from_slice(&at.segment.to_le_bytes());
        bytes.extend_from_slice(&u64::from(at.offset).to_le_bytes());
    }
    bytes
}

fn encode_header(header: &IndexHeader, sections: &Sections) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    let words = [
        u64::from_le_bytes(MAGIC),
        u64::from(header.worker)
            | u64::from(header.link_type.0) << 16
            | u64::from(header.snaplen) << 32,
        header.sequence,
        header.created.0 as u64,
        header.pcap_len,
        header.frames,
        header.first_ts.0 as u64,
        header.last_ts.0 as u64,
        header.unnoted,
        (u64::from(header.recovered) * RECOVERED) | header.provenance.bits(),
        sections.flows,
        sections.postings_len,
        sections.foreign,
    ];
    for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    let hash = blake3::hash(&bytes[..HASHED_LEN]);
    bytes[HASHED_LEN..].copy_from_slice(hash.as_bytes());
    bytes
}

fn decode_header(bytes: &[u8; HEADER_LEN]) -> Result<(IndexHeader, Sections), IndexError> {
    if bytes[..8] != MAGIC {
        return Err(IndexError::Damaged("it does not begin like one"));
    }
    if blake3::hash(&bytes[..HASHED_LEN]).as_bytes()[..] != bytes[HASHED_LEN..] {
        return Err(IndexError::Damaged("the header's hash does not match"));
    }
    let word = |at: usize| u64_at(bytes, at * 8);
    let header = IndexHeader {
        worker: word(1) as u16,
        link_type: LinkType((word(1) >> 16) as u16),
        snaplen: (word(1) >> 32) as u32,
        sequence: word(2),
        created: Nanos(word(3) as i64),
        pcap_len: word(4),
        frames: word(5),
        first_ts: Nanos(word(6) as i64),
        last_ts: Nanos(word(7) as i64),
        unnoted: word(8),
        recovered: word(9) & RECOVERED != 0,
        provenance: Provenance::of_bits(word(9)),
    };
    let sections = Sections { flows: word(10), postings_len: word(11), foreign: word(12) };
    Ok((header, sections))
}

/// The number at `at`, zero where the bytes end before it.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u64::from_le_bytes(*word))
}

fn push_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads one number off the front.
fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0_u64;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(value).ok();
        }
    }
    None
}

/// Where a session's frames are, as far as one segment's index knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Postings {
    /// Offsets of records in this segment, ascending.
    pub offsets: Vec<u32>,
    /// Frames in older segments.
    pub foreign: Vec<PcapPosition>,
}

/// The index of one segment, sealed or open.
#[derive(Debug)]
pub struct SegmentIndex {
    header: IndexHeader,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Sealed { file: File, sections: Sections },
    Open(Notes),
}

impl SegmentIndex {
    /// Opens the index of segment `sequence` in a worker's directory: the sealed one if there is
    /// one, else the journal as it stands now.
    ///
    /// # Errors
    /// Neither exists (the segment was retired), or what is there is damaged.
    pub fn open(dir: &Path, sequence: u64) -> Result<Self, IndexError> {
        sealed_or_open(dir, sequence, Self::open_sealed, Self::open_journal)
    }

    /// Reads what the index of a segment says about it, and no more.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn read_header(dir: &Path, sequence: u64) -> Result<IndexHeader, IndexError> {
        sealed_or_open(
            dir,
            sequence,
            |path| Self::open_sealed(path).map(|index| index.header),
            |path| Ok(header_of_open(&journal::read_head(path)?)),
        )
    }

    /// What the index of a sealed segment says about it.
    pub(crate) fn sealed_header(dir: &Path, sequence: u64) -> Result<IndexHeader, IndexError> {
        let path = dir.join(layout::segment_name(sequence, INDEX));
        Self::open_sealed(&path).map(|index| index.header)
    }

    fn open_sealed(path: &Path) -> Result<Self, IndexError> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        if len < HEADER_LEN as u64 {
            return Err(IndexError::Damaged("it is too short"));
        }
        let mut bytes = [0; HEADER_LEN];
        file.read_exact_at(&mut bytes, 0)?;
        let (header, sections) = decode_header(&bytes)?;
        if sections.file_len() != Some(len) {
            return Err(IndexError::Damaged("its length is not what its header says"));
        }
        Ok(Self { header, source: Source::Sealed { file, sections } })
    }

    fn open_journal(path: &Path) -> Result<Self, IndexError> {
        let Snapshot { fixed, progress, notes } = Snapshot::read(path, None)?;
        let header = header_of_open(&(fixed, progress));
        Ok(Self { header, source: Source::Open(notes) })
    }

    /// What it says about the segment.
    #[must_use]
    pub fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// Whether the segment was still being filled when this was opened.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.source, Source::Open(_))
    }

    /// Where the frames of a session are.
    ///
    /// # Errors
    /// The file is damaged or unreadable.
    pub fn postings(&self, flow: FlowHash) -> Result<Postings, IndexError> {
        let mut found = match &self.source {
            Source::Sealed { file, sections } => self.sealed_postings(file, sections, flow)?,
            Source::Open(notes) => open_postings(notes, flow),
        };
        // A damaged offset must not lead a reader behind the committed end.
        found.offsets.retain(|offset| u64::from(*offset) < self.header.pcap_len);
        Ok(found)
    }

    /// Calls `found` for each of these sessions that has frames here. `flows` ascends. Asked for
    /// many sessions at once, the index is walked from one end to the other instead of being
    /// searched for each.
    ///
    /// # Errors
    /// The file is damaged or unreadable; `found` was called for what was read before.
    pub fn select(
        &self,
        flows: &[FlowHash],
        mut found: impl FnMut(FlowHash, Postings),
    ) -> Result<(), IndexError> {
        let entries = match &self.source {
            Source::Sealed { sections, .. } => sections.flows.saturating_add(sections.foreign),
            Source::Open(notes) => notes.entries.len() as u64,
        };
        let searches = match &self.source {
            // A search costs a read for each halving; a walk reads whole chunks.
            Source::Sealed { .. } => (flows.len() as u64).saturating_mul(SEARCH_ENTRIES) <= entries,
            // It looks at every entry either way.
            Source::Open(_) => flows.len() <= 1,
        };
        if searches {
            for flow in flows {
                let postings = self.postings(*flow)?;
                if postings != Postings::default() {
                    found(*flow, postings);
                }
            }
            return Ok(());
        }
        let mut all = match &self.source {
            Source::Sealed { file, sections } => self.walk_sealed(file, sections, flows)?,
            Source::Open(notes) => walk_open(notes, flows),
        };
        for (flow, postings) in &mut all {
            postings.offsets.retain(|offset| u64::from(*offset) < self.header.pcap_len);
            found(*flow, std::mem::take(postings));
        }
        Ok(())
    }

    fn walk_sealed(
        &self,
        file: &File,
        sections: &Sections,
        flows: &[FlowHash],
    ) -> Result<BTreeMap<FlowHash, Postings>, IndexError> {
        let mut all: BTreeMap<FlowHash, Postings> = BTreeMap::new();
        let mut wanted = flows.iter().peekable();
        walk::<DIRECTORY_ENTRY>(file, HEADER_LEN as u64, sections.flows, |entry| {
            let flow = FlowHash(u64_at(entry, 0));
            while wanted.next_if(|next| **next < flow).is_some() {}
            if wanted.next_if(|next| **next == flow).is_some() {
                all.entry(flow).or_default().offsets = read_offsets(file, sections, entry)?;
            }
            Ok(())
        })?;
        walk::<FOREIGN_ENTRY>(file, sections.foreign_at(), sections.foreign, |entry| {
            let flow = FlowHash(u64_at(entry, 0));
            if flows.binary_search(&flow).is_ok() {
                all.entry(flow).or_default().foreign.push(self.foreign(entry));
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn foreign(&self, entry: &[u8; FOREIGN_ENTRY]) -> PcapPosition {
        PcapPosition {
            worker: self.header.worker,
            segment: u64_at(entry, 8),
            offset: u64_at(entry, 16) as u32,
        }
    }

    fn sealed_postings(
        &self,
        file: &File,
        sections: &Sections,
        flow: FlowHash,
    ) -> Result<Postings, IndexError> {
        let mut found = Postings::default();
        let entry_at = |n: u64| HEADER_LEN as u64 + n * DIRECTORY_ENTRY as u64;
        let place = lower_bound::<DIRECTORY_ENTRY>(file, sections.flows, flow, entry_at)?;
        if place < sections.flows {
            let mut entry = [0; DIRECTORY_ENTRY];
            file.read_exact_at(&mut entry, entry_at(place))?;
            if u64_at(&entry, 0) == flow.0 {
                found.offsets = read_offsets(file, sections, &entry)?;
            }
        }
        let foreign_at = |n: u64| sections.foreign_at() + n * FOREIGN_ENTRY as u64;
        let mut place = lower_bound::<FOREIGN_ENTRY>(file, sections.foreign, flow, foreign_at)?;
        while place < sections.foreign {
            let mut entry = [0; FOREIGN_ENTRY];
            file.read_exact_at(&mut entry, foreign_at(place))?;
            if u64_at(&entry, 0) != flow.0 {
                break;
            }
            found.foreign.push(self.foreign(&entry));
            place += 1;
        }
        Ok(found)
    }
}

/// Reads the sealed index of a segment if there is one, else its journal as it stands now.
fn sealed_or_open<T>(
    dir: &Path,
    sequence: u64,
    sealed: impl Fn(&Path) -> Result<T, IndexError>,
    open: impl FnOnce(&Path) -> Result<T, IndexError>,
) -> Result<T, IndexError> {
    let index = dir.join(layout::segment_name(sequence, INDEX));
    match sealed(&index) {
        Err(IndexError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
        read => return read,
    }
    match open(&dir.join(layout::segment_name(sequence, JOURNAL))) {
        // Sealed between the two looks.
        Err(IndexError::Journal(JournalError::Io(error)))
            if error.kind() == io::ErrorKind::NotFound =>
        {
            sealed(&index)
        }
        read => read,
    }
}

fn header_of_open((fixed, progress): &(Fixed, Progress)) -> IndexHeader {
    IndexHeader {
        worker: fixed.worker,
        sequence: fixed.sequence,
        link_type: fixed.link_type,
        snaplen: fixed.snaplen,
        created: fixed.created,
        pcap_len: progress.committed,
        frames: progress.frames,
        first_ts: if progress.frames == 0 { Nanos::MAX } else { progress.first_ts },
        last_ts: if progress.frames == 0 { Nanos::MIN } else { progress.last_ts },
        unnoted: progress.unnoted,
        recovered: false,
        provenance: fixed.provenance,
    }
}

/// Visits `count` entries from byte `at` on.
fn walk<const LEN: usize>(
    file: &File,
    mut at: u64,
    mut count: u64,
    mut visit: impl FnMut(&[u8; LEN]) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let mut bytes = vec![0; CHUNK_ENTRIES * LEN];
    while count > 0 {
        let here = count.min(CHUNK_ENTRIES as u64);
        let chunk = bytes.get_mut(..here as usize * LEN).unwrap_or_default();
        file.read_exact_at(chunk, at)?;
        for entry in chunk.as_chunks::<LEN>().0 {
            visit(entry)?;
        }
        at += chunk.len() as u64;
        count -= here;
    }
    Ok(())
}

/// The first of `count` sorted entries whose hash is not below `flow`'s.
fn lower_bound<const LEN: usize>(
    file: &File,
    count: u64,
    flow: FlowHash,
    at: impl Fn(u64) -> u64,
) -> io::Result<u64> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let mut entry = [0; LEN];
        file.read_exact_at(&mut entry, at(middle))?;
        if u64_at(&entry, 0) < flow.0 {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

fn read_offsets(
    file: &File,
    sections: &Sections,
    entry: &[u8; DIRECTORY_ENTRY],
) -> Result<Vec<u32>, IndexError> {
    let (start, counts) = (u64_at(entry, 8), u64_at(entry, 16));
    let (count, len) = (counts as u32, counts >> 32);
    let end = start.checked_add(len).filter(|end| *end <= sections.postings_len);
    if end.is_none() || u64::from(count) > len || len > u64::from(count) * VARINT_MOST as u64 {
        return Err(IndexError::Damaged("a session's postings lie outside"));
    }
    // A length costs nothing to write, in a file with holes least of all: memory is taken for what
    // makes sense as it is read.
    let senseless = || IndexError::Damaged("a session's postings make no sense");
    let mut offsets: Vec<u32> = Vec::new();
    let (mut at, mut left) = (sections.postings_at() + start, len);
    let mut chunk = Vec::new();
    while left > 0 {
        let unread = chunk.len();
        let here = left.min((POSTINGS_CHUNK - unread) as u64);
        chunk.resize(unread + here as usize, 0);
        file.read_exact_at(chunk.get_mut(unread..).unwrap_or_default(), at)?;
        (at, left) = (at + here, left - here);
        let mut rest = chunk.as_slice();
        // A number may go on in the next chunk.
        while rest.len() >= VARINT_MOST || left == 0 && !rest.is_empty() {
            let last = offsets.last().copied();
            let next = take_varint(&mut rest).and_then(|delta| match last {
                None => Some(delta),
                // Two frames never begin at one place.
                Some(last) => last.checked_add(delta).filter(|next| *next > last),
            });
            offsets.push(next.ok_or_else(senseless)?);
        }
        let read = chunk.len() - rest.len();
        chunk.drain(..read);
    }
    if offsets.len() != count as usize {
        return Err(senseless());
    }
    Ok(offsets)
}

fn walk_open(notes: &Notes, flows: &[FlowHash]) -> BTreeMap<FlowHash, Postings> {
    let mut all: BTreeMap<FlowHash, Postings> = BTreeMap::new();
    let is_wanted = |flow: &FlowHash| flows.binary_search(flow).is_ok();
    let slots: Vec<Option<FlowHash>> =
        notes.flows.iter().map(|slot| slot.filter(is_wanted)).collect();
    for (slot, offset) in &notes.entries {
        if let Some(Some(flow)) = slots.get(*slot as usize) {
            all.entry(*flow).or_default().offsets.push(*offset);
        }
    }
    for (flow, at) in notes.foreign.iter().filter(|(flow, _)| is_wanted(flow)) {
        all.entry(*flow).or_default().foreign.push(*at);
    }
    for postings in all.values_mut() {
        postings.offsets.sort_unstable();
        postings.offsets.dedup();
        postings.foreign.sort_unstable();
        postings.foreign.dedup();
    }
    all
}

fn open_postings(notes: &Notes, flow: FlowHash) -> Postings {
    let is_ours = |slot: u32| notes.flows.get(slot as usize) == Some(&Some(flow));
    let mut offsets = Vec::new();
    if notes.flows.contains(&Some(flow)) {
        let ours = notes.entries.iter().filter(|(slot, _)| is_ours(*slot));
        offsets = ours.map(|(_, offset)| *offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
    }
    let mut foreign: Vec<_> =
        notes.foreign.iter().filter(|(hash, _)| *hash == flow).map(|(_, at)| *at).collect();
    foreign.sort_unstable();
    foreign.dedup();
    Postings { offsets, foreign }
}

/// One segment of a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentRef {
    /// Worker whose ring holds it.
    pub worker: u16,
    /// Sequence number within that ring.
    pub sequence: u64,
    /// The worker's directory.
    pub dir: PathBuf,
}

impl SegmentRef {
    /// Where its packets are.
    #[must_use]
    pub fn pcap_path(&self) -> PathBuf {
        self.dir.join(layout::segment_name(self.sequence, PCAP))
    }

    /// Opens its index.
    ///
    /// # Errors
    /// Those of [`SegmentIndex::open`].
    pub fn index(&self) -> Result<SegmentIndex, IndexError> {
        SegmentIndex::open(&self.dir, self.sequence)
    }

    /// Reads what its index says about it, and no more.
    ///
    /// # Errors
    /// Those of [`SegmentIndex::read_header`].
    pub fn header(&self) -> Result<IndexHeader, IndexError> {
        SegmentIndex::read_header(&self.dir, self.sequence)
    }

    /// Opens its packets, as far as they were committed when `index` was opened.
    ///
    /// # Errors
    /// Retired meanwhile, unreadable, or not a segment.
    pub fn packets(&self, index: &SegmentIndex) -> Result<SegmentReader, ReadError> {
        SegmentReader::open(&self.pcap_path(), index.header.pcap_len)
    }
}

/// Every segment of a store, by worker and sequence. A segment that is retired while a query runs
/// then answers with a missing file.
///
/// # Errors
/// A directory cannot be read.
pub fn segments(store: &Store) -> io::Result<Vec<SegmentRef>> {
    let mut found = Vec::new();
    for name in layout::names_in(&store.layout().pcap())? {
        let Some(worker) = layout::worker_of(&name) else { continue };
        let dir = store.layout().worker(worker);
        for name in layout::names_in(&dir)? {
            if let Some((sequence, PCAP)) = layout::parse_segment_name(&name) {
                found.push(SegmentRef { worker, sequence, dir: dir.clone() });
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The segment that a [`PcapPosition`] points into.
#[must_use]
pub fn segment_of(store: &Store, at: PcapPosition) -> SegmentRef {
    SegmentRef { worker: at.worker, sequence: at.segment, dir: store.layout().worker(at.worker) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An index of one session whose directory says that it has `count` frames in `len` bytes,
    /// over postings that are a hole.
    fn crafted(dir: &Path, count: u32, len: u32, postings_len: u64) -> SegmentIndex {
        let header = IndexHeader {
            worker: 0,
            sequence: 1,
            link_type: LinkType::ETHERNET,
            snaplen: 100,
            created: Nanos(0),
            pcap_len: u64::from(u32::MAX),
            frames: u64::from(count),
            first_ts: Nanos(0),
            last_ts: Nanos(0),
            unnoted: 0,
            recovered: false,
            provenance: Provenance::default(),
        };
        let sections = Sections { flows: 1, postings_len, foreign: 0 };
        let mut bytes = encode_header(&header, &sections).to_vec();
        bytes.extend_from_slice(&7_u64.to_le_bytes());
        bytes.extend_from_slice(&0_u64.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        let path = dir.join(layout::segment_name(1, INDEX));
        std::fs::write(&path, bytes).unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(sections.file_len().unwrap()).unwrap();
        SegmentIndex::open(dir, 1).unwrap()
    }

    #[test]
    fn a_crafted_index_gets_no_memory_for_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        for (count, len, postings_len) in [
            // Bytes for more than the numbers can take, or for fewer.
            (10, 51, 1 << 30),
            (10, 9, 1 << 30),
            // Outside.
            (10, 20, 19),
            // A hole is a row of zeros: frames at one place.
            (100_000_000, 100_000_000, 1 << 30),
            (2, 2, 2),
        ] {
            let index = crafted(dir.path(), count, len, postings_len);
            let single = index.postings(FlowHash(7));
            assert!(matches!(single, Err(IndexError::Damaged(_))), "{count} in {len}: {single:?}");
            let many = index.select(&[FlowHash(7), FlowHash(8)], |_, found| panic!("{found:?}"));
            assert!(matches!(many, Err(IndexError::Damaged(_))), "{count} in {len}");
        }
    }
}
