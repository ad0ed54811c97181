//! Tunnels over UDP: VXLAN (RFC 7348), GENEVE (RFC 8926), GTP-U (3GPP TS 29.281), GRE
//! (RFC 8086), Teredo (RFC 4380) and AYIYA.

use super::gre::is_strange;
use super::{Enclosed, Fit, gre, ip_fit, is_whole_ip};
use crate::decode::bytes::{be16, byte};
use crate::decode::transport::proto;
use crate::decode::walk::Step;

const GTP_C: u16 = 2123;
const GTP_U: u16 = 2152;
const TEREDO: u16 = 3544;
const GRE: u16 = 4754;
const VXLAN: u16 = 4789;
const AYIYA: u16 = 5072;
const GENEVE: u16 = 6081;

const fn is_tunnel_port(port: u16) -> bool {
    matches!(port, GTP_C | GTP_U | TEREDO | GRE | VXLAN | AYIYA | GENEVE)
}

/// Whether a port is anywhere near those of tunnels; most are not.
#[inline]
const fn is_near_tunnel_ports(port: u16) -> bool {
    port >= GTP_C && port <= GENEVE
}

/// GTP is never carried in GTP, so what is on its port there is something else.
pub(crate) const fn is_gtp_port(port: u16) -> bool {
    matches!(port, GTP_C | GTP_U)
}

/// Whether a UDP packet may carry a tunnel, so that it needs the full decoder. Cheap, and never
/// wrong in saying no.
#[inline]
pub(crate) fn possible_over_udp(src_port: u16, dst_port: u16, payload: &[u8]) -> bool {
    let odd = match payload {
        // AYIYA's type of signature, Teredo's headers, an IPv6 header.
        [0 | 0x60..=0x6f, ..] | [_, 0x52, ..] => true,
        _ => false,
    };
    (odd || is_near_tunnel_ports(src_port) || is_near_tunnel_ports(dst_port))
        && is_possible_over_udp(src_port, dst_port, payload)
}

#[inline(never)]
fn is_possible_over_udp(src_port: u16, dst_port: u16, payload: &[u8]) -> bool {
    is_tunnel_port(src_port)
        || is_tunnel_port(dst_port)
        || looks_like_ayiya(payload)
        || looks_like_teredo(payload)
}

/// What a UDP payload carries, given the port of the session's responder. `missing` bytes of it
/// were cut off by the capture.
pub(crate) fn over_udp(responder_port: u16, payload: &[u8], missing: usize) -> Enclosed<'_> {
    match responder_port {
        VXLAN => vxlan(payload),
        GENEVE => geneve(payload),
        GRE => match gre(payload, missing) {
            Some(step) => Enclosed::Step(step),
            None if is_strange(payload) => Enclosed::Unknown,
            None => Enclosed::Nothing,
        },
        GTP_C | GTP_U => gtp(payload, missing),
        TEREDO => teredo(payload, missing),
        AYIYA => ayiya(payload),
        _ if looks_like_teredo(payload) => teredo(payload, missing),
        _ if looks_like_ayiya(payload) => ayiya(payload),
        _ => Enclosed::Nothing,
    }
}

fn vxlan(bytes: &[u8]) -> Enclosed<'_> {
    const VNI_IS_VALID: u8 = 0x08;
    match (byte(bytes, 0), bytes.get(8..)) {
        (Some(flags), Some(inner)) if flags & VNI_IS_VALID != 0 => {
            if inner.is_empty() {
                Enclosed::Nothing
            } else {
                Enclosed::Step(Step::Ethernet(inner))
            }
        }
        _ => Enclosed::Refused,
    }
}

fn geneve(bytes: &[u8]) -> Enclosed<'_> {
    const HEADER: usize = 8;
    let (Some(first), Some(protocol)) = (byte(bytes, 0), be16(bytes, 2)) else {
        return Enclosed::Refused;
    };
    if bytes.len() < HEADER {
        return Enclosed::Refused;
    }
    if first >> 6 != 0 {
        return Enclosed::Unknown;
    }
    let options_len = usize::from(first & 0x3f) * 4;
    let Some(inner) = bytes.get(HEADER + options_len..) else {
        return Enclosed::Refused;
    };
    match protocol {
        _ if inner.is_empty() => Enclosed::Nothing,
        0x6558 => Enclosed::Step(Step::Ethernet(inner)),
        0x0800 | 0x86dd => Enclosed::Step(Step::Ip(inner)),
        _ => Enclosed::Nothing,
    }
}

/// GTP version 1; only user data (message type 255) carries a packet.
fn gtp(bytes: &[u8], missing: usize) -> Enclosed<'_> {
    const USER_DATA: u8 = 255;
    const HAS_OPTIONS: u8 = 0x07;
    const HAS_EXTENSIONS: u8 = 0x04;
    let (Some(flags), Some(message)) = (byte(bytes, 0), byte(bytes, 1)) else {
        return Enclosed::Refused;
    };
    if flags >> 5 != 1 {
        return Enclosed::Refused;
    }
    // Without the protocol type bit it is GTP', which carries charging records.
    if flags & 0x10 == 0 || message != USER_DATA {
        return Enclosed::Nothing;
    }
    let mut at = 8;
    if flags & HAS_OPTIONS != 0 {
        at += 4;
        let mut next = if flags & HAS_EXTENSIONS != 0 { byte(bytes, at - 1) } else { Some(0) };
        loop {
            match next {
                Some(0) => break,
                Some(_) => {
                    // Lengths count units of four bytes; the last byte names the next header.
                    let len = usize::from(byte(bytes, at).unwrap_or(0)) * 4;
                    if len == 0 {
                        return Enclosed::Refused;
                    }
                    at += len;
                    next = byte(bytes, at - 1);
                }
                None => return Enclosed::Refused,
            }
        }
    }
    let Some(inner) = bytes.get(at..) else {
        return Enclosed::Refused;
    };
    match byte(inner, 0).map(|first| first >> 4) {
        Some(version @ (4 | 6)) if is_whole_ip(version, inner, missing) => {
            Enclosed::Step(Step::Ip(inner))
        }
        _ => Enclosed::Refused,
    }
}

fn teredo(bytes: &[u8], missing: usize) -> Enclosed<'_> {
    let Some(inner) = behind_teredo_headers(bytes) else {
        return Enclosed::Refused;
    };
    match ip_fit(6, inner, missing) {
        Fit::Exact => Enclosed::Step(Step::Ip(inner)),
        // A bubble (no next header, no payload) may have something behind it.
        Fit::Loose if byte(inner, 6) == Some(proto::NO_NEXT) && be16(inner, 4) == Some(0) => {
            Enclosed::Step(Step::Ip(inner))
        }
        _ => Enclosed::Refused,
    }
}

/// The IPv6 packet behind an authentication header and an origin indication, both optional and
/// in this order.
fn behind_teredo_headers(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    if be16(rest, 0)? == 1 {
        let (id_len, auth_len) = (usize::from(byte(rest, 2)?), usize::from(byte(rest, 3)?));
        rest = rest.get(4 + id_len + auth_len + 9..)?;
    }
    if be16(rest, 0)? == 0 {
        rest = rest.get(8..)?;
    }
    (rest.len() >= 40 && byte(rest, 0)? >> 4 == 6).then_some(rest)
}

/// A packet between Teredo addresses (2001::/32), or a Teredo header in front of IPv6.
#[inline]
fn looks_like_teredo(bytes: &[u8]) -> bool {
    const PREFIX: Option<&[u8]> = Some(&[0x20, 0x01, 0x00, 0x00]);
    if bytes.len() < 40 {
        return false;
    }
    match (byte(bytes, 0), byte(bytes, 1)) {
        (Some(first), _) if first >> 4 == 6 => {
            bytes.get(8..12) == PREFIX || bytes.get(24..28) == PREFIX
        }
        (Some(0), Some(0)) => behind_teredo_headers(bytes).is_some(),
        // Off its port an authentication header counts only with an origin behind it: STUN
        // messages begin with the same two bytes.
        (Some(0), Some(1)) => {
            let lengths = byte(bytes, 2).zip(byte(bytes, 3));
            lengths
                .and_then(|(id, auth)| bytes.get(13 + usize::from(id) + usize::from(auth)..))
                .is_some_and(|origin| {
                    be16(origin, 0) == Some(0) && behind_teredo_headers(origin).is_some()
                })
        }
        _ => false,
    }
}

fn ayiya(bytes: &[u8]) -> Enclosed<'_> {
    const FORWARD: u8 = 1;
    let (Some(first), Some(second), Some(third), Some(next)) =
        (byte(bytes, 0), byte(bytes, 1), byte(bytes, 2), byte(bytes, 3))
    else {
        return Enclosed::Refused;
    };
    // The identity's length is a power of two; those beyond 128 bytes wrap to 0 in Zeek.
    let identity_len = 1_usize.checked_shl(u32::from(first >> 4)).filter(|len| *len < 256);
    let signature_len = usize::from(second >> 4) * 4;
    let Some(inner) = bytes.get(8 + identity_len.unwrap_or(0) + signature_len..) else {
        return Enclosed::Refused;
    };
    if third & 0x0f != FORWARD || inner.is_empty() {
        return Enclosed::Nothing;
    }
    match next {
        proto::IPV4 | proto::IPV6 => Enclosed::Step(Step::Ip(inner)),
        _ => Enclosed::Nothing,
    }
}

/// The signature method and operation that clients use (SHA-1, shared secret, forward).
#[inline]
fn looks_like_ayiya(bytes: &[u8]) -> bool {
    bytes.get(1..3) == Some(&[0x52, 0x11])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
        bytes.extend([0x20, 0x01, 0, 0]);
        bytes.extend([0; 28]);
        bytes.extend(payload);
        bytes
    }

    fn is_ip(enclosed: Enclosed<'_>, len: usize) -> bool {
        matches!(enclosed, Enclosed::Step(Step::Ip(inner)) if inner.len() == len)
    }

    #[test]
    fn a_glance_at_a_datagram_misses_no_tunnel() {
        let mut payload = [0_u8; 60];
        for port in 0..=u16::MAX {
            assert!(!is_tunnel_port(port) || possible_over_udp(port, 9, &[1; 9]));
        }
        // Every beginning, with what may stand behind it.
        for first in 0..=u16::MAX {
            payload[..2].copy_from_slice(&first.to_be_bytes());
            for third in [0, 1, 0x11] {
                payload[2] = third;
                for at in [8, 24] {
                    payload[at..at + 4].copy_from_slice(&[0x20, 1, 0, 0]);
                    let expected = looks_like_teredo(&payload) || looks_like_ayiya(&payload);
                    assert_eq!(possible_over_udp(9, 9, &payload), expected);
                    payload[at..at + 4].fill(0);
                }
            }
        }
    }

    #[test]
    fn vxlan_needs_its_flag() {
        let mut bytes = [0; 30];
        assert!(matches!(vxlan(&bytes), Enclosed::Refused));
        bytes[0] = 8;
        assert!(matches!(vxlan(&bytes), Enclosed::Step(Step::Ethernet(i)) if i.len() == 22));
        assert!(matches!(vxlan(&bytes[..8]), Enclosed::Nothing));
        assert!(matches!(vxlan(&bytes[..7]), Enclosed::Refused));
    }

    #[test]
    fn geneve_options_are_skipped() {
        let mut bytes = vec![2, 0, 0x08, 0, 0, 0, 1, 0];
        bytes.extend([0; 8]);
        bytes.extend([0x45; 20]);
        assert!(is_ip(geneve(&bytes), 20));
        assert!(matches!(geneve(&bytes[..15]), Enclosed::Refused));
        bytes[0] = 0x42;
        assert!(matches!(geneve(&bytes), Enclosed::Unknown));
    }

    #[test]
    fn gtp_extension_headers_are_skipped() {
        let mut bytes = vec![0x34, 255, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0xc0];
        bytes.extend([1, 0, 0, 0x85, 1, 0, 0, 0]);
        bytes.extend(ipv6(59, b""));
        assert!(is_ip(gtp(&bytes, 0), 40));
        bytes[12] = 0;
        assert!(matches!(gtp(&bytes, 0), Enclosed::Refused));
    }

    #[test]
    fn gtp_signalling_carries_nothing() {
        assert!(matches!(gtp(&[0x30, 1, 0, 0, 0, 0, 0, 1], 0), Enclosed::Nothing));
        assert!(matches!(gtp(&[0x48, 32, 0, 0, 0, 0, 0, 1], 0), Enclosed::Refused));
    }

    #[test]
    fn teredo_headers_come_in_order() {
        let inner = ipv6(59, b"");
        assert!(is_ip(teredo(&inner, 0), 40));
        let mut bytes = vec![0, 0, 1, 2, 3, 4, 5, 6];
        bytes.extend(&inner);
        assert!(is_ip(teredo(&bytes, 0), 40) && looks_like_teredo(&bytes));
        let mut with_auth = vec![0, 1, 2, 1, 0, 0, 0];
        with_auth.extend([0; 9]);
        with_auth.extend(&bytes);
        assert!(is_ip(teredo(&with_auth, 0), 40) && looks_like_teredo(&with_auth));
        let mut loose = inner;
        loose.push(0);
        assert!(is_ip(teredo(&loose, 0), 41), "a bubble with something behind it");
        loose[6] = 17;
        assert!(matches!(teredo(&loose, 0), Enclosed::Refused));
    }

    #[test]
    fn ayiya_by_content() {
        let mut bytes = vec![0x44, 0x52, 0x11, 41, 0, 0, 0, 0];
        bytes.extend([0; 16 + 20]);
        bytes.extend(ipv6(59, b""));
        assert!(is_ip(over_udp(9, &bytes, 0), 40));
        assert!(matches!(ayiya(&bytes[..40]), Enclosed::Refused));
        bytes[2] = 0x10;
        assert!(matches!(ayiya(&bytes), Enclosed::Nothing));
    }
}
