//! The machine under the sensor loses its power, and another time is rebooted: a real one, with a
//! kernel of the distribution and a disk of its own.
//!
//! ```text
//!  this machine                     guest under QEMU (one emulated CPU, Debian's kernel)
//!  ┌───────────────┐  serial   ┌──────────────────────────────────────────────────────┐
//!  │ test ─────────┼───────────┼─ sh         namespace tx              veth           │
//!  │  cuts power   │  console  │            ┌─────────────────┐    ┌─ tap0: stillwired│
//!  │               │           │            │ ping ─── tx0 ───┼────┘        │         │
//!  │  file: disk ──┼──virtio───┼─ /dev/vda  └─────────────────┘      /disk/store      │
//!  └───────────────┘           └──────────────────────────────────────────────────────┘
//! ```
//!
//! A visitor is a host that sends one frame at a moment that the test knows. Whatever is lost with
//! the power, nobody may ever be told that a visitor was not there.

use anyhow::{Context, Result, ensure};
use capture_store::time::parse_rfc3339;
use serde_json::Value;
use stillwire_tests::guest::{DISK, Guest, Machine};
use stillwire_tests::process::await_until;

/// A host that never speaks.
const NOBODY: &str = "host 10.9.9.250";
/// What the sensor is started with besides. With anchors the ledger is on the disk after every line,
/// and what it speaks of is not: the worst that a power loss can find.
const ARGS: &str = "--interim 1s --segment-size 1MiB --packet-budget 64MiB --quiet \
                    --anchor /disk/anchor --anchor-interval 1s";

/// Seconds since 1970 in the guest, the first and the last of them whole.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    to: u64,
}

/// One who sent a frame.
#[derive(Clone, Copy, Debug)]
struct Visitor {
    number: u8,
    when: Span,
}

impl Visitor {
    fn filter(self) -> String {
        format!("host 10.9.9.{}", self.number)
    }
}

fn seconds(guest: &mut Guest) -> Result<u64> {
    guest.must("date +%s")?.trim().parse().context("the guest's clock")
}

/// Lays the wire, sets somebody on it who always talks, and starts the sensor.
fn watch(guest: &mut Guest) -> Result<()> {
    guest.must(
        "/sbin/ip netns add tx && /sbin/ip link add tx0 netns tx type veth peer name tap0 && \
         /sbin/ip link set tap0 up && \
         in_tx='/sbin/ip netns exec tx' && \
         $in_tx /sbin/ip link set tx0 up && \
         $in_tx /sbin/ip addr add 10.9.9.1/24 dev tx0 && \
         $in_tx /sbin/ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev tx0",
    )?;
    guest.must("$in_tx busybox ping -q -i 0.02 10.9.9.2 > /tmp/ping 2>&1 & true")?;
    guest.must(&format!(
        ": > /tmp/log; \
         stillwired capture --iface tap0 --store {DISK}/store {ARGS} > /tmp/log 2>&1 & \
         sensor=$!"
    ))?;
    await_until("the sensor", || {
        let log = log(guest)?;
        ensure!(guest.run("kill -0 $sensor")?.code == Some(0), "the sensor has ended:\n{log}");
        Ok(log.contains("capturing").then_some(()))
    })?;
    // Windows begin with whole seconds; the first one shall be the sensor's.
    let begun = seconds(guest)?;
    await_until("the next second", || Ok((seconds(guest)? > begun).then_some(())))
}

fn log(guest: &mut Guest) -> Result<String> {
    guest.must("cat /tmp/log")
}

/// Some visitors, one after the other.
fn visits(guest: &mut Guest, numbers: std::ops::Range<u8>) -> Result<Vec<Visitor>> {
    numbers
        .map(|number| {
            let from = seconds(guest)?;
            // Nobody answers, so ping ends with 1.
            guest.run(&format!(
                "$in_tx /sbin/ip addr add 10.9.9.{number}/32 dev tx0; \
                 $in_tx busybox ping -q -c 1 -W 1 -I 10.9.9.{number} 10.9.9.2 > /tmp/visit"
            ))?;
            ensure!(
                guest.must("cat /tmp/visit")?.contains("1 packets transmitted"),
                "visitor {number} was not sent"
            );
            Ok(Visitor { number, when: Span { from, to: seconds(guest)? + 1 } })
        })
        .collect()
}

/// Asks, once the log of a running sensor is complete through the span.
fn prove(guest: &mut Guest, filter: &str, span: Span) -> Result<Value> {
    let ended = guest.run(&format!(
        "stillwire --store {DISK}/store prove --format json --wait 1m --from {} --to {} -- '{filter}'",
        span.from, span.to
    ))?;
    let said: Value = serde_json::from_str(&ended.stdout)
        .with_context(|| format!("{:?}: {}", ended.code, ended.stdout))?;
    let code = match said["verdict"].as_str() {
        Some("absent") => 0,
        Some("present") => 3,
        _ => 4,
    };
    ensure!(ended.code == Some(code), "{:?} and {said:#}", ended.code);
    Ok(said)
}

fn reasons(said: &Value) -> Vec<&str> {
    let gaps = said["coverage"]["gaps"].as_array().into_iter().flatten();
    gaps.filter_map(|gap| gap["reason"].as_str()).collect()
}

/// The ledger's lines, without what a power loss tore.
fn lines(guest: &mut Guest) -> Result<Vec<Value>> {
    let text = guest.must(&format!("cat {DISK}/store/ledger/sensor=*/*.ndjson"))?;
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

fn notes<'a>(line: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let notes = line["notes"].as_array().into_iter().flatten();
    notes.filter(move |note| note["note"] == kind)
}

/// The newest recovery, by the ledger: the second in which its run began, and what it found.
fn recovery(guest: &mut Guest) -> Result<(u64, Value)> {
    let lines = lines(guest)?;
    let found = lines.iter().rev().find_map(|line| Some((line, notes(line, "recovered").last()?)));
    let (line, report) = found.context("no recovery in the ledger")?;
    let from = parse_rfc3339(line["from"].as_str().unwrap_or_default()).context("no time")?;
    Ok((u64::try_from(from.0)? / 1_000_000_000, report.clone()))
}

/// Frames that the lines before the newest recovery count as written and that no segment has, by
/// the ledger's word about sealed segments, and the most frames of a line.
fn frames_missing(guest: &mut Guest) -> Result<(u64, u64)> {
    let (mut written, mut sealed, mut most) = (0, 0, 0);
    for line in lines(guest)? {
        for file in notes(&line, "sealed") {
            if file["path"].as_str().is_some_and(|path| path.ends_with(".pcap")) {
                sealed += file["items"].as_u64().unwrap_or(0);
            }
        }
        if notes(&line, "recovered").next().is_some() {
            return Ok((u64::saturating_sub(written, sealed), most));
        }
        let workers = line["workers"].as_array().into_iter().flatten();
        let frames = workers.filter_map(|worker| worker["written"].as_u64()).sum();
        written += frames;
        most = most.max(frames);
    }
    anyhow::bail!("no recovery in the ledger")
}

/// Whether everything is as the sensor wrote it, by what it says itself.
fn verify(guest: &mut Guest) -> Result<String> {
    guest.must(&format!("stillwire --store {DISK}/store verify --anchor {DISK}/anchor"))
}

/// Time in which a visitor came and everything is known.
fn is_clean(guest: &mut Guest, visitors: &[Visitor]) -> Result<()> {
    for visitor in visitors {
        let there = prove(guest, &visitor.filter(), visitor.when)?;
        ensure!(there["verdict"] == "present", "{visitor:?}: {there:#}");
        let nobody = prove(guest, NOBODY, visitor.when)?;
        ensure!(nobody["verdict"] == "absent", "{visitor:?}: {nobody:#}");
    }
    Ok(())
}

/// Between these two the machine was restarted, and that is told.
fn is_restart(guest: &mut Guest, before: &[Visitor], after: &[Visitor]) -> Result<Value> {
    let log = log(guest)?;
    println!("{log}");
    ensure!(log.contains("the last run ended uncleanly, and the machine was restarted"), "{log}");
    ensure!(!log.contains("somebody"), "nobody has done anything: {log}");
    let (begun, report) = recovery(guest)?;
    println!("{report:#}");
    ensure!(report["rebooted"] == true, "{report:#}");
    let (last, first) = (before.last().context("nobody")?, after.first().context("nobody")?);
    for span in [
        Span { from: last.when.from, to: first.when.to },
        // The machine was off then: the run before is not in the window.
        Span { from: begun - 1, to: first.when.to },
    ] {
        let said = prove(guest, NOBODY, span)?;
        ensure!(said["verdict"] == "unproven", "{span:?}: {said:#}");
        ensure!(reasons(&said).contains(&"machine_restarted"), "{span:?}: {said:#}");
    }
    let shown = guest.must(&format!("stillwire --store {DISK}/store coverage"))?;
    println!("{shown}");
    ensure!(shown.contains("the machine was restarted"), "{shown}");
    Ok(report)
}

#[test]
fn power_loss_and_reboot_are_told_and_hide_no_visitor() -> Result<()> {
    let machine = Machine::new()?;
    let mut guest = machine.boot()?;
    println!("the guest runs Linux {}", guest.kernel());
    watch(&mut guest)?;
    let written = visits(&mut guest, 11..13)?;
    is_clean(&mut guest, &written)?;
    // From here on its kernel keeps to itself what nobody wants on the disk.
    guest.must("sync; echo 0 > /proc/sys/vm/dirty_writeback_centisecs")?;
    // Some segments are sealed.
    guest.must(
        "$in_tx busybox ping -q -s 1400 -i 0.002 -c 1500 -w 20 10.9.9.2 > /tmp/burst; true",
    )?;
    let unwritten = visits(&mut guest, 21..24)?;
    is_clean(&mut guest, &unwritten)?;
    let complete = unwritten.last().map_or(0, |visitor| visitor.when.to);
    await_until("an anchor of a line behind the last visitor", || {
        let anchor = guest.must(&format!("tail -n 1 {DISK}/anchor"))?;
        let anchor: Value = serde_json::from_str(&anchor)?;
        let lines = lines(&mut guest)?;
        let line = lines.iter().find(|line| line["seq"] == anchor["seq"]).context("no line")?;
        let through = line["complete_through"].as_str().and_then(parse_rfc3339);
        let through = through.and_then(|at| u64::try_from(at.0 / 1_000_000_000).ok());
        Ok((through > Some(complete)).then_some(()))
    })?;
    guest.cut_power()?;

    let mut guest = machine.boot()?;
    watch(&mut guest)?;
    let after = visits(&mut guest, 31..33)?;
    let report = is_restart(&mut guest, &unwritten, &after)?;
    let lost = |name: &str| report[name].as_u64().unwrap_or(0);
    let (missing, slack) = frames_missing(&mut guest)?;
    ensure!(lost("log_bytes_lost") > 0 && lost("frames_lost") > 0, "{report:#}");
    ensure!(lost("frames_lost").abs_diff(missing) <= slack, "{missing} are missing: {report:#}");
    is_clean(&mut guest, &written)?;
    is_clean(&mut guest, &after)?;
    let mut unproven = 0;
    for visitor in &unwritten {
        let said = prove(&mut guest, &visitor.filter(), visitor.when)?;
        ensure!(said["verdict"] != "absent", "{visitor:?} was there: {said:#}");
        unproven += usize::from(said["verdict"] == "unproven");
    }
    ensure!(unproven > 0, "no row was lost: there was nothing to find out");
    println!("{}", verify(&mut guest)?);

    // With everything on the disk, but without a word to the sensor.
    guest.reboot()?;
    watch(&mut guest)?;
    let last = visits(&mut guest, 41..43)?;
    is_restart(&mut guest, &after, &last)?;
    is_clean(&mut guest, &after)?;
    is_clean(&mut guest, &last)?;
    let stopped = guest.run("kill -TERM $sensor; wait $sensor")?;
    ensure!(stopped.code == Some(0), "{stopped:?}\n{}", log(&mut guest)?);
    is_clean(&mut guest, &written)?;
    is_clean(&mut guest, &last)?;
    println!("{}", verify(&mut guest)?);
    Ok(())
}
