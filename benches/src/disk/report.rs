//! What `disk` prints. docs/BENCH.md says what the columns mean.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::{Case, Pairs, name_of};
use crate::measure::{Circumstances, Sample};

/// Where it was measured.
pub(super) fn heading(circumstances: &Circumstances) {
    println!(
        "{}; {} cores; Linux {}; commit {}\n{}",
        circumstances.cpu,
        circumstances.cores,
        circumstances.kernel,
        circumstances.commit.as_deref().unwrap_or("unknown"),
        circumstances.command,
    );
}

/// The head of a directory's first table.
pub(super) fn burst_heading(dir: &Path, is_memory: bool) {
    println!("\n{}\nBurst into segments that are ready, GB/s:", name_of(dir, is_memory));
    println!(
        "{:>6} {:>7} {:>7} {:>19} {:>7} {:>19}",
        "bytes", "memcpy", "append", "/memcpy", "+notes", "/memcpy"
    );
}

/// A size's line of it.
pub(super) fn burst(case: &Case) {
    let burst = &case.burst;
    println!(
        "{:>6} {} {} {:>19} {} {:>19}",
        case.frame_bytes,
        rate(&burst.memcpy),
        rate(&burst.append),
        ratio(&burst.append, &burst.memcpy),
        rate(&burst.noted),
        ratio(&burst.noted, &burst.memcpy),
    );
    // A long run shows what it has.
    let _ = io::stdout().flush();
}

/// The head of its second table.
pub(super) fn sustained_heading() {
    println!("Sustained, until sealed and synced, GB/s:");
    println!(
        "{:>6} {:<7} {:>7} {:>7} {:>7} {:>19} {:>19} {:>7} {:>7} {:>7} {:>7} {:>7}",
        "bytes",
        "ring",
        "direct",
        "fsync",
        "sensor",
        "/direct",
        "/fsync",
        "waiting",
        "filling",
        "faults",
        "backlog",
        "retired",
    );
}

/// A ring's line of it.
pub(super) fn sustained(frame_bytes: usize, pairs: &Pairs) {
    let sensor = pairs.rate();
    println!(
        "{:>6} {:<7} {} {} {} {:>19} {:>19} {:>5.0} % {} {:>7.0} {:>7.0} {:>7.0}",
        frame_bytes,
        pairs.ring,
        rate(&pairs.direct),
        rate(&pairs.cached),
        rate(&sensor),
        ratio(&sensor, &pairs.direct),
        ratio(&sensor, &pairs.cached),
        pairs.of(|one| one.waiting).median() * 100.0,
        rate(&pairs.of(|one| one.filling)),
        pairs.of(|one| one.faults).median(),
        pairs.of(|one| one.backlog as f64).median(),
        pairs.of(|one| one.retired as f64).median(),
    );
    let _ = io::stdout().flush();
}

/// A rate in gigabytes a second, in seven columns.
fn rate(sample: &Sample) -> String {
    if sample.values.is_empty() {
        return format!("{:>7}", "-");
    }
    format!("{:>7.2}", sample.median() / 1e9)
}

/// The median of the ratios of pairs, with the least and the most.
fn ratio(sample: &Sample, to: &Sample) -> String {
    let ratio = sample.ratio(to);
    if ratio.values.is_empty() {
        return "-".to_owned();
    }
    format!("{:.2} ({:.2}-{:.2})", ratio.median(), ratio.least(), ratio.most())
}

/// Everything, for programs.
pub(super) fn json(circumstances: &Circumstances, cases: &[Case]) -> Result<()> {
    let spread = |sample: &Sample| {
        (!sample.values.is_empty()).then(
            || json!({ "median": sample.median(), "least": sample.least(), "most": sample.most() }),
        )
    };
    let cases: Vec<_> = cases
        .iter()
        .map(|case| {
            let burst = &case.burst;
            let sustained: Vec<_> = case
                .sustained
                .iter()
                .map(|pairs| {
                    let rate = pairs.rate();
                    json!({
                        "ring": pairs.ring,
                        "bytes_per_s": spread(&rate),
                        "ratio_to_direct": spread(&rate.ratio(&pairs.direct)),
                        "ratio_to_fsync": spread(&rate.ratio(&pairs.cached)),
                        "repetitions": pairs,
                    })
                })
                .collect();
            json!({
                "dir": case.dir,
                "is_memory": case.is_memory,
                "frame_bytes": case.frame_bytes,
                "burst": {
                    "memcpy_bytes_per_s": spread(&burst.memcpy),
                    "append_bytes_per_s": spread(&burst.append),
                    "noted_bytes_per_s": spread(&burst.noted),
                    "ratio_append": spread(&burst.append.ratio(&burst.memcpy)),
                    "ratio_noted": spread(&burst.noted.ratio(&burst.memcpy)),
                    "repetitions": burst,
                },
                "sustained": sustained,
            })
        })
        .collect();
    circumstances.print("disk", &cases)
}
