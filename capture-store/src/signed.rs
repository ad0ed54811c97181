//! JSON objects whose last field signs everything before it.
//!
//! ```text
//! {"v":1, … ,"notes":[],"sig":"<128 hexadecimal digits>"}
//! └─────── signed ──────┘
//! ```
//! The signature is over the text, not over the values: nothing has to be put into a canonical
//! form, and no byte can change without being noticed.

use crate::key::{Domain, PublicKey, SIGNATURE_DIGITS, SecretKey, from_hex, to_hex};

const FIELD: &[u8] = b",\"sig\":\"";
const END: &[u8] = b"\"}";
const TAIL: usize = FIELD.len() + SIGNATURE_DIGITS + END.len();

/// Whether a text bears the signature that it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// It does.
    Valid,
    /// It bears none: an older Stillwire wrote it, or somebody took it off.
    Missing,
    /// It bears one that is not the key's for this text.
    Wrong,
}

/// Puts the signature behind the last field of an object; returns its digits.
pub(crate) fn sign(key: &SecretKey, domain: Domain, object: &mut Vec<u8>) -> String {
    if object.last() == Some(&b'}') {
        object.pop();
    }
    let digits = to_hex(&key.sign(domain, object));
    object.extend_from_slice(FIELD);
    object.extend_from_slice(digits.as_bytes());
    object.extend_from_slice(END);
    digits
}

/// Verifies an object's signature; `text` is without the line's end.
#[must_use]
pub fn verify(key: &PublicKey, domain: Domain, text: &[u8]) -> Signature {
    let Some((signed, tail)) = split(text) else { return Signature::Missing };
    let signature = tail.strip_prefix(FIELD).and_then(|tail| tail.strip_suffix(END));
    match signature.and_then(from_hex::<64>) {
        Some(signature) if key.verifies(domain, signed, &signature) => Signature::Valid,
        _ => Signature::Wrong,
    }
}

/// Whether an object bears anything that looks like a signature.
#[must_use]
pub fn is_signed(text: &[u8]) -> bool {
    split(text).is_some()
}

/// What is signed, and the field that signs it.
fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (signed, tail) = text.split_at_checked(text.len().checked_sub(TAIL)?)?;
    tail.starts_with(FIELD).then_some((signed, tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_signed_object_matters() {
        let key = SecretKey::ephemeral().unwrap();
        let mut text = br#"{"a":1,"b":"x"}"#.to_vec();
        let digits = sign(&key, Domain::Anchor, &mut text);
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(value["sig"], digits.as_str());
        assert_eq!((&value["a"], &value["b"]), (&1.into(), &"x".into()));
        let public = key.public();
        assert_eq!(verify(&public, Domain::Anchor, &text), Signature::Valid);
        assert_eq!(verify(&public, Domain::LedgerLine, &text), Signature::Wrong);
        for place in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone();
                changed[place] ^= 1 << bit;
                assert_ne!(verify(&public, Domain::Anchor, &changed), Signature::Valid, "{place}");
            }
            assert_ne!(verify(&public, Domain::Anchor, &text[..place]), Signature::Valid);
        }
        text.push(b' ');
        assert_ne!(verify(&public, Domain::Anchor, &text), Signature::Valid);
    }

    #[test]
    fn an_object_without_a_signature_is_unsigned() {
        let key = SecretKey::ephemeral().unwrap().public();
        for text in [&b"{}"[..], b"", b"{\"a\":\"sig\"}", &[b'x'; 400]] {
            assert_eq!(verify(&key, Domain::LedgerLine, text), Signature::Missing);
            assert!(!is_signed(text));
        }
    }
}
