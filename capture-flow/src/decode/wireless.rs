//! IEEE 802.11 data frames.

use super::bytes::{array, be16, byte};
use super::undecodable::Undecodable;
use super::walk::Step;
use crate::key::MacAddr;
use crate::packet::Link;

const HEADER: usize = 24;
const ADDRESS: usize = 6;
const SUBFRAME_HEADER: usize = 14;

// Frame control, first byte: the type is in bits 2 and 3, the subtype above.
const TYPE_DATA: u8 = 2;
const SUBTYPE_NO_DATA: u8 = 0x4;
const SUBTYPE_QOS: u8 = 0x8;
// Second byte.
const TO_DS: u8 = 0x01;
const FROM_DS: u8 = 0x02;
const PROTECTED: u8 = 0x40;
const ORDER: u8 = 0x80;
/// In the QoS control field: the payload is an aggregate of subframes.
const AMSDU: u8 = 0x80;

/// A frame's header. Management and control frames, encrypted ones and those without data have
/// no session over IP.
pub(super) fn header<'a>(link: &mut Link, bytes: &'a [u8]) -> Result<Step<'a>, Undecodable> {
    let (Some(control), Some(flags)) = (byte(bytes, 0), byte(bytes, 1)) else {
        return Err(Undecodable::LinkTruncated);
    };
    let address = |at| array(bytes, at).map(MacAddr);
    let (kind, subtype) = ((control >> 2) & 3, control >> 4);
    if kind != TYPE_DATA {
        link.dst = address(4);
        link.src = address(10);
        return if link.dst.is_some() { Ok(Step::NoIp) } else { Err(Undecodable::LinkTruncated) };
    }
    let mut header_len = HEADER;
    (link.dst, link.src) = match (flags & TO_DS != 0, flags & FROM_DS != 0) {
        (false, false) => (address(4), address(10)),
        (true, false) => (address(16), address(10)),
        (false, true) => (address(4), address(16)),
        (true, true) => {
            header_len += ADDRESS;
            (address(16), address(24))
        }
    };
    if bytes.len() < header_len {
        return Err(Undecodable::LinkTruncated);
    }
    if subtype & SUBTYPE_NO_DATA != 0 || flags & PROTECTED != 0 {
        return Ok(Step::NoIp);
    }
    let mut aggregate = false;
    if subtype & SUBTYPE_QOS != 0 {
        aggregate = byte(bytes, header_len).ok_or(Undecodable::LinkTruncated)? & AMSDU != 0;
        header_len += 2;
        if flags & ORDER != 0 {
            // A high-throughput control field.
            header_len += 4;
        }
    }
    let payload = bytes.get(header_len..).ok_or(Undecodable::LinkTruncated)?;
    Ok(if aggregate { Step::Subframes(payload) } else { Step::Llc(payload) })
}

/// One frame of an aggregate.
pub(super) struct Subframe<'a> {
    pub(super) header: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// The subframes that were captured whole.
pub(super) fn subframes(mut bytes: &[u8]) -> impl Iterator<Item = Subframe<'_>> {
    std::iter::from_fn(move || {
        let len = usize::from(be16(bytes, 12)?);
        let header = bytes.get(..SUBFRAME_HEADER)?;
        let end = SUBFRAME_HEADER + len;
        let payload = bytes.get(SUBFRAME_HEADER..end)?;
        bytes = bytes.get(next_subframe(bytes, end)..).unwrap_or(&[]);
        Some(Subframe { header, payload })
    })
}

/// Where the subframe behind `end` begins. Each but the last is padded to a multiple of four
/// bytes; some access points pad otherwise, so the SNAP header decides where it is not there.
fn next_subframe(bytes: &[u8], end: usize) -> usize {
    const SNAP: Option<&[u8]> = Some(&[0xaa, 0xaa, 0x03]);
    let begins = |start: usize| {
        let llc = start + SUBFRAME_HEADER;
        bytes.get(llc..llc + 3) == SNAP
    };
    let padded = end.next_multiple_of(4);
    if begins(padded) {
        padded
    } else {
        (end..end + 4).find(|start| begins(*start)).unwrap_or(padded)
    }
}

/// The addresses of a subframe.
pub(super) fn subframe_addresses(link: &mut Link, header: &[u8]) {
    link.dst = array(header, 0).map(MacAddr);
    link.src = array(header, 6).map(MacAddr);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_frame(subtype: u8, flags: u8, tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x08 | (subtype << 4), flags, 0, 0];
        bytes.extend([1; 6]);
        bytes.extend([2; 6]);
        bytes.extend([3; 6]);
        bytes.extend([0, 0]);
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn addresses_follow_the_direction() {
        for (flags, dst, src) in [(0, 1, 2), (TO_DS, 3, 2), (FROM_DS, 1, 3), (3, 3, 4)] {
            let mut link = Link::default();
            let bytes = data_frame(0, flags, &[4; 10]);
            assert!(matches!(header(&mut link, &bytes), Ok(Step::Llc(_))));
            assert_eq!(link.dst, Some(MacAddr([dst; 6])));
            assert_eq!(link.src, Some(MacAddr([src; 6])));
        }
    }

    #[test]
    fn quality_of_service_and_protection() {
        let mut link = Link::default();
        let bytes = data_frame(SUBTYPE_QOS, 0, &[0, 0, 9]);
        assert!(matches!(header(&mut link, &bytes), Ok(Step::Llc([9]))));
        let bytes = data_frame(SUBTYPE_QOS, ORDER, &[0, 0, 5, 5, 5, 5, 9]);
        assert!(matches!(header(&mut link, &bytes), Ok(Step::Llc([9]))));
        let bytes = data_frame(0, PROTECTED, &[9]);
        assert!(matches!(header(&mut link, &bytes), Ok(Step::NoIp)));
        let bytes = data_frame(SUBTYPE_QOS, 0, &[AMSDU, 0, 9]);
        assert!(matches!(header(&mut link, &bytes), Ok(Step::Subframes([9]))));
    }

    #[test]
    fn subframes_are_padded_to_four() {
        let mut bytes = vec![0; 12];
        bytes.extend([0, 3, 7, 7, 7]);
        bytes.extend([0; 3]);
        bytes.extend([0; 12]);
        bytes.extend([0, 1, 8]);
        let all: Vec<_> = subframes(&bytes).map(|s| s.payload.to_vec()).collect();
        assert_eq!(all, [vec![7, 7, 7], vec![8]]);
    }

    #[test]
    fn a_subframe_without_its_padding_is_found() {
        let mut bytes = vec![0; 12];
        bytes.extend([0, 3, 0xaa, 0xaa, 3]);
        bytes.extend([0; 12]);
        bytes.extend([0, 3, 0xaa, 0xaa, 3]);
        assert_eq!(subframes(&bytes).count(), 2);
    }
}
