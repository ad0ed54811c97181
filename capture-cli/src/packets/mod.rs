//! The packets of sessions, found through the segments' indexes.
//!
//! A row gives its session's key, and with the store's seed its [`FlowHash`]; an index gives the
//! offsets of the frames under that hash. Sessions with one key never overlap in time in one run
//! of a sensor, so run, hash and time together select exactly the session's frames.

mod capture;
mod scan;
mod segments;
mod spans;
mod unfinished;

pub use self::unfinished::unfinished_before;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;

use anyhow::Context as _;
use capture_flow::frame::{LinkType, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::index::{IndexError, SegmentIndex, SegmentRef};
use capture_store::pcap::{ReadError, SegmentReader};
use capture_store::{Provenance, Store};

use self::capture::CaptureWriter;
use self::segments::{Known, Segments, is_gone};
use self::spans::Spans;
use crate::progress::Progress;
use crate::query::Found;
use crate::row::Row;
use crate::times::Window;

/// How much later than a session's last frame a segment may begin and still know of frames of
/// the session in older segments: a datagram's fragments may wait for the last of them.
const FRAGMENT_PATIENCE: NanosDelta = NanosDelta::from_secs(300);
/// Segments that are kept open while packets are written.
const OPEN_SEGMENTS: usize = 64;

/// What was written and what was not.
#[derive(Debug, Default)]
pub struct Written {
    /// Frames.
    pub frames: u64,
    /// Sessions that were asked for, but for those whose rows end before the window and that have
    /// no frame in it.
    pub sessions: u64,
    /// Frames later than the newest row of their session, which was not its last.
    pub beyond_rows: u64,
    /// Sessions some of whose packets were removed to keep the budget.
    pub retired: u64,
    /// Sessions whose packets were never kept.
    pub never_kept: u64,
    /// Sessions with fewer frames than their rows counted, for no other reason known.
    pub short: u64,
    /// The frames that those lack.
    pub short_frames: u64,
    /// What could not be read: the output is not complete.
    pub damage: Vec<String>,
    /// What is worth knowing although nothing is missing.
    pub notes: Vec<String>,
}

impl Written {
    /// Whether everything that was asked for is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.retired == 0 && self.never_kept == 0 && self.short == 0 && self.damage.is_empty()
    }
}

/// A frame to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    ts: Nanos,
    segment: usize,
    offset: u32,
}

/// A segment that holds some of them.
struct Source {
    segment: SegmentRef,
    committed: u64,
    link: LinkType,
    snaplen: u32,
}

/// The frames found so far.
struct Selection {
    sources: Vec<Source>,
    places: Vec<Place>,
    progress: Progress,
}

/// Writes the frames of the sessions within the window, each once, in the order of time.
///
/// # Errors
/// A store's directory cannot be read, or the output cannot be written.
pub fn write(
    stores: &[Store],
    found: &[Found],
    window: Window,
    out: &mut impl Write,
) -> anyhow::Result<Written> {
    let mut written = Written::default();
    let progress = Progress::new("finding packets");
    let mut selection = Selection { sources: Vec::new(), places: Vec::new(), progress };
    for (at, store) in stores.iter().enumerate() {
        let rows: Vec<&Row> = found.iter().filter(|f| f.store == at).map(|f| &f.row).collect();
        if !rows.is_empty() {
            find(store, &rows, window, &mut selection, &mut written)
                .with_context(|| format!("cannot search {}", store.layout().root().display()))?;
        }
    }
    let Selection { sources, mut places, progress } = selection;
    progress.done();
    places.sort_unstable();
    copy(&sources, &places, out, &mut written)?;
    Ok(written)
}

/// Offsets in each segment, and the hash that each was found under.
type Offsets = BTreeMap<(u16, u64), Vec<(u32, FlowHash)>>;

/// Looks through one store's indexes.
fn find(
    store: &Store,
    rows: &[&Row],
    window: Window,
    selection: &mut Selection,
    written: &mut Written,
) -> anyhow::Result<()> {
    let mut segments = Segments::of(store)?;
    let missing = count_missing(rows, &segments, window, written);
    let spans = Spans::of(store, rows, window, &segments)?;
    let tagged = rows.iter().any(|row| row.vlan.is_some() || row.inner_vlan.is_some());
    let scanner = Scanner { seed: store.identity().hash_seed(), tagged, spans: &spans };
    // Offsets by segment, from its own index and from those of later segments.
    let mut offsets = Offsets::new();
    for (segment, known) in &mut segments.all {
        selection.progress.advance(1);
        let is_of_use = match &known.header {
            Some(header) => header.frames > 0 && !spans.known_to(header).is_empty(),
            None => true,
        };
        if !is_of_use {
            continue;
        }
        let usable = match segment.index() {
            Ok(index) => {
                known.committed = index.header().pcap_len;
                select(&index, segment, &spans, &mut offsets).map(|()| index.header().unnoted == 0)
            }
            Err(error) if is_gone(segment, &error) => continue,
            Err(error) => Err(error),
        };
        let why = match usable {
            Ok(true) => continue,
            Ok(false) => None,
            Err(error) => Some(error),
        };
        let scanned = scanner.scan_instead(segment, known, &mut offsets);
        let name = segment_name(segment);
        match (why, scanned) {
            (None, Ok(())) => {}
            (Some(why), Ok(())) => {
                written
                    .notes
                    .push(format!("the index of {name}: {why}: all of its frames were read"));
            }
            (None, Err(error)) => written.damage.push(format!("{name}: {error:#}")),
            (Some(why), Err(error)) => {
                written.damage.push(format!("the index of {name}: {why}; {name}: {error:#}"));
            }
        }
    }
    let mut frames = vec![0; rows.len()];
    let mut beyond_rows = 0;
    for (segment, known) in &segments.all {
        let Some(mut wanted) = offsets.remove(&(segment.worker, segment.sequence)) else {
            continue;
        };
        // A frame of two sessions, of a tunnel and of what is inside, comes under two hashes.
        wanted.sort_unstable();
        wanted.dedup();
        selection.locate(segment, known, &wanted, &spans, &mut written.damage, |row, ts| {
            if let (Some(count), Some(row)) = (frames.get_mut(row), rows.get(row)) {
                *count += 1;
                beyond_rows += u64::from(!row.is_final && ts > row.last_ts);
            }
        });
    }
    written.beyond_rows += beyond_rows;
    count_short(rows, &frames, &missing, window, written);
    let without = rows
        .iter()
        .zip(&frames)
        .filter(|(row, frames)| row.last_ts < window.start() && **frames == 0);
    written.sessions += (rows.len() - without.count()) as u64;
    Ok(())
}

/// Asks one index for all sessions that lived while its segment was filled.
fn select(
    index: &SegmentIndex,
    segment: &SegmentRef,
    spans: &Spans,
    offsets: &mut Offsets,
) -> Result<(), IndexError> {
    index.select(&spans.known_to(index.header()), |flow, postings| {
        let own = postings.offsets.iter().map(|offset| (*offset, flow));
        offsets.entry((segment.worker, segment.sequence)).or_default().extend(own);
        for at in postings.foreign {
            offsets.entry((at.worker, at.segment)).or_default().push((at.offset, flow));
        }
    })
}

/// Reads segments themselves where their indexes do not tell, or not all.
struct Scanner<'a> {
    seed: u64,
    /// Whether any session asked for has VLAN tags.
    tagged: bool,
    spans: &'a Spans,
}

impl Scanner<'_> {
    fn scan_instead(
        &self,
        segment: &SegmentRef,
        known: &Known,
        offsets: &mut Offsets,
    ) -> anyhow::Result<()> {
        let reader = SegmentReader::open(&segment.pcap_path(), known.committed)?;
        let keys: &[bool] = match known.provenance().vlan_in_key {
            Some(false) => &[false],
            Some(true) => &[true],
            None if self.tagged => &[false, true],
            None => &[false],
        };
        for vlan_in_key in keys {
            scan::scan(
                segment,
                &reader,
                self.seed,
                *vlan_in_key,
                |flow| self.spans.contains(flow),
                |at, flow| {
                    offsets.entry((at.worker, at.segment)).or_default().push((at.offset, flow));
                },
            )?;
        }
        Ok(())
    }
}

/// Reads a whole segment for the frames that count to no session, or carry a tunnel whose inside
/// counts to none.
///
/// # Errors
/// The segment cannot be read to its end.
pub(crate) fn scan_segment(
    segment: &SegmentRef,
    committed: u64,
    seed: u64,
    mut found: impl FnMut(capture_flow::frame::PcapPosition),
) -> anyhow::Result<()> {
    let reader = SegmentReader::open(&segment.pcap_path(), committed)?;
    scan::scan(segment, &reader, seed, false, |flow| flow == FlowHash::UNREAD, |at, _| found(at))
}

impl Selection {
    /// Reads the times of the frames and keeps those within a session. `counted` gets the row of
    /// each, and its time.
    fn locate(
        &mut self,
        segment: &SegmentRef,
        known: &Known,
        wanted: &[(u32, FlowHash)],
        spans: &Spans,
        damage: &mut Vec<String>,
        mut counted: impl FnMut(usize, Nanos),
    ) {
        if wanted.is_empty() {
            return;
        }
        let reader = match SegmentReader::open(&segment.pcap_path(), known.committed) {
            Ok(reader) => reader,
            Err(error) => {
                damage.push(format!("{}: {error}", segment_name(segment)));
                return;
            }
        };
        let header = reader.header();
        let number = self.sources.len();
        self.sources.push(Source {
            segment: segment.clone(),
            committed: known.committed,
            link: header.link_type,
            snaplen: header.snaplen,
        });
        let provenance: Provenance = known.provenance();
        let mut frame = Vec::new();
        for group in wanted.chunk_by(|a, b| a.0 == b.0) {
            let Some((offset, _)) = group.first() else { continue };
            let ts = match reader.record_at(u64::from(*offset), &mut frame) {
                Ok(record) => record.ts(),
                Err(error) => {
                    damage.push(format!("{}: {error}", segment_name(segment)));
                    continue;
                }
            };
            let ours = group.iter().flat_map(|(_, flow)| spans.under(*flow));
            let mut is_ours = false;
            for span in ours.filter(|span| span.holds(provenance, ts)) {
                is_ours = true;
                counted(span.row, ts);
            }
            if is_ours {
                self.places.push(Place { ts, segment: number, offset: *offset });
            }
        }
    }
}

/// Counts sessions whose packets are not there any more, or never were; returns their places.
fn count_missing(
    rows: &[&Row],
    segments: &Segments,
    window: Window,
    written: &mut Written,
) -> HashSet<usize> {
    let mut missing = HashSet::new();
    // Where a row ends before the window, nothing says that frames are missing.
    let inside = rows.iter().enumerate().filter(|(_, row)| row.last_ts >= window.start());
    for (number, row) in inside {
        let gone = |at: Option<PcapPosition>| at.is_some_and(|at| !segments.contains(at));
        let begins_inside = row.ts >= window.start();
        if gone(row.pcap_last) || (gone(row.pcap_first) && begins_inside) {
            written.retired += 1;
            missing.insert(number);
        } else if row.pcap_first.is_none() && row.pcap_last.is_none() {
            written.never_kept += 1;
            missing.insert(number);
        }
    }
    missing
}

/// Counts the frames that a session's row counted and that were found nowhere. More than the row
/// counted is no fault: a frame in a tunnel counts to the session of the tunnel, and a session
/// that lives has frames since.
fn count_short(
    rows: &[&Row],
    frames: &[u64],
    missing: &HashSet<usize>,
    window: Window,
    written: &mut Written,
) {
    for (number, (row, found)) in rows.iter().zip(frames).enumerate() {
        let whole = row.ts >= window.start() && row.last_ts <= window.end();
        let short = row.frames.saturating_sub(*found);
        if whole && short > 0 && !missing.contains(&number) {
            written.short += 1;
            written.short_frames = written.short_frames.saturating_add(short);
        }
    }
}

fn copy(
    sources: &[Source],
    places: &[Place],
    out: &mut impl Write,
    written: &mut Written,
) -> anyhow::Result<()> {
    let mut links: Vec<(LinkType, u32)> = Vec::new();
    for source in sources {
        match links.iter_mut().find(|(link, _)| *link == source.link) {
            Some((_, snaplen)) => *snaplen = (*snaplen).max(source.snaplen),
            None => links.push((source.link, source.snaplen)),
        }
    }
    let mut writer = CaptureWriter::begin(out, &links)?;
    let mut progress = Progress::new("writing packets");
    let mut open: HashMap<usize, SegmentReader> = HashMap::new();
    let mut frame = Vec::new();
    for place in places {
        let Some(source) = sources.get(place.segment) else { continue };
        if !open.contains_key(&place.segment) {
            if open.len() >= OPEN_SEGMENTS {
                open.clear();
            }
            match SegmentReader::open(&source.segment.pcap_path(), source.committed) {
                Ok(reader) => open.insert(place.segment, reader),
                Err(error) => {
                    note_once(written, format!("{}: {error}", segment_name(&source.segment)));
                    continue;
                }
            };
        }
        let Some(reader) = open.get(&place.segment) else { continue };
        match reader.record_at(u64::from(place.offset), &mut frame) {
            Ok(record) => {
                writer.frame(source.link, &record, &frame)?;
                written.frames += 1;
                progress.advance(1);
            }
            Err(error @ (ReadError::Io(_) | ReadError::NotPcap | ReadError::NoRecord { .. })) => {
                note_once(written, format!("{}: {error}", segment_name(&source.segment)));
            }
        }
    }
    progress.done();
    writer.finish()?;
    Ok(())
}

fn note_once(written: &mut Written, note: String) {
    if !written.damage.contains(&note) {
        written.damage.push(note);
    }
}

fn segment_name(segment: &SegmentRef) -> String {
    format!("segment w{:02}/{:020}", segment.worker, segment.sequence)
}
