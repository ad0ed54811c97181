//! Any conversation: no panic, a service is told once, and detection ends.
#![no_main]

use capture_flow::service::{Carrier, Detector, Services};
use libfuzzer_sys::fuzz_target;

// The input is a row of payloads: flags, stream offset back from the next byte, length (two
// bytes), bytes.
fuzz_target!(|data: &[u8]| {
    let mut services = Services::new(2);
    let mut detectors = [(Detector::default(), [0u32; 2]); 3];
    let mut rest = data;
    while let [flags, back, high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (bytes, behind) = tail.split_at(len);
        rest = behind;
        let carrier = if flags & 1 == 0 { Carrier::Tcp } else { Carrier::Udp };
        let from_originator = flags & 2 == 0;
        let (detector, next) = &mut detectors[usize::from(flags >> 2) % 3];
        let next = &mut next[usize::from(!from_originator)];
        let offset = next.saturating_sub(u32::from(*back));
        let known = detector.service();
        let found = services.observe(detector, carrier, from_originator, offset, bytes);
        if let Some(service) = found.and_then(|found| found.service) {
            assert!(known.is_none());
            assert_eq!(detector.service(), Some(service));
        }
        *next = next.saturating_add(bytes.len() as u32);
    }
});
