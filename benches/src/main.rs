//! The measuring bench: drop rates against traffic generators and peers, and pipeline figures.

mod args;
mod drops;

use std::process::ExitCode;

use clap::Parser;
use stillwire_benches::{disk, pipeline};

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Drops(args) => drops::run(&args),
        Command::Pipeline(args) => pipeline::run(&args),
        Command::Disk(args) => disk::run(&args),
        Command::Bare(args) => drops::run_bare(&args),
        Command::Frames(args) => drops::write_frames(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // With every cause, in one line.
            eprintln!("stillwire-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
