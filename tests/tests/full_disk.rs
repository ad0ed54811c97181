//! A disk that is full for a while: what is recorded already waits, is sealed once there is room,
//! and the ledger tells of it.

use anyhow::Result;
use stillwire_tests::disk::SmallDisk;
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Account, Wire, outside, sensor};

/// What the sensor said in its ledger, in words.
fn said(store: &std::path::Path) -> Result<Vec<String>> {
    let lines = sensor::ledger(store)?;
    let notes = lines.iter().flat_map(|line| line["notes"].as_array().into_iter().flatten());
    Ok(notes.filter_map(|note| note["text"].as_str().map(str::to_owned)).collect())
}

#[test]
fn what_a_full_disk_kept_from_being_sealed_is_sealed_once_there_is_room() -> Result<()> {
    let (wire, disk) = (Wire::new()?, SmallDisk::new(128)?);
    let store = disk.path().join("store");
    // More than the disk has: only its end stops the sensor.
    let budgets = ["--packet-budget", "1GiB", "--session-budget", "1GiB", "--segment-size", "4MiB"];
    let mut program = sensor::capture(&wire, &store, &budgets)?;
    assert!(program.stderr()?.contains("larger than what the disk has"), "{}", program.stderr()?);
    let frames = Frames { count: 0, bytes: 1000, flows: 50, pace: Pace::PerSecond(5_000) };
    let sending = frames.start(&wire)?;
    await_until("lines in the ledger", || Ok((sensor::ledger(&store)?.len() > 2).then_some(())))?;
    let ballast = disk.fill(0)?;
    // Sealing and preparing each find out for themselves.
    program.await_stderr("tried again")?;
    program.await_stderr("no segment: ")?;
    drop(ballast);
    program.await_stderr("is sealed now")?;
    program.await_stderr("segments can be prepared again")?;
    drop(sending);
    program.interrupt()?.success()?;

    let open = outside::files(&store.join("pcap"), "open")?;
    assert!(open.is_empty(), "not sealed: {open:?}");
    // What was counted as written is there, whatever the disk did meanwhile.
    assert_eq!(outside::recorded_frames(&store)?, Account::of(&store)?.written);
    let said = said(&store)?;
    for words in ["cannot be sealed is tried again", "is sealed now", "segments can be prepared"] {
        assert!(said.iter().any(|text| text.contains(words)), "{words:?} is not in {said:?}");
    }
    sensor::stillwire(&store, &["verify"])?;
    Ok(())
}
