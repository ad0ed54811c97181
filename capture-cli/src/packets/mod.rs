//! The packets of sessions, found through the segments' indexes.
//!
//! A row gives its session's key, and with the store's seed its [`FlowHash`]; an index gives the
//! offsets of the frames under that hash. Sessions with one key never overlap in time on a
//! sensor, so hash and time together select exactly the session's frames.

mod capture;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;

use anyhow::Context as _;
use capture_flow::frame::LinkType;
use capture_flow::key::{FlowHash, FlowHasher, SessionKey};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;
use capture_store::index::{IndexError, SegmentRef, segments};
use capture_store::pcap::{ReadError, SegmentReader};

use self::capture::CaptureWriter;
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
    /// Sessions some of whose packets were removed to keep the budget.
    pub retired: u64,
    /// Sessions whose packets were never kept.
    pub never_kept: u64,
    /// What could not be read: the output is not complete.
    pub damage: Vec<String>,
}

impl Written {
    /// Whether everything that was asked for is there.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.retired == 0 && self.never_kept == 0 && self.damage.is_empty()
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

/// When frames under a hash belong to a session that was asked for.
type Spans = HashMap<FlowHash, Vec<(Nanos, Nanos)>>;

/// Looks through one store's indexes.
fn find(
    store: &Store,
    rows: &[&Row],
    window: Window,
    selection: &mut Selection,
    written: &mut Written,
) -> anyhow::Result<()> {
    let all = segments(store)?;
    count_missing(rows, &all, window, written);
    let spans = spans(rows, window, store.identity().hash_seed());
    let first = spans.values().flatten().map(|span| span.0).min().unwrap_or(Nanos::MAX);
    let last = spans.values().flatten().map(|span| span.1).max().unwrap_or(Nanos::MIN);
    let last = last + FRAGMENT_PATIENCE;
    // Offsets by segment, from its own index and from those of later segments.
    let mut offsets: BTreeMap<(u16, u64), Vec<(u32, FlowHash)>> = BTreeMap::new();
    let mut indexes: HashMap<(u16, u64), u64> = HashMap::new();
    for segment in &all {
        selection.progress.advance(1);
        let name = (segment.worker, segment.sequence);
        let index = match segment.index() {
            Ok(index) => index,
            Err(error) if is_gone_index(&error) => continue,
            Err(error) => {
                written.damage.push(format!("the index of {}: {error}", segment_name(segment)));
                continue;
            }
        };
        indexes.insert(name, index.header().pcap_len);
        if index.header().frames == 0 || !index.header().overlaps(first, last) {
            continue;
        }
        if index.header().unnoted > 0 {
            written.damage.push(format!(
                "the index of {} leaves out {} frames, some may be missing here",
                segment_name(segment),
                index.header().unnoted
            ));
        }
        let header = *index.header();
        let lived = |times: &[(Nanos, Nanos)]| {
            times.iter().any(|(from, to)| header.overlaps(*from, *to + FRAGMENT_PATIENCE))
        };
        for (flow, _) in spans.iter().filter(|(_, times)| lived(times)) {
            match index.postings(*flow) {
                Ok(postings) => {
                    let own = postings.offsets.iter().map(|offset| (*offset, *flow));
                    offsets.entry(name).or_default().extend(own);
                    for at in postings.foreign {
                        let entry = offsets.entry((at.worker, at.segment)).or_default();
                        entry.push((at.offset, *flow));
                    }
                }
                Err(error) => {
                    written.damage.push(format!("the index of {}: {error}", segment_name(segment)));
                    break;
                }
            }
        }
    }
    for segment in &all {
        let name = (segment.worker, segment.sequence);
        let (Some(mut wanted), Some(committed)) = (offsets.remove(&name), indexes.get(&name))
        else {
            continue;
        };
        // A frame of two sessions, of a tunnel and of what is inside, comes under two hashes.
        wanted.sort_unstable();
        wanted.dedup();
        selection.locate(segment, *committed, &wanted, &spans, written);
    }
    Ok(())
}

impl Selection {
    /// Reads the times of the frames and keeps those within a session.
    fn locate(
        &mut self,
        segment: &SegmentRef,
        committed: u64,
        wanted: &[(u32, FlowHash)],
        spans: &Spans,
        written: &mut Written,
    ) {
        if wanted.is_empty() {
            return;
        }
        let reader = match SegmentReader::open(&segment.pcap_path(), committed) {
            Ok(reader) => reader,
            Err(error) => {
                written.damage.push(format!("{}: {error}", segment_name(segment)));
                return;
            }
        };
        let header = reader.header();
        let number = self.sources.len();
        self.sources.push(Source {
            segment: segment.clone(),
            committed,
            link: header.link_type,
            snaplen: header.snaplen,
        });
        let mut frame = Vec::new();
        for group in wanted.chunk_by(|a, b| a.0 == b.0) {
            let Some((offset, _)) = group.first() else { continue };
            let ts = match reader.record_at(u64::from(*offset), &mut frame) {
                Ok(record) => record.ts(),
                Err(error) => {
                    written.damage.push(format!("{}: {error}", segment_name(segment)));
                    continue;
                }
            };
            let ours = group.iter().filter_map(|(_, flow)| spans.get(flow)).flatten();
            if ours.into_iter().any(|(from, to)| (*from..=*to).contains(&ts)) {
                self.places.push(Place { ts, segment: number, offset: *offset });
            }
        }
    }
}

/// The hashes of the sessions, and the times of each within the window.
fn spans(rows: &[&Row], window: Window, seed: u64) -> Spans {
    let hasher = FlowHasher::new(seed);
    let mut spans = Spans::new();
    for row in rows {
        let span = (row.ts.max(window.start()), row.last_ts.min(window.end()));
        let key = |vlans| {
            let orig = (row.orig.addr, row.orig.port);
            let resp = (row.resp.addr, row.resp.port);
            hasher.hash(&SessionKey::of_ends(orig, resp, row.protocol, vlans))
        };
        // Tags are part of the key where the sensor was told so. The other hash finds nothing.
        let tags = (row.vlan.unwrap_or(0), row.inner_vlan.unwrap_or(0));
        spans.entry(key((0, 0))).or_default().push(span);
        if tags != (0, 0) {
            spans.entry(key(tags)).or_default().push(span);
        }
    }
    spans
}

/// Counts sessions whose packets are not there any more, or never were.
fn count_missing(rows: &[&Row], all: &[SegmentRef], window: Window, written: &mut Written) {
    let there: HashSet<(u16, u64)> = all.iter().map(|s| (s.worker, s.sequence)).collect();
    for row in rows {
        let gone = |at: Option<capture_flow::frame::PcapPosition>| {
            at.is_some_and(|at| !there.contains(&(at.worker, at.segment)))
        };
        let begins_inside = row.ts >= window.start();
        if gone(row.pcap_last) || (gone(row.pcap_first) && begins_inside) {
            written.retired += 1;
        } else if row.pcap_first.is_none() && row.pcap_last.is_none() {
            written.never_kept += 1;
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

/// Retired between listing and opening: counted by its sessions' positions on the next ask.
fn is_gone_index(error: &IndexError) -> bool {
    matches!(error, IndexError::Io(io) if io.kind() == std::io::ErrorKind::NotFound)
}

fn segment_name(segment: &SegmentRef) -> String {
    format!("segment w{:02}/{:020}", segment.worker, segment.sequence)
}
