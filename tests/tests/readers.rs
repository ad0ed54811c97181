//! Other people's tools open the store's files as they are.

use std::process::Command;

use anyhow::Result;
use stillwire_tests::netns::run;
use stillwire_tests::traffic::{Frames, Pace};
use stillwire_tests::{Wire, outside, sensor};

/// What both readers are asked: rows, packets, and that the times are timestamps.
const DUCKDB: &str = r#"
import sys, duckdb
store = sys.argv[1]
files = f"{store}/sessions/sensor=*/**/*.parquet"
rows, packets, sensors = duckdb.sql(f"""
    SELECT count(*), sum(orig_pkts + resp_pkts), count(DISTINCT sensor)
    FROM read_parquet('{files}', hive_partitioning = true)
    WHERE final AND last_ts >= ts AND orig_h = '10.1.0.1' AND proto = 'udp'
""").fetchall()[0]
print(rows, packets, sensors)
"#;

const PYARROW: &str = r#"
import glob, sys
import pyarrow as pa, pyarrow.compute as pc, pyarrow.dataset as ds
sessions = sys.argv[1] + "/sessions"
files = glob.glob(f"{sessions}/sensor=*/**/*.parquet", recursive=True)
hive = ds.partitioning(flavor="hive")
table = ds.dataset(files, partitioning=hive, partition_base_dir=sessions).to_table()
assert table.schema.field("ts").type == pa.timestamp("ns", "UTC"), table.schema.field("ts")
table = table.filter(table["final"])
packets = pc.sum(table["orig_pkts"]).as_py() + pc.sum(table["resp_pkts"]).as_py()
print(table.num_rows, packets, len(set(table["sensor"].to_pylist())))
"#;

#[test]
fn duckdb_pyarrow_tcpdump_tshark_and_capinfos_agree() -> Result<()> {
    let wire = Wire::new()?;
    let dir = sensor::store_dir()?;
    let store = dir.path().join("store");
    let frames = Frames { count: 50_000, bytes: 200, flows: 50, pace: Pace::PerSecond(50_000) };
    let args = ["--packet-budget", "256MiB", "--segment-size", "4MiB"];
    let program = sensor::capture(&wire, &store, &args)?;
    frames.send(&wire)?;
    program.interrupt()?.success()?;

    assert!(outside::segments(&store)?.len() > 1, "more than one segment");
    assert_eq!(outside::recorded_frames(&store)?, frames.count, "capinfos");
    let (mut tshark, mut tcpdump) = (0, 0);
    for segment in outside::segments(&store)? {
        tshark += outside::tshark_fields(&segment, "udp", &["frame.len"])?
            .iter()
            .filter(|row| row[0] == "200")
            .count();
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-t", "-r"]).arg(&segment).arg("host 10.1.0.1 and udp");
        tcpdump += run(&mut command)?.lines().count();
    }
    assert_eq!((tshark as u64, tcpdump as u64), (frames.count, frames.count), "tshark, tcpdump");
    let expected = format!("{} {} 1\n", frames.flows, frames.count);
    assert_eq!(outside::python(DUCKDB, &[&store])?, expected, "DuckDB");
    assert_eq!(outside::python(PYARROW, &[&store])?, expected, "pyarrow");
    Ok(())
}
