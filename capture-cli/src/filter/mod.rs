//! The filter language: pcap's, for sessions.

mod ast;
mod error;
mod eval;
mod lex;
pub(crate) mod names;
mod parse;
mod pushdown;
#[cfg(test)]
mod tests;
mod value;

pub use ast::{Cmp, Count, End, Expr, Locality, Net, Test, TextColumn};
pub use error::FilterError;
pub(crate) use eval::Subject;
pub use eval::{Doubt, Truth};
pub use parse::{Parsed, parse};
pub use pushdown::Clause;
pub use value::is_uid;
pub(crate) use value::mac;
