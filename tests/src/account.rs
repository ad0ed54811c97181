//! The ledger's figures, added up over all its lines without the store's own code.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::sensor::ledger;

/// Frames of all runs in a store, by its ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Frames that entered the XDP program (0 for a replay).
    pub seen: u64,
    /// Frames that it gave to a socket.
    pub steered: u64,
    /// Frames that it left to the host or did not handle.
    pub passed: u64,
    /// Frames that the workers took from their sockets or files.
    pub received: u64,
    /// Frames that workers found a session for.
    pub decoded: u64,
    /// Frames that count to no session.
    pub undecodable: u64,
    /// Frames in segments.
    pub written: u64,
    /// Frames that arrived and are in no segment: lost between program and worker, or dropped by
    /// the recorder.
    pub lost: u64,
    /// Among those, the ones that the recorder dropped.
    pub dropped: u64,
    /// Session rows in the log.
    pub rows: u64,
    /// Session rows that were lost.
    pub rows_lost: u64,
}

impl Account {
    /// Adds the ledger of a store up.
    ///
    /// # Errors
    /// Where the ledger cannot be read.
    pub fn of(store: &Path) -> Result<Self> {
        let mut account = Self::default();
        for line in ledger(store)? {
            for queue in list(&line, "interfaces").flat_map(|interface| list(interface, "queues")) {
                let xdp = &queue["xdp"];
                account.seen += count(&xdp["seen"]);
                account.steered += count(&xdp["steered"]);
                account.passed +=
                    count(&xdp["passed"]) + count(&xdp["no_socket"]) + count(&xdp["aborted"]);
                account.lost += count(&queue["ring_losses"]);
            }
            for worker in list(&line, "workers") {
                account.received += count(&worker["received"]);
                account.decoded += count(&worker["decoded"]);
                account.undecodable += sum_of(&worker["undecodable"]);
                account.written += count(&worker["written"]);
                account.dropped += sum_of(&worker["dropped"]);
            }
            account.rows += count(&line["rows"]["written"]);
            account.rows_lost += sum_of(&line["rows"]["lost"]);
        }
        account.lost += account.dropped;
        Ok(account)
    }

    /// Holds the sums of a capture that ended cleanly against each other: nothing is in flight any
    /// more, so every frame is on one side or the other.
    ///
    /// # Errors
    /// Names the equation that does not hold.
    pub fn balances(&self) -> Result<()> {
        ensure!(self.seen == self.steered + self.passed, "seen is not what became of it: {self:?}");
        let ring_losses = self.lost - self.dropped;
        ensure!(self.steered == self.received + ring_losses, "the rings do not balance: {self:?}");
        ensure!(self.received == self.written + self.dropped, "the recorder: {self:?}");
        ensure!(self.received == self.decoded + self.undecodable, "the sessions: {self:?}");
        ensure!(self.rows_lost == 0, "session rows are lost: {self:?}");
        Ok(())
    }
}

/// The items of an array, none where it is left out.
fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

/// A count, 0 where it is left out.
fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// The sum over an object of counts by reason.
fn sum_of(value: &Value) -> u64 {
    value.as_object().into_iter().flatten().map(|(_, frames)| count(frames)).sum()
}
