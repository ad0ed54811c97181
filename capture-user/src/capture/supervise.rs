//! Watches over a capture while it runs, mends what blinds it, and ends it in order.

use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use capture_flow::time::Nanos;
use capture_store::ledger::{BlindCause, Note};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use tracing::{error, info, warn};

use super::crew::Crew;
use super::interface::{Ail, Captured, Tools};
use super::kernel::KernelSide;
use super::made::MadeQueues;
use crate::blind::Subject;
use crate::chain;
use crate::config::CaptureConfig;
use crate::flush::FlushThread;
use crate::keeper::{Preparer, Sealer};
use crate::link::{LinkChange, LinkWatch};
use crate::live::{Event, clock};
use crate::run::Run;
use crate::source::SourceError;
use crate::status::Status;

/// How often everything is looked at although nothing was told: a detached program, a new queue
/// and the loss of a carrier tell nobody, or late. It bounds by how much the ledger takes a blind
/// time for longer than it was; a look is a few questions to the kernel, some tens of
/// microseconds each.
const LOOK: Duration = Duration::from_millis(100);
/// How often the workers are looked at that drain their rings at the end.
const DRAINING: Duration = Duration::from_millis(5);

/// Signals that end a capture.
pub(super) type Signals = SignalDelivery<UnixStream, SignalOnly>;

/// A capture under way.
pub(super) struct Supervisor {
    interfaces: Vec<Captured>,
    crew: Crew,
    kernel: KernelSide,
    /// The frames that are made, where none are captured.
    made: Option<MadeQueues>,
    watch: LinkWatch,
    flush: FlushThread,
    started: Instant,
    looked: Option<Instant>,
    /// Workers that ended although nobody told them, and whose queues nobody else has yet.
    ended: Vec<u16>,
    /// Events that were heard, and whose blind times are not all begun yet.
    heard: usize,
}

impl Supervisor {
    /// Takes over what was started.
    pub(super) fn new(
        interfaces: Vec<Captured>,
        crew: Crew,
        kernel: KernelSide,
        watch: LinkWatch,
        flush: FlushThread,
        started: Instant,
    ) -> Self {
        let (made, looked, ended, heard) = (None, None, Vec::new(), 0);
        Self { interfaces, crew, kernel, made, watch, flush, started, looked, ended, heard }
    }

    /// The same, where frames are made instead of captured.
    pub(super) fn with_made(self, made: Option<MadeQueues>) -> Self {
        Self { made, ..self }
    }

    /// Watches over the capture until it ends, then ends it in order.
    pub(super) fn run(
        mut self,
        config: &CaptureConfig,
        run: &Run,
        mut signals: Signals,
        preparer: Preparer,
        sealer: Sealer,
    ) -> Result<ExitCode> {
        let mut status = Status::new(config.common.quiet, config.common.simulation.is_some());
        let mut healthy = true;
        loop {
            if let Some(signal) = signals.pending().next() {
                status.clear();
                info!("{} received, stopping", signal_name(signal));
                break;
            }
            if self.is_enough(config, run) {
                break;
            }
            healthy &= self.look(config, run);
            let lost = if !self.flush.is_alive() || !preparer.is_alive() || !sealer.is_alive() {
                Some("a thread of the engine has failed; stopping while the record is whole")
            } else if !self.crew.any_runs() {
                Some("no worker is left; stopping")
            } else if !config.heal
                && self.made.is_none()
                && !self.interfaces.iter().any(Captured::is_captured)
            {
                Some("no interface is left to capture; stopping")
            } else {
                None
            };
            if let Some(lost) = lost {
                status.clear();
                error!("{lost}");
                healthy = false;
                break;
            }
            status
                .show(&run.totals(), || run.blind.now().iter().map(ToString::to_string).collect());
            self.wait(&signals, config);
        }
        // XDP first, then the workers drain what already lies in the rings: at the end every
        // frame that the program steered is either received or lost, and counted as such.
        self.flush.announce_end(clock());
        let mut in_order = self.look_a_last_time(config, run);
        let lasted = self.started.elapsed();
        self.made.iter().for_each(MadeQueues::end);
        self.interfaces.iter().for_each(Captured::detach);
        self.crew.stop();
        while self.crew.any_runs() {
            if signals.pending().next().is_some() {
                status.clear();
                info!("already stopping; frames that were received are being written");
            }
            std::thread::sleep(DRAINING);
        }
        in_order &= self.hear(run) && !self.crew.left_open();
        run.blind.took_news(std::mem::take(&mut self.heard));
        healthy &= in_order;
        status.clear();
        healthy &= !preparer.stop();
        let sealed = sealer.stop();
        let flushed = self.flush.stop(in_order && sealed.is_ok());
        run.say_farewell(config.common.quiet);
        if !config.common.quiet
            && let Some(summary) = run.summary(lasted, self.started.elapsed())
        {
            // Nobody may be there to read it.
            let _ = writeln!(io::stdout(), "{summary}");
        }
        sealed?;
        flushed?;
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn is_enough(&self, config: &CaptureConfig, run: &Run) -> bool {
        config.duration.is_some_and(|duration| self.started.elapsed() >= duration)
            || config.count.is_some_and(|count| match &self.made {
                // What is in the rings is taken at the end.
                Some(made) => made.offered() >= count,
                None => run.counts().received >= count,
            })
    }

    /// Waits for a signal, a change of a link, or until it is time to look.
    fn wait(&self, signals: &Signals, config: &CaptureConfig) {
        let left = config.duration.map(|duration| duration.saturating_sub(self.started.elapsed()));
        let timeout = left.map_or(LOOK, |left| left.min(LOOK));
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 0 });
        let mut fds = [
            PollFd::from_borrowed_fd(signals.get_read().as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.watch.as_fd(), PollFlags::IN),
        ];
        // An interrupted call is a reason to look as well; nothing else can fail here.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// Hears what workers and the kernel have told, looks at every interface where there is
    /// reason to or it is time, and mends what can be mended. False if something went wrong that
    /// an operator must see to.
    fn look(&mut self, config: &CaptureConfig, run: &Run) -> bool {
        let begun = clock();
        let mut due = self.looked.is_none_or(|at| at.elapsed() >= LOOK);
        let interfaces = &mut self.interfaces;
        self.watch.changes(|change| match change {
            LinkChange::Changed(link) => {
                for captured in interfaces.iter_mut().filter(|captured| captured.is(&link)) {
                    due = true;
                    if !link.runs() {
                        captured.note_down();
                    }
                }
            }
            LinkChange::Gone(link) => {
                for captured in interfaces.iter_mut().filter(|captured| captured.is(&link)) {
                    due = true;
                    captured.note_removed(&link);
                }
            }
            LinkChange::Missed => due = true,
        });
        if !due {
            return true;
        }
        self.looked = Some(Instant::now());
        let fine = self.hear(run);
        if self.look_at_interfaces(config.heal, config, run) {
            // The clock may have been set back meanwhile.
            run.blind.notice_through(begun.min(clock()));
            run.blind.took_news(std::mem::take(&mut self.heard));
        }
        // Others have taken its queues over.
        if self.interfaces.iter().all(Captured::is_served) {
            for worker in self.ended.drain(..) {
                run.blind.end(&Subject::worker(BlindCause::WorkerEnded, worker), clock());
            }
        }
        fine
    }

    /// Looks at every interface. False if one of them could not be looked at.
    fn look_at_interfaces(&mut self, heal: bool, config: &CaptureConfig, run: &Run) -> bool {
        let mut tools = Tools { config, crew: &mut self.crew, kernel: &self.kernel };
        let mut all = true;
        for captured in &mut self.interfaces {
            all &= captured.look(heal, &run.blind, &mut tools);
        }
        all
    }

    /// The end is announced: what had blinded the sensor until then is noticed, and nothing is
    /// mended any more. False if something went wrong, or could not be looked at: then the end is
    /// none in order, and no more is promised than before.
    fn look_a_last_time(&mut self, config: &CaptureConfig, run: &Run) -> bool {
        let fine = self.hear(run);
        let looked = self.look_at_interfaces(false, config, run);
        if looked {
            run.blind.notice_through(Nanos::MAX);
            run.blind.took_news(std::mem::take(&mut self.heard));
        }
        fine && looked
    }

    /// Hears what workers told, and notices those that ended although nobody told them; false if
    /// there are any.
    fn hear(&mut self, run: &Run) -> bool {
        for event in self.crew.events() {
            self.heard += 1;
            match event {
                Event::SourceEnded { worker, place, since, error } => {
                    let failure = match &error {
                        // The interface itself says so.
                        SourceError::InterfaceGone { .. } => None,
                        other => Some(Ail { detail: chain(other), since: Some(since) }),
                    };
                    if let Some(failure) = &failure {
                        error!("{}; the other sources go on", failure.detail);
                    }
                    if let Some((number, queue)) = self.crew.queue_at(worker, place)
                        && let Some(captured) = self.interfaces.get_mut(number)
                    {
                        captured.lose(queue, failure, &self.kernel);
                    }
                }
                Event::Stalled { worker, from, to } => {
                    warn!(worker, "did not run for {:.1} s", (to - from).as_secs_f64());
                    let stalled = Subject::worker(BlindCause::WorkerStalled, worker);
                    run.blind.was(stalled, from, to, "");
                }
            }
        }
        let mut fine = true;
        for (worker, why) in self.crew.ended() {
            let Some(shared) = run.workers.get(usize::from(worker)) else { continue };
            let Some(why) = why else {
                shared.set_ended();
                continue;
            };
            fine = false;
            let text = format!("worker {worker} has ended: {why}");
            error!("{text}");
            let ended = Subject::worker(BlindCause::WorkerEnded, worker);
            let since = shared.counters.read().unwritten_since();
            run.blind.begin(ended, since.min(clock()), &why);
            // Only now: whoever sees that it has ended finds the time in which that tells.
            shared.set_ended();
            self.ended.push(worker);
            let _ = run.notes.send(Note::Said { text });
            for captured in &mut self.interfaces {
                for queue in captured.queues_of(worker) {
                    captured.lose(queue, None, &self.kernel);
                }
            }
        }
        fine
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        SIGHUP => "SIGHUP",
        _ => "SIGTERM",
    }
}
