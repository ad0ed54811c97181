//! Datagrams in pieces.

use super::*;

#[test]
fn fragments_become_one_packet() {
    let packet = udp4(&[7; 100]);
    let mut decoder = decoder();
    let (results, seen) = run(&mut decoder, &fragments4(ip_of(&packet), 40));
    assert_eq!(results, [Ok(Decoded::Held), Ok(Decoded::Held), Ok(Decoded::Counted)]);
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, 3));
    assert_eq!(seen.packets[0].earlier, 2);
    assert!(matches!(
        seen.packets[0].net,
        Net::Ip { ip, payload_len: 100, .. } if ip.total_len == 128
    ));
}

#[test]
fn a_fragmented_carrier_gives_its_frames_to_what_it_carries() {
    let inner = udp4(&[7; 200]);
    let carrier = ipv4(47, &[&[0, 0, 8, 0], ip_of(&inner)].concat());
    let (_, seen) = run(&mut decoder(), &fragments4(&carrier, 80));
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, 3));
    assert_eq!(seen.packets[0].ports(), Some((1000, 2000)));
}

#[test]
fn fragments_within_a_fragmented_carrier_lose_no_frame() {
    let inner = udp4(&[7; 200]);
    let frames: Vec<_> = fragments4(ip_of(&inner), 80)
        .iter()
        .enumerate()
        .flat_map(|(i, part)| {
            let mut carrier = ipv4(47, &[&[0, 0, 8, 0], ip_of(part)].concat());
            carrier[5] = i as u8;
            fragments4(&carrier, 48)
        })
        .collect();
    let (_, seen) = run(&mut decoder(), &frames);
    assert_eq!((seen.packets.len(), seen.owned_frames), (1, frames.len()));
    assert_eq!(seen.packets[0].payload, [7; 200]);
}

#[test]
fn incomplete_datagrams_are_reported() {
    let packet = udp4(&[7; 100]);
    let mut decoder = decoder();
    let frames = fragments4(ip_of(&packet), 40);
    let (_, mut seen) = run(&mut decoder, &frames[..2]);
    decoder.advance(Nanos(59_000_000_000), &mut seen);
    assert_eq!(seen.incomplete, 0);
    decoder.advance(Nanos(60_000_000_000), &mut seen);
    assert_eq!(seen.incomplete, 2);
}

#[test]
fn an_atomic_ipv6_fragment_counts_without_its_header() {
    let whole = tcp6(b"hello");
    let tcp = &whole[58..];
    let mut bytes = vec![0x60, 0, 0, 0, 0, (tcp.len() + 8) as u8, 44, 64];
    bytes.extend([1; 16]);
    bytes.extend([2; 16]);
    bytes.extend([6, 0, 0, 0, 0, 0, 0, 9]);
    bytes.extend(tcp);
    let seen = ethernet(&in_ethernet(0x86dd, &bytes));
    assert_eq!(seen.packets[0].ports(), Some((1000, 80)));
    assert!(matches!(
        seen.packets[0].net,
        Net::Ip { ip, payload_len: 5, .. } if ip.total_len == 40 + 25
    ));
}
