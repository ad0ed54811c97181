//! `stillwired canary`: speaks at intervals.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use capture_store::key::SecretKey;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing::{info, warn};

use super::frame::{Canary, DESTINATION, ETHER_TYPE};
use crate::args::CanaryArgs;
use crate::confine::Kept;
use crate::link::Link;

/// What `canary` shall do.
#[derive(Clone, Debug)]
pub struct CanaryConfig {
    /// The interface to speak on.
    pub interface: String,
    /// How often.
    pub interval: Duration,
    /// Where the key is, or is made.
    pub key: PathBuf,
    /// Stop after so many frames.
    pub count: Option<u64>,
}

impl CanaryConfig {
    /// Checks the arguments.
    ///
    /// # Errors
    /// Names the argument and what it can be.
    pub fn new(args: CanaryArgs) -> Result<Self> {
        if args.interval < Duration::from_millis(100) {
            bail!("--interval: at least 100ms");
        }
        let CanaryArgs { interface, interval, key, count } = args;
        Ok(Self { interface, interval, key, count })
    }
}

/// Sends canaries until it is told to stop.
///
/// # Errors
/// It could not begin, and why. A link that is down is waited for.
pub fn canary(config: &CanaryConfig) -> Result<ExitCode> {
    let stop = stop_signal().context("cannot watch for signals")?;
    let link = Link::by_name(&config.interface)?;
    if let Some(dir) = config.key.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    let (key, made) = SecretKey::open_or_create(&config.key)?;
    if made {
        info!("a key was made in {}; it stays on this host", config.key.display());
    }
    let mut socket = Socket::open(&link)?;
    // Nothing but sending is left to do.
    Kept::nothing().confine();
    info!(
        "a canary every {} s on {}; the sensor counts it with\n  --canary {}",
        config.interval.as_secs_f64(),
        link.name,
        key.public()
    );
    let mut failing = false;
    let mut next = Instant::now();
    for counter in 0_u64.. {
        if config.count.is_some_and(|count| counter >= count) {
            break;
        }
        let payload = Canary::sign(counter, crate::live::clock(), &key);
        match socket.send(&payload) {
            Ok(()) => {
                if std::mem::take(&mut failing) {
                    info!("canaries leave {} again", link.name);
                }
            }
            Err(error) => {
                // Removed and made again, it has another number.
                if let Ok(link) = Link::by_name(&config.interface) {
                    socket.aim(&link);
                }
                if !std::mem::replace(&mut failing, true) {
                    warn!("no canary leaves {}: {error}; going on trying", link.name);
                }
            }
        }
        next += config.interval;
        if config.count.is_some_and(|count| counter.saturating_add(1) >= count) {
            break;
        }
        if is_told_to_stop(&stop, next.saturating_duration_since(Instant::now()))? {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Readable once a signal asks for the end.
fn stop_signal() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Waits for the signal, this long at most.
fn is_told_to_stop(stop: &UnixStream, wait: Duration) -> Result<bool> {
    let wait = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let mut fds = [PollFd::new(stop, PollFlags::IN)];
    match poll(&mut fds, Some(&wait)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(io::Error::from(error)).context("cannot wait"),
    }
}

/// Sends frames on one interface.
struct Socket {
    fd: OwnedFd,
    head: [u8; 14],
    address: libc::sockaddr_ll,
}

impl Socket {
    fn open(link: &Link) -> Result<Self> {
        // Protocol 0: the socket receives no frame.
        let fd = rustix::net::socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        );
        let fd = fd.map_err(|error| match error {
            rustix::io::Errno::PERM => anyhow::anyhow!(crate::privilege::explain_socket()),
            other => io::Error::from(other).into(),
        });
        let fd = fd.with_context(|| format!("cannot open a packet socket for {}", link.name))?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETHER_TYPE.to_be(),
            sll_ifindex: 0,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: DESTINATION.len() as u8,
            sll_addr: [0; 8],
        };
        let mut socket = Self { fd, head: [0; 14], address };
        socket.aim(link);
        Ok(socket)
    }

    /// Sends through this interface from now on.
    fn aim(&mut self, link: &Link) {
        let mut head = [0; 14];
        let (to, rest) = head.split_at_mut(6);
        let (from, ether_type) = rest.split_at_mut(6);
        to.copy_from_slice(&DESTINATION);
        // Loopback and tunnels have another address, or none.
        for (to, byte) in from.iter_mut().zip(&link.address) {
            *to = *byte;
        }
        ether_type.copy_from_slice(&ETHER_TYPE.to_be_bytes());
        self.head = head;
        self.address.sll_ifindex = link.index.cast_signed();
        for (to, byte) in self.address.sll_addr.iter_mut().zip(DESTINATION) {
            *to = byte;
        }
    }

    fn send(&self, payload: &[u8]) -> io::Result<()> {
        let frame = [&self.head, payload].concat();
        // SAFETY: the frame and the address live for the call and have the given sizes.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                std::ptr::from_ref(&self.address).cast(),
                size_of_val(&self.address) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
