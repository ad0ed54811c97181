//! What a reader can know about a ledger that somebody may have changed.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use capture_flow::time::Nanos;
use capture_store::key::SecretKey;
use capture_store::ledger::{BreakKind, Chain, LedgerLine, LedgerWriter, Note, read_chained};
use capture_store::signed::Signature;
use capture_store::store::Identity;
use capture_store::{OpenError, OwnedStore, RunId, Store};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400 * SECOND;
const START: i64 = 1_170_374_400 * SECOND; // 2007-02-02T00:00:00Z

/// Three runs over two days, the last one a replay of the day before.
fn written(dir: &Path) -> (Store, Vec<PathBuf>) {
    let path = dir.join("store");
    let starts = [START, START + DAY, START - DAY];
    for (run, start) in (0..).zip(starts) {
        let store = OwnedStore::open_or_create(&path, Some("test")).unwrap();
        let mut writer = LedgerWriter::open(&store).unwrap();
        let id = RunId::parse(&format!("20070202T000000Z-0000000{run}")).unwrap();
        for interval in 0..5 {
            let from = start + interval * SECOND;
            let (from, to) = (Nanos(from), Nanos(from + SECOND));
            let mut line = LedgerLine::new("test", &id, interval as u64, from, to);
            if interval == 4 {
                line.notes.push(Note::CleanStop);
            }
            writer.append(&mut line).unwrap();
        }
    }
    let store = Store::open(&path).unwrap();
    let files = capture_store::ledger::day_files(&store).unwrap();
    assert_eq!(files.len(), 3);
    (store, files)
}

fn chain(store: &Store, from: i64) -> Chain {
    read_chained(store, None, Nanos(from), Nanos(from), Nanos::MAX).unwrap().1
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn write(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

#[test]
fn a_chain_that_nobody_touched_is_valid_from_any_moment_on() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = written(dir.path());
    for from in [i64::MIN, START - DAY, START, START + DAY] {
        let chain = chain(&store, from);
        assert_eq!((chain.as_str(), &chain.breaks[..]), ("valid", &[][..]), "from {from}");
        assert_eq!(chain.holes, []);
        assert_eq!(chain.unsigned, 0);
        let head = chain.head.unwrap();
        assert_eq!(head.signature, Signature::Valid);
        assert!(head.clean);
    }
    // The last line written lies in the first file.
    assert_eq!(chain(&store, i64::MIN).head.unwrap().seq, 14);
}

#[test]
fn whatever_is_done_to_a_line_breaks_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = written(dir.path());
    let day = &files[1];
    let whole = lines(day);
    // The first lines of a window may have been written over one by one as well.
    let broken = |what: &str| {
        let chain = chain(&store, i64::MIN);
        assert!(!chain.is_valid(), "{what} goes unnoticed");
        assert!(!chain.breaks[0].why.is_empty());
    };
    for number in 0..whole.len() {
        let mut changed = whole.clone();
        changed[number] = changed[number].replace("\"interval\":", "\"interval\":1");
        write(day, &changed);
        broken("a change");

        let mut changed = whole.clone();
        changed.remove(number);
        write(day, &changed);
        broken("a deletion");

        let mut changed = whole.clone();
        changed.insert(number, whole[number].clone());
        write(day, &changed);
        broken("a repetition");
    }
    // Exchanging whole lines changes nothing that they say, but their order is `verify`'s to tell.
    let mut changed = whole.clone();
    changed.swap(1, 3);
    write(day, &changed);
    assert!(chain(&store, i64::MIN).is_valid());

    let end = files[0].clone();
    let last = lines(&end);
    write(&end, &last[..3]);
    write(day, &whole);
    let head = chain(&store, i64::MIN).head.unwrap();
    assert_eq!((head.seq, head.clean), (12, false), "a cut-off end has no clean stop");
}

#[test]
fn a_forgery_by_another_key_and_lines_without_signature_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = written(dir.path());
    let other = SecretKey::ephemeral().unwrap().public();
    let (_, chain) =
        read_chained(&store, Some(&other), Nanos::MIN, Nanos::MIN, Nanos::MAX).unwrap();
    assert!(chain.breaks.iter().any(|found| found.kind == BreakKind::Signature));
    assert_eq!(chain.head.unwrap().signature, Signature::Wrong);

    // All signatures off, and the links made anew: whoever can write can do that.
    let mut prev = "0".repeat(64);
    let mut all: Vec<(PathBuf, LedgerLine)> = Vec::new();
    for file in &files {
        all.extend(
            lines(file).iter().map(|text| (file.clone(), serde_json::from_str(text).unwrap())),
        );
    }
    all.sort_by_key(|(_, line)| line.seq);
    files.iter().for_each(|file| fs::write(file, "").unwrap());
    for (file, mut line) in all {
        line.sig.clear();
        line.prev.clone_from(&prev);
        let text = serde_json::to_string(&line).unwrap();
        prev = blake3::hash(text.as_bytes()).to_hex().to_string();
        let before = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{before}{text}\n")).unwrap();
    }
    let chain = chain_of(&store);
    assert_eq!(chain.unsigned, 15);
    assert!(chain.breaks.iter().any(|found| found.kind == BreakKind::Unsigned), "{chain:?}");
}

fn chain_of(store: &Store) -> Chain {
    chain(store, i64::MIN)
}

#[test]
fn a_last_line_changed_between_runs_is_known_although_the_next_run_links_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = written(dir.path());
    let mut day = lines(&files[0]);
    let last = day.len() - 1;
    day[last] = day[last].replace("\"sessions\":0", "\"sessions\":1").replace("test", "tesT");
    write(&files[0], &day);
    let owned = OwnedStore::open_or_create(store.layout().root(), None).unwrap();
    let run = RunId::parse("20070203T000000Z-00000009").unwrap();
    let mut next = LedgerLine::new("test", &run, 0, Nanos(START), Nanos(START + 1));
    LedgerWriter::open(&owned).unwrap().append(&mut next).unwrap();
    let said =
        next.notes.iter().any(|note| matches!(note, Note::Said { text } if text.contains("14")));
    assert!(said, "the sensor itself tells: {:?}", next.notes);
    let chain = chain_of(&store);
    let found: Vec<_> = chain.breaks.iter().map(|found| (found.kind, found.seq)).collect();
    assert_eq!(found, [(BreakKind::Signature, 14)]);
}

#[test]
fn a_store_without_a_key_gets_one_and_its_old_lines_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = written(dir.path());
    // As an older Stillwire left it.
    let root = store.layout().root().to_owned();
    fs::remove_file(store.layout().key()).unwrap();
    let mut identity: Identity =
        serde_json::from_slice(&fs::read(store.layout().identity()).unwrap()).unwrap();
    identity.public_key = None;
    fs::write(store.layout().identity(), serde_json::to_vec(&identity).unwrap()).unwrap();
    for file in &files {
        fs::remove_file(file).unwrap();
    }
    let run = RunId::parse("20070202T000000Z-0000000a").unwrap();
    let mut line = LedgerLine::new("test", &run, 0, Nanos(START), Nanos(START + 1));
    line.prev = "0".repeat(64);
    fs::write(&files[1], format!("{}\n", serde_json::to_string(&line).unwrap())).unwrap();
    let unsigned = Store::open(&root).unwrap();
    assert_eq!(unsigned.identity().public_key(), None);
    let before = chain_of(&unsigned);
    assert_eq!((before.is_valid(), before.unsigned), (true, 1));

    let owned = OwnedStore::open_or_create(&root, None).unwrap();
    assert_eq!(owned.identity().sensor_id, identity.sensor_id);
    let mut line = LedgerLine::new("test", &run, 1, Nanos(START + 1), Nanos(START + 2));
    LedgerWriter::open(&owned).unwrap().append(&mut line).unwrap();
    let now = Store::open(&root).unwrap();
    assert_eq!(now.identity().public_key(), Some(owned.key().public()));
    let chain = chain_of(&now);
    assert_eq!((chain.as_str(), chain.unsigned, chain.lines), ("valid", 1, 2));
}

#[test]
fn a_store_is_not_written_to_without_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = written(dir.path());
    let root = store.layout().root();
    let aside = dir.path().join("elsewhere.key");
    fs::rename(store.layout().key(), &aside).unwrap();
    let error = OwnedStore::open_or_create(root, None).unwrap_err();
    assert!(matches!(error, OpenError::OtherKey { .. }), "{error}");
    assert!(!store.layout().key().exists(), "no key is made in its place");
    let other = dir.path().join("other.key");
    SecretKey::open_or_create(&other).unwrap();
    let error = OwnedStore::open_with_key(root, None, Some(&other)).unwrap_err();
    assert!(matches!(error, OpenError::OtherKey { .. }), "{error}");
    let owned = OwnedStore::open_with_key(root, None, Some(&aside)).unwrap();
    assert_eq!(Some(owned.key().public()), store.identity().public_key());
    assert!(store.is_being_written().unwrap());
    drop(owned);
    assert!(!store.is_being_written().unwrap());
}
