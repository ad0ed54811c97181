//! The index of a sealed segment: read where the question needs it, believed where it can be.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use capture_flow::frame::PcapPosition;
use capture_flow::key::FlowHash;

use super::format::{
    DIRECTORY_ENTRY, FOREIGN_ENTRY, HEADER_LEN, Sections, VARINT_MOST, decode_header, take_varint,
    u64_at,
};
use super::{IndexError, IndexHeader, Postings};

/// Bytes of postings that are read at once.
const POSTINGS_CHUNK: usize = 1 << 16;
/// Entries that a walk reads at once.
const CHUNK_ENTRIES: usize = 4096;

/// A sealed index whose header makes sense.
#[derive(Debug)]
pub(super) struct Sealed {
    worker: u16,
    file: File,
    sections: Sections,
}

impl Sealed {
    /// Opens it, and reads what it says about its segment.
    pub(super) fn open(path: &Path) -> Result<(IndexHeader, Self), IndexError> {
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
        Ok((header, Self { worker: header.worker, file, sections }))
    }

    /// Entries that a walk passes.
    pub(super) fn entries(&self) -> u64 {
        self.sections.flows.saturating_add(self.sections.foreign)
    }

    /// Where the frames of each of these sessions are, from one walk. `flows` ascends.
    pub(super) fn walk(
        &self,
        flows: &[FlowHash],
    ) -> Result<BTreeMap<FlowHash, Postings>, IndexError> {
        let Self { file, sections, .. } = self;
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
            worker: self.worker,
            segment: u64_at(entry, 8),
            offset: u64_at(entry, 16) as u32,
        }
    }

    /// Where the frames of a session are.
    pub(super) fn postings(&self, flow: FlowHash) -> Result<Postings, IndexError> {
        let Self { file, sections, .. } = self;
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

#[cfg(test)]
mod tests {
    use capture_flow::frame::LinkType;
    use capture_flow::time::Nanos;

    use super::super::SegmentIndex;
    use super::super::format::encode_header;
    use super::*;
    use crate::layout;
    use crate::provenance::Provenance;
    use crate::segment::INDEX;

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
