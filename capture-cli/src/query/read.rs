//! Reads the rows of stores.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use capture_flow::key::Address;
use capture_store::Store;
use capture_store::sessions::{Scan, SessionRow, scan};

use super::Answer;
use crate::filter::mac;
use crate::progress::Progress;
use crate::row::{Row, RowEnd};
use crate::text::visible;

/// Reads the rows of stores, and remembers what could not be read.
pub(crate) struct Reader<'a> {
    stores: &'a [Store],
    /// What a scan may leave out.
    pub(super) what: Scan,
    texts: Texts,
    damage: Vec<String>,
    notes: Vec<String>,
    progress: Progress,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(stores: &'a [Store], what: Scan) -> Self {
        Self {
            stores,
            what,
            texts: Texts::default(),
            damage: Vec::new(),
            notes: Vec::new(),
            progress: Progress::new("reading sessions"),
        }
    }

    /// Reads the rows of one store, by its place in the list.
    ///
    /// # Errors
    /// Its directories cannot be read.
    pub(crate) fn read(&mut self, store: usize, mut visit: impl FnMut(Row)) -> anyhow::Result<()> {
        let Self { stores, what, texts, damage, notes, progress } = self;
        let Some(store) = stores.get(store) else { return Ok(()) };
        let report = scan(store, what, |batch| {
            let mut damaged = 0u64;
            let read = SessionRow::for_each(&batch, |row| match texts.convert(row) {
                Some(row) => visit(row),
                None => damaged += 1,
            });
            if let Err(error) = read {
                once(damage, format!("a batch of rows cannot be read: {error}"));
            }
            if damaged > 0 {
                once(damage, format!("{damaged} rows have addresses that are none"));
            }
            progress.advance(batch.num_rows() as u64);
            ControlFlow::Continue(())
        })
        .with_context(|| format!("cannot read the sessions of {}", shown(store.layout().root())))?;
        for (path, why) in &report.damaged {
            once(damage, format!("{} cannot be read: {}", shown(path), visible(why)));
        }
        for torn in &report.torn {
            let path = shown(&torn.path);
            once(
                notes,
                format!(
                    "{path}: {} bytes behind the last whole batch were left out (a write in \
                     progress, or what a kill left)",
                    torn.bytes
                ),
            );
        }
        Ok(())
    }

    /// Tells what could not be read.
    pub(super) fn finish(mut self, answer: &mut Answer) {
        self.progress.done();
        answer.damage.append(&mut self.damage);
        answer.notes.append(&mut self.notes);
    }
}

/// Copies of a store are read twice; what is wrong with them is told once.
fn once(told: &mut Vec<String>, what: String) {
    if !told.contains(&what) {
        told.push(what);
    }
}

fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy()).into_owned()
}

/// Texts that many rows share.
#[derive(Default)]
struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        let text = Arc::<str>::from(text);
        // Foreign files may hold anything; a set that grows without end helps nobody.
        if self.0.len() < 4096 {
            self.0.insert(text.clone());
        }
        text
    }

    /// The row with its addresses read; `None` where they are none.
    fn convert(&mut self, row: SessionRow<'_>) -> Option<Row> {
        let boxed = |text: Option<Cow<'_, str>>| text.map(Box::<str>::from);
        let link = |text: Option<Cow<'_, str>>| text.and_then(|text| mac(&text));
        Some(Row {
            ts: row.ts,
            last_ts: row.last_ts,
            duration: row.duration,
            protocol: row.protocol()?,
            orig: RowEnd {
                addr: address(&row.orig_h)?,
                port: row.orig_p,
                l2_addr: link(row.orig_l2_addr),
                bytes: row.orig_bytes,
                pkts: row.orig_pkts,
                ip_bytes: row.orig_ip_bytes,
                local: row.local_orig,
            },
            resp: RowEnd {
                addr: address(&row.resp_h)?,
                port: row.resp_p,
                l2_addr: link(row.resp_l2_addr),
                bytes: row.resp_bytes,
                pkts: row.resp_pkts,
                ip_bytes: row.resp_ip_bytes,
                local: row.local_resp,
            },
            uid: row.uid.into(),
            sensor: self.shared(&row.sensor),
            iface: self.shared(&row.iface),
            proto: self.shared(&row.proto),
            service: row.service.map(|service| self.shared(&service)),
            server_name: boxed(row.server_name),
            alpn: boxed(row.alpn),
            conn_state: self.shared(&row.conn_state),
            history: row.history.into(),
            missed_bytes: row.missed_bytes,
            vlan: row.vlan,
            inner_vlan: row.inner_vlan,
            tunnel_parents: (!row.tunnel_parents.is_empty())
                .then(|| row.tunnel_parents.into_iter().map(Box::<str>::from).collect()),
            community_id: boxed(row.community_id),
            direction_certain: row.direction_certain,
            fragment_overlap: row.fragment_overlap,
            join_certain: row.join_certain,
            update: row.update,
            is_final: row.is_final,
            end_reason: self.shared(&row.end_reason),
            frames: row.frames,
            frame_bytes: row.frame_bytes,
            flushed_at: row.flushed_at,
            pcap_first: row.pcap_first,
            pcap_last: row.pcap_last,
        })
    }
}

fn address(text: &str) -> Option<Address> {
    text.parse().map(Address::Ip).ok().or_else(|| mac(text).map(Address::Mac))
}
