//! Classic pcap with nanosecond timestamps, as segments hold it
//! (draft-ietf-opsawg-pcap: magic 0xa1b23c4d, written little-endian).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use capture_flow::frame::LinkType;
use capture_flow::time::Nanos;

/// Magic number of nanosecond pcap.
pub const MAGIC: u32 = 0xa1b2_3c4d;
/// Bytes of the file header.
pub const FILE_HEADER_LEN: usize = 24;
/// Bytes of a record header.
pub const RECORD_HEADER_LEN: usize = 16;
/// The largest snap length that tools accept (libpcap's MAXIMUM_SNAPLEN).
pub const MAX_SNAPLEN: u32 = 262_144;

/// What a segment's file header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Most bytes of a frame that are kept.
    pub snaplen: u32,
    /// How to read a frame's first byte.
    pub link_type: LinkType,
}

impl FileHeader {
    /// The header's bytes.
    #[must_use]
    pub fn encode(self) -> [u8; FILE_HEADER_LEN] {
        let mut bytes = [0; FILE_HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..6].copy_from_slice(&2_u16.to_le_bytes());
        bytes[6..8].copy_from_slice(&4_u16.to_le_bytes());
        // 8..16: time zone and accuracy, both zero by convention.
        bytes[16..20].copy_from_slice(&self.snaplen.to_le_bytes());
        bytes[20..].copy_from_slice(&u32::from(self.link_type.0).to_le_bytes());
        bytes
    }

    /// Reads a header that this crate wrote; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: &[u8; FILE_HEADER_LEN]) -> Option<Self> {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(word)
        };
        if word(0) != MAGIC || word(4) != 0x0004_0002 {
            return None;
        }
        let link_type = LinkType(u16::try_from(word(20)).ok()?);
        Some(Self { snaplen: word(16), link_type })
    }
}

/// What stands in front of each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// Whole seconds since the epoch.
    pub seconds: u32,
    /// Nanoseconds within the second, below 10⁹.
    pub subsec_ns: u32,
    /// Bytes of the frame that follow.
    pub captured: u32,
    /// Bytes of the frame on the wire.
    pub wire_len: u32,
}

impl RecordHeader {
    /// A record's header. A moment that pcap cannot hold (before 1970, after 2106) becomes the
    /// nearest that it can; the session rows keep the true one.
    #[inline]
    #[must_use]
    pub fn new(ts: Nanos, captured: u32, wire_len: u32) -> Self {
        const LAST: i64 = (u32::MAX as i64) * 1_000_000_000 + 999_999_999;
        let ns = ts.0.clamp(0, LAST) as u64;
        Self {
            seconds: (ns / 1_000_000_000) as u32,
            subsec_ns: (ns % 1_000_000_000) as u32,
            captured,
            wire_len,
        }
    }

    /// The frame's moment.
    #[must_use]
    pub fn ts(self) -> Nanos {
        Nanos::from_parts(i64::from(self.seconds), self.subsec_ns)
    }

    /// The header's bytes.
    #[inline]
    #[must_use]
    pub fn encode(self) -> [u8; RECORD_HEADER_LEN] {
        let low = u64::from(self.seconds) | u64::from(self.subsec_ns) << 32;
        let high = u64::from(self.captured) | u64::from(self.wire_len) << 32;
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }

    /// Reads a header as it stands, sensible or not.
    #[must_use]
    pub fn decode(bytes: [u8; RECORD_HEADER_LEN]) -> Self {
        let all = u128::from_le_bytes(bytes);
        Self {
            seconds: all as u32,
            subsec_ns: (all >> 32) as u32,
            captured: (all >> 64) as u32,
            wire_len: (all >> 96) as u32,
        }
    }

    /// Whether a segment with this snap length can hold such a record. A header of zeros, as in
    /// the unused tail of a segment, is none: every frame had at least one byte on the wire.
    #[must_use]
    pub fn is_plausible(self, snaplen: u32) -> bool {
        self.wire_len > 0
            && self.captured <= snaplen
            && self.captured <= self.wire_len
            && self.subsec_ns < 1_000_000_000
    }
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The kernel's answer.
    #[error("cannot read the segment")]
    Io(#[from] io::Error),
    /// The file does not begin like a segment.
    #[error("the file has no nanosecond pcap header")]
    NotPcap,
    /// There is no whole record at this place.
    #[error("there is no whole record at offset {offset}")]
    NoRecord {
        /// Where it was looked for.
        offset: u64,
    },
}

/// Reads frames out of one segment, sealed or being filled.
#[derive(Debug)]
pub struct SegmentReader {
    file: File,
    header: FileHeader,
    committed: u64,
}

impl SegmentReader {
    /// Opens a segment of which `committed` bytes may be read: the length that its index or
    /// journal gives. What lies behind is not looked at.
    ///
    /// # Errors
    /// Not a segment, or unreadable.
    pub fn open(path: &Path, committed: u64) -> Result<Self, ReadError> {
        let file = File::open(path)?;
        let committed = committed.min(file.metadata()?.len());
        if committed < FILE_HEADER_LEN as u64 {
            return Err(ReadError::NotPcap);
        }
        let mut bytes = [0; FILE_HEADER_LEN];
        file.read_exact_at(&mut bytes, 0)?;
        let header = FileHeader::decode(&bytes).ok_or(ReadError::NotPcap)?;
        Ok(Self { file, header, committed })
    }

    /// The segment's file header.
    #[must_use]
    pub fn header(&self) -> FileHeader {
        self.header
    }

    /// Bytes that may be read.
    #[must_use]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Reads the record at `offset`; the frame's captured bytes replace what is in `frame`.
    ///
    /// # Errors
    /// No whole, plausible record lies there.
    pub fn record_at(&self, offset: u64, frame: &mut Vec<u8>) -> Result<RecordHeader, ReadError> {
        let missing = ReadError::NoRecord { offset };
        let body = offset.saturating_add(RECORD_HEADER_LEN as u64);
        if offset < FILE_HEADER_LEN as u64 || body > self.committed {
            return Err(missing);
        }
        let mut bytes = [0; RECORD_HEADER_LEN];
        self.file.read_exact_at(&mut bytes, offset)?;
        let record = RecordHeader::decode(bytes);
        let end = body.saturating_add(u64::from(record.captured));
        if !record.is_plausible(self.header.snaplen) || end > self.committed {
            return Err(missing);
        }
        frame.clear();
        frame.resize(record.captured as usize, 0);
        self.file.read_exact_at(frame, body)?;
        Ok(record)
    }

    /// Calls `visit` with each record in turn (its offset, its header, the frame) until it
    /// returns false. Returns the offset behind the last whole record: less than
    /// [`SegmentReader::committed`] where the segment is damaged there.
    ///
    /// # Errors
    /// The kernel's answer to a read.
    pub fn scan(
        &self,
        mut visit: impl FnMut(u32, RecordHeader, &[u8]) -> bool,
    ) -> Result<u64, ReadError> {
        const CHUNK: usize = 1 << 20;
        let mut buffer = Vec::new();
        let mut base = FILE_HEADER_LEN as u64;
        loop {
            // A chunk holds at least one whole record, whatever the snap length.
            let most = CHUNK.max(self.header.snaplen.min(MAX_SNAPLEN) as usize + RECORD_HEADER_LEN);
            let here =
                usize::try_from(self.committed.saturating_sub(base)).unwrap_or(most).min(most);
            buffer.resize(here, 0);
            self.file.read_exact_at(&mut buffer, base)?;
            let mut at = 0;
            while let Some((record, frame)) = whole_record(&buffer[at..], self.header.snaplen) {
                let Ok(offset) = u32::try_from(base + at as u64) else {
                    return Ok(base + at as u64);
                };
                if !visit(offset, record, frame) {
                    return Ok(base + at as u64);
                }
                at += RECORD_HEADER_LEN + frame.len();
            }
            if at == 0 {
                return Ok(base);
            }
            base += at as u64;
        }
    }
}

/// The record at the beginning of `bytes`, if a whole and plausible one is there.
fn whole_record(bytes: &[u8], snaplen: u32) -> Option<(RecordHeader, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<RECORD_HEADER_LEN>()?;
    let record = RecordHeader::decode(*header);
    if !record.is_plausible(snaplen.min(MAX_SNAPLEN)) {
        return None;
    }
    Some((record, rest.get(..record.captured as usize)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn record_headers_come_back(seconds: u32, subsec_ns in 0..1_000_000_000_u32, captured: u32, wire_len: u32) {
            let record = RecordHeader { seconds, subsec_ns, captured, wire_len };
            prop_assert_eq!(RecordHeader::decode(record.encode()), record);
            prop_assert_eq!(RecordHeader::new(record.ts(), captured, wire_len), record);
        }

        #[test]
        fn file_headers_come_back(snaplen: u32, link_type: u16) {
            let header = FileHeader { snaplen, link_type: LinkType(link_type) };
            prop_assert_eq!(FileHeader::decode(&header.encode()), Some(header));
        }

        #[test]
        fn any_moment_has_a_record(ns: i64) {
            let record = RecordHeader::new(Nanos(ns), 1, 1);
            prop_assert!(record.subsec_ns < 1_000_000_000);
        }
    }

    #[test]
    fn a_zero_tail_is_no_record() {
        assert!(!RecordHeader::decode([0; RECORD_HEADER_LEN]).is_plausible(MAX_SNAPLEN));
    }
}
