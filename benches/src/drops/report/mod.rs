//! What was measured, in a form to read and in forms to work with.

mod csv;
mod json;
mod plot;
mod ratios;
mod spread;
mod summary;
mod table;

pub(crate) use csv::write_csv;
pub(crate) use json::Report;
pub(crate) use plot::draw;
pub(crate) use ratios::{Ratio, ratios};
pub(crate) use spread::Spread;
pub(crate) use summary::{Line, summary};
pub(crate) use table::print;
