//! What must hold whatever the bytes are.

use proptest::prelude::*;

use super::*;

/// Seeds that the properties mutate: one frame of every kind above.
fn seeds() -> Vec<Vec<u8>> {
    let udp = udp4(&[7; 100]);
    let inner = udp4(b"hello");
    let mut seeds = vec![
        udp4(b"hello"),
        tcp6(b"hello"),
        icmp4(),
        in_ethernet(0x0800, &ipv4(4, ip_of(&inner))),
        in_ethernet(0x0800, &ipv4(47, &[&[0, 0, 0x65, 0x58], &inner[..]].concat())),
        udp4_to(4789, &[&[8, 0, 0, 0, 0, 0, 1, 0], &inner[..]].concat()),
        udp4_to(6081, &[&[0, 0, 0x65, 0x58, 0, 0, 1, 0], &inner[..]].concat()),
        udp4_to(2152, &[&[0x30, 255, 0, 9, 0, 0, 0, 1], ip_of(&inner)].concat()),
        in_ethernet(0x0806, &[0; 46]),
    ];
    seeds.extend(fragments4(ip_of(&udp), 40));
    seeds
}

prop_compose! {
    /// A valid frame with a few bytes changed, perhaps cut or extended.
    fn mutated()(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        len in prop_oneof![4 => Just(None), 1 => (0usize..200).prop_map(Some)],
    ) -> Vec<u8> {
        let seeds = seeds();
        let mut bytes = which.get(&seeds).clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(len) = len {
            bytes.resize(len, 0);
        }
        bytes
    }
}

fn any_link() -> impl Strategy<Value = LinkType> {
    prop_oneof![
        3 => Just(LinkType::ETHERNET),
        1 => prop::sample::select(vec![0, 9, 10, 12, 50, 51, 101, 104, 105, 108, 113, 127, 204, 228, 239, 276, 1000])
            .prop_map(LinkType),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// What the fast path takes, the full decoder reads the same way.
    #[test]
    fn both_paths_agree(bytes in mutated(), extra in 0u32..100, verify in any::<bool>()) {
        let checksums = if verify { Checksums::Verify } else { Checksums::Ignore };
        let mut frame = frame(LinkType::ETHERNET, &bytes);
        frame.wire_len += extra;
        let mut decoder = Decoder::new(&config(checksums));
        if let Some(fast) = decoder.fast(&frame) {
            let mut seen = Seen::default();
            prop_assert_eq!(decoder.decode(&frame, &mut seen), Ok(Decoded::Counted));
            prop_assert_eq!(seen.packets, [Shown::of(&fast, 0)]);
        }
    }

    /// Every frame is owned by one packet, given up with its datagram, or undecodable.
    #[test]
    fn no_frame_is_lost_or_counted_twice(
        frames in proptest::collection::vec((mutated(), any_link(), 0u32..100), 1..40),
    ) {
        let mut decoder = decoder();
        let mut seen = Seen::default();
        let mut undecodable = 0;
        for (i, (bytes, link, extra)) in frames.iter().enumerate() {
            let mut frame = frame(*link, bytes);
            frame.wire_len += extra;
            frame.ts = Nanos(i as i64 * 10_000_000_000);
            decoder.advance(frame.ts, &mut seen);
            let before = seen.packets.len();
            match decoder.decode(&frame, &mut seen) {
                Ok(Decoded::Counted) => prop_assert!(seen.packets.len() > before),
                Ok(Decoded::Held) => prop_assert_eq!(seen.packets.len(), before),
                Err(_) => {
                    undecodable += 1;
                    prop_assert_eq!(seen.packets.len(), before);
                }
            }
        }
        decoder.finish(&mut seen);
        prop_assert_eq!(seen.owned_frames + seen.incomplete + undecodable, frames.len());
    }

    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        link in any_link(),
    ) {
        let _ = decode(link, &bytes);
    }
}
