//! The ledger: one line an interval, in which every frame is accounted for.
//!
//! Day files of NDJSON under `ledger/sensor=S/`. Every line carries the BLAKE3 hash of the line
//! before it (`prev`) and its place in the chain (`seq`); the chain runs on across day files and
//! runs, in the order of writing. Every line is signed by the sensor.

mod anchor;
mod balance;
mod chain;
mod last_run;
mod line;
mod owed;
mod reader;
mod vouched;
mod writer;

pub use anchor::Anchor;
pub use balance::{Imbalance, imbalances};
pub use chain::{Break, BreakKind, Chain, ChainFold, Head, Place, Torn};
pub use line::{
    Blind, BlindCause, Canary, Clock, Doubt, Interface, LedgerLine, Link, Nic, Note, OpenTail,
    Queue, ReplayedFile, Rows, SealedFile, Silence, Socket, Worker, Xdp,
};
pub(crate) use owed::Owed;
pub use owed::owed;
pub(crate) use reader::sealed_note;
pub use reader::{Damage, LedgerRead, day_files, for_each_line, has_line, read, read_chained};
pub use vouched::{
    FileFinding, FileProblem, FilesCheck, Vouched, check_file, check_files, check_sessions,
    check_tail,
};
pub use writer::{LedgerError, LedgerWriter};

pub(crate) use last_run::LastRun;
