//! Keys that vouch for what a sensor or a canary says: Ed25519.
//!
//! What is signed is never the text itself but a message of 64 bytes: the name of its [`Domain`],
//! and the BLAKE3 of the text. So a signature made for one purpose is none for another.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::{Zeroize, Zeroizing};

use crate::layout::{self, TEMPORARY};

/// Mode of a file that holds a secret.
const SECRET_MODE: u32 = 0o600;
/// More than any key file: a larger file is none.
const KEY_FILE_LIMIT: u64 = 4096;
/// Hexadecimal digits of a signature.
pub const SIGNATURE_DIGITS: usize = 128;

/// What a signature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Domain {
    /// A line of the ledger.
    LedgerLine,
    /// A head of the ledger, kept elsewhere.
    Anchor,
    /// A canary frame.
    Canary,
    /// A note that the ledger still has to be told.
    Owed,
}

impl Domain {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::LedgerLine => b"stillwire ledger line 1",
            Self::Anchor => b"stillwire anchor 1",
            Self::Canary => b"stillwire canary 1",
            Self::Owed => b"stillwire owed note 1",
        }
    }

    /// What is signed for a text: the domain's name, filled up with zeros, and the text's hash.
    fn message(self, text: &[u8]) -> [u8; 64] {
        let mut message = [0; 64];
        let (name, hash) = message.split_at_mut(32);
        for (to, from) in name.iter_mut().zip(self.name()) {
            *to = *from;
        }
        hash.copy_from_slice(blake3::hash(text).as_bytes());
        message
    }
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The kernel's answer.
    #[error("cannot {doing} the key {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The key file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something else is in the file.
    #[error("{path} is not a key: it must hold 64 hexadecimal digits")]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The secret is none.
    #[error(
        "others may read the key {path} (mode {mode:o}): whoever has it can forge what it signs; \
         `chmod 600` it if you know that nobody took it"
    )]
    OthersMayRead {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// A secret key. It is wiped from memory when dropped, and never printed.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// Reads the key from a file; makes both where there is no such file. Says whether it was
    /// made.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open_or_create(path: &Path) -> Result<(Self, bool), KeyError> {
        match Self::open(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path).map(|key| (key, true))
            }
            other => other.map(|key| (key, false)),
        }
    }

    /// Reads the key from a file.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { doing: "read", path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::OthersMayRead { path: path.to_owned(), mode });
        }
        // Room for all of it: growing would leave copies behind.
        let mut text = Zeroizing::new(Vec::with_capacity(KEY_FILE_LIMIT as usize));
        file.take(KEY_FILE_LIMIT).read_to_end(&mut text).map_err(io)?;
        let seed = from_hex::<32>(text.trim_ascii()).map(Zeroizing::new);
        let seed = seed.ok_or_else(|| KeyError::NotAKey { path: path.to_owned() })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    fn create(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { doing: "make", path: path.to_owned(), source };
        let mut seed = Zeroizing::new([0; 32]);
        File::open("/dev/urandom").and_then(|mut from| from.read_exact(&mut *seed)).map_err(io)?;
        let mut text = Zeroizing::new(to_hex(&*seed));
        text.push('\n');
        write_secret(path, text.as_bytes()).map_err(io)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// A key that is kept nowhere, for tests and canaries that need none for longer.
    ///
    /// # Errors
    /// `/dev/urandom` cannot be read.
    pub fn ephemeral() -> io::Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        File::open("/dev/urandom")?.read_exact(&mut *seed)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// What others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// Signs a text.
    #[must_use]
    pub fn sign(&self, domain: Domain, text: &[u8]) -> [u8; 64] {
        self.0.sign(&domain.message(text)).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

/// Writes a file that only its owner reads, whole or not at all.
fn write_secret(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(TEMPORARY);
    let temporary = path.with_file_name(name);
    layout::remove_if_there(&temporary)?;
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(SECRET_MODE).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one worth telling.
        let _ = layout::remove_if_there(&temporary);
    }
    written?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    layout::sync_dir(dir.unwrap_or(Path::new(".")))
}

/// What a signature is verified with. Not secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads 64 hexadecimal digits; `None` where they are no key, or one that anybody can sign
    /// for.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = from_hex::<32>(text.to_ascii_lowercase().as_bytes())?;
        let key = VerifyingKey::from_bytes(&bytes).ok()?;
        (!key.is_weak()).then_some(Self(key))
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Whether the signature is this key's for this text.
    #[must_use]
    pub fn verifies(&self, domain: Domain, text: &[u8], signature: &[u8; 64]) -> bool {
        let signature = Signature::from_bytes(signature);
        self.0.verify_strict(&domain.message(text), &signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    text
}

/// Exactly so many bytes from lower-case digits: one text for one value, so that nothing can be
/// changed that a signature would not notice.
pub(crate) fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        match digit(*high).zip(digit(*low)) {
            Some((high, low)) => *byte = high << 4 | low,
            None => {
                bytes.zeroize();
                return None;
            }
        }
    }
    Some(bytes)
}

fn digit(c: u8) -> Option<u8> {
    match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sensor.key");
        let (made, new) = SecretKey::open_or_create(&path).unwrap();
        assert!(new);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (again, new) = SecretKey::open_or_create(&path).unwrap();
        assert!(!new);
        assert_eq!(made.public(), again.public());
        assert_eq!(PublicKey::parse(&made.public().to_string()), Some(made.public()));
        // What can be printed is not the secret.
        let secret = std::fs::read_to_string(&path).unwrap();
        assert!(!format!("{made:?}").contains(secret.trim()));
        assert_eq!(layout::names_in(dir.path()).unwrap(), ["sensor.key"]);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sensor.key");
        SecretKey::open_or_create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = SecretKey::open_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyError::OthersMayRead { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sensor.key");
        for content in ["", "1234", &"g".repeat(64), &"A".repeat(64), &"1".repeat(66)] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let error = SecretKey::open_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyError::NotAKey { .. }), "{content}: {error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_signature_is_for_one_text_one_domain_and_one_key() {
        let key = SecretKey::ephemeral().unwrap();
        let signature = key.sign(Domain::LedgerLine, b"text");
        let public = key.public();
        assert!(public.verifies(Domain::LedgerLine, b"text", &signature));
        assert!(!public.verifies(Domain::LedgerLine, b"texT", &signature));
        assert!(!public.verifies(Domain::Anchor, b"text", &signature));
        let other = SecretKey::ephemeral().unwrap().public();
        assert!(!other.verifies(Domain::LedgerLine, b"text", &signature));
        for place in 0..64 {
            let mut forged = signature;
            forged[place] ^= 1;
            assert!(!public.verifies(Domain::LedgerLine, b"text", &forged), "byte {place}");
        }
    }

    #[test]
    fn a_weak_key_is_none() {
        // The neutral element: a signature under it can be made for any text.
        let neutral = format!("01{}", "0".repeat(62));
        assert_eq!(PublicKey::parse(&neutral), None);
        assert_eq!(PublicKey::parse("abc"), None);
    }
}
