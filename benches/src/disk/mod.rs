//! `stillwire-bench disk`

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// `stillwire-bench disk`
#[derive(Debug, Args)]
pub struct DiskArgs {}

/// Runs the measurement.
///
/// # Errors
/// It is not built yet.
pub fn run(_args: &DiskArgs) -> Result<ExitCode> {
    bail!("`disk` is not built yet")
}
