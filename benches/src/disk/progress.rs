//! What is going on, for whoever waits.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line is drawn by itself.
const DRAW: Duration = Duration::from_millis(200);

/// A line on a terminal: how much is done, and what is being measured. Elsewhere a line for each
/// measurement that begins.
pub(super) struct Progress {
    bar: ProgressBar,
    said: Mutex<String>,
}

impl Progress {
    /// For so many repetitions.
    pub(super) fn new(steps: u64) -> Self {
        let bar = ProgressBar::new(steps);
        // The template is ours and right; the bar's own look is there if it were not.
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {pos}/{len} {wide_msg} {eta} left")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(DRAW);
        Self { bar, said: Mutex::default() }
    }

    /// This is being measured now.
    pub(super) fn now(&self, what: String) {
        if self.bar.is_hidden() {
            let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if *said != what {
                eprintln!("{what}");
            }
            said.clone_from(&what);
        }
        self.bar.set_message(what);
    }

    /// A repetition is done.
    pub(super) fn step(&self) {
        self.bar.inc(1);
    }

    /// Prints results around the line.
    pub(super) fn print(&self, print: impl FnOnce()) {
        self.bar.suspend(print);
    }

    /// Nothing more comes.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}
