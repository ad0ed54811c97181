//! What blinds a sensor stands in its ledger, with times that enclose it; what can be mended is, and
//! frames are recorded again.

use anyhow::Result;
use capture_store::ledger::BlindCause;
use capture_user::args::Mode;
use capture_user::link::Link;
use capture_user::program::Program;
use rustix::process::Signal;
use stillwire_tests::Wire;
use stillwire_tests::blind::{Watched, when};

/// Takes the sensor's XDP program off its interface, as an operator with the wrong id would.
fn detach(wire: &Wire) -> Result<()> {
    let shown = wire.sensor.run("bpftool", &["--json", "link", "show"])?;
    let links: serde_json::Value = serde_json::from_str(&shown)?;
    let xdp = wire.sensor.run("ip", &["--json", "link", "show", Wire::SENSOR])?;
    let xdp: serde_json::Value = serde_json::from_str(&xdp)?;
    let program = &xdp[0]["xdp"]["prog"]["id"];
    let link = links.as_array().into_iter().flatten().find(|link| link["prog_id"] == *program);
    let id = link.map(|link| link["id"].to_string()).unwrap_or_default();
    wire.sensor.run("bpftool", &["link", "detach", "id", &id]).map(drop)
}

#[test]
fn a_program_that_was_taken_off_is_put_back() -> Result<()> {
    let mut watched = Watched::start(Wire::new()?, &[])?;
    watched.sees()?;
    let (taken_off, ()) = when(|| detach(&watched.wire))?;
    watched.await_sight(BlindCause::XdpRemoved)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    let blind = watched.encloses(BlindCause::XdpRemoved, taken_off, taken_off)?;
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
    watched.await_blind(BlindCause::XdpReplaced)?;
    let sent = watched.send()?;
    assert_eq!(foreign.counters()?[0].seen, sent, "it is where it was put");
    let (gone, ()) = when(|| {
        drop(foreign);
        Ok(())
    })?;
    watched.await_sight(BlindCause::XdpReplaced)?;
    watched.sees()?;
    assert_eq!(watched.stop()?.code, Some(0));
    watched.encloses(BlindCause::XdpReplaced, replaced, gone)?;
    watched.has_all(0)
}
