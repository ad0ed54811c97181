//! What is sent: the recipe for the frames, and the frames themselves where this program makes
//! them.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use bench_common::traffic::{FILLER, LONGEST, POSITIONS, SHORTEST, TCP, UDP};
use bench_common::{Head, Recipe, Walk};
use capture_user::units::Grouped;
use serde::Serialize;

use super::args::{FramesArgs, Protocol, TrafficArgs};

/// The Internet's mix: seven parts small, four middling, one large, as IP packets of 46 (the
/// least that fills a frame), 576 and 1500 bytes.
const IMIX: [u32; POSITIONS] = [60, 590, 60, 60, 590, 60, 1514, 60, 590, 60, 590, 60];

/// How long frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// All of this length.
    Fixed(u32),
    /// The Internet's mix.
    Imix,
}

impl Size {
    fn lengths(self) -> [u32; POSITIONS] {
        match self {
            Self::Fixed(bytes) => [bytes; POSITIONS],
            Self::Imix => IMIX,
        }
    }
}

/// Reads a length in bytes, or `imix`.
pub(crate) fn parse_size(text: &str) -> Result<Size, String> {
    if text.eq_ignore_ascii_case("imix") {
        return Ok(Size::Imix);
    }
    match text.parse::<u32>() {
        Ok(bytes) if (SHORTEST..=LONGEST).contains(&bytes) => Ok(Size::Fixed(bytes)),
        _ => Err(format!("'{text}' is no length from {SHORTEST} to {LONGEST} bytes, nor imix")),
    }
}

/// A traffic that can be sent.
#[derive(Clone, Debug)]
pub(crate) struct Traffic {
    /// Its frames.
    pub(crate) recipe: Recipe,
    /// What it is, for the report.
    pub(crate) about: About,
}

/// A traffic in the report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct About {
    /// Which protocol the frames carry.
    protocol: &'static str,
    /// Frame lengths as captured, taken in turn.
    frame_bytes: Vec<u32>,
    /// Their mean.
    pub(crate) mean_frame_bytes: f64,
    /// Sessions at the same time.
    pub(crate) sessions: u32,
    /// Frames until a session gives its place to another; 0 for never.
    pub(crate) frames_per_session: u32,
    /// Whether frames go both ways.
    both_ways: bool,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ways = if self.both_ways { "both ways" } else { "one way" };
        match self.frame_bytes.as_slice() {
            [bytes] => write!(f, "{bytes}-byte frames")?,
            _ => write!(f, "frames of {:.0} bytes on average", self.mean_frame_bytes)?,
        }
        write!(f, ", {} {} sessions, {ways}", Grouped(self.sessions.into()), self.protocol)
    }
}

impl Traffic {
    /// Checks what was asked for.
    pub(crate) fn new(args: &TrafficArgs) -> Result<Self> {
        let lengths = args.size.lengths();
        let (protocol, name) = match args.protocol {
            Protocol::Udp => (UDP, "udp"),
            Protocol::Tcp => (TCP, "tcp"),
        };
        let recipe = Recipe::new(protocol, !args.one_way, &lengths).context("frame lengths")?;
        let frame_bytes = match args.size {
            Size::Fixed(bytes) => vec![bytes],
            Size::Imix => lengths.to_vec(),
        };
        let about = About {
            protocol: name,
            mean_frame_bytes: f64::from(lengths.iter().sum::<u32>()) / POSITIONS as f64,
            frame_bytes,
            sessions: args.sessions,
            frames_per_session: args.session_frames,
            both_ways: !args.one_way,
        };
        Ok(Self { recipe, about })
    }

    /// Where sender `index` of `senders` starts; `None` if there are fewer sessions than senders.
    pub(crate) fn walk(&self, index: u32, senders: u32) -> Option<Walk> {
        let total = self.about.sessions;
        let start = |index: u32| (u64::from(total) * u64::from(index) / u64::from(senders)) as u32;
        let sessions = start(index + 1) - start(index);
        let per_session = self.about.frames_per_session;
        Walk::new(start(index), sessions, total, per_session, (index, senders))
    }

    /// What a frame holds before its beginning is written: as long as the longest.
    pub(crate) fn blank(&self) -> Vec<u8> {
        vec![FILLER; self.recipe.longest as usize]
    }
}

/// `stillwire-bench frames`: a capture file with the frames that a generator would send.
pub(crate) fn write_frames(args: &FramesArgs) -> Result<ExitCode> {
    let traffic = Traffic::new(&args.traffic)?;
    let path = args.write.display();
    let file = File::create(&args.write).with_context(|| format!("making {path}"))?;
    let interval_ns = args.rate.per_second().map_or(0.0, |rate| 1e9 / rate);
    write_capture(&traffic, args.count, interval_ns, BufWriter::new(file))
        .with_context(|| format!("writing {path}"))?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the first frames of a traffic as a nanosecond pcap.
pub(crate) fn write_capture(
    traffic: &Traffic,
    count: u64,
    interval_ns: f64,
    mut out: impl Write,
) -> Result<()> {
    let mut header = Vec::with_capacity(24);
    for word in [0xa1b2_3c4d, 0x0004_0002, 0, 0, 262_144, 1_u32] {
        header.extend_from_slice(&word.to_le_bytes());
    }
    out.write_all(&header)?;
    let mut walk = traffic.walk(0, 1).context("a traffic without sessions")?;
    let mut frame = traffic.blank();
    for number in 0..count {
        let bytes = traffic.recipe.frame_bytes(&walk);
        let head = Head::of(&mut frame).context("a frame without room for its headers")?;
        traffic.recipe.write(&walk, head);
        walk.step(&traffic.recipe);
        let at_ns = (number as f64 * interval_ns) as u64;
        let words = [(at_ns / 1_000_000_000) as u32, (at_ns % 1_000_000_000) as u32, bytes, bytes];
        for word in words {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(frame.get(..bytes as usize).unwrap_or(&frame))?;
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(sessions: u32) -> Traffic {
        let args = TrafficArgs {
            size: Size::Imix,
            sessions,
            session_frames: 0,
            protocol: Protocol::Tcp,
            one_way: false,
        };
        Traffic::new(&args).unwrap()
    }

    #[test]
    fn lengths_are_checked() {
        assert_eq!(parse_size("64"), Ok(Size::Fixed(64)));
        assert_eq!(parse_size("IMIX"), Ok(Size::Imix));
        for text in ["", "59", "65550", "-64", "64B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn senders_share_the_sessions() {
        let traffic = traffic(10);
        assert!((0..3).all(|index| traffic.walk(index, 3).is_some()));
        assert!(traffic.walk(0, 11).is_none());
    }

    #[test]
    fn a_capture_file_holds_the_frames_at_their_pace() {
        let mut file = Vec::new();
        write_capture(&traffic(12), 24, 250_000_000.0, &mut file).unwrap();
        assert_eq!(file.len(), 24 + 24 * 16 + 2 * IMIX.iter().sum::<u32>() as usize);
        let word = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1));
        // The second frame, a quarter of a second later.
        let second = 24 + 16 + IMIX[0] as usize;
        assert_eq!((word(second), word(second + 4)), (0, 250_000_000));
        assert_eq!((word(second + 8), word(second + 12)), (IMIX[1], IMIX[1]));
    }
}
