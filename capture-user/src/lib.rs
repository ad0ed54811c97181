//! The capture engine: frames from a source become sessions, segments and ledger lines.

pub mod account;
pub mod anchor;
pub mod args;
pub mod blind;
pub mod budget;
pub mod canary;
pub mod capture;
pub mod config;
pub mod confine;
pub mod defaults;
pub mod doctor;
pub mod flush;
pub mod heartbeat;
pub mod interval;
pub mod keeper;
pub mod link;
pub mod live;
pub mod memory;
pub mod names;
mod privilege;
pub mod program;
pub mod recorder;
pub mod replay;
pub mod rings;
pub mod run;
pub mod share;
pub mod silence;
pub mod simulate;
pub mod source;
pub mod status;
pub mod units;
pub mod worker;

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
