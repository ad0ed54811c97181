//! Detection over whole sessions.

use super::quic::tests::{crypto, seal};
use super::tls::tests::{hello, record};
use super::*;
use proptest::prelude::*;

/// The findings of a conversation: (from the originator, bytes) in order.
fn converse(
    carrier: Carrier,
    turns: &[(bool, Vec<u8>)],
) -> (Option<Service>, Option<ServiceDetail>) {
    let mut services = Services::new(8);
    let mut detector = Detector::default();
    let mut offsets = [0u32; 2];
    let (mut service, mut detail) = (None, None);
    for (from_originator, bytes) in turns {
        let side = usize::from(!from_originator);
        let found =
            services.observe(&mut detector, carrier, *from_originator, offsets[side], bytes);
        offsets[side] += bytes.len() as u32;
        if let Some(found) = found {
            assert!(found.service.is_none() || service.is_none(), "a service is told once");
            service = service.or(found.service);
            detail = detail.or(found.detail.map(|boxed| *boxed));
        }
    }
    assert_eq!(service, detector.service());
    (service, detail)
}

fn dns_query() -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    bytes.extend(b"\x07example\x03com\x00\x00\x01\x00\x01");
    bytes
}

/// Who spoke (the originator: true) and what, in order.
type Turns = Vec<(bool, Vec<u8>)>;

/// One conversation of each stream protocol.
fn streams() -> Vec<(Service, Turns)> {
    let mut dns = (dns_query().len() as u16).to_be_bytes().to_vec();
    dns.extend(dns_query());
    vec![
        (Service::Ssh, vec![(false, b"SSH-2.0-a\r\n".into()), (true, b"SSH-2.0-b\r\n".into())]),
        (Service::Tls, vec![(true, record(&hello("example.com")))]),
        (Service::Http, vec![(true, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n".into())]),
        (Service::Smtp, vec![(false, b"220 mx\r\n".into()), (true, b"EHLO me\r\n".into())]),
        (Service::Ftp, vec![(false, b"220 hi\r\n".into()), (true, b"USER me\r\n".into())]),
        (Service::Smb, vec![(true, b"\x00\x00\x00\x20\xfeSMB".into())]),
        (
            Service::Rdp,
            vec![(
                true,
                b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00"
                    .into(),
            )],
        ),
        (Service::Dns, vec![(true, dns)]),
    ]
}

#[test]
fn every_stream_protocol_split_anywhere() {
    for (expected, turns) in streams() {
        let whole = converse(Carrier::Tcp, &turns);
        assert_eq!(whole.0, Some(expected));
        for at in 1..turns.iter().map(|(_, bytes)| bytes.len()).max().unwrap_or(0) {
            let split: Vec<_> = turns
                .iter()
                .flat_map(|(side, bytes)| {
                    let (a, b) = bytes.split_at(at.min(bytes.len()));
                    [(*side, a.to_vec()), (*side, b.to_vec())]
                })
                .collect();
            assert_eq!(converse(Carrier::Tcp, &split), whole, "{expected:?} split at {at}");
        }
        let single: Vec<_> = turns
            .iter()
            .flat_map(|(side, bytes)| bytes.iter().map(|byte| (*side, vec![*byte])))
            .collect();
        assert_eq!(converse(Carrier::Tcp, &single), whole, "{expected:?} byte by byte");
    }
}

#[test]
fn names_come_with_the_hello() {
    let (service, detail) = converse(Carrier::Tcp, &[(true, record(&hello("example.com")))]);
    assert_eq!(service, Some(Service::Tls));
    assert_eq!(detail.unwrap().server_name.as_deref(), Some("example.com"));
    let packet = seal(1, b"12345678", &crypto(0, &hello("example.com")));
    let (service, detail) = converse(Carrier::Udp, &[(true, packet)]);
    assert_eq!(service, Some(Service::Quic));
    assert_eq!(detail.unwrap().alpn.as_deref(), Some("h2,http/1.1"));
}

#[test]
fn datagrams() {
    assert_eq!(converse(Carrier::Udp, &[(true, dns_query())]).0, Some(Service::Dns));
    let mut late = vec![(true, vec![1]); usize::from(DATAGRAMS)];
    late.push((true, dns_query()));
    assert_eq!(converse(Carrier::Udp, &late).0, None, "only the first datagrams are looked at");
}

#[test]
fn repeated_and_missing_bytes() {
    let bytes = record(&hello("example.com"));
    let mut services = Services::new(8);
    let mut detector = Detector::default();
    let mut observe = |offset: usize, end: usize| {
        services.observe(&mut detector, Carrier::Tcp, true, offset as u32, &bytes[offset..end])
    };
    assert!(observe(0, 3).is_none());
    assert!(observe(0, 3).is_none(), "repeated");
    assert_eq!(observe(1, 20).unwrap().service, Some(Service::Tls));
    assert!(observe(10, bytes.len()).unwrap().detail.is_some());
    let mut detector = Detector::default();
    assert!(services.observe(&mut detector, Carrier::Tcp, true, 7, &bytes).is_none());
    assert_eq!(detector.done, [true, false], "what follows a gap is not read");
}

#[test]
fn a_slot_taken_over_loses_the_name_only() {
    let bytes = record(&hello("example.com"));
    let mut services = Services::new(1);
    let (mut one, mut two) = (Detector::default(), Detector::default());
    let found = services.observe(&mut one, Carrier::Tcp, true, 0, &bytes[..50]).unwrap();
    assert_eq!(found.service, Some(Service::Tls));
    services.observe(&mut two, Carrier::Tcp, true, 0, &bytes[..50]);
    assert!(services.observe(&mut one, Carrier::Tcp, true, 50, &bytes[50..]).is_none());
    let found = services.observe(&mut two, Carrier::Tcp, true, 50, &bytes[50..]).unwrap();
    assert!(found.detail.is_some());
    assert_eq!(one.service(), Some(Service::Tls));
}

#[test]
fn a_detector_is_small() {
    assert!(size_of::<Detector>() <= 16);
}

proptest! {
    #[test]
    fn arbitrary_conversations_never_panic_and_end(
        turns in proptest::collection::vec(
            (any::<bool>(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..200)),
            0..40,
        ),
        udp in any::<bool>(),
    ) {
        let carrier = if udp { Carrier::Udp } else { Carrier::Tcp };
        let mut services = Services::new(2);
        let mut detector = Detector::default();
        for (side, offset, bytes) in &turns {
            services.observe(&mut detector, carrier, *side, u32::from(*offset) % 300, bytes);
        }
    }

    #[test]
    fn mutated_messages_never_panic(
        which in any::<prop::sample::Index>(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut messages: Vec<_> =
            streams().into_iter().flat_map(|(_, turns)| turns).map(|(_, bytes)| bytes).collect();
        messages.push(dns_query());
        messages.push(seal(1, b"12345678", &crypto(0, &hello("example.com"))));
        let mut bytes = which.get(&messages).clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let (a, b) = bytes.split_at(cut.index(bytes.len()));
        for carrier in [Carrier::Tcp, Carrier::Udp] {
            converse(carrier, &[(true, a.to_vec()), (true, b.to_vec())]);
        }
    }
}

#[test]
fn a_stream_whose_ends_change_places_goes_on() {
    let hello = record(&hello("example.com"));
    for cut in 1..hello.len() {
        let mut services = Services::new(8);
        let mut detector = Detector::default();
        // What came first was taken for the responder's.
        let (first, rest) = hello.split_at(cut);
        services.observe(&mut detector, Carrier::Tcp, false, 0, first);
        services.turn(&mut detector);
        assert!(detector.wants(true), "{cut}");
        services.observe(&mut detector, Carrier::Tcp, false, 0, b"\x15\x03\x03\x00\x02\x02\x28");
        let found = services.observe(&mut detector, Carrier::Tcp, true, cut as u32, rest);
        let name = found.and_then(|found| found.detail).and_then(|detail| detail.server_name);
        assert_eq!(name.as_deref(), Some("example.com"), "{cut}");
        assert_eq!(detector.service(), Some(Service::Tls));
    }
}
