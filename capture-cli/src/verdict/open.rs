//! Sessions that were there without a frame in the window.
//!
//! A session is there from its first frame on, until its last frame, or until the sensor knows
//! that it is over. A connection that the sensor gave up as idle and that goes on in the middle
//! later was there in between, too.

use std::collections::HashMap;

use capture_flow::config::Timeouts;
use capture_flow::key::{Address, Protocol};
use capture_flow::time::{Nanos, NanosDelta};
use capture_store::ledger::{LedgerLine, Note};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::coverage::AskedAt;
use crate::row::Row;

/// How far before and behind the window silent connections are followed.
pub(super) const FOLLOWED: NanosDelta = NanosDelta::from_secs(24 * 3600);

/// Why a session counts to a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It lasted into the window: a frame before or in it, and one in or after it.
    Frames,
    /// It had begun and was not over: the sensor still held it open.
    Open,
    /// The sensor gave it up as idle, and later it went on without a new beginning.
    WentOn,
}

impl Presence {
    /// The name in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Open => "open",
            Self::WentOn => "went_on",
        }
    }
}

/// Until when the runs of a sensor held sessions open.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// First and last moment of each.
    runs: Vec<(Nanos, Nanos)>,
}

impl Runs {
    /// The runs in a ledger. One that is alive has no end: its rows may be younger than its lines.
    pub(super) fn of(lines: &[LedgerLine], alive: Option<&str>) -> Self {
        let mut runs: HashMap<&str, (Nanos, Nanos)> = HashMap::new();
        for line in lines {
            let run = runs.entry(line.run.as_str()).or_insert_with(|| {
                // The lines read may begin in the midst of a run; its name says when it began.
                let begun = if line.mode == "capture" { begin_of(line.run.as_str()) } else { None };
                (begun.map_or(line.from, |begun| begun.min(line.from)), line.to)
            });
            *run = (run.0.min(line.from), run.1.max(line.to));
        }
        if let Some(run) = alive.and_then(|name| runs.get_mut(name)) {
            run.1 = Nanos::MAX;
        }
        Self { runs: runs.into_values().collect() }
    }

    /// The end of the run that wrote a row at this moment.
    fn end_of(&self, flushed_at: Nanos) -> Option<Nanos> {
        let wrote = |run: &&(Nanos, Nanos)| run.0 <= flushed_at && flushed_at <= run.1;
        self.runs.iter().filter(wrote).map(|run| run.1).max()
    }
}

/// When a run began, to the second, by its name (`20070202T060000Z-…`).
fn begin_of(run: &str) -> Option<Nanos> {
    let text = run.split_once('Z')?.0;
    let begun = DateTime::strptime("%Y%m%dT%H%M%S", text).ok()?;
    let begun = TimeZone::UTC.to_timestamp(begun).ok()?;
    i64::try_from(begun.as_nanosecond()).ok().map(Nanos)
}

/// The run that is alive: the newest one, if it has not ended and a sensor writes.
pub(super) fn alive(lines: &[LedgerLine], at: AskedAt) -> Option<&str> {
    let last = lines.last()?;
    let goes_on = !last.notes.contains(&Note::CleanStop) && last.mode == "capture";
    (goes_on && at.is_written != Some(false)).then(|| last.run.as_str())
}

/// The last moment at which the sensor held the session open.
pub(super) fn open_until(row: &Row, runs: &Runs) -> Nanos {
    let held = if row.is_fragments_only() {
        // Datagrams that were given up: nothing is open.
        None
    } else if is_closed(row) {
        // It only waits for strays.
        None
    } else if !row.is_final {
        // Nothing is known of it but that it had not ended while the sensor ran. What came of it
        // will be logged if the sensor still does; else only a connection is more than its frames.
        let end = runs.end_of(row.flushed_at);
        end.filter(|end| *end == Nanos::MAX || is_unclosed(row))
    } else if &*row.end_reason == "timeout" && is_unclosed(row) {
        // It was written down when its idle limit had passed.
        Some(row.flushed_at)
    } else {
        None
    };
    held.map_or(row.last_ts, |held| held.max(row.last_ts))
}

/// The last moment at which its ends may have taken a connection for open that the sensor lost sight
/// of before its idle limit had passed: the table was full, the sensor stopped or was killed. Its own
/// limit is not known any more, so it is taken to be the usual one.
pub(super) fn may_be_open_until(row: &Row) -> Nanos {
    let lost_sight = !row.is_final || matches!(&*row.end_reason, "evicted" | "shutdown");
    let limit = Timeouts::default().tcp_inactivity;
    if lost_sight && is_unclosed(row) { row.last_ts + limit } else { row.last_ts }
}

/// Whether it is a TCP connection that both ends may still have taken for open after its last
/// frame: it was answered, no reset came, and not both ends closed it.
pub(super) fn is_unclosed(row: &Row) -> bool {
    row.protocol == Protocol::TCP
        && matches!(&*row.conn_state, "S1" | "S2" | "S3" | "OTH")
        && is_two_way(row)
}

/// Whether it is a TCP connection that was refused, reset, or closed by both ends.
fn is_closed(row: &Row) -> bool {
    let over = ["SF", "REJ", "RSTO", "RSTR", "RSTOS0", "RSTRH"];
    row.protocol == Protocol::TCP && over.contains(&&*row.conn_state)
}

/// Whether both ends acknowledged or sent data: what scanners and strays do not bring about.
fn is_two_way(row: &Row) -> bool {
    row.history.contains(['A', 'D']) && row.history.contains(['a', 'd', 'h'])
}

/// Whether it was picked up in the middle: no SYN, and both ends take part.
fn is_midstream(row: &Row) -> bool {
    row.protocol == Protocol::TCP
        && !row.history.contains(['S', 's', 'H', 'h'])
        && row.history.contains(['A', 'D'])
        && row.history.contains(['a', 'd'])
}

type Ends = ((Address, u16), (Address, u16), Option<u16>, Option<u16>);

fn ends(row: &Row) -> Ends {
    let a = (row.orig.addr, row.orig.port);
    let b = (row.resp.addr, row.resp.port);
    let (low, high) = if a <= b { (a, b) } else { (b, a) };
    (low, high, row.vlan, row.inner_vlan)
}

/// Connections that went on behind the window without a new beginning: by the place of the row
/// that goes on, the row before it between the same ends, if there is one that tells.
pub(super) fn went_on(rows: &[&Row], window: (Nanos, Nanos)) -> Vec<(usize, Option<usize>)> {
    let mut by_ends: HashMap<Ends, Vec<usize>> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        if row.protocol == Protocol::TCP {
            by_ends.entry(ends(row)).or_default().push(place);
        }
    }
    let mut found = Vec::new();
    for places in by_ends.values_mut() {
        places.sort_by_key(|place| rows.get(*place).map(|row| row.ts));
        let mut before: Option<usize> = None;
        for place in places.iter() {
            let Some(row) = rows.get(*place) else { continue };
            let previous = before.replace(*place);
            // Only a row that begins behind the window tells of the silence in it.
            if row.ts <= window.1 || !is_midstream(row) {
                continue;
            }
            match previous.and_then(|at| rows.get(at)) {
                None => found.push((*place, None)),
                // It was open before the window's end, and went on behind it.
                Some(earlier) if is_unclosed(earlier) && earlier.ts <= window.1 => {
                    found.push((*place, previous));
                }
                // Strays of a connection that was closed, or a silence behind the window.
                Some(_) => {}
            }
        }
    }
    found.sort_unstable();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_tells_when_it_began() {
        assert_eq!(begin_of("20070202T060000Z-0badcafe"), Some(Nanos(1_170_396_000_000_000_000)));
        assert_eq!(begin_of("nonsense"), None);
    }
}
