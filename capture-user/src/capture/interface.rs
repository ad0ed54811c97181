//! One captured interface: what ails it, and how that is mended.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use capture_flow::frame::IfaceId;
use capture_flow::time::Nanos;
use capture_store::ledger::BlindCause;
use tracing::{info, warn};

use super::crew::{Crew, LiveSource, ServeError};
use super::kernel::KernelSide;
use super::refusal;
use crate::args::Mode;
use crate::blind::{Blindness, Subject};
use crate::chain;
use crate::config::CaptureConfig;
use crate::link::{Link, LinkError, Promiscuous};
use crate::live::clock;
use crate::program::{AttachMode, Program, ProgramError};
use crate::source::af_xdp::{AfXdp, AfXdpConfig, Backend};

/// How long after a failure mending is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Receive queues that a program has places for at least: the interface that takes the place of a
/// removed one may have more of them.
const LEAST_PLACES: u32 = 64;

/// What ails an interface.
type Ailments = BTreeMap<Subject, Ail>;

/// Says what ails an interface, since `from` at the latest.
fn begin(blindness: &Blindness, ails: &Ailments, from: Nanos) {
    for (subject, Ail { detail, since }) in ails {
        let from = since.map_or(from, |since| from.min(since));
        if blindness.begin(subject.clone(), from, detail) {
            warn!("blind: {subject}{}{detail}", if detail.is_empty() { "" } else { ", " });
        }
    }
}

/// What is known of something that ails an interface.
#[derive(Clone, Debug)]
pub(super) struct Ail {
    /// What an operator should know.
    pub(super) detail: String,
    /// Since when, where that is before the last look at which all was well: a socket's failure is
    /// heard of only then.
    pub(super) since: Option<Nanos>,
}

impl From<String> for Ail {
    fn from(detail: String) -> Self {
        Self { detail, since: None }
    }
}

/// One captured interface.
pub(super) struct Captured {
    number: usize,
    name: String,
    iface: IfaceId,
    program: Arc<Program>,
    /// As it was last seen, once it was taken and while it is there.
    link: Option<Link>,
    /// The hook that the program was attached to.
    hook: AttachMode,
    /// How frames are taken.
    backend: Option<Backend>,
    /// Frames for other stations are received as long as this lives.
    promiscuous: Option<Promiscuous>,
    /// Queues that have a socket, and whose it is.
    served: BTreeMap<u32, u16>,
    /// Queues whose socket failed.
    failed: BTreeMap<u32, Ail>,
    /// When it was last looked at: what is found now began after that.
    looked_at: Nanos,
    /// Whether it was seen without a link since, or removed.
    was_down: bool,
    was_removed: bool,
    /// Whether receive queues were added since the program was attached: some drivers (veth) let
    /// it see the frames of those only once it is attached anew.
    has_new_queues: bool,
    /// What ailed it then.
    ails: BTreeSet<Subject>,
    /// When mending may be tried again, and why it did not work.
    failure: Option<(Instant, String)>,
    /// Whether looking failed and that was said.
    cannot_look: bool,
}

/// What an interface is taken and mended with.
pub(super) struct Tools<'a> {
    pub(super) config: &'a CaptureConfig,
    pub(super) crew: &'a mut Crew,
    pub(super) kernel: &'a KernelSide,
}

/// Why an interface is not captured.
#[derive(Debug, thiserror::Error)]
pub(super) enum TakeError {
    /// It cannot be asked for frames of other stations.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It does not take the program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A queue has no socket.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// It must be left to the host.
    #[error("{0}")]
    Refused(String),
    /// It has more queues than were foreseen.
    #[error(
        "{name} has more receive queues than the {places} that the program was loaded for; restart \
         the sensor"
    )]
    TooManyQueues {
        /// The interface.
        name: String,
        /// How many there are places for.
        places: u32,
    },
}

impl Captured {
    /// Loads the program for an interface. Nothing is captured yet.
    ///
    /// # Errors
    /// The program cannot be loaded.
    pub(super) fn new(number: usize, iface: IfaceId, link: &Link) -> Result<Self, ProgramError> {
        let places = link.max_rx_queues.max(link.rx_queues).max(LEAST_PLACES);
        Ok(Self {
            number,
            name: link.name.clone(),
            iface,
            program: Arc::new(Program::load(&link.name, places)?),
            link: None,
            hook: AttachMode::Native,
            backend: None,
            promiscuous: None,
            served: BTreeMap::new(),
            failed: BTreeMap::new(),
            looked_at: clock(),
            was_down: false,
            was_removed: false,
            has_new_queues: false,
            ails: BTreeSet::new(),
            failure: None,
            cannot_look: false,
        })
    }

    /// Its program.
    pub(super) fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Whether a link is this interface, or could be from now on.
    pub(super) fn is(&self, link: &Link) -> bool {
        link.name == self.name || self.link.as_ref().is_some_and(|own| own.index == link.index)
    }

    /// A message told that it had no link.
    pub(super) fn note_down(&mut self) {
        self.was_down = true;
    }

    /// A message told that a link was removed: even if it is there again under its old number,
    /// nothing of what was set up on it is left.
    pub(super) fn note_removed(&mut self, link: &Link) {
        self.was_removed |= self.link.as_ref().is_some_and(|own| own.is(link));
    }

    /// The queues that a worker receives.
    pub(super) fn queues_of(&self, worker: u16) -> Vec<u32> {
        let served = self.served.iter().filter(|(_, by)| **by == worker);
        served.map(|(queue, _)| *queue).collect()
    }

    /// The socket of a queue is closed, because it failed or for a reason that is told elsewhere.
    pub(super) fn lose(&mut self, queue: u32, failure: Option<Ail>, kernel: &KernelSide) {
        self.served.remove(&queue);
        if let Some(failure) = failure {
            self.failed.insert(queue, failure);
        }
        kernel.close(self.number, queue);
    }

    /// Whether every queue had a socket at the last look.
    pub(super) fn is_served(&self) -> bool {
        !self.ails.iter().any(|ail| ail.queue.is_some())
    }

    /// Whether frames could come from it at the last look, were there a link.
    pub(super) fn is_captured(&self) -> bool {
        let lost = [BlindCause::InterfaceGone, BlindCause::XdpRemoved, BlindCause::XdpReplaced];
        !self.served.is_empty() && !self.ails.iter().any(|ail| lost.contains(&ail.cause))
    }

    /// Takes the program off: no frame is steered any more.
    pub(super) fn detach(&self) {
        self.program.detach();
    }

    /// Takes the interface: attaches the program, opens a socket on each queue. `wait` says to wait
    /// for queues that another process has just left.
    ///
    /// # Errors
    /// What is in the way, and what to do about it.
    pub(super) fn take(
        &mut self,
        link: &Link,
        wait: bool,
        tools: &mut Tools<'_>,
    ) -> Result<(), TakeError> {
        self.promiscuous = Some(Promiscuous::on(link)?);
        let attached = self.program.attach(link, tools.config.mode)?;
        if let Some(reason) = &attached.fallback {
            warn!("{}: generic XDP is used, since {reason}", self.name);
        }
        self.hook = attached.mode;
        self.has_new_queues = false;
        self.link = Some(link.clone());
        tools.kernel.came(self.number, link);
        self.serve(link, wait, tools)
    }

    /// From here on the sensor watches: says how.
    pub(super) fn announce(&mut self, at: Nanos) {
        self.looked_at = at;
        if let Some(backend) = self.backend {
            info!("capturing {}: {backend}, {} receive queues", self.name, self.served.len());
        }
    }

    /// Opens a socket on every queue that has none. One that cannot be opened does not keep the
    /// others from it.
    fn serve(&mut self, link: &Link, wait: bool, tools: &mut Tools<'_>) -> Result<(), TakeError> {
        let mut failure = None;
        for queue in 0..link.rx_queues.max(1) {
            if !self.served.contains_key(&queue)
                && let Err(error) = self.open(link, queue, wait, tools)
            {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn open(
        &mut self,
        link: &Link,
        queue: u32,
        wait: bool,
        tools: &mut Tools<'_>,
    ) -> Result<(), TakeError> {
        let places = self.program.queues();
        if queue >= places {
            return Err(TakeError::TooManyQueues { name: self.name.clone(), places });
        }
        let worker = tools.crew.worker_for(queue).ok_or(ServeError::NoWorker)?;
        let config = AfXdpConfig {
            iface: self.iface,
            queue,
            ring_size: tools.config.ring_size,
            frame_size: tools.config.frame_size,
        };
        let (program, hook) = (&self.program, self.hook);
        let (place, backend) = tools.crew.give(worker, (self.number, queue), || {
            let open = if wait { AfXdp::open } else { AfXdp::open_now };
            let socket = open(&config, link, program, hook)?;
            let backend = socket.backend();
            Ok((Box::new(socket) as LiveSource, backend))
        })?;
        tools.kernel.serve(self.number, queue, worker, place, backend_name(backend));
        self.served.insert(queue, worker);
        self.failed.remove(&queue);
        self.backend = Some(backend);
        Ok(())
    }

    /// Looks at the interface: says what ails it, mends what can be mended if it is to, and says
    /// what is well again. False if it could not be looked at.
    pub(super) fn look(
        &mut self,
        heal: bool,
        blindness: &Blindness,
        tools: &mut Tools<'_>,
    ) -> bool {
        let begun = clock();
        let found = match self.find() {
            Ok(found) => found,
            Err(error) => {
                // Nothing is known now: the next look tells, as from the last one that could be had.
                if !std::mem::replace(&mut self.cannot_look, true) {
                    warn!(
                        "{} cannot be looked at, nothing is promised: {}",
                        self.name,
                        chain(&error)
                    );
                }
                return false;
            }
        };
        self.cannot_look = false;
        let removed = std::mem::take(&mut self.was_removed);
        let same = |own: &&Link| !removed && found.as_ref().is_some_and(|found| found.is(own));
        let known = self.link.as_ref().filter(same);
        // The carrier that went and came between two looks has left a trace.
        let mut flapped = std::mem::take(&mut self.was_down);
        if let (Some(known), Some(found)) = (known, &found) {
            flapped |= known.carrier_changes != found.carrier_changes;
            // Where nothing is mended, the queue without a socket says it all.
            self.has_new_queues |= heal && known.rx_queues < found.rx_queues;
            self.link = Some(found.clone());
        } else if self.link.take().is_some() {
            // Its sockets find out by themselves.
            self.program.detach();
            self.promiscuous = None;
        }
        let before = self.diagnose(found.as_ref());
        // Mending can take seconds, and the ledger is not to be without it so long.
        self.tell_begun(blindness, &before, flapped);
        let mut after = before.clone();
        if heal
            && let Some(link) = &found
            && self.mend(link, &before, tools)
            && let Ok(found) = self.find()
        {
            after = self.diagnose(found.as_ref());
            let ours = |link: &Link| self.link.as_ref().is_some_and(|own| own.is(link));
            if let Some(link) = found.filter(ours) {
                // What mending did to the carrier is no flap.
                self.link = Some(link);
            }
        }
        self.tell_ended(blindness, before, after);
        tools.kernel.saw(self.number, self.link.as_ref());
        self.looked_at = begun;
        true
    }

    /// Says what was found at this look.
    fn tell_begun(&self, blindness: &Blindness, before: &Ailments, flapped: bool) {
        let to = clock();
        // The clock may have been set back.
        let from = self.looked_at.min(to);
        let down = Subject::interface(BlindCause::LinkDown, &self.name);
        let gone = Subject::interface(BlindCause::InterfaceGone, &self.name);
        let known = |subject: &Subject| before.contains_key(subject) || self.ails.contains(subject);
        if flapped && !known(&down) && !known(&gone) {
            warn!("blind for a moment: {down}");
            blindness.was(down, from, to, "it went down and came back");
        }
        begin(blindness, before, from);
    }

    /// Says what of it is over, and what mending left behind.
    fn tell_ended(&mut self, blindness: &Blindness, before: Ailments, after: Ailments) {
        let to = clock();
        let ailed: BTreeSet<Subject> =
            before.into_keys().chain(self.ails.iter().cloned()).collect();
        for subject in ailed {
            if !after.contains_key(&subject) && blindness.end(&subject, to).is_some() {
                info!("sees again: {subject}");
            }
        }
        begin(blindness, &after, self.looked_at.min(to));
        self.ails = after.into_keys().collect();
    }

    /// The interface as it is now: the one that was taken, else one that has its name.
    fn find(&self) -> Result<Option<Link>, LinkError> {
        let own = self.link.as_ref().map(|own| Link::by_index(own.index));
        match own {
            Some(Ok(link)) => return Ok(Some(link)),
            Some(Err(LinkError::NoSuchInterface { .. })) | None => {}
            Some(Err(other)) => return Err(other),
        }
        match Link::by_name(&self.name) {
            Ok(link) => Ok(Some(link)),
            Err(LinkError::NoSuchInterface { .. }) => Ok(None),
            Err(other) => Err(other),
        }
    }

    fn diagnose(&self, found: Option<&Link>) -> Ailments {
        let mut ails = Ailments::new();
        let failure =
            || self.failure.as_ref().map_or(String::new(), |(_, text)| text.clone()).into();
        let own = self.link.as_ref();
        let Some(link) = found.filter(|found| own.is_some_and(|own| own.is(found))) else {
            ails.insert(Subject::interface(BlindCause::InterfaceGone, &self.name), failure());
            return ails;
        };
        if !link.runs() {
            let why = if link.up { "no carrier" } else { "it is set down" };
            let down = Subject::interface(BlindCause::LinkDown, &self.name);
            ails.insert(down, why.to_owned().into());
        }
        match &link.xdp {
            _ if self.program.is_attached(link) && !self.has_new_queues => {}
            Some(_) if self.program.is_attached(link) => {
                let detail = "receive queues were added, of which it does not see every frame";
                let removed = Subject::interface(BlindCause::XdpRemoved, &self.name);
                ails.insert(removed, detail.to_owned().into());
            }
            None => {
                ails.insert(Subject::interface(BlindCause::XdpRemoved, &self.name), failure());
            }
            Some(other) => {
                let detail = format!(
                    "program {} is attached; `bpftool net show dev {}` tells whose it is",
                    other.program_id, link.name
                );
                let replaced = Subject::interface(BlindCause::XdpReplaced, &self.name);
                ails.insert(replaced, detail.into());
            }
        }
        for queue in (0..link.rx_queues.max(1)).filter(|queue| !self.served.contains_key(queue)) {
            let (cause, ail) = match self.failed.get(&queue) {
                Some(ail) => (BlindCause::SourceFailed, ail.clone()),
                None => (BlindCause::QueueUnserved, failure()),
            };
            ails.insert(Subject::queue(cause, &self.name, queue), ail);
        }
        ails
    }

    /// Mends what can be. Whether anything was tried.
    fn mend(&mut self, link: &Link, ails: &Ailments, tools: &mut Tools<'_>) -> bool {
        let mendable = ails
            .keys()
            .any(|ail| !matches!(ail.cause, BlindCause::LinkDown | BlindCause::XdpReplaced));
        let early = self.failure.as_ref().is_some_and(|(at, _)| Instant::now() < *at);
        // A removed interface's sockets must be closed before their places are given away.
        let closing = self.link.is_none() && !self.served.is_empty();
        if !mendable || early || closing {
            return false;
        }
        match self.restore(link, tools) {
            Ok(()) => self.failure = None,
            Err(error) => {
                let text = chain(&error);
                if self.failure.as_ref().is_none_or(|(_, known)| *known != text) {
                    warn!("{} cannot be mended yet: {text}", self.name);
                }
                self.failure = Some((Instant::now() + RETRY, text));
            }
        }
        true
    }

    fn restore(&mut self, link: &Link, tools: &mut Tools<'_>) -> Result<(), TakeError> {
        if self.link.is_none() {
            if let Some(refusal) = refusal(link, tools.config)? {
                return Err(TakeError::Refused(refusal));
            }
            return self.take(link, false, tools);
        }
        // Somebody else's program is left alone until its owner takes it off.
        let ours = self.program.is_attached(link);
        if link.xdp.is_none() || (ours && self.has_new_queues) {
            self.program.detach();
            let hook = match self.hook {
                AttachMode::Native => Mode::Native,
                AttachMode::Generic => Mode::Generic,
            };
            self.program.attach(link, hook)?;
            self.has_new_queues = false;
        }
        self.serve(link, false, tools)
    }
}

/// The way in which frames are taken, as the ledger has it.
fn backend_name(backend: Backend) -> String {
    format!("{}-{}", backend.attached, if backend.zero_copy { "zerocopy" } else { "copy" })
}
