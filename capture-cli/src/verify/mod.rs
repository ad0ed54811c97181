//! Whether a store is as its sensor wrote it, with nothing but the store and a public key.
//!
//! What the sensor vouches for is in the ledger: each line is signed and carries the hash of the
//! line before, each sealed file's hash is in a line, and each run is bound to `sensor.json`. What
//! is wrong is a [`Finding`]; what the sensor itself says went wrong (a kill, a torn line) is
//! declared, and no finding. `docs/TAMPER.md` says what this proves, and what not.

mod anchors;
mod files;
mod runs;
mod show;
mod walk;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use capture_flow::time::Nanos;
use capture_store::key::PublicKey;
use capture_store::ledger::{BreakKind, Head};
use capture_store::{OpenError, Store};
use serde::Serialize;

pub use anchors::AnchorFile;
pub use show::{write_json, write_text};

use anchors::Anchors;
use files::Files;
use walk::Walk;

/// How long a running sensor may take to write the line about a file that it sealed or removed, and
/// its first line.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long it may take to keep its first anchor.
const FIRST_ANCHOR: Duration = Duration::from_secs(3);
/// How often its ledger is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// Findings of one kind that are told one by one.
const MOST_OF_A_KIND: usize = 1000;

/// What to verify with.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The key to trust. Without it the one in an anchor or in the store is taken.
    pub public_key: Option<PublicKey>,
    /// Files with heads of the ledger that were kept elsewhere.
    pub anchors: Vec<PathBuf>,
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `sensor.json` is not what the ledger is bound to.
    Identity,
    /// There is no key, or another one than expected.
    Key,
    /// A line of the ledger is none, or stands where it does not belong.
    Line,
    /// A line's signature does not hold.
    Signature,
    /// Lines do not follow each other, or are missing.
    Chain,
    /// A run's intervals do not follow each other.
    Interval,
    /// An account does not balance.
    Account,
    /// The ledger's end is not the end of a run.
    End,
    /// A sealed file is missing.
    FileMissing,
    /// A sealed file is not what it was.
    FileChanged,
    /// No line knows a file.
    FileUnknown,
    /// A file's content cannot be checked.
    FileUnchecked,
    /// A file is open although no run can have left it so.
    LeftOpen,
    /// An anchor and the ledger do not agree.
    Anchor,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// Where: a file within the store or an anchor file, and the line in it.
    #[serde(rename = "where")]
    pub place: String,
    /// What, in words.
    pub what: String,
}

/// Findings, told one by one as long as there are not too many of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// One by one.
    pub listed: Vec<Finding>,
    /// How many more there are.
    pub more: u64,
}

impl Findings {
    fn add(&mut self, kind: Kind, place: impl Into<String>, what: impl Into<String>) {
        if self.listed.iter().filter(|finding| finding.kind == kind).count() < MOST_OF_A_KIND {
            self.listed.push(Finding { kind, place: place.into(), what: what.into() });
        } else {
            self.more += 1;
        }
    }
}

/// Where the key comes from that signatures were verified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeySource {
    /// The caller gave it.
    Given,
    /// An anchor, kept elsewhere, names it.
    Anchor,
    /// The store itself names it: who replaces all of the store replaces it as well.
    Store,
}

/// A file whose content nothing vouches for yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OpenFile {
    /// Its path within the store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The store.
    pub store: String,
    /// Its sensor.
    pub sensor: String,
    /// And that one's identity.
    pub sensor_id: String,
    /// What signatures were verified with.
    pub key: Option<(String, KeySource)>,
    /// Whether a sensor writes to the store.
    pub in_use: bool,
    /// Lines of the ledger.
    pub lines: u64,
    /// Lines without a signature, older than all that have one.
    pub unsigned: u64,
    /// Runs.
    pub runs: u64,
    /// The first moment that the ledger speaks of, and the last.
    pub span: Option<(Nanos, Nanos)>,
    /// The chain's end.
    pub head: Option<Head>,
    /// Sealed files that are what the ledger says, and their bytes.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Files that the ledger says were removed.
    pub retired: u64,
    /// Files that are not sealed yet.
    pub open: Vec<OpenFile>,
    /// Anchor files and what they hold.
    pub anchors: Vec<AnchorFile>,
    /// What the ledger itself says went wrong.
    pub declared: Vec<String>,
    /// What is wrong.
    pub findings: Findings,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.findings.listed.is_empty()
    }
}

/// Reads a public key: its digits, or a file that holds them, by itself or as `public_key` in a
/// copy of `sensor.json`.
///
/// # Errors
/// What is wrong with it.
pub fn read_key(text: &str) -> Result<PublicKey, String> {
    /// More than any such file.
    const LIMIT: u64 = 64 * 1024;
    if let Some(key) = PublicKey::parse(text) {
        return Ok(key);
    }
    let mut content = String::new();
    File::open(text).and_then(|file| file.take(LIMIT).read_to_string(&mut content)).map_err(
        |error| format!("{text:?} is neither 64 hexadecimal digits nor a file: {error}"),
    )?;
    let identity = serde_json::from_str::<serde_json::Value>(&content).ok();
    let named = identity.as_ref().and_then(|identity| identity["public_key"].as_str());
    PublicKey::parse(named.unwrap_or(content.trim()))
        .ok_or_else(|| format!("there is no public key in {text}"))
}

/// Verifies the store at a path. One whose `sensor.json` cannot be read is no error, if it was a
/// store: that is a finding.
///
/// # Errors
/// There is no store, or it cannot be read at all.
pub fn verify_path(path: &Path, options: &Options) -> anyhow::Result<Report> {
    match Store::open(path) {
        Ok(store) => verify(&store, options),
        Err(OpenError::NotAStore { why, .. }) if path.join("ledger").is_dir() => {
            let mut findings = Findings::default();
            findings.add(Kind::Identity, "sensor.json", why);
            let store = path.display().to_string();
            Ok(Report { store, findings, ..Report::default() })
        }
        Err(error) => Err(error.into()),
    }
}

/// Verifies a store.
///
/// # Errors
/// The store or an anchor file cannot be read at all. What is wrong with them is in the report.
pub fn verify(store: &Store, options: &Options) -> anyhow::Result<Report> {
    let identity = store.identity();
    let (anchors, mut findings) = load_anchors(store, options)?;
    let key = choose_key(store, options, &anchors, &mut findings);
    let trusted = key.map(|(key, _)| key);
    let mut walk = Walk::new(store, trusted, anchors);
    let unreadable = || format!("cannot read the ledger of {}", store.layout().root().display());
    // Asked before each reading: then what a sensor that ends meanwhile writes last is read.
    let mut in_use = store.is_being_written().unwrap_or(false);
    walk.advance(&mut findings).with_context(unreadable)?;
    let mut files = Files::look(store).context("cannot list the store's files")?;
    files.check(store, &walk.vouched);
    // One may have begun while files were read, which takes long.
    in_use |= store.is_being_written().unwrap_or(false);
    // A running sensor seals and removes files first, then writes the line that says so; it holds
    // the store before its first line says that it has begun.
    let begun = Instant::now();
    while in_use && (files.is_unsettled(&walk) || !walk.run_goes_on()) && begun.elapsed() < PATIENCE
    {
        std::thread::sleep(LOOK);
        in_use = store.is_being_written().unwrap_or(false);
        walk.advance(&mut findings).with_context(unreadable)?;
        files.settle(store, &walk.vouched);
    }
    if in_use {
        // Anchors may be newer than what was read of the ledger at first.
        in_use = store.is_being_written().unwrap_or(false);
        walk.advance(&mut findings).with_context(unreadable)?;
        if !in_use {
            files.settle(store, &walk.vouched);
        }
    }
    let mut report = Report {
        store: store.layout().root().display().to_string(),
        sensor: identity.sensor.clone(),
        sensor_id: identity.sensor_id.clone(),
        key: key.map(|(key, source)| (key.to_string(), source)),
        in_use,
        span: walk.span,
        ..Report::default()
    };
    files.allow_set_aside(walk.set_aside());
    if !in_use && let Some(key) = trusted {
        // What a killed run had no time to say is in no line, but signed all the same.
        walk.take_owed(&key, &mut findings).context("cannot read ledger/owed.jsonl")?;
        files.check(store, &walk.vouched);
    }
    files.check_tails(store, &walk.vouched, in_use);
    conclude(store, walk, files, findings, &mut report)?;
    Ok(report)
}

/// Reads the anchors. A sensor that has just begun may be about to keep its first.
fn load_anchors(store: &Store, options: &Options) -> anyhow::Result<(Anchors, Findings)> {
    let begun = Instant::now();
    loop {
        let mut findings = Findings::default();
        let sensor_id = &store.identity().sensor_id;
        let anchors = Anchors::load(&options.anchors, sensor_id, &mut findings)?;
        let lacks = anchors.files.iter().any(|file| file.anchors == 0);
        if !lacks || begun.elapsed() >= FIRST_ANCHOR || !store.is_being_written().unwrap_or(false) {
            return Ok((anchors, findings));
        }
        std::thread::sleep(LOOK);
    }
}

/// Puts together what was found, once nothing more is read.
fn conclude(
    store: &Store,
    walk: Walk<'_>,
    files: Files,
    mut findings: Findings,
    report: &mut Report,
) -> anyhow::Result<()> {
    let walk::Ledger { chain, runs, vouched, anchors, damaged } =
        walk.finish(report.in_use, &mut findings);
    let torn = |place: &str| chain.torn.iter().any(|torn| torn.place.to_string() == place);
    for damage in &damaged {
        if !torn(&damage.place) {
            findings.add(Kind::Line, &damage.place, &damage.why);
        }
    }
    for found in &chain.breaks {
        match found.kind {
            // Every line's signature was verified by itself.
            BreakKind::Signature => {}
            BreakKind::Unsigned => {
                findings.add(Kind::Signature, found.place.to_string(), &found.why);
            }
            BreakKind::Link | BreakKind::Hole => {
                findings.add(Kind::Chain, found.place.to_string(), &found.why);
            }
        }
    }
    findings.more = findings.more.saturating_add(chain.more_breaks);
    for found in &chain.holes {
        findings.add(Kind::Interval, found.place.to_string(), &found.why);
    }
    for torn in &chain.torn {
        let (place, bytes, seq) = (&torn.place, torn.bytes, torn.seq);
        report
            .declared
            .push(format!("{place}: line {seq} of the chain was torn ({bytes} bytes left)"));
    }
    let identity = store.identity_hash().context("cannot read sensor.json")?;
    runs.conclude(&identity, chain.head.as_ref(), report, &mut findings);
    anchors.conclude(chain.head.as_ref(), &mut findings);
    report.anchors = anchors.files;
    files.conclude(&vouched, chain.head.as_ref(), report, &mut findings);
    report.lines = chain.lines;
    report.unsigned = chain.unsigned;
    report.head = chain.head;
    findings.listed.sort_by(|a, b| (a.kind, &a.place).cmp(&(b.kind, &b.place)));
    report.findings = findings;
    Ok(())
}

/// The key to verify with, and what is wrong with those that are not taken.
fn choose_key(
    store: &Store,
    options: &Options,
    anchors: &Anchors,
    findings: &mut Findings,
) -> Option<(PublicKey, KeySource)> {
    const SENSOR: &str = "sensor.json";
    let own = store.identity().public_key();
    let trusted = (options.public_key.map(|key| (key, KeySource::Given)))
        .or_else(|| anchors.key().map(|key| (key, KeySource::Anchor)));
    match (trusted, own, &store.identity().public_key) {
        (Some((key, _)), Some(own), _) if key != own => {
            findings.add(Kind::Key, SENSOR, format!("the store names the key {own}, not {key}"));
        }
        (_, None, Some(text)) => {
            findings.add(Kind::Key, SENSOR, format!("{text:?} is no public key"));
        }
        (_, None, None) => findings.add(
            Kind::Key,
            SENSOR,
            "there is no public key: the ledger is not signed, and whoever can write to the store \
             can make another one",
        ),
        _ => {}
    }
    trusted.or(own.map(|own| (own, KeySource::Store)))
}
