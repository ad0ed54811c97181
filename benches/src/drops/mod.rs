//! `stillwire-bench drops`: frames sent against frames that a foreign reader finds in what the
//! capture program wrote.

mod args;
mod bare;
mod generator;
mod ladder;
mod latency;
mod line;
mod object;
mod plan;
mod progress;
mod rate;
mod record;
mod report;
mod running;
mod search;
mod soak;
mod stop;
mod subject;
mod traffic;
mod trial;
mod usage;

use std::process::ExitCode;

use anyhow::Result;
use jiff::Timestamp;

pub(crate) use args::{BareArgs, DropsArgs, FramesArgs};
pub(crate) use bare::run as run_bare;
pub(crate) use traffic::write_frames;

use args::Mode;
use plan::Plan;
use progress::Progress;
use record::Record;
use report::Report;

/// Runs the measurement.
pub(crate) fn run(args: &DropsArgs) -> Result<ExitCode> {
    let plan = Plan::new(args)?;
    stop::listen()?;
    let begun = Timestamp::now();
    let known = (plan.mode != Mode::Search).then(|| ladder::trials(&plan));
    let progress = Progress::new(known, plan.quiet);
    if cfg!(debug_assertions) {
        progress.say("this is a debug build: the figures of `bare` are worth nothing");
    }
    let mut record = Record::default();
    let outcome = match plan.mode {
        Mode::Ladder | Mode::Soak => ladder::run(&plan, &progress, &mut record),
        Mode::Search => search::run(&plan, &progress, &mut record),
    };
    progress.end();
    // What was measured before something went wrong is worth keeping.
    let report = Report::new(&plan, begun, record);
    if !plan.quiet {
        report::print(&report);
    }
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    if let Some(path) = &args.csv {
        report::write_csv(report.trials(), path)?;
    }
    if let Some(path) = &args.svg {
        report::draw(report.lines(), &report.title(), path)?;
    }
    outcome?;
    let complete = report.failures().is_empty() && !stop::asked();
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
