//! Simulations: the engine as it is, but for its disk or for its capture, so that whoever runs it
//! finds out which part of his machine is the limit.
//!
//! None of it is evidence of anything, and nobody shall take it for that: such a run has a store of
//! its own kind, and a blind time from its beginning to its end in the ledger.

mod summary;

use std::fmt;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::source::made::{LEAST_BYTES, MOST_BYTES, MOST_SESSIONS};
use crate::units::{self, FrameRate};

pub use summary::Summary;

/// What can be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Frames are received, their sessions kept, and copied into segments in memory that are used
    /// again and again: how much the machine takes without the disk
    Disk,
    /// Frames are made in memory instead of received, and all the rest is done with them: how much
    /// the disk takes. Needs no interface and no privilege
    Capture,
}

/// How `capture` is told to simulate.
#[derive(Debug, Args)]
#[command(next_help_heading = "Simulating")]
pub struct SimulateArgs {
    /// Do not do this part for real, to find what limits the machine; both for what sessions and
    /// copying alone cost. The store must be new or a simulation's, and is evidence of nothing
    #[arg(long, value_name = "PART", value_enum, value_delimiter = ',')]
    pub simulate: Vec<Part>,

    /// Frames or bits of frames (as captured) made in a second, such as 1.5Mpps or 10Gbit/s; by
    /// default as many as the workers take
    #[arg(long, value_name = "RATE", value_parser = units::parse_frame_rate)]
    pub simulate_rate: Option<FrameRate>,

    /// Bytes of a made frame, 60 to 9018; 512 by default
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    pub simulate_frame: Option<u64>,

    /// Sessions that made frames belong to; 10000 by default
    #[arg(long, value_name = "N")]
    pub simulate_sessions: Option<u64>,
}

/// What a run only simulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Simulation {
    /// Whether segments lie in memory and are forgotten.
    pub disk: bool,
    /// The frames that are made, if none are received.
    pub capture: Option<MadeFrames>,
}

/// What frames are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeFrames {
    /// Bytes of each.
    pub frame_bytes: u32,
    /// Sessions, over all queues.
    pub sessions: u64,
    /// Frames a second, over all queues; `None` for as many as are taken.
    pub per_second: Option<u64>,
}

impl Simulation {
    /// Checks what was said about it; `None` where nothing is to be simulated. `interfaces` says
    /// whether any was named.
    ///
    /// # Errors
    /// Names the argument and what it can be.
    pub fn new(args: &SimulateArgs, interfaces: bool) -> Result<Option<Self>> {
        let made = args.simulate.contains(&Part::Capture);
        for (name, given) in [
            ("rate", args.simulate_rate.is_some()),
            ("frame", args.simulate_frame.is_some()),
            ("sessions", args.simulate_sessions.is_some()),
        ] {
            if given && !made {
                bail!("--simulate-{name}: says what frames to make; add --simulate capture");
            }
        }
        if args.simulate.is_empty() {
            return Ok(None);
        }
        if made && interfaces {
            bail!("--iface: with --simulate capture, frames are made and none received");
        }
        if !made && !interfaces {
            bail!("--iface: --simulate disk receives frames; name the interface");
        }
        let disk = args.simulate.contains(&Part::Disk);
        let capture = if made { Some(MadeFrames::new(args)?) } else { None };
        Ok(Some(Self { disk, capture }))
    }
}

impl MadeFrames {
    fn new(args: &SimulateArgs) -> Result<Self> {
        let bytes = args.simulate_frame.unwrap_or(512);
        let range = u64::from(LEAST_BYTES)..=u64::from(MOST_BYTES);
        if !range.contains(&bytes) {
            bail!("--simulate-frame: a frame has {LEAST_BYTES} to {MOST_BYTES} bytes, not {bytes}");
        }
        let sessions = args.simulate_sessions.unwrap_or(10_000);
        if !(1..=MOST_SESSIONS).contains(&sessions) {
            bail!("--simulate-sessions: 1 to {MOST_SESSIONS}, not {sessions}");
        }
        let per_second = args.simulate_rate.map(|rate| match rate {
            FrameRate::Frames(frames) => frames,
            FrameRate::Bits(bits) => bits / (bytes * 8),
        });
        if per_second == Some(0) {
            bail!("--simulate-rate: that is not one frame of {bytes} bytes in a second");
        }
        Ok(Self { frame_bytes: bytes as u32, sessions, per_second })
    }
}

impl fmt::Display for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.disk, self.capture.is_some()) {
            (true, false) => "no disk: packets were kept in no file",
            (false, _) => "no capture: the sensor made the frames itself",
            (true, true) => {
                "no capture and no disk: the sensor made the frames itself and kept them in no file"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::config::CaptureConfig;

    fn capture(args: &[&str]) -> Result<Option<Simulation>> {
        let base = ["stillwired", "capture", "--store", "/nowhere"];
        let cli = Cli::try_parse_from(base.iter().chain(args))?;
        match cli.command {
            Command::Capture(args) => Ok(CaptureConfig::new(*args)?.common.simulation),
            _ => bail!("not a capture"),
        }
    }

    fn message(args: &[&str]) -> String {
        capture(args).expect_err("refused").to_string()
    }

    #[test]
    fn nothing_is_simulated_unless_it_is_said() {
        assert_eq!(capture(&["-i", "a"]).expect("valid"), None);
        assert!(message(&[]).contains("--iface"));
        assert!(message(&["-i", "a", "--simulate-rate", "1Mpps"]).contains("--simulate capture"));
        assert!(message(&["-i", "a", "--simulate", "wire"]).contains("capture"));
    }

    #[test]
    fn a_disk_is_simulated_for_an_interface() {
        let disk = Some(Simulation { disk: true, capture: None });
        assert_eq!(capture(&["-i", "a", "--simulate", "disk"]).expect("valid"), disk);
        assert!(message(&["--simulate", "disk"]).contains("--iface"));
        assert!(
            message(&["-i", "a", "--simulate", "disk", "--simulate-frame", "64"])
                .contains("--simulate-frame")
        );
    }

    #[test]
    fn a_capture_is_simulated_without_one() {
        let made = |args: &[&str]| {
            let args = [&["--simulate", "capture"], args].concat();
            capture(&args).map(|simulation| simulation.and_then(|s| s.capture).expect("made"))
        };
        let stock = MadeFrames { frame_bytes: 512, sessions: 10_000, per_second: None };
        assert_eq!(made(&[]).expect("valid"), stock);
        let given = made(&[
            "--simulate-rate",
            "1Gbit/s",
            "--simulate-frame",
            "1KB",
            "--simulate-sessions",
            "7",
        ]);
        let given = given.expect("valid");
        assert_eq!(given, MadeFrames { frame_bytes: 1000, sessions: 7, per_second: Some(125_000) });
        let made = |args: &[&str]| message(&[&["--simulate", "capture"], args].concat());
        assert!(made(&["-i", "a"]).contains("--iface"));
        assert!(made(&["--simulate-frame", "59"]).contains("60 to 9018"));
        assert!(made(&["--simulate-sessions", "0"]).contains("--simulate-sessions"));
        assert!(made(&["--simulate-rate", "100bit/s"]).contains("--simulate-rate"));
        let both = capture(&["--simulate", "capture,disk"]).expect("valid").expect("simulated");
        assert!(both.disk && both.capture.is_some());
    }
}
