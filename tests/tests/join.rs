//! One conversation, one row, however its two directions reach the sensor: on two queues of one
//! interface, or on the two ports of a tap.
//!
//! Real programs talk in the lab of `scripts/lab`. What the sensor logged is held against a replay
//! of the very frames that it recorded, in which one worker sees both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stillwire_tests::netns::run;
use stillwire_tests::{Account, Lab, Namespace, Program, outside, sensor};

/// The lab with a tap of two ports: `tap0` has what Alice sends, `tap1` what is sent to her.
fn tapped(name: &str) -> Result<Lab> {
    let lab = Lab::named(name)?;
    let (switch, sensor) = (lab.namespace("switch"), lab.namespace("sensor"));
    let args = ["link", "add", "mirror1", "type", "veth", "peer", "name", "tap1", "netns"];
    switch.run("ip", &[&args[..], &[sensor.name()]].concat())?;
    up(&switch, "mirror1")?;
    up(&sensor, "tap1")?;
    switch.run("tc", &["filter", "del", "dev", "alice", "egress"])?;
    let mut args = vec!["filter", "add", "dev", "alice", "egress", "protocol", "all"];
    args.extend(["prio", "1", "u32", "match", "u32", "0", "0"]);
    args.extend(["action", "mirred", "egress", "mirror", "dev", "mirror1"]);
    switch.run("tc", &args)?;
    Ok(lab)
}

/// Brings an interface up that says nothing by itself and leaves frames as they are.
fn up(namespace: &Namespace, interface: &str) -> Result<()> {
    namespace.set(&format!("ipv6/conf/{interface}/disable_ipv6"), "1")?;
    let mut args = vec!["-K", interface];
    for offload in ["tx", "rx", "tso", "gso", "gro", "txvlan", "rxvlan"] {
        args.extend([offload, "off"]);
    }
    namespace.run("ethtool", &args)?;
    namespace.run("ip", &["link", "set", interface, "arp", "off", "up"])?;
    Ok(())
}

/// An aggregator whose hash tells the directions of a session apart: what comes on `tap0` goes to
/// queue 0 of the interface behind `agg0`, what comes on `tap1` to queue 1, in the order in which
/// it came. Frames that are sent past the queueing discipline go to the queue of the sending CPU
/// (`packet_pick_tx_queue` in the kernel's net/packet/af_packet.c). A VLAN tag, which the kernel
/// takes off before a packet socket sees the frame, is put back.
const AGGREGATOR: &str = r#"
import os, signal, socket, struct, sys
SOL_PACKET, AUXDATA, QDISC_BYPASS, ETH_P_ALL = 263, 8, 20, 3
queue = {"tap0": 0, "tap1": 1}
source = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
source.setsockopt(SOL_PACKET, AUXDATA, 1)
source.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
sink = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
sink.setsockopt(SOL_PACKET, QDISC_BYPASS, 1)
sink.bind(("agg0", 0))
source.settimeout(0.1)
moved, ending = [0, 0], []
signal.signal(signal.SIGINT, lambda *_: ending.append(True))
print("forwarding", file=sys.stderr, flush=True)
while True:
    try:
        frame, extra, _, (name, *_) = source.recvmsg(65536, 128)
    except TimeoutError:  # nothing is left to forward
        if ending:
            print(*moved)
            sys.exit(0)
        continue
    if name not in queue:
        continue
    for level, kind, data in extra:
        if (level, kind) == (SOL_PACKET, AUXDATA):
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", data[:20])
            if status & 0x10:
                tpid = tpid if status & 0x40 else 0x8100
                frame = frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    os.sched_setaffinity(0, {queue[name]})
    sink.send(frame)
    moved[queue[name]] += 1
"#;

/// What belongs to the run and not to the session.
const OF_THE_RUN: [&str; 10] = [
    "uid",
    "sensor",
    "iface",
    "tunnel_parents",
    "update",
    "final",
    "end_reason",
    "flushed_at",
    "pcap_first",
    "pcap_last",
];

/// A store's rows without what belongs to the run, by their ends.
fn rows(store: &Path) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut rows = BTreeMap::<String, Vec<Value>>::new();
    for mut row in sensor::sessions(store, "")? {
        let object = row.as_object_mut().context("a row that is no object")?;
        object.retain(|name, _| !OF_THE_RUN.contains(&name.as_str()));
        let end = |side: &str| format!("{} {}", row[format!("{side}_h")], row[format!("{side}_p")]);
        let mut ends = [end("orig"), end("resp")];
        ends.sort();
        rows.entry(format!("{} {}", row["proto"], ends.join(" "))).or_default().push(row);
    }
    Ok(rows)
}

/// Holds a store's sessions against those of a replay of its packets.
fn as_one_worker_tells(store: &Path, scratch: &Path) -> Result<()> {
    let account = Account::of(store)?;
    assert_eq!((account.lost, account.undecodable), (0, 0), "{account:?}");
    account.balances()?;
    let packets = scratch.join("merged.pcap");
    let mut merge = Command::new("mergecap");
    run(merge.args(["-F", "nsecpcap", "-w"]).arg(&packets).args(outside::segments(store)?))?;
    assert_eq!(outside::capinfos_frames(&packets)?, account.received);
    let replayed = scratch.join("replayed");
    sensor::replay(&replayed, &[&packets])?;

    let (live, offline) = (rows(store)?, rows(&replayed)?);
    let mut services = BTreeSet::new();
    for (ends, expected) in &offline {
        let found = live.get(ends).with_context(|| format!("no session {ends}"))?;
        // What halves cannot know, the row calls uncertain (docs/CONFORMANCE.md, "Halves joined").
        let is_doubted = found.iter().any(|row| row["join_certain"] == false);
        assert!(found == expected || is_doubted, "{ends}: {found:#?}, of one worker {expected:#?}");
        for row in found {
            if row["ip_proto"].is_u64() && row["resp_h"].as_str().is_some_and(is_bobs) {
                let both =
                    row["orig_pkts"].as_u64() > Some(0) && row["resp_pkts"].as_u64() > Some(0);
                assert!(both, "half a conversation: {row:#}");
                assert_eq!(found.len(), 1, "several rows: {found:#?}");
                services.extend(row["service"].as_str().map(str::to_owned));
            }
        }
    }
    assert_eq!(live.len(), offline.len());
    assert_eq!(services.iter().map(String::as_str).collect::<Vec<_>>(), ["dns", "http", "ssh"]);
    Ok(())
}

fn is_bobs(address: &str) -> bool {
    ["10.77.0.2", "fd77::2", "10.77.10.2"].contains(&address)
}

/// Who sent the frames that a worker recorded.
fn senders(store: &Path, worker: &str) -> Result<BTreeSet<String>> {
    let mut senders = BTreeSet::new();
    for segment in outside::files(&store.join("pcap").join(worker), "pcap")? {
        let rows = outside::tshark_fields(&segment, "frame", &["eth.src"])?;
        senders.extend(rows.into_iter().flatten());
    }
    Ok(senders)
}

const ARGS: [&str; 4] = ["--packet-budget", "256MiB", "--segment-size", "16MiB"];

#[test]
fn two_directions_on_two_queues_are_one_row() -> Result<()> {
    let lab = tapped("queues")?;
    let namespace = lab.namespace("sensor");
    let queues = ["numtxqueues", "2", "numrxqueues", "2"];
    let mut args = vec!["link", "add", "agg0"];
    args.extend(queues);
    args.extend(["type", "veth", "peer", "name", "agg1"]);
    args.extend(queues);
    namespace.run("ip", &args)?;
    for interface in ["agg0", "agg1"] {
        up(&namespace, interface)?;
    }
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let program = sensor::capture_on(&namespace, &["agg1"], &store, &ARGS)?;
    let mut aggregator = Program::start(namespace.command("python3").args(["-c", AGGREGATOR]))?;
    aggregator.await_stderr("forwarding")?;
    lab.script("traffic")?;
    let forwarded = aggregator.interrupt()?.success()?;
    program.interrupt()?.success()?;

    let account = Account::of(&store)?;
    let forwarded: Vec<u64> = forwarded.split_whitespace().flat_map(str::parse).collect();
    assert_eq!(forwarded.iter().sum::<u64>(), account.received, "{forwarded:?} {account:?}");
    // Without this the test would show nothing about two queues.
    let (alice, bob) = (senders(&store, "w00")?, senders(&store, "w01")?);
    ensure!(!alice.is_empty() && !bob.is_empty(), "one worker has it all: {alice:?} {bob:?}");
    ensure!(alice.is_disjoint(&bob), "both workers have both directions: {alice:?} {bob:?}");
    as_one_worker_tells(&store, dir.path())
}

#[test]
fn two_directions_on_the_two_ports_of_a_tap_are_one_row() -> Result<()> {
    let lab = tapped("ports")?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let ports = ["tap0", "tap1"];
    let program = sensor::capture_on(&lab.namespace("sensor"), &ports, &store, &ARGS)?;
    lab.script("traffic")?;
    program.interrupt()?.success()?;

    let rows = sensor::sessions(&store, "")?;
    let seen: BTreeSet<_> = rows.iter().filter_map(|row| row["iface"].as_str()).collect();
    assert!(seen.contains("tap0"), "{seen:?}");
    for line in sensor::ledger(&store)? {
        let interfaces = line["interfaces"].as_array().map_or(0, Vec::len);
        assert_eq!(interfaces, ports.len(), "{line}");
    }
    as_one_worker_tells(&store, dir.path())
}
