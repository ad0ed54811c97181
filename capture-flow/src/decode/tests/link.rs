//! From the link layer to IP.

use super::*;

#[test]
fn plain_frames_decode_alike_on_both_paths() {
    for bytes in [udp4(b"hello"), tcp6(b"hello"), icmp4()] {
        let whole = frame(LinkType::ETHERNET, &bytes);
        let fast = decoder().fast(&whole).unwrap();
        assert_eq!(ethernet(&bytes).packets, [Shown::of(&fast, 0)]);
    }
}

#[test]
fn tags_addresses_and_lengths() {
    let bytes = tcp6(b"hello");
    let packet = &ethernet(&bytes).packets[0];
    assert_eq!(packet.link.vlan, Some(7));
    assert_eq!(packet.link.src, Some(crate::key::MacAddr([1; 6])));
    assert_eq!(packet.link.ether_type, 0x86dd);
    assert!(matches!(packet.net, Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 65));
    let packet = &ethernet(&icmp4()).packets[0];
    assert_eq!((packet.link.vlan, packet.link.inner_vlan), (Some(7), Some(8)));
}

#[test]
fn frames_without_ip_are_packets_of_their_own() {
    for ether_type in [0x0806, 0x88cc, 0x1234, 38, 1501] {
        let seen = ethernet(&in_ethernet(ether_type, &[0; 46]));
        assert_eq!(seen.packets[0].net, Net::None, "{ether_type:x}");
    }
}

#[test]
fn snap_leads_to_ip() {
    let inner = udp4(b"x");
    let mut llc = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    llc.extend(ip_of(&inner));
    let seen = ethernet(&in_ethernet(llc.len() as u16, &llc));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn link_headers_lead_to_the_same_packet() {
    let udp = udp4(b"hello");
    let ip = ip_of(&udp);
    let with = |header: &[u8]| [header, ip].concat();
    let label = [0, 0, 0x10, 64];
    let bottom = [0, 0, 0x11, 64];
    let fabric_path = [&[9; 12][..], &[0x89, 0x03, 0, 0]].concat();
    let cases = [
        (LinkType::RAW, with(&[])),
        (LinkType::NULL, with(&[2, 0, 0, 0])),
        (LinkType::LOOP, with(&[0, 0, 0, 2])),
        (LinkType::PPP, with(&[0x00, 0x21])),
        (LinkType::PPP, with(&[0xff, 0x03, 0x00, 0x21])),
        (LinkType::PPP_SERIAL, with(&[0xff, 0x03, 0x00, 0x21])),
        (LinkType::C_HDLC, with(&[0x0f, 0x00, 0x08, 0x00])),
        (LinkType::PPP_WITH_DIR, with(&[1, 0xff, 0x03, 0x00, 0x21])),
        (LinkType::PPPOE, with(&[0x11, 0, 0, 1, 0, 9, 0x00, 0x21])),
        (LinkType::LINUX_SLL, with(&[0, 0, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0, 8, 0])),
        (LinkType::LINUX_SLL2, with(&[8, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 6, 1, 1, 1, 1, 1, 1, 0, 0])),
        (
            LinkType::FDDI,
            with(&[0x50, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 0xaa, 0xaa, 3, 0, 0, 0, 8, 0]),
        ),
        (LinkType::ATM_RFC1483, with(&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0])),
        (LinkType::PPP_PPPD, with(&[1, 0x03, 0x00, 0x21])),
        (LinkType::ENC, with(&[2, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1])),
        (LinkType::PFLOG, with(&[&[61, 2][..], &[0; 62]].concat())),
        (LinkType::PPI, [&[0, 0, 8, 0, 1, 0, 0, 0], &udp[..]].concat()),
        (LinkType::PKTAP, [&[16, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], &udp[..]].concat()),
        (LinkType::NFLOG, with(&[2, 0, 0, 0, 5, 0, 10, 0, 7, 0, 0, 0, 99, 0, 9, 0])),
        (LinkType::ETHERNET, in_ethernet(0x8847, &with(&[label, bottom].concat()))),
        (LinkType::ETHERNET, in_ethernet(0x8864, &with(&[0x11, 0, 0, 1, 0, 9, 0, 0x21]))),
        (LinkType::ETHERNET, in_ethernet(0x8926, &with(&[0, 1, 2, 3, 8, 0]))),
        (LinkType::ETHERNET, in_ethernet(0x9100, &with(&[0, 1, 8, 0]))),
        (LinkType::ETHERNET, in_ethernet(0x88e7, &[&[0; 4], &udp[..]].concat())),
        (LinkType::ETHERNET, [&fabric_path, &udp[..]].concat()),
    ];
    for (link, bytes) in cases {
        let (result, seen) = decode(link, &bytes);
        assert_eq!(result, Ok(Decoded::Counted), "{link:?}");
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)), "{link:?}");
        assert_eq!(seen.packets[0].payload, b"hello");
    }
    let (result, _) = decode(LinkType(147), &udp);
    assert_eq!(result, Err(Undecodable::LinkType));
}

#[test]
fn radiotap_and_aggregates() {
    let udp = udp4(b"hello");
    let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], ip_of(&udp)].concat();
    let mut subframe = vec![5; 12];
    subframe.extend((snap.len() as u16).to_be_bytes());
    subframe.extend(&snap);
    subframe.resize(subframe.len().next_multiple_of(4), 0);
    let mut bytes = vec![0, 0, 8, 0, 0, 0, 0, 0];
    bytes.extend([0x88, 0, 0, 0]);
    bytes.extend([1; 20]);
    bytes.extend([0x80, 0]);
    bytes.extend(&subframe);
    bytes.extend(&subframe);
    let (result, seen) = decode(LinkType::IEEE802_11_RADIO, &bytes);
    assert_eq!(result, Ok(Decoded::Counted));
    assert_eq!((seen.packets.len(), seen.owned_frames), (2, 1));
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
}

#[test]
fn monitoring_headers_lead_to_the_wireless_frame() {
    let udp = udp4(b"hello");
    let mut wireless = vec![0x08, 0, 0, 0];
    wireless.extend([1; 20]);
    wireless.extend([0xaa, 0xaa, 3, 0, 0, 0, 8, 0]);
    wireless.extend(ip_of(&udp));
    let avs = [&[0x80, 0x21, 0x10, 0x01, 0, 0, 0, 64][..], &[0; 56]].concat();
    let ppi = vec![0, 0, 8, 0, 105, 0, 0, 0];
    for (link, header) in [
        (LinkType::PRISM, vec![0x44; 144]),
        (LinkType::PRISM, avs.clone()),
        (LinkType::IEEE802_11_AVS, avs),
        (LinkType::PPI, ppi),
    ] {
        let (result, seen) = decode(link, &[&header, &wireless[..]].concat());
        assert_eq!(result, Ok(Decoded::Counted), "{link:?}");
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)), "{link:?}");
        let (result, _) = decode(link, &header[..7]);
        assert_eq!(result, Err(Undecodable::LinkTruncated), "{link:?}");
    }
    // Headers that give themselves no room, or lead to themselves without end.
    assert_eq!(decode(LinkType::PPI, &[0; 8]).0, Err(Undecodable::LinkMalformed));
    let endless = [0, 0, 8, 0, 192, 0, 0, 0].repeat(100);
    assert_eq!(decode(LinkType::PPI, &endless).0, Err(Undecodable::TooDeep));
}

#[test]
fn an_aggregate_of_a_fragment_and_a_packet_has_one_owner() {
    let udp = udp4(&[7; 100]);
    let fragment = &fragments4(ip_of(&udp), 40)[0];
    let mut bytes = vec![0x88, 0, 0, 0];
    bytes.extend([1; 20]);
    bytes.extend([0x80, 0]);
    for inner in [ip_of(fragment), ip_of(&udp)] {
        let snap = [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0], inner].concat();
        bytes.extend([5; 12]);
        bytes.extend((snap.len() as u16).to_be_bytes());
        bytes.extend(&snap);
        let header = 26;
        bytes.resize(header + (bytes.len() - header).next_multiple_of(4), 0);
    }
    let mut decoder = decoder();
    let mut seen = Seen::default();
    let result = decoder.decode(&frame(LinkType::IEEE802_11, &bytes), &mut seen);
    assert_eq!(result, Ok(Decoded::Counted));
    decoder.finish(&mut seen);
    assert_eq!(seen.owned_frames + seen.incomplete, 1);
}
