//! A head of the ledger, signed, to be kept where whoever gets at the store does not: it shows
//! when the ledger's end was cut off, or all of it replaced.

use capture_flow::time::Nanos;
use serde::{Deserialize, Serialize};

use crate::key::{Domain, PublicKey, SecretKey};
use crate::signed::{self, Signature};

/// What one line of an anchor file says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Version of the format.
    pub anchor: u32,
    /// The store's sensor.
    pub sensor_id: String,
    /// The key that the ledger is signed with.
    pub public_key: String,
    /// The head's place in the chain.
    pub seq: u64,
    /// BLAKE3 of that line, in hex.
    pub head: String,
    /// When it was the head, by the wall clock.
    #[serde(with = "crate::time::rfc3339")]
    pub at: Nanos,
    /// The sensor's signature over the text before this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sig: String,
}

impl Anchor {
    /// Version of the format that this build writes.
    pub const VERSION: u32 = 1;

    /// The line to keep, without its end.
    ///
    /// # Errors
    /// It has no JSON form.
    pub fn signed(mut self, key: &SecretKey) -> Result<String, serde_json::Error> {
        self.sig.clear();
        let mut text = serde_json::to_vec(&self)?;
        signed::sign(key, Domain::Anchor, &mut text);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Reads a line of an anchor file, or of a log with other things in front (syslog), and
    /// whether the key that it names has signed it. `None` where there is no anchor in it.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<(Self, Signature)> {
        let begin = line.windows(BEGIN.len()).position(|part| part == BEGIN)?;
        let text = line.get(begin..)?.trim_ascii_end();
        let anchor: Self = serde_json::from_slice(text).ok()?;
        let signature = match PublicKey::parse(&anchor.public_key) {
            Some(key) => signed::verify(&key, Domain::Anchor, text),
            None => Signature::Wrong,
        };
        Some((anchor, signature))
    }
}

/// What every anchor begins with.
const BEGIN: &[u8] = b"{\"anchor\":";

#[cfg(test)]
mod tests {
    use super::*;

    fn anchor(key: &SecretKey) -> Anchor {
        Anchor {
            anchor: Anchor::VERSION,
            sensor_id: "00ff".to_owned(),
            public_key: key.public().to_string(),
            seq: 7,
            head: "ab".repeat(32),
            at: Nanos(1_170_397_500_000_000_000),
            sig: String::new(),
        }
    }

    #[test]
    fn an_anchor_comes_back_from_a_file_and_from_a_log() {
        let key = SecretKey::ephemeral().unwrap();
        let text = anchor(&key).signed(&key).unwrap();
        for line in [text.clone(), format!("Nov 25 02:00:00 host stillwired[1]: {text}\r\n")] {
            let (read, signature) = Anchor::parse(line.as_bytes()).unwrap();
            assert_eq!(signature, Signature::Valid);
            assert_eq!(Anchor { sig: String::new(), ..read }, anchor(&key));
        }
        assert_eq!(Anchor::parse(b"Nov 25 02:00:00 host sshd[1]: {\"a\":1}"), None);
    }

    #[test]
    fn a_changed_anchor_is_known() {
        let (key, other) = (SecretKey::ephemeral().unwrap(), SecretKey::ephemeral().unwrap());
        let text = anchor(&key).signed(&key).unwrap();
        let changed = text.replace("\"seq\":7", "\"seq\":8");
        assert_eq!(Anchor::parse(changed.as_bytes()).unwrap().1, Signature::Wrong);
        let forged = anchor(&key).signed(&other).unwrap();
        assert_eq!(Anchor::parse(forged.as_bytes()).unwrap().1, Signature::Wrong);
    }
}
