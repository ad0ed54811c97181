//! Lengths, cut captures and checksums.

use super::*;

#[test]
fn lengths_decide_what_is_undecodable() {
    let bytes = udp4(b"hello");
    let check = |edit: &dyn Fn(&mut Vec<u8>), reason| {
        let mut bytes = bytes.clone();
        edit(&mut bytes);
        let (result, seen) = decode(LinkType::ETHERNET, &bytes);
        assert_eq!(result, Err(reason));
        assert!(seen.packets.is_empty());
    };
    check(&|b| b.truncate(13), Undecodable::LinkTruncated);
    check(&|b| b.truncate(14), Undecodable::IpTruncated);
    check(&|b| b.truncate(33), Undecodable::IpTruncated);
    check(&|b| b.truncate(46), Undecodable::IpLengthBeyondFrame);
    check(&|b| b[14] = 0x55, Undecodable::IpVersion);
    check(&|b| b[14] = 0x44, Undecodable::IpHeaderLength);
    check(&|b| b[17] = 19, Undecodable::IpHeaderLength);
    check(&|b| b[17] = 27, Undecodable::TransportTruncated);
}

#[test]
fn a_snap_length_loses_payload_not_lengths() {
    let bytes = udp4(&[7; 500]);
    let mut cut = frame(LinkType::ETHERNET, &bytes[..60]);
    cut.wire_len = bytes.len() as u32;
    let packet = decoder().fast(&cut).unwrap();
    assert_eq!(packet.payload.len(), 60 - 42);
    assert!(matches!(packet.net, Net::Ip { ip, payload_len: 500, .. } if ip.total_len == 528));
}

#[test]
fn a_length_left_out_by_offload_counts_what_was_captured() {
    let mut bytes = udp4(b"hello");
    bytes[16] = 0;
    bytes[17] = 0;
    assert!(matches!(
        ethernet(&bytes).packets[0].net,
        Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 0
    ));
    let mut seen = Seen::default();
    let result = Decoder::new(&config(Checksums::Verify))
        .decode(&frame(LinkType::ETHERNET, &bytes), &mut seen);
    assert_eq!(result, Err(Undecodable::IpLengthZero));
}

#[test]
fn checksums_are_verified_when_told() {
    use crate::packet::Checksum;
    let verify = || Decoder::new(&config(Checksums::Verify));
    let mut bytes = udp4(b"hello");
    assert!(verify().fast(&frame(LinkType::ETHERNET, &bytes)).is_some());
    *bytes.last_mut().unwrap() ^= 1;
    let bad = verify().fast(&frame(LinkType::ETHERNET, &bytes)).unwrap();
    assert!(matches!(bad.net, Net::Ip { checksum: Checksum::Bad, .. }));
    bytes[22] ^= 1;
    assert!(verify().fast(&frame(LinkType::ETHERNET, &bytes)).is_none());
    let mut seen = Seen::default();
    let result = verify().decode(&frame(LinkType::ETHERNET, &bytes), &mut seen);
    assert_eq!(result, Err(Undecodable::IpChecksum));
}
