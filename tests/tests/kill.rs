//! `kill -9` in the middle of the work, again and again: the next start recovers, and what had been
//! committed is there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Account, Wire, outside, sensor};

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
    // The indexes survived as well: they lead to every frame that the rows count. (Frames between
    // the last row and the kill are in the segments, but no row counts them.)
    let all = dir.path().join("all.pcap");
    sensor::stillwire(&store, &["packets", "udp", "-w", &all.to_string_lossy()])?;
    let counted = sensor::sum(&sensor::sessions(&store, "udp")?, "frames")?;
    assert!(counted > 0 && counted <= outside::recorded_frames(&store)?, "{counted} in rows");
    assert_eq!(outside::capinfos_frames(&all)?, counted, "frames found through the indexes");
    Ok(())
}
