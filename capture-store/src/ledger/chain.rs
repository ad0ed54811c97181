//! What holds the lines together: every line carries the hash of the line before it, and the
//! sensor signs each. Whoever changes, removes or moves a line breaks the link to its neighbour,
//! and cannot mend it without the key.
//!
//! [`ChainFold`] takes lines in the order of the files and keeps only where stretches of linked
//! lines begin and end, so a ledger of any length takes no memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use capture_flow::time::Nanos;

use crate::key::{Domain, PublicKey};
use crate::signed::{self, Signature};
use crate::store::RunId;

use super::line::{LedgerLine, Note};
use super::writer::NO_HASH;

/// Texts that are no lines are remembered up to this many: one more is a ledger that is past
/// explaining.
const MOST_TORN: usize = 4096;
/// Breaks that are told one by one; the rest is counted.
const MOST_BREAKS: usize = 1000;

/// Where a line stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The day file.
    pub path: Arc<Path>,
    /// The line in it, from 1.
    pub line: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        write!(f, "{name} line {}", self.line)
    }
}

/// What does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakKind {
    /// Lines do not follow each other, or are missing.
    Link,
    /// A signature is not the key's for its line.
    Signature,
    /// A line that must be signed is not.
    Unsigned,
    /// A run's time or numbering has a hole.
    Hole,
}

/// Something that cannot be if nobody meddled with the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// What.
    pub kind: BreakKind,
    /// The line at which it shows.
    pub place: Place,
    /// That line's place in the chain.
    pub seq: u64,
    /// What the lines on both sides speak of: nothing is certain about this time.
    pub from: Nanos,
    /// Its end.
    pub to: Nanos,
    /// What is wrong, in words.
    pub why: String,
}

/// A line that a kill or a power loss tore, and that the line behind it tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// Where what is left of it stands.
    pub place: Place,
    /// Its bytes.
    pub bytes: u64,
    /// Its place in the chain.
    pub seq: u64,
}

/// The chain's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its place in the chain.
    pub seq: u64,
    /// Its hash, in hex.
    pub hash: String,
    /// Where it stands.
    pub place: Place,
    /// Its run.
    pub run: RunId,
    /// The end of its interval.
    pub to: Nanos,
    /// Whether it says that its run ended in order.
    pub clean: bool,
    /// Its signature. [`Signature::Missing`] in a store without a key.
    pub signature: Signature,
}

/// What the chain says about the lines that were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Lines.
    pub lines: u64,
    /// The last of them; none where there is no line.
    pub head: Option<Head>,
    /// Where links or signatures do not hold.
    pub breaks: Vec<Break>,
    /// Breaks beyond those.
    pub more_breaks: u64,
    /// Where a run's lines do not follow each other in time although the links hold.
    pub holes: Vec<Break>,
    /// Torn lines that the chain accounts for.
    pub torn: Vec<Torn>,
    /// Lines without a signature.
    pub unsigned: u64,
}

impl Chain {
    /// Whether every link and every signature looked at holds.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.breaks.is_empty()
    }

    /// `valid` or `broken`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        if self.is_valid() { "valid" } else { "broken" }
    }
}

/// What is remembered of a line at one end of a stretch.
#[derive(Clone, Debug)]
struct Joint {
    place: Place,
    seq: u64,
    run: RunId,
    interval: u64,
    from: Nanos,
    to: Nanos,
    /// Whether the line says that its run ended in order.
    clean: bool,
    /// Whether the line tells of a torn one before it.
    tells_torn: bool,
}

impl Joint {
    fn of(place: &Place, line: &LedgerLine) -> Self {
        Self {
            place: place.clone(),
            seq: line.seq,
            run: line.run.clone(),
            interval: line.interval,
            from: line.from,
            to: line.to,
            clean: line.notes.contains(&Note::CleanStop),
            tells_torn: line.notes.iter().any(|note| matches!(note, Note::TornLine { .. })),
        }
    }
}

/// Lines that follow each other in a file and in the chain.
#[derive(Debug)]
struct Stretch {
    first: Joint,
    /// `prev` of its first line.
    prev: String,
    last: Joint,
    /// Hash of its last line.
    hash: blake3::Hash,
    /// Whether its last line's signature holds.
    signature: Signature,
}

/// Puts a ledger's lines together.
#[derive(Debug)]
pub struct ChainFold {
    key: Option<PublicKey>,
    open: Option<Stretch>,
    /// The text of the open stretch's last line: its signature is verified once it is needed.
    text: Vec<u8>,
    stretches: Vec<Stretch>,
    torn: HashMap<String, (Place, u64)>,
    first_signed: Option<u64>,
    last_unsigned: Option<Joint>,
    chain: Chain,
}

impl ChainFold {
    /// No lines yet. Without a key only the links are looked at.
    #[must_use]
    pub fn new(key: Option<PublicKey>) -> Self {
        Self {
            key,
            open: None,
            text: Vec::new(),
            stretches: Vec::new(),
            torn: HashMap::new(),
            first_signed: None,
            last_unsigned: None,
            chain: Chain::default(),
        }
    }

    /// The next line of a file; `text` and `hash` are without the line's end.
    pub fn line(&mut self, place: &Place, text: &[u8], hash: blake3::Hash, line: &LedgerLine) {
        self.chain.lines += 1;
        if signed::is_signed(text) {
            self.first_signed =
                Some(self.first_signed.map_or(line.seq, |first| first.min(line.seq)));
        } else {
            self.chain.unsigned += 1;
            if self.last_unsigned.as_ref().is_none_or(|last| last.seq < line.seq) {
                self.last_unsigned = Some(Joint::of(place, line));
            }
        }
        let follows = self.open.as_ref().is_some_and(|open| {
            open.last.seq.checked_add(1) == Some(line.seq)
                && line.prev.as_str() == open.hash.to_hex().as_str()
        });
        if !follows {
            self.close();
            let joint = Joint::of(place, line);
            self.open = Some(Stretch {
                first: joint.clone(),
                prev: line.prev.clone(),
                last: joint,
                hash,
                signature: Signature::Missing,
            });
        } else if self.open.as_ref().is_some_and(|open| open.last.run != line.run) {
            // A run begins: the hash before it was read from the disk, and could have been
            // anybody's. Within a run it comes from the sensor's memory.
            self.weigh_last();
        }
        if let Some(open) = self.open.as_mut().filter(|_| follows) {
            let joint = Joint::of(place, line);
            hole(&open.last, &joint, &mut self.chain.holes);
            open.last = joint;
            open.hash = hash;
        }
        self.text.clear();
        self.text.extend_from_slice(text);
    }

    /// A text that is no line. One that the next line tells of is a line that was torn.
    pub fn damaged(&mut self, place: &Place, text: &[u8]) {
        if self.torn.len() < MOST_TORN {
            let hash = blake3::hash(text).to_hex().to_string();
            self.torn.insert(hash, (place.clone(), text.len() as u64));
        }
    }

    /// Whether lines are missing between those that were given: they may stand in files that were
    /// not read.
    pub fn has_gaps(&mut self) -> bool {
        self.close();
        self.stretches.sort_by_key(|stretch| stretch.first.seq);
        self.stretches.windows(2).any(|pair| pair[0].last.seq.saturating_add(1) < pair[1].first.seq)
    }

    /// Whether lines from `from` on may be missing in front of those that were given. To be asked
    /// after [`Self::has_gaps`].
    pub fn begins_behind(&self, from: Nanos) -> bool {
        let first = self.stretches.first().map(|stretch| &stretch.first);
        first.is_none_or(|first| first.seq != 0 && first.from > from)
    }

    /// What all of it says. `complete` where every file of the ledger was given, so that the
    /// chain must begin with its first line.
    #[must_use]
    pub fn finish(mut self, complete: bool) -> Chain {
        self.close();
        self.stretches.sort_by_key(|stretch| stretch.first.seq);
        let stretches = std::mem::take(&mut self.stretches);
        if let Some(first) = stretches.first().filter(|_| complete) {
            self.begins(first);
        }
        for pair in stretches.windows(2) {
            self.joins(&pair[0], &pair[1]);
        }
        self.weigh_unsigned();
        self.chain.head =
            stretches.into_iter().max_by_key(|stretch| stretch.last.seq).map(|end| Head {
                seq: end.last.seq,
                hash: end.hash.to_hex().to_string(),
                place: end.last.place,
                run: end.last.run,
                to: end.last.to,
                clean: end.last.clean,
                signature: end.signature,
            });
        self.chain.breaks.sort_by_key(|found| found.seq);
        self.chain
    }

    fn close(&mut self) {
        self.weigh_last();
        self.stretches.extend(self.open.take());
    }

    /// Verifies the signature of the line given last.
    fn weigh_last(&mut self) {
        let (Some(key), Some(open)) = (&self.key, &mut self.open) else { return };
        open.signature = signed::verify(key, Domain::LedgerLine, &self.text);
        if open.signature == Signature::Wrong {
            let last = open.last.clone();
            self.breaks(
                BreakKind::Signature,
                &last,
                last.from,
                "its signature does not hold".to_owned(),
            );
        }
    }

    fn begins(&mut self, first: &Stretch) {
        let at = first.first.seq;
        if at == 0 && first.prev == NO_HASH || at == 1 && self.explains(first, 0) {
            return;
        }
        let why = match at {
            0 => "it is the first line, but follows another".to_owned(),
            1 => "line 0 of the chain is missing before it".to_owned(),
            _ => format!("lines 0 to {} of the chain are missing before it", at - 1),
        };
        self.breaks(BreakKind::Link, &first.first, first.first.from, why);
    }

    /// Whether the stretch tells of one torn line in front of it, which is there.
    fn explains(&mut self, stretch: &Stretch, seq: u64) -> bool {
        if !stretch.first.tells_torn {
            return false;
        }
        let Some((place, bytes)) = self.torn.get(&stretch.prev) else { return false };
        let torn = Torn { place: place.clone(), bytes: *bytes, seq };
        self.chain.torn.push(torn);
        true
    }

    fn joins(&mut self, before: &Stretch, after: &Stretch) {
        let (last, first) = (&before.last, &after.first);
        let Some(expected) = last.seq.checked_add(1) else {
            let why = "it follows the highest number".to_owned();
            return self.breaks(BreakKind::Link, first, last.from, why);
        };
        if first.seq == expected {
            if after.prev.as_str() == before.hash.to_hex().as_str() {
                hole(last, first, &mut self.chain.holes);
            } else {
                let why = format!(
                    "it does not follow {} any more: one of the two was changed",
                    last.place
                );
                self.breaks(BreakKind::Link, first, last.from, why);
            }
        } else if first.seq < expected {
            let why = format!("line {} of the chain is there twice", first.seq);
            self.breaks(BreakKind::Link, first, last.from, why);
        } else if first.seq - expected > 1 || !self.explains(after, expected) {
            let why = match first.seq - expected {
                1 => format!("line {expected} of the chain is missing before it"),
                _ => format!(
                    "lines {expected} to {} of the chain are missing before it",
                    first.seq - 1
                ),
            };
            self.breaks(BreakKind::Link, first, last.from, why);
        }
    }

    /// Lines without a signature may only be older than all that have one, and not be all.
    fn weigh_unsigned(&mut self) {
        if self.key.is_none() {
            return;
        }
        let Some(unsigned) = self.last_unsigned.clone() else { return };
        let why = match self.first_signed {
            None => "no line bears a signature although the store has a key",
            Some(first) if first < unsigned.seq => {
                "it bears no signature although lines before it do"
            }
            Some(_) => return,
        };
        self.breaks(BreakKind::Unsigned, &unsigned, unsigned.from, why.to_owned());
    }

    fn breaks(&mut self, kind: BreakKind, at: &Joint, from: Nanos, why: String) {
        if self.chain.breaks.len() >= MOST_BREAKS {
            self.chain.more_breaks += 1;
            return;
        }
        let (from, to) = (from.min(at.from), at.to);
        let place = at.place.clone();
        self.chain.breaks.push(Break { kind, place, seq: at.seq, from, to, why });
    }
}

/// Whether a run's time or numbering has a hole between two lines that follow each other. Time that
/// is told twice (the clock was set back) hides nothing.
fn hole(before: &Joint, after: &Joint, holes: &mut Vec<Break>) {
    let why = if before.run != after.run {
        match after.interval {
            0 => return,
            number => format!("its run begins with interval {number}"),
        }
    } else if before.interval.checked_add(1) != Some(after.interval) {
        format!("interval {} follows interval {} of its run", after.interval, before.interval)
    } else if after.from > before.to {
        "its interval does not begin where the one before ends".to_owned()
    } else {
        return;
    };
    if holes.len() < MOST_BREAKS {
        let (place, kind) = (after.place.clone(), BreakKind::Hole);
        holes.push(Break { kind, place, seq: after.seq, from: before.to, to: after.from, why });
    }
}
