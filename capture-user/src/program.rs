//! The XDP program of one interface: loading, attaching, steering, counting, detaching.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::{MapData, PerCpuArray, XskMap};
use aya::programs::links::FdLink;
use aya::programs::xdp::{XdpError, XdpMode};
use aya::programs::{ProgramType, Xdp};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use capture_common::{COUNTERS, PROGRAM, QUEUES, QueueCounters, SOCKETS, STAMP_CLOCK, StampClock};

use crate::args::Mode;
use crate::link::{Link, XdpHook};
use crate::privilege;

/// The compiled program. `scripts/build-ebpf` makes it from `capture-ebpf`, and `--check` proves
/// that it is what its source builds to.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../capture-ebpf/object/stillwire.bpf.o");

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    Native,
    /// In the kernel's generic hook, behind the driver.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// How the program came onto its interface.
#[derive(Debug)]
pub struct Attached {
    /// Where it runs.
    pub mode: AttachMode,
    /// Why it does not run in the driver, where native was tried first and refused.
    pub fallback: Option<String>,
}

/// Why an interface cannot be captured.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A capability is missing.
    #[error("not permitted to {doing} on {iface}: {reason}")]
    NotPermitted {
        /// What was being tried.
        doing: &'static str,
        /// The interface.
        iface: String,
        /// Which capability is missing, and what to do.
        reason: String,
    },
    /// The kernel did not take the program or its maps.
    #[error("cannot load the XDP program for {iface} (it needs Linux 5.18 or newer)")]
    Load {
        /// The interface.
        iface: String,
        /// What the kernel or the loader says, the verifier's words included.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Somebody else's program is on the interface.
    #[error(
        "another XDP program{} is attached to {iface}; see `bpftool net show dev {iface}` for whose \
         it is, and end its owner or detach it with `ip link set {iface} xdp off`",
        program_id.map_or(String::new(), |id| format!(" (id {id})"))
    )]
    Occupied {
        /// The interface.
        iface: String,
        /// The other program's id, if it was still there to be asked for.
        program_id: Option<u32>,
    },
    /// The program was refused in every mode that was allowed.
    #[error("{iface} does not take the XDP program: {reason}")]
    Refused {
        /// The interface.
        iface: String,
        /// What was tried, what the kernel answered, and what helps.
        reason: String,
    },
    /// The interface vanished between being looked up and now.
    #[error("interface {iface} is gone")]
    Gone {
        /// The interface.
        iface: String,
    },
    /// A map could not be read or written.
    #[error("cannot {doing} of {iface}")]
    Map {
        /// What was being tried.
        doing: &'static str,
        /// The interface.
        iface: String,
        /// What the kernel answered.
        #[source]
        source: aya::maps::MapError,
    },
}

/// The XDP program of one interface with its own maps. Dropped, it is detached.
pub struct Program {
    iface: String,
    queues: u32,
    clock: StampClock,
    id: u32,
    ebpf: Mutex<Ebpf>,
    sockets: Mutex<XskMap<MapData>>,
    counters: Arc<Counters>,
    link: Mutex<Option<FdLink>>,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program(id {} for {} queues of {})", self.id, self.queues, self.iface)
    }
}

/// How many frames of one queue the program steers. Outlives the program.
#[derive(Clone)]
pub struct Steered {
    counters: Arc<Counters>,
    queue: u32,
    iface: String,
}

impl Steered {
    /// So many so far.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn frames(&self) -> Result<u64, ProgramError> {
        Ok(read(&self.counters, self.queue, &self.iface)?.steered)
    }
}

impl fmt::Debug for Steered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "frames steered on {} queue {}", self.iface, self.queue)
    }
}

impl Program {
    /// Loads the program, with places for so many receive queues. It is not attached yet.
    ///
    /// # Errors
    /// [`ProgramError::NotPermitted`], or [`ProgramError::Load`].
    pub fn load(iface: &str, queues: u32) -> Result<Self, ProgramError> {
        Self::load_object(OBJECT, iface, queues, stamp_clock())
    }

    /// As [`Program::load`], from an object of another toolchain and with a chosen clock: for
    /// checking them.
    ///
    /// # Errors
    /// As [`Program::load`].
    pub fn load_object(
        object: &[u8],
        iface: &str,
        queues: u32,
        clock: StampClock,
    ) -> Result<Self, ProgramError> {
        let failed = |error: aya::EbpfError| load_error(iface, error);
        let mut ebpf = EbpfLoader::new()
            .override_global(QUEUES, &queues, true)
            .override_global(STAMP_CLOCK, &(clock as u32), true)
            .map_max_entries(SOCKETS, queues)
            .map_max_entries(COUNTERS, queues.saturating_add(1))
            .load(object)
            .map_err(failed)?;
        let absent = |name| load_error(iface, io::Error::other(format!("no {name} in the object")));
        let sockets = ebpf.take_map(SOCKETS).ok_or_else(|| absent(SOCKETS))?;
        let counters = ebpf.take_map(COUNTERS).ok_or_else(|| absent(COUNTERS))?;
        let sockets = XskMap::try_from(sockets).map_err(|error| load_error(iface, error))?;
        let counters = PerCpuArray::try_from(counters).map_err(|error| load_error(iface, error))?;
        let xdp: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .ok_or_else(|| absent(PROGRAM))?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| load_error(iface, error))?;
        xdp.load().map_err(|error| load_error(iface, error))?;
        let id = xdp.info().map_err(|error| load_error(iface, error))?.id();
        Ok(Self {
            iface: iface.to_owned(),
            queues,
            clock,
            id,
            ebpf: Mutex::new(ebpf),
            sockets: Mutex::new(sockets),
            counters: Arc::new(counters),
            link: Mutex::new(None),
        })
    }

    /// Attaches the program by a link that the kernel takes back when this process ends, however
    /// it ends, and that nobody can replace. Tries the driver first, unless told.
    ///
    /// Native XDP leaves a driver that cannot for the generic hook; the reason comes back in
    /// [`Attached::fallback`] and belongs in the log.
    ///
    /// A program that was taken off can be attached again, also to the interface that has taken
    /// the place of a removed one: its counters go on, and so do the sockets that are still open.
    ///
    /// # Errors
    /// [`ProgramError`], with what to do about it.
    pub fn attach(&self, link: &Link, mode: Mode) -> Result<Attached, ProgramError> {
        let (attached, held) = match mode {
            Mode::Native => (
                Attached { mode: AttachMode::Native, fallback: None },
                self.try_mode(link, AttachMode::Native)
                    .map_err(|refusal| self.error(link, &[(AttachMode::Native, refusal)]))?,
            ),
            Mode::Generic => (
                Attached { mode: AttachMode::Generic, fallback: None },
                self.try_mode(link, AttachMode::Generic)
                    .map_err(|refusal| self.error(link, &[(AttachMode::Generic, refusal)]))?,
            ),
            Mode::Auto => match self.try_mode(link, AttachMode::Native) {
                Ok(held) => (Attached { mode: AttachMode::Native, fallback: None }, held),
                Err(native) if native.leaves_generic() => {
                    let reason = native.explain(AttachMode::Native);
                    match self.try_mode(link, AttachMode::Generic) {
                        Ok(held) => {
                            (Attached { mode: AttachMode::Generic, fallback: Some(reason) }, held)
                        }
                        Err(generic) => {
                            let both =
                                [(AttachMode::Native, native), (AttachMode::Generic, generic)];
                            return Err(self.error(link, &both));
                        }
                    }
                }
                Err(native) => return Err(self.error(link, &[(AttachMode::Native, native)])),
            },
        };
        *self.link() = Some(held);
        Ok(attached)
    }

    /// Takes the program off its interface: no frame is steered any more, those already in the
    /// rings stay there. Done before the sockets close, so that no frame is redirected to one that
    /// is gone. Counters can still be read.
    pub fn detach(&self) {
        // Closing the link's descriptor is what detaches.
        drop(self.link().take());
    }

    /// Whether the program still is on the interface that `now` describes. A link can be taken off
    /// by `bpftool link detach`, silently: nothing else tells.
    #[must_use]
    pub fn is_attached(&self, now: &Link) -> bool {
        now.xdp.is_some_and(|xdp| xdp.program_id == self.id && xdp.hook != XdpHook::Offloaded)
    }

    /// Sends the frames of a queue to a socket from now on. The socket must be bound to the queue
    /// and have buffers to receive into.
    ///
    /// # Errors
    /// [`ProgramError::Map`]: the queue is beyond those the program was loaded for, or the
    /// descriptor is no AF_XDP socket.
    pub fn steer(&self, queue: u32, socket: &impl AsRawFd) -> Result<(), ProgramError> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets
            .set(queue, socket.as_raw_fd(), 0)
            .map_err(|source| self.map_error("steer frames to a socket of a queue", source))
    }

    /// What the program did with the frames of each queue, summed over CPUs. One entry per queue,
    /// and at the end one for all queues that were added since.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn counters(&self) -> Result<Vec<QueueCounters>, ProgramError> {
        (0..=self.queues).map(|queue| self.counters_of(queue)).collect()
    }

    /// The same for one queue. [`Program::queues`] as its number stands for all that were added
    /// since.
    ///
    /// # Errors
    /// [`ProgramError::Map`].
    pub fn counters_of(&self, queue: u32) -> Result<QueueCounters, ProgramError> {
        read(&self.counters, queue, &self.iface)
    }

    /// How many frames of a queue are steered, for who receives them.
    #[must_use]
    pub fn steered(&self, queue: u32) -> Steered {
        Steered { counters: Arc::clone(&self.counters), queue, iface: self.iface.clone() }
    }

    /// The interface's name.
    #[must_use]
    pub fn iface(&self) -> &str {
        &self.iface
    }

    /// Receive queues that the program has places for.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.queues
    }

    /// The clock that arrival stamps are read from.
    #[must_use]
    pub fn clock(&self) -> StampClock {
        self.clock
    }

    /// The program's id in the kernel (`bpftool prog show id …`).
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The loaded program, for `BPF_PROG_TEST_RUN`.
    ///
    /// # Errors
    /// Cannot fail once loaded; the library that keeps it asks.
    pub fn with_fd<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> T) -> Result<T, ProgramError> {
        let missing = || load_error(&self.iface, io::Error::other("the program is not loaded"));
        let ebpf = self.ebpf();
        let program = ebpf.program(PROGRAM).ok_or_else(missing)?;
        let fd = program.fd().map_err(|error| load_error(&self.iface, error))?;
        Ok(f(std::os::fd::AsFd::as_fd(fd)))
    }

    fn ebpf(&self) -> MutexGuard<'_, Ebpf> {
        self.ebpf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link(&self) -> MutexGuard<'_, Option<FdLink>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_error(&self, doing: &'static str, source: aya::maps::MapError) -> ProgramError {
        ProgramError::Map { doing, iface: self.iface.clone(), source }
    }

    fn try_mode(&self, link: &Link, mode: AttachMode) -> Result<FdLink, Refusal> {
        let flag = match mode {
            AttachMode::Native => XdpMode::Driver,
            AttachMode::Generic => XdpMode::Skb,
        };
        let mut ebpf = self.ebpf();
        let xdp: &mut Xdp = ebpf
            .program_mut(PROGRAM)
            .ok_or_else(|| Refusal::other("the program is not loaded"))?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| Refusal::other(error))?;
        let id = xdp.attach_to_if_index(link.index, flag).map_err(Refusal::from)?;
        let link = xdp.take_link(id).map_err(Refusal::from)?;
        // A kernel before 5.9 has no links for XDP, and aya then attaches in the old way, which
        // outlives a killed process. Such a kernel does not take a program with fragments either.
        FdLink::try_from(link).map_err(Refusal::other)
    }

    /// Turns refusals into an error that says what to do.
    fn error(&self, link: &Link, refusals: &[(AttachMode, Refusal)]) -> ProgramError {
        let iface = self.iface.clone();
        let any = |numbers: &[i32]| {
            refusals.iter().any(|(_, refusal)| refusal.errno.is_some_and(|e| numbers.contains(&e)))
        };
        if any(&[libc::EPERM, libc::EACCES]) {
            return ProgramError::NotPermitted {
                doing: "attach the XDP program",
                iface,
                reason: privilege::explain_attach(),
            };
        }
        if any(&[libc::ENODEV]) {
            return ProgramError::Gone { iface };
        }
        if any(&[libc::EBUSY, libc::EEXIST]) {
            let now = Link::by_index(link.index).ok();
            let program_id = now.and_then(|now| now.xdp).map(|xdp| xdp.program_id);
            return ProgramError::Occupied { iface, program_id };
        }
        let reasons: Vec<String> =
            refusals.iter().map(|(mode, refusal)| refusal.explain(*mode)).collect();
        ProgramError::Refused { iface, reason: reasons.join("; ") }
    }
}

/// Why one way of attaching did not work.
#[derive(Debug)]
struct Refusal {
    errno: Option<i32>,
    text: String,
}

impl Refusal {
    fn other(text: impl fmt::Display) -> Self {
        Self { errno: None, text: text.to_string() }
    }

    /// Whether the generic hook may still take the program.
    fn leaves_generic(&self) -> bool {
        !matches!(
            self.errno,
            Some(libc::EPERM | libc::EACCES | libc::ENODEV | libc::EBUSY | libc::EEXIST)
        )
    }

    /// What the number means here, and what helps.
    fn explain(&self, mode: AttachMode) -> String {
        let hint = match (self.errno, mode) {
            (Some(libc::EOPNOTSUPP), AttachMode::Native) => {
                "its driver has no native XDP; --mode generic works with any driver"
            }
            (Some(libc::EOPNOTSUPP), AttachMode::Generic) => "it takes no XDP program at all",
            (Some(libc::ENOSPC), _) => {
                "not enough queues: a veth needs at least as many receive queues as its peer has \
                 transmit queues (`ethtool -L`), a NIC needs spare ones for XDP"
            }
            (Some(libc::ERANGE | libc::EINVAL), AttachMode::Native) => {
                "its MTU or another setting is beyond what its driver allows with XDP; `dmesg` \
                 often says which"
            }
            (Some(libc::ENOMEM), _) => "out of memory for XDP rings",
            _ => return format!("{mode} XDP: {}", self.text),
        };
        format!("{mode} XDP: {hint} ({})", self.text)
    }
}

impl From<aya::programs::ProgramError> for Refusal {
    fn from(error: aya::programs::ProgramError) -> Self {
        Self { errno: errno(&error), text: root_cause(&error) }
    }
}

/// The system's error number, wherever it is in the chain of causes.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        // aya's own variants do not all name their cause as such.
        let own = match error.downcast_ref::<aya::programs::ProgramError>() {
            Some(aya::programs::ProgramError::SyscallError(call)) => call.io_error.raw_os_error(),
            Some(aya::programs::ProgramError::LoadError { io_error, .. }) => {
                io_error.raw_os_error()
            }
            Some(aya::programs::ProgramError::XdpError(XdpError::NetlinkError(netlink))) => {
                netlink.raw_os_error()
            }
            _ => None,
        };
        let own =
            own.or_else(|| error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
        if own.is_some() {
            return own;
        }
        cause = error.source();
    }
    None
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(number) = errno(error) {
        return io::Error::from_raw_os_error(number).to_string();
    }
    error.to_string()
}

fn load_error(iface: &str, error: impl std::error::Error + Send + Sync + 'static) -> ProgramError {
    // The verifier, too, says EACCES: for what it takes only from the privileged, and for what it
    // takes from nobody.
    let reason = match errno(&error) {
        Some(libc::EPERM) => Some(privilege::explain_attach()),
        Some(libc::EACCES) => privilege::missing_to_attach(),
        _ => None,
    };
    let iface = iface.to_owned();
    match reason {
        Some(reason) => ProgramError::NotPermitted { doing: "load the XDP program", iface, reason },
        None => ProgramError::Load { iface, source: Box::new(error) },
    }
}

/// The best clock that the kernel's XDP programs can read. TAI follows the machine's clock through
/// its corrections; a monotonic clock with a measured offset is right to microseconds.
fn stamp_clock() -> StampClock {
    match is_helper_supported(ProgramType::Xdp, BpfHelper::BPF_FUNC_ktime_get_tai_ns) {
        Ok(true) => StampClock::Tai,
        // A refusal for want of privilege comes again at loading, and is explained there.
        Ok(false) | Err(_) => StampClock::Monotonic,
    }
}

/// Counters of one CPU more. Wrapping, as the kernel's do.
type Counters = PerCpuArray<MapData, QueueCounters>;

/// What the program did with the frames of a queue, summed over CPUs.
fn read(counters: &Counters, queue: u32, iface: &str) -> Result<QueueCounters, ProgramError> {
    let cpus = counters.get(&queue, 0).map_err(|source| {
        let iface = iface.to_owned();
        ProgramError::Map { doing: "read the counters", iface, source }
    })?;
    Ok(cpus.iter().fold(QueueCounters::default(), add))
}

fn add(sum: QueueCounters, cpu: &QueueCounters) -> QueueCounters {
    QueueCounters {
        seen: sum.seen.wrapping_add(cpu.seen),
        seen_bytes: sum.seen_bytes.wrapping_add(cpu.seen_bytes),
        steered: sum.steered.wrapping_add(cpu.steered),
        passed: sum.passed.wrapping_add(cpu.passed),
        no_socket: sum.no_socket.wrapping_add(cpu.no_socket),
        aborted: sum.aborted.wrapping_add(cpu.aborted),
        unstamped: sum.unstamped.wrapping_add(cpu.unstamped),
    }
}
