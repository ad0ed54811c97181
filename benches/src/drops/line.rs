//! The link under test: what the generator sends on it, and what the kernel counts there.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use capture_user::link::Link;
use stillwire_tests::process::await_until;
use stillwire_tests::{Namespace, Wire};

use super::plan::{On, Plan};

/// A link with the bench at both ends.
#[derive(Debug)]
pub(crate) struct Line {
    sender: Option<End>,
    receiver: End,
    /// What the sending interface had counted before.
    before: Counted,
    /// The namespaces and the link between them, if they are the bench's own: taken down when
    /// dropped.
    wire: Option<Wire>,
}

/// An interface, and where it is.
#[derive(Clone, Debug)]
pub(crate) struct End {
    iface: String,
    site: Site,
}

/// Where programs run: in a namespace, or in the one that the bench was started in.
#[derive(Clone, Debug)]
pub(crate) struct Site(Option<String>);

/// What an interface has counted of what it was to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Frames that went onto the link.
    pub(crate) carried: u64,
    /// Frames that it refused.
    pub(crate) refused: u64,
}

impl Site {
    /// A command that runs there.
    pub(crate) fn command(&self, program: &str) -> Command {
        match &self.0 {
            Some(name) => Namespace::existing(name).command(program),
            None => Command::new(program),
        }
    }

    /// Runs something there, on a thread of its own or on this one.
    pub(crate) fn enter<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        match &self.0 {
            Some(name) => Namespace::existing(name).enter(f),
            None => f(),
        }
    }
}

impl Line {
    /// Builds the link, or looks at the one that there is. A link of the bench's own is made anew
    /// for every load, so that none finds what another has left.
    pub(crate) fn new(plan: &Plan) -> Result<Self> {
        let mut line = match &plan.on {
            On::Own { queues } => {
                let mtu = plan.traffic.recipe.longest.saturating_sub(14).max(1500);
                let wire = Wire::with().queues(*queues).mtu(mtu).build()?;
                // Frames that an XDP program sends reach a packet socket only if the receiving end
                // polls, as it does for its XDP program, or for this.
                wire.sensor
                    .run("ethtool", &["-K", Wire::SENSOR, "gro", "on"])
                    .context("turning on GRO, for the subjects with packet sockets")?;
                let end = |iface: &str, namespace: &Namespace| End {
                    iface: iface.to_owned(),
                    site: Site(Some(namespace.name().to_owned())),
                };
                Self {
                    sender: Some(end(Wire::SENDER, &wire.sender)),
                    receiver: end(Wire::SENSOR, &wire.sensor),
                    before: Counted::default(),
                    wire: Some(wire),
                }
            }
            On::Real { receiver, sender } => {
                let end = |iface: &String| End { iface: iface.clone(), site: Site(None) };
                Self {
                    sender: sender.as_ref().map(end),
                    receiver: end(receiver),
                    before: Counted::default(),
                    wire: None,
                }
            }
        };
        line.before = line.counted()?;
        Ok(line)
    }

    /// The interface that frames leave by, and where it is.
    pub(crate) fn sender(&self) -> Result<(&str, &Site)> {
        let end = self.sender.as_ref().context(
            "this generator sends by an interface of this machine: name it with --send-iface",
        )?;
        Ok((&end.iface, &end.site))
    }

    /// The interface that subjects listen on.
    pub(crate) fn receiver(&self) -> &str {
        &self.receiver.iface
    }

    /// Where the subjects run.
    pub(crate) fn receiver_site(&self) -> &Site {
        &self.receiver.site
    }

    /// Where frames are sent: the bench's own machine where that is elsewhere.
    pub(crate) fn sender_site(&self) -> &Site {
        self.sender.as_ref().map_or(&self.receiver.site, |end| &end.site)
    }

    /// A command that runs where the subjects run, on some cores only.
    pub(crate) fn subject_command(&self, cores: &[usize], line: &[OsString]) -> Command {
        let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
        let mut command = self.receiver.site.command("taskset");
        // Both programs hand the process over to the next: its id stays the subject's.
        command.args(["--cpu-list", &cores.join(",")]).args(line);
        // Colours would split the words that we wait for.
        command.env("NO_COLOR", "1");
        // Ctrl-C at the terminal is for the bench, which ends its subjects in order.
        command.process_group(0);
        command
    }

    /// What the sending interface has counted of a load, once it agrees with how many frames were
    /// handed to it: the receiving end of a veth counts in its own time.
    pub(crate) fn sent(&self, frames: u64) -> Result<Counted> {
        let counted = await_until(&format!("the link to account for {frames} frames"), || {
            let counted = self.sent_so_far()?;
            Ok((counted.carried + counted.refused >= frames).then_some(counted))
        })?;
        // On another link others may send as well.
        ensure!(
            self.wire.is_none() || counted.carried + counted.refused == frames,
            "the generator made {frames} frames, but the link counted {counted:?}"
        );
        Ok(counted)
    }

    /// What the sending interface has counted of a load.
    pub(crate) fn sent_so_far(&self) -> Result<Counted> {
        let now = self.counted()?;
        Ok(Counted {
            carried: now.carried.saturating_sub(self.before.carried),
            refused: now.refused.saturating_sub(self.before.refused),
        })
    }

    fn counted(&self) -> Result<Counted> {
        let Some(End { iface, site }) = &self.sender else { return Ok(Counted::default()) };
        let read = |name: &str| {
            // The command sees the /sys of where it runs.
            let path = Path::new("/sys/class/net").join(iface).join("statistics").join(name);
            let text = stillwire_tests::netns::run(site.command("cat").arg(&path))?;
            text.trim().parse::<u64>().with_context(|| format!("reading {name} of {iface}"))
        };
        Ok(Counted { carried: read("tx_packets")?, refused: read("tx_dropped")? })
    }

    /// Who listens on the receiving interface.
    pub(crate) fn listeners(&self) -> Result<Listeners> {
        let iface = &self.receiver.iface;
        self.receiver.site.enter(|| {
            let link = Link::by_name(iface)?;
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
