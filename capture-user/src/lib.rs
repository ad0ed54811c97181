//! The capture engine: frames from a source become sessions, segments and ledger lines.

pub mod source;
