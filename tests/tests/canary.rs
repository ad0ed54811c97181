//! Canaries over a real wire: those that are true count, and nothing else that looks like one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use capture_store::Store;
use capture_store::index::segments;
use capture_user::canary::payload;
use stillwire_tests::process::await_until;
use stillwire_tests::{Account, Program, Wire, sensor};

/// A canary on the sender's end of a wire.
struct Bird {
    key: PathBuf,
    public: String,
}

impl Bird {
    /// Makes the key, as the first run on a host does.
    fn new(wire: &Wire, key: &Path) -> Result<Self> {
        let key = key.to_owned();
        let mut bird = Self { key, public: String::new() };
        let ended = bird.start(wire, &["--count", "1"])?.wait()?;
        let told = ended.stderr.clone();
        ended.success()?;
        let public = told.lines().find_map(|line| line.trim().strip_prefix("--canary "));
        bird.public = public.context(told.clone())?.trim().to_owned();
        let secret = std::fs::read_to_string(&bird.key)?;
        ensure!(!told.contains(secret.trim()), "the secret is told: {told}");
        Ok(bird)
    }

    fn start(&self, wire: &Wire, args: &[&str]) -> Result<Program> {
        let mut command = wire.sender.command(sensor::binary("stillwired")?);
        command.args(["canary", "--iface", Wire::SENDER, "--interval", "100ms", "--key"]);
        command.arg(&self.key).args(args).env("NO_COLOR", "1");
        Program::start(&mut command)
    }
}

/// Canaries that the ledger counts, and the keys that it names.
fn counted(store: &Path) -> Result<(u64, Vec<String>)> {
    let (mut frames, mut keys) = (0, Vec::new());
    for line in sensor::ledger(store)? {
        for canary in line["canaries"].as_array().into_iter().flatten() {
            ensure!(canary["iface"] == Wire::SENSOR, "{canary}");
            frames += canary["frames"].as_u64().context("a count")?;
            let key = canary["key"].as_str().context("a key")?.to_owned();
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
    }
    Ok((frames, keys))
}

/// What the ledger says in words.
fn said(store: &Path) -> Result<String> {
    let mut said = String::new();
    for line in sensor::ledger(store)? {
        for note in line["notes"].as_array().into_iter().flatten() {
            said.push_str(note["text"].as_str().unwrap_or_default());
            said.push('\n');
        }
    }
    Ok(said)
}

/// The canary frames that a running sensor has recorded, in order.
fn recorded(store: &Path) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for segment in segments(&Store::open(store)?)? {
        // Those that are made ahead have not even a header yet.
        let Ok(packets) = segment.packets(&segment.index()?) else { continue };
        packets.scan(|_, _, bytes| {
            if payload(bytes).is_some() {
                frames.push(bytes.to_vec());
            }
            true
        })?;
    }
    Ok(frames)
}

/// Puts frames onto the wire as they are.
fn send(wire: &Wire, frames: &[Vec<u8>]) -> Result<()> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/raw-frames");
    let mut args = vec![program.to_owned(), Wire::SENDER.to_owned()];
    args.extend(
        frames
            .iter()
            .map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    wire.sender.run("python3", &args).map(drop)
}

/// Waits until the ledger has so many frames received.
fn await_received(store: &Path, frames: u64) -> Result<()> {
    await_until("frames in the ledger", || {
        Ok((Account::of(store)?.received >= frames).then_some(()))
    })
}

#[test]
fn true_canaries_count_and_replayed_forged_and_strange_ones_do_not() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let bird = Bird::new(&wire, &dir.path().join("canary.key"))?;
    let stranger = Bird::new(&wire, &dir.path().join("stranger.key"))?;
    ensure!(bird.public != stranger.public, "two hosts, two keys");
    let args = ["--canary", &bird.public, "--ledger-interval", "100ms"];
    let program = sensor::capture(&wire, &store, &args)?;
    bird.start(&wire, &["--count", "5"])?.wait()?.success()?;
    await_until("five canaries", || Ok((counted(&store)?.0 == 5).then_some(())))?;

    let true_ones = recorded(&store)?;
    ensure!(true_ones.len() == 5, "every frame is recorded: {}", true_ones.len());
    ensure!(true_ones.iter().all(|frame| frame.len() == 110), "{true_ones:?}");
    // Again, in both orders.
    let mut replayed = true_ones.clone();
    replayed.reverse();
    replayed.extend(true_ones.clone());
    send(&wire, &replayed)?;
    // Changed in every byte behind the EtherType, one at a time: among others a newer time, and a
    // higher counter.
    let forged: Vec<Vec<u8>> = (14..110)
        .map(|place| {
            let mut frame = true_ones[4].clone();
            frame[place] ^= 0x01;
            frame
        })
        .collect();
    for frames in forged.chunks(8) {
        send(&wire, frames)?;
    }
    stranger.start(&wire, &["--count", "3"])?.wait()?.success()?;
    await_received(&store, 5 + 10 + 96 + 3)?;
    let ended = program.interrupt()?;
    ensure!(ended.stderr.contains("did not count"), "{}", ended.stderr);
    ended.success()?;
    let (frames, keys) = counted(&store)?;
    ensure!(frames == 5, "{frames} canaries counted");
    ensure!(keys == [bird.public.clone()], "{keys:?}");
    ensure!(said(&store)?.contains("did not count"), "{}", said(&store)?);
    let policy = sensor::ledger(&store)?[0]["notes"].to_string();
    ensure!(policy.contains(&bird.public), "the policy names it: {policy}");
    Account::of(&store)?.balances()
}

#[test]
fn where_a_canary_is_required_nothing_else_ends_silence() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let bird = Bird::new(&wire, &dir.path().join("canary.key"))?;
    let mut args = vec!["--canary", &bird.public, "--canary-required", "--silence-limit", "1s"];
    args.extend(["--ledger-interval", "100ms"]);
    let mut program = sensor::capture(&wire, &store, &args)?;
    bird.start(&wire, &["--count", "1"])?.wait()?.success()?;
    program.await_stderr("is silent: no canary")?;
    // A frame of anybody's, and the canary once more.
    let old = recorded(&store)?;
    ensure!(old.len() == 1, "{}", old.len());
    let mut anybody = old[0].clone();
    anybody[12..14].copy_from_slice(&[0x08, 0x06]);
    send(&wire, &[anybody, old[0].clone()])?;
    await_received(&store, 3)?;
    let told = program.stderr()?;
    ensure!(!told.contains("silent no longer"), "{told}");
    let singing = bird.start(&wire, &[])?;
    program.await_stderr("is silent no longer")?;
    singing.interrupt()?.success()?;
    program.interrupt()?.success()?;
    let blind = sensor::ledger(&store)?.iter().any(|line| {
        let causes = line["blind"].as_array().into_iter().flatten();
        causes.into_iter().any(|blind| blind["cause"] == "silent" && blind["iface"] == Wire::SENSOR)
    });
    ensure!(blind, "it stands in the ledger");
    Ok(())
}

#[test]
fn a_canary_goes_on_over_a_link_that_was_down() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let bird = Bird::new(&wire, &dir.path().join("canary.key"))?;
    let mut singing = bird.start(&wire, &[])?;
    singing.await_stderr("the sensor counts it with")?;
    wire.sender.run("ip", &["link", "set", Wire::SENDER, "down"])?;
    singing.await_stderr("no canary leaves")?;
    wire.sender.run("ip", &["link", "set", Wire::SENDER, "up"])?;
    singing.await_stderr("again")?;
    singing.interrupt()?.success()?;
    Ok(())
}
