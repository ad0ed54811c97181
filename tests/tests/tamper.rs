//! Somebody with write access to a store, but without its key: whatever is done to it, `stillwire
//! verify` finds it, and an untouched store is whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use capture_cli::verify::{KeySource, Kind, Options, Report, verify_path};
use capture_store::ledger::{LedgerLine, Note};
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Wire, outside, sensor};

/// Captures that together take little: several runs, days of the ledger, segments and session
/// files.
const TRACES: [&str; 4] = [
    "wikipedia.pcap",
    "ssh__ssh.server-side-half-duplex.pcap",
    "tunnels__Teredo.pcap",
    "ftp__ipv6.pcap",
];

/// Where the captures are.
fn traces() -> Result<PathBuf> {
    let root = std::env::var_os("STILLWIRE_TRACES").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/traces")),
        PathBuf::from,
    );
    let captures = root.join("zeek");
    ensure!(captures.is_dir(), "no captures in {}: set STILLWIRE_TRACES", captures.display());
    Ok(captures)
}

/// A replayed store and what was in it.
struct Lab {
    dir: tempfile::TempDir,
    store: PathBuf,
    pristine: PathBuf,
    options: Options,
}

impl Lab {
    /// Replays the traces, each in a run of its own.
    fn new() -> Result<Self> {
        let dir = sensor::store_dir()?;
        let store = dir.path().join("store");
        for trace in TRACES {
            let file = traces()?.join(trace);
            let ended = sensor::stillwired(&[
                "replay",
                "--quiet",
                "--segment-size",
                "1MiB",
                "--anchor",
                &dir.path().join("anchor").to_string_lossy(),
                "--store",
                &store.to_string_lossy(),
                &file.to_string_lossy(),
            ])?;
            ended.success().with_context(|| format!("replaying {}", file.display()))?;
        }
        let pristine = dir.path().join("pristine");
        copy(&store, &pristine)?;
        Ok(Self { dir, store, pristine, options: Options::default() })
    }

    /// The same, with what was kept elsewhere.
    fn with_anchor(&self) -> Result<Report> {
        let anchors = vec![self.dir.path().join("anchor")];
        verify_path(&self.store, &Options { anchors, ..Options::default() })
    }

    fn verify(&self) -> Result<Report> {
        verify_path(&self.store, &self.options)
    }

    /// Files of the store with these endings, relative to it.
    fn files(&self, endings: &[&str]) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for ending in endings {
            for file in outside::files(&self.store, ending)? {
                found.push(file.strip_prefix(&self.store)?.to_owned());
            }
        }
        Ok(found)
    }

    /// Puts one file back as it was.
    fn restore(&self, file: &Path) -> Result<()> {
        let (from, to) = (self.pristine.join(file), self.store.join(file));
        fs::write(to, fs::read(from)?)?;
        Ok(())
    }

    /// Puts everything back as it was.
    fn restore_all(&self) -> Result<()> {
        fs::remove_dir_all(&self.store)?;
        copy(&self.pristine, &self.store)
    }

    /// Something was done: it must be found, and the finding must say where and what.
    fn must_find(&self, what: &str) -> Result<Vec<Kind>> {
        let report = self.verify()?;
        ensure!(!report.is_whole(), "unnoticed: {what}");
        for finding in &report.findings.listed {
            ensure!(!finding.place.is_empty() && !finding.what.is_empty(), "{what}: {finding:?}");
        }
        Ok(report.findings.listed.iter().map(|finding| finding.kind).collect())
    }

    fn must_be_whole(&self, what: &str) -> Result<()> {
        let report = self.verify()?;
        ensure!(report.is_whole(), "{what}: {:?}", report.findings);
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Random numbers that come again (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let value = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        (value >> 33) as usize % bound.max(1)
    }
}

/// Everything that the ledger vouches for.
const VOUCHED: [&str; 5] = ["ndjson", "pcap", "idx", "parquet", "json"];

#[test]
fn no_changed_byte_and_no_cut_goes_unnoticed() -> Result<()> {
    const CHANGES: usize = 3000;
    const CUTS: usize = 400;
    let lab = Lab::new()?;
    lab.must_be_whole("untouched")?;
    let files = lab.files(&VOUCHED)?;
    ensure!(files.len() > 25, "a store with some of everything: {files:?}");
    let mut random = Random(0x5111_1e57_ed00_0001);
    for number in 0..CHANGES {
        let file = &files[number % files.len()];
        let mut content = fs::read(lab.pristine.join(file))?;
        let at = random.below(content.len());
        let xor = 1 + random.below(255) as u8;
        content[at] ^= xor;
        fs::write(lab.store.join(file), &content)?;
        lab.must_find(&format!("byte {at} of {} xor {xor}", file.display()))?;
        lab.restore(file)?;
    }
    for number in 0..CUTS {
        let file = &files[number % files.len()];
        let content = fs::read(lab.pristine.join(file))?;
        // The last byte, too: often it is a line's end.
        let left =
            if number < files.len() { content.len() - 1 } else { random.below(content.len()) };
        fs::write(lab.store.join(file), &content[..left])?;
        lab.must_find(&format!("{} cut to {left} bytes", file.display()))?;
        lab.restore(file)?;
    }
    lab.must_be_whole("everything put back")
}

#[test]
fn no_file_is_removed_added_renamed_or_exchanged_unnoticed() -> Result<()> {
    let lab = Lab::new()?;
    let files = lab.files(&VOUCHED)?;
    for file in &files {
        let name = file.display();
        fs::remove_file(lab.store.join(file))?;
        match lab.verify() {
            // Without sensor.json it is no store any more.
            Err(_) => ensure!(file.ends_with("sensor.json"), "{name}"),
            Ok(report) => ensure!(!report.is_whole(), "unnoticed: {name} removed"),
        }
        fs::write(lab.store.join(file), b"")?;
        lab.must_find(&format!("{name} emptied"))?;
        lab.restore(file)?;
        if !file.ends_with("sensor.json") {
            let mut content = fs::read(lab.store.join(file))?;
            content.push(b'\n');
            fs::write(lab.store.join(file), content)?;
            lab.must_find(&format!("{name} grown by a byte"))?;
            lab.restore(file)?;
        }
    }
    // Each with the next one of its kind.
    for ending in ["ndjson", "pcap", "idx", "parquet"] {
        let alike = lab.files(&[ending])?;
        for pair in alike.windows(2) {
            let [one, other] = [&pair[0], &pair[1]];
            fs::copy(lab.pristine.join(one), lab.store.join(other))?;
            fs::copy(lab.pristine.join(other), lab.store.join(one))?;
            let what = format!("{} and {} exchanged", one.display(), other.display());
            // Files of equal content are the same file.
            if fs::read(lab.pristine.join(one))? != fs::read(lab.pristine.join(other))? {
                lab.must_find(&what)?;
            }
            lab.restore(one)?;
            lab.restore(other)?;
        }
        // Planted beside the true ones, under names that a sensor could give.
        let first = &alike[0];
        let name = first.file_name().context("a name")?.to_string_lossy().into_owned();
        let planted = match ending {
            "parquet" => name.replace("-000000.", "-000099."),
            "ndjson" => "date=2030-01-01.ndjson".to_owned(),
            _ => name.replace("00001.", "00099."),
        };
        ensure!(planted != name, "{name}");
        let planted = lab.store.join(first).with_file_name(planted);
        fs::copy(lab.pristine.join(first), &planted)?;
        lab.must_find(&format!("{} planted", planted.display()))?;
        fs::remove_file(&planted)?;
    }
    for planted in [
        "sessions/live/20990101T000000Z-00000000-000000.arrows",
        "pcap/w00/00000000000000000099.idx.open",
        "pcap/w00/00000000000000000001.damaged",
        "pcap/w00/notes.txt",
        "pcap/w99/00000000000000000001.pcap",
        "ledger/sensor=other/date=2020-01-01.ndjson",
    ] {
        let path = lab.store.join(planted);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        fs::write(&path, b"x")?;
        lab.must_find(&format!("{planted} planted"))?;
        lab.restore_all()?;
    }
    // A link to a true copy, and something that is no file at all.
    let victim = lab.store.join(&lab.files(&["parquet"])?[0]);
    fs::remove_file(&victim)?;
    std::os::unix::fs::symlink(lab.pristine.join("sensor.json"), &victim)?;
    lab.must_find("a link in a file's place")?;
    fs::remove_file(&victim)?;
    fs::create_dir(&victim)?;
    lab.must_find("a directory in a file's place")?;
    lab.restore_all()?;
    lab.must_be_whole("everything put back")
}

/// The ledger's lines, each with its file.
fn lines(store: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut lines = Vec::new();
    for file in outside::files(&store.join("ledger"), "ndjson")? {
        let content = fs::read(&file)?;
        let texts = content.split_inclusive(|byte| *byte == b'\n');
        lines.extend(texts.map(|text| (file.clone(), text.to_vec())));
    }
    Ok(lines)
}

fn write_lines(store: &Path, lines: &[(PathBuf, Vec<u8>)]) -> Result<()> {
    for file in outside::files(&store.join("ledger"), "ndjson")? {
        fs::remove_file(file)?;
    }
    for file in lines.iter().map(|(file, _)| file).collect::<std::collections::BTreeSet<_>>() {
        let texts = lines.iter().filter(|(of, _)| of == file).map(|(_, text)| &text[..]);
        fs::write(file, texts.collect::<Vec<_>>().concat())?;
    }
    Ok(())
}

#[test]
fn no_line_is_removed_moved_repeated_or_forged_unnoticed() -> Result<()> {
    let lab = Lab::new()?;
    let whole = lines(&lab.store)?;
    ensure!(whole.len() >= 15, "{} lines", whole.len());
    let attempt = |what: &str, changed: &[(PathBuf, Vec<u8>)]| -> Result<Vec<Kind>> {
        write_lines(&lab.store, changed)?;
        lab.must_find(what)
    };
    for first in 0..whole.len() {
        let mut changed = whole.clone();
        changed.remove(first);
        attempt(&format!("line {first} removed"), &changed)?;
        let mut changed = whole.clone();
        let mut again = whole[first].1.clone();
        changed[first].1.append(&mut again);
        attempt(&format!("line {first} repeated"), &changed)?;
        let mut changed = whole.clone();
        changed[first].1.insert(0, b'\n');
        attempt(&format!("an empty line before line {first}"), &changed)?;
        for second in first + 1..whole.len() {
            let mut changed = whole.clone();
            let (one, other) = (whole[first].1.clone(), whole[second].1.clone());
            (changed[first].1, changed[second].1) = (other, one);
            attempt(&format!("lines {first} and {second} exchanged"), &changed)?;
        }
    }
    // The signature off a line, off all lines, and all of it signed anew by another key.
    let unsigned = |text: &[u8]| -> Result<Vec<u8>> {
        let mut line: LedgerLine = serde_json::from_slice(text)?;
        line.sig.clear();
        Ok([&serde_json::to_vec(&line)?[..], b"\n"].concat())
    };
    for place in 0..whole.len() {
        let mut changed = whole.clone();
        changed[place].1 = unsigned(&whole[place].1)?;
        attempt(&format!("line {place} without its signature"), &changed)?;
    }
    let mut changed = whole.clone();
    for (_, text) in &mut changed {
        *text = unsigned(text)?;
    }
    let kinds = attempt("no line with a signature", &changed)?;
    ensure!(kinds.contains(&Kind::Signature), "{kinds:?}");
    // Even if the store does not name a key any more.
    let mut identity: serde_json::Value =
        serde_json::from_slice(&fs::read(lab.store.join("sensor.json"))?)?;
    identity.as_object_mut().context("an object")?.remove("public_key");
    fs::write(lab.store.join("sensor.json"), serde_json::to_vec(&identity)?)?;
    let kinds = lab.must_find("no signature and no key")?;
    ensure!(kinds.contains(&Kind::Key), "{kinds:?}");
    lab.restore_all()?;
    lab.must_be_whole("everything put back")
}

/// One more run over a store that somebody prepared, by the sensor itself.
fn run_again(store: &Path) -> Result<()> {
    let trace = traces()?.join(TRACES[0]);
    let (store, trace) = (store.to_string_lossy(), trace.to_string_lossy());
    let args = ["replay", "--quiet", "--segment-size", "1MiB", "--store", &store, &trace];
    sensor::stillwired(&args)?.success().map(drop)
}

/// Whoever prepares a store so that the next start takes something for its own work would have it
/// signed: the sensor believes nothing that it did not sign, and what a recovery signs anew shows.
#[test]
fn no_forgery_is_laundered_by_the_next_run() -> Result<()> {
    let lab = Lab::new()?;
    let first = |ending: &str| -> Result<PathBuf> {
        lab.files(&[ending])?.into_iter().next().context("there is one")
    };
    let (pcap, idx, parquet) = (first("pcap")?, first("idx")?, first("parquet")?);
    let path = |file: &Path| lab.store.join(file);
    let change = |file: &Path| -> Result<()> {
        let mut content = fs::read(path(file))?;
        // The last bytes of a packet, well behind any header.
        let at = content.len() - 3;
        content[at] ^= 0xff;
        Ok(fs::write(path(file), content)?)
    };
    run_again(&lab.store)?;
    lab.must_be_whole("one more run")?;
    lab.restore_all()?;

    // A journal beside a sealed segment: it looks as if its sealing had been killed.
    change(&pcap)?;
    fs::write(path(&pcap.with_extension("idx.open")), b"")?;
    run_again(&lab.store)?;
    lab.must_find("a changed segment with a journal beside it")?;
    lab.restore_all()?;
    // Without its index it looks as if it had not been sealed at all.
    change(&pcap)?;
    fs::remove_file(path(&idx))?;
    run_again(&lab.store)?;
    lab.must_find("a changed segment without its index")?;
    lab.restore_all()?;
    // A segment of a run that never was.
    let planted = pcap.with_file_name("00000000000000000099.pcap");
    fs::copy(path(&pcap), path(&planted))?;
    run_again(&lab.store)?;
    let kinds = lab.must_find("a planted segment, sealed by the recovery")?;
    ensure!(kinds.contains(&Kind::LeftOpen), "{kinds:?}");
    lab.restore_all()?;
    let planted_index = planted.with_extension("idx");
    fs::copy(path(&pcap), path(&planted))?;
    fs::copy(path(&idx), path(&planted_index))?;
    run_again(&lab.store)?;
    lab.must_find("a planted segment with an index")?;
    lab.restore_all()?;
    // An open tail under the name of a sealed file: it looks like a sealing that was killed.
    let stem = parquet.file_stem().context("a name")?.to_string_lossy().into_owned();
    let other = lab.files(&["parquet"])?.into_iter().nth(1).context("another one")?;
    fs::copy(path(&other), path(&parquet))?;
    fs::write(lab.store.join(format!("sessions/live/{stem}.arrows")), b"")?;
    run_again(&lab.store)?;
    lab.must_find("a replaced session file with an open tail beside it")?;
    lab.restore_all()?;

    // Notes that wait for the next line, written by somebody else.
    let note = |kind: &str, file: &Path| {
        serde_json::json!({
            "note": kind, "path": file, "bytes": 1, "blake3": "00".repeat(32), "items": 1,
            "first_ts": "2007-02-02T06:25:00Z", "last_ts": "2007-02-02T06:25:00Z",
        })
    };
    for owed in [
        note("retired", &parquet).to_string(),
        serde_json::json!({ "owed": note("retired", &parquet) }).to_string(),
        serde_json::json!({ "owed": note("retired", &parquet), "sig": "00".repeat(64) })
            .to_string(),
    ] {
        fs::remove_file(path(&parquet))?;
        fs::write(lab.store.join("ledger/owed.jsonl"), format!("{owed}\n"))?;
        run_again(&lab.store)?;
        let kinds = lab.must_find("a session file that a forged note calls retired")?;
        ensure!(kinds.contains(&Kind::FileMissing), "{kinds:?}");
        lab.restore_all()?;
    }
    lab.must_be_whole("everything put back")
}

/// What nobody can see in the store itself: the last run is gone, with everything that it wrote.
fn cut_last_run(store: &Path) -> Result<()> {
    let parse = |text: &[u8]| serde_json::from_slice::<LedgerLine>(text);
    let mut left = Vec::new();
    let all = lines(store)?;
    let mut runs = Vec::new();
    for (_, text) in &all {
        let line = parse(text)?;
        runs.push((line.seq, line.run));
    }
    let last = runs.iter().max_by_key(|(seq, _)| *seq).context("a line")?.1.clone();
    for (file, text) in all {
        let line = parse(&text)?;
        if line.run != last {
            left.push((file, text));
            continue;
        }
        for note in &line.notes {
            if let Note::Sealed(sealed) = note {
                fs::remove_file(store.join(&sealed.path))?;
            }
        }
    }
    write_lines(store, &left)
}

#[test]
fn what_was_cut_off_or_replaced_as_a_whole_shows_with_an_anchor() -> Result<()> {
    let lab = Lab::new()?;
    let whole = lab.with_anchor()?;
    ensure!(whole.is_whole(), "{:?}", whole.findings);
    ensure!(whole.anchors[0].anchors as usize >= 2 * TRACES.len(), "{:?}", whole.anchors);
    let (key, source) = whole.key.clone().context("a key")?;
    ensure!(source == KeySource::Anchor);
    let head = whole.head.context("a head")?;
    ensure!(whole.anchors[0].last_seq == Some(head.seq), "the last line is anchored");

    cut_last_run(&lab.store)?;
    lab.must_be_whole("nothing in the store tells that a whole run is missing")?;
    let kinds = |report: &Report| -> Vec<Kind> {
        report.findings.listed.iter().map(|finding| finding.kind).collect()
    };
    let cut = lab.with_anchor()?;
    ensure!(kinds(&cut).contains(&Kind::Anchor), "{:?}", cut.findings);
    // The next run goes on from there, and tells what it finds.
    let anchor = lab.dir.path().join("anchor").to_string_lossy().into_owned();
    let trace = traces()?.join(TRACES[0]).to_string_lossy().into_owned();
    let store = lab.store.to_string_lossy().into_owned();
    let args = ["replay", "--quiet", "--segment-size", "1MiB", "--store", &store];
    sensor::stillwired(&[&args[..], &["--anchor", &anchor, &trace]].concat())?.success()?;
    let said = lines(&lab.store)?.iter().any(|(_, text)| {
        String::from_utf8_lossy(text).contains("the ledger was cut off or replaced")
    });
    ensure!(said, "the sensor itself notices");
    ensure!(!lab.with_anchor()?.is_whole(), "going on does not mend it");

    // Another sensor's store, made to look like this one's.
    fs::remove_dir_all(&lab.store)?;
    run_again(&lab.store)?;
    lab.must_be_whole("a store that was made anew")?;
    let replaced = lab.with_anchor()?;
    ensure!(kinds(&replaced).contains(&Kind::Anchor), "{:?}", replaced.findings);
    let options =
        Options { public_key: capture_store::key::PublicKey::parse(&key), ..Options::default() };
    let replaced = verify_path(&lab.store, &options)?;
    ensure!(kinds(&replaced).contains(&Kind::Key), "{:?}", replaced.findings);
    ensure!(kinds(&replaced).contains(&Kind::Signature), "{:?}", replaced.findings);
    Ok(())
}

#[test]
fn a_store_is_whole_while_its_sensor_runs_and_after_it_was_killed_and_recovered() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let anchor = dir.path().join("anchor");
    let anchored = anchor.to_string_lossy().into_owned();
    let mut args = vec!["--packet-budget", "16MiB", "--segment-size", "1MiB", "--interim", "1s"];
    args.extend(["--ledger-interval", "200ms", "--anchor-interval", "500ms"]);
    args.extend(["--anchor", &anchored]);
    let frames = Frames { count: 0, bytes: 200, flows: 100, pace: Pace::PerSecond(20_000) };
    let options = Options { anchors: vec![anchor], ..Options::default() };
    let _sending = frames.start(&wire)?;
    let mut declared = 0;
    for kill in 1..=3 {
        let mut program = sensor::capture(&wire, &store, &args)?;
        // A thread of its own makes it.
        await_until("an anchor", || Ok(Path::new(&anchored).exists().then_some(())))?;
        // While segments are sealed and the oldest are removed under the reader's eyes.
        await_until("segments that went", || {
            ensure!(program.runs()?, "{}", program.stderr()?);
            let report = verify_path(&store, &options)?;
            ensure!(report.in_use, "its sensor runs");
            ensure!(report.is_whole(), "kill {kill}, running: {:?}", report.findings);
            ensure!(!report.open.is_empty(), "something is always open");
            Ok((report.retired > 2 * kill && report.lines > 5 * kill).then_some(()))
        })?;
        program.kill()?;
        let killed = verify_path(&store, &options)?;
        ensure!(!killed.in_use);
        let kinds: Vec<Kind> = killed.findings.listed.iter().map(|found| found.kind).collect();
        ensure!(kinds == [Kind::End], "kill {kill}, not recovered: {:?}", killed.findings);
        ensure!(!killed.open.is_empty(), "what it had open is listed");

        sensor::capture(&wire, &store, &args)?.interrupt()?.success()?;
        let recovered = verify_path(&store, &options)?;
        ensure!(recovered.is_whole(), "kill {kill}, recovered: {:?}", recovered.findings);
        ensure!(recovered.open.is_empty(), "{:?}", recovered.open);
        ensure!(recovered.declared.len() > declared, "the kill is declared");
        declared = recovered.declared.len();
    }
    Ok(())
}

/// A sensor that was killed with rows in its open tail, and a line that vouches for them; returns
/// the tail.
fn killed_with_open_tail(wire: &Wire, store: &Path) -> Result<PathBuf> {
    let args = ["--interim", "1s", "--ledger-interval", "200ms"];
    let mut program = sensor::capture(wire, store, &args)?;
    let frames = Frames { count: 50, bytes: 200, flows: 50, pace: Pace::Flood };
    frames.send(wire)?;
    let tail = await_until("an open tail in the ledger", || {
        ensure!(program.runs()?, "{}", program.stderr()?);
        let lines = sensor::ledger(store)?;
        let tails = lines.last().and_then(|line| line["tails"].as_array().cloned());
        let path = tails.and_then(|tails| Some(tails.first()?["path"].as_str()?.to_owned()));
        Ok(path)
    })?;
    program.kill()?;
    Ok(store.join(tail))
}

#[test]
fn rows_that_are_not_sealed_yet_are_vouched_for_as_well() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let options = Options::default();
    let kinds = |store: &Path| -> Result<Vec<Kind>> {
        let report = verify_path(store, &options)?;
        Ok(report.findings.listed.iter().map(|finding| finding.kind).collect())
    };
    let recover = |store: &Path| -> Result<()> {
        sensor::capture(&wire, store, &[])?.interrupt()?.success().map(drop)
    };
    let store = dir.path().join("killed");
    let tail = killed_with_open_tail(&wire, &store)?;
    ensure!(kinds(&store)? == [Kind::End], "{:?}", kinds(&store)?);
    let name = tail.strip_prefix(&store)?.to_owned();
    let stem = tail.file_stem().context("a name")?.to_string_lossy().into_owned();

    // What somebody can do to it before the next start seals and signs it.
    type Deed<'a> = (&'a str, Box<dyn Fn(&Path) -> Result<()> + 'a>, Kind);
    let deeds: [Deed<'_>; 3] = [
        (
            "changed",
            Box::new(|tail| {
                let mut content = fs::read(tail)?;
                // An address of a row, in the text of the last batch.
                let at = content.windows(8).rposition(|part| part == b"10.1.0.1");
                content[at.context("an address")? + 7] = b'9';
                Ok(fs::write(tail, content)?)
            }),
            Kind::FileChanged,
        ),
        ("removed", Box::new(|tail| Ok(fs::remove_file(tail)?)), Kind::FileMissing),
        ("emptied", Box::new(|tail| Ok(fs::write(tail, b"")?)), Kind::FileChanged),
    ];
    for (what, deed, kind) in deeds {
        let victim = dir.path().join(what);
        copy(&store, &victim)?;
        deed(&victim.join(&name))?;
        ensure!(kinds(&victim)?.contains(&kind), "{what}: {:?}", kinds(&victim)?);
        recover(&victim)?;
        ensure!(!kinds(&victim)?.is_empty(), "{what}, and recovered");
        let proof = sensor::stillwire_ended(
            &victim,
            &["prove", "host 10.9.9.9", "--from", "-1h", "--to", "now"],
        )?;
        ensure!(proof.code == Some(4), "{what}: nothing is proven: {}", proof.stdout);
    }
    // A sealed file that is not the sensor's, beside the tail: it looks as if its sealing had been
    // killed before the last step.
    let victim = dir.path().join("planted");
    copy(&store, &victim)?;
    let other = dir.path().join("other");
    copy(&store, &other)?;
    recover(&other)?;
    let sealed = outside::parquet(&other)?.into_iter().next().context("a session file")?;
    let mut content = fs::read(&sealed)?;
    content.push(0);
    let planted = victim.join(sealed.strip_prefix(&other)?);
    ensure!(planted.file_stem().is_some_and(|name| name.to_string_lossy() == stem));
    fs::create_dir_all(planted.parent().context("a directory")?)?;
    fs::write(&planted, content)?;
    recover(&victim)?;
    ensure!(kinds(&victim)?.is_empty(), "it is made again from the tail: {:?}", kinds(&victim)?);
    // And all of it left alone.
    recover(&store)?;
    ensure!(kinds(&store)?.is_empty(), "{:?}", kinds(&store)?);
    Ok(())
}

#[test]
fn rows_changed_under_a_running_sensor_are_known_when_it_seals_them() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let args = ["--interim", "1s", "--ledger-interval", "200ms"];
    let program = sensor::capture(&wire, &store, &args)?;
    let frames = Frames { count: 50, bytes: 200, flows: 50, pace: Pace::Flood };
    frames.send(&wire)?;
    let tail = await_until("an open tail", || {
        Ok(outside::files(&store.join("sessions/live"), "arrows")?.into_iter().next())
    })?;
    let content = await_until("rows in it", || {
        let content = fs::read(&tail)?;
        Ok(content.windows(8).any(|part| part == b"10.1.0.1").then_some(content))
    })?;
    let at = content.windows(8).position(|part| part == b"10.1.0.1").context("an address")?;
    let open = fs::File::options().write(true).open(&tail)?;
    std::os::unix::fs::FileExt::write_all_at(&open, b"9", at as u64 + 7)?;
    await_until("a line that knows the tail", || {
        let report = verify_path(&store, &Options::default())?;
        Ok((!report.is_whole()).then_some(()))
    })?;
    program.interrupt()?.success()?;
    let report = verify_path(&store, &Options::default())?;
    let kinds: Vec<Kind> = report.findings.listed.iter().map(|finding| finding.kind).collect();
    ensure!(kinds == [Kind::FileChanged], "{:?}", report.findings);
    Ok(())
}
