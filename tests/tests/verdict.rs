//! Verdicts about a wire that real programs and real faults speak and break on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use stillwire_tests::blind::{detach, fail_once};
use stillwire_tests::disk::SmallDisk;
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::verdict::{Span, prove, rest};
use stillwire_tests::{Lab, Wire, outside, sensor};

/// Rows come every second, so that a verdict need not be waited for longer.
const QUICK: [&str; 8] = [
    "--packet-budget",
    "512MiB",
    "--segment-size",
    "16MiB",
    "--interim",
    "1s",
    "--fragment-timeout",
    "1s",
];

const INTRUDER: &str = "resp host 10.77.0.2 and tcp port 22";

/// Sessions of a window.
fn sessions(store: &Path, filter: &str, span: Span) -> Result<Vec<Value>> {
    let (from, to) = (span.from.text(), span.to.text());
    let args = ["sessions", "--format", "ndjson", "--from", &from, "--to", &to, filter];
    let rows = sensor::stillwire(store, &args)?;
    rows.lines().map(|row| serde_json::from_str(row).context("a row")).collect()
}

/// The founding scenario. A host offers SSH; an alert says that it did something odd. Was somebody
/// there?
#[test]
fn pings_are_no_login_and_a_login_is_one() -> Result<()> {
    let lab = Lab::up()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let program = sensor::capture_on(&lab.namespace("sensor"), &["tap0"], &store, &QUICK)?;
    let ping = || {
        let pattern = ["-c", "5", "-i", "0.05", "-s", "120", "-p", "5354494c4c", Lab::BOB];
        lab.namespace("alice").run("ping", &pattern)
    };

    // The moment of its start is not covered: frames may come before its sockets are ready.
    rest(BESIDE);
    // Only pings: no login, and everything that the host saw is there to be looked at.
    let (pinged, _) = Span::of(ping)?;
    let said = prove(&store, INTRUDER, pinged)?.must_be("absent")?;
    ensure!(said.list("sessions").is_empty() && said.list("possible").is_empty());
    ensure!(said.json["ledger"]["chain"] == "valid", "{:#}", said.json);
    let rows = sessions(&store, "host 10.77.0.2", pinged)?;
    let protocols: Vec<_> = rows.iter().map(|row| row["proto"].as_str()).collect();
    assert_eq!(protocols, [Some("icmp")], "the pings, and nothing else: {rows:#?}");
    let file = dir.path().join("pings.pcap");
    sensor::stillwire(
        &store,
        &["packets", "icmp and host 10.77.0.2", "-w", &file.to_string_lossy()],
    )?;
    let echoes = outside::tshark_fields(&file, "icmp", &["icmp.type", "data.data"])?;
    assert_eq!(echoes.len(), 10, "five requests and five replies: {echoes:?}");
    for echo in &echoes {
        ensure!(echo[1].contains("5354494c4c5354494c4c5354"), "the pattern is whole: {echo:?}");
    }

    // A real login.
    let (logged_in, _) = Span::of(|| lab.ssh("true")?.wait()?.success())?;
    let said = prove(&store, INTRUDER, logged_in)?.must_be("present")?;
    let found = said.list("sessions");
    assert_eq!((found.len(), &found[0]["service"]), (1, &"ssh".into()), "{found:#?}");
    prove(&store, INTRUDER, pinged)?.must_be("absent")?;

    // One that is silent all the time that is asked about.
    let mut shell = lab.ssh("echo in >&2; exec sleep 1000")?;
    shell.await_stderr("in")?;
    await_until("the open session's row", || {
        let now = Span::lasting(0);
        let open = prove(&store, INTRUDER, now)?;
        Ok((open.verdict() == "present").then_some(()))
    })?;
    // What its beginning still has to say is said within a moment.
    rest(500);
    let (silent, _) = Span::of(ping)?;
    let quiet = dir.path().join("quiet.pcap");
    let (from, to, quiet_file) =
        (silent.from.text(), silent.to.text(), quiet.to_string_lossy().into_owned());
    let args = ["packets", "tcp port 22", "--from", &from, "--to", &to, "-w", &quiet_file];
    sensor::stillwire_ended(&store, &args)?;
    assert_eq!(outside::capinfos_frames(&quiet)?, 0, "the session was not silent");
    prove(&store, INTRUDER, silent)?.must_be("present")?;
    shell.kill()?;
    let said = prove(&store, INTRUDER, silent)?.must_be("present")?;
    assert_eq!(said.list("sessions").len(), 1, "{:#}", said.json);

    // Something that may or may not have been one.
    for (kind, why) in [("fragment", "fragments"), ("truncated", "cut off")] {
        rest(500);
        let send = || {
            let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/odd-frames");
            lab.namespace("alice").run("python3", &[program, "eth0", kind, "10.77.0.1", Lab::BOB])
        };
        let (odd, _) = Span::of(send)?;
        let said = prove(&store, INTRUDER, odd)?.must_be("unproven")?;
        let possible = said.list("possible");
        ensure!(said.reasons().is_empty() && possible.len() == 1, "{:#}", said.json);
        ensure!(possible[0]["why"].as_str().is_some_and(|w| w.contains(why)), "{possible:#?}");
        prove(&store, "resp host 10.77.0.9 and tcp port 22", odd)?.must_be("absent")?;
        prove(&store, "resp host 10.77.0.2 and udp port 53", odd)?.must_be("absent")?;
    }
    program.interrupt()?.success()?;
    prove(&store, INTRUDER, pinged)?.must_be("absent")?;
    Ok(())
}

/// A wire with some frames every second on it, none of them asked for.
struct Watched {
    wire: Wire,
    dir: tempfile::TempDir,
    disk: Option<SmallDisk>,
}

/// What nobody sends.
const NOBODY: &str = "tcp port 22";

impl Watched {
    fn new() -> Result<Self> {
        Self::on(Wire::new()?)
    }

    fn on(wire: Wire) -> Result<Self> {
        Ok(Self { wire, dir: sensor::store_dir()?, disk: None })
    }

    fn store(&self) -> std::path::PathBuf {
        self.disk.as_ref().map_or(self.dir.path(), SmallDisk::path).join("store")
    }

    fn capture(&self, more: &[&str]) -> Result<stillwire_tests::Program> {
        // The sizes among them may be given anew.
        let quick = QUICK.chunks(2).filter(|pair| !more.contains(&pair[0]));
        let args: Vec<&str> = quick.flatten().chain(more).copied().collect();
        let program = sensor::capture(&self.wire, &self.store(), &args)?;
        // The moment of its start is not covered.
        rest(BESIDE);
        Ok(program)
    }

    /// Half a second with a few frames in it, and the time that it took.
    fn calm(&self) -> Result<Span> {
        let frames = Frames { count: 50, bytes: 100, flows: 5, pace: Pace::Gap(100) };
        let (span, _) = Span::of(|| {
            frames.send(&self.wire)?;
            rest(500);
            Ok(())
        })?;
        Ok(span)
    }

    fn prove(&self, span: Span) -> Result<stillwire_tests::verdict::Said> {
        prove(&self.store(), NOBODY, span)
    }

    /// A fault makes its own time unproven under its name, and neither the time before nor, once it
    /// is mended, the time behind it.
    fn fault(
        &self,
        args: &[&str],
        reason: &str,
        act: impl FnOnce(&mut stillwire_tests::Program) -> Result<()>,
    ) -> Result<()> {
        let mut program = self.capture(args)?;
        let before = self.calm()?;
        self.prove(before)?.must_be("absent")?;
        // Silence counts from the last frame on: that one shall not be among those before.
        self.calm()?;
        rest(BESIDE);
        let (faulty, ()) = Span::of(|| act(&mut program))?;
        await_until("a time that is covered again", || {
            let after = self.calm()?;
            Ok((self.prove(after)?.verdict() == "absent").then_some(()))
        })?;
        self.prove(faulty)?.must_be("unproven")?.because_of(reason)?;
        self.prove(before)?.must_be("absent")?;
        let ended = program.interrupt()?;
        // A worker that ended is for an operator to see to.
        let code = i32::from(reason == "worker_ended");
        ensure!(ended.code == Some(code), "{ended:?}");
        self.prove(faulty)?.must_be("unproven")?.because_of(reason)?;
        Ok(())
    }
}

/// Where one line of the ledger ends and another begins is not a test's to choose: what is asked
/// about before and behind a fault keeps this distance.
const BESIDE: u64 = 2500;

#[test]
fn frames_lost_in_an_overload_leave_their_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    let program = watched.capture(&["--ring-size", "64"])?;
    let before = watched.calm()?;
    rest(BESIDE);
    let flood = Frames { count: 400_000, bytes: 1514, flows: 100, pace: Pace::Flood };
    let (overload, sent) = Span::of(|| flood.send(&watched.wire))?;
    rest(BESIDE);
    let after = watched.calm()?;
    watched.prove(before)?.must_be("absent")?;
    let said = watched.prove(overload)?.must_be("unproven")?.because_of("ring_loss")?;
    watched.prove(after)?.must_be("absent")?;
    program.interrupt()?.success()?;
    let lost = sent.carried + 100 - outside::recorded_frames(&watched.store())?;
    let gaps = said.json["coverage"]["gaps"].as_array().context("gaps")?;
    let told: u64 = gaps.iter().filter_map(|gap| gap["frames_lost"].as_u64()).sum();
    assert_eq!(told, lost, "{gaps:#?}");
    Ok(())
}

#[test]
fn a_link_that_was_down_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    watched.fault(&[], "link_down", |_| {
        watched.wire.sender.run("ip", &["link", "set", Wire::SENDER, "down"])?;
        rest(500);
        watched.wire.sender.run("ip", &["link", "set", Wire::SENDER, "up"]).map(drop)
    })
}

#[test]
fn a_program_taken_off_the_interface_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    watched.fault(&[], "xdp_removed", |_| detach(&watched.wire))
}

#[test]
fn a_sensor_that_stood_still_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    watched.fault(&[], "worker_stalled", |program| {
        program.signal(Signal::STOP)?;
        rest(1500);
        program.signal(Signal::CONT)
    })
}

#[test]
fn a_queue_without_a_socket_leaves_its_time_unproven() -> Result<()> {
    let wire = Wire::with().queues(2).spread_by_flow().build()?;
    wire.use_queues(1)?;
    let watched = Watched::on(wire)?;
    watched.fault(&[], "queue_unserved", |_| watched.wire.use_queues(2))
}

#[test]
fn a_socket_that_failed_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    watched.fault(&[], "source_failed", |program| fail_once(program, "getsockopt", "EIO"))
}

#[test]
fn a_worker_that_ended_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::on(Wire::with().queues(2).spread_by_flow().build()?)?;
    watched.fault(&[], "worker_ended", |program| fail_once(program, "poll,ppoll", "ENOMEM"))
}

#[test]
fn silence_beyond_its_limit_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched::new()?;
    watched.fault(&["--silence-limit", "4s"], "silent", |_| {
        rest(6000);
        Ok(())
    })
}

#[test]
fn a_full_disk_leaves_its_time_unproven() -> Result<()> {
    let watched = Watched { disk: Some(SmallDisk::new(64)?), ..Watched::new()? };
    let disk = watched.disk.as_ref().context("a disk")?;
    let args = ["--packet-budget", "1GiB", "--segment-size", "1MiB"];
    watched.fault(&args, "segments_unwritable", |_| {
        // Room for the ledger and the session log, but for no segment.
        let ballast = disk.fill(512 << 10)?;
        let flood = Frames { count: 8_000, bytes: 1_500, flows: 10, pace: Pace::Gap(20) };
        flood.send(&watched.wire)?;
        drop(ballast);
        Ok(())
    })
}

#[test]
fn a_killed_sensor_leaves_its_last_moments_and_its_absence_unproven() -> Result<()> {
    let watched = Watched::new()?;
    let program = watched.capture(&[])?;
    let before = watched.calm()?;
    // Once it is known to be complete, no kill can take that back.
    watched.prove(before)?.must_be("absent")?;
    let (dead, _) = Span::of(|| {
        program.kill()?;
        Ok(Span::lasting(1000))
    })?;
    watched.prove(dead)?.must_be("unproven")?;
    let program = watched.capture(&[])?;
    let after = watched.calm()?;
    watched.prove(before)?.must_be("absent")?;
    watched.prove(dead)?.must_be("unproven")?.because_of("unclean_end")?;
    watched.prove(after)?.must_be("absent")?;
    program.interrupt()?.success()?;
    Ok(())
}

#[test]
fn time_without_a_sensor_and_sensors_that_are_asked_too_early() -> Result<()> {
    let watched = Watched::new()?;
    let early = Span::lasting(100);
    let program = watched.capture(&[])?;
    let covered = watched.calm()?;
    watched.prove(covered)?.must_be("absent")?;
    // The future is not known yet, and the answer says when it will be.
    let store = watched.store();
    let late = Span { from: covered.from, to: covered.to.plus(600_000) };
    let (from, to) = (late.from.text(), late.to.text());
    let args = ["prove", "--format", "json", NOBODY, "--from", &from, "--to", &to];
    let ended = sensor::stillwire_ended(&store, &args)?;
    let said: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!((ended.code, &said["verdict"]), (Some(4), &"unproven".into()), "{said:#}");
    assert!(said["ask_again_at"].is_string(), "{said:#}");
    program.interrupt()?.success()?;
    watched.prove(covered)?.must_be("absent")?;
    watched.prove(early)?.must_be("unproven")?.because_of("no_sensor")?;
    watched.prove(Span::lasting(100))?.must_be("unproven")?.because_of("no_sensor")?;
    Ok(())
}
