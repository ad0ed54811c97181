//! The journal of a segment being filled: which frames belong to which sessions, and how far the
//! segment is committed.
//!
//! It lies beside the segment as `<sequence>.idx.open`, mapped and populated like it, and makes
//! the open segment queryable without a scan and its recovery exact. All of it is 64-bit
//! little-endian words:
//!
//! ```text
//! words 0..9     fixed at creation (see `Fixed`), word 9 their checksum; the upper halves of words
//!                1 and 2 are the lower and the upper half of its provenance
//! words 64..72   counters, advanced once a batch (see `counter`)
//! words 512..    one word a note: session number << 32 | offset of the frame   (grows up)
//! …to the end    two words a slot: FlowHash, kind                               (grows down)
//! ```
//! A slot defines a session (its number is the slot's) or, with [`FOREIGN`], notes a frame of an
//! older segment: a fragment whose datagram was completed here. Unused words are zero.
//!
//! Readers use read(2) only: first the counters, then what they cover, so that they see nothing
//! half written. A word is stored whole, and words that the counters do not cover yet count for
//! nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_flow::time::Nanos;

use crate::mapped::{MapError, MappedFile};
use crate::provenance::Provenance;

const MAGIC: u64 = u64::from_le_bytes(*b"SWJRNL01");
/// Words of the part fixed at creation that the checksum covers.
const FIXED_WORDS: usize = 9;
/// Where notes begin.
const NOTES_AT: usize = 512;
/// Bit of a slot's kind word that marks a frame of an older segment.
const FOREIGN: u64 = 1 << 63;
/// Kind word of a session's definition: not zero, so that a defined slot is never all zero.
const DEFINED: u64 = 1;
/// The smallest journal: its header page and one page of notes.
pub(crate) const MIN_BYTES: usize = 8192;

mod counter {
    pub(super) const COMMITTED: usize = 64;
    pub(super) const FRAMES: usize = 65;
    pub(super) const FIRST_TS: usize = 66;
    pub(super) const LAST_TS: usize = 67;
    pub(super) const UNNOTED: usize = 68;
    pub(super) const SLOTS: usize = 69;
    pub(super) const NOTES: usize = 70;
}

/// What a journal says about its segment from the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Worker whose ring holds the segment.
    pub worker: u16,
    /// How to read a frame's first byte.
    pub link_type: LinkType,
    /// Most bytes of a frame that are kept.
    pub snaplen: u32,
    /// Sequence number within the worker's ring.
    pub sequence: u64,
    /// Bytes allocated for the segment.
    pub pcap_bytes: u64,
    /// Bytes of the journal itself.
    pub journal_bytes: u64,
    /// Wall clock when the segment was prepared.
    pub created: Nanos,
    /// The kernel's boot id: another one at recovery means that pages may have been lost.
    pub boot_id: u128,
    /// Whose it is.
    pub provenance: Provenance,
}

impl Fixed {
    fn encode(self) -> [u64; FIXED_WORDS + 1] {
        let mut words = [0; FIXED_WORDS + 1];
        words[0] = MAGIC;
        let provenance = self.provenance.bits();
        words[1] = u64::from(self.worker) | u64::from(self.link_type.0) << 16 | provenance << 32;
        words[2] = u64::from(self.snaplen) | provenance >> 32 << 32;
        words[3] = self.sequence;
        words[4] = self.pcap_bytes;
        words[5] = self.journal_bytes;
        words[6] = self.created.0 as u64;
        words[7] = self.boot_id as u64;
        words[8] = (self.boot_id >> 64) as u64;
        words[FIXED_WORDS] = checksum(&words[..FIXED_WORDS]);
        words
    }

    fn decode(words: &[u64; FIXED_WORDS + 1]) -> Option<Self> {
        if words[0] != MAGIC || words[FIXED_WORDS] != checksum(&words[..FIXED_WORDS]) {
            return None;
        }
        Some(Self {
            worker: words[1] as u16,
            link_type: LinkType((words[1] >> 16) as u16),
            snaplen: words[2] as u32,
            sequence: words[3],
            pcap_bytes: words[4],
            journal_bytes: words[5],
            created: Nanos(words[6] as i64),
            boot_id: u128::from(words[7]) | u128::from(words[8]) << 64,
            provenance: Provenance::of_bits(words[1] >> 32 | words[2] >> 32 << 32),
        })
    }
}

fn checksum(words: &[u64]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for word in words {
        hasher.update(&word.to_le_bytes());
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// The kernel's boot id, or zero where it cannot be read.
pub(crate) fn boot_id() -> u128 {
    let text = crate::boot::boot_id().unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&hex, 16).unwrap_or(0)
}

fn bytes_of(fixed: &Fixed) -> usize {
    usize::try_from(fixed.journal_bytes).unwrap_or(usize::MAX)
}

/// How far a segment is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the segment that may be read.
    pub committed: u64,
    /// Frames in them.
    pub frames: u64,
    /// Earliest frame; meaningless while there is none.
    pub first_ts: Nanos,
    /// Latest frame.
    pub last_ts: Nanos,
    /// Notes that found no room: with any, the index does not know every frame.
    pub unnoted: u64,
}

/// The journal as its writer holds it.
#[derive(Debug)]
pub(crate) struct Journal {
    file: MappedFile,
    fixed: Fixed,
    /// Marks of this segment carry it in their upper half; never 0, which is a fresh mark's.
    tag: u32,
    /// Word of the next note.
    next: usize,
    /// Lowest word taken by slots.
    low: usize,
    slots: u32,
    unnoted: u64,
}

impl Journal {
    /// Creates the journal of an empty segment.
    pub(crate) fn create(path: &Path, fixed: Fixed) -> Result<Self, MapError> {
        Ok(Self::begin(MappedFile::create(path, bytes_of(&fixed))?, fixed))
    }

    /// The same in memory alone.
    pub(crate) fn in_memory(fixed: Fixed) -> Result<Self, MapError> {
        Ok(Self::begin(MappedFile::in_memory(bytes_of(&fixed))?, fixed))
    }

    /// The journal of the next segment, in the memory of this one; as large as this one. What it
    /// noted is left in the memory behind the counters, which do not cover it any more: nobody
    /// else may read it.
    pub(crate) fn again(self, fixed: Fixed) -> Self {
        let journal_bytes = self.fixed.journal_bytes;
        Self::begin(self.file, Fixed { journal_bytes, ..fixed })
    }

    fn begin(file: MappedFile, fixed: Fixed) -> Self {
        let words = file.words();
        for (word, value) in words.iter().zip(fixed.encode()) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        // An even number of words behind the notes, so that slots fill it exactly.
        let low = words.len() & !1;
        let tag = (fixed.sequence % u64::from(u32::MAX)) as u32 + 1;
        Self { file, fixed, tag, next: NOTES_AT, low, slots: 0, unnoted: 0 }
    }

    pub(crate) fn fixed(&self) -> &Fixed {
        &self.fixed
    }

    /// Whether `notes` more notes fit even if every one of them is for a new session.
    #[inline]
    pub(crate) fn fits(&self, notes: usize) -> bool {
        self.low.saturating_sub(self.next) / 3 >= notes
    }

    /// Notes that the frame at `offset` of this segment belongs to a session.
    #[inline]
    pub(crate) fn note(&mut self, offset: u32, flow: FlowHash, mark: &mut Mark) {
        let number = if (mark.0 >> 32) as u32 == self.tag {
            mark.0 as u32
        } else {
            match self.take_slot(flow, DEFINED) {
                Some(number) => {
                    *mark = Mark(u64::from(self.tag) << 32 | u64::from(number));
                    number
                }
                None => return,
            }
        };
        if self.next < self.low
            && let Some(word) = self.file.words().get(self.next)
        {
            word.store((u64::from(number) << 32 | u64::from(offset)).to_le(), Ordering::Relaxed);
            self.next += 1;
        } else {
            self.unnoted += 1;
        }
    }

    /// Notes that a frame of an older segment belongs to a session.
    #[cold]
    pub(crate) fn note_foreign(&mut self, at: PcapPosition, flow: FlowHash) {
        let distance = self.fixed.sequence.checked_sub(at.segment);
        match distance.and_then(|distance| u32::try_from(distance).ok()) {
            Some(distance) if distance < 1 << 31 => {
                let kind = FOREIGN | u64::from(distance) << 32 | u64::from(at.offset);
                self.take_slot(flow, kind);
            }
            _ => self.unnoted += 1,
        }
    }

    #[cold]
    fn take_slot(&mut self, flow: FlowHash, kind: u64) -> Option<u32> {
        let words = self.file.words();
        // One word must stay for the note that follows a definition.
        let low = self.low.checked_sub(2).filter(|low| *low > self.next);
        let slot = low.and_then(|low| words.get(low..low + 2));
        let (Some(low), Some([hash, kind_word])) = (low, slot) else {
            self.unnoted += 1;
            return None;
        };
        hash.store(flow.0.to_le(), Ordering::Relaxed);
        // A slot of a killed process has its kind only if it has its hash.
        compiler_fence(Ordering::Release);
        kind_word.store(kind.to_le(), Ordering::Relaxed);
        let number = self.slots;
        self.low = low;
        self.slots += 1;
        Some(number)
    }

    /// Lets readers see the notes so far and `progress` of the segment.
    pub(crate) fn publish(&self, progress: &Progress) {
        let words = self.file.words();
        let store = |at: usize, value: u64, order: Ordering| {
            if let Some(word) = words.get(at) {
                word.store(value.to_le(), order);
            }
        };
        store(counter::FRAMES, progress.frames, Ordering::Relaxed);
        store(counter::FIRST_TS, progress.first_ts.0 as u64, Ordering::Relaxed);
        store(counter::LAST_TS, progress.last_ts.0 as u64, Ordering::Relaxed);
        store(counter::UNNOTED, self.unnoted, Ordering::Relaxed);
        // What a later counter names, an earlier one already covers.
        store(counter::COMMITTED, progress.committed, Ordering::Release);
        store(counter::SLOTS, u64::from(self.slots), Ordering::Release);
        store(counter::NOTES, (self.next - NOTES_AT) as u64, Ordering::Release);
    }

    pub(crate) fn unnoted(&self) -> u64 {
        self.unnoted
    }

    /// The content for the index, out of memory.
    pub(crate) fn notes(&self, committed: u64) -> Notes {
        let words = self.file.words();
        let word = |at: usize| {
            words.get(at).map_or(0, |w: &AtomicU64| u64::from_le(w.load(Ordering::Relaxed)))
        };
        let total = words.len() & !1;
        let mut notes = Notes::default();
        for slot in 0..self.slots as usize {
            let at = total - 2 * (slot + 1);
            notes.slot(word(at), word(at + 1), self.fixed.worker, self.fixed.sequence);
        }
        notes.entries.reserve(self.next - NOTES_AT);
        for at in NOTES_AT..self.next {
            notes.note(word(at), committed);
        }
        notes
    }
}

/// Notes of one segment, as read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notes {
    /// Session of each slot number; `None` for a foreign slot.
    pub(crate) flows: Vec<Option<FlowHash>>,
    /// (slot number, offset), in the order of noting.
    pub(crate) entries: Vec<(u32, u32)>,
    /// Frames of older segments.
    pub(crate) foreign: Vec<(FlowHash, PcapPosition)>,
}

impl Notes {
    fn slot(&mut self, hash: u64, kind: u64, worker: u16, sequence: u64) {
        let flow = FlowHash(hash);
        if kind & FOREIGN == 0 {
            self.flows.push(Some(flow));
            return;
        }
        self.flows.push(None);
        let distance = kind >> 32 & 0x7fff_ffff;
        if let Some(segment) = sequence.checked_sub(distance) {
            self.foreign.push((flow, PcapPosition { worker, segment, offset: kind as u32 }));
        }
    }

    /// Takes a note if it names a session that exists and a frame that is committed.
    fn note(&mut self, word: u64, committed: u64) -> bool {
        let (number, offset) = ((word >> 32) as u32, word as u32);
        let known = matches!(self.flows.get(number as usize), Some(Some(_)));
        let fits = u64::from(offset) < committed && offset != 0;
        if known && fits {
            self.entries.push((number, offset));
        }
        known && fits
    }
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel's answer.
    #[error("cannot read the journal")]
    Io(#[from] io::Error),
    /// It is not one, or its header is damaged.
    #[error("the journal's header is damaged")]
    Damaged,
}

/// A journal as a reader sees it at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) fixed: Fixed,
    pub(crate) progress: Progress,
    pub(crate) notes: Notes,
}

impl Snapshot {
    /// Reads a journal, which its writer may go on filling. With `beyond`, notes that were made
    /// but not yet published are taken too, for frames below that length: for recovery, when
    /// there is no writer any more.
    pub(crate) fn read(path: &Path, beyond: Option<u64>) -> Result<Self, JournalError> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let fixed = read_fixed(&file, len)?;
        // Counters twice: notes from the first look, what they lean on from the second.
        let first = Counters::read(&file)?;
        let again = Counters::read(&file)?;
        let progress = again.progress(&fixed);
        // The file's own size bounds every count, so a damaged one costs no memory.
        let total = (len.min(fixed.journal_bytes) / 8) as usize & !1;
        let room = total.saturating_sub(NOTES_AT);
        let (mut slots, mut noted) = (
            usize::try_from(again.get(counter::SLOTS)).unwrap_or(room).min(room / 2),
            usize::try_from(first.get(counter::NOTES)).unwrap_or(room).min(room),
        );
        if beyond.is_some() {
            slots = room / 2;
            noted = room;
        }
        let mut notes = Notes::default();
        for_words_down(&file, total, slots, |hash, kind| {
            // Slots are taken in order. What follows the last is zero, or in a full journal a note,
            // which can be neither kind.
            let used = kind == DEFINED || kind & FOREIGN != 0;
            if used {
                notes.slot(hash, kind, fixed.worker, fixed.sequence);
            }
            used
        })?;
        let noted = noted.min(room.saturating_sub(2 * notes.flows.len()));
        let committed = beyond.unwrap_or(progress.committed);
        for_words_up(&file, NOTES_AT, noted, |word| {
            notes.note(word, committed);
            word != 0
        })?;
        Ok(Self { fixed, progress, notes })
    }
}

/// Reads how far a segment is filled, without its notes.
pub(crate) fn read_head(path: &Path) -> Result<(Fixed, Progress), JournalError> {
    let file = File::open(path)?;
    let fixed = read_fixed(&file, file.metadata()?.len())?;
    let progress = Counters::read(&file)?.progress(&fixed);
    Ok((fixed, progress))
}

/// The counters as they are read at one moment.
struct Counters(Vec<u64>);

impl Counters {
    fn read(file: &File) -> io::Result<Self> {
        read_words(file, counter::COMMITTED, 8).map(Self)
    }

    fn get(&self, at: usize) -> u64 {
        self.0.get(at - counter::COMMITTED).copied().unwrap_or(0)
    }

    fn progress(&self, fixed: &Fixed) -> Progress {
        Progress {
            committed: self.get(counter::COMMITTED).min(fixed.pcap_bytes),
            frames: self.get(counter::FRAMES),
            first_ts: Nanos(self.get(counter::FIRST_TS) as i64),
            last_ts: Nanos(self.get(counter::LAST_TS) as i64),
            unnoted: self.get(counter::UNNOTED),
        }
    }
}

fn read_fixed(file: &File, len: u64) -> Result<Fixed, JournalError> {
    if len < MIN_BYTES as u64 {
        return Err(JournalError::Damaged);
    }
    let words = read_words(file, 0, FIXED_WORDS + 1)?;
    let words = words.first_chunk().ok_or(JournalError::Damaged)?;
    Fixed::decode(words).ok_or(JournalError::Damaged)
}

fn read_words(file: &File, at: usize, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, at as u64 * 8)?;
    Ok(words_of(&bytes).collect())
}

fn words_of(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

/// Words read in one go.
const CHUNK_WORDS: usize = 1 << 16;

/// Visits `count` words from word `at` on until `visit` returns false.
fn for_words_up(
    file: &File,
    mut at: usize,
    mut count: usize,
    mut visit: impl FnMut(u64) -> bool,
) -> io::Result<()> {
    while count > 0 {
        let here = count.min(CHUNK_WORDS);
        for word in read_words(file, at, here)? {
            if !visit(word) {
                return Ok(());
            }
        }
        at += here;
        count -= here;
    }
    Ok(())
}

/// Visits `count` pairs of words below word `end`, downwards, until `visit` returns false.
fn for_words_down(
    file: &File,
    mut end: usize,
    mut count: usize,
    mut visit: impl FnMut(u64, u64) -> bool,
) -> io::Result<()> {
    while count > 0 {
        let here = count.min(CHUNK_WORDS / 2).min(end / 2);
        if here == 0 {
            break;
        }
        let words = read_words(file, end - 2 * here, 2 * here)?;
        for pair in words.as_chunks::<2>().0.iter().rev() {
            if !visit(pair[0], pair[1]) {
                return Ok(());
            }
        }
        end -= 2 * here;
        count -= here;
    }
    Ok(())
}
