//! The analyst's companion: questions to a store, answered.
//!
//! A question is a [`filter`] and a window of [`times`]. [`query`] finds the sessions that answer
//! it, [`output`] writes them down, [`packets`] gets their frames, and [`coverage`] says how far
//! the answer can be trusted. [`verdict`] puts all of it together, [`report`] on a page. [`verify`] says whether the
//! store is as its sensor wrote it.

pub mod app;
pub mod args;
pub mod columns;
pub mod coverage;
pub mod filter;
pub mod output;
pub mod packets;
mod progress;
pub mod query;
pub mod report;
pub mod row;
pub mod terminal;
pub mod text;
pub mod times;
pub mod verdict;
pub mod verify;
