//! A packet segment's life: prepared by a helper, filled by a worker, sealed by a helper.
//!
//! ```text
//! prepare ──▶ PreparedSegment ──activate──▶ ActiveSegment ──finish──▶ FilledSegment ──seal──▶ SealedSegment
//! (helper: allocate, map, populate)   (worker: copies only)     (helper: truncate, index, hash)
//! ```

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{Ordering, compiler_fence};

use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::Mark;
use capture_flow::time::Nanos;

use crate::index::{self, IndexHeader};
use crate::journal::{self, Fixed, Journal, JournalError, Notes, Progress, Snapshot};
use crate::layout;
use crate::mapped::{self, MappedFile};
use crate::pcap::{self, FILE_HEADER_LEN, FileHeader, RECORD_HEADER_LEN, RecordHeader};
use crate::provenance::Provenance;
use crate::time::now;

mod in_memory;
mod prepare;

pub use in_memory::prepare_in_memory;
pub use prepare::{PrepareError, prepare};

// Sums of a segment's size (below 2³²) and a slice's length fit.
const _: () = assert!(usize::BITS == 64, "the store is for 64-bit machines");

/// Extension of a segment's packets.
pub const PCAP: &str = "pcap";
/// Extension of a sealed segment's index.
pub const INDEX: &str = "idx";
/// Extension of an open segment's journal.
pub const JOURNAL: &str = "idx.open";

/// Extension of what is damaged and was put out of the way, of segments and of open tails.
pub const DAMAGED: &str = "damaged";

/// What a segment shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSpec {
    /// Worker that fills it.
    pub worker: u16,
    /// Bytes allocated for packets: [`SegmentSpec::MIN_BYTES`] to [`SegmentSpec::MAX_BYTES`].
    pub bytes: u64,
    /// Bytes allocated for the journal.
    pub journal_bytes: u64,
    /// How to read a frame's first byte.
    pub link_type: LinkType,
    /// Most bytes of a frame that are kept: 1 to [`pcap::MAX_SNAPLEN`].
    pub snaplen: u32,
    /// Whose it is.
    pub provenance: Provenance,
}

impl SegmentSpec {
    /// The smallest segment.
    pub const MIN_BYTES: u64 = 64 * 1024;
    /// The largest segment: offsets have 32 bits.
    pub const MAX_BYTES: u64 = u32::MAX as u64;

    /// A segment of `bytes` for whole frames, with a journal that suffices for 64-byte frames of
    /// established sessions (8 of 80 bytes) and some new ones; a flood of new sessions fills the
    /// journal first and the segment is changed early.
    #[must_use]
    pub fn new(worker: u16, bytes: u64, link_type: LinkType) -> Self {
        let journal_bytes = (bytes / 8).max(64 * 1024);
        let (snaplen, provenance) = (pcap::MAX_SNAPLEN, Provenance::default());
        Self { worker, bytes, journal_bytes, link_type, snaplen, provenance }
    }

    /// What the journal of such a segment says.
    fn fixed(&self, sequence: u64) -> Fixed {
        Fixed {
            worker: self.worker,
            link_type: self.link_type,
            snaplen: self.snaplen,
            sequence,
            pcap_bytes: self.bytes,
            journal_bytes: self.journal_bytes,
            created: now(),
            boot_id: journal::boot_id(),
            provenance: self.provenance,
        }
    }

    fn check(&self) -> Result<(), &'static str> {
        if !(Self::MIN_BYTES..=Self::MAX_BYTES).contains(&self.bytes) {
            return Err("bytes is out of range");
        }
        if !(journal::MIN_BYTES as u64..=1 << 34).contains(&self.journal_bytes) {
            return Err("journal_bytes is out of range");
        }
        if !(1..=pcap::MAX_SNAPLEN).contains(&self.snaplen) {
            return Err("snaplen is out of range");
        }
        Ok(())
    }
}

/// A segment ready to be filled.
#[derive(Debug)]
pub struct PreparedSegment(ActiveSegment);

impl PreparedSegment {
    /// An empty segment: writes what every pcap file begins with, and says so in the journal.
    fn begin(
        mut file: MappedFile,
        journal: Journal,
        pcap_path: PathBuf,
        journal_path: PathBuf,
    ) -> Self {
        let fixed = *journal.fixed();
        let header = FileHeader { snaplen: fixed.snaplen, link_type: fixed.link_type };
        file.bytes_mut()[..FILE_HEADER_LEN].copy_from_slice(&header.encode());
        let progress = Progress { committed: FILE_HEADER_LEN as u64, ..Progress::default() };
        journal.publish(&progress);
        Self(ActiveSegment {
            file,
            journal,
            end: FILE_HEADER_LEN,
            snaplen: fixed.snaplen as usize,
            frames: 0,
            first_ts: Nanos::MAX,
            last_ts: Nanos::MIN,
            pcap_path,
            journal_path,
        })
    }

    /// Its sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.0.sequence()
    }

    /// How to read the frames that it may take.
    #[must_use]
    pub fn link_type(&self) -> LinkType {
        self.0.journal.fixed().link_type
    }

    /// Hands it to the worker. Costs nothing.
    #[must_use]
    pub fn activate(self) -> ActiveSegment {
        self.0
    }

    /// Removes it: the run ends and nobody needs it.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn discard(self) -> io::Result<()> {
        let (pcap_path, journal_path) = (self.0.pcap_path, self.0.journal_path);
        drop((self.0.file, self.0.journal));
        layout::remove_if_there(&pcap_path)?;
        layout::remove_if_there(&journal_path)?;
        Ok(())
    }
}

/// The frame does not fit behind the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the segment is full")]
pub struct SegmentFull;

/// A segment being filled by its worker. No call on it makes a system call or allocates.
#[derive(Debug)]
pub struct ActiveSegment {
    file: MappedFile,
    journal: Journal,
    end: usize,
    snaplen: usize,
    frames: u64,
    first_ts: Nanos,
    last_ts: Nanos,
    pcap_path: PathBuf,
    journal_path: PathBuf,
}

impl ActiveSegment {
    /// Its sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.journal.fixed().sequence
    }

    /// How to read the frames in it.
    #[must_use]
    pub fn link_type(&self) -> LinkType {
        self.journal.fixed().link_type
    }

    /// Frames appended so far.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Notes that found no room in the journal so far: frames that no index will know.
    #[must_use]
    pub fn unnoted(&self) -> u64 {
        self.journal.unnoted()
    }

    /// Bytes filled so far, headers included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.end as u64
    }

    /// Whether a batch of `frames` frames with `bytes` captured bytes in all surely fits, packets
    /// and notes. Asked before a batch, it spares asking for each frame; a batch may note up to
    /// two sessions a frame.
    #[inline]
    #[must_use]
    pub fn fits(&mut self, frames: usize, bytes: usize) -> bool {
        let need = bytes.saturating_add(frames.saturating_mul(RECORD_HEADER_LEN));
        let room = self.file.bytes_mut().len().saturating_sub(self.end);
        need <= room && self.journal.fits(frames.saturating_mul(2))
    }

    /// Appends one frame, given in one or more parts; returns the offset of its record. Bytes
    /// beyond the snap length are left out.
    ///
    /// # Errors
    /// It does not fit; nothing was changed.
    #[inline]
    pub fn append(
        &mut self,
        ts: Nanos,
        wire_len: u32,
        parts: &[&[u8]],
    ) -> Result<u32, SegmentFull> {
        let whole = match parts {
            [frame] => frame.len(),
            _ => parts.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len())),
        };
        let captured = whole.min(self.snaplen);
        let start = self.end;
        let end = start + RECORD_HEADER_LEN + captured;
        let record = self.file.bytes_mut().get_mut(start..end).ok_or(SegmentFull)?;
        let (head, body) = record.split_at_mut(RECORD_HEADER_LEN);
        match parts {
            [frame] => copy(body, &frame[..captured]),
            _ => copy_parts(body, parts),
        }
        // The header last: a killed process then leaves either no header or a whole frame, since
        // a thread's stores reach the page cache in the order of the program. Only the compiler
        // has to be told.
        compiler_fence(Ordering::Release);
        let wire_len = wire_len.max(captured as u32).max(1);
        head.copy_from_slice(&RecordHeader::new(ts, captured as u32, wire_len).encode());
        self.end = end;
        self.frames += 1;
        self.first_ts = self.first_ts.min(ts);
        self.last_ts = self.last_ts.max(ts);
        Ok(start as u32)
    }

    /// Notes that a recorded frame belongs to a session: what [`capture_flow::sink::Sink::touch`]
    /// is for. A frame of an older segment is noted here too.
    #[inline]
    pub fn touch(&mut self, at: PcapPosition, flow: FlowHash, mark: &mut Mark) {
        if at.segment == self.sequence() {
            self.journal.note(at.offset, flow, mark);
        } else {
            self.journal.note_foreign(at, flow);
        }
    }

    /// Lets readers see everything appended and noted so far. Once a batch, after the batch's
    /// notes.
    pub fn publish(&mut self) {
        self.journal.publish(&self.progress());
    }

    fn progress(&self) -> Progress {
        Progress {
            committed: self.end as u64,
            frames: self.frames,
            first_ts: self.first_ts,
            last_ts: self.last_ts,
            unnoted: self.journal.unnoted(),
        }
    }

    /// Ends the filling; publishes what is there.
    #[must_use]
    pub fn finish(self) -> FilledSegment {
        self.journal.publish(&self.progress());
        FilledSegment::new(self)
    }
}

/// Copies `from` into a place of the same length. Most frames on most wires are small: these go
/// over in registers, without a call.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    const BLOCK: usize = 64;
    match (to.first_chunk_mut::<BLOCK>(), from.first_chunk::<BLOCK>()) {
        (Some(to), Some(from)) => *to = *from,
        _ => return to.copy_from_slice(from),
    }
    if from.len() > 2 * BLOCK {
        to[BLOCK..].copy_from_slice(&from[BLOCK..]);
    } else if let (Some(to), Some(from)) = (to.last_chunk_mut(), from.last_chunk::<BLOCK>()) {
        // The second block may begin within the first.
        *to = *from;
    }
}

/// Copies the parts one behind the other until `body` is full.
#[cold]
fn copy_parts(mut body: &mut [u8], parts: &[&[u8]]) {
    for part in parts {
        let here = part.len().min(body.len());
        let (now, rest) = body.split_at_mut(here);
        now.copy_from_slice(&part[..here]);
        body = rest;
    }
}

/// What sealing does beyond truncating and indexing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealPolicy {
    /// Wait until the segment is on the disk: after a power loss it is whole.
    pub sync: bool,
    /// Hash the packets. The index is hashed always.
    pub hash: bool,
}

impl Default for SealPolicy {
    fn default() -> Self {
        Self { sync: true, hash: true }
    }
}

/// Why a segment is not sealed. It stays, can be read, and is given back for the next try.
#[derive(Debug, thiserror::Error)]
#[error("cannot seal {}", segment.path().display())]
pub struct SealError {
    /// The segment, to be sealed later.
    pub segment: Box<FilledSegment>,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

/// A segment that no worker writes to any more.
#[derive(Debug)]
pub struct FilledSegment {
    /// What it was filled through, until the first try to seal it: one that has to wait for the
    /// disk shall not hold memory. The journal's file has the notes for later tries.
    maps: Option<(MappedFile, Journal)>,
    header: IndexHeader,
    pcap_hash: Option<blake3::Hash>,
    pcap_path: PathBuf,
    journal_path: PathBuf,
}

impl FilledSegment {
    fn new(filled: ActiveSegment) -> Self {
        let fixed = *filled.journal.fixed();
        let header = IndexHeader {
            worker: fixed.worker,
            sequence: fixed.sequence,
            link_type: fixed.link_type,
            snaplen: fixed.snaplen,
            created: fixed.created,
            pcap_len: filled.end as u64,
            frames: filled.frames,
            first_ts: filled.first_ts,
            last_ts: filled.last_ts,
            unnoted: filled.journal.unnoted(),
            recovered: false,
            provenance: fixed.provenance,
        };
        Self {
            maps: Some((filled.file, filled.journal)),
            header,
            pcap_hash: None,
            pcap_path: filled.pcap_path,
            journal_path: filled.journal_path,
        }
    }

    /// Its sequence number.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.header.sequence
    }

    /// Where its packets are.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.pcap_path
    }

    /// Removes it unsealed, with the frames in it: for measurements that keep nothing.
    ///
    /// # Errors
    /// The files cannot be removed.
    pub fn discard(self) -> io::Result<()> {
        drop(self.maps);
        layout::remove_if_there(&self.pcap_path)?;
        layout::remove_if_there(&self.journal_path)?;
        Ok(())
    }

    /// Truncates the packets to what was filled, writes the index, hashes. Blocks: call it on a
    /// helper thread. `None` if not one frame was in it: then its files are removed.
    ///
    /// # Errors
    /// See [`SealError`], which has the segment for the next try.
    pub fn seal(self, policy: &SealPolicy) -> Result<Option<SealedSegment>, SealError> {
        self.seal_and_tell(policy, |_| ())
    }

    /// The same, and calls `tell` once it is sealed but for the last step: after a kill in between,
    /// the recovery tells of it. It may be called again if that step fails and is repeated.
    ///
    /// # Errors
    /// As [`FilledSegment::seal`].
    pub fn seal_and_tell(
        mut self,
        policy: &SealPolicy,
        tell: impl FnOnce(&SealedSegment),
    ) -> Result<Option<SealedSegment>, SealError> {
        match self.seal_files(policy, tell) {
            Ok(sealed) => Ok(sealed),
            Err(source) => Err(SealError { segment: Box::new(self), source }),
        }
    }

    fn seal_files(
        &mut self,
        policy: &SealPolicy,
        tell: impl FnOnce(&SealedSegment),
    ) -> io::Result<Option<SealedSegment>> {
        let header = self.header;
        let maps = self.maps.take();
        if header.frames == 0 {
            drop(maps);
            layout::remove_if_there(&self.pcap_path)?;
            layout::remove_if_there(&self.journal_path)?;
            return Ok(None);
        }
        let (packets, notes) = match maps {
            // The map goes first: to write out a page that is mapped, the kernel has to interrupt
            // the core of whoever fills the next segment.
            Some((file, journal)) => (file.into_file(), journal.notes(header.pcap_len)),
            None => self.reopen()?,
        };
        // Another try keeps the hash of the first.
        if self.pcap_hash.is_none() {
            self.pcap_hash = write_out(&packets, header.pcap_len, policy)?;
        }
        let index = index::encode(&header, notes);
        let sealed = SealedSegment::new(&header, &index, self.pcap_hash);
        let (pcap_path, journal_path) = (&self.pcap_path, &self.journal_path);
        let tell = || tell(&sealed);
        finish_files(&packets, pcap_path, journal_path, &header, &index, policy.sync, tell)?;
        Ok(Some(sealed))
    }

    /// Its packets' file and its notes, for another try.
    fn reopen(&self) -> io::Result<(File, Notes)> {
        let packets = OpenOptions::new().read(true).write(true).open(&self.pcap_path)?;
        let journal = Snapshot::read(&self.journal_path, None).map_err(|error| match error {
            JournalError::Io(error) => error,
            damaged @ JournalError::Damaged => io::Error::other(damaged),
        })?;
        Ok((packets, journal.notes))
    }
}

/// Has the disk begin with the packets, and hashes them while it works: neither waits for the
/// other.
fn write_out(packets: &File, len: u64, policy: &SealPolicy) -> io::Result<Option<blake3::Hash>> {
    /// Enough for the disk to be busy while a piece is hashed, little enough to be soon begun.
    const PIECE: u64 = 8 << 20;
    /// What the cache of a core holds.
    const READ: usize = 256 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; if policy.hash { READ } else { 0 }];
    let mut from = 0;
    while from < len {
        let to = len.min(from + PIECE);
        if policy.sync {
            mapped::begin_write_out(packets, from, to - from);
        }
        while policy.hash && from < to {
            let here = usize::try_from(to - from).unwrap_or(READ).min(READ);
            let piece = bytes.get_mut(..here).unwrap_or_default();
            packets.read_exact_at(piece, from)?;
            hasher.update(piece);
            from += here as u64;
        }
        from = to;
    }
    Ok(policy.hash.then(|| hasher.finalize()))
}

/// The steps of sealing that change the directory, in the order that lets a killed one be
/// repeated: the journal goes last, and where an index is the segment is sealed. `tell` is called
/// in front of the last step.
pub(crate) fn finish_files(
    packets: &File,
    pcap_path: &Path,
    journal_path: &Path,
    header: &IndexHeader,
    index: &[u8],
    sync: bool,
    tell: impl FnOnce(),
) -> io::Result<()> {
    packets.set_len(header.pcap_len)?;
    if sync {
        packets.sync_all()?;
    }
    layout::write_whole(&pcap_path.with_extension(INDEX), index, sync)?;
    tell();
    layout::remove_if_there(journal_path)?;
    Ok(())
}

/// A sealed segment, for the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    /// Worker whose ring holds it.
    pub worker: u16,
    /// Sequence number within that ring.
    pub sequence: u64,
    /// Bytes of its packets' file.
    pub pcap_bytes: u64,
    /// Bytes of its index.
    pub index_bytes: u64,
    /// Frames in it.
    pub frames: u64,
    /// Earliest frame.
    pub first_ts: Nanos,
    /// Latest frame.
    pub last_ts: Nanos,
    /// BLAKE3 of the packets' file, if it was asked for.
    pub pcap_hash: Option<blake3::Hash>,
    /// BLAKE3 of the index.
    pub index_hash: blake3::Hash,
}

impl SealedSegment {
    pub(crate) fn new(header: &IndexHeader, index: &[u8], pcap_hash: Option<blake3::Hash>) -> Self {
        Self {
            worker: header.worker,
            sequence: header.sequence,
            pcap_bytes: header.pcap_len,
            index_bytes: index.len() as u64,
            frames: header.frames,
            first_ts: header.first_ts,
            last_ts: header.last_ts,
            pcap_hash,
            index_hash: blake3::hash(index),
        }
    }
}
