//! The packets of sessions, found through the segments' indexes.
//!
//! A row gives its session's key, and with the store's seed its [`FlowHash`]; an index gives the
//! offsets of the frames under that hash. Sessions with one key never overlap in time on a
//! sensor, so hash and time together select exactly the session's frames.

mod capture;
mod scan;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write;

use anyhow::Context as _;
use capture_flow::frame::LinkType;
use capture_flow::key::{FlowHash, FlowHasher, SessionKey};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::Store;
use capture_store::index::{IndexError, SegmentIndex, SegmentRef, segments};
use capture_store::pcap::{ReadError, RecordHeader, SegmentReader};

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

/// A session's share of the window, and the session by its place among the rows.
type Span = (Nanos, Nanos, usize);

/// When frames under a hash belong to a session that was asked for.
type Spans = HashMap<FlowHash, Vec<Span>>;

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
    let all = segments(store)?;
    let mut frames = vec![0; rows.len()];
    let missing = count_missing(rows, &all, window, written);
    let seed = store.identity().hash_seed();
    let spans = spans(rows, window, seed);
    let tagged = rows.iter().any(|row| row.vlan.is_some() || row.inner_vlan.is_some());
    let first = spans.values().flatten().map(|span| span.0).min().unwrap_or(Nanos::MAX);
    let last = spans.values().flatten().map(|span| span.1).max().unwrap_or(Nanos::MIN);
    let last = last + FRAGMENT_PATIENCE;
    // Offsets by segment, from its own index and from those of later segments.
    let mut offsets = Offsets::new();
    let mut committed: HashMap<(u16, u64), u64> = HashMap::new();
    for segment in &all {
        selection.progress.advance(1);
        let name = (segment.worker, segment.sequence);
        let usable = match segment.index() {
            Ok(index) => {
                let header = *index.header();
                committed.insert(name, header.pcap_len);
                if header.frames == 0 || !header.overlaps(first, last) {
                    continue;
                }
                select(&index, segment, &spans, &mut offsets).map(|()| header.unnoted == 0)
            }
            Err(error) if is_gone_index(&error) => continue,
            Err(error) => {
                // What lies behind the last whole record is left out.
                committed.insert(name, u64::MAX);
                Err(error)
            }
        };
        let why = match usable {
            Ok(true) => continue,
            Ok(false) => None,
            Err(error) => Some(error),
        };
        let scanned =
            scan_instead(segment, committed.get(&name), seed, tagged, &spans, &mut offsets);
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
    for segment in &all {
        let name = (segment.worker, segment.sequence);
        let (Some(mut wanted), Some(committed)) = (offsets.remove(&name), committed.get(&name))
        else {
            continue;
        };
        // A frame of two sessions, of a tunnel and of what is inside, comes under two hashes.
        wanted.sort_unstable();
        wanted.dedup();
        selection.locate(segment, *committed, &wanted, &spans, &mut frames, written);
    }
    count_short(rows, &frames, &missing, window, written);
    Ok(())
}

/// Asks one index for all sessions that lived while its segment was filled.
fn select(
    index: &SegmentIndex,
    segment: &SegmentRef,
    spans: &Spans,
    offsets: &mut Offsets,
) -> Result<(), IndexError> {
    let header = index.header();
    let lived = |times: &[Span]| {
        times.iter().any(|(from, to, _)| header.overlaps(*from, *to + FRAGMENT_PATIENCE))
    };
    let mut flows: Vec<FlowHash> =
        spans.iter().filter(|(_, times)| lived(times)).map(|(flow, _)| *flow).collect();
    flows.sort_unstable();
    index.select(&flows, |flow, postings| {
        let own = postings.offsets.iter().map(|offset| (*offset, flow));
        offsets.entry((segment.worker, segment.sequence)).or_default().extend(own);
        for at in postings.foreign {
            offsets.entry((at.worker, at.segment)).or_default().push((at.offset, flow));
        }
    })
}

/// Reads the segment itself where its index does not tell, or not all.
fn scan_instead(
    segment: &SegmentRef,
    committed: Option<&u64>,
    seed: u64,
    tagged: bool,
    spans: &Spans,
    offsets: &mut Offsets,
) -> anyhow::Result<()> {
    let committed = committed.copied().unwrap_or(u64::MAX);
    let reader = SegmentReader::open(&segment.pcap_path(), committed)?;
    // Tags are part of the key where the sensor was told so.
    let keys: &[bool] = if tagged { &[false, true] } else { &[false] };
    for vlan_in_key in keys {
        scan::scan(
            segment,
            &reader,
            seed,
            *vlan_in_key,
            |flow| spans.contains_key(&flow),
            |at, flow| {
                offsets.entry((at.worker, at.segment)).or_default().push((at.offset, flow));
            },
        )?;
    }
    Ok(())
}

impl Selection {
    /// Reads the times of the frames and keeps those within a session. `frames` counts them for
    /// each row.
    fn locate(
        &mut self,
        segment: &SegmentRef,
        committed: u64,
        wanted: &[(u32, FlowHash)],
        spans: &Spans,
        frames: &mut [u64],
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
            let mut is_ours = false;
            for (_, _, row) in ours.filter(|(from, to, _)| (*from..=*to).contains(&ts)) {
                is_ours = true;
                if let Some(count) = frames.get_mut(*row) {
                    *count += 1;
                }
            }
            if is_ours {
                self.places.push(Place { ts, segment: number, offset: *offset });
            }
        }
    }
}

/// The hashes of the sessions, and the times of each within the window.
fn spans(rows: &[&Row], window: Window, seed: u64) -> Spans {
    let hasher = FlowHasher::new(seed);
    let mut spans = Spans::new();
    for (number, row) in rows.iter().enumerate() {
        // Times are true in the index of a segment, and in its records as pcap can hold them: it
        // has no room for what came before 1970 or after 2106.
        let held = |ts| RecordHeader::new(ts, 0, 0).ts();
        let (from, to) = (row.ts.max(window.start()), row.last_ts.min(window.end()));
        let span = (from.min(held(from)), to.max(held(to)), number);
        let key = |vlans| {
            let orig = (row.orig.addr, row.orig.port);
            let resp = (row.resp.addr, row.resp.port);
            hasher.hash(&if row.is_fragments_only() {
                // Their ports are unknown, not zero: ICMP's type and code among them.
                SessionKey::new(orig, resp, row.protocol, vlans)
            } else {
                SessionKey::of_ends(orig, resp, row.protocol, vlans)
            })
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

/// Counts sessions whose packets are not there any more, or never were; returns their places.
fn count_missing(
    rows: &[&Row],
    all: &[SegmentRef],
    window: Window,
    written: &mut Written,
) -> HashSet<usize> {
    let there: HashSet<(u16, u64)> = all.iter().map(|s| (s.worker, s.sequence)).collect();
    let mut missing = HashSet::new();
    for (number, row) in rows.iter().enumerate() {
        let gone = |at: Option<capture_flow::frame::PcapPosition>| {
            at.is_some_and(|at| !there.contains(&(at.worker, at.segment)))
        };
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

/// Retired between listing and opening: counted by its sessions' positions on the next ask.
fn is_gone_index(error: &IndexError) -> bool {
    matches!(error, IndexError::Io(io) if io.kind() == std::io::ErrorKind::NotFound)
}

fn segment_name(segment: &SegmentRef) -> String {
    format!("segment w{:02}/{:020}", segment.worker, segment.sequence)
}
