//! The analyst's companion: questions to a store, answered.

pub mod args;
pub mod columns;
pub mod coverage;
pub mod filter;
pub mod output;
pub mod row;
pub mod terminal;
pub mod text;
pub mod times;
