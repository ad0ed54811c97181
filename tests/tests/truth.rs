//! The truth run: a wire under changing load and random faults, and a judge that knows what was sent.
//!
//! `scripts/truth MINUTES` makes it as long as one likes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use capture_user::args::Mode;
use capture_user::link::Link;
use capture_user::program::Program as XdpProgram;
use rustix::process::Signal;
use serde_json::{Value, json};
use stillwire_tests::blind::{detach, fail_once};
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::verdict::{Span, rest};
use stillwire_tests::{Namespace, Program, Wire, sensor};

/// A number from the environment.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Receive queues, and workers on as many cores.
const QUEUES: u32 = 2;

/// Time between two faults, to be asked about as clean.
const CLEAN: u64 = 9_000;

/// What the sensor runs with: rings that an overload fills, and rows every second.
const ARGS: [&str; 14] = [
    "--ring-size",
    "1024",
    "--interim",
    "1s",
    "--fragment-timeout",
    "1s",
    "--ledger-interval",
    "500ms",
    "--packet-budget",
    "8GiB",
    "--segment-size",
    "16MiB",
    "--silence-limit",
    "10s",
];

/// Everything that is done to the wire or the sensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Overload,
    Stopped,
    Killed,
    Detached,
    LinkDown,
    OwnLinkDown,
    Restarted,
    InterfaceGone,
    SomebodyElse,
    SocketFailed,
    WorkerEnded,
}

impl Fault {
    const ALL: [Self; 11] = [
        Self::Overload,
        Self::Stopped,
        Self::Killed,
        Self::Detached,
        Self::LinkDown,
        Self::OwnLinkDown,
        Self::Restarted,
        Self::InterfaceGone,
        Self::SomebodyElse,
        Self::SocketFailed,
        Self::WorkerEnded,
    ];

    /// Does it; gives back the sensor that runs then.
    fn happens(self, wire: &Wire, program: Program, store: &Path) -> Result<Program> {
        let set = |end: &Namespace, name, way| end.run("ip", &["link", "set", name, way]);
        match self {
            Self::Overload => {
                let flood = Frames { count: 150_000, bytes: 1514, flows: 50, pace: Pace::Flood };
                // Others send as well, so the interface's counters are not trafgen's.
                flood.start(wire)?.program.wait()?.success()?;
            }
            Self::Stopped => {
                program.signal(Signal::STOP)?;
                rest(1_200);
                program.signal(Signal::CONT)?;
            }
            Self::Killed => {
                program.kill()?;
                return sensor::capture(wire, store, &ARGS);
            }
            Self::Restarted => {
                program.interrupt()?.success()?;
                rest(300);
                return sensor::capture(wire, store, &ARGS);
            }
            Self::Detached => detach(wire)?,
            Self::LinkDown => {
                set(&wire.sender, Wire::SENDER, "down")?;
                rest(400);
                set(&wire.sender, Wire::SENDER, "up")?;
            }
            Self::OwnLinkDown => {
                set(&wire.sensor, Wire::SENSOR, "down")?;
                rest(400);
                set(&wire.sensor, Wire::SENSOR, "up")?;
            }
            Self::InterfaceGone => {
                wire.remove()?;
                rest(400);
                wire.lay()?;
            }
            Self::SomebodyElse => {
                program.signal(Signal::STOP)?;
                detach(wire)?;
                let foreign = wire.sensor.enter(|| {
                    let foreign = XdpProgram::load(Wire::SENSOR, QUEUES)?;
                    foreign.attach(&Link::by_name(Wire::SENSOR)?, Mode::Native)?;
                    Ok(foreign)
                })?;
                program.signal(Signal::CONT)?;
                rest(700);
                drop(foreign);
            }
            Self::SocketFailed => fail_once(&program, "getsockopt", "EIO")?,
            Self::WorkerEnded => {
                fail_once(&program, "poll,ppoll", "ENOMEM")?;
                rest(500);
                // It goes on with the others, and says at the end that one is missing.
                program.interrupt()?;
                return sensor::capture(wire, store, &ARGS);
            }
        }
        Ok(program)
    }
}

/// Faults in random order, none again before all the others have been.
struct Faults {
    random: u64,
    left: Vec<Fault>,
}

impl Faults {
    fn next(&mut self) -> Fault {
        if self.left.is_empty() {
            self.left = Fault::ALL.to_vec();
        }
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = usize::try_from(self.random >> 33).unwrap_or(0) % self.left.len();
        self.left.swap_remove(place)
    }
}

fn judged(command: &mut Command) -> Result<Value> {
    let said = stillwire_tests::netns::run(command)?;
    serde_json::from_str(&said).with_context(|| said)
}

#[test]
fn no_verdict_denies_what_was_sent() -> Result<()> {
    let seconds = setting("STILLWIRE_TRUTH_SECONDS", 60);
    let windows = setting("STILLWIRE_TRUTH_WINDOWS", 3_000);
    let seed = setting("STILLWIRE_TRUTH_SEED", 1).max(1);
    let wire = Wire::with().queues(QUEUES).spread_by_flow().build()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let path = |name: &str| dir.path().join(name);
    let programs = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");
    let judge = |live: bool| -> Result<Command> {
        let mut command = Command::new("python3");
        command.arg(format!("{programs}/truth")).arg(sensor::binary("stillwire")?).arg(&store);
        command.args([path("needles"), path("faults")]);
        command.args([windows.to_string(), seed.to_string()]);
        if live {
            command.arg(path("over"));
        }
        Ok(command)
    };

    let mut program = sensor::capture(&wire, &store, &ARGS)?;
    // What may happen until a sensor that starts has seen to everything is a fault's time as well.
    let mut faults = File::create(path("faults"))?;
    let mut note = |span: Span| -> Result<()> {
        writeln!(faults, "{}", json!({"from": span.from.nanos(), "to": span.to.nanos()}))?;
        Ok(())
    };
    let begin = Span::lasting(500);
    note(Span { from: begin.from.minus(60_000), ..begin })?;
    let mut needles = wire.sender.command("python3");
    needles.arg(format!("{programs}/needles")).args([Wire::SENDER, &seconds.to_string()]);
    let mut needles = Program::start(needles.arg(seed.to_string()).arg(path("needles")))?;
    // A second judge asks all the time, about moments just past.
    let asking = Program::start(&mut judge(true)?)?;
    let begun = Instant::now();
    let mut faults_to_come =
        Faults { random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), left: Vec::new() };
    while begun.elapsed() + Duration::from_millis(CLEAN) < Duration::from_secs(seconds) {
        rest(CLEAN);
        let fault = faults_to_come.next();
        let (span, survivor) = Span::of(|| fault.happens(&wire, program, &store))
            .with_context(|| format!("{fault:?}"))?;
        println!("{:4} s: {fault:?}", begun.elapsed().as_secs());
        program = survivor;
        note(span)?;
    }
    while needles.runs()? {
        rest(100);
    }
    rest(2_000);
    File::create(path("over"))?;
    let live: Value = serde_json::from_str(&asking.wait()?.success()?)?;
    let (end, _) = Span::of(|| program.interrupt()?.success())?;
    note(Span { to: end.to.plus(60_000), ..end })?;

    let rest = judged(&mut judge(false)?)?;
    println!("while it ran: {live:#}\nat rest: {rest:#}");
    let count = |json: &Value, name: &str| json[name].as_u64().unwrap_or(0);
    for said in [&live, &rest] {
        ensure!(said["wrong"].as_array().is_some_and(Vec::is_empty), "denied: {said:#}");
    }
    ensure!(count(&live, "asked") > 10 && count(&rest, "asked") >= windows, "too few: {rest:#}");
    ensure!(count(&rest, "with a frame that matches") > windows / 20, "nothing to deny: {rest:#}");
    let (clean, absent) = (count(&rest, "clean"), count(&rest, "clean and absent"));
    ensure!(clean > windows / 50, "hardly a clean window: {rest:#}");
    ensure!(count(&rest, "stalled") * 2 <= clean, "the sensor says that it hardly ran: {rest:#}");
    ensure!(absent * 100 >= clean * 99, "{absent} of {clean} clean windows are proven: {rest:#}");
    Ok(())
}
