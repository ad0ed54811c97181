//! Finds sessions' frames in a segment whose index does not know them all.
//!
//! After a `kill -9` the last frames of a segment may be recorded and not noted, and a damaged
//! index tells nothing. The frames themselves still do: they go through the session table that
//! the sensor uses, which says for each one whose it is.

use anyhow::Context as _;
use capture_flow::config::FlowConfig;
use capture_flow::frame::{Frame, IfaceId, PcapPosition};
use capture_flow::key::FlowHash;
use capture_flow::sink::{Mark, SessionUpdate, Sink};
use capture_flow::table::SessionTable;
use capture_flow::time::Nanos;
use capture_store::index::SegmentRef;
use capture_store::pcap::SegmentReader;

/// Calls `found` with the place of each frame of a session whose hash is wanted.
///
/// `vlan_in_key` as the sensor was told: rows do not say it, so where tags matter a caller asks
/// with both.
///
/// # Errors
/// The segment cannot be read to its end.
pub(super) fn scan(
    segment: &SegmentRef,
    reader: &SegmentReader,
    seed: u64,
    vlan_in_key: bool,
    is_wanted: impl Fn(FlowHash) -> bool,
    mut found: impl FnMut(PcapPosition, FlowHash),
) -> anyhow::Result<()> {
    let config = FlowConfig { hash_seed: seed, vlan_in_key, ..FlowConfig::default() };
    let mut table = SessionTable::new(config).context("no memory for the sessions")?;
    let mut sink = Touched { is_wanted, found: &mut found };
    let mut last = Nanos::MIN;
    let end = reader.scan(|offset, record, bytes| {
        last = record.ts();
        let frame = Frame {
            ts: record.ts(),
            wire_len: record.wire_len,
            bytes,
            link: reader.header().link_type,
            iface: IfaceId(0),
            at: Some(PcapPosition { worker: segment.worker, segment: segment.sequence, offset }),
        };
        table.observe_batch(&[frame], &mut sink);
        true
    })?;
    // Fragments whose datagram never became complete belong to a session, too.
    table.finish(last, &mut sink);
    anyhow::ensure!(end == reader.committed(), "there is no whole record at offset {end}");
    Ok(())
}

/// Takes note of whose a frame is; the sessions themselves are in the log already.
struct Touched<'f, W, F> {
    is_wanted: W,
    found: &'f mut F,
}

impl<W: Fn(FlowHash) -> bool, F: FnMut(PcapPosition, FlowHash)> Sink for Touched<'_, W, F> {
    fn touch(&mut self, at: PcapPosition, flow: FlowHash, _: &mut Mark) {
        if (self.is_wanted)(flow) {
            (self.found)(at, flow);
        }
    }

    fn session(&mut self, _: SessionUpdate) {}
}
