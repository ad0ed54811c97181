//! Rows that answer a question, out of one or several stores.

mod collect;
mod read;

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context as _;
use capture_store::Store;
use capture_store::sessions::{Scan, Which, proto_name};

use self::collect::Sessions;
pub(crate) use self::read::Reader;
use crate::columns::Order;
use crate::filter::{Clause, Doubt, Expr, Truth};
use crate::row::{MAY_HIDE_IP, Row};
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
    /// Whether those count to them whose row the filter rules out and that may have more to them
    /// than their row says (see [`Row::may_go_on`]), or began another way. A verdict wants them.
    pub doubting: bool,
    /// Which files of the session log may answer.
    pub which: Which,
}

impl Question {
    /// A question to all there is, by what the rows say. `possible` asks for sessions that could
    /// match as well.
    #[must_use]
    pub fn new(filter: Expr, window: Window, possible: bool) -> Self {
        Self { filter, window, possible, doubting: false, which: Which::All }
    }

    /// Whether a session matches by this row.
    #[must_use]
    pub fn truth(&self, row: &Row) -> Truth {
        if !self.doubting {
            return self.filter.matches(row);
        }
        let direction = row.protocol != capture_flow::key::Protocol::TCP;
        self.filter.judge(row, Doubt { direction, goes_on: true, link: true })
    }
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
    let mut reader = Reader::new(stores, what(question));
    for copies in by_sensor(stores) {
        match copies.as_slice() {
            [store] => {
                let mut sessions = Sessions::new(question, order, limit);
                reader.read(*store, |row| sessions.offer(*store, row))?;
                sessions.finish(&mut answer);
            }
            copies => ask_copies(&mut reader, copies, question, order, &mut answer)?,
        }
    }
    reader.finish(&mut answer);
    answer.found.sort_by(|a, b| order.compare(&a.row, &b.row));
    if let Some(limit) = limit {
        answer.found.truncate(limit);
    }
    Ok(answer)
}

/// Stores of one sensor have sessions in common: copies of one store, made at different times. No
/// other stores have, since an identity belongs to one session of one sensor.
fn by_sensor(stores: &[Store]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let id = |place: usize| stores.get(place).map(|store| &store.identity().sensor_id);
    for place in 0..stores.len() {
        match groups.iter_mut().find(|group| group.first().and_then(|at| id(*at)) == id(place)) {
            Some(group) => group.push(place),
            None => groups.push(vec![place]),
        }
    }
    groups
}

/// Identities that a scan looks for one by one; more of them are in nearly every row group.
const FEW_UIDS: usize = 256;

/// Asks copies of one store as if they were one: of each session the newest row that any of them
/// has. Twice, since the newest row may not match where an older one does.
fn ask_copies(
    reader: &mut Reader<'_>,
    copies: &[usize],
    question: &Question,
    order: &Order,
    answer: &mut Answer,
) -> anyhow::Result<()> {
    let mut matching: HashSet<Box<str>> = HashSet::new();
    for store in copies {
        reader.read(*store, |row| {
            if question.truth(&row) != Truth::False {
                matching.insert(row.uid);
            }
        })?;
    }
    if matching.is_empty() {
        return Ok(());
    }
    let asked = reader.what.uids.clone();
    if matching.len() <= FEW_UIDS {
        reader.what.uids = matching.iter().map(ToString::to_string).collect();
    }
    let mut sessions = Sessions::of_copies(question, order);
    for store in copies {
        reader.read(*store, |row| {
            if matching.contains(&row.uid) {
                sessions.offer(*store, row);
            }
        })?;
    }
    reader.what.uids = asked;
    sessions.finish(answer);
    Ok(())
}

/// What a scan may leave out.
fn what(question: &Question) -> Scan {
    let window = &question.window;
    let bounded = window.from.is_some() || window.to.is_some();
    let mut what =
        Scan { window: bounded.then(|| (window.start(), window.end())), ..Scan::default() };
    what.which = question.which.clone();
    if let Some(hosts) = question.filter.hosts() {
        what.hosts = hosts.iter().map(ToString::to_string).collect();
    }
    for clause in question.filter.clauses() {
        match clause {
            Clause::Uid(uids) if what.uids.is_empty() => what.uids = uids,
            Clause::Port(ports) if what.ports.is_empty() => what.ports = ports,
            _ => {}
        }
    }
    // These could match any address and any port, and have none in the columns.
    what.whatever_ends = MAY_HIDE_IP.map(|protocol| proto_name(protocol).into()).to_vec();
    what
}
