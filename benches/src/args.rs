//! The command line of the bench; what each subcommand takes stands in its own module.

use clap::{Parser, Subcommand};
use stillwire_benches::disk::DiskArgs;
use stillwire_benches::pipeline::PipelineArgs;

use crate::drops::{BareArgs, DropsArgs, FramesArgs};

/// Stillwire's measuring bench: how many frames a capture program loses, and what each step costs.
#[derive(Debug, Parser)]
#[command(name = "stillwire-bench", version, about, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage. \
    Figures of a busy machine are worth nothing: let it rest first.")]
pub(crate) struct Cli {
    /// What to measure.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What the bench measures.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Frames that capture programs lose under a generated load, counted from outside
    Drops(Box<DropsArgs>),
    /// Time that a frame takes on its way from memory to session table and segment
    Pipeline(Box<PipelineArgs>),
    /// Rate at which packets are written: against memcpy, and against the disk itself
    Disk(Box<DiskArgs>),
    /// Receive by AF_XDP and discard until interrupted: the subject `bare` of `drops`
    #[command(hide = true)]
    Bare(BareArgs),
    /// Write the frames that a generator of `drops` sends into a capture file
    Frames(FramesArgs),
}
