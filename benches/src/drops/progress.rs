//! What is going on, for whoever waits.

use std::time::Duration;

use capture_user::units;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::trial::{Task, Trial};

/// How often the line is drawn by itself.
const DRAW: Duration = Duration::from_millis(200);

/// Two lines on a terminal: how much of the whole is done, and what is being measured. Elsewhere a
/// line for each measurement.
#[derive(Debug)]
pub(crate) struct Progress {
    lines: MultiProgress,
    whole: ProgressBar,
    current: ProgressBar,
    quiet: bool,
}

impl Progress {
    /// For so many measurements; some are not known before.
    pub(crate) fn new(trials: Option<u64>, quiet: bool) -> Self {
        let hidden = quiet || indicatif::MultiProgress::new().is_hidden();
        let lines = MultiProgress::new();
        let (whole, current) = if hidden {
            (ProgressBar::hidden(), ProgressBar::hidden())
        } else {
            let whole = trials.map_or_else(ProgressBar::no_length, ProgressBar::new);
            (lines.add(whole), lines.add(ProgressBar::new(0)))
        };
        // Both templates are ours and right; the bar's own look is there if they were not.
        if let Ok(style) =
            ProgressStyle::with_template("{wide_bar} {pos}/{len} measured, {eta} left")
        {
            whole.set_style(style);
        }
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {human_pos} frames") {
            current.set_style(style);
        }
        current.enable_steady_tick(DRAW);
        Self { lines, whole, current, quiet }
    }

    /// A measurement begins.
    pub(super) fn begin(&self, task: &Task<'_>, frames: u64) {
        let what = format!("run {}: {} at {} frames/s", task.run, task.subject.label, task.rate);
        self.current.set_length(frames);
        self.current.set_position(0);
        self.current.set_message(what);
    }

    /// So many frames have been sent.
    pub(super) fn sent(&self, frames: u64) {
        self.current.set_position(frames);
    }

    /// The load has passed.
    pub(super) fn counting(&self) {
        self.current.set_message("counting what was recorded of");
    }

    /// A measurement is done.
    pub(crate) fn done(&self, trial: &Trial) {
        self.whole.inc(1);
        self.say(&format!(
            "run {}: {} at {} frames/s: {} of {} frames recorded, {:.4} % lost",
            trial.run,
            trial.subject,
            units::Rate(trial.offered),
            units::Grouped(trial.recorded),
            units::Grouped(trial.sent.frames),
            trial.loss() * 100.0,
        ));
    }

    /// Says something in a line of its own.
    pub(crate) fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.whole.is_hidden() {
            eprintln!("{text}");
        } else {
            // Lines that cannot be drawn are missed by nobody.
            let _ = self.lines.println(text);
        }
    }

    /// Nothing more comes.
    pub(crate) fn end(&self) {
        self.current.finish_and_clear();
        self.whole.finish_and_clear();
    }
}
