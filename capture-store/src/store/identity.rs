//! Who a store belongs to: `sensor.json`.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::layout::{self, SENSOR_FILE};
use crate::time::now;

use super::error::OpenError;

/// Version of the disk format that this build writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;
/// What `sensor.json` says a store is.
const FORMAT: &str = "stillwire-store";
/// More than any `sensor.json`: a larger file is none.
pub(super) const SENSOR_FILE_LIMIT: u64 = 64 * 1024;

/// Who a store belongs to: `sensor.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Always `stillwire-store`.
    pub format: String,
    /// Version of everything in the store.
    pub format_version: u32,
    /// The sensor's name, as in the column `sensor`.
    pub sensor: String,
    /// 128 random bits in hex: two sensors with one name stay apart.
    pub sensor_id: String,
    /// Secret seed of the session hash, 64 bits in hex.
    pub hash_seed: String,
    /// When the store was made.
    #[serde(with = "crate::time::rfc3339")]
    pub created: Nanos,
    /// The key that ledger signatures are verified with; missing until the store of an older
    /// Stillwire is written to again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// Whether simulations write to it, and nothing else ever does: what is in it is no evidence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

/// What is written to a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// What was on a wire, or in capture files.
    #[default]
    Record,
    /// What a simulation makes. Such a store is a simulation's for ever: its budget removes no
    /// packet that anybody could need, and none of its sessions is taken for one that was there.
    Simulation,
}

impl Identity {
    /// The seed for [`capture_flow::key::FlowHash`].
    #[must_use]
    pub fn hash_seed(&self) -> u64 {
        // Checked when the identity was read.
        u64::from_str_radix(&self.hash_seed, 16).unwrap_or(0)
    }

    /// The key that ledger signatures are verified with, if there is one that can be used.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        self.public_key.as_deref().and_then(PublicKey::parse)
    }

    fn new(sensor: &str, key: &PublicKey, purpose: Purpose) -> io::Result<Self> {
        Ok(Self {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            sensor: sensor.to_owned(),
            sensor_id: format!("{:032x}", random_u128()?),
            hash_seed: format!("{:016x}", random_u128()? as u64),
            created: now(),
            public_key: Some(key.to_string()),
            simulated: purpose == Purpose::Simulation,
        })
    }
}

/// 128 bits from the kernel.
///
/// # Errors
/// `/dev/urandom` cannot be read.
pub fn random_u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Reads `sensor.json`; `None` where there is none.
pub(super) fn read_identity(path: &Path) -> Result<Option<Identity>, OpenError> {
    let file = path.join(SENSOR_FILE);
    let mut content = String::new();
    let opened = File::open(&file)
        .and_then(|opened| opened.take(SENSOR_FILE_LIMIT).read_to_string(&mut content));
    match opened {
        Ok(_) => {}
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(OpenError::NotAStore {
                path: path.to_owned(),
                why: format!("{SENSOR_FILE} is not text"),
            });
        }
        Err(error) => return Err(OpenError::io("read", &file, error)),
    }
    let damaged = |why: String| OpenError::NotAStore {
        path: path.to_owned(),
        why: format!("{SENSOR_FILE}: {why}"),
    };
    // The version first: a newer format may have other fields.
    #[derive(Deserialize)]
    struct Version {
        format: String,
        format_version: u32,
    }
    let version: Version =
        serde_json::from_str(&content).map_err(|error| damaged(error.to_string()))?;
    if version.format != FORMAT {
        return Err(damaged(format!("the format is {:?}", version.format)));
    }
    if version.format_version > FORMAT_VERSION {
        return Err(OpenError::NewerFormat {
            path: path.to_owned(),
            found: version.format_version,
        });
    }
    let identity: Identity =
        serde_json::from_str(&content).map_err(|error| damaged(error.to_string()))?;
    if u64::from_str_radix(&identity.hash_seed, 16).is_err() {
        return Err(damaged("hash_seed is not a hexadecimal number".to_owned()));
    }
    Ok(Some(identity))
}

pub(super) fn create_identity(
    path: &Path,
    sensor: Option<&str>,
    key: &PublicKey,
    purpose: Purpose,
) -> Result<Identity, OpenError> {
    let named = match sensor {
        Some(name) => name.to_owned(),
        None => host_name(),
    };
    let identity = Identity::new(&named, key, purpose)
        .map_err(|error| OpenError::io("write", &path.join(SENSOR_FILE), error))?;
    write_identity(path, identity)
}

pub(super) fn write_identity(path: &Path, identity: Identity) -> Result<Identity, OpenError> {
    let file = path.join(SENSOR_FILE);
    let written =
        serde_json::to_vec_pretty(&identity).map_err(io::Error::from).and_then(|mut text| {
            text.push(b'\n');
            layout::write_whole(&file, &text, true)
        });
    written.map_err(|error| OpenError::io("write", &file, error))?;
    Ok(identity)
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "sensor".to_owned() } else { name.to_owned() }
}
