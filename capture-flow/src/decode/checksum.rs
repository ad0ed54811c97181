//! The Internet checksum (RFC 1071) as TCP, UDP and ICMP use it.

use std::net::IpAddr;

/// The ones' complement sum of `bytes`, not folded. An odd last byte counts as if a zero
/// followed it.
fn sum(bytes: &[u8]) -> u64 {
    // Eight bytes at a time: the sum of 32-bit halves is congruent to the sum of 16-bit words
    // modulo 65535, and a 64-bit accumulator holds four billion of them.
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for chunk in &mut chunks {
        if let Some(word) = chunk.first_chunk::<4>() {
            total += u64::from(u32::from_be_bytes(*word));
        }
    }
    let mut last = [0; 4];
    for (to, from) in last.iter_mut().zip(chunks.remainder()) {
        *to = *from;
    }
    total + u64::from(u32::from_be_bytes(last))
}

fn fold(mut total: u64) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// Whether `bytes`, checksum field included, sum to all ones.
#[must_use]
pub(crate) fn is_right(bytes: &[u8]) -> bool {
    fold(sum(bytes)) == 0xffff
}

/// Whether a transport segment, checksum field included, is right under the pseudo-header of
/// RFC 793 (IPv4) or RFC 8200 section 8.1 (IPv6).
#[must_use]
pub(crate) fn is_right_with_pseudo_header(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> bool {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets()) + sum(&dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => sum(&src.octets()) + sum(&dst.octets()),
        // The two addresses come from one header, so they never differ in version.
        _ => return false,
    };
    fold(addresses + u64::from(protocol) + segment.len() as u64 + sum(segment)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of RFC 1071 section 3: these eight bytes sum to 0xddf2.
    const EXAMPLE: [u8; 8] = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];

    #[test]
    fn rfc_1071_example() {
        assert_eq!(fold(sum(&EXAMPLE)), 0xddf2);
        let mut whole = EXAMPLE.to_vec();
        whole.extend((!0xddf2_u16).to_be_bytes());
        assert!(is_right(&whole));
        whole[3] ^= 1;
        assert!(!is_right(&whole));
    }

    #[test]
    fn odd_length_is_padded_at_the_end() {
        assert_eq!(fold(sum(&[0x12, 0x34, 0x56])), 0x1234 + 0x5600);
        assert_eq!(fold(sum(&[0x12])), 0x1200);
        assert_eq!(fold(sum(&[])), 0);
    }

    #[test]
    fn pseudo_header_follows_etherparse() {
        let header = etherparse::UdpHeader::with_ipv4_checksum(
            1000,
            2000,
            &etherparse::Ipv4Header::new(
                11,
                64,
                etherparse::IpNumber::UDP,
                [10, 0, 0, 1],
                [10, 0, 0, 2],
            )
            .unwrap(),
            b"abc",
        )
        .unwrap();
        let mut segment = header.to_bytes().to_vec();
        segment.extend(b"abc");
        let (src, dst) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        assert!(is_right_with_pseudo_header(src, dst, 17, &segment));
        segment[9] ^= 0x40;
        assert!(!is_right_with_pseudo_header(src, dst, 17, &segment));
    }
}
