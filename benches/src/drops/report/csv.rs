//! Every measurement as a row of comma-separated values.

use std::path::Path;

use anyhow::Result;

use super::json::write;
use crate::drops::latency::Latency;
use crate::drops::trial::{Note, Trial};

/// Writes the measurements to a file, or to standard output for `-`.
pub(crate) fn write_csv(trials: &[Trial], path: &Path) -> Result<()> {
    write(path, &text(trials))
}

fn text(trials: &[Trial]) -> String {
    let mut text = String::from(
        "subject,run,asked_per_second,offered_per_second,seconds,sent,refused_by_link,recorded,lost,\
         loss_percent,subject_ns_a_frame,softirq_ns_a_frame,busy_ns_a_frame,peak_memory_bytes,latency_p50_us,latency_p99_us,latency_p999_us,latency_max_us,notes\n",
    );
    for trial in trials {
        let notes: Vec<_> = trial.notes.iter().map(Note::name).collect();
        let us = |read: fn(&Latency) -> f64| {
            trial.latency.as_ref().map_or(String::new(), |latency| format!("{:.1}", read(latency)))
        };
        let fields = [
            quoted(&trial.subject),
            trial.run.to_string(),
            trial.asked.per_second().map_or("flood".to_owned(), |rate| rate.to_string()),
            format!("{:.1}", trial.offered),
            format!("{:.6}", trial.sent.seconds),
            trial.sent.frames.to_string(),
            trial.sent.refused_by_link.to_string(),
            trial.recorded.to_string(),
            trial.lost.to_string(),
            format!("{:.6}", trial.loss() * 100.0),
            format!("{:.1}", trial.ns_a_frame(trial.subject_seconds)),
            format!("{:.1}", trial.ns_a_frame(trial.softirq_seconds)),
            format!("{:.1}", trial.ns_a_frame(trial.busy_seconds)),
            trial.peak_memory_bytes.to_string(),
            us(|latency| latency.p50_us),
            us(|latency| latency.p99_us),
            us(|latency| latency.p999_us),
            us(|latency| latency.max_us),
            quoted(&notes.join(" ")),
        ];
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

/// A field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        assert_eq!(quoted("plain field"), "plain field");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"x\""), "\"say \"\"x\"\"\"");
    }

    #[test]
    fn there_is_a_heading_without_measurements() {
        let text = text(&[]);
        assert_eq!(text.lines().count(), 1);
        assert_eq!(text.split(',').count(), 19);
    }
}
