//! A simulated disk and a simulated capture do all the work but one part of it, and nobody takes
//! what they write for evidence.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stillwire_tests::traffic::{Frames, Pace, Sent};
use stillwire_tests::{Account, Wire, outside, sensor};

/// The ledger says of every moment that it was a simulation, and so does whoever reads it.
fn is_no_evidence(store: &Path, sessions: &str) -> Result<()> {
    let lines = sensor::ledger(store)?;
    let text = |line: &Value, name: &str| {
        line[name].as_str().map(str::to_owned).with_context(|| format!("{name} in {line}"))
    };
    for line in &lines {
        let blind = line["blind"].as_array().into_iter().flatten();
        let mut told = blind.filter(|blind| blind["cause"] == "simulated");
        let told = told.next().with_context(|| format!("no simulation in {line}"))?;
        // Times of one form: they sort as text.
        ensure!(text(told, "from")? <= text(line, "from")?, "it begins too late: {line}");
        ensure!(text(told, "to")? >= text(line, "to")?, "it ends too early: {line}");
    }
    let start = &lines.first().context("an empty ledger")?["notes"];
    let policies = start.as_array().into_iter().flatten().filter_map(|n| n["policy"].as_str());
    assert!(policies.into_iter().all(|policy| policy.starts_with("SIMULATION")), "{start}");

    let from = text(lines.first().context("a line")?, "from")?;
    let to = text(lines.last().context("a line")?, "to")?;
    // Neither an answer of none is certain, nor a session that is there.
    for filter in ["tcp port 9", sessions] {
        let args = ["prove", filter, "--from", &from, "--to", &to, "--format", "json"];
        let proof = sensor::stillwire_ended(store, &args)?;
        assert_eq!(proof.code, Some(4), "{filter}: {proof:?}");
        assert!(proof.stderr.contains("simulation's store"), "{proof:?}");
        let proof: Value = serde_json::from_str(&proof.stdout)?;
        assert_eq!(proof["coverage"]["covered_s"].as_f64(), Some(0.0), "{proof}");
        assert_eq!(proof["sessions"].as_array().map(Vec::len), Some(0), "{proof}");
    }
    let coverage = sensor::stillwire(store, &["coverage", "--format", "json"])?;
    assert!(coverage.contains("\"simulated\""), "{coverage}");
    // What is in the store is whole all the same.
    sensor::stillwire(store, &["verify"])?;

    // And nothing that was on a wire comes to lie beside it.
    let store = store.to_string_lossy();
    let file = sensor::store_dir()?;
    let file = file.path().join("empty.pcap");
    std::fs::write(&file, EMPTY_PCAP)?;
    let replay = sensor::stillwired(&["replay", "--store", &store, &file.to_string_lossy()])?;
    assert_eq!(replay.code, Some(1), "{replay:?}");
    assert!(replay.stderr.contains("simulation's store"), "{replay:?}");
    Ok(())
}

/// The header of a pcap file of Ethernet frames.
const EMPTY_PCAP: [u8; 24] =
    [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];

#[test]
fn a_simulated_disk_takes_every_frame_and_keeps_none() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    // So small that each of the few segments is used several times.
    let args = ["--simulate", "disk", "--segment-size", "2MiB"];
    let program = sensor::capture(&wire, &store, &args)?;
    let frames = Frames { count: 300_000, bytes: 64, flows: 100, pace: Pace::PerSecond(100_000) };
    let sent = frames.send(&wire)?;
    let ended = program.interrupt()?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stdout.contains("SIMULATED (no disk"), "{ended:?}");
    assert!(ended.stdout.contains("bottleneck"), "{ended:?}");

    assert_eq!(sent, Sent { carried: frames.count, refused: 0 }, "the wire itself lost frames");
    for extension in ["pcap", "idx", "open", "damaged"] {
        let files = outside::files(&store.join("pcap"), extension)?;
        assert!(files.is_empty(), "{files:?}");
    }
    let account = Account::of(&store)?;
    account.balances()?;
    assert_eq!((account.received, account.written), (frames.count, frames.count), "{account:?}");
    assert_eq!(account.lost, 0, "{account:?}");
    let rows = sensor::sessions(&store, "")?;
    assert_eq!(rows.len(), usize::from(frames.flows), "one session for each flow");
    assert_eq!(sensor::sum(&rows, "orig_pkts")?, frames.count, "packets of all sessions");
    is_no_evidence(&store, "udp")
}

/// A simulated capture of so many frames; what it printed.
fn make_frames(store: &Path, count: u64, args: &[&str]) -> Result<String> {
    let (store, count) = (store.to_string_lossy(), count.to_string());
    let base = ["capture", "--store", &store, "--simulate", "capture", "--count", &count];
    let ended = sensor::stillwired(&[&base, args].concat())?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("nothing that this run writes is evidence"), "{ended:?}");
    Ok(ended.stdout)
}

#[test]
fn a_simulated_capture_fills_a_real_store() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let count = 300_000;
    // A ring that holds all of them: however busy the machine is, none is lost in front of the
    // worker.
    let args = ["--simulate-rate", "100kpps", "--ring-size", "1048576", "--segment-size", "8MiB"];
    let sessions = ["--simulate-sessions", "1000", "--simulate-frame", "200"];
    let said = make_frames(&store, count, &[&args[..], &sessions].concat())?;
    assert!(said.contains("SIMULATED (no capture"), "{said}");
    assert!(said.contains("300,000 frames"), "{said}");

    assert_eq!(outside::recorded_frames(&store)?, count, "capinfos over the segments");
    let account = Account::of(&store)?;
    account.balances()?;
    assert_eq!((account.seen, account.written), (count, count), "{account:?}");
    let rows = sensor::sessions(&store, "")?;
    assert_eq!(rows.len(), 1000);
    let (orig, resp) = (sensor::sum(&rows, "orig_pkts")?, sensor::sum(&rows, "resp_pkts")?);
    assert_eq!((orig, resp), (count / 2, count / 2), "packets of all sessions, both ways");
    is_no_evidence(&store, "net 198.18.0.0/16")
}

#[test]
fn at_full_speed_every_frame_is_recorded_or_counted() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let count = 1_000_000;
    make_frames(&store, count, &["--segment-size", "8MiB", "--packet-budget", "2GiB"])?;
    let account = Account::of(&store)?;
    account.balances()?;
    assert_eq!((account.seen, account.received), (count, count), "{account:?}");
    assert_eq!(outside::recorded_frames(&store)?, account.written, "capinfos over the segments");
    let rows = sensor::sessions(&store, "")?;
    let packets = sensor::sum(&rows, "orig_pkts")? + sensor::sum(&rows, "resp_pkts")?;
    assert_eq!(packets, count, "sessions have what no segment had room for, too");
    Ok(())
}

#[test]
fn without_capture_and_disk_there_is_still_an_account() -> Result<()> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let said = make_frames(&store, 1_000_000, &["--simulate", "disk", "--segment-size", "8MiB"])?;
    assert!(said.contains("no capture and no disk"), "{said}");
    assert!(outside::segments(&store)?.is_empty());
    let account = Account::of(&store)?;
    account.balances()?;
    assert_eq!(account.received, 1_000_000, "{account:?}");
    is_no_evidence(&store, "udp")
}

#[test]
fn a_record_is_not_simulated_into() -> Result<()> {
    let dir = sensor::store_dir()?;
    let (store, file) = (dir.path().join("store"), dir.path().join("empty.pcap"));
    std::fs::write(&file, one_frame())?;
    sensor::replay(&store, &[&file])?;
    let path = store.to_string_lossy();
    let ended =
        sensor::stillwired(&["capture", "--store", &path, "--simulate", "capture", "-c", "1"])?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("holds a record"), "{ended:?}");
    assert_eq!(outside::recorded_frames(&store)?, 1, "what was there is there");
    Ok(())
}

/// A pcap file with a frame in it.
fn one_frame() -> Vec<u8> {
    let record = [1, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0];
    [&EMPTY_PCAP[..], &record, &[0xff; 60]].concat()
}
