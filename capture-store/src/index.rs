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

mod format;
mod noted;
mod sealed;

use std::io;
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

pub(crate) use format::encode;
use sealed::Sealed;

/// Entries that a walk passes in the time of one search.
const SEARCH_ENTRIES: u64 = 64;

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
    Sealed(Sealed),
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
        let (header, sealed) = Sealed::open(path)?;
        Ok(Self { header, source: Source::Sealed(sealed) })
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
            Source::Sealed(sealed) => sealed.postings(flow)?,
            Source::Open(notes) => noted::postings(notes, flow),
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
            Source::Sealed(sealed) => sealed.entries(),
            Source::Open(notes) => notes.entries.len() as u64,
        };
        let searches = match &self.source {
            // A search costs a read for each halving; a walk reads whole chunks.
            Source::Sealed(_) => (flows.len() as u64).saturating_mul(SEARCH_ENTRIES) <= entries,
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
            Source::Sealed(sealed) => sealed.walk(flows)?,
            Source::Open(notes) => noted::walk(notes, flows),
        };
        for (flow, postings) in &mut all {
            postings.offsets.retain(|offset| u64::from(*offset) < self.header.pcap_len);
            found(*flow, std::mem::take(postings));
        }
        Ok(())
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
