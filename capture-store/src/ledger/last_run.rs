//! What the run that wrote last had said of files that were still open, against what is there now.
//!
//! Lines of the ledger and what they speak of reach the disk each in its own time. After a power
//! loss the ledger can be ahead: it promises rows, and counts frames, that are not there any more.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;

use crate::boot::boot_id;
use crate::key::PublicKey;
use crate::layout::{self, Layout};

use super::line::{Doubt, LedgerLine, Note, OpenTail, SealedFile};
use super::reader::for_each_line;
use super::vouched::check_tail;
use super::writer::last_believed;

/// The run of the chain's last line.
pub(crate) struct LastRun {
    line: LedgerLine,
    /// The day file with the last line, and the one before: what is older is on the disk, or
    /// was changed by somebody.
    days: Vec<PathBuf>,
}

/// An open tail that is not what it was.
pub(crate) struct Broken {
    /// Which rows are not to be relied on.
    pub(crate) doubt: Doubt,
    /// Bytes that are not there.
    pub(crate) missing: u64,
    /// Whether it is a beginning of what was written, as a power loss leaves it.
    pub(crate) is_cut: bool,
}

/// Frames that the run had counted and that lie in no segment.
pub(crate) struct Frames {
    /// About how many.
    pub(crate) lost: u64,
    /// All before this moment are there.
    pub(crate) from: Nanos,
    /// When the last of them was counted.
    pub(crate) to: Nanos,
}

impl LastRun {
    /// Finds it; `None` where there is none, or where the last line is not the sensor's.
    pub(crate) fn find(layout: &Layout, sensor: &str, key: &PublicKey) -> io::Result<Option<Self>> {
        let Some((newest, line)) = last_believed(layout, sensor, key)? else { return Ok(None) };
        let dir = layout.ledger(sensor);
        let names = layout::names_in(&dir)?;
        let days = names.iter().filter(|name| name.ends_with(".ndjson")).map(|name| dir.join(name));
        let mut days: Vec<PathBuf> = days.filter(|day| *day <= newest).collect();
        drop(days.drain(..days.len().saturating_sub(2)));
        Ok(Some(Self { line, days }))
    }

    /// Files of the session log that were open at its last line.
    pub(crate) fn tails(&self) -> &[OpenTail] {
        &self.line.tails
    }

    /// Whether it ended in order.
    pub(crate) fn is_clean(&self) -> bool {
        self.line.notes.contains(&Note::CleanStop)
    }

    /// Whether the machine was restarted since.
    pub(crate) fn was_before_restart(&self) -> bool {
        match (&self.line.boot_id, boot_id()) {
            (Some(then), Some(now)) => *then != now,
            _ => false,
        }
    }

    /// Compares an open tail with what the last line says about it; `None` where that holds.
    pub(crate) fn broken(&self, root: &Path, tail: &OpenTail) -> io::Result<Option<Broken>> {
        if check_tail(root, tail).is_ok() {
            return Ok(None);
        }
        let mut claims: Vec<(OpenTail, Nanos)> = Vec::new();
        // Of a line before the first that knows the file: what it promises lies in others.
        let mut promised = Nanos::MIN;
        self.each_line(|line| {
            // No frame of the run is older than its first interval.
            let begin = if line.interval == 0 { line.from } else { Nanos::MIN };
            let through = line.complete_through.unwrap_or(begin).max(begin);
            match line.tails.into_iter().find(|known| known.path == tail.path) {
                Some(claim) => claims.push((claim, through)),
                None if claims.is_empty() => promised = through,
                None => {}
            }
        })?;
        let (held, len, contradicted) = compare(&root.join(&tail.path), &claims)?;
        // The last word counts: a frame that came late takes a promise back.
        let since = claims.get(held.unwrap_or(0)..).unwrap_or_default();
        let promises = since.iter().map(|(_, through)| *through);
        let from = promises.fold(if held.is_some() { Nanos::MAX } else { promised }, Nanos::min);
        let doubt = Doubt { from: from.min(self.line.to), to: self.line.to };
        let missing = tail.bytes.saturating_sub(len);
        Ok(Some(Broken { doubt, missing, is_cut: missing > 0 && !contradicted }))
    }

    /// Frames that its lines count as written, behind the last one that is in a segment. `sealed`
    /// are the files that no line knows yet, what was recovered among them.
    pub(crate) fn frames_lost(&self, sealed: &[Note]) -> io::Result<Option<Frames>> {
        let mut there: HashMap<u16, Nanos> = HashMap::new();
        let mut add = |notes: &[Note]| {
            for note in notes {
                if let Note::Sealed(file) = note
                    && let Some(worker) = worker_of(file)
                {
                    let last = there.entry(worker).or_insert(Nanos::MIN);
                    *last = file.last_ts.max(*last);
                }
            }
        };
        add(sealed);
        let mut counted = Vec::new();
        self.each_line(|line| {
            add(&line.notes);
            counted.extend(line.workers.iter().map(|w| (line.from, w.worker, w.written)));
        })?;
        let last_of = |worker: u16| there.get(&worker).copied().unwrap_or(Nanos::MIN);
        let is_lost =
            |(from, worker, written): &&(Nanos, u16, u64)| *written > 0 && *from > last_of(*worker);
        let lost =
            counted.iter().filter(is_lost).fold(0_u64, |sum, (_, _, n)| sum.saturating_add(*n));
        let from = counted.iter().filter(is_lost).map(|(from, ..)| *from).min();
        Ok(from.map(|from| Frames { lost, from, to: self.line.to }))
    }

    /// Calls `each` with the run's lines, as far back as the day before its last one.
    fn each_line(&self, mut each: impl FnMut(LedgerLine)) -> io::Result<()> {
        for day in &self.days {
            for_each_line(day, |_, text, _| {
                if let Ok(line) = serde_json::from_slice::<LedgerLine>(text)
                    && line.run == self.line.run
                {
                    each(line);
                }
            })?;
        }
        Ok(())
    }
}

/// The worker whose packets a sealed file has.
fn worker_of(file: &SealedFile) -> Option<u16> {
    let (worker, name) = file.path.strip_prefix("pcap/")?.split_once('/')?;
    name.ends_with(".pcap").then(|| layout::worker_of(worker)).flatten()
}

/// Which is the last of the claims about a file that holds, the file's length, and whether a
/// claim that it is long enough for does not.
fn compare(path: &Path, claims: &[(OpenTail, Nanos)]) -> io::Result<(Option<usize>, u64, bool)> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((None, 0, false)),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    let (mut held, mut contradicted) = (None, false);
    let (mut hasher, mut hashed) = (blake3::Hasher::new(), 0);
    // They grow: each part of the file is read once.
    for (place, (claim, _)) in claims.iter().enumerate() {
        if claim.bytes > len || claim.bytes < hashed {
            continue;
        }
        hasher.update_reader((&mut file).take(claim.bytes - hashed))?;
        hashed = claim.bytes;
        if hasher.finalize().to_hex().as_str() == claim.blake3 {
            held = Some(place);
        } else {
            contradicted = true;
        }
    }
    Ok((held, len, contradicted))
}
