//! `stillwire prove`, asked as a user asks it.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::sensor;

/// A moment: nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u128);

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, millis: u64) -> Self {
        Self(self.0 + u128::from(millis) * 1_000_000)
    }

    /// So much earlier.
    #[must_use]
    pub fn minus(self, millis: u64) -> Self {
        Self(self.0.saturating_sub(u128::from(millis) * 1_000_000))
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn nanos(self) -> u64 {
        u64::try_from(self.0).unwrap_or(u64::MAX)
    }

    /// As `--from` and `--to` take it.
    #[must_use]
    pub fn text(self) -> String {
        format!("{}.{:09}", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }

    /// Waits until the moment has come: what a window holds is a matter of time.
    pub fn await_it(self) {
        let left = self.0.saturating_sub(Self::now().0);
        std::thread::sleep(Duration::from_nanos(u64::try_from(left).unwrap_or(u64::MAX)));
    }
}

/// Lets time pass: what a window holds is a matter of time.
pub fn rest(millis: u64) {
    Moment::now().plus(millis).await_it();
}

/// A window.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// First moment.
    pub from: Moment,
    /// Last moment.
    pub to: Moment,
}

impl Span {
    /// The time that `f` takes.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn of<T>(f: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let from = Moment::now();
        let value = f()?;
        Ok((Self { from, to: Moment::now() }, value))
    }

    /// From now on for so many milliseconds.
    #[must_use]
    pub fn lasting(millis: u64) -> Self {
        let from = Moment::now();
        let to = from.plus(millis);
        to.await_it();
        Self { from, to }
    }
}

/// What `stillwire prove` said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its JSON.
    pub json: Value,
}

impl Said {
    /// The verdict.
    #[must_use]
    pub fn verdict(&self) -> &str {
        self.json["verdict"].as_str().unwrap_or_default()
    }

    /// Reasons of the gaps, each once.
    #[must_use]
    pub fn reasons(&self) -> Vec<&str> {
        let gaps = self.json["coverage"]["gaps"].as_array().into_iter().flatten();
        let mut reasons: Vec<&str> = gaps.filter_map(|gap| gap["reason"].as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        reasons
    }

    /// One of its lists.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<&Value> {
        self.json[name].as_array().into_iter().flatten().collect()
    }

    /// Demands a verdict, its exit code with it.
    ///
    /// # Errors
    /// Any other; the message carries all that was said.
    pub fn must_be(self, verdict: &str) -> Result<Self> {
        let code = match verdict {
            "absent" => 0,
            "present" => 3,
            _ => 4,
        };
        let was = (self.verdict(), self.code);
        ensure!(was == (verdict, code), "{verdict} was expected: {:#}", self.json);
        Ok(self)
    }

    /// Demands that a gap of this reason is among those that count.
    ///
    /// # Errors
    /// There is none; the message carries all that was said.
    pub fn because_of(self, reason: &str) -> Result<Self> {
        ensure!(self.reasons().contains(&reason), "{reason} was expected: {:#}", self.json);
        Ok(self)
    }
}

/// Asks, once the log is complete through the window.
///
/// # Errors
/// Where the program fails.
pub fn prove(store: &Path, filter: &str, span: Span) -> Result<Said> {
    let (from, to) = (span.from.text(), span.to.text());
    let args = ["prove", "--format", "json", "--wait", "1m", "--from", &from, "--to", &to, "--"];
    let args: Vec<&str> = args.into_iter().chain([filter]).collect();
    let ended = sensor::stillwire_ended(store, &args)?;
    let code = ended.code.context("prove was killed")?;
    let json = serde_json::from_str(&ended.stdout)
        .with_context(|| format!("{code}: {}{}", ended.stdout, ended.stderr))?;
    Ok(Said { code, json })
}
