use std::collections::BTreeMap;

use etherparse::{SlicedPacket, TransportSlice};

use super::*;

const MIX: [u32; POSITIONS] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 61, 590, 60];

/// So many frames, each whole.
fn frames(recipe: &Recipe, mut walk: Walk, count: usize) -> Vec<Vec<u8>> {
    (0..count)
        .map(|_| {
            let mut frame = vec![FILLER; recipe.frame_bytes(&walk) as usize];
            recipe.write(&walk, Head::of(&mut frame).unwrap());
            walk.step(recipe);
            frame
        })
        .collect()
}

fn walk(sessions: u32, per_session: u32) -> Walk {
    Walk::new(0, sessions, sessions, per_session, (0, 1)).unwrap()
}

/// What identifies a session: the client's address and port, whichever way the frame goes.
fn client(frame: &[u8]) -> ([u8; 4], [u8; 2]) {
    let outward = frame[26..28] == CLIENT_NET;
    let at = |outward_at, inward_at| if outward { outward_at } else { inward_at };
    let (address, port) = (at(26, 30), at(34, 36));
    (frame[address..address + 4].try_into().unwrap(), frame[port..port + 2].try_into().unwrap())
}

#[test]
fn every_session_gets_one_frame_in_each_round() {
    let recipe = Recipe::new(UDP, true, &[60; POSITIONS]).unwrap();
    for sessions in [1, 2, 3, 12, 100, 1009, 40_000] {
        let count = sessions as usize * 3;
        let mut seen = BTreeMap::<_, usize>::new();
        for frame in frames(&recipe, walk(sessions, 0), count) {
            *seen.entry(client(&frame)).or_default() += 1;
        }
        assert_eq!(seen.len(), sessions as usize);
        assert!(seen.values().all(|frames| *frames == 3), "{sessions} sessions");
    }
}

#[test]
fn two_senders_make_the_sessions_of_one() {
    let recipe = Recipe::new(UDP, true, &[60; POSITIONS]).unwrap();
    let sessions = |frames: Vec<Vec<u8>>| {
        let mut clients: Vec<_> = frames.iter().map(|frame| client(frame)).collect();
        clients.sort_unstable();
        clients
    };
    let one = sessions(frames(&recipe, walk(1000, 3), 6000));
    let share = |first, sessions, number| {
        let walk = Walk::new(first, sessions, 1000, 3, (number, 2)).unwrap();
        frames(&recipe, walk, sessions as usize * 6)
    };
    let mut both = share(0, 400, 0);
    both.extend(share(400, 600, 1));
    assert_eq!(sessions(both), one);
}

#[test]
fn a_session_that_is_over_gives_its_place_to_another() {
    for protocol in [UDP, TCP] {
        let recipe = Recipe::new(protocol, true, &[60; POSITIONS]).unwrap();
        let mut seen = BTreeMap::<_, usize>::new();
        for frame in frames(&recipe, walk(10, 7), 10 * 7 * 4) {
            *seen.entry(client(&frame)).or_default() += 1;
        }
        assert_eq!(seen.len(), 40);
        assert!(seen.values().all(|frames| *frames == 7));
    }
}

#[test]
fn every_length_and_checksum_is_right_and_every_number_is_there_once() {
    for (protocol, payload_at) in [(UDP, 42), (TCP, 54)] {
        for both_ways in [true, false] {
            let recipe = Recipe::new(protocol, both_ways, &MIX).unwrap();
            // More than one address has ports for, and whole mixes in each round.
            const SESSIONS: u32 = 1700 * POSITIONS as u32;
            let all = frames(&recipe, walk(SESSIONS, 5), SESSIONS as usize * 12);
            for (number, frame) in all.iter().enumerate() {
                let packet = SlicedPacket::from_ethernet(frame).unwrap();
                let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else {
                    panic!("no IPv4: {packet:?}")
                };
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                if let Some(TransportSlice::Tcp(tcp)) = &packet.transport {
                    let right = tcp.calc_checksum_ipv4(header.source, header.destination);
                    assert_eq!(tcp.checksum(), right.unwrap(), "frame {number}");
                }
                let carried = frame[payload_at..payload_at + 4].try_into().unwrap();
                assert_eq!(u32::from_be_bytes(carried) as usize, number);
            }
            let mut lengths = BTreeMap::<_, usize>::new();
            for frame in all {
                *lengths.entry(frame.len() as u32).or_default() += 1;
            }
            for length in MIX {
                let times = MIX.iter().filter(|other| **other == length).count();
                assert_eq!(lengths[&length], SESSIONS as usize * times, "{length} bytes");
            }
        }
    }
}

/// The next byte that a direction sends.
#[derive(Default)]
struct Stream {
    next: u32,
    frames: usize,
}

#[test]
fn no_byte_of_a_tcp_stream_is_missing_and_every_one_is_acknowledged() {
    for (both_ways, per_session) in [(true, 0), (true, 11), (true, 12), (false, 0), (false, 9)] {
        let recipe = Recipe::new(TCP, both_ways, &MIX).unwrap();
        let mut streams = BTreeMap::<_, [Stream; 2]>::new();
        let mut ends = 0;
        for frame in frames(&recipe, walk(50, per_session), 50 * 60) {
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("no TCP") };
            let way = usize::from(frame[26..28] != CLIENT_NET);
            let [own, peer] = {
                let [outward, inward] = streams.entry(client(&frame)).or_default();
                if way == 0 { [outward, inward] } else { [inward, outward] }
            };
            if own.frames > 0 {
                assert_eq!(tcp.sequence_number(), own.next, "{tcp:?}");
            }
            assert_eq!(tcp.syn(), own.frames == 0);
            if tcp.ack() && both_ways {
                assert_eq!(tcp.acknowledgment_number(), peer.next, "{tcp:?}");
            }
            ends += usize::from(tcp.fin());
            own.frames += 1;
            own.next = tcp
                .sequence_number()
                .wrapping_add(tcp.payload().len() as u32)
                .wrapping_add(u32::from(tcp.syn()) + u32::from(tcp.fin()));
        }
        let over = 50 * 60 / (50 * per_session.max(1) as usize);
        let directions = if both_ways { 2 } else { 1 };
        assert_eq!(ends >= over * 50 * directions, per_session != 0, "{ends} ends");
    }
}

#[test]
fn what_no_frame_can_be_is_refused() {
    assert!(Recipe::new(UDP, true, &[59; POSITIONS]).is_none());
    assert!(Recipe::new(UDP, true, &[LONGEST + 1; POSITIONS]).is_none());
    assert!(Walk::new(0, 0, 1, 0, (0, 1)).is_none());
    assert!(Walk::new(1, 1, 1, 0, (0, 1)).is_none());
    assert!(Walk::new(0, 1, MAX_SESSIONS + 1, 0, (0, 1)).is_none());
}
