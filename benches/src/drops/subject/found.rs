//! Counting what a program has recorded, with readers that know nothing of it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use stillwire_tests::netns::run;
use stillwire_tests::process::Ended;

use super::{Collector, Harvest, Kind, Part, Place};

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
    /// For counting its capture files.
    pub(crate) fn harvest(&self, soak: bool) -> Harvest {
        // The sensor keeps within its budget itself.
        Harvest::new(soak && !self.is_stillwire())
    }

    /// Counts what it has recorded, after its end.
    ///
    /// # Errors
    /// Where there is nothing to count, or the reader finds it damaged.
    pub(crate) fn found(
        &self,
        place: &Place<'_>,
        ended: &Ended,
        collector: Option<Collector>,
        harvest: &mut Harvest,
    ) -> Result<Found> {
        match &self.kind {
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
            Kind::Stillwire
            | Kind::Tcpdump
            | Kind::Dumpcap
            | Kind::NetsniffNg
            | Kind::Template(_) => {
                let frames = harvest.finish(place.dir)?.with_context(|| {
                    let dir = place.dir.display();
                    format!(
                        "it has written no capture file below {dir}\n{}{}",
                        ended.stdout, ended.stderr
                    )
                })?;
                Ok(Found { frames, reader: "capinfos" })
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
