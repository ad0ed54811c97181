//! The analyst's companion: questions to a store, answered.

pub mod filter;
pub mod row;
pub mod text;
pub mod times;
