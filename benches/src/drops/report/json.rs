//! Everything that was measured, with what it was measured on.

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::{Line, Ratio, ratios, summary};
use crate::drops::plan::Plan;
use crate::drops::record::Record;
use crate::drops::search::Throughput;
use crate::drops::traffic::About;
use crate::drops::trial::Trial;

/// The report as it is written to a file.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// This program's version.
    version: &'static str,
    /// Built without optimisation: the figures of `bare` are worth nothing then.
    debug_build: bool,
    /// When the measurement began.
    begun: Timestamp,
    /// The command line.
    command: Vec<String>,
    machine: Machine,
    traffic: About,
    generator: String,
    generator_cores: Vec<usize>,
    subject_cores: Vec<usize>,
    subjects: Vec<SubjectAbout>,
    /// One line for each subject and rate.
    summary: Vec<Line>,
    /// What the searches found.
    throughput: Vec<Throughput>,
    /// The first subject against the others.
    ratios: Vec<Ratio>,
    /// Measurements that could not be made, and why.
    failures: Vec<String>,
    /// Every measurement, in the order in which they were made.
    trials: Vec<Trial>,
}

/// What the measurement ran on.
#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    cores: usize,
    memory_bytes: u64,
}

#[derive(Debug, Serialize)]
struct SubjectAbout {
    label: String,
    versions: Vec<Option<String>>,
}

impl Report {
    /// Draws everything together.
    pub(crate) fn new(plan: &Plan, begun: Timestamp, record: Record) -> Self {
        let Record { trials, throughput, failures } = record;
        let subjects = plan.subjects.iter().map(|subject| SubjectAbout {
            label: subject.label.clone(),
            versions: subject.parts.iter().map(|part| part.version(&plan.stillwired)).collect(),
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            debug_build: cfg!(debug_assertions),
            begun,
            command: std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect(),
            machine: Machine::this(),
            traffic: plan.traffic.about.clone(),
            generator: plan.maker.to_string(),
            generator_cores: plan.generator_cores.clone(),
            subject_cores: plan.subject_cores.clone(),
            subjects: subjects.collect(),
            summary: summary(&trials),
            ratios: ratios(&throughput, &trials),
            throughput,
            failures,
            trials,
        }
    }

    /// One line for each subject and rate.
    pub(crate) fn lines(&self) -> &[Line] {
        &self.summary
    }

    /// What the searches found.
    pub(crate) fn throughput(&self) -> &[Throughput] {
        &self.throughput
    }

    /// The first subject against the others.
    pub(crate) fn ratios(&self) -> &[Ratio] {
        &self.ratios
    }

    /// Measurements that could not be made, and why.
    pub(crate) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// Every measurement.
    pub(crate) fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// What it is, in a line.
    pub(crate) fn title(&self) -> String {
        format!("Loss against offered rate: {}", self.traffic)
    }

    /// Writes it to a file, or to standard output for `-`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        write(path, &text)
    }
}

/// Writes a text to a file, or to standard output for `-`.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    if path == Path::new("-") {
        return std::io::stdout().write_all(text.as_bytes()).context("writing to standard output");
    }
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let value = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
            value.unwrap_or_default().to_owned()
        };
        let processors = read("/proc/cpuinfo");
        let memory = value(&read("/proc/meminfo"), "MemTotal");
        let kibibytes: u64 =
            memory.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: value(&processors, "model name"),
            cores: processors.lines().filter(|line| line.starts_with("processor")).count(),
            memory_bytes: kibibytes * 1024,
        }
    }
}
