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
