//! The link under test: what the generator sends on it, and what the kernel counts there.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use capture_user::link::Link;
use stillwire_tests::process::await_until;
use stillwire_tests::traffic::{self, Sent};
use stillwire_tests::{Namespace, Wire};

use super::plan::Plan;

/// A veth pair between two namespaces of the bench's own, made anew for every load so that none
/// finds what another has left.
#[derive(Debug)]
pub(crate) struct Line {
    wire: Wire,
}

impl Line {
    /// Builds the link.
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let mtu = plan.traffic.recipe.longest.saturating_sub(14).max(1500);
        let wire = Wire::with().queues(plan.queues).mtu(mtu).build()?;
        // Frames that an XDP program sends reach a packet socket only if the receiving end polls,
        // as it does for its XDP program, or for this.
        wire.sensor
            .run("ethtool", &["-K", Wire::SENSOR, "gro", "on"])
            .context("turning on GRO, for the subjects with packet sockets")?;
        Ok(Self { wire })
    }

    /// The interface that frames leave by.
    pub(crate) fn sender(&self) -> &'static str {
        Wire::SENDER
    }

    /// The interface that subjects listen on.
    pub(crate) fn receiver(&self) -> &'static str {
        Wire::SENSOR
    }

    /// A command that runs where the subjects run, on some cores only.
    pub(crate) fn subject_command(&self, cores: &[usize], line: &[OsString]) -> Command {
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        let mut command = self.wire.sensor.command("taskset");
        // Both programs hand the process over to the next: its id stays the subject's.
        command.args(["--cpu-list", &cores.join(",")]).args(line);
        // Colours would split the words that we wait for.
        command.env("NO_COLOR", "1");
        command
    }

    /// Where the subjects run.
    pub(crate) fn subject_namespace(&self) -> &Namespace {
        &self.wire.sensor
    }

    /// Runs something where frames are sent.
    pub(crate) fn at_sender<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.wire.sender.enter(f)
    }

    /// What the kernel has counted at the sender, once it agrees with how many frames were handed
    /// to it: the receiving end counts in its own time.
    pub(crate) fn sent(&self, frames: u64) -> Result<Sent> {
        await_until(&format!("the link to account for {frames} frames"), || {
            let sent = traffic::sent(&self.wire)?;
            Ok((sent.carried + sent.refused >= frames).then_some(sent))
        })
    }

    /// Who listens on the receiving interface.
    pub(crate) fn listeners(&self) -> Result<Listeners> {
        self.wire.sensor.enter(|| {
            let link = Link::by_name(Wire::SENSOR)?;
            let path = Path::new("/proc/thread-self/net/packet");
            let table = std::fs::read_to_string(path)
                .with_context(|| format!("reading {}", path.display()))?;
            Ok(Listeners { sockets: receiving(&table, link.index), xdp: link.xdp.is_some() })
        })
    }
}

/// Who listens on an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listeners {
    /// Packet sockets that receive.
    pub(crate) sockets: usize,
    /// An XDP program is attached.
    pub(crate) xdp: bool,
}

/// Sockets of `/proc/net/packet` that are bound to an interface and receive.
fn receiving(table: &str, interface: u32) -> usize {
    table
        .lines()
        .skip(1)
        .filter(|line| {
            // sk RefCnt Type Proto Iface R Rmem User Inode
            let fields: Vec<&str> = line.split_whitespace().collect();
            let proto = fields.get(3).is_some_and(|proto| *proto != "0000");
            let here = fields.get(4).and_then(|index| index.parse().ok()) == Some(interface);
            proto && here && fields.get(5) == Some(&"1")
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_receive_are_told_from_those_being_set_up() {
        let table = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                     00000000a1b2c3d4 3      3    0003   2     1 0      0      4711\n\
                     00000000a1b2c3d5 3      3    0000   2     0 0      0      4712\n\
                     00000000a1b2c3d6 3      3    0003   7     1 0      0      4713\n\
                     00000000a1b2c3d7 3      3    0003   2     0 0      0      4714\n";
        assert_eq!(receiving(table, 2), 1);
        assert_eq!(receiving(table, 7), 1);
        assert_eq!(receiving(table, 3), 0);
        assert_eq!(receiving("", 2), 0);
    }
}
