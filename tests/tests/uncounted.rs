//! A loss that no counter of the kernel tells of, while traffic goes on.

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use aya::programs::loaded_programs;
use capture_common::{COUNTERS, QueueCounters};
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::verdict::{Span, prove, rest};
use stillwire_tests::{Wire, sensor};

/// So many frames go astray.
const ASTRAY: u64 = 7;

/// Has the sensor's XDP program say that it steered frames which no socket ever gets: to everyone
/// else they look like frames that the kernel lost without a word. To be done while no frame comes,
/// for the program does not wait while its counters are written.
fn lead_astray(wire: &Wire) -> Result<()> {
    let link = wire.sensor.run("ip", &["--json", "link", "show", Wire::SENSOR])?;
    let link: serde_json::Value = serde_json::from_str(&link)?;
    let id = link[0]["xdp"]["prog"]["id"].as_u64().context("no program")?;
    let program = loaded_programs().flatten().find(|program| u64::from(program.id()) == id);
    let maps = program.context("it is gone")?.map_ids()?.context("no maps")?;
    let counters = maps.into_iter().find_map(|id| {
        let map = MapData::from_id(id).ok()?;
        (map.info().ok()?.name() == COUNTERS.as_bytes()).then_some(map)
    });
    let counters = Map::PerCpuArray(counters.context("no counters")?);
    let mut counters: PerCpuArray<_, QueueCounters> = counters.try_into()?;
    let mut values: Vec<QueueCounters> = counters.get(&0, 0)?.to_vec();
    let first = values.first_mut().context("no processor")?;
    first.seen += ASTRAY;
    first.steered += ASTRAY;
    counters.set(0, PerCpuValues::try_from(values)?, 0)?;
    Ok(())
}

/// Frames lost before the workers in every line of the ledger, and those that the kernel counts.
fn losses(store: &std::path::Path) -> Result<(u64, u64)> {
    let (mut lost, mut counted) = (0, 0);
    for line in sensor::ledger(store)? {
        let line: capture_store::ledger::LedgerLine = serde_json::from_value(line)?;
        for queue in line.interfaces.iter().flat_map(|interface| &interface.queues) {
            lost += queue.ring_losses;
            counted += queue.socket.rx_dropped + queue.socket.rx_ring_full;
        }
    }
    Ok((lost, counted))
}

#[test]
fn it_stands_in_the_ledger_to_the_frame_and_no_verdict_denies_it() -> Result<()> {
    let wire = Wire::with().queues(1).build()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let args = ["--packet-budget", "512MiB", "--segment-size", "16MiB", "--interim", "1s"];
    let program = sensor::capture_on(&wire.sensor, &[Wire::SENSOR], &store, &args)?;
    rest(1_000);
    let before = Span::lasting(1_000);
    rest(2_000);
    // Far fewer than a ring can hold, and always one on its way.
    let (missed, mut sending) = Span::of(|| {
        lead_astray(&wire)?;
        let frames = Frames { count: 0, bytes: 80, flows: 20, pace: Pace::Gap(200) };
        let sending = frames.start(&wire)?;
        await_until("the loss in the ledger", || Ok((losses(&store)?.0 >= ASTRAY).then_some(())))?;
        Ok(sending)
    })?;
    assert_eq!(losses(&store)?, (ASTRAY, 0), "found to the frame");
    rest(500);
    let after = Span::lasting(1_000);
    ensure!(sending.program.runs()?, "all this while frames came");

    // Nobody came to port 22, as far as the sensor saw.
    let asked = "resp host 10.1.0.2 and tcp port 22";
    prove(&store, asked, missed)?.must_be("unproven")?.because_of("ring_loss")?;
    prove(&store, asked, before)?.must_be("absent")?;
    prove(&store, asked, after)?.must_be("absent")?;

    drop(sending);
    let ended = program.interrupt()?;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(losses(&store)?, (ASTRAY, 0), "and told once");
    Ok(())
}
