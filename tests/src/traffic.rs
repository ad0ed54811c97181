//! Traffic for the wire: trafgen makes as many frames as it is told, at a chosen pace.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use crate::process::Program;
use crate::wire::Wire;

/// Bytes before the payload of the frames: Ethernet, IPv4, UDP.
const HEADERS: u32 = 14 + 20 + 8;

/// How fast frames leave.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As many a second. trafgen sends each second's frames in one burst at its full speed (about
    /// half a million a second) and then rests until the second is over.
    PerSecond(u32),
    /// One frame after the other, with a rest of some microseconds between them.
    Gap(u32),
    /// No rest at all.
    Flood,
}

/// UDP frames from 10.1.0.1 to 10.1.0.2 port 2000; the flows differ in their source port.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// How many; 0 goes on until it is ended.
    pub count: u64,
    /// Length of each as captured, from the Ethernet header on and without the checksum behind it.
    pub bytes: u32,
    /// Flows that they are dealt out to in turn.
    pub flows: u16,
    /// How fast.
    pub pace: Pace,
}

/// First source port of [`Frames`]: none of those from here on is taken for a server's by Zeek's
/// rules, so every flow has its sender for its originator.
pub const FIRST_PORT: u16 = 40_000;

/// What became of the frames at the sender, by its interface's own counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Frames that went onto the wire.
    pub carried: u64,
    /// Frames that the wire refused: the receiving end's queue was full, so no sensor can have
    /// seen them.
    pub refused: u64,
}

impl Frames {
    /// Sends all of them over the wire and counts at the sender's interface.
    ///
    /// # Errors
    /// Where trafgen fails or the interface's counters do not add up to what it was told to send.
    pub fn send(&self, wire: &Wire) -> Result<Sent> {
        let before = sent(wire)?;
        self.start(wire)?.program.wait()?.success().context("trafgen")?;
        let after = sent(wire)?;
        let sent = Sent {
            carried: after.carried - before.carried,
            refused: after.refused - before.refused,
        };
        ensure!(
            sent.carried + sent.refused == self.count,
            "trafgen was told to send {} frames, the interface counted {sent:?}",
            self.count
        );
        Ok(sent)
    }

    /// Starts sending and comes back at once.
    ///
    /// # Errors
    /// Where trafgen cannot be started.
    pub fn start(&self, wire: &Wire) -> Result<Sending> {
        let recipe = self.recipe()?;
        let mut command = wire.sender.command("trafgen");
        // One process on one CPU: which queue a frame takes is the wire's choice.
        command.args(["--dev", Wire::SENDER, "--cpus", "1", "--jumbo-support"]);
        command.args(["--num", &self.count.to_string()]).arg("--conf").arg(recipe.path());
        match self.pace {
            Pace::PerSecond(frames) => command.arg("--rate").arg(format!("{frames}pps")),
            Pace::Gap(micros) => command.arg("--gap").arg(format!("{micros}us")),
            Pace::Flood => &mut command,
        };
        Ok(Sending { program: Program::start(&mut command)?, _recipe: recipe })
    }

    /// Writes them to a capture file instead (microseconds, little endian).
    ///
    /// # Errors
    /// Where trafgen fails.
    pub fn write(&self, file: &Path) -> Result<()> {
        let recipe = self.recipe()?;
        let mut command = Command::new("trafgen");
        command.args(["--cpus", "1", "--jumbo-support", "--num", &self.count.to_string()]);
        command.arg("--conf").arg(recipe.path()).arg("--out").arg(file);
        crate::netns::run(&mut command).context("trafgen")?;
        Ok(())
    }

    /// The frames in trafgen's language.
    fn recipe(&self) -> Result<NamedTempFile> {
        let payload =
            self.bytes.checked_sub(HEADERS).context("a frame shorter than its headers")?;
        let last = FIRST_PORT + self.flows.max(1) - 1;
        let mut recipe = NamedTempFile::new()?;
        writeln!(
            recipe,
            "{{ eth(da=02:00:00:00:00:02, sa=02:00:00:00:00:01), \
             ipv4(saddr=10.1.0.1, daddr=10.1.0.2), \
             udp(sport=dinc({FIRST_PORT}, {last}), dport=2000), fill('x', {payload}) }}"
        )?;
        Ok(recipe)
    }
}

/// trafgen at work; ended when dropped.
#[derive(Debug)]
pub struct Sending {
    /// The program.
    pub program: Program,
    /// Read by trafgen when it starts, so it must outlive that.
    _recipe: NamedTempFile,
}

/// What the sender's interface has counted so far.
///
/// # Errors
/// Where the counters cannot be read.
pub fn sent(wire: &Wire) -> Result<Sent> {
    Ok(Sent {
        carried: wire.sender_counter("tx_packets")?,
        refused: wire.sender_counter("tx_dropped")?,
    })
}

/// Sends UDP frames whose payload carries a number and the time they were sent at, `micros` apart;
/// gives the times (nanoseconds since 1970) in order.
///
/// # Errors
/// Where the sending program fails.
pub fn send_stamped(wire: &Wire, count: u32, micros: u32) -> Result<Vec<u64>> {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/programs/stamped-frames");
    let mut command: Command = wire.sender.command("python3");
    command.args([program, Wire::SENDER, &count.to_string(), &micros.to_string()]);
    let output = crate::netns::run(&mut command)?;
    output.lines().map(|line| line.parse().context("a send time")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_frames_of_all_sizes_cross_an_idle_wire() {
        let wire = Wire::with().mtu(9000).queues(2).spread_by_flow().build().unwrap();
        let mut crossed = 0;
        for (bytes, pace) in
            [(64, Pace::Flood), (1514, Pace::PerSecond(10_000)), (9000, Pace::Gap(20))]
        {
            let frames = Frames { count: 2000, bytes, flows: 10, pace };
            assert_eq!(frames.send(&wire).unwrap(), Sent { carried: 2000, refused: 0 });
            crossed += 2000;
            assert_eq!(wire.sensor_counter("rx_packets").unwrap(), crossed);
        }
        let bytes = 2000 * (64 + 1514 + 9000);
        assert_eq!(wire.sensor_counter("rx_bytes").unwrap(), bytes);
    }

    #[test]
    fn a_capture_file_holds_the_frames_that_a_wire_would_carry() {
        let file = NamedTempFile::with_suffix(".pcap").unwrap();
        let frames = Frames { count: 30, bytes: 100, flows: 10, pace: Pace::Flood };
        frames.write(file.path()).unwrap();
        let rows = crate::outside::tshark_fields(file.path(), "udp", &["udp.srcport", "frame.len"])
            .unwrap();
        assert_eq!(rows.len(), 30);
        let ports: std::collections::BTreeSet<_> = rows.iter().map(|row| &row[0]).collect();
        assert_eq!(ports.len(), 10);
        assert!(rows.iter().all(|row| row[1] == "100"), "{rows:?}");
    }

    #[test]
    fn stamped_frames_tell_when_they_were_sent() {
        let wire = Wire::new().unwrap();
        let moments = send_stamped(&wire, 100, 50).unwrap();
        assert_eq!(wire.sensor_counter("rx_packets").unwrap(), 100);
        assert!(moments.len() == 100 && moments.is_sorted());
    }
}
