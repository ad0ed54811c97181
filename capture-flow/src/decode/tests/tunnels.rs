//! Packets in packets.

use super::*;

#[test]
fn an_ip_tunnel_shows_only_what_it_carries() {
    let inner = udp4(b"hello");
    let gre = |protocol: u16, payload: &[u8]| {
        let mut bytes = vec![0, 0];
        bytes.extend(protocol.to_be_bytes());
        bytes.extend(payload);
        ipv4(47, &bytes)
    };
    for carrier in [
        ipv4(4, ip_of(&inner)),
        gre(0x0800, ip_of(&inner)),
        gre(0x6558, &inner),
        gre(0x0800, &gre(0x0800, ip_of(&inner))),
    ] {
        let seen = ethernet(&in_ethernet(0x0800, &carrier));
        assert_eq!(seen.packets.len(), 1);
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
        assert!(seen.packets[0].owns_frame);
    }
    // Nothing inside that could be counted: the carrier itself is.
    let three_deep = gre(0x0800, &gre(0x0800, &gre(0x0800, ip_of(&inner))));
    for (carrier, protocol) in [
        (gre(0x0800, b""), 47),
        (gre(0x6558, &in_ethernet(0x0806, &[0; 28])), 47),
        (ipv4(4, b"no IP"), 4),
        (three_deep, 47),
        (ipv4(50, &[1; 30]), 50),
    ] {
        let seen = ethernet(&in_ethernet(0x0800, &carrier));
        assert_eq!(seen.packets.len(), 1);
        assert_eq!(seen.packets[0].protocol(), Some(protocol));
    }
}

#[test]
fn a_udp_tunnel_shows_both_layers() {
    let inner = udp4(b"hello");
    let vxlan = |inner: &[u8]| udp4_to(4789, &[&[8, 0, 0, 0, 0, 0, 1, 0], inner].concat());
    let bytes = vxlan(&inner);
    assert!(decoder().fast(&frame(LinkType::ETHERNET, &bytes)).is_none());
    let seen = ethernet(&bytes);
    assert_eq!(seen.packets.len(), 2);
    assert_eq!(seen.packets[0].ports(), Some((1000, 4789)));
    assert_eq!((seen.packets[1].depth, seen.packets[1].owns_frame), (1, false));
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
    // Two tunnels are opened, not a third.
    assert_eq!(ethernet(&vxlan(&vxlan(&vxlan(&inner)))).packets.len(), 3);
    // A port alone does not make a tunnel.
    let seen = ethernet(&udp4_to(4789, b"something else"));
    assert_eq!((seen.packets.len(), seen.refused), (1, 1));
}

#[test]
fn gre_over_udp_and_mpls_over_gre() {
    let inner = udp4(b"hello");
    let seen = ethernet(&udp4_to(4754, &[&[0, 0, 8, 0], ip_of(&inner)].concat()));
    assert_eq!(seen.packets.len(), 2);
    assert_eq!(seen.packets[1].ports(), Some((1000, 2000)));
    let labelled = [&[0, 0, 0x88, 0x47, 0, 0, 0x11, 64], ip_of(&inner)].concat();
    let seen = ethernet(&in_ethernet(0x0800, &ipv4(47, &labelled)));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn gtp_is_not_looked_for_in_gtp() {
    let gtp =
        |inner: &[u8]| udp4_to(2152, &[&[0x30, 255, 0, 9, 0, 0, 0, 1], ip_of(inner)].concat());
    let seen = ethernet(&gtp(&gtp(&udp4(b"hello"))));
    assert_eq!((seen.packets.len(), seen.refused), (2, 1));
}

#[test]
fn a_cut_tunnel_still_shows_what_it_carries() {
    let inner = udp4(&[7; 400]);
    for carrier in [
        in_ethernet(0x0800, &ipv4(4, ip_of(&inner))),
        in_ethernet(0x0800, &ipv4(47, &[&[0, 0, 8, 0], ip_of(&inner)].concat())),
    ] {
        let mut cut = frame(LinkType::ETHERNET, &carrier[..100]);
        cut.wire_len = carrier.len() as u32;
        let mut seen = Seen::default();
        assert_eq!(decoder().decode(&cut, &mut seen), Ok(Decoded::Counted));
        assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
    }
}
