//! What was measured, in a form to read and in forms to work with.

mod json;
mod spread;
mod summary;
mod table;

pub(crate) use json::Report;
pub(crate) use spread::Spread;
pub(crate) use summary::{Line, summary};
pub(crate) use table::print;
