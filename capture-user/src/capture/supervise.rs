//! Watches over a capture while it runs, and ends it in order.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use capture_store::ledger::Note;
use signal_hook::consts::SIGINT;
use signal_hook::iterator::Signals;
use tracing::{error, info};

use super::{Running, WorkerThread};
use crate::chain;
use crate::config::CaptureConfig;
use crate::keeper::{Preparer, Sealer};
use crate::link::Link;
use crate::live::{Event, Stop};
use crate::run::{Run, panic_text};
use crate::status::Status;

/// How often the engine looks at its threads, at signals and at the clock.
const LOOK: Duration = Duration::from_millis(25);
/// How often it looks whether XDP still is where it was put.
const LOOK_AT_XDP: Duration = Duration::from_secs(1);

impl Running {
    /// Watches over the capture until it ends, then ends it in order.
    pub(super) fn run(
        mut self,
        config: &CaptureConfig,
        run: &Run,
        mut signals: Signals,
        preparer: Preparer,
        sealer: Sealer,
    ) -> Result<ExitCode> {
        let mut status = Status::new(config.common.quiet);
        let mut healthy = true;
        let mut looked_at_xdp = Instant::now();
        loop {
            if let Some(signal) = signals.pending().next() {
                status.clear();
                info!("{} received, stopping", signal_name(signal));
                break;
            }
            if self.is_enough(config, run) {
                break;
            }
            healthy &= self.note_events(run);
            healthy &= self.note_ended_workers(run);
            if looked_at_xdp.elapsed() >= LOOK_AT_XDP {
                looked_at_xdp = Instant::now();
                healthy &= self.note_lost_programs(run);
            }
            if !self.flush.is_alive() || !preparer.is_alive() || !sealer.is_alive() {
                status.clear();
                error!("a thread of the engine has failed; stopping while the record is whole");
                healthy = false;
                break;
            }
            if self.interfaces.iter().all(|captured| !captured.alive) {
                status.clear();
                error!("no interface is left to capture; stopping");
                healthy = false;
                break;
            }
            if self.workers.iter().all(|worker| worker.thread.is_none()) {
                status.clear();
                error!("no worker is left; stopping");
                healthy = false;
                break;
            }
            status.show(&run.totals());
            thread::sleep(LOOK);
        }
        // XDP first, then the workers drain what already lies in the rings: at the end every
        // frame that the program steered is either received or lost, and counted as such.
        self.flush.announce_end(crate::live::clock());
        self.interfaces.iter().for_each(|captured| captured.program.detach());
        stop_workers(&self.stop);
        while self.workers.iter().any(WorkerThread::runs) {
            if signals.pending().next().is_some() {
                status.clear();
                info!("already stopping; frames that were received are being written");
            }
            thread::sleep(Duration::from_millis(5));
        }
        healthy &= self.note_events(run);
        let in_order = self.note_ended_workers(run);
        healthy &= in_order;
        status.clear();
        healthy &= !preparer.stop();
        let sealed = sealer.stop();
        let flushed = self.flush.stop(in_order && sealed.is_ok());
        run.say_farewell(config.common.quiet);
        sealed?;
        flushed?;
        Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn is_enough(&self, config: &CaptureConfig, run: &Run) -> bool {
        config.duration.is_some_and(|duration| self.started.elapsed() >= duration)
            || config.count.is_some_and(|count| run.counts().received >= count)
    }

    /// Says what workers reported; false if anything went wrong.
    fn note_events(&mut self, run: &Run) -> bool {
        let mut fine = true;
        for event in self.events.try_iter() {
            let Event::SourceEnded { worker, source, error } = event;
            fine = false;
            error!("{}; the other sources go on", chain(&error));
            let _ = run.notes.send(Note::Said { text: chain(&error) });
            let taps = self.sources.get(usize::from(worker));
            if let Some((interface, _)) = taps.and_then(|taps| taps.get(source))
                && let Some(captured) = self.interfaces.get_mut(*interface)
            {
                captured.alive = false;
            }
        }
        fine
    }

    /// Notices workers that ended although nobody told them; false if there are any.
    fn note_ended_workers(&mut self, run: &Run) -> bool {
        let stopping = self.stop.flag.load(Ordering::Acquire);
        let mut fine = true;
        for worker in &mut self.workers {
            let Some(thread) = worker.thread.take_if(|thread| thread.is_finished()) else {
                continue;
            };
            let text = match thread.join() {
                Ok(Ok(())) if stopping => continue,
                Ok(Ok(())) => "it has no source left".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("it failed: {}", panic_text(&*panic)),
            };
            fine = false;
            let text = format!("worker {} has ended: {text}", worker.number);
            error!("{text}");
            let _ = run.notes.send(Note::Said { text });
        }
        fine
    }

    /// Notices programs that somebody took off their interface; false if there are any.
    fn note_lost_programs(&mut self, run: &Run) -> bool {
        let mut fine = true;
        for captured in self.interfaces.iter_mut().filter(|captured| captured.alive) {
            let Ok(now) = Link::by_index(captured.link.index) else {
                // Gone: its sockets say so themselves.
                continue;
            };
            if !captured.program.is_attached(&now) {
                fine = false;
                captured.alive = false;
                let text = format!(
                    "the XDP program was taken off {}: nothing is captured there any more; start \
                     again to put it back",
                    captured.link.name
                );
                error!("{text}");
                let _ = run.notes.send(Note::Said { text });
            }
        }
        fine
    }
}

impl WorkerThread {
    fn runs(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

/// Tells the workers to drain their rings and to end.
pub(super) fn stop_workers(stop: &Stop) {
    stop.flag.store(true, Ordering::Release);
    // Cannot fail short of 2^64 stops.
    let _ = rustix::io::write(&*stop.fd, &1_u64.to_ne_bytes());
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        SIGINT => "SIGINT",
        _ => "SIGTERM",
    }
}
