//! `stillwire`, the analyst's companion.

use std::process::ExitCode;

fn main() -> ExitCode {
    capture_cli::app::run()
}
