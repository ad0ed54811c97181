//! `stillwire-bench drops`: frames sent against frames that a foreign reader finds in what the
//! capture program wrote.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// `stillwire-bench drops`
#[derive(Debug, Args)]
pub(crate) struct DropsArgs {}

/// Runs the measurement.
pub(crate) fn run(_args: &DropsArgs) -> Result<ExitCode> {
    bail!("`drops` is not built yet")
}
