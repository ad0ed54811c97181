//! `stillwired doctor`: looks at the machine as a sensor has to, and says what to change.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use rustix::process::{Resource, getrlimit};

use crate::args::DoctorArgs;
use crate::capture::carries_operator;
use crate::chain;
use crate::link::Link;
use crate::program::Program;
use crate::units::Bytes;

/// The oldest kernel whose XDP takes frames of several buffers.
const LEAST_KERNEL: (u32, u32) = (5, 18);

/// How a finding bears on a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// As it should be.
    Good,
    /// Works, but not as well as it could, or not for every frame.
    Warning,
    /// Capturing will not work.
    Fatal,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Fatal => "FAILS",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    text: String,
    /// What to do about it.
    remedy: Option<String>,
}

/// Findings about one subject.
#[derive(Debug)]
struct Section {
    subject: String,
    findings: Vec<Finding>,
}

impl Section {
    fn new(subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), findings: Vec::new() }
    }

    fn good(&mut self, text: impl Into<String>) {
        self.findings.push(Finding { weight: Weight::Good, text: text.into(), remedy: None });
    }

    fn add(&mut self, weight: Weight, text: impl Into<String>, remedy: impl Into<String>) {
        let remedy = Some(remedy.into());
        self.findings.push(Finding { weight, text: text.into(), remedy });
    }
}

/// Looks around and prints what it finds. Nothing is changed. The exit code is 1 if a capture
/// would not work.
///
/// # Errors
/// Interfaces cannot be listed, or standard output not be written.
pub fn doctor(args: &DoctorArgs) -> Result<ExitCode> {
    let mut sections = vec![machine()];
    let names = if args.interfaces.is_empty() { interfaces()? } else { args.interfaces.clone() };
    for name in &names {
        sections.push(interface(name));
    }
    if let Some(path) = &args.store {
        sections.push(store(path));
    }
    let mut out = io::stdout().lock();
    for section in &sections {
        print(&mut out, section).context("cannot print the findings")?;
    }
    let worst = sections.iter().flat_map(|section| &section.findings).map(|f| f.weight).max();
    Ok(if worst == Some(Weight::Fatal) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(out: &mut impl Write, section: &Section) -> io::Result<()> {
    writeln!(out, "{}", section.subject)?;
    for finding in &section.findings {
        writeln!(out, "  {:<8} {}", finding.weight, finding.text)?;
        if let Some(remedy) = &finding.remedy {
            writeln!(out, "           → {remedy}")?;
        }
    }
    Ok(())
}

/// Every interface but the loopback.
fn interfaces() -> Result<Vec<String>> {
    let entries = fs::read_dir("/sys/class/net").context("cannot list the interfaces")?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "lo").collect();
    names.sort();
    Ok(names)
}

fn machine() -> Section {
    let mut section = Section::new("machine");
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    kernel(&mut section, release.trim());

    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let admin = has(Capability::CAP_SYS_ADMIN);
    let needed = [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];
    let missing: Vec<String> = needed
        .into_iter()
        .filter(|c| !(has(*c) || admin && *c == Capability::CAP_BPF))
        .map(|c| c.to_string())
        .collect();
    if missing.is_empty() {
        section.good("capabilities: all that a capture needs to begin");
    } else {
        section.add(
            Weight::Fatal,
            format!("capabilities: {} missing", missing.join(", ")),
            "run as root, or give them with setcap or AmbientCapabilities= in a systemd unit",
        );
    }
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        Some(bytes) if !has(Capability::CAP_IPC_LOCK) => section.add(
            Weight::Warning,
            format!("locked memory: at most {}, a queue needs about 32 MiB", Bytes(bytes)),
            "give CAP_IPC_LOCK, or LimitMEMLOCK=infinity in a systemd unit",
        ),
        _ => section.good("locked memory: not limited"),
    }
    match rustix::thread::sched_getaffinity(None) {
        Ok(cores) => section.good(format!("cores for workers: {}", cores.count())),
        Err(error) => section.add(
            Weight::Warning,
            format!("cores for workers cannot be asked for: {error}"),
            "choose them with --cores",
        ),
    }
    section
}

fn kernel(section: &mut Section, release: &str) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    let version: (u32, u32) =
        (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version >= LEAST_KERNEL {
        section.good(format!("Linux {release}"));
    } else {
        let (major, minor) = LEAST_KERNEL;
        section.add(
            Weight::Fatal,
            format!("Linux {release} is older than {major}.{minor}"),
            "boot a newer kernel: older ones lose frames of several buffers",
        );
    }
}

fn interface(name: &str) -> Section {
    let mut section = Section::new(format!("interface {name}"));
    let link = match Link::by_name(name) {
        Ok(link) => link,
        Err(error) => {
            section.add(Weight::Fatal, chain(&error), "`ip link` lists the interfaces there are");
            return section;
        }
    };
    state(&mut section, &link);
    offloads(&mut section, &link);
    match &link.xdp {
        Some(xdp) => section.add(
            Weight::Fatal,
            format!("another XDP program (id {}) is attached", xdp.program_id),
            format!("`bpftool net show dev {name}` tells whose it is; end its owner"),
        ),
        None => match Program::load(name, link.rx_queues.max(1)) {
            Ok(_) => section.good("the kernel takes the XDP program"),
            Err(error) => {
                section.add(
                    Weight::Fatal,
                    chain(&error),
                    "without it nothing can be captured here",
                );
            }
        },
    }
    match link.carries_default_route() {
        Ok(true) => section.add(
            Weight::Warning,
            "this machine's default route goes through it: `capture` refuses it",
            "capture an interface that only listens; --allow-host-interface overrules",
        ),
        Ok(false) if carries_operator(&link) => section.add(
            Weight::Warning,
            "your own connection comes through it: `capture` refuses it",
            "capture an interface that only listens; --allow-host-interface overrules",
        ),
        Ok(false) => section.good("the host does not depend on it"),
        Err(error) => {
            section.add(Weight::Warning, chain(&error), "make sure that the host can spare it");
        }
    }
    section
}

fn state(section: &mut Section, link: &Link) {
    let name = &link.name;
    if !link.up {
        section.add(
            Weight::Warning,
            "it is down: nothing arrives",
            format!("ip link set {name} up"),
        );
    } else if !link.carrier {
        section.add(
            Weight::Warning,
            "it has no carrier: nothing arrives",
            "check the cable, or the other end of the mirror",
        );
    } else {
        section.good("up, with carrier");
    }
    let driver = fs::read_link(format!("/sys/class/net/{name}/device/driver"))
        .ok()
        .and_then(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
    section.good(format!(
        "driver {}, MTU {}, receive queues: {}",
        driver.as_deref().unwrap_or("none of a device (virtual)"),
        link.mtu,
        link.rx_queues.max(1),
    ));
    let cores = rustix::thread::sched_getaffinity(None).map_or(0, |set| set.count());
    if cores > 0 && link.rx_queues > cores {
        section.add(
            Weight::Warning,
            format!("{} receive queues share {cores} cores", link.rx_queues),
            format!("ethtool -L {name} combined {cores}"),
        );
    }
    let lost = link
        .counters
        .rx_missed_errors
        .saturating_add(link.counters.rx_fifo_errors)
        .saturating_add(link.counters.rx_over_errors);
    if lost > 0 {
        section.add(
            Weight::Warning,
            format!("the NIC has lost {lost} frames since it came up"),
            format!("larger rings (`ethtool -G {name} rx …`) and more queues help"),
        );
    }
}

fn offloads(section: &mut Section, link: &Link) {
    let name = &link.name;
    let found = link.offloads();
    if found.rx_vlan {
        section.add(
            Weight::Warning,
            "VLAN tags may be taken out of frames before they arrive",
            format!("ethtool -K {name} rxvlan off (on a veth: txvlan off at its peer)"),
        );
    }
    if found.lro {
        section.add(
            Weight::Warning,
            "large receive offload merges frames",
            format!("ethtool -K {name} lro off"),
        );
    }
    if found.gro {
        section.add(
            Weight::Warning,
            "generic receive offload merges frames where XDP runs in generic mode",
            format!("ethtool -K {name} gro off; native mode is not affected"),
        );
    }
    if !found.rx_vlan && !found.lro && !found.gro {
        section.good("no offload changes the frames");
    }
}

fn store(path: &Path) -> Section {
    let mut section = Section::new(format!("store {}", path.display()));
    match capture_store::Store::open(path) {
        Ok(store) => section.good(format!("belongs to sensor {}", store.identity().sensor)),
        Err(_) if !path.exists() => section.good("does not exist yet; a capture makes it"),
        Err(error) => {
            section.add(Weight::Fatal, chain(&error), "name another directory with --store");
        }
    }
    // A store that is still to be made lies where its nearest directory is.
    let ground = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("."));
    match rustix::fs::statvfs(ground) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            section.good(format!("{} free on its filesystem", Bytes(free)));
        }
        Err(error) => section.add(
            Weight::Warning,
            format!("its filesystem cannot be asked for space: {error}"),
            "give --packet-budget and --session-budget",
        ),
    }
    if rustix::fs::access(ground, rustix::fs::Access::WRITE_OK).is_err() {
        section.add(
            Weight::Fatal,
            format!("{} cannot be written", ground.display()),
            "give this user the right, or name another directory with --store",
        );
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_fails() {
        for (release, weight) in [
            ("6.18.44-generic", Weight::Good),
            ("5.18.0", Weight::Good),
            ("5.4.0-100", Weight::Fatal),
            ("4.19", Weight::Fatal),
            ("unreadable", Weight::Fatal),
        ] {
            let mut section = Section::new("machine");
            kernel(&mut section, release);
            assert_eq!(section.findings.first().map(|f| f.weight), Some(weight), "{release}");
        }
    }

    #[test]
    fn a_remedy_is_printed_under_its_finding() {
        let mut section = Section::new("interface x");
        section.good("fine");
        section.add(Weight::Warning, "merged", "ethtool -K x lro off");
        let mut out = Vec::new();
        print(&mut out, &section).expect("printed");
        let text = String::from_utf8(out).expect("text");
        let wanted = "interface x\n  ok       fine\n  warning  merged\n           \
                      → ethtool -K x lro off\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn an_interface_that_is_not_there_fails() {
        let section = interface("no-such-if");
        assert_eq!(section.findings.first().map(|f| f.weight), Some(Weight::Fatal));
    }
}
