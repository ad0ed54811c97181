//! QUIC (RFC 9000): the long header, and the ClientHello in the client's Initial packets, whose
//! keys anybody on the path can derive (RFC 9001 section 5.2, RFC 9369 for version 2).

use aes::Aes128;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes_gcm::Aes128Gcm;
use aes_gcm::aead::AeadInOut;
use hkdf::Hkdf;
use sha2::Sha256;

use super::slots::{Slot, Slots, Ticket};
use super::{BUDGET, Look, tls};
use crate::decode::bytes::{be32, byte};
use crate::record::Service;

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;
const SALT_1: [u8; 20] = [
    0x38, 0x76, 0x2c, 0xf7, 0xf5, 0x59, 0x34, 0xb3, 0x4d, 0x17, 0x9a, 0xe6, 0xa4, 0xc8, 0x0c, 0xad,
    0xcc, 0xbb, 0x7f, 0x0a,
];
const SALT_2: [u8; 20] = [
    0x0d, 0xed, 0xe3, 0xde, 0xf7, 0x00, 0xa6, 0xdb, 0x81, 0x93, 0x81, 0xbe, 0x6e, 0x26, 0x9d, 0xcb,
    0xf9, 0xbd, 0x2e, 0xd9,
];
/// Drafts 29 to 32.
const SALT_DRAFT_29: [u8; 20] = [
    0xaf, 0xbf, 0xec, 0x28, 0x99, 0x93, 0xd2, 0x4c, 0x9e, 0x97, 0x86, 0xf1, 0x9c, 0x61, 0x11, 0xe0,
    0x43, 0x90, 0xa8, 0x99,
];

const LONG_HEADER: u8 = 0x80;
const FIXED_BIT: u8 = 0x40;
const MAX_CONNECTION_ID: u8 = 20;
/// Pieces of a ClientHello that are put together; Chrome sends up to a dozen.
const MAX_PIECES: usize = 64;

/// The fields every version has, and those of an Initial packet.
struct Initial<'a> {
    version: u32,
    connection_id: &'a [u8],
    /// Where the packet number begins.
    number_at: usize,
    /// Packet number and payload.
    len: usize,
}

/// Looks at a datagram; `None` says that it is not QUIC.
pub(super) fn datagram(bytes: &[u8], slots: &mut Slots, ticket: &mut Ticket) -> Option<Look> {
    let first = byte(bytes, 0)?;
    if first & LONG_HEADER == 0 {
        return None;
    }
    let version = be32(bytes, 1)?;
    let (destination, rest) = connection_id(bytes.get(5..)?)?;
    let (_, rest) = connection_id(rest)?;
    if version == 0 {
        // Version negotiation lists what the server knows.
        let sound = !rest.is_empty()
            && rest.len() % 4 == 0
            && rest.chunks(4).any(|one| be32(one, 0).is_some_and(is_known));
        return sound.then(|| Look::yes(Service::Quic));
    }
    if !is_known(version) || first & FIXED_BIT == 0 {
        return None;
    }
    let found = Look { more: true, ..Look::yes(Service::Quic) };
    let initial_type = if version == VERSION_2 { 1 } else { 0 };
    if (first >> 4) & 3 != initial_type {
        return Some(found);
    }
    let number_at = bytes.len() - rest.len();
    let Some(initial) = initial(bytes, version, destination, number_at) else {
        return Some(found);
    };
    let fresh = slots.get(*ticket).is_none();
    let claimed = slots.claim(*ticket);
    let Some(slot) = slots.get_mut(claimed) else { return Some(found) };
    if fresh {
        slot.connection_id = destination.to_vec();
    }
    // Keys come from the connection ID of the client's first packet; after a Retry, from the
    // one the server chose.
    let first_id = slot.connection_id.clone();
    let opened =
        open(bytes, &initial, &first_id).or_else(|| open(bytes, &initial, initial.connection_id));
    let Some(payload) = opened else {
        if fresh {
            slots.release(claimed);
        }
        return Some(found);
    };
    *ticket = claimed;
    take_in(slot, &payload);
    let have = contiguous(slot);
    let hello = tls::client_hello(slot.bytes(0).get(..have).unwrap_or(&[]));
    Some(match hello {
        tls::Hello::Whole(_) | tls::Hello::No => {
            Look { more: false, detail: hello.names(), ..found }
        }
        tls::Hello::More => found,
    })
}

const fn is_known(version: u32) -> bool {
    // Drafts of the IETF, and 0x?a?a?a?a, which is reserved to be ignored.
    matches!(version, VERSION_1 | VERSION_2 | 0xff00_0017..=0xff00_0022)
}

fn connection_id(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = byte(bytes, 0).filter(|len| *len <= MAX_CONNECTION_ID)?;
    bytes.get(1..)?.split_at_checked(usize::from(len))
}

fn initial<'a>(
    bytes: &'a [u8],
    version: u32,
    connection_id: &'a [u8],
    at: usize,
) -> Option<Initial<'a>> {
    let (token_len, at) = number(bytes, at)?;
    let at = at.checked_add(usize::try_from(token_len).ok()?)?;
    let (len, number_at) = number(bytes, at)?;
    let len = usize::try_from(len).ok()?;
    bytes.get(number_at..)?.get(..len)?;
    Some(Initial { version, connection_id, number_at, len })
}

/// A variable-length integer (RFC 9000 section 16) and the offset behind it.
fn number(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let first = byte(bytes, at)?;
    let len = 1_usize << (first >> 6);
    let mut value = u64::from(first & 0x3f);
    for byte in bytes.get(at + 1..)?.get(..len - 1)? {
        value = value << 8 | u64::from(*byte);
    }
    Some((value, at + len))
}

/// Removes header protection and opens the packet with the client's Initial keys.
fn open(bytes: &[u8], initial: &Initial<'_>, connection_id: &[u8]) -> Option<Vec<u8>> {
    let (salt, label) = match initial.version {
        VERSION_1 | 0xff00_0021 | 0xff00_0022 => (SALT_1, "quic"),
        VERSION_2 => (SALT_2, "quicv2"),
        _ => (SALT_DRAFT_29, "quic"),
    };
    let client: [u8; 32] = expand(&Hkdf::<Sha256>::new(Some(&salt), connection_id), "client in")?;
    let keys = Hkdf::<Sha256>::from_prk(&client).ok()?;
    let key: [u8; 16] = expand(&keys, &format!("{label} key"))?;
    let mut nonce: [u8; 12] = expand(&keys, &format!("{label} iv"))?;
    let protection: [u8; 16] = expand(&keys, &format!("{label} hp"))?;

    // The sample lies where the payload begins if the packet number has its full four bytes.
    let sample = bytes.get(initial.number_at + 4..)?.first_chunk::<16>()?;
    let mut mask = (*sample).into();
    Aes128::new(&protection.into()).encrypt_block(&mut mask);
    let mut header = bytes.get(..initial.number_at)?.to_vec();
    let first = header.first_mut()?;
    *first ^= mask.first()? & 0x0f;
    let number_len = usize::from(*first & 3) + 1;
    for (protected, mask) in
        bytes.get(initial.number_at..)?.get(..number_len)?.iter().zip(mask.iter().skip(1))
    {
        header.push(protected ^ mask);
    }
    let number = header.get(initial.number_at..)?;
    for (place, part) in nonce.iter_mut().rev().zip(number.iter().rev()) {
        *place ^= part;
    }
    let sealed = bytes.get(initial.number_at + number_len..initial.number_at + initial.len)?;
    let mut payload = sealed.to_vec();
    Aes128Gcm::new(&key.into()).decrypt_in_place(&nonce.into(), &header, &mut payload).ok()?;
    Some(payload)
}

/// HKDF-Expand-Label (RFC 8446 section 7.1) with an empty context.
fn expand<const N: usize>(keys: &Hkdf<Sha256>, label: &str) -> Option<[u8; N]> {
    let mut info = vec![0, u8::try_from(N).ok()?, u8::try_from(label.len() + 6).ok()?];
    info.extend_from_slice(b"tls13 ");
    info.extend_from_slice(label.as_bytes());
    info.push(0);
    let mut out = [0; N];
    keys.expand(&info, &mut out).ok()?;
    Some(out)
}

/// Copies the CRYPTO frames of a payload to their place in the handshake.
fn take_in(slot: &mut Slot, payload: &[u8]) {
    const PADDING: u64 = 0;
    const PING: u64 = 1;
    const ACK: u64 = 2;
    const ACK_WITH_ECN: u64 = 3;
    const CRYPTO: u64 = 6;
    let mut at = 0;
    while let Some((kind, next)) = number(payload, at) {
        at = next;
        match kind {
            PADDING | PING => {}
            ACK | ACK_WITH_ECN => {
                let Some(next) = behind_ack(payload, at, kind == ACK_WITH_ECN) else { return };
                at = next;
            }
            CRYPTO => {
                let Some((offset, next)) = number(payload, at) else { return };
                let Some((len, next)) = number(payload, next) else { return };
                let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) else {
                    return;
                };
                let Some(data) = payload.get(next..).and_then(|rest| rest.get(..len)) else {
                    return;
                };
                at = next + len;
                place(slot, offset, data);
            }
            // Nothing else may stand in an Initial packet but the close of the connection.
            _ => return,
        }
    }
}

fn behind_ack(payload: &[u8], at: usize, ecn: bool) -> Option<usize> {
    let (_, at) = number(payload, at)?;
    let (_, at) = number(payload, at)?;
    let (ranges, at) = number(payload, at)?;
    let (_, mut at) = number(payload, at)?;
    let fields = ranges.checked_mul(2)?.checked_add(if ecn { 3 } else { 0 })?;
    for _ in 0..fields {
        // Each field takes a byte at least, so this ends with the payload.
        (_, at) = number(payload, at)?;
    }
    Some(at)
}

fn place(slot: &mut Slot, offset: usize, data: &[u8]) {
    let Some(end) = offset.checked_add(data.len()).filter(|end| *end <= BUDGET) else { return };
    if slot.arrived.len() >= MAX_PIECES {
        return;
    }
    let buffer = slot.buffer_mut();
    if buffer.len() < end {
        buffer.resize(end, 0);
    }
    if let Some(target) = buffer.get_mut(offset..end) {
        target.copy_from_slice(data);
    }
    slot.arrived.push((offset as u16, end as u16));
    slot.arrived.sort_unstable();
}

/// How far the handshake has arrived from its first byte on.
fn contiguous(slot: &Slot) -> usize {
    let mut reach = 0;
    for &(begin, end) in &slot.arrived {
        if begin > reach {
            break;
        }
        reach = reach.max(end);
    }
    usize::from(reach)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::record::ServiceDetail;

    /// A client's Initial packet with the given frames, sealed with the keys of `connection_id`.
    pub(in crate::service) fn seal(version: u32, connection_id: &[u8], frames: &[u8]) -> Vec<u8> {
        let mut payload = frames.to_vec();
        payload.resize(payload.len().max(1100), 0);
        let kind = if version == VERSION_2 { 0x10 } else { 0 };
        let mut header = vec![0xc3 | kind];
        header.extend(version.to_be_bytes());
        header.push(connection_id.len() as u8);
        header.extend(connection_id);
        header.extend([0, 0]);
        let len = payload.len() + 4 + 16;
        header.extend((0x4000 | len as u16).to_be_bytes());
        let number_at = header.len();
        header.extend([0, 0, 0, 2]);
        let (salt, label) =
            if version == VERSION_2 { (SALT_2, "quicv2") } else { (SALT_1, "quic") };
        let client: [u8; 32] =
            expand(&Hkdf::<Sha256>::new(Some(&salt), connection_id), "client in").unwrap();
        let keys = Hkdf::<Sha256>::from_prk(&client).unwrap();
        let key: [u8; 16] = expand(&keys, &format!("{label} key")).unwrap();
        let mut nonce: [u8; 12] = expand(&keys, &format!("{label} iv")).unwrap();
        let protection: [u8; 16] = expand(&keys, &format!("{label} hp")).unwrap();
        nonce[11] ^= 2;
        Aes128Gcm::new(&key.into()).encrypt_in_place(&nonce.into(), &header, &mut payload).unwrap();
        let mut bytes = [header, payload].concat();
        let mut mask = (*bytes[number_at + 4..].first_chunk::<16>().unwrap()).into();
        Aes128::new(&protection.into()).encrypt_block(&mut mask);
        bytes[0] ^= mask[0] & 0x0f;
        for i in 0..4 {
            bytes[number_at + i] ^= mask[1 + i];
        }
        bytes
    }

    pub(in crate::service) fn crypto(offset: u16, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![6];
        frame.extend((0x4000 | offset).to_be_bytes());
        frame.extend((0x4000 | data.len() as u16).to_be_bytes());
        frame.extend(data);
        frame
    }

    fn look(bytes: &[u8]) -> Option<Look> {
        datagram(bytes, &mut Slots::new(4), &mut Ticket::default())
    }

    fn expected() -> Option<ServiceDetail> {
        Some(ServiceDetail {
            server_name: Some("example.com".into()),
            alpn: Some("h2,http/1.1".into()),
        })
    }

    #[test]
    fn keys_of_rfc_9001_appendix_a() {
        let id = [0x83, 0x94, 0xc8, 0xf0, 0x3e, 0x51, 0x57, 0x08];
        let client: [u8; 32] =
            expand(&Hkdf::<Sha256>::new(Some(&SALT_1), &id), "client in").unwrap();
        let keys = Hkdf::<Sha256>::from_prk(&client).unwrap();
        let key: [u8; 16] = expand(&keys, "quic key").unwrap();
        assert_eq!(u128::from_be_bytes(key), 0x1f36_9613_dd76_d546_7730_efcb_e3b1_a22d);
        let protection: [u8; 16] = expand(&keys, "quic hp").unwrap();
        assert_eq!(u128::from_be_bytes(protection), 0x9f50_449e_04a0_e810_283a_1e99_33ad_edd2);
    }

    #[test]
    fn names_of_both_versions() {
        let hello = tls::tests::hello("example.com");
        for version in [VERSION_1, VERSION_2] {
            let found = look(&seal(version, b"12345678", &crypto(0, &hello))).unwrap();
            assert_eq!((found.service, found.detail), (Some(Service::Quic), expected()));
        }
    }

    #[test]
    fn a_hello_in_pieces_over_two_packets() {
        let hello = tls::tests::hello("example.com");
        let (first, rest) = hello.split_at(30);
        let (second, third) = rest.split_at(20);
        let one =
            seal(VERSION_1, b"12345678", &[crypto(30, second), vec![1], crypto(0, first)].concat());
        let two = seal(VERSION_1, b"12345678", &crypto(50, third));
        let (mut slots, mut ticket) = (Slots::new(4), Ticket::default());
        let found = datagram(&one, &mut slots, &mut ticket).unwrap();
        assert!(found.service.is_some() && found.detail.is_none() && found.more);
        let found = datagram(&two, &mut slots, &mut ticket).unwrap();
        assert_eq!(found.detail, expected());
    }

    #[test]
    fn a_packet_that_cannot_be_opened_is_still_quic() {
        let mut bytes = seal(VERSION_1, b"12345678", &crypto(0, b"x"));
        bytes[100] ^= 1;
        let found = look(&bytes).unwrap();
        assert!(found.service.is_some() && found.detail.is_none());
    }

    #[test]
    fn other_datagrams_are_not() {
        assert!(look(&[0x40; 50]).is_none());
        assert!(look(&[0xff; 50]).is_none());
        assert!(look(&[0xc0, 0, 0, 0, 1, 21]).is_none());
        assert!(look(&[]).is_none());
    }
}
