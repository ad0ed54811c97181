//! The name of a run.

use std::fmt;
use std::io;
use std::num::NonZeroU32;

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::provenance::RunTag;
use crate::time::to_rfc3339;

use super::identity::random_u128;

/// Names one run of a sensor: a sortable UTC time and random digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// A new run that starts at `started`.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be read.
    pub fn new(started: Nanos) -> io::Result<Self> {
        let text = to_rfc3339(started);
        let time: String = text.chars().take(19).filter(|c| !matches!(c, '-' | ':')).collect();
        Ok(Self(format!("{time}Z-{:08x}", random_u128()? as u32)))
    }

    /// A run named by a file or a ledger line; `None` where the text cannot be one (it becomes
    /// part of paths).
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The run in few bytes, for each segment to carry: the first of its name's BLAKE3. Two runs
    /// of a store hardly ever share one, and then only lose what it tells apart.
    #[must_use]
    pub fn tag(&self) -> RunTag {
        let hash = blake3::hash(self.0.as_bytes());
        let first = hash.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        RunTag(NonZeroU32::new(first).unwrap_or(NonZeroU32::MIN))
    }
}

impl<'de> Deserialize<'de> for RunId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("not a run id"))
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
