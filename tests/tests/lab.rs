//! The lab of `scripts/lab`: real programs speak, the sensor says what they said.

use anyhow::{Context, Result};
use serde_json::Value;
use stillwire_tests::{Account, Lab, Program, outside, sensor};

/// What one round of the lab's traffic must look like: a filter, how many sessions it finds, and
/// what each of them is.
struct Expected {
    filter: &'static str,
    sessions: usize,
    service: Option<&'static str>,
    state: &'static str,
    vlan: Option<u64>,
}

/// One round: see `traffic` in scripts/lab.
const ROUND: &[Expected] = &[
    Expected {
        filter: "icmp and host 10.77.0.2",
        sessions: 1,
        service: None,
        state: "OTH",
        vlan: None,
    },
    Expected {
        filter: "udp and port 53 and host 10.77.0.2",
        sessions: 1,
        service: Some("dns"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "tcp and port 53 and host fd77::2",
        sessions: 1,
        service: Some("dns"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "tcp and port 80 and host 10.77.0.2",
        sessions: 1,
        service: Some("http"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "tcp and port 80 and net fd77::/64",
        sessions: 1,
        service: Some("http"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "tcp and port 22 and host 10.77.0.2",
        sessions: 1,
        service: Some("ssh"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "tcp and port 2222",
        sessions: 1,
        service: Some("ssh"),
        state: "SF",
        vlan: None,
    },
    Expected {
        filter: "icmp and host 10.77.10.2",
        sessions: 1,
        service: None,
        state: "OTH",
        vlan: Some(10),
    },
    Expected {
        filter: "tcp and port 80 and net 10.77.10.0/24",
        sessions: 1,
        service: Some("http"),
        state: "SF",
        vlan: Some(10),
    },
];

#[test]
fn what_real_programs_say_is_what_the_store_answers() -> Result<()> {
    let lab = Lab::up()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let args = ["--packet-budget", "256MiB", "--segment-size", "16MiB"];
    let program = sensor::capture_on(&lab.namespace("sensor"), &["tap0"], &store, &args)?;
    // The witness: tcpdump at the host whose link is mirrored.
    let witness = dir.path().join("alice.pcap");
    let mut command = lab.namespace("alice").command("tcpdump");
    command.args(["-i", "eth0", "-U", "-Z", "root", "--immediate-mode", "-w"]).arg(&witness);
    let mut tcpdump = Program::start(&mut command)?;
    tcpdump.await_stderr("listening on eth0")?;
    lab.script("traffic")?;
    tcpdump.interrupt()?.success()?;
    program.interrupt()?.success()?;

    let account = Account::of(&store)?;
    assert_eq!((account.lost, account.undecodable), (0, 0), "{account:?}");
    account.balances()?;
    assert_eq!(outside::recorded_frames(&store)?, account.received);

    for expected in ROUND {
        let rows = sensor::sessions(&store, expected.filter)?;
        assert_eq!(rows.len(), expected.sessions, "{}: {rows:#?}", expected.filter);
        for row in &rows {
            let (service, vlan) = (row["service"].as_str(), row["vlan"].as_u64());
            assert_eq!((service, vlan), (expected.service, expected.vlan), "{row:#}");
            assert_eq!(row["conn_state"], expected.state, "{row:#}");
            same_packets(&store, row, &witness).with_context(|| format!("packets of {row:#}"))?;
        }
    }
    let coverage = sensor::stillwire(&store, &["coverage", "--format", "json"])?;
    serde_json::from_str::<Value>(&coverage).context("the coverage")?;
    Ok(())
}

/// `stillwire packets` gives the frames of a session that the witness saw: all of them, none
/// besides, byte for byte and in time order.
fn same_packets(store: &std::path::Path, row: &Value, witness: &std::path::Path) -> Result<()> {
    let text = |column: &str| row[column].as_str().with_context(|| format!("no {column}"));
    let number = |column: &str| row[column].as_u64().with_context(|| format!("no {column}"));
    let (orig, resp, proto) = (text("orig_h")?, text("resp_h")?, text("proto")?);
    let family = if orig.contains(':') { "ipv6" } else { "ip" };
    let mut filter = format!("{family}.addr == {orig} && {family}.addr == {resp} && {proto}");
    if proto != "icmp" {
        let (from, to) = (number("orig_p")?, number("resp_p")?);
        filter += &format!(" && {proto}.port == {from} && {proto}.port == {to}");
    }
    let seen = outside::frame_bytes(witness, &filter)?;
    assert!(!seen.is_empty(), "the witness saw nothing for {filter}");
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_string_lossy().into_owned();
    sensor::stillwire(store, &["packets", text("uid")?, "-w", &path])?;
    let found = outside::frame_bytes(file.path(), "frame")?;
    assert_eq!(found, seen, "{filter}");
    let frames = u64::try_from(found.values().sum::<usize>())?;
    assert_eq!(frames, number("orig_pkts")? + number("resp_pkts")?);
    let times = outside::tshark_fields(file.path(), "frame", &["frame.time_epoch"])?;
    assert!(times.is_sorted(), "in time order");
    Ok(())
}
