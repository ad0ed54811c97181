//! The capture engine: frames from a source become sessions, segments and ledger lines.

pub mod account;
pub mod args;
pub mod config;
pub mod defaults;
pub mod link;
pub mod source;
pub mod units;
