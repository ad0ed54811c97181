//! Captures from elsewhere: each is read or refused, and every frame that was read is accounted
//! for, by the store and by capinfos.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use stillwire_tests::{Account, outside, sensor};

/// The captures below a directory of the traces; `None`, with words, where there are none.
fn traces(directory: &str) -> Option<Vec<PathBuf>> {
    let root = std::env::var_os("STILLWIRE_TRACES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")),
        PathBuf::from,
    );
    let mut files: Vec<PathBuf> = ["pcap", "pcapng", "gz"]
        .iter()
        .flat_map(|extension| outside::files(&root.join(directory), extension).unwrap_or_default())
        .collect();
    files.sort();
    if files.is_empty() {
        let told = format!("no captures in {}: set STILLWIRE_TRACES", root.display());
        assert!(std::env::var_os("CI").is_none(), "{told}");
        eprintln!("NOT TESTED: {told}");
        return None;
    }
    Some(files)
}

/// What a replay may take, whatever is in the file: private memory (`prlimit --data`; of that 64 MiB
/// are the sessions' and the fragments') and seconds of the processor. It dies of more.
const LIMITS: [&str; 2] = ["--data=268435456", "--cpu=60"];

/// Replays one file into a store of its own; gives the exit code and what the ledger says.
fn replay(file: &Path) -> Result<(i32, Account)> {
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let mut command = Command::new("prlimit");
    command.args(LIMITS).arg(sensor::binary("stillwired")?);
    command.args(["replay", "--quiet", "--table-memory", "48MiB", "--fragment-memory", "16MiB"]);
    command.args(["--packet-budget", "64MiB", "--session-budget", "64MiB"]);
    command.args(["--segment-size", "8MiB", "--store"]).arg(&store).arg(file);
    let ended = sensor::ended(&mut command)?;
    let code = ended.code.with_context(|| format!("ended by a signal: {}", ended.stderr))?;
    ensure!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    if !store.join("sensor.json").exists() {
        return Ok((code, Account::default()));
    }
    let account = Account::of(&store)?;
    ensure!(account.received == account.written + account.dropped, "{account:?}");
    ensure!(account.received == account.decoded + account.undecodable, "{account:?}");
    ensure!(account.rows_lost == 0, "{account:?}");
    ensure!(account.dropped == 0, "{account:?}");
    let recorded = outside::recorded_frames(&store)?;
    ensure!(recorded == account.written, "capinfos counts {recorded} in segments: {account:?}");
    let rows = sensor::sessions(&store, "")?;
    let frames = sensor::sum(&rows, "frames")?;
    ensure!(frames == account.decoded, "sessions have {frames} frames: {account:?}");
    Ok((code, account))
}

#[test]
fn every_frame_of_every_trace_is_accounted_for() -> Result<()> {
    let Some(files) = traces("zeek") else { return Ok(()) };
    let mut wrong = Vec::new();
    for file in &files {
        let counted = outside::capinfos_frames(file);
        match replay(file) {
            Err(error) => wrong.push(format!("{}: {error:#}", file.display())),
            Ok((code, account)) => match counted {
                Ok(frames) if (code, account.received) != (0, frames) => wrong.push(format!(
                    "{}: exit code {code}, {} of {frames} frames",
                    file.display(),
                    account.received
                )),
                // What capinfos cannot read to its end is cut off or damaged, and said to be so.
                Err(_) if code != 1 => wrong.push(format!("{}: exit code {code}", file.display())),
                _ => (),
            },
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), files.len(), wrong.join("\n"));
    println!("{} traces", files.len());
    Ok(())
}

#[test]
fn hostile_captures_are_read_or_refused() -> Result<()> {
    let Some(files) = traces("hostile") else { return Ok(()) };
    let mut wrong = Vec::new();
    for file in &files {
        match replay(file) {
            Ok((0 | 1, _)) => (),
            Ok((code, _)) => wrong.push(format!("{}: exit code {code}", file.display())),
            Err(error) => wrong.push(format!("{}: {error:#}", file.display())),
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), files.len(), wrong.join("\n"));
    println!("{} captures", files.len());
    Ok(())
}
