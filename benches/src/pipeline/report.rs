//! What `pipeline` prints.

use std::io::{self, Write};

use anyhow::Result;
use serde_json::json;

use super::stages::{Case, Stages};
use crate::measure::Circumstances;
use crate::traffic::Traffic;

/// The head of the table.
pub(super) fn heading(circumstances: &Circumstances) {
    println!(
        "{}; {} cores; Linux {}; huge pages: {}; commit {}\n{}\n",
        circumstances.cpu,
        circumstances.cores,
        circumstances.kernel,
        circumstances.huge_pages,
        circumstances.commit.as_deref().unwrap_or("unknown"),
        circumstances.command,
    );
    println!("Nanoseconds a frame, medians of repetitions:");
    println!(
        "{:<6} {:>9} {:>6} {:>9} {:>7} {:>7} {:>8} {:>7} {:>8} {:>17} {:>6} {:>9} {:>8} {:>9}",
        "",
        "sessions",
        "bytes",
        "hand-over",
        "decode",
        "table",
        "segment",
        "rest",
        "sum",
        "(least-most)",
        "Mpps",
        "10GbE ns",
        "B/sess",
        "resident",
    );
}

/// A case's line.
pub(super) fn line(case: &Case, stages: &Stages) {
    let sum = stages.engine.median();
    let traffic = Traffic::new(case.speech, case.sessions, case.frame_bytes);
    println!(
        "{:<6} {:>9} {:>6} {:>9.1} {:>7.1} {:>7.1} {:>8.1} {:>7.1} {:>8.1} {:>17} {:>6.2} {:>9.1} {:>8} {:>9.0}",
        case.speech,
        case.sessions,
        case.frame_bytes,
        stages.hand_over.median(),
        stages.only_decode().median(),
        stages.only_table().median(),
        stages.only_record().median(),
        stages.rest().median(),
        sum,
        format!("({:.1}-{:.1})", stages.engine.least(), stages.engine.most()),
        1e3 / sum,
        traffic.wire_time_ns(),
        stages.bytes_per_session,
        stages.resident_per_session,
    );
    // A long run shows what it has.
    let _ = io::stdout().flush();
}

/// Everything, for programs.
pub(super) fn json(circumstances: &Circumstances, results: &[(Case, Stages)]) -> Result<()> {
    let cases: Vec<_> = results
        .iter()
        .map(|(case, stages)| {
            json!({
                "speech": case.speech.to_string(),
                "sessions": case.sessions,
                "frame_bytes": case.frame_bytes,
                "wire_time_ns": Traffic::new(case.speech, case.sessions, case.frame_bytes)
                    .wire_time_ns(),
                "median_ns": {
                    "hand_over": stages.hand_over.median(),
                    "decode": stages.only_decode().median(),
                    "table": stages.only_table().median(),
                    "segment": stages.only_record().median(),
                    "rest": stages.rest().median(),
                    "sum": stages.engine.median(),
                },
                "repetitions_ns": stages,
            })
        })
        .collect();
    circumstances.print("pipeline", &cases)
}
