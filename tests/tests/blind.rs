//! What blinds a sensor stands in its ledger, with times that enclose it; what can be mended is, and
//! frames are recorded again.

use std::time::Duration;

use anyhow::Result;
use capture_flow::time::NanosDelta;
use capture_store::ledger::{Blind, BlindCause, LedgerLine};
use capture_user::args::Mode;
use capture_user::link::Link;
use capture_user::live::clock;
use capture_user::program::Program;
use rustix::process::Signal;
use stillwire_tests::blind::{Moment, Watched, detach, when};
use stillwire_tests::disk::SmallDisk;
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Wire, sensor};

#[test]
fn a_program_that_was_taken_off_is_put_back() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let (taken_off, ()) = when(|| detach(&watched.wire))?;
    let sight = watched.await_sight(BlindCause::XdpRemoved, taken_off)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    let blind = watched.encloses(BlindCause::XdpRemoved, taken_off, sight)?;
    assert!(blind.iter().all(|blind| blind.iface.as_deref() == Some(Wire::SENSOR)), "{blind:?}");
    watched.has_all(0)
}

#[test]
fn without_healing_it_stands_in_the_ledger_until_the_end() -> Result<()> {
    let mut watched = Watched::start(Wire::with().queues(1).build()?, &["--no-heal"])?;
    watched.sees()?;
    let (taken_off, ()) = when(|| detach(&watched.wire))?;
    let program = watched.program.take().expect("it runs");
    let (ended, end) = when(|| program.wait())?;
    assert_eq!(end.code, Some(1), "no interface is left: {}", end.stderr);
    // It may have ended before the test began to wait for that.
    let ended = Moment { before: taken_off.before, ..ended };
    watched.encloses(BlindCause::XdpRemoved, taken_off, ended)?;
    watched.has_all(0)
}

#[test]
fn somebody_elses_program_is_left_alone_until_it_goes() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    // While the sensor cannot put its own back.
    let sensor = watched.program.as_ref().expect("it runs");
    let (replaced, foreign) = when(|| {
        sensor.signal(Signal::STOP)?;
        detach(&watched.wire)?;
        let foreign = watched.wire.sensor.enter(|| {
            let foreign = Program::load(Wire::SENSOR, 1)?;
            foreign.attach(&Link::by_name(Wire::SENSOR)?, Mode::Native)?;
            Ok(foreign)
        })?;
        sensor.signal(Signal::CONT)?;
        Ok(foreign)
    })?;
    watched.await_blind(BlindCause::XdpReplaced, replaced)?;
    let sent = watched.send()?;
    assert_eq!(foreign.counters()?[0].seen, sent, "it is where it was put");
    let (gone, ()) = when(|| {
        drop(foreign);
        Ok(())
    })?;
    let sight = watched.await_sight(BlindCause::XdpReplaced, gone)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    watched.encloses(BlindCause::XdpReplaced, replaced, sight)?;
    watched.has_all(0)
}

#[test]
fn a_link_that_goes_down_is_seen_to_come_up_again() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let set = |way: &str| {
        let (moment, _) =
            when(|| watched.wire.sensor.run("ip", &["link", "set", Wire::SENSOR, way]))?;
        anyhow::Ok(moment)
    };
    let down = set("down")?;
    watched.await_blind(BlindCause::LinkDown, down)?;
    let up = set("up")?;
    let sight = watched.await_sight(BlindCause::LinkDown, up)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    watched.encloses(BlindCause::LinkDown, down, sight)?;
    let mut down_ns = 0;
    for line in watched.lines()? {
        let link = line.interfaces[0].link;
        let length = u64::try_from((line.to - line.from).0)?;
        assert!(link.down_ns <= length, "{link:?} in {length} ns");
        down_ns += link.down_ns;
    }
    assert!(down_ns >= u64::try_from((up.before - down.after).0)?, "{down_ns} ns down");
    watched.has_all(0)
}

#[test]
fn a_link_that_flaps_between_two_looks_leaves_a_trace() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let cut = "ip link set tx0 down; ip link set tx0 up";
    let (flap, _) = when(|| watched.wire.sender.run("sh", &["-c", cut]))?;
    let sight = watched.await_sight(BlindCause::LinkDown, flap)?;
    watched.sees()?;
    watched.stop()?;
    watched.encloses(BlindCause::LinkDown, flap, sight)?;
    watched.has_all(0)
}

#[test]
fn a_sensor_that_was_stopped_says_for_how_long() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let signal = |signal| {
        let sensor = watched.program.as_ref().expect("it runs");
        let (moment, ()) = when(|| sensor.signal(signal))?;
        anyhow::Ok(moment)
    };
    let stopped = signal(Signal::STOP)?;
    // Meanwhile the kernel fills the ring, which is large enough.
    let sent = watched.send()?;
    std::thread::sleep(Duration::from_secs(1));
    let goes_on = signal(Signal::CONT)?;
    let sight = watched.await_sight(BlindCause::WorkerStalled, goes_on)?;
    watched.sees()?;
    watched.stop()?;
    let blind = watched.encloses(BlindCause::WorkerStalled, stopped, sight)?;
    assert!(blind.iter().all(|blind| blind.worker == Some(0)), "{blind:?}");
    watched.has_all(sent)
}

#[test]
fn a_socket_that_fails_is_opened_again() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    // The worker asks its socket for errors now and then: once the kernel gives it one.
    let (failed, ()) = when(|| watched.fail_once("getsockopt", "EIO"))?;
    let sight = watched.await_sight(BlindCause::SourceFailed, failed)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    let blind = watched.encloses(BlindCause::SourceFailed, failed, sight)?;
    let told = |blind: &Blind| blind.queue == Some(0) && blind.detail.contains("tap0 queue 0");
    assert!(blind.iter().all(told), "{blind:?}");
    watched.has_all(0)
}

#[test]
fn the_queues_of_a_worker_that_ended_go_to_another() -> Result<()> {
    let wire = Wire::with().queues(2).spread_by_flow().build()?;
    let mut watched = Watched::start(wire, &[])?;
    watched.sees()?;
    // It cannot wait for frames any more.
    let (ended, ()) = when(|| watched.fail_once("poll,ppoll", "ENOMEM"))?;
    let sight = watched.await_sight(BlindCause::WorkerEnded, ended)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(1), "an operator must see to it");
    let blind = watched.encloses(BlindCause::WorkerEnded, ended, sight)?;
    assert!(blind.iter().all(|blind| blind.worker == Some(0)), "{blind:?}");
    let both = |line: &LedgerLine| line.interfaces[0].queues.iter().all(|q| q.worker == Some(1));
    assert!(watched.lines()?.iter().any(both), "worker 1 has both queues");
    watched.has_all(0)
}

#[test]
fn a_sensor_whose_only_worker_has_ended_stops_and_says_why() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &["--cores", "0"])?;
    watched.sees()?;
    let (begun, ()) = when(|| watched.fail_once("poll,ppoll", "ENOMEM"))?;
    let program = watched.program.take().expect("it runs");
    let (ended, end) = when(|| program.wait())?;
    assert_eq!(end.code, Some(1), "{}", end.stderr);
    assert!(end.stderr.contains("no worker is left"), "{}", end.stderr);
    // It may have ended before the test began to wait for that.
    let ended = Moment { before: begun.before, ..ended };
    watched.encloses(BlindCause::WorkerEnded, begun, ended)?;
    watched.has_all(0)
}

#[test]
fn a_queue_that_is_added_gets_a_socket() -> Result<()> {
    let wire = Wire::with().queues(2).spread_by_flow().build()?;
    wire.use_queues(1)?;
    let mut watched = Watched::start(wire, &[])?;
    watched.sees()?;
    let (added, ()) = when(|| watched.wire.use_queues(2))?;
    let sight = watched.await_sight(BlindCause::QueueUnserved, added)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    let blind = watched.encloses(BlindCause::QueueUnserved, added, sight)?;
    assert!(blind.iter().all(|blind| blind.queue == Some(1)), "{blind:?}");
    let queues = |line: &LedgerLine| line.interfaces[0].queues.clone();
    let received: u64 = watched
        .lines()?
        .iter()
        .flat_map(queues)
        .filter(|queue| queue.queue == 1)
        .map(|queue| queue.received)
        .sum();
    assert!(received > 0, "queue 1 gave nothing");
    watched.has_all(0)
}

#[test]
fn a_queue_without_a_socket_is_blind_before_any_frame_comes_on_it() -> Result<()> {
    let wire = Wire::with().queues(2).build()?;
    wire.use_queues(1)?;
    let mut watched = Watched::start(wire, &["--no-heal"])?;
    // The sender goes on with one: no frame can come on the second queue.
    let more = ["-L", Wire::SENSOR, "rx", "2", "tx", "2"];
    let (added, _) = when(|| watched.wire.sensor.run("ethtool", &more))?;
    watched.await_blind(BlindCause::QueueUnserved, added)?;
    watched.sees()?;
    let (stopped, ended) = when(|| watched.stop())?;
    assert_eq!(ended.code, Some(0), "the first queue was captured on: {}", ended.stderr);
    let blind = watched.encloses(BlindCause::QueueUnserved, added, stopped)?;
    assert!(blind.iter().all(|blind| blind.queue == Some(1)), "{blind:?}");
    for line in watched.lines()? {
        assert!(line.interfaces[0].queues.iter().all(|queue| queue.xdp.no_socket == 0));
    }
    watched.has_all(0)
}

#[test]
fn an_interface_that_comes_back_is_taken_again() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    for _ in 0..2 {
        watched.sees()?;
        let (removed, ()) = when(|| watched.wire.remove())?;
        watched.await_blind(BlindCause::InterfaceGone, removed)?;
        let (laid, ()) = when(|| watched.wire.lay())?;
        let sight = watched.await_sight(BlindCause::InterfaceGone, laid)?;
        watched.encloses(BlindCause::InterfaceGone, removed, sight)?;
    }
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    watched.has_all(0)
}

#[test]
fn an_interface_that_was_away_for_a_moment_is_taken_again() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    // It comes back with its old number, and with nothing that was set up on it.
    let (sender, sensor) = (watched.wire.sender.name(), watched.wire.sensor.name());
    let move_it = format!(
        "ip link set tap0 netns {sender} && ip -n {sender} link set tap0 netns {sensor} && \
         ip link set tap0 up"
    );
    let (moved, _) = when(|| watched.wire.sensor.run("sh", &["-c", &move_it]))?;
    let sight = watched.await_sight(BlindCause::InterfaceGone, moved)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    watched.encloses(BlindCause::InterfaceGone, moved, sight)?;
    watched.has_all(0)
}

#[test]
fn silence_is_blindness_for_each_interface_by_itself() -> Result<()> {
    let wire = Wire::new()?;
    // Nobody ever speaks on the second one, which the first one's frames do not excuse.
    let mute = "link add mute0 type veth peer name mute1";
    wire.sensor.run("ip", &mute.split(' ').collect::<Vec<_>>())?;
    for end in ["mute0", "mute1"] {
        wire.sensor.set(&format!("ipv6/conf/{end}/disable_ipv6"), "1")?;
        wire.sensor.run("ip", &["link", "set", end, "arp", "off", "up"])?;
    }
    let dir = sensor::store_dir()?;
    let args = ["--silence-limit", "2s", "--packet-budget", "1GiB", "--segment-size", "16MiB"];
    let (started, mut watched) = when(|| {
        Watched::start_in(wire, &[Wire::SENSOR, "mute0"], &dir.path().join("store"), &args)
    })?;
    let (spoke, ()) = when(|| watched.sees())?;
    let silent = |watched: &Watched, iface: &str| {
        let mut all = watched.blind(BlindCause::Silent)?;
        all.retain(|blind| blind.iface.as_deref() == Some(iface));
        anyhow::Ok(all)
    };
    await_until("silence on both", || {
        let both = [Wire::SENSOR, "mute0"].map(|iface| silent(&watched, iface));
        let [first, second] = both;
        Ok((!first?.is_empty() && !second?.is_empty()).then_some(()))
    })?;
    let (speaks, ()) = when(|| {
        watched.sees()?;
        let sensor = watched.program.as_mut().expect("it runs");
        sensor.await_stderr("tap0 is silent no longer")
    })?;
    let (stopped, _) = when(|| watched.stop())?;
    watched.encloses_times(silent(&watched, Wire::SENSOR)?, spoke, speaks)?;
    watched.encloses_times(silent(&watched, "mute0")?, started, stopped)?;
    watched.has_all(0)
}

#[test]
fn a_disk_that_takes_no_packets_is_blindness_while_they_come() -> Result<()> {
    let disk = SmallDisk::new(64)?;
    let args = ["--packet-budget", "1GiB", "--segment-size", "1MiB"];
    let store = disk.path().join("store");
    let mut watched = Watched::start_in(Wire::new()?, &[Wire::SENSOR], &store, &args)?;
    watched.sees()?;
    // Room for the ledger and the session log, but for no segment.
    let ballast = disk.fill(512 << 10)?;
    let flood = Frames { count: 8_000, bytes: 1_500, flows: 10, pace: Pace::Gap(20) };
    let (flooded, sent) = when(|| flood.send(&watched.wire))?;
    watched.await_blind(BlindCause::SegmentsUnwritable, flooded)?;
    drop(ballast);
    watched.program.as_mut().expect("it runs").await_stderr("segments can be prepared again")?;
    watched.sees()?;
    let sight = watched.await_sight(BlindCause::SegmentsUnwritable, flooded)?;
    watched.stop()?;
    let blind = watched.encloses(BlindCause::SegmentsUnwritable, flooded, sight)?;
    assert!(blind.iter().all(|blind| blind.detail.contains("disk_full")), "{blind:?}");
    watched.has_all(sent.carried)
}

#[test]
fn rows_that_wait_for_a_full_disk_are_behind() -> Result<()> {
    let disk = SmallDisk::new(64)?;
    let args = ["--packet-budget", "1GiB", "--segment-size", "1MiB", "--udp-timeout", "300ms"];
    let store = disk.path().join("store");
    let mut watched = Watched::start_in(Wire::new()?, &[Wire::SENSOR], &store, &args)?;
    watched.sees()?;
    let (full, ballast) = when(|| disk.fill(0))?;
    watched.send()?;
    let sensor = watched.program.as_mut().expect("it runs");
    sensor.await_stderr("the session log cannot be written")?;
    let (free, ()) = when(|| {
        drop(ballast);
        Ok(())
    })?;
    watched.await_sight(BlindCause::LogBehind, free)?;
    watched.stop()?;
    let blind = watched.blind(BlindCause::LogBehind)?;
    assert!(blind.iter().all(|blind| blind.to >= full.before), "{blind:?}");
    watched.has_all(500)
}

#[test]
fn what_happens_after_a_quiet_time_is_told_by_itself() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let quiet = NanosDelta::from_secs(6);
    let begun = clock();
    await_until("a quiet time", || Ok((clock() - begun >= quiet).then_some(())))?;
    watched.sees()?;
    watched.stop()?;
    let lines = watched.lines()?;
    let told = |line: &&LedgerLine| line.workers.iter().any(|worker| worker.received > 0);
    for line in lines.iter().filter(told) {
        assert!(line.to - line.from < quiet, "the quiet time is in it: {line:?}");
    }
    assert!(lines.iter().any(|line| line.to - line.from > NanosDelta::from_secs(2)), "{lines:?}");
    watched.has_all(0)
}

#[test]
fn only_the_thread_that_mends_keeps_capabilities() -> Result<()> {
    for (args, privileged) in [(&[][..], vec!["stillwired"]), (&["--no-heal"][..], vec![])] {
        let mut watched = Watched::start(Wire::new()?, args)?;
        watched.sees()?;
        // `ip netns exec` becomes the program that it starts.
        let id = watched.program.as_ref().expect("it runs").id();
        let mut found = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{id}/task"))? {
            let status = std::fs::read_to_string(task?.path().join("status"))?;
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            let permitted = u64::from_str_radix(&field("CapPrm:"), 16)?;
            assert_eq!(permitted, u64::from_str_radix(&field("CapEff:"), 16)?);
            // NET_ADMIN, NET_RAW, IPC_LOCK, PERFMON, BPF: see capability.h.
            let mending = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39;
            assert!(permitted == 0 || permitted == mending, "{status}");
            if permitted != 0 {
                found.push(field("Name:"));
            }
        }
        assert_eq!(found, privileged);
        watched.stop()?;
        watched.has_all(0)?;
    }
    Ok(())
}
