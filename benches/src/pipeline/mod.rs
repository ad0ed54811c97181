//! `stillwire-bench pipeline`

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

/// `stillwire-bench pipeline`
#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {}

/// Runs the measurement.
pub(crate) fn run(_args: &PipelineArgs) -> Result<ExitCode> {
    bail!("`pipeline` is not built yet")
}
