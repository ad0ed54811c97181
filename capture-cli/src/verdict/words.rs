//! A verdict in one sentence, to be pasted into a ticket.

use capture_flow::time::Nanos;

use super::{Possible, Proof, Session, Verdict, Witness};
use crate::coverage::Gap;
use crate::row::{Row, RowEnd};
use crate::text::visible;
use crate::times::{Clock, length};

impl Proof {
    /// The verdict with what decides it, in one sentence (or two, where more remains to be told).
    #[must_use]
    pub fn sentence(&self, clock: &Clock) -> String {
        let filter = visible(&self.question.text).into_owned();
        let which = if filter.is_empty() {
            "session".to_owned()
        } else {
            format!("session matching \u{201c}{filter}\u{201d}")
        };
        let when = format!(
            "between {} and {}",
            clock.prose(self.question.from),
            clock.prose(self.question.to)
        );
        match self.verdict {
            Verdict::Absent => {
                format!("No {which} was there {when}: {}.", self.full_cover())
            }
            Verdict::Present => self.present(&which, &when, clock),
            Verdict::Unproven => {
                let mut open = Vec::new();
                if let Some(gap) = self.decisive() {
                    open.push(gap_in_words(gap, self.gaps().count(), clock));
                }
                if let Some(first) = self.possible.first() {
                    open.push(possible_in_words(first, self.possible.len(), clock));
                }
                let again = match self.ask_again_at() {
                    Some(at) => format!(" Ask again after {}.", clock.prose(at)),
                    None => String::new(),
                };
                format!(
                    "It is not proven that no {which} was there {when}: {}.{again}",
                    open.join("; and ")
                )
            }
        }
    }

    fn present(&self, which: &str, when: &str, clock: &Clock) -> String {
        let Some(first) = self.sessions.first() else { return String::new() };
        let lead = match self.sessions.len() {
            1 => format!("A {which} was there {when}: "),
            more => format!(
                "{more} sessions of those asked for ({which}) were there {when}, the first "
            ),
        };
        let cover = match self.decisive() {
            None => String::new(),
            Some(gap) => {
                format!(" There may be more: {}.", gap_in_words(gap, self.gaps().count(), clock))
            }
        };
        format!("{lead}{}.{cover}", session_in_words(first, clock))
    }

    /// When only time is missing: when to ask again.
    #[must_use]
    pub fn ask_again_at(&self) -> Option<Nanos> {
        self.witnesses.iter().filter_map(|witness| witness.ask_again_at).max()
    }

    /// The gap that decides: blind time before lossy time, then the longest, then the first.
    #[must_use]
    pub fn decisive(&self) -> Option<&Gap> {
        let weight = |gap: &Gap| (gap.reason.is_blind(), gap.to - gap.from, gap.frames_lost);
        // The first of equals.
        self.gaps().reduce(|best, gap| if weight(gap) > weight(best) { gap } else { best })
    }

    fn full_cover(&self) -> String {
        let parts: Vec<String> = self.witnesses.iter().map(witness_in_words).collect();
        parts.join("; ")
    }
}

fn witness_in_words(witness: &Witness) -> String {
    let coverage = &witness.coverage;
    let seen = coverage.totals.values().fold(0_u64, |sum, t| sum.saturating_add(t.received));
    let head = witness.head().and_then(|head| head.get(..16)).unwrap_or("none");
    format!(
        "sensor {} saw the whole of it, lost none of {seen} frames, and its ledger is unbroken ({} \
         lines, head {head}\u{2026})",
        visible(&witness.sensor),
        witness.chain.lines
    )
}

/// A gap as part of a sentence.
#[must_use]
pub(crate) fn gap_in_words(gap: &Gap, of: usize, clock: &Clock) -> String {
    let lasting = length((gap.to - gap.from).0 as f64 / 1e9);
    let when = if gap.from == gap.to {
        format!("at {}", clock.prose(gap.from))
    } else {
        format!("from {} to {} ({lasting})", clock.prose(gap.from), clock.prose(gap.to))
    };
    let mut what = gap.reason.explain().to_owned();
    if !gap.detail.is_empty() {
        what = format!("{what} ({})", visible(&gap.detail));
    }
    if gap.frames_lost > 0 {
        what = format!("{what}, {} frames", gap.frames_lost);
    }
    let more = match of {
        0 | 1 => String::new(),
        2 => ", and there is one more gap".to_owned(),
        _ => format!(", and there are {} more gaps", of - 1),
    };
    format!("{when} {what} [{}, sensor {}]{more}", gap.reason.as_str(), visible(&gap.sensor))
}

fn possible_in_words(first: &Possible, of: usize, clock: &Clock) -> String {
    let what = match first {
        Possible::Session { session, why } => {
            format!("{} could be one ({why})", session_in_words(session, clock))
        }
        Possible::Frame(frame) => {
            let ends = frame.ends().map_or_else(
                || "without readable addresses".to_owned(),
                |(src, dst)| format!("from {src} to {dst}"),
            );
            format!(
                "a frame of {} bytes {ends} at {} could belong to one ({})",
                frame.wire_len,
                clock.prose(frame.ts),
                frame.why()
            )
        }
        Possible::Frames { count, span, .. } => format!(
            "{count} frames from {} to {} that could not be read cannot be looked at any more",
            clock.prose(span.0),
            clock.prose(span.1)
        ),
    };
    match of {
        0 | 1 => what,
        2 => format!("{what}, and there is one more such"),
        _ => format!("{what}, and there are {} more such", of - 1),
    }
}

/// A session as part of a sentence.
#[must_use]
pub(crate) fn session_in_words(session: &Session, clock: &Clock) -> String {
    let row = &session.row;
    let service = row.service.as_deref().map_or(String::new(), |s| format!(" {}", visible(s)));
    format!(
        "{} {} to {}{service} from {} to {} (uid {})",
        visible(&row.proto),
        end_in_words(row, &row.orig),
        end_in_words(row, &row.resp),
        clock.prose(row.ts),
        clock.prose(row.last_ts),
        visible(&row.uid)
    )
}

/// An end with its port, where the protocol has ports.
#[must_use]
pub(crate) fn end_in_words(row: &Row, end: &RowEnd) -> String {
    use capture_flow::key::Address;
    match end.addr {
        Address::Ip(std::net::IpAddr::V6(addr)) if row.has_ports() => {
            format!("[{addr}]:{}", end.port)
        }
        addr if row.has_ports() => format!("{addr}:{}", end.port),
        addr => addr.to_string(),
    }
}
