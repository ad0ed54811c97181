//! Where heads can be kept.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use capture_store::ledger::Anchor;
use capture_store::signed::Signature;

/// Facility `daemon`, severity `notice` (RFC 5424, section 6.2.1).
const PRIORITY: u8 = 3 * 8 + 5;
/// The local syslog daemon's socket.
const LOCAL: &str = "/dev/log";
/// Syslog over UDP (RFC 5426).
const PORT: u16 = 514;
/// What a place begins with that is no file.
const SYSLOG: &str = "syslog:";

/// A place for heads.
#[derive(Clone, Debug)]
pub enum Place {
    /// A file to append to.
    File(AnchorFile),
    /// The syslog daemon of this host.
    LocalSyslog,
    /// A syslog daemon elsewhere, by UDP: nobody knows whether it came.
    Syslog {
        /// Name or address.
        host: String,
        /// Its port.
        port: u16,
    },
}

/// Reads `--anchor`.
///
/// # Errors
/// What a place can be.
pub fn parse_place(text: &str) -> Result<Place, String> {
    let Some(host) = text.strip_prefix(SYSLOG) else {
        return match text {
            "" => Err("a file, or syslog:[HOST[:PORT]]".to_owned()),
            path => Ok(Place::File(AnchorFile::new(Path::new(path)))),
        };
    };
    if host.is_empty() {
        return Ok(Place::LocalSyslog);
    }
    // An IPv6 address has colons of its own, and brackets where a port follows.
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, None),
        Some((address, port)) => (address, port.strip_prefix(':')),
        None if host.matches(':').count() > 1 => (host, None),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let port = port.map_or(Ok(PORT), str::parse).map_err(|_| format!("{host:?}: not a port"))?;
    if name.is_empty() {
        return Err(format!("{host:?} names no host"));
    }
    Ok(Place::Syslog { host: name.to_owned(), port })
}

impl Place {
    /// Opens what stays open.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.open(),
            _ => Ok(()),
        }
    }

    /// The last anchor of a sensor that is kept there and can be read back.
    #[must_use]
    pub fn last_anchor(&self, sensor_id: &str) -> Option<Anchor> {
        /// Some hundred anchors.
        const TAIL: u64 = 1 << 16;
        let Self::File(AnchorFile { file: Some(file), .. }) = self else { return None };
        let len = file.metadata().ok()?.len();
        let mut tail = vec![0; usize::try_from(len.min(TAIL)).ok()?];
        file.read_exact_at(&mut tail, len.saturating_sub(TAIL)).ok()?;
        let lines = tail.split(|byte| *byte == b'\n').rev().filter_map(Anchor::parse);
        let mut own = lines.filter(|(anchor, signature)| {
            anchor.sensor_id == sensor_id && *signature == Signature::Valid
        });
        own.next().map(|(anchor, _)| anchor)
    }

    /// Keeps a line.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::File(file) => file.append(line),
            Self::LocalSyslog => {
                let socket = UnixDatagram::unbound()?;
                socket.send_to(local_message(line).as_bytes(), LOCAL).map(drop)
            }
            Self::Syslog { host, port } => {
                let mut failed = io::Error::other("the name has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let sent = UdpSocket::bind(any)
                        .and_then(|socket| socket.send_to(message(line).as_bytes(), address));
                    match sent {
                        Ok(_) => return Ok(()),
                        Err(error) => failed = error,
                    }
                }
                Err(failed)
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.path.display()),
            Self::LocalSyslog => f.write_str(SYSLOG),
            Self::Syslog { host, port } => write!(f, "{SYSLOG}{host}:{port}"),
        }
    }
}

/// As local daemons expect it: without the host.
fn local_message(line: &str) -> String {
    let now = jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::system());
    let now = now.strftime("%b %e %H:%M:%S").to_string();
    format!("<{PRIORITY}>{now} stillwired[{}]: {line}", std::process::id())
}

/// RFC 5424, section 6.
fn message(line: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String = host.trim().chars().filter(char::is_ascii_graphic).take(255).collect();
    let host = if host.is_empty() { "-" } else { &host };
    let now = jiff::Timestamp::now();
    format!("<{PRIORITY}>1 {now:.6} {host} stillwired {} anchor - {line}", std::process::id())
}

/// A file to append to. It stays open, so that capabilities given up later are not missed, unless
/// somebody has put another one in its place.
#[derive(Debug)]
pub struct AnchorFile {
    path: PathBuf,
    file: Option<File>,
}

impl Clone for AnchorFile {
    fn clone(&self) -> Self {
        Self::new(&self.path)
    }
}

impl AnchorFile {
    /// Not open yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None }
    }

    fn open(&mut self) -> io::Result<()> {
        let there = std::fs::metadata(&self.path).ok().map(|there| (there.dev(), there.ino()));
        let open = self.file.as_ref().and_then(|file| file.metadata().ok());
        let open = open.map(|open| (open.dev(), open.ino()));
        if open.is_none() || open != there {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(capture_store::layout::FILE_MODE);
            self.file = Some(options.open(&self.path)?);
        }
        Ok(())
    }

    fn append(&mut self, line: &str) -> io::Result<()> {
        self.open()?;
        let Some(file) = &mut self.file else { return Err(io::Error::other("it is not open")) };
        let len = file.metadata()?.len();
        let mut last = [b'\n'];
        if len > 0 {
            file.read_exact_at(&mut last, len - 1)?;
        }
        // What was cut off before stays a line of its own.
        let begin = if last == [b'\n'] { "" } else { "\n" };
        file.write_all(format!("{begin}{line}\n").as_bytes())?;
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_files_or_syslog() {
        let shown = |text: &str| parse_place(text).map(|place| place.to_string());
        assert_eq!(shown("/mnt/a").as_deref(), Ok("/mnt/a"));
        assert_eq!(shown("syslog:").as_deref(), Ok("syslog:"));
        assert_eq!(shown("syslog:log.example").as_deref(), Ok("syslog:log.example:514"));
        assert_eq!(shown("syslog:192.0.2.1:1514").as_deref(), Ok("syslog:192.0.2.1:1514"));
        assert_eq!(shown("syslog:2001:db8::1").as_deref(), Ok("syslog:2001:db8::1:514"));
        assert_eq!(shown("syslog:[2001:db8::1]:6").as_deref(), Ok("syslog:2001:db8::1:6"));
        assert!(shown("").is_err() && shown("syslog::5").is_err() && shown("syslog:a:b").is_err());
    }

    #[test]
    fn a_syslog_message_carries_the_anchor_whole() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = receiver.local_addr().unwrap().port();
        let mut place = parse_place(&format!("syslog:127.0.0.1:{port}")).unwrap();
        place.append("{\"anchor\":1}").unwrap();
        let mut datagram = [0; 1024];
        let length = receiver.recv(&mut datagram).unwrap();
        let text = std::str::from_utf8(&datagram[..length]).unwrap();
        assert!(
            text.starts_with("<29>1 2") && text.ends_with(" anchor - {\"anchor\":1}"),
            "{text}"
        );
        assert!(local_message("x").starts_with("<29>"));
    }
}
