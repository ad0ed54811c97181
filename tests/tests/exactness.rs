//! Every frame that crossed the wire is in the segments, in the sessions and in the ledger: counted
//! by the sender's interface on one side and by capinfos on the other.

use std::path::Path;

use anyhow::Result;
use stillwire_tests::traffic::{Frames, Pace, Sent};
use stillwire_tests::{Account, Wire, outside, sensor};

/// Captures what `frames` sends over `wire`, holds every count against the others, and lets `look`
/// see the store.
fn nothing_is_lost(
    wire: &Wire,
    frames: Frames,
    look: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let program = sensor::capture(wire, &store, &["--packet-budget", "4GiB"])?;
    let sent = frames.send(wire)?;
    program.interrupt()?.success()?;

    assert_eq!(sent, Sent { carried: frames.count, refused: 0 }, "the wire itself lost frames");
    assert_eq!(outside::recorded_frames(&store)?, frames.count, "capinfos over the segments");
    let rows = sensor::sessions(&store, "")?;
    assert_eq!(rows.len(), usize::from(frames.flows), "one session for each flow");
    assert_eq!(sensor::sum(&rows, "orig_pkts")?, frames.count, "packets of all sessions");
    assert_eq!(sensor::sum(&rows, "resp_pkts")?, 0);
    let bytes = frames.count * u64::from(frames.bytes - 14);
    assert_eq!(sensor::sum(&rows, "orig_ip_bytes")?, bytes, "IP bytes of all sessions");
    let account = Account::of(&store)?;
    assert_eq!(account.seen, frames.count, "{account:?}");
    assert_eq!(account.received, frames.count, "{account:?}");
    assert_eq!(account.written, frames.count, "{account:?}");
    assert_eq!(account.lost, 0, "{account:?}");
    account.balances()?;
    look(&store)
}

#[test]
fn a_million_small_frames_at_100_000_a_second() -> Result<()> {
    let frames =
        Frames { count: 1_000_000, bytes: 64, flows: 1000, pace: Pace::PerSecond(100_000) };
    nothing_is_lost(&Wire::new()?, frames, |_| Ok(()))
}

#[test]
fn full_sized_frames() -> Result<()> {
    let frames =
        Frames { count: 500_000, bytes: 1514, flows: 1000, pace: Pace::PerSecond(100_000) };
    nothing_is_lost(&Wire::new()?, frames, |_| Ok(()))
}

#[test]
fn jumbo_frames_in_several_buffers_each() -> Result<()> {
    // Close to a gigabyte, spread evenly: a burst would measure how fast memory is.
    let frames = Frames { count: 100_000, bytes: 9000, flows: 100, pace: Pace::Gap(20) };
    nothing_is_lost(&Wire::with().mtu(9000).build()?, frames, |_| Ok(()))
}

#[test]
fn frames_spread_over_two_queues() -> Result<()> {
    let frames =
        Frames { count: 1_000_000, bytes: 64, flows: 1000, pace: Pace::PerSecond(100_000) };
    let wire = Wire::with().queues(2).spread_by_flow().build()?;
    nothing_is_lost(&wire, frames, |store| {
        for worker in ["w00", "w01"] {
            let mut recorded = 0;
            for segment in outside::files(&store.join("pcap").join(worker), "pcap")? {
                recorded += outside::capinfos_frames(&segment)?;
            }
            // The hash deals 1,000 flows to two queues. Less than a fifth on one of them would be
            // odd; none would mean that the test has shown nothing about two queues.
            assert!(recorded > frames.count / 5, "{worker} recorded {recorded}");
        }
        Ok(())
    })
}

#[test]
fn an_overload_is_accounted_for_to_the_frame() -> Result<()> {
    // A ring of 64 slots against trafgen at its full speed.
    let frames = Frames { count: 1_000_000, bytes: 1514, flows: 100, pace: Pace::Flood };
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let args = ["--ring-size", "64", "--packet-budget", "4GiB"];
    let program = sensor::capture(&wire, &store, &args)?;
    let sent = frames.send(&wire)?;
    program.interrupt()?.success()?;

    let recorded = outside::recorded_frames(&store)?;
    let account = Account::of(&store)?;
    assert!(recorded < sent.carried, "nothing was lost: the overload was none ({sent:?})");
    assert_eq!(sent.carried - recorded, account.lost, "{sent:?}, {recorded} recorded, {account:?}");
    assert_eq!(account.written, recorded, "{account:?}");
    let rows = sensor::sessions(&store, "")?;
    assert_eq!(sensor::sum(&rows, "orig_pkts")?, account.received, "packets of all sessions");
    account.balances()
}
