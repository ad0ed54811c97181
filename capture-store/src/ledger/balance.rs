//! The equations that every line must satisfy.

use super::line::LedgerLine;

/// An equation that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imbalance {
    /// Whose account: `eth0 queue 1`, `worker 0`, or `workers` for the sum.
    pub account: String,
    /// The equation.
    pub equation: &'static str,
    /// Frames by its left side.
    pub left: u64,
    /// Frames by its right side.
    pub right: u64,
}

impl std::fmt::Display for Imbalance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({} against {})", self.account, self.equation, self.left, self.right)
    }
}

/// Every equation of a line that does not hold; empty for a line in balance.
#[must_use]
pub fn imbalances(line: &LedgerLine) -> Vec<Imbalance> {
    let mut found = Vec::new();
    let mut check = |account: &str, equation: &'static str, left: &[u64], right: &[u64]| {
        let (left, right) = (sum(left), sum(right));
        if left != right {
            found.push(Imbalance { account: account.to_owned(), equation, left, right });
        }
    };
    let mut arrived: u64 = 0;
    for interface in &line.interfaces {
        for queue in &interface.queues {
            let account = format!("{} queue {}", interface.name, queue.queue);
            let xdp = &queue.xdp;
            check(
                &account,
                "seen = steered + passed + no_socket + aborted",
                &[xdp.seen],
                &[xdp.steered, xdp.passed, xdp.no_socket, xdp.aborted],
            );
            check(
                &account,
                "steered + in_ring_before = received + ring_losses + in_ring_after",
                &[xdp.steered, queue.in_ring_before],
                &[queue.received, queue.ring_losses, queue.in_ring_after],
            );
            arrived = arrived.saturating_add(queue.received);
        }
    }
    for file in &line.files {
        arrived = arrived.saturating_add(file.received);
    }
    let mut received: u64 = 0;
    for worker in &line.workers {
        let account = format!("worker {}", worker.worker);
        let undecodable = sum(&worker.undecodable.values().copied().collect::<Vec<_>>());
        let dropped = sum(&worker.dropped.values().copied().collect::<Vec<_>>());
        check(
            &account,
            "received = decoded + undecodable",
            &[worker.received],
            &[worker.decoded, undecodable],
        );
        check(
            &account,
            "received = written + dropped",
            &[worker.received],
            &[worker.written, dropped],
        );
        received = received.saturating_add(worker.received);
    }
    check("workers", "received by queues and files = by workers", &[arrived], &[received]);
    found
}

/// Saturating: a damaged line can hold any numbers.
fn sum(terms: &[u64]) -> u64 {
    terms.iter().fold(0, |sum, term| sum.saturating_add(*term))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drops::DropReason;
    use crate::ledger::{Interface, Queue, Worker, Xdp};
    use crate::store::RunId;
    use capture_flow::time::Nanos;

    fn balanced() -> LedgerLine {
        let run = RunId::parse("20260101T000000Z-00000000").unwrap();
        let mut line = LedgerLine::new("s", &run, 0, Nanos(0), Nanos(1));
        line.interfaces.push(Interface {
            name: "eth0".into(),
            queues: vec![Queue {
                xdp: Xdp {
                    seen: 10,
                    steered: 7,
                    passed: 1,
                    no_socket: 1,
                    aborted: 1,
                    ..Xdp::default()
                },
                in_ring_before: 2,
                in_ring_after: 1,
                received: 5,
                ring_losses: 3,
                ..Queue::default()
            }],
            ..Interface::default()
        });
        line.workers.push(Worker {
            received: 5,
            decoded: 4,
            undecodable: [("truncated".to_owned(), 1)].into(),
            written: 3,
            dropped: [(DropReason::NoSegment, 2)].into(),
            ..Worker::default()
        });
        line
    }

    #[test]
    fn a_balanced_line_has_no_imbalance() {
        assert_eq!(imbalances(&balanced()), []);
    }

    #[test]
    fn every_term_matters() {
        let edits: [fn(&mut LedgerLine); 12] = [
            |l| l.interfaces[0].queues[0].xdp.seen += 1,
            |l| l.interfaces[0].queues[0].xdp.steered += 1,
            |l| l.interfaces[0].queues[0].xdp.passed += 1,
            |l| l.interfaces[0].queues[0].xdp.no_socket += 1,
            |l| l.interfaces[0].queues[0].xdp.aborted += 1,
            |l| l.interfaces[0].queues[0].ring_losses += 1,
            |l| l.interfaces[0].queues[0].received += 1,
            |l| l.interfaces[0].queues[0].in_ring_after += 1,
            |l| l.workers[0].decoded += 1,
            |l| l.workers[0].written += 1,
            |l| l.workers[0].dropped = [(DropReason::DiskFull, 1)].into(),
            |l| l.workers[0].undecodable.clear(),
        ];
        for (number, edit) in edits.iter().enumerate() {
            let mut line = balanced();
            edit(&mut line);
            assert!(!imbalances(&line).is_empty(), "edit {number} went unnoticed");
        }
    }

    #[test]
    fn absurd_numbers_do_not_overflow() {
        let mut line = balanced();
        line.workers[0].written = u64::MAX;
        line.interfaces[0].queues[0].xdp.passed = u64::MAX;
        assert_eq!(imbalances(&line).len(), 2);
    }
}
