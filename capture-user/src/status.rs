//! What an operator sees while a sensor runs: a line that is redrawn on a terminal, a log line
//! now and then elsewhere.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use tracing::info;

use crate::units::{Bytes, Grouped, Rate};

/// How often the line is redrawn on a terminal.
const REDRAW: Duration = Duration::from_secs(1);
/// How often a log line says the same elsewhere.
const LOG: Duration = Duration::from_secs(60);

/// Totals of a run, for the eye.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames received.
    pub frames: u64,
    /// Their bytes on the wire.
    pub wire_bytes: u64,
    /// Frames lost between the XDP program and the worker.
    pub ring_losses: u64,
    /// Frames received and not recorded.
    pub dropped: u64,
    /// Sessions in the tables now.
    pub sessions: u64,
    /// Session rows written.
    pub rows: u64,
    /// Session rows lost.
    pub rows_lost: u64,
    /// Bytes that packets take on disk.
    pub packet_bytes: u64,
    /// Bytes that the session log takes on disk.
    pub session_bytes: u64,
}

/// Shows [`Totals`].
#[derive(Debug)]
pub struct Status {
    quiet: bool,
    simulated: bool,
    terminal: bool,
    shown: bool,
    last: Instant,
    before: Totals,
}

impl Status {
    /// Nothing shown yet. What is shown of a simulation says that it is one.
    #[must_use]
    pub fn new(quiet: bool, simulated: bool) -> Self {
        Self {
            quiet,
            simulated,
            terminal: io::stderr().is_terminal(),
            shown: false,
            last: Instant::now(),
            before: Totals::default(),
        }
    }

    /// Shows the totals if it is time to, and what `blind` gives, which is best short.
    pub fn show(&mut self, totals: &Totals, blind: impl FnOnce() -> Vec<String>) {
        let elapsed = self.last.elapsed();
        let every = if self.terminal { REDRAW } else { LOG };
        if self.quiet || elapsed < every {
            return;
        }
        let mut line = line(&self.before, totals, elapsed);
        if self.simulated {
            line.insert_str(0, "SIMULATED ");
        }
        let blind = blind();
        if !blind.is_empty() {
            let _ = write!(line, " | BLIND: {}", blind.join(", "));
        }
        if self.terminal {
            // Erase the line, write without a line feed: the next one takes its place.
            let _ = write!(io::stderr(), "\r\x1b[2K{line}");
            let _ = io::stderr().flush();
            self.shown = true;
        } else {
            info!("{line}");
        }
        self.before = *totals;
        self.last = Instant::now();
    }

    /// Leaves the terminal's line clean for what is written next.
    pub fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[2K");
            let _ = io::stderr().flush();
        }
    }
}

fn line(before: &Totals, now: &Totals, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-3);
    let rate = |now: u64, before: u64| Rate(now.saturating_sub(before) as f64 / seconds);
    let lost = now.ring_losses.saturating_add(now.dropped);
    let mut text = format!(
        "{:>8}pps {:>8}bit/s | {} frames, lost {}",
        unit(rate(now.frames, before.frames)),
        unit(Rate(now.wire_bytes.saturating_sub(before.wire_bytes) as f64 * 8.0 / seconds)),
        Grouped(now.frames),
        Grouped(lost),
    );
    if now.rows_lost > 0 {
        let _ = write!(text, ", rows lost {}", Grouped(now.rows_lost));
    }
    let _ = write!(
        text,
        " | {} sessions | packets {}, log {}",
        Grouped(now.sessions),
        Bytes(now.packet_bytes),
        Bytes(now.session_bytes)
    );
    text
}

/// A rate with a space in front of the unit that follows, prefix or none.
fn unit(rate: Rate) -> String {
    let text = rate.to_string();
    if text.contains(' ') { text } else { format!("{text} ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters() {
        let now = Totals {
            frames: 2_500_000,
            wire_bytes: 125_000_000,
            ring_losses: 3,
            dropped: 4,
            sessions: 12,
            packet_bytes: 3 << 30,
            ..Totals::default()
        };
        let text = line(&Totals::default(), &now, Duration::from_secs(1));
        assert_eq!(
            text,
            "  2.50 Mpps   1.00 Gbit/s | 2,500,000 frames, lost 7 | 12 sessions | packets 3.00 \
             GiB, log 0 B"
        );
        let text = line(&now, &Totals { rows_lost: 1, ..now }, Duration::from_secs(1));
        assert!(text.starts_with("      0 pps"), "{text}");
        assert!(text.contains("rows lost 1"));
    }
}
