//! How far a long command is, for people who wait.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What takes less needs no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// A counter on standard error, shown only on a terminal and only once it takes long.
pub(crate) struct Progress {
    what: &'static str,
    started: Instant,
    count: u64,
    bar: Option<ProgressBar>,
    wanted: bool,
}

impl Progress {
    /// Begins.
    #[must_use]
    pub(crate) fn new(what: &'static str) -> Self {
        let wanted = std::io::stderr().is_terminal();
        Self { what, started: Instant::now(), count: 0, bar: None, wanted }
    }

    /// So many more are done.
    pub(crate) fn advance(&mut self, more: u64) {
        self.count = self.count.saturating_add(more);
        if !self.wanted {
            return;
        }
        if self.bar.is_none() && self.started.elapsed() > PATIENCE {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            bar.enable_steady_tick(Duration::from_millis(200));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {}", self.what, HumanCount(self.count)));
        }
    }

    /// Takes it off the screen.
    pub(crate) fn done(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar over so many bytes, shown likewise; several threads may move it.
pub(crate) struct Bytes {
    bar: ProgressBar,
}

impl Bytes {
    /// Begins.
    #[must_use]
    pub(crate) fn new(what: &'static str, bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        // What is read in a moment needs no bar.
        const WORTH_A_BAR: u64 = 1 << 30;
        if std::io::stderr().is_terminal() && bytes >= WORTH_A_BAR {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        }
        let template = "{msg} {wide_bar} {percent:>3} %  {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar }
    }

    /// So many more are done.
    pub(crate) fn advance(&self, more: u64) {
        self.bar.inc(more);
    }

    /// Takes it off the screen.
    pub(crate) fn done(self) {
        self.bar.finish_and_clear();
    }
}
