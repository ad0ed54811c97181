//! Heads of the ledger that were kept elsewhere, against the ledger.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use capture_flow::time::Nanos;
use capture_store::key::PublicKey;
use capture_store::ledger::{Anchor, Head, for_each_line};
use capture_store::signed::Signature;
use serde::Serialize;

use super::{Findings, Kind};

/// What an anchor file holds for this sensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AnchorFile {
    /// The file.
    pub path: String,
    /// Anchors of this sensor in it whose signature holds.
    pub anchors: u64,
    /// Place in the chain of the newest.
    pub last_seq: Option<u64>,
    /// When that one was written.
    #[serde(serialize_with = "time")]
    pub last_at: Option<Nanos>,
}

fn time<S: serde::Serializer>(at: &Option<Nanos>, serializer: S) -> Result<S::Ok, S::Error> {
    capture_store::time::rfc3339::option::serialize(at, serializer)
}

/// One anchor that waits for its line.
#[derive(Debug)]
struct Waiting {
    place: String,
    head: String,
    at: Nanos,
    met: bool,
}

/// All anchors of a sensor.
#[derive(Debug, Default)]
pub(super) struct Anchors {
    pub(super) files: Vec<AnchorFile>,
    by_seq: BTreeMap<u64, Vec<Waiting>>,
    keys: Vec<PublicKey>,
}

impl Anchors {
    /// Reads the files; lines that are no anchor, or another sensor's, are left out.
    pub(super) fn load(
        paths: &[PathBuf],
        sensor_id: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<Self> {
        let mut anchors = Self::default();
        for path in paths {
            anchors.load_file(path, sensor_id, findings)?;
        }
        if let [first, others @ ..] = &anchors.keys[..]
            && !others.is_empty()
        {
            let what = format!("anchors name {} keys besides {first}", others.len());
            let place = anchors.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>();
            findings.add(Kind::Anchor, place.join(", "), what);
        }
        Ok(anchors)
    }

    fn load_file(
        &mut self,
        path: &Path,
        sensor_id: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let mut file = AnchorFile { path: name.clone(), anchors: 0, last_seq: None, last_at: None };
        let each = |number: u64, text: &[u8], _: bool| {
            let Some((anchor, signature)) = Anchor::parse(text) else { return };
            if anchor.sensor_id != sensor_id {
                return;
            }
            let place = format!("{name} line {number}");
            let key = PublicKey::parse(&anchor.public_key);
            let Some(key) = key.filter(|_| signature == Signature::Valid) else {
                return findings.add(
                    Kind::Anchor,
                    place,
                    "the anchor's own signature does not hold: it was forged or damaged",
                );
            };
            if !self.keys.contains(&key) {
                self.keys.push(key);
            }
            file.anchors += 1;
            if file.last_seq.is_none_or(|last| last <= anchor.seq) {
                (file.last_seq, file.last_at) = (Some(anchor.seq), Some(anchor.at));
            }
            let waiting = Waiting { place, head: anchor.head, at: anchor.at, met: false };
            self.by_seq.entry(anchor.seq).or_default().push(waiting);
        };
        for_each_line(path, each).with_context(|| format!("cannot read the anchors {name}"))?;
        if file.anchors == 0 {
            let what = format!("there is no anchor of sensor {sensor_id} in it");
            findings.add(Kind::Anchor, &name, what);
        }
        self.files.push(file);
        Ok(())
    }

    /// The key that all anchors name.
    pub(super) fn key(&self) -> Option<PublicKey> {
        match self.keys[..] {
            [key] => Some(key),
            _ => None,
        }
    }

    /// A line of the chain and its hash.
    pub(super) fn meet(&mut self, seq: u64, hash: &blake3::Hash) {
        for waiting in self.by_seq.get_mut(&seq).into_iter().flatten() {
            waiting.met |= waiting.head.as_str() == hash.to_hex().as_str();
        }
    }

    /// What the anchors know that the ledger does not.
    pub(super) fn conclude(&self, head: Option<&Head>, findings: &mut Findings) {
        for (seq, waiting) in &self.by_seq {
            for anchor in waiting.iter().filter(|anchor| !anchor.met) {
                let at = capture_store::time::to_rfc3339(anchor.at);
                let what = if head.is_none_or(|head| head.seq < *seq) {
                    let end =
                        head.map_or("empty".to_owned(), |head| format!("at line {}", head.seq));
                    format!(
                        "the ledger is cut off: it was at line {seq} of the chain by {at}, now it \
                         ends {end}"
                    )
                } else {
                    format!("line {seq} of the chain is not the one that was its head at {at}")
                };
                findings.add(Kind::Anchor, &anchor.place, what);
            }
        }
    }
}
