//! When a frame arrived: one moment for each frame, in order, and right.

use anyhow::{Context, Result};
use stillwire_tests::traffic::send_stamped;
use stillwire_tests::{Wire, outside, sensor};

/// Frames sent.
const COUNT: u32 = 5_000;
/// Microseconds between them.
const GAP: u32 = 100;

#[test]
fn each_frame_has_its_own_moment_of_arrival() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let program = sensor::capture(&wire, &store, &["--packet-budget", "1GiB"])?;
    let sent = send_stamped(&wire, COUNT, GAP)?;
    program.interrupt()?.success()?;

    let mut arrived = Vec::new();
    for segment in outside::segments(&store)? {
        for row in outside::tshark_fields(&segment, "udp", &["frame.time_epoch", "udp.payload"])? {
            let [time, payload] = row.as_slice() else { anyhow::bail!("a frame as {row:?}") };
            arrived.push((nanos(time)?, number(payload)?));
        }
    }
    assert_eq!(arrived.len(), sent.len(), "every frame arrived");
    for pair in arrived.windows(2) {
        assert!(pair[0].0 < pair[1].0, "two frames share a moment or go back in time: {pair:?}");
    }
    let mut delays = Vec::new();
    for (position, &(time, number)) in arrived.iter().enumerate() {
        assert_eq!(number, position, "frames are out of order");
        let delay = time.checked_sub(sent[number]);
        delays.push(delay.with_context(|| {
            format!("frame {number} arrived at {time}, before it was sent at {}", sent[number])
        })?);
    }
    // What the sensor saw between two frames against what the sender did. The machine may be busy
    // and some frames late, but not half of them.
    let mut errors: Vec<u64> = (1..sent.len())
        .map(|at| (arrived[at].0 - arrived[at - 1].0).abs_diff(sent[at] - sent[at - 1]))
        .collect();
    let (error, delay) = (median(&mut errors), median(&mut delays));
    println!("medians: spacing off by {error} ns, arrival {delay} ns after sending");
    assert!(error < 20_000, "frames {GAP} µs apart: off by {error} ns in the median");
    Ok(())
}

/// `1700000000.123456789` in nanoseconds.
fn nanos(time: &str) -> Result<u64> {
    let (seconds, fraction) = time.split_once('.').context("a time without a fraction")?;
    assert_eq!(fraction.len(), 9, "nanoseconds in {time}");
    Ok(seconds.parse::<u64>()? * 1_000_000_000 + fraction.parse::<u64>()?)
}

/// The number at the head of a payload in hexadecimal digits.
fn number(payload: &str) -> Result<usize> {
    let digits = payload.get(..8).context("a payload without a number")?;
    Ok(usize::from_str_radix(digits, 16)?)
}

fn median(values: &mut [u64]) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}
