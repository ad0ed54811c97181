//! Keeps the store within its budgets by removing the oldest.
//!
//! What is oldest is decided by sequence numbers and by when files were made, never by packet
//! times, which are foreign input. A worker's newest sealed segment always stays: its number
//! keeps later ones apart from those that session rows still name.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::PathBuf;

use capture_flow::time::Nanos;

use crate::index::{SegmentRef, segments};
use crate::layout;
use crate::ledger::SealedFile;
use crate::segment::INDEX;
use crate::sessions::sealed_names;
use crate::store::OwnedStore;

/// Bytes that a store may take. `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// For segments with their indexes, open and prepared ones included at their full size.
    pub packets: Option<u64>,
    /// For the session log.
    pub sessions: Option<u64>,
}

/// What a store takes, and what was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Bytes of segments and indexes left.
    pub packet_bytes: u64,
    /// Bytes of the session log left.
    pub session_bytes: u64,
    /// Removed segments (by their packets' file) and session files, oldest first, for the ledger.
    pub files: Vec<SealedFile>,
}

/// One sealed segment.
struct Candidate {
    segment: SegmentRef,
    created: Nanos,
    file: SealedFile,
    bytes: u64,
}

/// Removes the oldest sealed segments and session files until both budgets are kept, or nothing
/// is left that may be removed. Call it on a helper thread, before segments are prepared.
///
/// # Errors
/// A file cannot be looked at or removed. What was removed before is removed; the ledger can
/// learn of it from the error's `retired`.
pub fn retire(store: &OwnedStore, budgets: &Budgets) -> Result<Retired, RetireError> {
    let mut retired = Retired::default();
    let done = retire_packets(store, budgets.packets, &mut retired)
        .and_then(|()| retire_sessions(store, budgets.sessions, &mut retired));
    match done {
        Ok(()) => Ok(retired),
        Err(source) => Err(RetireError { retired: Box::new(retired), source }),
    }
}

/// Why the budgets could not be kept.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove what is too old")]
pub struct RetireError {
    /// What was removed all the same.
    pub retired: Box<Retired>,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

fn retire_packets(
    store: &OwnedStore,
    budget: Option<u64>,
    retired: &mut Retired,
) -> io::Result<()> {
    let mut rings: Vec<VecDeque<Candidate>> = Vec::new();
    let mut last_worker = None;
    for segment in segments(store.store())? {
        if last_worker != Some(segment.worker) {
            rings.push(VecDeque::new());
            last_worker = Some(segment.worker);
        }
        let bytes = size_of_segment(&segment)?;
        retired.packet_bytes = retired.packet_bytes.saturating_add(bytes);
        // A segment whose index is damaged is as old as its place in the ring says.
        let index = segment.index().ok();
        let open = index.as_ref().is_some_and(crate::index::SegmentIndex::is_open);
        let Some(ring) = rings.last_mut().filter(|_| !open) else { continue };
        let before = ring.back().map_or(Nanos::MIN, |last| last.created);
        let header = index.as_ref().map(crate::index::SegmentIndex::header);
        let created = header.map_or(before, |header| header.created.max(before));
        let file = SealedFile {
            path: relative(store, &segment.pcap_path()),
            bytes,
            blake3: None,
            items: header.map_or(0, |header| header.frames),
            first_ts: header.map_or(Nanos::MIN, |header| header.first_ts),
            last_ts: header.map_or(Nanos::MAX, |header| header.last_ts),
        };
        ring.push_back(Candidate { segment, created, file, bytes });
    }
    let Some(budget) = budget else { return Ok(()) };
    while retired.packet_bytes > budget {
        let oldest = rings
            .iter_mut()
            .filter(|ring| ring.len() > 1)
            .min_by_key(|ring| ring.front().map_or(Nanos::MAX, |oldest| oldest.created));
        let Some(oldest) = oldest.and_then(VecDeque::pop_front) else { break };
        // Packets first: an index without packets is removed by nobody but harms nobody, packets
        // without an index would look like an unsealed segment.
        layout::remove_if_there(&oldest.segment.pcap_path())?;
        let index = layout::segment_name(oldest.segment.sequence, INDEX);
        layout::remove_if_there(&oldest.segment.dir.join(index))?;
        retired.packet_bytes = retired.packet_bytes.saturating_sub(oldest.bytes);
        retired.files.push(oldest.file);
    }
    Ok(())
}

fn retire_sessions(
    store: &OwnedStore,
    budget: Option<u64>,
    retired: &mut Retired,
) -> io::Result<()> {
    let live = store.layout().live();
    for name in layout::names_in(&live)? {
        retired.session_bytes = retired.session_bytes.saturating_add(size_of(&live.join(name))?);
    }
    // Sorted by name, which begins with the run's time and ends with the file's number.
    let mut files: VecDeque<(PathBuf, u64)> = VecDeque::new();
    for path in sealed_names(store.layout())?.into_values() {
        let bytes = size_of(&path)?;
        retired.session_bytes = retired.session_bytes.saturating_add(bytes);
        files.push_back((path, bytes));
    }
    let Some(budget) = budget else { return Ok(()) };
    while retired.session_bytes > budget {
        let Some((path, bytes)) = files.pop_front() else { break };
        let (items, first_ts, last_ts) =
            crate::sessions::extent(&path).unwrap_or((0, Nanos::MIN, Nanos::MAX));
        layout::remove_if_there(&path)?;
        retired.session_bytes = retired.session_bytes.saturating_sub(bytes);
        retired.files.push(SealedFile {
            path: relative(store, &path),
            bytes,
            blake3: None,
            items,
            first_ts,
            last_ts,
        });
    }
    Ok(())
}

fn relative(store: &OwnedStore, path: &std::path::Path) -> String {
    path.strip_prefix(store.layout().root()).unwrap_or(path).to_string_lossy().into_owned()
}

/// Bytes of a segment's packets and of what lies beside it.
fn size_of_segment(segment: &SegmentRef) -> io::Result<u64> {
    let beside = [INDEX, crate::segment::JOURNAL]
        .map(|extension| segment.dir.join(layout::segment_name(segment.sequence, extension)));
    let mut bytes = size_of(&segment.pcap_path())?;
    for path in beside {
        bytes = bytes.saturating_add(size_of(&path)?);
    }
    Ok(bytes)
}

/// A file's size; nothing for one that is gone.
fn size_of(path: &std::path::Path) -> io::Result<u64> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}
