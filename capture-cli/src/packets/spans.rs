//! When and where frames of the sessions asked for can be.

use std::collections::HashMap;

use capture_flow::key::{FlowHash, FlowHasher};
use capture_flow::time::Nanos;
use capture_store::index::IndexHeader;
use capture_store::pcap::RecordHeader;
use capture_store::sessions::Scan;
use capture_store::{Provenance, RunTag, Store};

use super::{FRAGMENT_PATIENCE, Segments};
use crate::query::Reader;
use crate::row::Row;
use crate::times::Window;

/// A session's share of the window, under one of the hashes that its key may have.
#[derive(Debug)]
pub(super) struct Span {
    from: Nanos,
    to: Nanos,
    /// The session, by its place among the rows.
    pub(super) row: usize,
    /// The run that recorded it, where its segment says.
    run: Option<RunTag>,
    /// Under which rule it has this hash; `None` where both give the same.
    vlan_in_key: Option<bool>,
}

impl Span {
    /// Whether a segment of this provenance can have frames of the session under this hash.
    fn is_of(&self, segment: Provenance) -> bool {
        fn agree<T: Copy + PartialEq>(one: Option<T>, other: Option<T>) -> bool {
            one.is_none() || other.is_none() || one == other
        }
        agree(self.run, segment.run) && agree(self.vlan_in_key, segment.vlan_in_key)
    }

    /// Whether a frame of that time in a segment of this provenance is the session's.
    pub(super) fn holds(&self, segment: Provenance, ts: Nanos) -> bool {
        (self.from..=self.to).contains(&ts) && self.is_of(segment)
    }

    /// Whether a segment's index can know of frames of the session.
    pub(super) fn is_known_to(&self, header: &IndexHeader) -> bool {
        header.overlaps(self.from, self.to + FRAGMENT_PATIENCE) && self.is_of(header.provenance)
    }
}

/// When frames under a hash belong to a session that was asked for.
#[derive(Debug, Default)]
pub(super) struct Spans(HashMap<FlowHash, Vec<Span>>);

impl Spans {
    /// The hashes of the sessions, and the times of each within the window.
    pub(super) fn of(
        store: &Store,
        rows: &[&Row],
        window: Window,
        segments: &Segments,
    ) -> anyhow::Result<Self> {
        let hasher = FlowHasher::new(store.identity().hash_seed());
        let until = reaches(store, rows, window, segments, &hasher)?;
        // Times are true in the index of a segment, and in its records as pcap can hold them: it
        // has no room for what came before 1970 or after 2106.
        let held = |ts| RecordHeader::new(ts, 0, 0).ts();
        let mut spans = Self::default();
        for (number, (row, until)) in rows.iter().zip(until).enumerate() {
            let (from, to) = (row.ts.max(window.start()), until.min(window.end()));
            let span = |vlan_in_key| Span {
                from: from.min(held(from)),
                to: to.max(held(to)),
                row: number,
                run: segments.run_of(row),
                vlan_in_key,
            };
            let mut add = |in_key: bool, span| {
                spans.0.entry(hasher.hash(&row.key(in_key))).or_default().push(span);
            };
            if row.vlan.is_none() && row.inner_vlan.is_none() {
                add(false, span(None));
            } else {
                add(false, span(Some(false)));
                add(true, span(Some(true)));
            }
        }
        Ok(spans)
    }

    /// Those under a hash.
    pub(super) fn under(&self, flow: FlowHash) -> &[Span] {
        self.0.get(&flow).map_or(&[], Vec::as_slice)
    }

    /// Whether a hash was asked for.
    pub(super) fn contains(&self, flow: FlowHash) -> bool {
        self.0.contains_key(&flow)
    }

    /// The hashes, ascending, that a segment's index can know.
    pub(super) fn known_to(&self, header: &IndexHeader) -> Vec<FlowHash> {
        let known = self.0.iter().filter(|(_, spans)| spans.iter().any(|s| s.is_known_to(header)));
        let mut flows: Vec<FlowHash> = known.map(|(flow, _)| *flow).collect();
        flows.sort_unstable();
        flows
    }
}

/// Sessions of which an end is looked for by name; more of them are in nearly every row group.
const FEW_HOSTS: usize = 64;

/// Until when each session can have frames. One that is over has its last frame in its row. Any
/// other lives, or was cut off when its run was: its frames can reach to the next session with its
/// key, or without end, since no other run's segments have any.
fn reaches(
    store: &Store,
    rows: &[&Row],
    window: Window,
    segments: &Segments,
    hasher: &FlowHasher,
) -> anyhow::Result<Vec<Nanos>> {
    let mut until: Vec<Nanos> =
        rows.iter().map(|row| if row.is_final { row.last_ts } else { Nanos::MAX }).collect();
    let mut open: HashMap<FlowHash, Vec<usize>> = HashMap::new();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_final) {
        open.entry(hasher.hash(&row.key(false))).or_default().push(number);
    }
    let of_open = || rows.iter().filter(|row| !row.is_final);
    let Some(from) = of_open().map(|row| row.last_ts).min() else { return Ok(until) };
    let mut hosts: Vec<String> = of_open().map(|row| row.orig.addr.to_string()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    if hosts.len() > FEW_HOSTS {
        hosts.clear();
    }
    let what = Scan { window: Some((from, window.end())), hosts, ..Scan::default() };
    // What cannot be read was told when the sessions were asked for.
    Reader::new(std::slice::from_ref(store), what).read(0, |next| {
        for number in open.get(&hasher.hash(&next.key(false))).into_iter().flatten() {
            if let (Some(row), Some(until)) = (rows.get(*number), until.get_mut(*number))
                && follows(&next, row, segments)
            {
                *until = (*until).min(Nanos(next.ts.0.saturating_sub(1)).max(row.last_ts));
            }
        }
    })?;
    Ok(until)
}

/// Whether a row is of a later session of the same run, with the same key but for tags.
fn follows(next: &Row, row: &Row, segments: &Segments) -> bool {
    let (run, next_run) = (segments.run_of(row), segments.run_of(next));
    let tags = |row: &Row| (row.vlan.unwrap_or(0), row.inner_vlan.unwrap_or(0));
    next.uid != row.uid
        && next.last_ts > row.last_ts
        && (run.is_none() || next_run.is_none() || run == next_run)
        && (segments.provenance_of(row).vlan_in_key != Some(true) || tags(next) == tags(row))
}
