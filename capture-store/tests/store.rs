//! Who may open a store, and what a store refuses.
#![expect(clippy::unwrap_used, reason = "helpers of tests, too, fail by panicking")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use capture_flow::frame::LinkType;
use capture_flow::time::Nanos;
use capture_store::segment::{PrepareError, SegmentSpec, prepare};
use capture_store::{OpenError, OwnedStore, Purpose, RunId, Store};

#[test]
fn a_new_store_keeps_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/store");
    let made = OwnedStore::open_or_create(&path, Some("edge 1")).unwrap();
    let identity = made.identity().clone();
    assert_eq!(identity.sensor, "edge 1");
    assert!(!made.recovery().was_unclean());
    // Reading needs no lock.
    assert_eq!(Store::open(&path).unwrap().identity(), &identity);
    drop(made);
    let again = OwnedStore::open_or_create(&path, None).unwrap();
    assert_eq!(again.identity(), &identity);
    let mode = |name: &str| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("sensor.json"), mode("lock")), (0o640, 0o640));
    assert_eq!((mode("pcap"), mode("sessions/live"), mode("ledger")), (0o750, 0o750, 0o750));
}

#[test]
fn only_one_sensor_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let _held = OwnedStore::open_or_create(&path, None).unwrap();
    match OwnedStore::open_or_create(&path, None) {
        Err(OpenError::InUse { holder, .. }) => {
            assert!(holder.contains(&format!("pid {}", std::process::id())), "{holder}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sensor_does_not_write_into_another_ones_store() {
    let dir = tempfile::tempdir().unwrap();
    drop(OwnedStore::open_or_create(&dir.path().join("s"), Some("one")).unwrap());
    let error = OwnedStore::open_or_create(&dir.path().join("s"), Some("two")).unwrap_err();
    assert!(matches!(error, OpenError::OtherSensor { .. }), "{error}");
}

#[test]
fn a_store_serves_the_purpose_that_it_was_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let open =
        |name: &str, purpose| OwnedStore::open_for(&dir.path().join(name), None, None, purpose);
    drop(open("record", Purpose::Record).unwrap());
    drop(open("trial", Purpose::Simulation).unwrap());
    let marked = |name: &str| Store::open(&dir.path().join(name)).unwrap().identity().simulated;
    assert!(!marked("record") && marked("trial"));
    let text = fs::read_to_string(dir.path().join("record/sensor.json")).unwrap();
    assert!(!text.contains("simulated"), "{text}");

    let error = open("record", Purpose::Simulation).unwrap_err();
    assert!(matches!(error, OpenError::Record { .. }), "{error}");
    let error = open("trial", Purpose::Record).unwrap_err();
    assert!(matches!(error, OpenError::Simulated { .. }), "{error}");
    drop(open("trial", Purpose::Simulation).unwrap());
    drop(open("record", Purpose::Record).unwrap());
}

fn both(path: &Path) -> [OpenError; 2] {
    [Store::open(path).unwrap_err(), OwnedStore::open_or_create(path, None).unwrap_err()]
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open(&dir.path().join("missing")), Err(OpenError::NotAStore { .. })));
    fs::write(dir.path().join("thesis.tex"), b"x").unwrap();
    for error in both(dir.path()) {
        assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    for content in ["", "{", "[]", "{\"format\":\"x\",\"format_version\":1}", "\u{1}"] {
        let path = dir.path().join("damaged");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("sensor.json"), content).unwrap();
        for error in both(&path) {
            assert!(matches!(error, OpenError::NotAStore { .. }), "{content:?}: {error}");
        }
    }
}

#[test]
fn a_newer_format_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let newer = r#"{"format":"stillwire-store","format_version":2,"quantum":true}"#;
    fs::write(dir.path().join("sensor.json"), newer).unwrap();
    for error in both(dir.path()) {
        assert!(matches!(error, OpenError::NewerFormat { found: 2, .. }), "{error}");
    }
}

#[test]
fn runs_sort_by_time_and_hostile_names_are_none() {
    let early = RunId::new(Nanos(1_170_397_500_000_000_000)).unwrap();
    let late = RunId::new(Nanos(1_170_397_501_000_000_000)).unwrap();
    assert!(early.as_str().starts_with("20070202T062500Z-"), "{early}");
    assert!(early < late);
    assert_eq!(RunId::parse(early.as_str()), Some(early));
    for text in ["", "../x", "a/b", "a.b", "ü", &"x".repeat(65)] {
        assert_eq!(RunId::parse(text), None, "{text:?}");
    }
}

#[test]
fn a_segment_that_cannot_be_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let spec = SegmentSpec::new(0, 1 << 20, LinkType::ETHERNET);
    for bad in [
        SegmentSpec { bytes: 0, ..spec },
        SegmentSpec { bytes: 1 << 32, ..spec },
        SegmentSpec { journal_bytes: 0, ..spec },
        SegmentSpec { snaplen: 0, ..spec },
    ] {
        assert!(matches!(prepare(dir.path(), 1, &bad), Err(PrepareError::Spec(_))));
    }
    assert!(prepare(&dir.path().join("missing"), 1, &spec).is_err());
    let first = prepare(dir.path(), 1, &spec).unwrap();
    // The place is taken: what is there is not touched.
    assert!(matches!(prepare(dir.path(), 1, &spec), Err(PrepareError::Io { .. })));
    drop(first);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Everything below a directory, by name.
fn all_below(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        names.push(entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            names.extend(all_below(&entry.path()));
        }
    }
    names
}

#[test]
fn a_store_made_for_nothing_goes_again() {
    let dir = tempfile::tempdir().unwrap();
    // With the directories above it, which were made for it as well.
    let path = dir.path().join("a/b/store");
    let store = OwnedStore::open_or_create(&path, None).unwrap();
    store.next_sequence(3).unwrap();
    store.remove_if_unused();
    drop(store);
    assert_eq!(all_below(dir.path()), [""; 0]);
    // A directory that was there stays, with what else is in it.
    fs::create_dir_all(path.join("lost+found")).unwrap();
    OwnedStore::open_or_create(&path, None).unwrap().remove_if_unused();
    assert_eq!(all_below(&path), ["lost+found"]);
}

#[test]
fn a_store_that_holds_something_or_was_there_before_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(OwnedStore::open_or_create(&path, None).unwrap());
    let before = all_below(&path);
    OwnedStore::open_or_create(&path, None).unwrap().remove_if_unused();
    assert_eq!(all_below(&path), before);

    let path = dir.path().join("used");
    let store = OwnedStore::open_or_create(&path, None).unwrap();
    store.next_sequence(0).unwrap();
    fs::write(store.layout().worker(0).join("00000000000000000001.pcap"), b"frames").unwrap();
    let before = all_below(&path);
    store.remove_if_unused();
    assert_eq!(all_below(&path), before);
}

#[test]
fn an_opening_that_fails_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Below a file no directory can be made.
    fs::write(dir.path().join("file"), b"x").unwrap();
    assert!(OwnedStore::open_or_create(&dir.path().join("file/store"), None).is_err());
    // A name that is too long, below one that can be made.
    let path = dir.path().join("a").join("x".repeat(300));
    assert!(OwnedStore::open_or_create(&path, None).is_err());
    assert_eq!(all_below(dir.path()), ["file"]);
}

#[test]
fn a_store_that_is_in_use_is_not_removed_by_who_cannot_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let held = OwnedStore::open_or_create(&path, None).unwrap();
    let before = all_below(&path);
    assert!(OwnedStore::open_or_create(&path, None).is_err());
    assert_eq!(all_below(&path), before);
    drop(held);
}
