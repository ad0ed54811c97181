//! Collects sessions, each by its newest row.

use std::collections::hash_map::{Entry, HashMap};

use super::{Answer, Found, Question};
use crate::columns::Order;
use crate::filter::Truth;
use crate::row::Row;

/// Rows beyond twice the limit that are kept before the list is cut to it.
const SLACK: usize = 65_536;

/// The newest row seen of a session.
struct Newest {
    update: u32,
    is_final: bool,
    /// The row itself if it could match: others only replace one that does, and need no room.
    row: Option<(Truth, Found)>,
}

/// The sessions of one sensor.
pub(super) struct Sessions<'a> {
    question: &'a Question,
    order: &'a Order,
    /// How many are worth keeping.
    keep: Option<usize>,
    /// Whether other stores may have rows of the same sessions, final ones included.
    copies: bool,
    /// Sessions with several rows, or that may still get some.
    open: HashMap<Box<str>, Newest>,
    /// Rows that contradict another one of the same number, if they could match.
    rivals: Vec<(Truth, Found)>,
    /// Sessions whose rows contradict each other: one of them, and how many times that was seen.
    contradicted: Option<(Box<str>, u64)>,
    found: Vec<Found>,
    total: u64,
    possible: u64,
}

impl<'a> Sessions<'a> {
    /// The sessions of one store. `limit` says how many are worth keeping.
    pub(super) fn new(question: &'a Question, order: &'a Order, limit: Option<usize>) -> Self {
        Self {
            question,
            order,
            keep: limit,
            copies: false,
            open: HashMap::new(),
            rivals: Vec::new(),
            contradicted: None,
            found: Vec::new(),
            total: 0,
            possible: 0,
        }
    }

    /// The sessions of stores that have sessions in common.
    pub(super) fn of_copies(question: &'a Question, order: &'a Order) -> Self {
        Self { copies: true, ..Self::new(question, order, None) }
    }

    /// Takes a row of a store.
    pub(super) fn offer(&mut self, store: usize, row: Row) {
        let truth = match self.question.truth(&row) {
            // The log is asked for a window, but a batch may hold more.
            _ if !self.question.window.overlaps(row.ts, row.last_ts) => Truth::False,
            truth => truth,
        };
        if row.update == 0 && row.is_final && !self.copies {
            // The session's only row.
            self.take(truth, Found { store, row });
            return;
        }
        let uid = row.uid.clone();
        let newest = Newest {
            update: row.update,
            is_final: row.is_final,
            row: (truth != Truth::False).then_some((truth, Found { store, row })),
        };
        match self.open.entry(uid) {
            Entry::Vacant(vacant) => {
                vacant.insert(newest);
            }
            Entry::Occupied(mut known) => {
                let contradicts = known.get().contradicts(&newest);
                if contradicts {
                    let first = self.contradicted.take();
                    let (uid, times) = first.unwrap_or_else(|| (known.key().clone(), 0));
                    self.contradicted = Some((uid, times + 1));
                }
                if known.get().update < newest.update {
                    known.insert(newest);
                } else if known.get().update == newest.update && contradicts {
                    // Neither hides the other.
                    self.rivals.extend(newest.row);
                }
            }
        }
    }

    fn take(&mut self, truth: Truth, found: Found) {
        match truth {
            Truth::False => return,
            Truth::Maybe if !self.question.possible => {
                self.possible += 1;
                return;
            }
            Truth::Maybe | Truth::True => {}
        }
        self.total += 1;
        self.found.push(found);
        if let Some(keep) = self.keep
            && self.found.len() >= keep.saturating_mul(2).saturating_add(SLACK)
        {
            self.trim(keep);
        }
    }

    fn trim(&mut self, keep: usize) {
        self.found.sort_by(|a, b| self.order.compare(&a.row, &b.row));
        self.found.truncate(keep);
    }

    /// Adds what was found to the answer.
    pub(super) fn finish(mut self, answer: &mut Answer) {
        let open = std::mem::take(&mut self.open);
        for (truth, rival) in std::mem::take(&mut self.rivals) {
            // A newer row may have come since.
            if open.get(&rival.row.uid).is_some_and(|newest| newest.update == rival.row.update) {
                self.take(truth, rival);
            }
        }
        for (truth, found) in open.into_values().filter_map(|newest| newest.row) {
            self.take(truth, found);
        }
        answer.found.append(&mut self.found);
        answer.total += self.total;
        answer.possible += self.possible;
        if let Some((uid, times)) = self.contradicted {
            answer.damage.push(format!(
                "rows contradict each other ({times} times, first of session {uid}): one of them is \
                 not what the sensor wrote. All that match are listed"
            ));
        }
    }
}

impl Newest {
    /// Whether one sensor cannot have written both rows: a session has one row of each number, and
    /// none after its last.
    fn contradicts(&self, other: &Self) -> bool {
        if self.update != other.update {
            let older = if self.update < other.update { self } else { other };
            return older.is_final;
        }
        match (&self.row, &other.row) {
            (Some((_, one)), Some((_, two))) => one.row != two.row,
            // Equal rows match alike.
            (one, two) => one.is_some() != two.is_some() || self.is_final != other.is_final,
        }
    }
}
