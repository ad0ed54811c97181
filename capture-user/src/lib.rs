//! The capture engine: frames from a source become sessions, segments and ledger lines.

pub mod args;
pub mod defaults;
pub mod link;
pub mod source;
pub mod units;
