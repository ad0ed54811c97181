//! The programs under test and what their store says.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Namespace, output, run};
use crate::process::{Ended, Program};
use crate::wire::Wire;

/// Where a program under test lies: in `STILLWIRE_BIN_DIR`, else beside the test's own profile.
///
/// # Errors
/// Where it has not been built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let directory = match std::env::var_os("STILLWIRE_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        // target/<profile>/deps/<test>
        None => std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("a test binary outside a target directory")?
            .to_owned(),
    };
    let path = directory.join(name);
    anyhow::ensure!(
        path.exists(),
        "{} does not exist: build it (cargo build), or let scripts/test do it",
        path.display()
    );
    Ok(path)
}

/// A directory for a store, in memory where the machine has room: how fast a disk is is not what
/// these tests ask. Removed when dropped.
///
/// # Errors
/// Where it cannot be made.
pub fn store_dir() -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let roomy = rustix::fs::statvfs(memory)
        .is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) > 4 << 30);
    let builder = &mut tempfile::Builder::new();
    let builder = builder.prefix("stillwire-test-");
    Ok(if roomy { builder.tempdir_in(memory)? } else { builder.tempdir()? })
}

/// `stillwired capture` on the sensor's end of a wire, ready to receive.
///
/// # Errors
/// Where it does not come up; the message carries what it wrote.
pub fn capture(wire: &Wire, store: &Path, args: &[&str]) -> Result<Program> {
    capture_on(&wire.sensor, &[Wire::SENSOR], store, args)
}

/// `stillwired capture` on interfaces of a namespace, ready to receive.
///
/// # Errors
/// Where it does not come up; the message carries what it wrote.
pub fn capture_on(
    namespace: &Namespace,
    interfaces: &[&str],
    store: &Path,
    args: &[&str],
) -> Result<Program> {
    let mut command = namespace.command(binary("stillwired")?);
    command.arg("capture").arg("--store").arg(store);
    command.args(["--iface", &interfaces.join(",")]).args(args);
    // Colours would split the words that we wait for.
    command.env("NO_COLOR", "1");
    let mut program = Program::start(&mut command)?;
    program.await_stderr(READY)?;
    Ok(program)
}

/// What `stillwired capture` logs once every socket receives.
pub const READY: &str = "capturing";

/// Runs `stillwired` to its end, whatever that is.
///
/// # Errors
/// Where it cannot be started.
pub fn stillwired(args: &[&str]) -> Result<Ended> {
    ended(Command::new(binary("stillwired")?).args(args))
}

/// `stillwired replay` of capture files into a store.
///
/// # Errors
/// Where it ends with another code than 0.
pub fn replay(store: &Path, files: &[&Path]) -> Result<String> {
    run(Command::new(binary("stillwired")?)
        .args(["replay", "--quiet", "--store"])
        .arg(store)
        .args(files))
}

/// Runs `stillwire` over a store to its end and gives its standard output.
///
/// # Errors
/// Where it ends with another code than 0.
pub fn stillwire(store: &Path, args: &[&str]) -> Result<String> {
    run(Command::new(binary("stillwire")?).arg("--store").arg(store).args(args))
}

/// Runs `stillwire` to its end, whatever that is.
///
/// # Errors
/// Where it cannot be started.
pub fn stillwire_ended(store: &Path, args: &[&str]) -> Result<Ended> {
    ended(Command::new(binary("stillwire")?).arg("--store").arg(store).args(args))
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// Where it cannot be started.
pub fn ended(command: &mut Command) -> Result<Ended> {
    let output = output(command.env("NO_COLOR", "1"))?;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// The sessions that match, one JSON object each, without limit.
///
/// # Errors
/// Where `stillwire sessions` fails or writes something else than NDJSON.
pub fn sessions(store: &Path, filter: &str) -> Result<Vec<Value>> {
    let mut args = vec!["sessions", "--format", "ndjson", "--limit", "0"];
    if !filter.is_empty() {
        args.push(filter);
    }
    stillwire(store, &args)?
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("a row: {line}")))
        .collect()
}

/// The lines of a store's ledger, oldest first.
///
/// # Errors
/// Where a line is not JSON.
pub fn ledger(store: &Path) -> Result<Vec<Value>> {
    let mut lines = Vec::new();
    for file in crate::outside::files(&store.join("ledger"), "ndjson")? {
        let text = std::fs::read_to_string(&file)?;
        for line in text.lines() {
            lines.push(serde_json::from_str(line).with_context(|| format!("a line: {line}"))?);
        }
    }
    Ok(lines)
}

/// The sum of a column over rows.
///
/// # Errors
/// Where a row has no such column or it is no whole number.
pub fn sum(rows: &[Value], column: &str) -> Result<u64> {
    rows.iter().map(|row| row[column].as_u64().with_context(|| format!("{column} in {row}"))).sum()
}
