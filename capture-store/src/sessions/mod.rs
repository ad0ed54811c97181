//! The session log: rows of sessions as Arrow in the open tail, as Parquet once sealed.
//!
//! Rows are collected in [`SessionLog`], committed batch by batch to an Arrow IPC stream under
//! `sessions/live/`, and when an hour ends or enough rows are there, that file is sealed into
//! Parquet ([`PendingSeal::seal`], on any thread). [`scan`] reads both, and no row twice: a live
//! file whose Parquet file exists is left out.

mod columns;
mod guard;
mod live;
mod log;
mod row;
mod scan;
mod schema;
mod seal;

pub use log::{CommitError, LogError, LogPolicy, SessionLog};
pub use row::{RowNames, SessionRow, proto_name};
pub use scan::{Scan, ScanError, ScanReport, TornTail, Trusted, Which, scan};
pub use schema::{column_names, schema};
pub use seal::{PendingSeal, SealSessionsError, SealedSessions};

pub(crate) use scan::extent;
pub(crate) use seal::{partitions, sealed_names};
