//! Segments that never touch a disk: what a worker writes to costs the same, and nothing is kept.
//! They are how a run finds out what the machine could do if its disk were no limit.

use std::path::{Path, PathBuf};

use super::{FilledSegment, PrepareError, PreparedSegment, SegmentSpec};
use crate::journal::Journal;
use crate::mapped::MappedFile;

/// What an error calls it: there is no path.
const NOWHERE: &str = "a segment in memory";

/// Prepares a segment in memory: allocated, mapped and present like one on a disk. When it is
/// filled, [`FilledSegment::again`] makes the next one of it; sealed it cannot be.
///
/// # Errors
/// See [`PrepareError`]: in general that there is not so much memory.
pub fn prepare_in_memory(
    sequence: u64,
    spec: &SegmentSpec,
) -> Result<PreparedSegment, PrepareError> {
    spec.check().map_err(PrepareError::Spec)?;
    let failed = |error| PrepareError::map(Path::new(NOWHERE), error);
    let journal = Journal::in_memory(spec.fixed(sequence)).map_err(failed)?;
    let file = MappedFile::in_memory(spec.bytes as usize).map_err(failed)?;
    // No name: what removes them finds nothing to remove.
    Ok(PreparedSegment::begin(file, journal, PathBuf::new(), PathBuf::new()))
}

impl FilledSegment {
    /// Forgets the frames of a segment in memory and makes the next one of it, in the same pages:
    /// costs nothing. `None` for a segment that has files; those stay.
    #[must_use]
    pub fn again(self, sequence: u64, spec: &SegmentSpec) -> Option<PreparedSegment> {
        if !self.pcap_path.as_os_str().is_empty() {
            return None;
        }
        let (file, journal) = self.maps?;
        let journal = journal.again(spec.fixed(sequence));
        Some(PreparedSegment::begin(file, journal, self.pcap_path, self.journal_path))
    }
}

#[cfg(test)]
mod tests {
    use capture_flow::frame::{LinkType, PcapPosition};
    use capture_flow::key::FlowHash;
    use capture_flow::sink::Mark;
    use capture_flow::time::Nanos;

    use super::*;
    use crate::segment::prepare;

    fn spec() -> SegmentSpec {
        SegmentSpec::new(3, SegmentSpec::MIN_BYTES, LinkType::ETHERNET)
    }

    /// Fills a segment; returns how many frames it took.
    fn fill(prepared: PreparedSegment) -> (FilledSegment, u64) {
        let sequence = prepared.sequence();
        let mut active = prepared.activate();
        let frame = [7_u8; 100];
        while active.fits(1, frame.len()) {
            let offset = active.append(Nanos(5), 100, &[&frame]).expect("it fits");
            let at = PcapPosition { worker: 3, segment: sequence, offset };
            active.touch(at, FlowHash(u64::from(offset)), &mut Mark::default());
            active.publish();
        }
        let frames = active.frames();
        assert_eq!(active.unnoted(), 0);
        (active.finish(), frames)
    }

    #[test]
    fn the_same_memory_takes_one_segment_after_the_other() {
        let first = prepare_in_memory(1, &spec()).expect("memory");
        let (filled, frames) = fill(first);
        assert!(frames > 100);
        let second = filled.again(2, &spec()).expect("it is in memory");
        assert_eq!((second.sequence(), second.link_type()), (2, LinkType::ETHERNET));
        let (filled, again) = fill(second);
        assert_eq!(again, frames, "the second takes as many as the first");
        assert_eq!((filled.sequence(), filled.header.frames), (2, frames));
        // The frames of the second are those that its journal knows: nothing of the first is left.
        let (_, journal) = filled.maps.as_ref().expect("mapped");
        let notes = journal.notes(filled.header.pcap_len);
        assert_eq!((notes.entries.len() as u64, notes.foreign.len()), (frames, 0));
        filled.discard().expect("nothing to remove");
    }

    #[test]
    fn a_segment_with_files_is_not_forgotten() {
        let dir = tempfile::tempdir().expect("a directory");
        let (filled, _) = fill(prepare(dir.path(), 1, &spec()).expect("a segment"));
        assert!(filled.again(2, &spec()).is_none());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 2, "both files stay");
    }
}
