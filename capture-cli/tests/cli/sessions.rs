//! `stillwire sessions` on a store of a test's own.

use std::io::Read as _;
use std::process::Stdio;

use crate::support::{self, Sensor, arp, at, errors, icmp, stillwire, tcp, text, tls};
use capture_flow::key::Protocol;
use capture_flow::record::{ConnState, RowReason, SessionRecord};

fn sensor(dir: &tempfile::TempDir) -> Sensor {
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(tcp("192.0.2.7", 22), &[(0, at(1000)), (0, at(3500))]);
    sensor.session(tls("2001:db8::5", "www.example.org"), &[(0, at(500)), (0, at(900))]);
    sensor.session(icmp("192.0.2.9"), &[(0, at(2000))]);
    sensor.session(arp(), &[(0, at(100))]);
    sensor.commit();
    sensor
}

fn column(ndjson: &str, name: &str) -> Vec<serde_json::Value> {
    ndjson
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")[name].clone())
        .collect()
}

#[test]
fn every_format_lists_the_sessions_in_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = sensor(&dir);
    // From the open tail first, then from Parquet: the same.
    for sealed in [false, true] {
        if sealed {
            sensor.seal_sessions();
        }
        let ndjson = text(&sensor.ask(&["sessions", "--format", "ndjson"]));
        assert_eq!(column(&ndjson, "proto"), ["arp", "tcp", "tcp", "icmp"]);
        assert_eq!(column(&ndjson, "ts")[0], "2007-02-02T06:00:00.100000000Z");
        assert_eq!(column(&ndjson, "duration")[2], 2.5);
        assert_eq!(column(&ndjson, "server_name")[1], "www.example.org");
        assert_eq!(column(&ndjson, "pcap_first")[1]["worker"], 0);
        assert_eq!(column(&ndjson, "final")[0], true);

        let json = text(&sensor.ask(&["sessions", "--format", "json"]));
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        let lines: Vec<serde_json::Value> =
            ndjson.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(json.as_array(), Some(&lines));

        let csv = text(&sensor.ask(&["sessions", "--format", "csv"]));
        let mut csv = csv.lines();
        let names: Vec<_> = csv.next().expect("a header").split(',').collect();
        let mut keys: Vec<_> = lines[0].as_object().expect("an object").keys().collect();
        keys.sort();
        let mut sorted = names.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, keys, "the JSON keys are the columns");
        assert_eq!(csv.count(), 4);

        let table = sensor.ask(&["sessions"]);
        let table = text(&table);
        assert_eq!(table.lines().count(), 5);
        assert!(table.contains("[2001:db8::5]:443"), "{table}");
        assert!(!table.contains('\u{1b}'), "no colour in a pipe");
    }
}

#[test]
fn json_keys_are_the_columns_of_the_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let ndjson = text(&sensor(&dir).ask(&["sessions", "--format", "ndjson", "-n", "1"]));
    let object: serde_json::Value = serde_json::from_str(ndjson.trim()).expect("JSON");
    let object = object.as_object().expect("an object");
    for name in capture_store::sessions::column_names() {
        assert!(object.contains_key(&name), "{name}");
    }
    assert_eq!(object.len(), capture_store::sessions::column_names().count());
}

#[test]
fn zeek_formats_are_zeeks() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = sensor(&dir);
    let output = sensor.ask(&["sessions", "--format", "zeek"]);
    assert!(errors(&output).contains("1 sessions left out"), "{}", errors(&output));
    let log = text(&output);
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(
        lines[..5],
        [
            "#separator \\x09",
            "#set_separator\t,",
            "#empty_field\t(empty)",
            "#unset_field\t-",
            "#path\tconn"
        ]
    );
    assert!(lines[5].starts_with("#open\t20"));
    let fields: Vec<&str> = lines[6].split('\t').collect();
    let types: Vec<&str> = lines[7].split('\t').collect();
    assert_eq!(fields[..5], ["#fields", "ts", "uid", "id.orig_h", "id.orig_p"]);
    assert_eq!(types[..5], ["#types", "time", "string", "addr", "port"]);
    assert_eq!(fields.len(), types.len());
    assert!(lines.last().expect("a line").starts_with("#close\t20"));
    let row: Vec<&str> = lines[8].split('\t').collect();
    assert_eq!(row.len() + 1, fields.len());
    let value = |name: &str| row[fields.iter().position(|f| *f == name).expect("a field") - 1];
    assert_eq!(value("ts"), "1170396000.500000");
    assert_eq!(value("service"), "ssl");
    assert_eq!(value("duration"), "0.400000");
    assert_eq!(value("local_orig"), "-");
    assert_eq!(value("conn_state"), "SF");
    assert_eq!(value("ip_proto"), "6");

    let json = text(&sensor.ask(&["sessions", "--format", "zeek-json"]));
    let first: serde_json::Value =
        serde_json::from_str(json.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["ts"], 1_170_396_000.5);
    assert_eq!(first["id.resp_p"], 443);
    assert_eq!(first["service"], "ssl");
    assert!(first.get("local_orig").is_none(), "unset fields are left out");
    assert_eq!(json.lines().count(), 3);
}

#[test]
fn filters_windows_limits_and_orders_select() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = sensor(&dir);
    let ports = |arguments: &[&str]| {
        let mut all = vec!["sessions", "--format", "ndjson"];
        all.extend_from_slice(arguments);
        column(&text(&sensor.ask(&all)), "resp_p")
    };
    assert_eq!(ports(&["tcp", "port", "22"]), [22]);
    assert_eq!(ports(&["host 192.0.2.7 or 2001:db8::5"]), [443, 22]);
    assert_eq!(ports(&["service", "ssl"]), [443]);
    assert_eq!(ports(&["--from", "2007-02-02T06:00:03Z"]), [22], "any overlap counts");
    assert_eq!(ports(&["--from", "00:00", "--to", "now", "host 192.0.2.7"]).len(), 0);
    assert_eq!(ports(&["--to", "1170396000.9", "ip"]), [443]);
    assert_eq!(ports(&["--sort", "-bytes", "tcp", "--limit", "1"]), [443]);
    assert_eq!(ports(&["--sort", "-ts", "tcp"]), [22, 443]);
    let output = sensor.ask(&["sessions", "--limit", "1"]);
    assert!(errors(&output).contains("3 more sessions match"), "{}", errors(&output));
}

#[test]
fn a_session_is_listed_once_by_its_newest_row() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let first = SessionRecord { reason: RowReason::Interim, ..tcp("192.0.2.7", 22) };
    let record = sensor.session(first, &[(0, at(0))]);
    for update in 1..4 {
        // Taken for an SMTP session for a while: what is superseded must not answer.
        let port = if update == 2 { 25 } else { 22 };
        let mut row =
            SessionRecord { update, last_ts: at(i64::from(update) * 60_000), ..record.clone() };
        row.resp.port = port;
        row.resp.pkts = 10 * u64::from(update);
        if update == 3 {
            row.reason = RowReason::Closed;
        }
        sensor.row(&row);
        if update == 2 {
            sensor.commit();
        }
    }
    sensor.commit();
    let ndjson = text(&sensor.ask(&["sessions", "--format", "ndjson"]));
    assert_eq!(column(&ndjson, "update"), [3]);
    assert_eq!(column(&ndjson, "resp_pkts"), [30]);
    assert_eq!(text(&sensor.ask(&["sessions", "port 25", "--format", "ndjson"])), "");
    // Within its life but between its rows.
    let ndjson = text(&sensor.ask(&["sessions", "--from", "06:00:10", "--format", "json"]).clone());
    assert_eq!(ndjson, "[]\n", "today is not 2007");
    let output = sensor.ask(&[
        "sessions",
        "--from",
        "2007-02-02 06:00:10",
        "--to",
        "2007-02-02 06:00:20",
        "--format",
        "ndjson",
    ]);
    assert_eq!(column(&text(&output), "update"), [3]);
}

#[test]
fn what_could_match_is_mentioned_and_listed_on_demand() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(SessionRecord { direction_certain: false, ..tcp("192.0.2.7", 22) }, &[]);
    sensor.commit();
    let output = sensor.ask(&["sessions", "resp host 10.0.0.1", "--format", "ndjson"]);
    assert_eq!(text(&output), "");
    assert!(errors(&output).contains("1 more session could match"), "{}", errors(&output));
    let output =
        sensor.ask(&["sessions", "resp host 10.0.0.1", "--possible", "--format", "ndjson"]);
    assert_eq!(text(&output).lines().count(), 1);
}

#[test]
fn contradicting_fragments_are_a_column_of_ours_and_not_of_zeeks() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(SessionRecord { fragment_overlap: true, ..tcp("192.0.2.7", 22) }, &[]);
    sensor.session(tcp("192.0.2.8", 22), &[]);
    sensor.commit();
    let output = sensor.ask(&["sessions", "--sort", "fragment_overlap", "--format", "ndjson"]);
    assert_eq!(column(&text(&output), "fragment_overlap"), [false, true]);
    for format in ["zeek", "zeek-json"] {
        let output = sensor.ask(&["sessions", "--format", format]);
        assert!(!text(&output).contains("fragment_overlap"), "{format}");
    }
}

#[test]
fn a_running_sensors_answer_says_how_far_it_goes() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    let now = capture_store::time::now().0 / 1_000_000_000 - support::START;
    sensor.line(0, now - 60, now, |line| line.complete_through = Some(at((now - 30) * 1000)));
    let warns = |sensor: &Sensor, arguments: &[&str]| {
        let mut all = vec!["sessions", "--format", "ndjson"];
        all.extend_from_slice(arguments);
        errors(&sensor.ask(&all)).contains("the log is complete through")
    };
    assert!(warns(&sensor, &[]));
    assert!(warns(&sensor, &["--from", "-5m"]));
    assert!(!warns(&sensor, &["--to", "-5m"]), "that time is complete");
    sensor.line(1, now, now + 1, |line| line.notes.push(capture_store::ledger::Note::CleanStop));
    assert!(!warns(&sensor, &[]));
}

#[test]
fn several_stores_are_asked_as_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = sensor(&dir);
    let mut two = Sensor::new(&dir.path().join("two"), "s2");
    two.session(tcp("192.0.2.8", 80), &[(0, at(1500))]);
    two.commit();
    let path = |sensor: &Sensor| sensor.path.to_str().expect("a path").to_owned();
    let (one, two) = (path(&one), path(&two));
    let asked = ["sessions", "-s", &one, "-s", &two, "-s", &one, "--format", "ndjson", "tcp"];
    let ndjson = text(&stillwire(&asked));
    assert_eq!(column(&ndjson, "sensor"), ["s1", "s1", "s2"]);
    // Before the command, or both before and behind it.
    let asked = ["--store", &one, "sessions", "--store", &two, "--format", "ndjson", "tcp"];
    assert_eq!(text(&stillwire(&asked)), ndjson);
    let output = crate::support::command()
        .env("STILLWIRE_STORE", &two)
        .args(["sessions", "--format", "ndjson"])
        .output();
    assert_eq!(text(&output.expect("stillwire runs")).lines().count(), 1);
}

/// A session of frames that announce IPv4 and hold none that can be read.
fn hidden() -> SessionRecord {
    SessionRecord { protocol: Protocol::Ether(0x0800), ..arp() }
}

#[test]
fn sessions_that_could_match_are_counted_wherever_they_lie() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    // Each in a file of its own, so that each could be skipped.
    for record in [hidden(), arp(), tcp("192.0.2.7", 22), tcp("192.0.2.8", 22)] {
        sensor.session(record, &[]);
        sensor.seal_sessions();
    }
    let output = sensor.ask(&["sessions", "--format", "ndjson", "host 192.0.2.7"]);
    assert_eq!(column(&text(&output), "resp_h"), ["192.0.2.7"]);
    assert!(errors(&output).contains("1 more session could match"), "{}", errors(&output));
    let output = sensor.ask(&["sessions", "--format", "ndjson", "--possible", "host 192.0.2.7"]);
    assert_eq!(column(&text(&output), "proto"), ["0x0800", "tcp"]);
}

/// Two sensors that write to copies of one store.
fn copies(dir: &tempfile::TempDir) -> [Sensor; 2] {
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    drop(Sensor::new(&one, "s1"));
    let copied = std::process::Command::new("cp").arg("-r").args([&one, &two]).status();
    assert!(copied.expect("cp runs").success());
    [Sensor::new(&one, "s1"), Sensor::new(&two, "s1")]
}

fn ask_all(sensors: &[Sensor], arguments: &[&str]) -> std::process::Output {
    let mut asked = vec!["sessions", "--tz", "UTC", "--format", "ndjson"];
    for sensor in sensors {
        asked.extend(["-s", sensor.path.to_str().expect("a path")]);
    }
    asked.extend(arguments);
    stillwire(&asked)
}

#[test]
fn copies_of_a_store_give_the_newest_row_of_each_session() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensors = copies(&dir);
    let lives = SessionRecord {
        reason: RowReason::Interim,
        conn_state: ConnState::S1,
        ..tcp("192.0.2.7", 22)
    };
    for sensor in &mut sensors {
        let record = sensor.session(lives.clone(), &[]);
        sensor.session(tcp("192.0.2.8", 22), &[]);
        sensor.session(hidden(), &[]);
        if sensor.path.ends_with("two") {
            let reason = RowReason::Closed;
            sensor.row(&SessionRecord { update: 1, conn_state: ConnState::SF, reason, ..record });
        }
        sensor.commit();
    }
    for limit in ["0", "1"] {
        let output = ask_all(&sensors, &["-n", limit, "state S1 and host 192.0.2.7"]);
        assert_eq!(text(&output), "", "the newest row does not match");
        let output = ask_all(&sensors, &["-n", limit, "--sort", "resp_h", "tcp"]);
        let found = column(&text(&output), "update");
        assert_eq!(found, [1, 0][..if limit == "0" { 2 } else { 1 }]);
        assert_eq!(errors(&output).contains("1 more sessions match"), limit == "1");
        assert!(errors(&output).contains("1 more session could match"), "{}", errors(&output));
    }
}

#[test]
fn copies_that_contradict_each_other_hide_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensors = copies(&dir);
    for (sensor, frames) in sensors.iter_mut().zip([4, 5]) {
        sensor.session(SessionRecord { frames, ..tcp("192.0.2.7", 22) }, &[]);
        sensor.session(tcp("192.0.2.8", 22), &[]);
        sensor.commit();
    }
    let output = ask_all(&sensors, &["tcp"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("contradict"), "{}", errors(&output));
    let listed = String::from_utf8(output.stdout).expect("UTF-8");
    let mut frames = column(&listed, "frames");
    frames.sort_by_key(serde_json::Value::as_u64);
    assert_eq!(frames, [4, 4, 5]);
    let output = ask_all(&sensors, &["host 192.0.2.8"]);
    assert_eq!(text(&output).lines().count(), 1);
}

#[test]
fn text_from_the_wire_cannot_act() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    sensor.session(tls("192.0.2.1", "a\u{1b}]0;owned\u{7}\t\r\n,\"b\u{202e}"), &[(0, at(0))]);
    sensor.commit();
    for format in ["table", "csv", "zeek", "ndjson", "json", "zeek-json"] {
        let output = text(&sensor.ask(&["sessions", "--format", format]));
        let active = |c: char| c.is_control() && c != '\n' && (c != '\t' || format != "zeek");
        assert!(!output.contains(active), "{format}: {output:?}");
    }
    let ndjson = text(&sensor.ask(&["sessions", "--format", "ndjson"]));
    let name = column(&ndjson, "server_name");
    assert_eq!(name[0], "a\u{1b}]0;owned\u{7}\t\r\n,\"b\u{202e}", "JSON keeps every character");
}

#[test]
fn an_empty_store_and_no_store() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = Sensor::new(&dir.path().join("store"), "s1");
    assert_eq!(text(&sensor.ask(&["sessions", "--format", "json"])), "[]\n");
    assert_eq!(text(&sensor.ask(&["sessions"])), "");
    let nowhere = dir.path().join("nowhere");
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).expect("a directory");
    for path in [nowhere, empty] {
        let output = stillwire(&["sessions", "--store", path.to_str().expect("a path")]);
        assert_eq!(output.status.code(), Some(1));
        assert!(errors(&output).contains("store"), "{}", errors(&output));
    }
}

#[test]
fn usage_errors_exit_with_2_and_say_what_to_do() {
    let dir = tempfile::tempdir().expect("a directory");
    let sensor = sensor(&dir);
    for (arguments, says) in [
        (vec!["sessions", "hots", "10.0.0.1"], "did you mean `host`"),
        (vec!["sessions", "--from", "soon"], "not a time"),
        (vec!["sessions", "--from", "06:00", "--to", "05:00"], "ends before it begins"),
        (vec!["sessions", "--sort", "size"], "no column"),
        (vec!["sessions", "--format", "xml"], "zeek-json"),
        (vec!["sessions", "--tz", "Nowhere/Land"], "time zone"),
        (vec!["sessions", "--limit", "some"], "--limit"),
        (vec!["frobnicate"], "unrecognized subcommand"),
        (vec!["packets"], "FILTER|UID"),
    ] {
        let output = if arguments.contains(&"--tz") {
            stillwire(&arguments)
        } else {
            sensor.ask(&arguments)
        };
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", errors(&output));
        assert!(errors(&output).contains(says), "{arguments:?}: {}", errors(&output));
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_torn_tail_and_a_damaged_file_do_not_hide_the_rest() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = sensor(&dir);
    let live = sensor.store.layout().live();
    let tail = std::fs::read_dir(&live).expect("live").next().expect("a file").expect("entry");
    let mut bytes = std::fs::read(tail.path()).expect("bytes");
    bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x80, 1, 0, 0, 1, 2, 3]);
    std::fs::write(tail.path(), &bytes).expect("written");
    let output = sensor.ask(&["sessions", "--format", "ndjson"]);
    assert_eq!(text(&output).lines().count(), 4);
    assert!(errors(&output).contains("behind the last whole batch"), "{}", errors(&output));
    bytes.truncate(bytes.len() - 11);
    std::fs::write(tail.path(), &bytes).expect("written");

    // A Parquet file that was overwritten: its rows are gone, and the answer says so.
    sensor.seal_sessions();
    sensor.session(tcp("192.0.2.8", 22), &[]);
    sensor.commit();
    let partition = sensor.store.layout().partition("s1", at(2000));
    let sealed = std::fs::read_dir(partition).expect("sealed").next().expect("a file");
    std::fs::write(sealed.expect("entry").path(), b"PAR1 and nothing more").expect("written");
    let output = sensor.ask(&["sessions", "--format", "ndjson"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).contains("the answer is not complete"), "{}", errors(&output));
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 1);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut sensor = Sensor::new(&dir.path().join("store"), "s1");
    for _ in 0..3000 {
        sensor.session(tcp("192.0.2.7", 22), &[]);
    }
    sensor.commit();
    let mut child = crate::support::command()
        .args(["sessions", "--format", "ndjson", "--store"])
        .arg(&sensor.path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("stillwire runs");
    let mut out = child.stdout.take().expect("a pipe");
    let mut first = [0; 16];
    out.read_exact(&mut first).expect("some output");
    drop(out);
    let output = child.wait_with_output().expect("an end");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(errors(&output), "");
}

#[test]
fn help_completions_and_manual_are_there() {
    for command in ["sessions", "packets", "coverage"] {
        let help = text(&stillwire(&[command, "--help"]));
        assert!(help.contains("Examples:"), "{help}");
        assert!(text(&stillwire(&["--help"])).contains(command));
    }
    assert!(text(&stillwire(&["completions", "bash"])).contains("stillwire"));
    assert!(text(&stillwire(&["man"])).contains(".TH stillwire"));
    let dir = tempfile::tempdir().expect("a directory");
    text(&stillwire(&["man", dir.path().to_str().expect("a path")]));
    assert!(dir.path().join("stillwire-sessions.1").exists());
}
