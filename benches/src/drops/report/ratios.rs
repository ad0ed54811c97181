//! Subjects against each other. Both readings of a ratio come from the same run: on a machine
//! whose speed wavers, ratios waver less than figures.

use serde::Serialize;

use super::Spread;
use crate::drops::rate::Rate;
use crate::drops::search::Throughput;
use crate::drops::trial::Trial;

/// The first subject against another one.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    /// What is compared.
    pub(crate) what: &'static str,
    /// The subject above the line: the first of the command line.
    pub(crate) subject: String,
    /// The subject below the line.
    pub(crate) against: String,
    /// Runs in which both have a reading.
    pub(crate) runs: usize,
    /// The ratio of the two.
    pub(crate) ratio: Spread,
}

/// One reading of a subject in a run.
struct Reading<'a> {
    subject: &'a str,
    run: u32,
    value: f64,
}

/// Highest rates without loss, and processor time of both sides at the flood.
pub(crate) fn ratios(found: &[Throughput], trials: &[Trial]) -> Vec<Ratio> {
    let rates: Vec<_> = found
        .iter()
        .map(|found| Reading { subject: &found.subject, run: found.run, value: found.loss_free })
        .collect();
    let busy: Vec<_> = trials
        .iter()
        .filter(|trial| trial.asked == Rate::Flood)
        .map(|trial| Reading {
            subject: &trial.subject,
            run: trial.run,
            value: trial.ns_a_frame(trial.busy_seconds),
        })
        .collect();
    let mut all = of("highest rate without loss", &rates);
    all.extend(of("time a frame at the flood, both sides", &busy));
    all
}

fn of(what: &'static str, readings: &[Reading<'_>]) -> Vec<Ratio> {
    let Some(subject) = readings.first().map(|reading| reading.subject) else { return Vec::new() };
    let mut others: Vec<&str> = Vec::new();
    for reading in readings {
        if reading.subject != subject && !others.contains(&reading.subject) {
            others.push(reading.subject);
        }
    }
    let value = |subject: &str, run: u32| {
        let found =
            readings.iter().find(|reading| reading.subject == subject && reading.run == run);
        found.map(|reading| reading.value)
    };
    let mut ratios = Vec::new();
    for against in others {
        let pairs: Vec<f64> = readings
            .iter()
            .filter(|reading| reading.subject == subject)
            .filter_map(|reading| {
                let other = value(against, reading.run)?;
                // Nothing can be said against a subject that reaches nothing.
                (other > 0.0).then_some(reading.value / other)
            })
            .collect();
        ratios.push(Ratio {
            what,
            subject: subject.to_owned(),
            against: against.to_owned(),
            runs: pairs.len(),
            ratio: Spread::of(pairs),
        });
    }
    ratios
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(subject: &str, run: u32, loss_free: f64) -> Throughput {
        Throughput {
            subject: subject.to_owned(),
            run,
            loss_free,
            lossy: None,
            generator_limited: false,
            steps: 1,
        }
    }

    #[test]
    fn pairs_are_of_the_same_run() {
        let found = [
            found("a", 1, 10.0),
            found("a", 2, 30.0),
            found("b", 1, 5.0),
            found("b", 2, 10.0),
            found("b", 3, 1.0),
            found("c", 1, 0.0),
            found("c", 2, 30.0),
        ];
        let ratios = ratios(&found, &[]);
        assert_eq!(ratios.len(), 2);
        assert_eq!((ratios[0].against.as_str(), ratios[0].runs), ("b", 2));
        assert_eq!(ratios[0].ratio, Spread { median: 2.5, min: 2.0, max: 3.0 });
        assert_eq!((ratios[1].against.as_str(), ratios[1].runs), ("c", 1));
        assert_eq!(ratios[1].ratio.median, 1.0);
    }
}
