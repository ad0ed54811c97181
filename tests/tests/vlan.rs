//! VLAN tags as part of what makes a session, or not: a session's packets are its own either way,
//! also in a store that has seen both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use stillwire_tests::{outside, sensor};

/// UDP datagrams between two ends, three without a tag and two with one, in turn, as classic pcap.
fn capture(file: &Path) -> Result<()> {
    let mut pcap = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        pcap.extend(word.to_le_bytes());
    }
    for number in 0..5_u32 {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        if number % 2 == 1 {
            frame.extend([0x81, 0, 0, 7]);
        }
        frame.extend([8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0, 10, 1, 0, 1, 10, 1, 0, 2]);
        frame.extend([0xc0, 0, 0x1b, 0x58, 0, 12, 0, 0, b'd', b'a', b't', b'a']);
        let len = u32::try_from(frame.len())?;
        for word in [1_700_000_000, number * 1_000, len, len] {
            pcap.extend(word.to_le_bytes());
        }
        pcap.extend(frame);
    }
    std::fs::write(file, pcap).with_context(|| format!("writing {}", file.display()))
}

/// What each session of a store counts, and its packets as capinfos does.
fn sessions(store: &Path) -> Result<Vec<(u64, u64, u64)>> {
    let out = store.with_extension("pcap");
    let mut found = Vec::new();
    for row in sensor::sessions(store, "")? {
        let uid = row["uid"].as_str().context("a row without uid")?;
        let out_arg = out.to_string_lossy();
        sensor::stillwire(store, &["packets", uid, "-w", &out_arg])?;
        let number = |column: &str| row[column].as_u64();
        let frames = number("frames").context("a row without frames")?;
        found.push((number("vlan").unwrap_or(0), frames, outside::capinfos_frames(&out)?));
    }
    found.sort_unstable();
    Ok(found)
}

#[test]
fn packets_are_those_of_their_session_with_tags_in_the_key_and_without() -> Result<()> {
    let dir = sensor::store_dir()?;
    let (store, file) = (dir.path().join("store"), dir.path().join("tagged.pcap"));
    capture(&file)?;
    let replay = |args: &[&str]| {
        let mut command = Command::new(sensor::binary("stillwired")?);
        command.args(["replay", "--quiet", "--segment-size", "1MiB"]).args(args);
        sensor::ended(command.arg("--store").arg(&store).arg(&file))?.success()
    };
    replay(&["--vlan-in-key"])?;
    let apart = [(0, 3, 3), (7, 2, 2)];
    assert_eq!(sessions(&store)?, apart);
    // The same capture again, told otherwise: the sessions of the first run keep what is theirs.
    replay(&[])?;
    assert_eq!(sessions(&store)?, [apart[0], (0, 5, 5), apart[1]]);
    Ok(())
}
