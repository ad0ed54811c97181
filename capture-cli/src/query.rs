//! Rows that answer a question, out of one or several stores.

use std::collections::HashSet;
use std::collections::hash_map::{Entry, HashMap};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use capture_flow::key::Address;
use capture_store::Store;
use capture_store::sessions::{Scan, SessionRow, scan};

use crate::columns::Order;
use crate::filter::{Clause, Expr, Truth, mac};
use crate::progress::Progress;
use crate::row::{Row, RowEnd};
use crate::text::visible;
use crate::times::Window;

/// A filter and a window.
#[derive(Debug)]
pub struct Question {
    /// Which sessions.
    pub filter: Expr,
    /// When.
    pub window: Window,
    /// Whether sessions that could match are wanted, too.
    pub possible: bool,
}

/// A session that answers.
#[derive(Clone, Debug)]
pub struct Found {
    /// The store it came from, by its place in the list asked.
    pub store: usize,
    /// Its newest row.
    pub row: Row,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Answer {
    /// The sessions, in the order asked for.
    pub found: Vec<Found>,
    /// Sessions that match, those behind the limit included.
    pub total: u64,
    /// Sessions that could match and were not asked for.
    pub possible: u64,
    /// What could not be read: the answer is not complete.
    pub damage: Vec<String>,
    /// What is worth knowing although nothing is wrong.
    pub notes: Vec<String>,
}

/// Opens the stores for reading.
///
/// # Errors
/// One of them is none.
pub fn open(paths: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Store>> {
    paths
        .iter()
        .map(|path| Store::open(path.as_ref()).map_err(anyhow::Error::from))
        .collect::<Result<_, _>>()
        .with_context(|| "cannot open the store (--store DIR or STILLWIRE_STORE names it)")
}

/// Asks the stores. `limit` keeps only the first so many in the order asked for.
///
/// # Errors
/// A store's directories cannot be read. Damaged files are part of the answer.
pub fn ask(
    stores: &[Store],
    question: &Question,
    order: &Order,
    limit: Option<usize>,
) -> anyhow::Result<Answer> {
    let mut answer = Answer::default();
    let mut progress = Progress::new("reading sessions");
    for (place, store) in stores.iter().enumerate() {
        let mut sessions = Sessions::new(place, question, order, limit);
        let report = scan(store, &what(question), |batch| {
            let mut damaged = 0u64;
            let read = SessionRow::for_each(&batch, |row| match sessions.convert(row) {
                Some(row) => sessions.offer(row),
                None => damaged += 1,
            });
            if let Err(error) = read {
                answer.damage.push(format!("a batch of rows cannot be read: {error}"));
            }
            if damaged > 0 {
                answer.damage.push(format!("{damaged} rows have addresses that are none"));
            }
            progress.advance(batch.num_rows() as u64);
            ControlFlow::Continue(())
        })
        .with_context(|| format!("cannot read the sessions of {}", shown(store.layout().root())))?;
        for (path, why) in &report.damaged {
            answer.damage.push(format!("{} cannot be read: {}", shown(path), visible(why)));
        }
        for torn in &report.torn {
            let path = shown(&torn.path);
            answer.notes.push(format!(
                "{path}: {} bytes behind the last whole batch were left out (a write in progress, \
                 or what a kill left)",
                torn.bytes
            ));
        }
        sessions.finish(&mut answer);
    }
    progress.done();
    merge(&mut answer, order, limit, stores.len());
    Ok(answer)
}

/// Sorts what came from all stores. A session that two stores know (one is a copy of the other)
/// is listed once.
fn merge(answer: &mut Answer, order: &Order, limit: Option<usize>, stores: usize) {
    if stores > 1 {
        // The newest row of each identity, the first store's among equals.
        answer.found.sort_by(|a, b| {
            (a.row.uid.cmp(&b.row.uid))
                .then(b.row.update.cmp(&a.row.update))
                .then(a.store.cmp(&b.store))
        });
        let before = answer.found.len();
        answer.found.dedup_by(|later, first| later.row.uid == first.row.uid);
        answer.total -= (before - answer.found.len()) as u64;
    }
    answer.found.sort_by(|a, b| order.compare(&a.row, &b.row));
    if let Some(limit) = limit {
        answer.found.truncate(limit);
    }
}

fn shown(path: &Path) -> String {
    visible(&path.to_string_lossy()).into_owned()
}

/// What a scan may leave out.
fn what(question: &Question) -> Scan {
    let window = &question.window;
    let bounded = window.from.is_some() || window.to.is_some();
    let mut what =
        Scan { window: bounded.then(|| (window.start(), window.end())), ..Scan::default() };
    // Rows of frames without decodable IP could match any address and have none in the columns.
    if !question.possible
        && let Some(hosts) = question.filter.hosts()
    {
        what.hosts = hosts.iter().map(ToString::to_string).collect();
    }
    let uids = question.filter.clauses().into_iter().find_map(|clause| match clause {
        Clause::Uid(uids) => Some(uids),
        _ => None,
    });
    what.uids = uids.unwrap_or_default();
    what
}

/// The highest `update` seen of a session, and its row if that could match.
type Newest = (u32, Option<(Truth, Row)>);

/// Collects one store's sessions, each by its newest row.
struct Sessions<'a> {
    store: usize,
    question: &'a Question,
    order: &'a Order,
    /// How many are worth keeping.
    keep: Option<usize>,
    texts: HashSet<Arc<str>>,
    /// Sessions with several rows, or that may still get some.
    open: HashMap<Box<str>, Newest>,
    found: Vec<Found>,
    total: u64,
    possible: u64,
}

impl<'a> Sessions<'a> {
    fn new(store: usize, question: &'a Question, order: &'a Order, limit: Option<usize>) -> Self {
        Self {
            store,
            question,
            order,
            keep: limit,
            texts: HashSet::new(),
            open: HashMap::new(),
            found: Vec::new(),
            total: 0,
            possible: 0,
        }
    }

    fn offer(&mut self, row: Row) {
        let truth = match self.question.filter.matches(&row) {
            // The log is asked for a window, but a batch may hold more.
            _ if !self.question.window.overlaps(row.ts, row.last_ts) => Truth::False,
            truth => truth,
        };
        if row.update == 0 && row.is_final {
            // The session's only row.
            self.take(truth, row);
            return;
        }
        let update = row.update;
        // A row that does not match may replace one that does, but needs no room itself.
        let entry = (update, (truth != Truth::False).then(|| (truth, row.clone())));
        match self.open.entry(row.uid) {
            Entry::Vacant(vacant) => {
                vacant.insert(entry);
            }
            Entry::Occupied(mut occupied) if occupied.get().0 < update => {
                occupied.insert(entry);
            }
            Entry::Occupied(_) => {}
        }
    }

    fn take(&mut self, truth: Truth, row: Row) {
        match truth {
            Truth::False => return,
            Truth::Maybe if !self.question.possible => {
                self.possible += 1;
                return;
            }
            Truth::Maybe | Truth::True => {}
        }
        self.total += 1;
        self.found.push(Found { store: self.store, row });
        if let Some(keep) = self.keep
            && self.found.len() >= keep.saturating_mul(2).saturating_add(65_536)
        {
            self.trim(keep);
        }
    }

    fn trim(&mut self, keep: usize) {
        self.found.sort_by(|a, b| self.order.compare(&a.row, &b.row));
        self.found.truncate(keep);
    }

    fn finish(mut self, answer: &mut Answer) {
        for (_, (_, newest)) in std::mem::take(&mut self.open) {
            if let Some((truth, row)) = newest {
                self.take(truth, row);
            }
        }
        answer.found.append(&mut self.found);
        answer.total += self.total;
        answer.possible += self.possible;
    }

    /// A text that many rows share.
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let text = Arc::<str>::from(text);
        // Foreign files may hold anything; a set that grows without end helps nobody.
        if self.texts.len() < 4096 {
            self.texts.insert(text.clone());
        }
        text
    }

    /// The row with its addresses read; `None` where they are none.
    fn convert(&mut self, row: SessionRow<'_>) -> Option<Row> {
        let boxed = |text: Option<std::borrow::Cow<'_, str>>| text.map(Box::<str>::from);
        let link = |text: Option<std::borrow::Cow<'_, str>>| text.and_then(|text| mac(&text));
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
