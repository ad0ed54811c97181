//! The bytes of a sealed index.

use capture_flow::frame::LinkType;
use capture_flow::key::FlowHash;
use capture_flow::time::Nanos;

use crate::journal::Notes;
use crate::provenance::Provenance;

use super::{IndexError, IndexHeader};

const MAGIC: [u8; 8] = *b"SWINDEX1";
pub(super) const HEADER_LEN: usize = 256;
/// Bytes of the header that its own hash covers.
const HASHED_LEN: usize = HEADER_LEN - 32;
pub(super) const DIRECTORY_ENTRY: usize = 24;
pub(super) const FOREIGN_ENTRY: usize = 24;
/// Bytes that a number of the postings takes at most: a u32 as LEB128.
pub(super) const VARINT_MOST: usize = 5;
const RECOVERED: u64 = 1;

/// Where sections lie, behind the fields of [`IndexHeader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sections {
    pub(super) flows: u64,
    pub(super) postings_len: u64,
    pub(super) foreign: u64,
}

impl Sections {
    pub(super) fn postings_at(&self) -> u64 {
        HEADER_LEN as u64 + self.flows * DIRECTORY_ENTRY as u64
    }

    pub(super) fn foreign_at(&self) -> u64 {
        self.postings_at() + self.postings_len
    }

    /// The file's length, if that is a number.
    pub(super) fn file_len(&self) -> Option<u64> {
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
    let Notes { flows, entries, mut foreign } = notes;
    let (ranked, rank_of) = rank(&flows);
    let groups = Groups::of(&entries, &rank_of, ranked.len());
    drop(entries);
    foreign.sort_unstable();
    foreign.dedup();

    let known = groups.known();
    let directory_len = known * DIRECTORY_ENTRY;
    let mut bytes = vec![0; HEADER_LEN + directory_len];
    bytes.reserve_exact(groups.offsets.len() * VARINT_MOST + foreign.len() * FOREIGN_ENTRY);
    let mut entry_at = HEADER_LEN;
    let postings_at = bytes.len();
    groups.each(|rank, offsets| {
        let start = bytes.len();
        let (mut last, mut count) = (0, 0_u32);
        for offset in offsets {
            // A frame that was noted twice is one frame.
            if *offset != last || count == 0 {
                push_varint(&mut bytes, offset - last);
                (last, count) = (*offset, count + 1);
            }
        }
        let hash = ranked.get(rank).map_or(0, |hash| hash.0);
        let len = bytes.len() - start;
        let mut entry = [0; DIRECTORY_ENTRY];
        entry[..8].copy_from_slice(&hash.to_le_bytes());
        entry[8..16].copy_from_slice(&((start - postings_at) as u64).to_le_bytes());
        entry[16..20].copy_from_slice(&count.to_le_bytes());
        entry[20..].copy_from_slice(&(len as u32).to_le_bytes());
        let next = entry_at + DIRECTORY_ENTRY;
        if let Some(place) = bytes.get_mut(entry_at..next) {
            place.copy_from_slice(&entry);
        }
        entry_at = next;
    });
    let sections = Sections {
        flows: known as u64,
        postings_len: (bytes.len() - postings_at) as u64,
        foreign: foreign.len() as u64,
    };
    bytes[..HEADER_LEN].copy_from_slice(&encode_header(header, &sections));
    for (hash, at) in foreign {
        bytes.extend_from_slice(&hash.0.to_le_bytes());
        bytes.extend_from_slice(&at.segment.to_le_bytes());
        bytes.extend_from_slice(&u64::from(at.offset).to_le_bytes());
    }
    bytes
}

/// The sessions of the slots in order, and the place of each slot's among them. Slots of one session
/// (it came back after its mark was lost) share a place.
fn rank(flows: &[Option<FlowHash>]) -> (Vec<FlowHash>, Vec<u32>) {
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
    (ranked, rank_of)
}

/// Offsets dealt out to their sessions. Counting, instead of sorting by session, because notes come
/// in the order of their frames, or nearly so: a session's are in order when they are dealt out.
struct Groups {
    offsets: Vec<u32>,
    /// Where each session's end, by rank.
    ends: Vec<usize>,
}

impl Groups {
    fn of(entries: &[(u32, u32)], rank_of: &[u32], ranks: usize) -> Self {
        let rank = |slot: u32| rank_of.get(slot as usize).map_or(0, |rank| *rank as usize);
        let mut ends = vec![0_usize; ranks];
        for (slot, _) in entries {
            if let Some(count) = ends.get_mut(rank(*slot)) {
                *count += 1;
            }
        }
        let mut begin = 0;
        for place in &mut ends {
            begin += std::mem::replace(place, begin);
        }
        let mut offsets = vec![0; begin];
        for (slot, offset) in entries {
            let Some(next) = ends.get_mut(rank(*slot)) else { continue };
            if let Some(place) = offsets.get_mut(*next) {
                *place = *offset;
            }
            *next += 1;
        }
        let mut groups = Self { offsets, ends };
        let mut begin = 0;
        for end in &groups.ends {
            if let Some(group) = groups.offsets.get_mut(begin..*end)
                && !group.is_sorted()
            {
                group.sort_unstable();
            }
            begin = *end;
        }
        groups
    }

    /// Sessions that have any.
    fn known(&self) -> usize {
        let mut begin = 0;
        let any = |end: &&usize| std::mem::replace(&mut begin, **end) < **end;
        self.ends.iter().filter(any).count()
    }

    /// Calls `each` with every session that has any, in order: its rank and its offsets.
    fn each(&self, mut each: impl FnMut(usize, &[u32])) {
        let mut begin = 0;
        for (rank, end) in self.ends.iter().enumerate() {
            let group = self.offsets.get(begin..*end).unwrap_or_default();
            if !group.is_empty() {
                each(rank, group);
            }
            begin = *end;
        }
    }
}

pub(super) fn encode_header(header: &IndexHeader, sections: &Sections) -> [u8; HEADER_LEN] {
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

pub(super) fn decode_header(
    bytes: &[u8; HEADER_LEN],
) -> Result<(IndexHeader, Sections), IndexError> {
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
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
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
pub(super) fn take_varint(bytes: &mut &[u8]) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use capture_flow::frame::PcapPosition;
    use proptest::prelude::*;

    use super::*;

    fn header() -> IndexHeader {
        IndexHeader {
            worker: 1,
            sequence: 9,
            link_type: LinkType::ETHERNET,
            snaplen: 65_535,
            created: Nanos(1),
            pcap_len: 1 << 20,
            frames: 7,
            first_ts: Nanos(2),
            last_ts: Nanos(3),
            unnoted: 0,
            recovered: false,
            provenance: Provenance::default(),
        }
    }

    /// The same, as the format's description says it, with no thought of speed.
    fn described(header: &IndexHeader, notes: &Notes) -> Vec<u8> {
        let mut sessions: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        for (slot, offset) in &notes.entries {
            let hash = notes.flows[*slot as usize].expect("a session");
            sessions.entry(hash.0).or_default().insert(*offset);
        }
        let foreign: BTreeSet<_> = notes.foreign.iter().copied().collect();
        let (mut directory, mut postings) = (Vec::new(), Vec::new());
        for (hash, offsets) in &sessions {
            let (start, mut last) = (postings.len(), 0);
            for offset in offsets {
                push_varint(&mut postings, offset - last);
                last = *offset;
            }
            directory.extend_from_slice(&hash.to_le_bytes());
            directory.extend_from_slice(&(start as u64).to_le_bytes());
            directory.extend_from_slice(&(offsets.len() as u32).to_le_bytes());
            directory.extend_from_slice(&((postings.len() - start) as u32).to_le_bytes());
        }
        let sections = Sections {
            flows: sessions.len() as u64,
            postings_len: postings.len() as u64,
            foreign: foreign.len() as u64,
        };
        let mut bytes = encode_header(header, &sections).to_vec();
        bytes.extend(directory);
        bytes.extend(postings);
        for (hash, at) in foreign {
            bytes.extend_from_slice(&hash.0.to_le_bytes());
            bytes.extend_from_slice(&at.segment.to_le_bytes());
            bytes.extend_from_slice(&u64::from(at.offset).to_le_bytes());
        }
        bytes
    }

    proptest! {
        #[test]
        fn notes_in_any_order_become_what_the_format_says(
            flows in prop::collection::vec(prop::option::weighted(0.9, 0_u64..12), 1..20),
            notes in prop::collection::vec((any::<prop::sample::Index>(), 0_u32..100_000), 0..200),
            foreign in prop::collection::vec((0_u64..4, 0_u64..4, 0_u32..4), 0..20),
            in_order in any::<bool>(),
        ) {
            let flows: Vec<_> = flows.into_iter().map(|flow| flow.map(FlowHash)).collect();
            let mut entries: Vec<(u32, u32)> = notes
                .into_iter()
                .map(|(slot, offset)| (slot.index(flows.len()) as u32, offset))
                .filter(|(slot, _)| flows[*slot as usize].is_some())
                .collect();
            if in_order {
                entries.sort_by_key(|(_, offset)| *offset);
            }
            let foreign = foreign
                .into_iter()
                .map(|(flow, segment, offset)| {
                    (FlowHash(flow), PcapPosition { worker: 1, segment, offset })
                })
                .collect();
            let notes = Notes { flows, entries, foreign };
            prop_assert_eq!(described(&header(), &notes), encode(&header(), notes));
        }
    }
}
