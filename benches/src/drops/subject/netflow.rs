//! Flow records on their way from an exporter to nfdump.
//!
//! At its end an exporter sends everything it knows in one burst, and nfcapd's socket has room for
//! a part of it only. So the datagrams are taken in by a socket that has room for all, and handed
//! to nfcapd afterwards, as fast as it takes them: what is missing then, the exporter has lost.

use std::collections::VecDeque;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use stillwire_tests::netns::run;
use stillwire_tests::process::{Program, await_until};

use crate::drops::line::{Line, Site};

/// Where exporters send to.
pub(super) const PORT: u16 = 9995;
/// Where nfcapd listens.
const NFCAPD_PORT: u16 = 9996;
/// Room for datagrams: some hundred thousand.
const ROOM_BYTES: usize = 512 << 20;
/// How often it is asked whether it is over.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes in nfcapd's socket beyond which it gets time to read.
const WAITING: u64 = 32 << 10;

/// Takes datagrams in until it is asked for what they say.
#[derive(Debug)]
pub(crate) struct Collector {
    site: Site,
    over: Arc<AtomicBool>,
    taking: Option<JoinHandle<std::io::Result<VecDeque<Vec<u8>>>>>,
}

impl Collector {
    /// Opens the socket where the subjects run.
    pub(super) fn start(line: &Line) -> Result<Self> {
        let site = line.receiver_site().clone();
        let socket = site.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, PORT))
                .with_context(|| format!("listening on port {PORT}"))?;
            // Beyond the machine's limit, which root may be.
            set_socket_recv_buffer_size_force(&socket, ROOM_BYTES)
                .context("making room for flow records")?;
            socket.set_read_timeout(Some(LOOK))?;
            Ok(socket)
        })?;
        let over = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&over);
        let taking = Some(std::thread::spawn(move || take(&socket, &asked)));
        Ok(Self { site, over, taking })
    }

    /// Packets in all flow records, as nfdump counts them.
    pub(super) fn packets(mut self, dir: &Path) -> Result<u64> {
        self.over.store(true, Ordering::SeqCst);
        let taking = self.taking.take().context("the collector is over already")?;
        let taken = taking.join().map_err(|_| anyhow!("the collector has failed"))??;
        let flows = dir.join("flows");
        fs::create_dir(&flows).with_context(|| format!("making {}", flows.display()))?;
        // -t: one file, whatever the time is.
        let port = NFCAPD_PORT.to_string();
        let mut nfcapd = self.site.command("nfcapd");
        nfcapd.args(["-b", "127.0.0.1", "-p", &port, "-t", "86400", "-w"]).arg(&flows);
        let program = Program::start(&mut nfcapd)?;
        await_until("nfcapd to listen", || self.site.enter(|| Ok(waiting()?.map(|_| ()))))?;
        self.site.enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            for datagram in &taken {
                await_until("nfcapd to read", || {
                    let waits = waiting()?.context("nfcapd has ended early")?;
                    Ok((waits < WAITING).then_some(()))
                })?;
                socket.send_to(datagram, (Ipv4Addr::LOCALHOST, NFCAPD_PORT))?;
            }
            await_until("nfcapd to read the rest", || {
                Ok(waiting()?.is_none_or(|waits| waits == 0).then_some(()))
            })
        })?;
        let ended = program.interrupt()?;
        let told = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(ended.code == Some(0), "nfcapd: {told}");
        // Version 9 numbers its datagrams.
        ensure!(told.contains("Sequence Errors: 0,"), "flow records were lost on the way: {told}");
        let text = run(std::process::Command::new("nfdump").arg("-R").arg(&flows).arg("-I"))?;
        let packets = text.lines().find_map(|line| line.strip_prefix("Packets:"));
        let packets = packets.and_then(|number| number.trim().parse().ok());
        packets.with_context(|| format!("nfdump's number of packets in {text:?}"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Datagrams until it is over and none is left.
fn take(socket: &UdpSocket, over: &AtomicBool) -> std::io::Result<VecDeque<Vec<u8>>> {
    let mut taken = VecDeque::new();
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv(&mut buffer) {
            Ok(bytes) => taken.push_back(buffer.get(..bytes).unwrap_or_default().to_vec()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if over.load(Ordering::SeqCst) {
                    return Ok(taken);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes that wait in nfcapd's socket; `None` if it does not listen.
fn waiting() -> Result<Option<u64>> {
    let table = fs::read_to_string("/proc/thread-self/net/udp").context("reading the sockets")?;
    Ok(waiting_at(&table, NFCAPD_PORT))
}

/// The same from the kernel's table.
fn waiting_at(table: &str, port: u16) -> Option<u64> {
    let local = format!(":{port:04X}");
    table.lines().find_map(|line| {
        // sl local_address rem_address st tx_queue:rx_queue …
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(1)?.ends_with(&local).then_some(())?;
        u64::from_str_radix(fields.get(4)?.split_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_in_a_socket_is_read_from_the_table() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n\
                     65: 0100007F:270B 00000000:0000 07 00000000:00000000 00:00000000 00000000\n\
                     66: 0100007F:270C 00000000:0000 07 00000000:00001A40 00:00000000 00000000\n";
        assert_eq!(waiting_at(table, 9996), Some(0x1a40));
        assert_eq!(waiting_at(table, 9995), Some(0));
        assert_eq!(waiting_at(table, 9994), None);
    }
}
