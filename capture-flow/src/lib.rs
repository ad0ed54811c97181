//! Frames become sessions.
//!
//! This crate is pure: bytes in, session updates out. It does no I/O, reads no clock and starts
//! no thread; time arrives with each frame. That is why it can be tested, fuzzed and measured
//! alone.
#![forbid(unsafe_code)]

pub mod community_id;
pub mod config;
mod datagram;
pub mod decode;
pub mod fragment;
pub mod frame;
pub mod join;
pub mod key;
pub mod memory;
pub mod packet;
pub mod record;
pub mod service;
pub mod sink;
pub mod stats;
pub mod table;
mod tcp;
pub mod time;
mod timer;
mod tunnel;
mod uid;
