//! Readers that know nothing of Stillwire: what they count is the measure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::netns::run;

/// The pcap segments of a store, by worker and sequence.
///
/// # Errors
/// Where the directories cannot be read.
pub fn segments(store: &Path) -> Result<Vec<PathBuf>> {
    files(&store.join("pcap"), "pcap")
}

/// The sealed session files of a store.
///
/// # Errors
/// Where the directories cannot be read.
pub fn parquet(store: &Path) -> Result<Vec<PathBuf>> {
    files(&store.join("sessions"), "parquet")
}

/// Every file below a directory whose name ends in `.extension`, sorted; none where there is no
/// such directory.
///
/// # Errors
/// Where a directory cannot be read.
pub fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut rest = vec![directory.to_owned()];
    while let Some(directory) = rest.pop() {
        if !directory.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                rest.push(path);
            } else if path.extension().is_some_and(|is| is == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Frames in one capture file as capinfos counts them.
///
/// # Errors
/// Where capinfos finds the file damaged or cut off.
pub fn capinfos_frames(file: &Path) -> Result<u64> {
    frames_in(&[file.to_owned()])
}

/// Frames in all segments of a store as capinfos counts them.
///
/// # Errors
/// Where capinfos finds one of them damaged or cut off.
pub fn recorded_frames(store: &Path) -> Result<u64> {
    let segments = segments(store)?;
    if segments.is_empty() { Ok(0) } else { frames_in(&segments) }
}

/// Frames in capture files together as capinfos counts them.
///
/// # Errors
/// Where capinfos is missing, or finds one of them damaged or cut off.
pub fn frames_in(files: &[PathBuf]) -> Result<u64> {
    // -M: plain numbers, -T -m: a table separated by commas, -r: no header, -c: the count alone.
    let output = crate::netns::output(Command::new("capinfos").arg("-MTmrc").args(files))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && !told.contains("cut short"), "capinfos: {told}{text}");
    ensure!(text.lines().count() == files.len(), "capinfos left a file out: {text}");
    text.lines()
        .map(|line| {
            let count = line.rsplit(',').next().unwrap_or_default();
            count.parse::<u64>().with_context(|| format!("the count in capinfos' line {line:?}"))
        })
        .sum()
}

/// The fields of every frame that `filter` lets pass, as tshark reads them, in file order.
///
/// # Errors
/// Where tshark does not read the file to its end.
pub fn tshark_fields(file: &Path, filter: &str, fields: &[&str]) -> Result<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = run(&mut command)?;
    Ok(text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect())
}

/// How often each frame (its bytes) occurs in a capture file, as tshark reads them, among those
/// that `filter` lets pass.
///
/// # Errors
/// Where tshark does not read the file to its end.
pub fn frame_bytes(file: &Path, filter: &str) -> Result<BTreeMap<String, usize>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-Y", filter, "-T", "jsonraw", "-j", "frame"]);
    let text = run(&mut command)?;
    let frames: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let mut counted = BTreeMap::new();
    for frame in &frames {
        let bytes = frame.pointer("/_source/layers/frame_raw/0").and_then(|bytes| bytes.as_str());
        *counted.entry(bytes.context("a frame without bytes")?.to_owned()).or_default() += 1;
    }
    Ok(counted)
}

/// Runs a Python program in the environment that `scripts/test` prepares (duckdb and pyarrow from
/// PyPI; `STILLWIRE_PYTHON` is its interpreter) and gives what it prints.
///
/// # Errors
/// Where the interpreter is missing or the program fails.
pub fn python(program: &str, args: &[&Path]) -> Result<String> {
    let python = std::env::var_os("STILLWIRE_PYTHON").context(
        "STILLWIRE_PYTHON is not set: it names a Python with duckdb and pyarrow (scripts/test makes one)",
    )?;
    run(Command::new(python).arg("-c").arg(program).args(args))
}
