//! The ledger: one line an interval, in which every frame is accounted for.
//!
//! Day files of NDJSON under `ledger/sensor=S/`. Every line carries the BLAKE3 hash of the line
//! before it (`prev`) and its place in the chain (`seq`); the chain runs on across day files and
//! runs, in the order of writing.

mod balance;
mod line;
mod reader;
mod writer;

pub use balance::{Imbalance, imbalances};
pub use line::{
    Blind, BlindCause, Canary, Clock, Interface, LedgerLine, Link, Nic, Note, Queue, ReplayedFile,
    Rows, SealedFile, Silence, Socket, Worker, Xdp,
};
pub use reader::{Damage, LedgerRead, read};
pub use writer::{LedgerError, LedgerWriter};
