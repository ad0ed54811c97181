//! `stillwire-bench disk`

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// `stillwire-bench disk`
#[derive(Debug, Args)]
pub(crate) struct DiskArgs {}

/// Runs the measurement.
pub(crate) fn run(_args: &DiskArgs) -> Result<ExitCode> {
    bail!("`disk` is not built yet")
}
