//! What is on disk, and how it is written, recovered and read.
//!
//! A store is a directory of plain files (the layout is in [`layout`]): pcap segments with their
//! indexes, the session log as Arrow and Parquet, the ledger as NDJSON. Everything is published
//! by a rename or by advancing a committed length, so a reader never sees half a record and
//! needs no lock.
//!
//! Nothing here knows of threads or sockets. What may block (preparing and sealing) is separate
//! from what a worker calls for each frame ([`segment::ActiveSegment`]).

mod boot;
pub mod drops;
pub mod index;
pub mod journal;
pub mod key;
pub mod layout;
pub mod ledger;
mod made;
pub mod mapped;
pub mod pcap;
pub mod provenance;
pub mod recover;
pub mod retention;
pub mod segment;
pub mod sessions;
pub mod signed;
pub mod store;
pub mod time;

pub use drops::{DropReason, RowLossReason};
pub use provenance::{Provenance, RunTag};
pub use store::{Identity, OpenError, OwnedStore, Purpose, RunId, Store};
