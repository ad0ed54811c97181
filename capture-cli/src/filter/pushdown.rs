//! What a filter lets a reader skip without looking at a row.
//!
//! Every row that matches, certainly or perhaps, satisfies each clause; so a file, a row group
//! or a Bloom filter that rules out one clause holds no match.

use std::net::IpAddr;

use super::ast::{Expr, Net, Test, TextColumn};

/// One of these must hold for either end of the row (or the row itself).
#[derive(Clone, Debug, PartialEq)]
pub enum Clause {
    /// An end's address lies in one of these networks, or the row is of frames without
    /// decodable IP.
    Address(Vec<Net>),
    /// An end's port lies in one of these ranges, or the row shows no ports at all.
    Port(Vec<(u16, u16)>),
    /// The row's uid is one of these.
    Uid(Vec<String>),
}

impl Expr {
    /// The clauses that hold for every match.
    #[must_use]
    pub fn clauses(&self) -> Vec<Clause> {
        match self {
            Self::And(parts) => parts.iter().flat_map(Self::clauses).collect(),
            Self::Or(parts) => {
                let mut parts = parts.iter().map(Self::clauses);
                let Some(mut common) = parts.next() else { return Vec::new() };
                for clauses in parts {
                    common = common
                        .iter()
                        .flat_map(|clause| clauses.iter().filter_map(|other| clause.either(other)))
                        .collect();
                    // Joining every pair could grow without bound; any subset is right.
                    common.truncate(8);
                }
                common
            }
            // What a negation rules out is rarely a small set.
            Self::Not(_) => Vec::new(),
            Self::Test(test) => test.clause().into_iter().collect(),
        }
    }

    /// The only addresses that a match can have at one of its ends, where the filter names them
    /// one by one.
    #[must_use]
    pub fn hosts(&self) -> Option<Vec<IpAddr>> {
        self.clauses().into_iter().find_map(|clause| match clause {
            Clause::Address(nets) if nets.iter().all(Net::is_host) => {
                Some(nets.iter().map(Net::addr).collect())
            }
            _ => None,
        })
    }
}

impl Test {
    fn clause(&self) -> Option<Clause> {
        match self {
            Self::Net(_, net) => Some(Clause::Address(vec![*net])),
            Self::Port(_, first, last) => Some(Clause::Port(vec![(*first, *last)])),
            Self::Text(TextColumn::Uid, uid) => Some(Clause::Uid(vec![uid.clone()])),
            _ => None,
        }
    }
}

impl Clause {
    /// The clause that holds where one of the two holds; `None` if they are of different kinds.
    fn either(&self, other: &Self) -> Option<Self> {
        fn joined<T: Clone>(a: &[T], b: &[T]) -> Vec<T> {
            a.iter().chain(b).cloned().collect()
        }
        match (self, other) {
            (Self::Address(a), Self::Address(b)) => Some(Self::Address(joined(a, b))),
            (Self::Port(a), Self::Port(b)) => Some(Self::Port(joined(a, b))),
            (Self::Uid(a), Self::Uid(b)) => Some(Self::Uid(joined(a, b))),
            _ => None,
        }
    }
}
