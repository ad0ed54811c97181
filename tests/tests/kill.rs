//! `kill -9` in the middle of the work, again and again: the next start recovers, and what had been
//! committed is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Account, Program, Wire, outside, sensor};

/// How often the sensor is killed.
const KILLS: usize = 12;

/// Rows in a store: the session and which of its rows.
fn rows(store: &Path) -> Result<BTreeSet<(String, u64)>> {
    sensor::sessions(store, "")?
        .iter()
        .map(|row| {
            let uid = row["uid"].as_str().context("a row without uid")?;
            Ok((uid.to_owned(), row["update"].as_u64().context("a row without update")?))
        })
        .collect()
}

/// Every row is still there, or a later one of its session.
fn assert_keeps(before: &BTreeSet<(String, u64)>, after: &BTreeSet<(String, u64)>, when: &str) {
    for (uid, update) in before {
        let later = (uid.clone(), *update)..=(uid.clone(), u64::MAX);
        assert!(after.range(later).next().is_some(), "{when}: row {update} of {uid} is gone");
    }
}

/// Ledger notes of a kind, in all lines.
fn notes(store: &Path, kind: &str) -> Result<usize> {
    let lines = sensor::ledger(store)?;
    let notes = lines.iter().flat_map(|line| line["notes"].as_array().into_iter().flatten());
    Ok(notes.filter(|note| note["note"] == kind).count())
}

#[test]
fn what_was_committed_survives_being_killed() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let args = ["--packet-budget", "8GiB", "--segment-size", "16MiB", "--interim", "1s"];
    let frames = Frames { count: 0, bytes: 64, flows: 1000, pace: Pace::PerSecond(100_000) };
    let _sending = frames.start(&wire)?;
    for kill in 1..=KILLS {
        let lines = sensor::ledger(&store)?.len();
        let mut program = sensor::capture(&wire, &store, &args)?;
        // Once it has written some lines of its own, and at another moment each time.
        await_until("lines in the ledger", || {
            assert!(program.runs()?, "{}", program.stderr()?);
            Ok((sensor::ledger(&store)?.len() >= lines + 2 + kill % 2).then_some(()))
        })?;
        std::thread::sleep(Duration::from_millis(kill as u64 * 67 % 400));
        let known = rows(&store)?;
        let written = Account::of(&store)?.written;
        program.kill()?;

        // What a reader finds now, with nothing recovered yet: the same, perhaps more.
        let after = rows(&store)?;
        assert!(!after.is_empty(), "kill {kill}: there are no rows, so none can be missed");
        assert_keeps(&known, &after, &format!("kill {kill}, not recovered"));
        // The next start recovers; that it then ends in order leaves everything sealed.
        sensor::capture(&wire, &store, &args)?.interrupt()?.success()?;
        assert_keeps(&after, &rows(&store)?, &format!("kill {kill}, recovered"));
        let recorded = outside::recorded_frames(&store)?;
        assert!(recorded >= written, "kill {kill}: {written} were committed, {recorded} are left");
        let open = outside::files(&store.join("pcap"), "open")?;
        assert!(open.is_empty(), "kill {kill}: not sealed: {open:?}");
        assert_eq!(notes(&store, "recovered")?, kill, "each kill is told in the ledger, once");
    }
    // The indexes survived as well: they lead to every frame that the rows count, and to those that
    // came between a session's last row and the kill, each once.
    let all = dir.path().join("all.pcap");
    sensor::stillwire(&store, &["packets", "udp", "-w", &all.to_string_lossy()])?;
    let counted = sensor::sum(&sensor::sessions(&store, "udp")?, "frames")?;
    let (found, recorded) = (outside::capinfos_frames(&all)?, outside::recorded_frames(&store)?);
    assert!(counted > 0 && counted <= found, "{counted} in rows, {found} through the indexes");
    assert!(found <= recorded, "{found} through the indexes, {recorded} in the segments");
    Ok(())
}

#[test]
fn what_a_recovery_did_is_told_even_if_the_start_that_recovered_fails() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let store = dir.path().join("store");
    let frames = Frames { count: 2_000, bytes: 100, flows: 10, pace: Pace::Gap(10) };
    let mut program = sensor::capture(&wire, &store, &["--interim", "1s"])?;
    frames.send(&wire)?;
    await_until("rows", || {
        assert!(program.runs()?, "{}", program.stderr()?);
        Ok((!rows(&store)?.is_empty()).then_some(()))
    })?;
    program.kill()?;

    // Another sensor has the interface: the starts recover, and fail.
    let other = sensor::capture(&wire, &dir.path().join("other"), &[])?;
    for start in 1..=2 {
        let failed = sensor::capture(&wire, &store, &[]).map(drop);
        let told = format!("{:#}", failed.expect_err("the interface is taken"));
        assert_eq!(told.contains("ended uncleanly"), start == 1, "{told}");
        assert_eq!(notes(&store, "recovered")?, 0);
    }
    other.interrupt()?.success()?;
    for _ in 0..2 {
        sensor::capture(&wire, &store, &[])?.interrupt()?.success()?;
        assert_eq!(notes(&store, "recovered")?, 1);
    }
    // Everything that lies there is named with its hash.
    sensor::stillwire(&store, &["verify"])?;
    let sealed = outside::segments(&store)?.len() * 2 + outside::parquet(&store)?.len();
    assert_eq!(notes(&store, "sealed")?, sealed);
    Ok(())
}

#[test]
fn a_hangup_ends_a_capture_in_order_unless_it_is_to_be_ignored() -> Result<()> {
    let (wire, dir) = (Wire::new()?, sensor::store_dir()?);
    let store = dir.path().join("store");
    let program = sensor::capture(&wire, &store, &[])?;
    program.signal(Signal::HUP)?;
    program.wait()?.success()?;
    assert_eq!(notes(&store, "clean_stop")?, 1);

    let mut command = wire.sensor.command("nohup");
    command.arg(sensor::binary("stillwired")?).arg("capture").arg("--store").arg(&store);
    let mut program = Program::start(command.args(["--iface", Wire::SENSOR]))?;
    program.await_stderr(sensor::READY)?;
    let lines = sensor::ledger(&store)?.len();
    program.signal(Signal::HUP)?;
    await_until("lines after the hangup", || {
        assert!(program.runs()?, "{}", program.stderr()?);
        Ok((sensor::ledger(&store)?.len() > lines + 1).then_some(()))
    })?;
    program.interrupt()?.success()?;
    Ok(())
}
