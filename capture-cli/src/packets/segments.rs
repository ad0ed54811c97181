//! A store's segments, and what each says about itself.

use std::collections::HashMap;
use std::io;

use capture_flow::frame::PcapPosition;
use capture_store::index::{IndexError, IndexHeader, SegmentRef, segments};
use capture_store::{Provenance, RunTag, Store};

use crate::row::Row;

/// What is known of a segment.
pub(super) struct Known {
    /// What its index says; `None` where that cannot be read.
    pub(super) header: Option<IndexHeader>,
    /// Bytes of it that may be read. Where the index does not tell, what lies behind the last
    /// whole record is left out.
    pub(super) committed: u64,
}

impl Known {
    pub(super) fn provenance(&self) -> Provenance {
        self.header.map(|header| header.provenance).unwrap_or_default()
    }
}

/// The segments of a store, by worker and sequence.
pub(super) struct Segments {
    pub(super) all: Vec<(SegmentRef, Known)>,
    places: HashMap<(u16, u64), usize>,
}

impl Segments {
    /// Reads what every segment of a store says about itself.
    pub(super) fn of(store: &Store) -> io::Result<Self> {
        let mut all = Vec::new();
        for segment in segments(store)? {
            let known = match segment.header() {
                Ok(header) => Known { header: Some(header), committed: header.pcap_len },
                Err(error) if is_gone(&segment, &error) => continue,
                // It is read again when it is searched, and its damage told then.
                Err(_) => Known { header: None, committed: u64::MAX },
            };
            all.push((segment, known));
        }
        let name = |(segment, _): &(SegmentRef, Known)| (segment.worker, segment.sequence);
        let places = all.iter().map(name).zip(0..).collect();
        Ok(Self { all, places })
    }

    fn get(&self, at: PcapPosition) -> Option<&Known> {
        let place = self.places.get(&(at.worker, at.segment))?;
        self.all.get(*place).map(|(_, known)| known)
    }

    /// Whether the segment of a frame is there.
    pub(super) fn contains(&self, at: PcapPosition) -> bool {
        self.places.contains_key(&(at.worker, at.segment))
    }

    /// Whose the segments of a session are, as far as one of them that it names is there.
    pub(super) fn provenance_of(&self, row: &Row) -> Provenance {
        let named = [row.pcap_last, row.pcap_first];
        let known = named.into_iter().flatten().find_map(|at| self.get(at));
        known.map(Known::provenance).unwrap_or_default()
    }

    /// The run that recorded a session.
    pub(super) fn run_of(&self, row: &Row) -> Option<RunTag> {
        self.provenance_of(row).run
    }
}

/// Retired between listing and opening: counted by its sessions' positions on the next ask.
pub(super) fn is_gone(segment: &SegmentRef, error: &IndexError) -> bool {
    matches!(error, IndexError::Io(io) if io.kind() == io::ErrorKind::NotFound)
        && !segment.pcap_path().exists()
}
