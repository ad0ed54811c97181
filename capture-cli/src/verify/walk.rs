//! Reads the ledger line by line and checks each by itself; what it says about files and runs is
//! collected on the way.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use capture_flow::time::Nanos;
use capture_store::Store;
use capture_store::key::{Domain, PublicKey};
use capture_store::ledger::{
    Chain, ChainFold, LedgerLine, Place, Vouched, day_files, imbalances, owed,
};
use capture_store::signed::{self, Signature};

use super::anchors::Anchors;
use super::runs::Runs;
use super::{Findings, Kind};
use crate::progress::Progress;

/// Bytes and lines that are checked at once.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_LINES: usize = 4096;
/// More than any line: a longer one is none.
const LINE_LIMIT: u64 = 16 << 20;

/// A text in the ledger that is no line.
#[derive(Debug)]
pub(super) struct Damaged {
    pub(super) place: String,
    pub(super) why: String,
}

/// How far a file has been read.
#[derive(Debug, Default)]
struct Reached {
    offset: u64,
    lines: u64,
    last_seq: Option<u64>,
}

/// A line after it was looked at by itself.
struct Checked {
    hash: blake3::Hash,
    line: Result<LedgerLine, String>,
    signature: Signature,
    imbalances: Vec<String>,
}

/// Everything that the ledger says.
pub(super) struct Ledger {
    pub(super) chain: Chain,
    pub(super) runs: Runs,
    pub(super) vouched: Vouched,
    pub(super) anchors: Anchors,
    pub(super) damaged: Vec<Damaged>,
}

/// A ledger being read.
pub(super) struct Walk<'a> {
    store: &'a Store,
    key: Option<PublicKey>,
    reached: BTreeMap<PathBuf, Reached>,
    fold: ChainFold,
    anchors: Anchors,
    runs: Runs,
    damaged: Vec<Damaged>,
    threads: usize,
    pub(super) vouched: Vouched,
    pub(super) span: Option<(Nanos, Nanos)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(store: &'a Store, key: Option<PublicKey>, anchors: Anchors) -> Self {
        Self {
            store,
            key,
            reached: BTreeMap::new(),
            fold: ChainFold::new(key),
            anchors,
            runs: Runs::default(),
            damaged: Vec::new(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            vouched: Vouched::default(),
            span: None,
        }
    }

    /// Reads whatever whole lines there are that were not read before.
    pub(super) fn advance(&mut self, findings: &mut Findings) -> io::Result<()> {
        let mut progress = Progress::new("verifying lines");
        for path in day_files(self.store)? {
            let shared: Arc<Path> = path.as_path().into();
            loop {
                let (batch, _) = self.next_batch(&path)?;
                if batch.is_empty() {
                    break;
                }
                progress.advance(batch.len() as u64);
                self.take(&shared, &batch, findings);
            }
        }
        progress.done();
        Ok(())
    }

    /// The next lines of a file, without their ends; and what stands behind the last line's end.
    fn next_batch(&self, path: &Path) -> io::Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let mut file = File::open(path)?;
        let offset = self.reached.get(path).map_or(0, |reached| reached.offset);
        file.seek(SeekFrom::Start(offset))?;
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < BATCH_LINES && bytes < BATCH_BYTES {
            let mut text = Vec::new();
            let read = (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut text)?;
            if text.last() != Some(&b'\n') && (read as u64) < LINE_LIMIT {
                return Ok((batch, text));
            }
            if text.last() == Some(&b'\n') {
                text.pop();
            }
            bytes += read;
            batch.push(text);
        }
        Ok((batch, Vec::new()))
    }

    /// Checks lines by themselves, all cores at it, then puts them behind the others.
    fn take(&mut self, path: &Arc<Path>, batch: &[Vec<u8>], findings: &mut Findings) {
        let key = self.key;
        let share = batch.len().div_ceil(self.threads).max(1);
        let checked: Vec<Checked> = std::thread::scope(|scope| {
            let threads: Vec<_> = batch
                .chunks(share)
                .map(|texts| {
                    scope.spawn(move || {
                        texts.iter().map(|text| check(text, key.as_ref())).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| match thread.join() {
                    Ok(checked) => checked,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        for (text, checked) in batch.iter().zip(checked) {
            let reached = self.reached.entry(path.to_path_buf()).or_default();
            reached.lines += 1;
            reached.offset += text.len() as u64 + 1;
            let place = Place { path: Arc::clone(path), line: reached.lines };
            self.line(&place, text, checked, findings);
        }
    }

    fn line(&mut self, place: &Place, text: &[u8], checked: Checked, findings: &mut Findings) {
        let line = match checked.line {
            Ok(line) => line,
            Err(why) => {
                self.fold.damaged(place, text);
                let why = if text.is_empty() { "an empty line".to_owned() } else { why };
                self.damaged.push(Damaged { place: place.to_string(), why });
                return;
            }
        };
        if checked.signature == Signature::Wrong {
            findings.add(Kind::Signature, place.to_string(), "its signature does not hold");
        }
        for imbalance in checked.imbalances {
            findings.add(Kind::Account, place.to_string(), imbalance);
        }
        let identity = self.store.identity();
        if line.sensor != identity.sensor {
            findings.add(
                Kind::Line,
                place.to_string(),
                format!("it is of sensor {:?}", line.sensor),
            );
        }
        let home = self.store.layout().ledger_day(&identity.sensor, line.to);
        if home.as_path() != &*place.path {
            let name = home.file_name().unwrap_or_default().to_string_lossy().into_owned();
            findings.add(
                Kind::Line,
                place.to_string(),
                format!("by its time it belongs into {name}"),
            );
        }
        let reached = self.reached.entry(place.path.to_path_buf()).or_default();
        if reached.last_seq.replace(line.seq).is_some_and(|before| before >= line.seq) {
            findings.add(
                Kind::Line,
                place.to_string(),
                "it stands behind a line that was written later",
            );
        }
        self.fold.line(place, text, checked.hash, &line);
        self.anchors.meet(line.seq, &checked.hash);
        self.runs.add(&line, &place.to_string());
        self.vouched.add_line(&line);
        let (from, to) = self.span.unwrap_or((line.from, line.to));
        self.span = Some((from.min(line.from), to.max(line.to)));
    }

    /// Takes the notes that wait for a line.
    pub(super) fn take_owed(&mut self, key: &PublicKey, findings: &mut Findings) -> io::Result<()> {
        for note in owed(self.store, key)? {
            match note {
                Ok(note) => self.vouched.add(&[note]),
                Err(why) => findings.add(Kind::Signature, "ledger/owed.jsonl", why),
            }
        }
        Ok(())
    }

    /// The end of the reading. Unfinished ends of files are torn lines, unless the running sensor
    /// is just writing one.
    pub(super) fn finish(mut self, in_use: bool, findings: &mut Findings) -> Ledger {
        let paths: Vec<PathBuf> = self.reached.keys().cloned().collect();
        let files = day_files(self.store).unwrap_or(paths);
        let newest = files.iter().max_by_key(|path| modified(path)).cloned();
        for path in files {
            let Ok((rest, end)) = self.next_batch(&path) else { continue };
            // More came meanwhile: the sensor writes on.
            if end.is_empty() || !rest.is_empty() || in_use && newest.as_ref() == Some(&path) {
                continue;
            }
            let number = self.reached.get(&path).map_or(0, |reached| reached.lines) + 1;
            let place = Place { path: path.as_path().into(), line: number };
            let checked = check(&end, self.key.as_ref());
            if checked.line.is_ok() {
                findings.add(Kind::Line, place.to_string(), "the line's end is missing");
            }
            self.line(&place, &end, checked, findings);
        }
        foreign_files(self.store, findings);
        Ledger {
            chain: self.fold.finish(true),
            runs: self.runs,
            vouched: self.vouched,
            anchors: self.anchors,
            damaged: self.damaged,
        }
    }

    /// Whether the newest run has begun and not ended.
    pub(super) fn run_goes_on(&self) -> bool {
        self.runs.newest_goes_on()
    }

    /// Whether recoveries set anything aside.
    pub(super) fn set_aside(&self) -> bool {
        self.runs.set_aside
    }
}

fn check(text: &[u8], key: Option<&PublicKey>) -> Checked {
    let line = serde_json::from_slice::<LedgerLine>(text).map_err(|error| error.to_string());
    let imbalances = line.as_ref().map_or_else(
        |_| Vec::new(),
        |line| imbalances(line).iter().map(ToString::to_string).collect(),
    );
    let signature = match key {
        Some(key) if line.is_ok() => signed::verify(key, Domain::LedgerLine, text),
        _ => Signature::Missing,
    };
    Checked { hash: blake3::hash(text), line, signature, imbalances }
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// Whatever lies in the ledger's directory besides the day files.
fn foreign_files(store: &Store, findings: &mut Findings) {
    let own = store.layout().ledger(&store.identity().sensor);
    let Some(all) = own.parent() else { return };
    let owed = store.layout().owed();
    let entries = |dir: &Path| {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
    };
    for path in entries(all).filter(|path| *path != own && *path != owed) {
        let place = path.strip_prefix(store.layout().root()).unwrap_or(&path).display();
        findings.add(
            Kind::FileUnknown,
            place.to_string(),
            "no sensor of this store has its ledger there",
        );
    }
    for path in entries(&own) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let date = name.strip_prefix("date=").and_then(|name| name.strip_suffix(".ndjson"));
        let is_day = date.is_some_and(|date| {
            date.len() == 10 && date.bytes().all(|c| c.is_ascii_digit() || c == b'-')
        });
        let is_file = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
        if !is_day || !is_file {
            let place = path.strip_prefix(store.layout().root()).unwrap_or(&path).display();
            findings.add(Kind::FileUnknown, place.to_string(), "it is no day of the ledger");
        }
    }
}
