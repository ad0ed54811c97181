//! A wire between two namespaces: a veth pair that carries exactly what a test sends.

use std::path::Path;

use anyhow::{Context, Result};

use crate::netns::Namespace;

/// What a wire should be like.
#[derive(Clone, Copy, Debug)]
pub struct WireSpec {
    queues: u32,
    mtu: u32,
    by_flow: bool,
}

impl Default for WireSpec {
    fn default() -> Self {
        Self { queues: 1, mtu: 1500, by_flow: false }
    }
}

impl WireSpec {
    /// Queues at each end. A frame sent by CPU c with AF_PACKET (trafgen) arrives on queue
    /// c modulo `queues` (`packet_pick_tx_queue` in the kernel's net/packet/af_packet.c).
    #[must_use]
    pub fn queues(mut self, queues: u32) -> Self {
        self.queues = queues;
        self
    }

    /// Largest packet without its Ethernet header.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// Spreads frames over the queues by the hash of their flow, as RSS does, whatever CPU sends
    /// them: each CPU may use every queue, and the kernel then picks by hash (`get_xps_queue` in
    /// net/core/dev.c).
    #[must_use]
    pub fn spread_by_flow(mut self) -> Self {
        self.by_flow = true;
        self
    }

    /// Makes the namespaces and the wire between them.
    ///
    /// # Errors
    /// Without root, `ip` and `ethtool`.
    pub fn build(self) -> Result<Wire> {
        let wire =
            Wire { sender: Namespace::new("tx")?, sensor: Namespace::new("rx")?, spec: self };
        wire.lay()?;
        Ok(wire)
    }
}

impl Wire {
    /// Lays the wire (again, after [`Wire::remove`]): both ends are new interfaces of the old names.
    ///
    /// # Errors
    /// As [`WireSpec::build`].
    pub fn lay(&self) -> Result<()> {
        let (sender, sensor, spec) = (&self.sender, &self.sensor, &self.spec);
        // Both ends get as many queues of both kinds: a veth refuses an XDP program while its peer
        // has more TX queues than it has RX queues.
        let queues = spec.queues.to_string();
        let counts = ["numtxqueues", &queues, "numrxqueues", &queues];
        let mut args = vec!["link", "add", Wire::SENDER];
        args.extend(counts);
        args.extend(["type", "veth", "peer", "name", Wire::SENSOR]);
        args.extend(counts);
        args.extend(["netns", sensor.name()]);
        sender.run("ip", &args).context("making the veth pair")?;
        let mtu = spec.mtu.to_string();
        for (namespace, interface) in [(sender, Wire::SENDER), (sensor, Wire::SENSOR)] {
            silence(namespace, interface)?;
            namespace
                .run("ip", &["link", "set", interface, "mtu", &mtu, "arp", "off", "up"])
                .with_context(|| format!("bringing {interface} up"))?;
        }
        if spec.by_flow {
            spread(sender, spec.queues)?;
        }
        Ok(())
    }

    /// Changes how many queues of each kind both ends use. What [`WireSpec::spread_by_flow`] set
    /// for queues that come back is set again.
    ///
    /// # Errors
    /// More than the wire was made with.
    pub fn use_queues(&self, queues: u32) -> Result<()> {
        let set = |namespace: &Namespace, interface| {
            let count = queues.to_string();
            namespace.run("ethtool", &["-L", interface, "rx", &count, "tx", &count]).map(drop)
        };
        // The sender may never have more transmit queues than the sensor has receive queues.
        if queues < self.spec.queues {
            set(&self.sender, Self::SENDER)?;
        }
        set(&self.sensor, Self::SENSOR)?;
        set(&self.sender, Self::SENDER)?;
        if self.spec.by_flow { spread(&self.sender, queues) } else { Ok(()) }
    }

    /// Removes both ends of the wire, as if the card had been pulled out.
    ///
    /// # Errors
    /// Where it is removed already.
    pub fn remove(&self) -> Result<()> {
        self.sensor.run("ip", &["link", "del", Self::SENSOR]).map(drop)
    }
}

/// Lets every CPU use every transmit queue.
fn spread(sender: &Namespace, queues: u32) -> Result<()> {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = possible.trim().rsplit(['-', ',']).next().unwrap_or_default();
    let cpus: u32 = last.parse::<u32>().context("the list of CPUs")? + 1;
    // The kernel takes 32-bit groups of hexadecimal digits, the highest first, and no bit beyond
    // the last CPU.
    let groups: Vec<String> = (0..cpus.div_ceil(32))
        .rev()
        .map(|group| {
            let bits = (cpus - group * 32).min(32);
            format!("{:08x}", u32::MAX >> (32 - bits))
        })
        .collect();
    for queue in 0..queues {
        let path = format!("/sys/class/net/{}/queues/tx-{queue}/xps_cpus", Wire::SENDER);
        let script = format!("echo {} > {path}", groups.join(","));
        sender.run("sh", &["-c", &script]).context("opening the queues to every CPU")?;
    }
    Ok(())
}

/// Keeps an interface from speaking by itself, and frames from being merged, split or stripped of
/// their VLAN tag on the way.
fn silence(namespace: &Namespace, interface: &str) -> Result<()> {
    namespace.set(&format!("ipv6/conf/{interface}/disable_ipv6"), "1")?;
    namespace
        .run(
            "ethtool",
            &[
                "-K", interface, "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro",
                "off", "txvlan", "off", "rxvlan", "off",
            ],
        )
        .with_context(|| format!("turning the offloads of {interface} off"))?;
    Ok(())
}

/// Two namespaces joined by a veth pair. See the drawing at the top of the crate.
#[derive(Debug)]
pub struct Wire {
    /// Where traffic starts, on [`Wire::SENDER`].
    pub sender: Namespace,
    /// Where the sensor listens, on [`Wire::SENSOR`].
    pub sensor: Namespace,
    spec: WireSpec,
}

impl Wire {
    /// The sender's interface.
    pub const SENDER: &'static str = "tx0";
    /// The sensor's interface.
    pub const SENSOR: &'static str = "tap0";

    /// A wire with one queue and an MTU of 1500.
    ///
    /// # Errors
    /// As [`WireSpec::build`].
    pub fn new() -> Result<Self> {
        WireSpec::default().build()
    }

    /// A wire made to measure: call [`WireSpec::build`] at the end.
    #[must_use]
    pub fn with() -> WireSpec {
        WireSpec::default()
    }

    /// What the sender's interface has counted, by the kernel's name (`tx_packets`, `tx_dropped`).
    ///
    /// # Errors
    /// Where the kernel has no such counter.
    pub fn sender_counter(&self, name: &str) -> Result<u64> {
        counter(&self.sender, Self::SENDER, name)
    }

    /// What the sensor's interface has counted, by the kernel's name.
    ///
    /// # Errors
    /// Where the kernel has no such counter.
    pub fn sensor_counter(&self, name: &str) -> Result<u64> {
        counter(&self.sensor, Self::SENSOR, name)
    }
}

fn counter(namespace: &Namespace, interface: &str, name: &str) -> Result<u64> {
    // `ip netns exec` mounts the namespace's own /sys: the file is the one of that interface.
    let path = Path::new("/sys/class/net").join(interface).join("statistics").join(name);
    let text = namespace.run("cat", &[&path.to_string_lossy()])?;
    text.trim().parse().with_context(|| format!("reading {name} of {interface}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_wire_is_silent_and_leaves_nothing_behind() {
        let wire = Wire::with().queues(2).mtu(9000).build().unwrap();
        let (sender, sensor) = (wire.sender.name().to_owned(), wire.sensor.name().to_owned());
        let mtu = wire.sensor.run("cat", &["/sys/class/net/tap0/mtu"]).unwrap();
        assert_eq!(mtu.trim(), "9000");
        let queues = wire.sensor.run("ls", &["/sys/class/net/tap0/queues"]).unwrap();
        assert_eq!(queues.split_whitespace().collect::<Vec<_>>(), ["rx-0", "rx-1", "tx-0", "tx-1"]);
        assert_eq!(wire.sender_counter("tx_packets").unwrap(), 0);
        assert_eq!(wire.sensor_counter("rx_packets").unwrap(), 0);
        drop(wire);
        let left = crate::netns::run(std::process::Command::new("ip").args(["netns", "list"]));
        let left = left.unwrap();
        assert!(!left.contains(&sender) && !left.contains(&sensor), "left behind: {left}");
    }

    #[test]
    fn a_thread_inside_sees_the_interfaces_of_the_namespace() {
        let wire = Wire::new().unwrap();
        let inside = wire
            .sensor
            .enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))
            .unwrap();
        assert!(inside.contains(Wire::SENSOR) && !inside.contains(Wire::SENDER), "{inside}");
        let outside = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(!outside.contains(Wire::SENSOR), "the caller has moved: {outside}");
    }
}
