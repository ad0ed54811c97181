//! What a canary frame looks like.
//!
//! ```text
//! destination   03:53:57:43:4e:59   multicast, locally administered
//! source        the sender's
//! EtherType     0x88b5              IEEE 802 local experimental 1
//!  0  magic     "SWCN"
//!  4  version   1
//!  5  reserved  0, 0, 0
//!  8  key       first 8 bytes of the public key: which of several it is
//! 16  counter   frames sent since the sender started, big-endian
//! 24  time      wall clock, ns since 1970, big-endian
//! 32  signature Ed25519 over what stands before
//! ```

use capture_flow::time::Nanos;
use capture_store::key::{Domain, PublicKey, SecretKey};

/// IEEE 802 local experimental EtherType 1.
pub const ETHER_TYPE: u16 = 0x88b5;
/// Where canaries are sent: a group address of nobody's, so that every switch floods it.
pub const DESTINATION: [u8; 6] = [0x03, 0x53, 0x57, 0x43, 0x4e, 0x59];
/// Bytes behind the EtherType.
pub const CANARY_LEN: usize = SIGNED_LEN + 64;

const MAGIC: [u8; 4] = *b"SWCN";
const VERSION: u8 = 1;
const SIGNED_LEN: usize = 32;
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// What a canary says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    /// Which key it claims to be signed with.
    pub key: [u8; 8],
    /// Frames that its sender had sent before.
    pub counter: u64,
    /// The sender's wall clock.
    pub at: Nanos,
}

impl Canary {
    /// Which key a public key is.
    #[must_use]
    pub fn key_id(key: &PublicKey) -> [u8; 8] {
        *key.as_bytes().first_chunk::<8>().unwrap_or(&[0; 8])
    }

    /// The payload of a frame.
    #[must_use]
    pub fn sign(counter: u64, at: Nanos, key: &SecretKey) -> [u8; CANARY_LEN] {
        let mut payload = [0; CANARY_LEN];
        let (signed, signature) = payload.split_at_mut(SIGNED_LEN);
        let mut fields = Vec::with_capacity(SIGNED_LEN);
        fields.extend_from_slice(&MAGIC);
        fields.extend_from_slice(&[VERSION, 0, 0, 0]);
        fields.extend_from_slice(&Self::key_id(&key.public()));
        fields.extend_from_slice(&counter.to_be_bytes());
        fields.extend_from_slice(&at.0.to_be_bytes());
        signed.copy_from_slice(&fields);
        signature.copy_from_slice(&key.sign(Domain::Canary, signed));
        payload
    }

    /// Reads what a payload says, without believing it; `None` where it is of a version that is
    /// not known.
    #[must_use]
    pub fn read(payload: &[u8; CANARY_LEN]) -> Option<Self> {
        let version = *payload.get(4)?;
        let part = |at: usize| payload.get(at..)?.first_chunk::<8>().copied();
        (version == VERSION).then_some(())?;
        Some(Self {
            key: part(8)?,
            counter: u64::from_be_bytes(part(16)?),
            at: Nanos(i64::from_be_bytes(part(24)?)),
        })
    }

    /// Whether the key has signed a payload.
    #[must_use]
    pub fn is_signed_by(payload: &[u8; CANARY_LEN], key: &PublicKey) -> bool {
        let (signed, signature) = payload.split_at(SIGNED_LEN);
        signature
            .first_chunk::<64>()
            .is_some_and(|signature| key.verifies(Domain::Canary, signed, signature))
    }
}

/// The payload of an Ethernet frame that looks like a canary, tagged or not.
#[must_use]
pub fn payload(frame: &[u8]) -> Option<&[u8; CANARY_LEN]> {
    let mut rest = frame.get(12..)?;
    for _ in 0..=TAGS.len() {
        let (ether_type, behind) = rest.split_first_chunk::<2>()?;
        let ether_type = u16::from_be_bytes(*ether_type);
        if ether_type == ETHER_TYPE {
            return behind
                .first_chunk::<CANARY_LEN>()
                .filter(|payload| payload.starts_with(&MAGIC));
        }
        if !TAGS.contains(&ether_type) {
            return None;
        }
        rest = behind.get(2..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut frame = DESTINATION.to_vec();
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 1]);
        frame.extend_from_slice(tags);
        frame.extend_from_slice(&ETHER_TYPE.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn a_canary_is_recognised_tagged_padded_or_plain() {
        let key = SecretKey::ephemeral().expect("a key");
        let sent = Canary::sign(7, Nanos(42), &key);
        for tags in [&[][..], &[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6]] {
            let mut bytes = frame(tags, &sent);
            bytes.extend_from_slice(&[0; 9]);
            let found = payload(&bytes).expect("a canary");
            let canary = Canary::read(found).expect("of this version");
            assert_eq!((canary.counter, canary.at), (7, Nanos(42)));
            assert_eq!(canary.key, Canary::key_id(&key.public()));
            assert!(Canary::is_signed_by(found, &key.public()));
            for cut in 0..14 + tags.len() + CANARY_LEN {
                assert!(payload(&bytes[..cut]).is_none(), "cut to {cut}");
            }
        }
        assert!(payload(&frame(&[0x08, 0], &sent)).is_none(), "an IP packet");
        assert!(payload(&frame(&[], &[0; CANARY_LEN])).is_none(), "another experiment");
    }

    #[test]
    fn every_byte_is_signed() {
        let key = SecretKey::ephemeral().expect("a key");
        let sent = Canary::sign(7, Nanos(42), &key);
        for place in 0..CANARY_LEN {
            let mut forged = sent;
            forged[place] ^= 0x10;
            assert!(!Canary::is_signed_by(&forged, &key.public()), "byte {place}");
        }
    }
}
