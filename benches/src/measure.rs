//! Repetitions, and where they were run.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;
use serde_json::json;

/// Values of one thing measured several times.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// In the order of the repetitions.
    pub values: Vec<f64>,
}

impl Sample {
    /// The middle value, or the mean of the two in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) =
            (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2));
        match (low, high) {
            (Some(low), Some(high)) => f64::midpoint(*low, *high),
            _ => f64::NAN,
        }
    }

    /// The smallest value.
    #[must_use]
    pub fn least(&self) -> f64 {
        self.values.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The largest value.
    #[must_use]
    pub fn most(&self) -> f64 {
        self.values.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// What is left of each value when the one of the same repetition in `other` is taken away.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Self { values: pairs.map(|(value, other)| value - other).collect() }
    }

    /// Each value against the one of the same repetition in `other`.
    #[must_use]
    pub fn ratio(&self, other: &Self) -> Self {
        let pairs = self.values.iter().zip(&other.values);
        Self { values: pairs.map(|(value, other)| value / other).collect() }
    }
}

/// Pins the calling thread to a core, so that its caches stay its own.
///
/// # Errors
/// There is no such core, or it may not be used.
pub fn pin(core: usize) -> Result<()> {
    let allowed = sched_getaffinity(None).context("cannot ask for usable cores")?;
    if core >= CpuSet::MAX_CPU || !allowed.is_set(core) {
        bail!("--core: core {core} is not among those that may be used here");
    }
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("cannot be pinned to core {core}"))
}

/// The time that this thread has had its core: what other programs took of it does not count.
#[must_use]
pub fn on_core() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// What a result has to name to mean anything later.
#[derive(Clone, Debug, Serialize)]
pub struct Circumstances {
    /// The processor.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel.
    pub kernel: String,
    /// Whether anonymous memory can have huge pages.
    pub huge_pages: String,
    /// The commit that the source tree was at, if the bench runs in one.
    pub commit: Option<String>,
    /// How it was called.
    pub command: String,
}

impl Circumstances {
    /// Prints what a bench measured as JSON.
    ///
    /// # Errors
    /// A value that JSON has no form for.
    pub fn print(&self, bench: &str, cases: &[serde_json::Value]) -> Result<()> {
        let all = json!({ "bench": bench, "circumstances": self, "cases": cases });
        let text = serde_json::to_string_pretty(&all).context("cannot write the results")?;
        println!("{text}");
        Ok(())
    }

    /// Of this run.
    #[must_use]
    pub fn now() -> Self {
        Self {
            cpu: cpu_model(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            huge_pages: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            commit: commit(),
            command: command(),
        }
    }
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    model.map_or_else(String::new, |rest| rest.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// The word in brackets, as the kernel marks the choice that holds.
fn chosen(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let inside = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or_else(String::new, |(word, _)| word.to_owned())
}

fn commit() -> Option<String> {
    let output = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The command line without the way to the program.
fn command() -> String {
    let rest: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    format!("stillwire-bench {}", rest.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_a_middle() {
        let odd = Sample { values: vec![3.0, 1.0, 2.0] };
        assert_eq!((odd.median(), odd.least(), odd.most()), (2.0, 1.0, 3.0));
        let even = Sample { values: vec![4.0, 1.0, 2.0, 3.0] };
        assert_eq!(even.median(), 2.5);
        assert!(Sample::default().median().is_nan());
        assert_eq!(even.without(&even).values, [0.0; 4]);
        assert_eq!(even.ratio(&even).values, [1.0; 4]);
    }
}
