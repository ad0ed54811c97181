//! What makes the frames.

mod af_xdp;
mod kernel;
mod program;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::line::Line;
use super::plan::Plan;
use super::rate::Rate;

/// What makes the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    /// An XDP program in the kernel.
    Kernel,
    /// An AF_XDP socket of this program.
    AfXdp,
    /// trafgen, of netsniff-ng.
    Trafgen,
    /// tcpreplay.
    Tcpreplay {
        /// What it replays; by default the frames that the others make.
        capture: Option<PathBuf>,
    },
    /// Any command line.
    Template(String),
}

impl Maker {
    /// The programs it needs, with the Debian package of each.
    pub(crate) fn needs(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Trafgen => Some(("trafgen", "netsniff-ng")),
            Self::Tcpreplay { .. } => Some(("tcpreplay", "tcpreplay")),
            Self::Kernel | Self::AfXdp | Self::Template(_) => None,
        }
    }
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::AfXdp => f.write_str("af-xdp"),
            Self::Trafgen => f.write_str("trafgen"),
            Self::Tcpreplay { capture: None } => f.write_str("tcpreplay"),
            Self::Tcpreplay { capture: Some(path) } => write!(f, "tcpreplay {}", path.display()),
            Self::Template(template) => write!(f, "{TEMPLATE}{template}"),
        }
    }
}

/// Marks a template.
const TEMPLATE: &str = "cmd:";

/// Reads a generator's name.
pub(crate) fn parse_maker(text: &str) -> Result<Maker, String> {
    if let Some(template) = text.strip_prefix(TEMPLATE) {
        return Ok(Maker::Template(template.to_owned()));
    }
    match text.split_once(' ').map_or((text, ""), |(name, rest)| (name, rest.trim())) {
        ("kernel", "") => Ok(Maker::Kernel),
        ("af-xdp", "") => Ok(Maker::AfXdp),
        ("trafgen", "") => Ok(Maker::Trafgen),
        ("tcpreplay", "") => Ok(Maker::Tcpreplay { capture: None }),
        ("tcpreplay", path) => Ok(Maker::Tcpreplay { capture: Some(path.into()) }),
        _ => Err(format!(
            "'{text}' is no generator; known are kernel, af-xdp, trafgen, tcpreplay, 'tcpreplay FILE' \
             and '{TEMPLATE}program …'"
        )),
    }
}

/// How much longer than planned a load may take before it is ended.
const OVERTIME: f64 = 1.05;

/// How much a load is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Extent {
    /// So long.
    Lasting(Duration),
    /// So many frames, however long it takes.
    Frames(u64),
}

/// A load to put on a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// How fast.
    pub(crate) rate: Rate,
    /// How much.
    pub(crate) extent: Extent,
    /// Frames at most: as many as there is room for in what the subject writes.
    pub(crate) most: u64,
}

impl Load {
    /// Frames to send in all, or those there is room for, where only the time is known.
    pub(crate) fn frames(&self) -> u64 {
        let wanted = match (self.extent, self.rate.per_second()) {
            (Extent::Frames(frames), _) => frames,
            // Rounded to whole frames; a float has room for all there can be.
            (Extent::Lasting(time), Some(rate)) => (rate * time.as_secs_f64()).round() as u64,
            (Extent::Lasting(_), None) => self.most,
        };
        wanted.clamp(1, self.most)
    }

    /// Whether the load is what was asked for once so many frames have been sent.
    pub(crate) fn is_complete(&self, frames: u64) -> bool {
        match (self.extent, self.rate) {
            (Extent::Lasting(_), Rate::Flood) => true,
            _ => frames >= self.frames(),
        }
    }

    /// When to end it, complete or not.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        match (self.extent, self.rate) {
            (Extent::Frames(_), _) => None,
            (Extent::Lasting(time), Rate::Flood) => Some(time),
            (Extent::Lasting(time), Rate::PerSecond(_)) => Some(time.mul_f64(OVERTIME)),
        }
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Sent {
    /// Frames handed to the link: what the loss is counted against.
    pub(crate) frames: u64,
    /// Among these, frames that the link refused since its receiving end was full. They are lost
    /// like any other, but no subject can have seen them.
    pub(crate) refused_by_link: u64,
    /// From the first frame to the last.
    pub(crate) seconds: f64,
    /// Time that the generator only waited, over all its cores.
    pub(crate) waited_seconds: f64,
    /// Time by which the generator fell behind its plan, over all its cores.
    pub(crate) behind_seconds: f64,
    /// It ended before the load was complete.
    pub(crate) interrupted: bool,
}

impl Sent {
    /// Frames a second.
    pub(crate) fn rate(&self) -> f64 {
        // One frame has no duration.
        if self.seconds > 0.0 { self.frames as f64 / self.seconds } else { 0.0 }
    }
}

/// Puts a load on a link and waits until it has passed. Calls `tick` some ten times a second with
/// the number of frames so far.
pub(crate) fn send(
    plan: &Plan,
    line: &Line,
    load: &Load,
    tick: &mut (dyn FnMut(u64) + Send),
) -> Result<Sent> {
    match plan.maker {
        Maker::Kernel => kernel::send(plan, line, load, tick),
        Maker::AfXdp => af_xdp::send(plan, line, load, tick),
        Maker::Trafgen | Maker::Tcpreplay { .. } | Maker::Template(_) => {
            program::send(plan, line, load, tick)
        }
    }
}
