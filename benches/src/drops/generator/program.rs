//! Frames sent by a program: trafgen, tcpreplay, or whatever a template says, on this machine or
//! from another one.

use std::fs;
use std::io::{BufWriter, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bench_common::Head;
use capture_user::link::Link;
use rustix::process::Signal;
use serde::Deserialize;
use stillwire_tests::Program;

use super::{Load, Maker, Sent};
use crate::drops::line::Line;
use crate::drops::plan::Plan;
use crate::drops::rate::Rate;
use crate::drops::stop;
use crate::drops::traffic::{Traffic, write_capture};

/// How often the interface is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Different frames that a program sends over and over: trafgen reads them as text.
const TRAFGEN_FRAMES: u64 = 4096;
/// The same for tcpreplay, which holds them in memory.
const TCPREPLAY_FRAMES: u64 = 200_000;

/// What a generator on another machine reports.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
struct Report {
    /// Frames that it sent.
    frames: u64,
    /// How long that took, if it says so.
    seconds: Option<f64>,
}

/// Puts a load on the link.
pub(super) fn send(
    plan: &Plan,
    line: &Line,
    load: &Load,
    tick: &mut (dyn FnMut(u64) + Send),
) -> Result<Sent> {
    let dir = tempfile::Builder::new().prefix("stillwire-bench-").tempdir()?;
    let report = dir.path().join("report");
    let mut command = match &plan.maker {
        Maker::Trafgen => trafgen(plan, line, load, dir.path())?,
        Maker::Tcpreplay { capture } => {
            tcpreplay(plan, line, load, capture.as_deref(), dir.path())?
        }
        Maker::Template(template) => external(plan, line, load, template, &report),
        Maker::Kernel | Maker::AfXdp => bail!("this generator is no program"),
    };
    // Ctrl-C at the terminal is for the bench, which ends its generator in order.
    command.process_group(0);
    let mut program = Program::start(&mut command).context("starting the generator")?;
    let watched = watch(line, load, &mut program, tick)?;
    let ended = program.wait().context("the generator")?;
    ensure!(
        ended.code == Some(0) || watched.ended_by_us,
        "the generator ended with {:?}\n{}{}",
        ended.code,
        ended.stdout,
        ended.stderr
    );
    let counted = if line.sender().is_ok() { Some(line.sent_so_far()?) } else { None };
    let told = if report.exists() { Some(read_report(&report)?) } else { None };
    let frames = match (told, counted) {
        (Some(told), _) => told.frames,
        (None, Some(counted)) => counted.carried + counted.refused,
        (None, None) => bail!(
            "nothing says how many frames were sent: the generator has to write it to {{report}}"
        ),
    };
    ensure!(frames > 0, "the generator has sent no frame\n{}{}", ended.stdout, ended.stderr);
    Ok(Sent {
        frames,
        refused_by_link: counted.map_or(0, |counted| counted.refused),
        seconds: told.and_then(|told| told.seconds).unwrap_or(watched.seconds),
        interrupted: stop::asked(),
        ..Sent::default()
    })
}

/// What was seen while a program sent.
struct Watched {
    seconds: f64,
    ended_by_us: bool,
}

/// Watches the receiving interface until the program has ended, and ends it when its time is over.
fn watch(
    line: &Line,
    load: &Load,
    program: &mut Program,
    tick: &mut (dyn FnMut(u64) + Send),
) -> Result<Watched> {
    let iface = line.receiver();
    line.receiver_site().enter(|| {
        let frames = |link: &Link| link.counters.rx_packets + link.counters.rx_dropped;
        let mut link = Link::by_name(iface)?;
        let at_first = frames(&link);
        let mut before = at_first;
        let (mut begun, mut last) = (None, None);
        let mut ended_by_us = false;
        while program.runs()? {
            std::thread::sleep(LOOK);
            link = Link::by_index(link.index)?;
            let now = frames(&link);
            if now > before {
                last = Some(Instant::now());
                begun = begun.or(last);
            }
            before = now;
            tick(now.saturating_sub(at_first));
            let late = begun
                .zip(load.deadline())
                .is_some_and(|(begun, deadline)| begun.elapsed() > deadline);
            if (late || stop::asked()) && !ended_by_us {
                ended_by_us = true;
                program.signal(Signal::INT)?;
            }
        }
        let seconds = begun
            .zip(last)
            .map_or(0.0, |(begun, last)| last.saturating_duration_since(begun).as_secs_f64());
        Ok(Watched { seconds, ended_by_us })
    })
}

/// On the generator's cores, where it sends.
fn on_cores(plan: &Plan, line: &Line) -> Command {
    let cores: Vec<String> = plan.generator_cores.iter().map(ToString::to_string).collect();
    let mut command = line.sender_site().command("taskset");
    command.args(["--cpu-list", &cores.join(",")]);
    command
}

fn trafgen(plan: &Plan, line: &Line, load: &Load, dir: &Path) -> Result<Command> {
    let recipe = dir.join("frames.cfg");
    write_trafgen(&plan.traffic, load.frames().min(TRAFGEN_FRAMES), &recipe)?;
    let mut command = on_cores(plan, line);
    command.args(["trafgen", "--dev", line.sender()?.0, "--cpus", "1", "--jumbo-support"]);
    command.args(["--num", &load.frames().to_string(), "--conf"]).arg(recipe);
    if let Rate::PerSecond(rate) = load.rate {
        command.args(["--rate", &format!("{rate:.0}pps")]);
    }
    Ok(command)
}

/// Frames in trafgen's language, byte by byte.
fn write_trafgen(traffic: &Traffic, count: u64, path: &Path) -> Result<()> {
    let file = fs::File::create(path).with_context(|| format!("making {}", path.display()))?;
    let mut out = BufWriter::new(file);
    let mut walk = traffic.walk(0, 1).context("a traffic without sessions")?;
    let mut frame = traffic.blank();
    for _ in 0..count {
        let bytes = traffic.recipe.frame_bytes(&walk) as usize;
        let head = Head::of(&mut frame).context("a frame without room for its headers")?;
        traffic.recipe.write(&walk, head);
        walk.step(&traffic.recipe);
        write!(out, "{{ ")?;
        for byte in frame.iter().take(bytes) {
            write!(out, "{byte:#04x}, ")?;
        }
        writeln!(out, "}}")?;
    }
    out.flush()?;
    Ok(())
}

fn tcpreplay(
    plan: &Plan,
    line: &Line,
    load: &Load,
    capture: Option<&Path>,
    dir: &Path,
) -> Result<Command> {
    let own = dir.join("frames.pcap");
    let capture = match capture {
        Some(path) => path,
        None => {
            let file =
                fs::File::create(&own).with_context(|| format!("making {}", own.display()))?;
            let count = load.frames().min(TCPREPLAY_FRAMES);
            write_capture(&plan.traffic, count, 1000.0, BufWriter::new(file))?;
            &own
        }
    };
    let mut command = on_cores(plan, line);
    command.args(["tcpreplay", "--quiet", "--preload-pcap", "--loop=0"]);
    command.arg(format!("--intf1={}", line.sender()?.0));
    command.arg(format!("--limit={}", load.frames()));
    match load.rate {
        Rate::PerSecond(rate) => command.arg(format!("--pps={rate:.0}")),
        Rate::Flood => command.arg("--topspeed"),
    };
    command.arg(capture);
    Ok(command)
}

fn external(plan: &Plan, line: &Line, load: &Load, template: &str, report: &Path) -> Command {
    let rate = load.rate.per_second().map_or("0".to_owned(), |rate| format!("{rate:.0}"));
    let seconds = match (load.rate.per_second(), load.deadline()) {
        (Some(rate), _) => load.frames() as f64 / rate,
        (None, Some(time)) => time.as_secs_f64(),
        (None, None) => 0.0,
    };
    let iface = line.sender().map_or("", |(iface, _)| iface);
    let text = template
        .replace("{rate}", &rate)
        .replace("{frames}", &load.frames().to_string())
        .replace("{seconds}", &format!("{seconds:.3}"))
        .replace("{bytes}", &plan.traffic.recipe.longest.to_string())
        .replace("{sessions}", &plan.traffic.about.sessions.to_string())
        .replace("{iface}", iface)
        .replace("{report}", &format!("'{}'", report.display()));
    let mut command = on_cores(plan, line);
    // exec: the program has the shell's process id, and gets our signals.
    command.args(["sh", "-c", &format!("exec {text}")]);
    command
}

fn read_report(path: &Path) -> Result<Report> {
    let text = fs::read_to_string(path).context("reading the generator's report")?;
    parse_report(&text).with_context(|| {
        format!("the generator's report is no number of frames nor {{\"frames\": N, \"seconds\": S}}: {text:?}")
    })
}

fn parse_report(text: &str) -> Option<Report> {
    match text.trim().parse() {
        Ok(frames) => Some(Report { frames, seconds: None }),
        Err(_) => serde_json::from_str(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_a_number_or_an_object() {
        assert_eq!(parse_report(" 12\n"), Some(Report { frames: 12, seconds: None }));
        let whole = Report { frames: 12, seconds: Some(1.5) };
        assert_eq!(parse_report("{\"frames\": 12, \"seconds\": 1.5, \"x\": 0}"), Some(whole));
        assert_eq!(parse_report("{\"packets\": 12}"), None);
        assert_eq!(parse_report("twelve"), None);
    }
}
