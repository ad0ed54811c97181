//! Counting what a program has recorded, with readers that know nothing of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use stillwire_tests::netns::run;
use stillwire_tests::outside;
use stillwire_tests::process::Ended;

use super::{Collector, Kind, Part, Place};

/// Frames that a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// How many.
    pub(crate) frames: u64,
    /// The reader.
    pub(crate) reader: &'static str,
}

/// What the bare receiver prints at its end.
#[derive(Debug, Deserialize, serde::Serialize)]
pub(crate) struct BareCount {
    /// Frames received.
    pub(crate) frames: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Frames lost because its ring was full.
    pub(crate) ring_full: u64,
    /// Frames lost because no buffer was free.
    pub(crate) dropped: u64,
}

impl Part {
    /// Counts what it has recorded, after its end.
    ///
    /// # Errors
    /// Where there is nothing to count, or the reader finds it damaged.
    pub(crate) fn found(
        &self,
        place: &Place<'_>,
        ended: &Ended,
        collector: Option<Collector>,
    ) -> Result<Found> {
        match &self.kind {
            Kind::Stillwire => {
                let frames = outside::recorded_frames(&place.dir.join("store"))?;
                Ok(Found { frames, reader: "capinfos" })
            }
            // It keeps nothing that another could read.
            Kind::Bare => {
                let count: BareCount =
                    serde_json::from_str(&ended.stdout).context("the bare receiver's count")?;
                Ok(Found { frames: count.frames, reader: "its own count" })
            }
            Kind::Argus => Ok(Found { frames: racount(&place.records())?, reader: "racount" }),
            Kind::Softflowd => {
                let collector = collector.context("softflowd ran without a collector")?;
                Ok(Found { frames: collector.packets(place.dir)?, reader: "nfdump" })
            }
            Kind::Tcpdump | Kind::Dumpcap | Kind::NetsniffNg | Kind::Template(_) => {
                let files = captures(place.dir)?;
                ensure!(
                    !files.is_empty(),
                    "it has written no capture file below {}\n{}{}",
                    place.dir.display(),
                    ended.stdout,
                    ended.stderr
                );
                Ok(Found { frames: outside::frames_in(&files)?, reader: "capinfos" })
            }
        }
    }
}

/// Packets of all of Argus' records but those about itself.
fn racount(file: &Path) -> Result<u64> {
    let mut command = Command::new("racount");
    // -F: whatever the user's own configuration says.
    command.args(["-F", "/dev/null", "-r"]).arg(file).args(["-", "not", "man"]);
    let text = run(&mut command)?;
    // racount   records     total_pkts     src_pkts …
    //     sum   100         5000           2500     …
    let sum = text.lines().find_map(|line| line.trim().strip_prefix("sum"));
    let packets = sum.and_then(|sum| sum.split_whitespace().nth(1)?.parse().ok());
    packets.with_context(|| format!("racount's sum of packets in {text:?}"))
}

/// Files that begin as capture files do, whatever they are called.
fn captures(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(captures(&path)?);
        } else if is_capture(&path)? {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_capture(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut magic = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("opening {}", path.display()))?;
    file.take(4).read_to_end(&mut magic)?;
    // pcap in either byte order, with micro- and nanoseconds; pcapng.
    const MAGIC: [[u8; 4]; 5] = [
        [0xd4, 0xc3, 0xb2, 0xa1],
        [0xa1, 0xb2, 0xc3, 0xd4],
        [0x4d, 0x3c, 0xb2, 0xa1],
        [0xa1, 0xb2, 0x3c, 0x4d],
        [0x0a, 0x0d, 0x0d, 0x0a],
    ];
    Ok(MAGIC.iter().any(|known| magic == known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_files_are_known_by_their_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("below")).unwrap();
        fs::write(dir.path().join("b"), [0xd4, 0xc3, 0xb2, 0xa1, 2, 0]).unwrap();
        fs::write(dir.path().join("below/a.ng"), [0x0a, 0x0d, 0x0d, 0x0a]).unwrap();
        fs::write(dir.path().join("log.pcap"), "no capture").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        let found = captures(dir.path()).unwrap();
        let names: Vec<_> =
            found.iter().map(|path| path.strip_prefix(dir.path()).unwrap()).collect();
        assert_eq!(names, [Path::new("b"), Path::new("below/a.ng")]);
    }
}
