//! `stillwire-bench drops` finds out what was lost, to the frame, and its generator makes the frames
//! that it says it makes.
//!
//! `STILLWIRE_BENCH_OBJECT` has the bench load another object: `scripts/build-ebpf --check` does so
//! for the object of a toolchain that is not the one of the committed object.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stillwire_tests::netns::run;
use stillwire_tests::{outside, sensor};

/// Runs the bench quietly and gives its report.
fn drops(args: &[&str]) -> Result<Value> {
    let mut command = Command::new(sensor::binary("stillwire-bench")?);
    command.args(["drops", "--quiet", "--json", "-"]).args(args);
    command.arg("--stillwired").arg(sensor::binary("stillwired")?);
    serde_json::from_str(&run(&mut command)?).context("the report")
}

/// The measurement of a subject.
fn trial<'a>(report: &'a Value, subject: &str) -> Result<&'a Value> {
    let trials = report["trials"].as_array().context("no measurements in the report")?;
    let found = trials.iter().find(|trial| trial["subject"] == subject);
    found.with_context(|| format!("no measurement of {subject} in {report:#}"))
}

fn number(value: &Value) -> Result<i64> {
    value.as_i64().with_context(|| format!("a number, not {value}"))
}

#[test]
fn losses_are_found_to_the_frame() -> Result<()> {
    const FRAMES: i64 = 20_000;
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/all-but-every-tenth");
    let template = format!("dropping=cmd:python3 {program} {{iface}} {{file}}");
    let report = drops(&[
        "--frames",
        &FRAMES.to_string(),
        "--rates",
        "10k",
        "--sessions",
        "1000",
        "--subject",
        "stillwire,tcpdump,bare",
        "--subject",
        &template,
    ])?;
    for (subject, lost) in
        [("stillwire", 0), ("tcpdump", 0), ("bare", 0), ("dropping", FRAMES / 10)]
    {
        let trial = trial(&report, subject)?;
        let [sent, refused, recorded, missing] = [
            number(&trial["sent"]["frames"])?,
            number(&trial["sent"]["refused_by_link"])?,
            number(&trial["recorded"])?,
            number(&trial["lost"])?,
        ];
        assert_eq!(sent, FRAMES, "{subject}: the generator is told how many to make\n{trial:#}");
        assert_eq!(refused, 0, "{subject}: the link has room for such a load\n{trial:#}");
        assert_eq!((recorded, missing), (FRAMES - lost, lost), "{subject}\n{trial:#}");
    }
    // What the sensor says of itself is held against what was found.
    assert_eq!(trial(&report, "stillwire")?["parts"][0]["claims_lost"], 0);
    Ok(())
}

#[test]
fn a_rate_that_no_generator_makes_is_marked() -> Result<()> {
    let args = ["--subject", "bare", "--rates", "60M", "--duration", "100ms"];
    let report = drops(&args)?;
    let trial = trial(&report, "bare")?;
    let notes = trial["notes"].as_array().context("no notes")?;
    let short = notes.iter().find(|note| note["what"] == "generator_short");
    let offered = short.with_context(|| format!("{trial:#}"))?["offered"].as_f64();
    assert!(offered.is_some_and(|offered| offered < 60e6), "{trial:#}");
    Ok(())
}

/// The frames of a kind, as tcpdump sees them on the wire and as the bench writes them to a file.
fn frames_on_the_wire_and_in_a_file(generator: &str, count: usize, traffic: &[&str]) -> Result<()> {
    let dir = sensor::store_dir()?;
    let expected = dir.path().join("expected.pcap");
    let count = count.to_string();
    run(Command::new(sensor::binary("stillwire-bench")?)
        .args(["frames", "--count", &count, "--write"])
        .arg(&expected)
        .args(traffic))?;
    let kept = dir.path().join("kept");
    std::fs::create_dir(&kept)?;
    let mut args = vec!["--generator", generator, "--frames", &count, "--rates", "5k", "--keep"];
    args.extend(["--subject", "tcpdump"]);
    args.extend(["--dir", kept.to_str().context("a path in UTF-8")?]);
    args.extend(traffic);
    drops(&args)?;
    let files = outside::files(&kept, "pcap")?;
    ensure!(files.len() == 1, "{files:?}");
    assert_eq!(frames(&files[0])?, frames(&expected)?, "{generator}: {traffic:?}");
    Ok(())
}

/// The bytes of every frame, in order.
fn frames(file: &Path) -> Result<Vec<String>> {
    let file = file.to_str().context("a path in UTF-8")?;
    let text = run(Command::new("tcpdump").args(["-n", "-t", "-xx", "-q", "-r", file]))?;
    // A line for the frame, and its bytes in lines that begin with a tab.
    let mut frames: Vec<String> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix('\t'), frames.last_mut()) {
            (Some(bytes), Some(frame)) => frame.push_str(bytes),
            _ => frames.push(String::new()),
        }
    }
    Ok(frames)
}

#[test]
fn the_kernel_makes_the_frames_that_the_recipe_says() -> Result<()> {
    // 14 rounds of more sessions than a mix has lengths; in TCP that is handshakes, data and ends.
    for traffic in [
        ["--protocol", "udp", "--size", "64"],
        ["--protocol", "udp", "--size", "imix"],
        ["--protocol", "tcp", "--size", "imix"],
    ] {
        let sessions = ["--sessions", "37", "--session-frames", "13"];
        let traffic = [&traffic[..], &sessions[..]].concat();
        frames_on_the_wire_and_in_a_file("kernel", 37 * 14, &traffic)?;
    }
    let traffic = ["--one-way", "--sessions", "1", "--size", "1514"];
    frames_on_the_wire_and_in_a_file("kernel", 200, &traffic)
}

#[test]
fn the_other_generators_make_the_same_frames() -> Result<()> {
    let traffic = ["--protocol", "tcp", "--sessions", "37"];
    frames_on_the_wire_and_in_a_file("trafgen", 300, &traffic)?;
    frames_on_the_wire_and_in_a_file("tcpreplay", 300, &traffic)?;
    // Each in several pieces of memory.
    let traffic = ["--protocol", "tcp", "--sessions", "37", "--size", "9014"];
    frames_on_the_wire_and_in_a_file("af-xdp", 300, &traffic)
}

#[test]
fn any_program_can_be_the_generator() -> Result<()> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/stamped-frames");
    let generator = format!("cmd:python3 {program} {{iface}} {{frames}} 20");
    let args = ["--subject", "bare", "--generator", &generator, "--rates", "10k"];
    let report = drops(&[&args[..], &["--frames", "1000"]].concat())?;
    let trial = trial(&report, "bare")?;
    assert_eq!(trial["sent"]["frames"], 1000, "the link counts what it sends\n{trial:#}");
    assert_eq!(trial["lost"], 0, "{trial:#}");

    // One on another machine, which says by itself how many frames it sent.
    let generator = format!(
        "cmd:sh -c 'python3 {program} {{iface}} 500 20 >/dev/null; \
         echo \"{{\\\"frames\\\": 510, \\\"seconds\\\": 2}}\" >\"$0\"' {{report}}"
    );
    let args = ["--subject", "bare", "--generator", &generator, "--rates", "250"];
    let report = drops(&[&args[..], &["--frames", "510"]].concat())?;
    let trial = self::trial(&report, "bare")?;
    assert_eq!(trial["sent"]["frames"], 510, "{trial:#}");
    assert_eq!((&trial["lost"], &trial["offered"]), (&10.into(), &255.0.into()), "{trial:#}");
    Ok(())
}
